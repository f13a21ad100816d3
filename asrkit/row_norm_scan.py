"""The GRU scan with a norm per frame (layer norm, RMS norm) on W_h h, in one loop with its own backward pass.

Layer norm inside the loop needs no mean: W_h h has mean 0 over a group of rows when the mean of these rows has been
taken from the weights, which is done once per batch and is exact. What is left per step is a root mean square per
group, and its gradient a scalar product. Equations: Ba et al. 2016 (arXiv 1607.06450), LN-GRU in the appendix; Zhang &
Sennrich 2019 (arXiv 1910.07467) for RMS norm. The rest is `asrkit.scan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asrkit.scan import chunks, gru_factors
from asrkit.scan_order import ScanOrder, from_scan, incoming, to_scan


@dataclass(frozen=True)
class RowScale:
    """Norms of a layer's W_h h: gain and shift (D, 3H), None without; eps; centred or not; sizes of the groups."""

    gain: Tensor | None
    shift: Tensor | None
    eps: float
    centred: bool
    groups: list[int]

    @classmethod
    def of(cls, norms: list[list[nn.Module]], groups: list[list[int]], dtype: torch.dtype) -> RowScale | None:
        """From the norms of each direction and group; None unless all offer `row_norm()` and agree in their rule."""
        if any(not hasattr(norm, "row_norm") for side in norms for norm in side):
            return None
        found = [[norm.row_norm() for norm in side] for side in norms]  # type: ignore[operator]
        rows = [row for side in found for row in side]
        first = rows[0]
        rules = {(row.centred, row.eps, row.weight is None, row.bias is None) for row in rows if row is not None}
        if None in rows or len(rules) > 1:
            return None

        def joined(name: str) -> Tensor | None:
            if getattr(first, name) is None:
                return None
            return torch.stack([torch.cat([getattr(row, name) for row in side]) for side in found]).to(dtype)

        return cls(joined("weight"), joined("bias"), first.eps, first.centred, groups[0])

    def with_shift(self, bias: Tensor, candidate_bias: Tensor) -> tuple[Tensor, Tensor]:
        """The shift is a constant of the sums, so it can be added with the biases (D, 3H) and (D, H)."""
        if self.shift is None:
            return bias, candidate_bias
        size = candidate_bias.shape[1]
        gates, candidate = self.shift.split([2 * size, size], 1)
        return bias + nn.functional.pad(gates, (0, size)), candidate_bias + candidate

    def centre(self, weight: Tensor) -> Tensor:
        """Recurrent weights (D, 3H, H) less the mean row of each group, where the norm takes its mean away."""
        if not self.centred:
            return weight
        return torch.cat([part - part.mean(1, keepdim=True) for part in weight.split(self.groups, 1)], 1)

    def mixing(self, weight: Tensor) -> Tensor:
        """(3, 3): sums over the gates -> the mean over the group that each gate belongs to."""
        size = weight.shape[2]
        member = torch.arange(len(self.groups)).repeat_interleave(torch.tensor(self.groups) // size)
        same = (member[:, None] == member).to(weight)
        return same / (same.sum(1, keepdim=True) * size)


def gru_row_norm_scan(gates: Tensor, weight: Tensor, bias: Tensor, scale: RowScale, order: ScanOrder) -> Tensor:
    """`asrkit.scan.gru_scan` with W_h h normalized: gates (B, T, D*3H), weight (D, 3H, H), bias (D, H) -> (B, T, D*H).

    The shift of `scale` must be in `gates` and `bias` already (`with_shift`).
    """
    gain = torch.ones_like(weight[..., 0]) if scale.gain is None else scale.gain
    weight = scale.centre(weight)
    inputs = (gates, weight, bias, gain, scale.mixing(weight), scale.eps, order)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs[:4]):  # type: ignore[union-attr]
        return _GRURowNormScan.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(*inputs)[0]


def _twice(tensor: Tensor, size: int) -> Tensor:
    """A copy with the candidate's third doubled: tanh(a) = 2 sigmoid(2a) - 1, see `asrkit.scan`."""
    doubled = tensor.clone()
    doubled[..., 2 * size :] *= 2
    return doubled


def _forward(
    gates: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, mixing: Tensor, eps: float, order: ScanOrder
) -> tuple[Tensor, ...]:
    size = weight.shape[2]
    sums = to_scan(gates, order.gates, order)
    candidates = sums[..., 2 * size :] * 2
    sums[..., 2 * size :] = (bias * 2)[:, None]  # the product is added here, so this third is its own sum
    gain = _twice(gain, size)[:, None]
    product = weight.transpose(1, 2).contiguous()
    states = sums.new_empty(order.directions, order.frames + 1, order.batch, size)
    states[:, 0] = 0
    hats = torch.empty_like(sums)
    scales = sums.new_empty(order.frames, order.directions * order.batch, 3)
    floor, minus_one = sums.new_tensor(eps), sums.new_tensor(-1.0)
    before, *after = states.unbind(1)
    wide = hats.unflatten(-1, (3, size))
    steps = zip(
        sums.unbind(0),
        sums[..., : 2 * size].unbind(0),
        sums[..., :size].unbind(0),
        sums[..., size : 2 * size].unbind(0),
        sums[..., 2 * size :].unbind(0),
        candidates.unbind(0),
        hats.unbind(0),
        wide.unbind(0),
        scales.unbind(0),
        scales.view(order.frames, order.directions, order.batch, 3, 1).unbind(0),
        after,
        strict=True,
    )
    squares = torch.empty_like(scales[0])
    squares_wide = squares.view(order.directions, order.batch, 3)
    bmm, norm, addmm, addcmul, add, lerp = (
        torch.bmm, torch.linalg.vector_norm, torch.addmm, torch.addcmul, torch.add, torch.lerp,
    )  # fmt: skip
    for total, reset_update, reset, update, recurrent, candidate, hat, hat3, scale, scale1, state in steps:
        bmm(before, product, out=hat)
        norm(hat3, dim=-1, out=squares_wide)
        addmm(floor, squares.square_(), mixing, out=scale).rsqrt_()
        hat3.mul_(scale1)
        total.addcmul_(hat, gain)
        reset_update.sigmoid_()
        addcmul(candidate, reset, recurrent, out=candidate).sigmoid_()
        add(minus_one, candidate, alpha=2, out=candidate)
        before = lerp(candidate, before, update, out=state)
    return from_scan(states, order.output, order), sums, candidates, states, hats, scales


