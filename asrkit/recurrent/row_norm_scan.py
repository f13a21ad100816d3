"""The GRU scan with a norm per frame (layer norm, RMS norm) on W_h h, in one loop with its own backward pass.

Layer norm inside the loop needs no mean (`asrkit.recurrent.row_scale`). What is left per step is a root mean square per
group, and its gradient a scalar product. Equations: Ba et al. 2016 (arXiv 1607.06450), LN-GRU in the appendix; Zhang &
Sennrich 2019 (arXiv 1910.07467) for RMS norm. The rest is `asrkit.recurrent.scan`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.recurrent.row_scale import RowScale
from asrkit.recurrent.scan import CHUNK, doubled, first_states, gru_factors
from asrkit.recurrent.scan_order import ScanOrder, from_scan, incoming


def gru_row_norm_scan(sums: Tensor, weight: Tensor, bias: Tensor, scale: RowScale, order: ScanOrder) -> Tensor:
    """`scan.gru_scan` with W_h h normalized: sums (D, R, 4H), weight (D, 3H, H), bias (D, H) -> (B, T, D*H).

    The shift of `scale` must be in `sums` and `bias` already (`with_shift`).
    """
    gain = torch.ones_like(weight[..., 0]) if scale.gain is None else scale.gain
    weight = scale.centre(weight)
    inputs = (sums, weight, bias, gain, scale.mixing(weight), scale.eps, order)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs[:4]):  # type: ignore[union-attr]
        return _GRURowNormScan.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    return from_scan(_forward(*inputs)[0], order)


def _forward(
    sums: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, mixing: Tensor, eps: float, order: ScanOrder
) -> tuple[Tensor, Tensor, Tensor]:
    """States (D, R, H), xhat (D, R, 3H) and 1 / s (D, R, 3); `sums` then holds what `scan.py` leaves there."""
    size = weight.shape[2]
    sums[..., 3 * size :] = (bias * 2)[:, None]
    gain = doubled(gain, 2, size)[:, None]
    product = weight.transpose(1, 2).contiguous()
    states = first_states(sums, order, size)
    hats = sums.new_empty(order.directions, order.rows, 3 * size)
    scales = sums.new_empty(order.directions, order.rows, 3, 1)
    floor, minus_one = sums.new_tensor(eps), sums.new_tensor(-1.0)
    memory = {n: work_of_step(sums, order.directions, n, size, 3) for n in set(order.computed)}
    bmm, norm, addmm, rsqrt, mul = torch.bmm, torch.linalg.vector_norm, torch.addmm, torch.rsqrt, torch.mul
    addcmul, add, lerp = torch.addcmul, torch.add, torch.lerp
    for rows, before, total, reset_update, candidate, reset, update, recurrent, hat, hat3, scale, state in zip(
        order.computed,
        order.steps(states),
        order.steps(sums[..., size:]),
        order.steps(sums[..., size : 3 * size]),
        *(order.steps(part) for part in sums.split(size, -1)),
        order.steps(hats),
        order.steps(hats.unflatten(-1, (3, size))),
        order.steps(scales),
        states.split(order.blocks, 1)[1:],
        strict=True,
    ):
        raw, raw3, squares, flat, means, found = memory[rows]
        bmm(before, product, out=raw)
        norm(raw3, dim=-1, out=squares)
        addmm(floor, flat.square_(), mixing, out=means)
        mul(raw3, rsqrt(found, out=scale), out=hat3)
        total.addcmul_(hat, gain)
        reset_update.sigmoid_()
        addcmul(candidate, reset, recurrent, out=candidate).sigmoid_()
        add(minus_one, candidate, alpha=2, out=candidate)
        lerp(candidate, before, update, out=state)
    for tensor in (sums, hats):
        tensor[:, order.unused] = 0  # no step has been there, and 0 times what lies in fresh memory may be NaN
    return states, hats, scales


def work_of_step(like: Tensor, directions: int, rows: int, size: int, gates: int) -> tuple[Tensor, ...]:
    """What a step works in: W_h h, its gates apart; norms, flat; mean squares, with the axes of `scales`."""
    raw, squares = like.new_empty(directions, rows, gates, size), like.new_empty(directions, rows, gates)
    means = like.new_empty(directions * rows, gates)
    return raw.flatten(2), raw, squares, squares.view(-1, gates), means, means.view(directions, rows, gates, 1)


class _GRURowNormScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        sums, weight, _, gain, mixing, _, order = inputs
        states, hats, scales = _forward(*inputs)
        ctx.save_for_backward(sums, weight, gain, mixing, states, hats, scales)
        ctx.order = order
        return from_scan(states, order)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums, weight, gain, mixing, states, hats, scales = ctx.saved_tensors
        order: ScanOrder = ctx.order
        size = weight.shape[2]
        gain = doubled(gain, 2, size)[:, None]
        grad_states = incoming(grad, order)
        grad_sums, grad_products = torch.empty_like(sums), torch.empty_like(hats)
        loop = _Loop(grad_states, grad_sums, grad_products, sums, order, size)
        grad_gain = torch.zeros_like(gain)
        for start, end, rows in order.chunks(CHUNK // (order.directions * 3 * size)):
            gru_factors(sums[:, rows], states[:, rows], grad_sums[:, rows])
            grad_gain += loop.run(start, end, rows, gain, hats[:, rows], scales[:, rows], mixing, weight)
        grad_sums[:, order.unused] = 0
        grad_products[:, order.unused] = 0
        grad_weight = torch.bmm(grad_products.transpose(1, 2), states)
        grad_bias = grad_sums[..., 3 * size :].sum(1).mul_(2)
        return grad_sums, grad_weight, grad_bias, doubled(grad_gain[:, 0], 2, size), None, None, None


class _Loop:
    """Steps backwards through a chunk: the gradients of its states, of its sums and of its W_h h.

    With xhat = u / s, s = sqrt(mean u^2 + eps), and f the derivative of the state by the sum, an incoming gradient g
    gives du = (f gain g - xhat mean(f gain g xhat)) / s.
    """

    def __init__(
        self, grad_states: Tensor, grad_sums: Tensor, grad_products: Tensor, sums: Tensor, order: ScanOrder, size: int
    ) -> None:
        self.size, self.order, self.grad_sums = size, order, grad_sums
        self.after = grad_states.split(order.blocks, 1)[1:]
        self.after3 = grad_states.unsqueeze(2).split(order.blocks, 1)[1:]
        self.before = order.steps(grad_states)
        self.updates = order.steps(sums[..., 2 * size : 3 * size])
        self.factors = order.steps(grad_sums.unflatten(-1, (4, size)))
        self.products = order.steps(grad_products)
        self.products3 = order.steps(grad_products.unflatten(-1, (3, size)))
        self.grad_products = grad_products
        self.shares = {n: shares_of_step(sums, order.directions, n, 3) for n in set(order.computed)}

    def run(
        self,
        start: int,
        end: int,
        rows: slice,
        gain: Tensor,
        hats: Tensor,
        scale: Tensor,
        mixing: Tensor,
        weight: Tensor,
    ) -> Tensor:
        """Steps `start` to `end`, whose rows of `grad_sums` hold factors and then gradients -> gradient of the gain."""
        order, size = self.order, self.size
        wide, grads = hats.unflatten(-1, (3, size)), self.grad_sums[:, rows, size:]
        # f gain / s stands where the gradient of W_h h will.
        direct = torch.mul(grads, gain, out=self.grad_products[:, rows]).unflatten(-1, (3, size))
        inner = direct * wide  # its product with g, summed, is the sum of f gain g xhat
        direct.mul_(scale)
        shrink = (wide * scale).neg_()
        blocks = order.blocks[start:end]
        steps = zip(
            range(start, end), order.computed[start:end], inner.split(blocks, 1), shrink.split(blocks, 1), strict=True
        )
        for t, count, inside, less in reversed(list(steps)):
            if inside.shape[1] > count:
                inside, less = inside[:, :count], less[:, :count]
            now, now3, product = self.after[t], self.after3[t], self.products3[t]
            dots, flat, found, shares = self.shares[count]
            torch.sum(inside.mul_(now3), -1, out=dots)
            torch.mm(flat, mixing, out=found)
            product.mul_(now3).addcmul_(less, shares)
            self.factors[t].mul_(now3)
            self.before[t].addcmul_(now, self.updates[t]).baddbmm_(self.products[t], weight)
        return torch.mul(grads, hats, out=inner.flatten(2)).sum(1, keepdim=True)


def shares_of_step(like: Tensor, directions: int, rows: int, gates: int) -> tuple[Tensor, ...]:
    """Memory for the sums of a step's f gain g xhat and for their means over the groups, each in two shapes."""
    dots, found = like.new_empty(directions, rows, gates), like.new_empty(directions * rows, gates)
    return dots, dots.view(-1, gates), found, found.view(directions, rows, gates, 1)
