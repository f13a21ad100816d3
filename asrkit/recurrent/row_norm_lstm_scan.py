"""The LSTM scan with a norm per frame (layer norm, RMS norm) on W_h h and on the cell, with its own backward pass.

Ba et al. 2016 (arXiv 1607.06450), equations 20 to 22, in the appendix: f, i, o, g = N(W_h h) + N(W_x x) + b, c =
sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(N(c)). With the `stored` norm of the cell N(c) is what the next
step finds as well (Zeineldeen et al. 2020). As in `asrkit.recurrent.row_norm_scan`, W_h h needs no mean; the cell does.
The rest is `asrkit.recurrent.scan`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.recurrent.row_norm_scan import shares_of_step, work_of_step
from asrkit.recurrent.row_scale import RowScale
from asrkit.recurrent.scan import CHUNK, doubled, first_states, lstm_factors
from asrkit.recurrent.scan_order import ScanOrder, from_scan, incoming


class CellNorm(NamedTuple):
    """What is fixed in the norm of a cell: eps, whether it takes a mean away, whether the cell itself is replaced."""

    eps: float
    centred: bool
    stored: bool


def lstm_row_norm_scan(
    sums: Tensor, weight: Tensor, scale: RowScale, cell: RowScale | None, stored: bool, order: ScanOrder
) -> Tensor:
    """`asrkit.recurrent.scan.lstm_scan` with W_h h normalized: sums (D, R, 4H), weight (D, 4H, H) -> (B, T, D*H).

    The shift of `scale` must be in `sums` already (`with_shift`). cell: the norm of the cell, None without; `stored`:
    it replaces the cell.
    """
    gain = torch.ones_like(weight[..., 0]) if scale.gain is None else scale.gain
    weight = scale.centre(weight)
    ones = weight.new_ones(weight.shape[0], weight.shape[2])
    gain_cell = ones if cell is None or cell.gain is None else cell.gain
    shift_cell = torch.zeros_like(ones) if cell is None or cell.shift is None else cell.shift
    rule = None if cell is None else CellNorm(cell.eps, cell.centred, stored)
    inputs = (sums, weight, gain, gain_cell, shift_cell, scale.mixing(weight), scale.eps, rule, order)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs[:5]):  # type: ignore[union-attr]
        return _LSTMRowNormScan.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    return from_scan(_forward(*inputs).states, order)


class _Kept(NamedTuple):
    """Of every step: states and cells before it, tanh of the cell shown (D, R, H); the cell's xhat (D, R, H) and 1 / s
    (D, R, 1), where it has a norm; xhat (D, R, 4H) and 1 / s (D, R, 4, 1) of W_h h."""

    states: Tensor
    cells: Tensor
    squash: Tensor
    cell_hats: Tensor
    cell_scales: Tensor
    hats: Tensor
    scales: Tensor


def _forward(
    sums: Tensor,
    weight: Tensor,
    gain: Tensor,
    gain_cell: Tensor,
    shift_cell: Tensor,
    mixing: Tensor,
    eps: float,
    rule: CellNorm | None,
    order: ScanOrder,
) -> _Kept:
    """`sums` then holds the four gates."""
    count, rows, size = order.directions, order.rows, weight.shape[2]
    gain, gain_cell, shift_cell = doubled(gain, 2, size)[:, None], gain_cell[:, None], shift_cell[:, None]
    product = weight.transpose(1, 2).contiguous()
    states, cells = first_states(sums, order, size), first_states(sums, order, size)
    squash, hats = torch.empty_like(cells), sums.new_empty(count, rows, 4 * size)
    cell_hats = torch.empty_like(cells) if rule else cells[:, :0]
    cell_scales, scales = sums.new_empty(count, rows, 1), sums.new_empty(count, rows, 4, 1)
    floor, minus_one, two = sums.new_tensor(eps), sums.new_tensor(-1.0), sums.new_tensor(2.0)
    memory = {n: work_of_step(sums, count, n, size, 4) for n in set(order.computed)}
    shown_of = {n: sums.new_empty(count, n, size) for n in set(order.computed)}
    gates = zip(*(order.steps(part) for part in sums.split(size, -1)), strict=True)
    norms = zip(order.steps(hats), order.steps(hats.unflatten(-1, (4, size))), order.steps(scales), strict=True)
    cell_norms = (
        zip(order.steps(cell_hats), order.steps(cell_scales), strict=True) if rule else [()] * len(order.computed)
    )
    for n, before, cell, total, (entry, forget, new, out), (hat, hat4, scale), cell_norm, squashed, state, after in zip(
        order.computed,
        order.steps(states),
        order.steps(cells),
        order.steps(sums),
        gates,
        norms,
        cell_norms,
        order.steps(squash),
        states.split(order.blocks, 1)[1:],
        cells.split(order.blocks, 1)[1:],
        strict=True,
    ):
        raw, raw4, squares, flat, means, found = memory[n]
        torch.bmm(before, product, out=raw)
        torch.linalg.vector_norm(raw4, dim=-1, out=squares)
        torch.addmm(floor, flat.square_(), mixing, out=means)
        torch.mul(raw4, torch.rsqrt(found, out=scale), out=hat4)
        total.addcmul_(hat, gain).sigmoid_()
        torch.add(minus_one, new, alpha=2, out=new)
        torch.mul(forget, cell, out=after).addcmul_(entry, new)
        shown = after
        if rule:
            shown = torch.addcmul(shift_cell, _normalize(after, rule, *cell_norm), gain_cell, out=shown_of[n])
            if rule.stored:
                after.copy_(shown)
        torch.mul(shown, two, out=squashed).sigmoid_()
        torch.add(minus_one, squashed, alpha=2, out=squashed)
        torch.mul(out, squashed, out=state)
    for tensor in (sums, squash, hats, *([cell_hats] if rule else [])):
        tensor[:, order.unused] = 0  # no step has been there, and 0 times what lies in fresh memory may be NaN
    return _Kept(states, cells, squash, cell_hats, cell_scales, hats, scales)


def _normalize(cell: Tensor, rule: CellNorm, hat: Tensor, scale: Tensor) -> Tensor:
    """xhat (D, rows, H) and 1 / s (D, rows, 1) of a cell, into the tensors given."""
    if rule.centred:
        cell = torch.sub(cell, cell.mean(-1, keepdim=True), out=hat)
    torch.linalg.vector_norm(cell, dim=-1, keepdim=True, out=scale)
    scale.square_().div_(cell.shape[-1]).add_(rule.eps).rsqrt_()
    return torch.mul(cell, scale, out=hat)


class _LSTMRowNormScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        sums, weight, gain, gain_cell, _, mixing, _, rule, order = inputs
        kept = _forward(*inputs)
        ctx.save_for_backward(sums, weight, gain, gain_cell, mixing, *kept)
        ctx.rule, ctx.order = rule, order
        return from_scan(kept.states, order)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums, weight, gain, gain_cell, mixing, *saved = ctx.saved_tensors
        kept, order, rule = _Kept(*saved), ctx.order, ctx.rule
        size = weight.shape[2]
        loop = _Loop(
            incoming(grad, order), sums, kept, doubled(gain, 2, size)[:, None], gain_cell[:, None], order, rule
        )
        grad_gain = torch.zeros_like(loop.gain)
        grad_gain_cell, grad_shift_cell = torch.zeros_like(loop.gain_cell), torch.zeros_like(loop.gain_cell)
        for start, end, rows in order.chunks(CHUNK // (order.directions * 4 * size)):
            grad_gain += loop.run(start, end, rows, mixing, weight)
            if rule:
                grad_gain_cell += (loop.by_cell[:, rows] * kept.cell_hats[:, rows]).sum(1, keepdim=True)
        loop.grad_sums[:, order.unused] = 0
        loop.grad_products[:, order.unused] = 0
        if rule:
            loop.by_cell[:, order.unused] = 0
            grad_shift_cell = loop.by_cell.sum(1)
        grad_weight = torch.bmm(loop.grad_products.transpose(1, 2), kept.states)
        grad_gain = doubled(grad_gain[:, 0], 2, size)
        return (
            loop.grad_sums,
            grad_weight,
            grad_gain,
            grad_gain_cell.flatten(1),
            grad_shift_cell.flatten(1),
            *[None] * 4,
        )


class _Loop:
    """Steps backwards through a chunk: the gradients of its states, of its sums, of W_h h and of the cells shown."""

    def __init__(
        self,
        grad_states: Tensor,
        sums: Tensor,
        kept: _Kept,
        gain: Tensor,
        gain_cell: Tensor,
        order: ScanOrder,
        rule: CellNorm | None,
    ) -> None:
        self.sums, self.kept, self.order, self.rule = sums, kept, order, rule
        self.gain, self.gain_cell = gain, gain_cell
        self.size = size = sums.shape[2] // 4
        self.grad_sums, self.grad_products = torch.empty_like(sums), torch.empty_like(kept.hats)
        self.by_cell = torch.empty_like(kept.cells)  # of the state by the cell shown, then the gradient of the latter
        self.carried = sums.new_zeros(order.directions, order.batch, size)
        self.after, self.before = grad_states.split(order.blocks, 1)[1:], order.steps(grad_states)
        self.three = order.steps(self.grad_sums[..., : 3 * size].unflatten(-1, (3, size)))
        self.out = order.steps(self.grad_sums[..., 3 * size :])
        self.four = order.steps(self.grad_sums.unflatten(-1, (4, size)))
        self.slopes, self.forgets = order.steps(self.by_cell), order.steps(sums[..., size : 2 * size])
        self.products = order.steps(self.grad_products)
        self.products4 = order.steps(self.grad_products.unflatten(-1, (4, size)))
        self.shares = {n: shares_of_step(sums, order.directions, n, 4) for n in set(order.computed)}
        if rule:
            self.cell_norms = list(zip(order.steps(kept.cell_hats), order.steps(kept.cell_scales), strict=True))

    def run(self, start: int, end: int, rows: slice, mixing: Tensor, weight: Tensor) -> Tensor:
        """Steps `start` to `end` -> gradient (D, 1, 4H) of the gain of W_h h.

        With xhat = u / s and an incoming gradient g: du = (g gain - xhat mean(g gain xhat)) / s.
        """
        order, size, kept = self.order, self.size, self.kept
        grads, hats = self.grad_sums[:, rows], kept.hats[:, rows]
        lstm_factors(self.sums[:, rows], kept.cells[:, rows], kept.squash[:, rows], grads, self.by_cell[:, rows])
        wide, scale = hats.unflatten(-1, (4, size)), kept.scales[:, rows]
        inner = hats * self.gain
        torch.mul(self.gain.unflatten(-1, (4, size)), scale, out=self.grad_products[:, rows].unflatten(-1, (4, size)))
        shrink = (wide * scale).neg_()
        blocks = order.blocks[start:end]
        inner_steps = inner.unflatten(-1, (4, size)).split(blocks, 1)
        steps = zip(range(start, end), order.computed[start:end], inner_steps, shrink.split(blocks, 1), strict=True)
        for t, count, inside, less in reversed(list(steps)):
            if inside.shape[1] > count:
                inside, less = inside[:, :count], less[:, :count]
            cell = self._through_cell(t, self.carried[:, :count])
            self.three[t].mul_(cell.unsqueeze(2))
            self.out[t].mul_(self.after[t])
            cell.mul_(self.forgets[t])
            grad, product = self.four[t], self.products4[t]
            dots, flat, found, shares = self.shares[count]
            torch.sum(inside.mul_(grad), -1, out=dots)
            torch.mm(flat, mixing, out=found)
            product.mul_(grad).addcmul_(less, shares)
            self.before[t].baddbmm_(self.products[t], weight)
        return torch.mul(grads, hats, out=inner).sum(1, keepdim=True)

    def _through_cell(self, t: int, carried: Tensor) -> Tensor:
        """The gradient of the cell after step t, in place of what later steps have `carried` (D, rows, H) to it."""
        if self.rule is None:
            return carried.addcmul_(self.after[t], self.slopes[t])
        hat, scale = self.cell_norms[t]
        shown = self.slopes[t].mul_(self.after[t])
        if self.rule.stored:
            shown.add_(carried)
            carried.zero_()
        grad = shown * self.gain_cell
        inner = (grad * hat).mean(-1, keepdim=True)
        if self.rule.centred:
            grad.sub_(grad.mean(-1, keepdim=True))
        return carried.addcmul_(grad.addcmul_(hat, inner, value=-1), scale)