class _GRURowNormScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _, weight, _, gain, mixing, _, order = inputs
        output, *kept = _forward(*inputs)
        ctx.save_for_backward(weight, gain, mixing, *kept)
        ctx.order = order
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, gain, mixing, sums, candidates, states, hats, scales = ctx.saved_tensors
        order: ScanOrder = ctx.order
        size = weight.shape[2]
        gain = _twice(gain, size)[:, None]
        grad_states = incoming(grad, order)
        grad_sums = sums.new_empty(order.directions, order.frames, order.batch, 3 * size)
        grad_products = torch.empty_like(grad_sums)
        grad_candidates = torch.empty_like(grad_states)
        grad_gain = torch.zeros_like(gain)
        spare = torch.empty_like(grad_states[0])
        for chunk in chunks(order.frames, order.directions * order.batch * 3 * size):
            factors = grad_sums[:, chunk].transpose(0, 1).unflatten(-1, (3, size))
            to_candidate = gru_factors(sums[chunk], candidates[chunk], states[:, chunk].transpose(0, 1), factors)
            before = [spare, *grad_states[: chunk.stop - 1].unbind(0)][chunk.start :]
            hat, scale = hats[chunk], scales[chunk].unflatten(1, (order.directions, order.batch)).unsqueeze(-1)
            update = sums[chunk, ..., size : 2 * size]
            now = grad_states[chunk]
            products = grad_products[:, chunk]
            _through_norm(now, before, update, factors, gain, hat, scale, mixing, weight, products)
            factors.mul_(now.unsqueeze(3))
            torch.mul(now, to_candidate, out=grad_candidates[chunk])
            grad_gain += (grad_sums[:, chunk] * hat.transpose(0, 1)).sum((1, 2)).unsqueeze(1)
        grad_weight = torch.bmm(grad_products.flatten(1, 2).transpose(1, 2), states[:, :-1].flatten(1, 2))
        grad_bias = grad_sums[..., 2 * size :].sum((1, 2)).mul_(2)
        grad_sums[..., 2 * size :] = grad_candidates.transpose(0, 1)
        grad_gates = from_scan(grad_sums, order.gates_back, order)
        return grad_gates, grad_weight, grad_bias, _twice(grad_gain.squeeze(1), size), None, None, None


def _through_norm(
    now: Tensor,
    before: list[Tensor],
    update: Tensor,
    factors: Tensor,
    gain: Tensor,
    hat: Tensor,
    scale: Tensor,
    mixing: Tensor,
    weight: Tensor,
    products: Tensor,
) -> None:
    """The gradient of the states of one chunk of steps, last first, and `products` (D, T, B, 3H): that of W_h h.

    With xhat = u / s, s = sqrt(mean u^2 + eps), and f the derivative of the state by the sum, an incoming gradient g
    gives du = (f gain g - xhat mean(f gain g xhat)) / s.
    """
    steps, directions, batch, _, size = factors.shape
    wide = hat.unflatten(-1, (3, size))
    direct = torch.mul(factors, gain.unflatten(-1, (3, size)), out=torch.empty_like(wide))  # in the order of the loop
    inner = direct * wide  # (T, D, B, 3, H): its product with g, summed, is the sum of f gain g xhat
    direct.mul_(scale)
    shrink = (wide * scale).neg_()
    loop = zip(
        now.unbind(0),
        now.unsqueeze(3).unbind(0),
        now.view(steps, directions * batch, size, 1).unbind(0),
        before,
        update.unbind(0),
        direct.unbind(0),
        inner.view(steps, directions * batch, 3, size).unbind(0),
        shrink.unbind(0),
        products.unflatten(-1, (3, size)).unbind(1),
        products.unbind(1),
        strict=True,
    )
    share = now.new_empty(directions, batch, 3, 1)
    for g, g3, g1, earlier, keep, outer, within, less, product3, product in reversed(list(loop)):
        torch.mm(torch.bmm(within, g1).view(-1, 3), mixing, out=share.view(-1, 3))
        torch.mul(outer, g3, out=product3).addcmul_(less, share)
        earlier.addcmul_(g, keep)
        earlier.baddbmm_(product, weight)
