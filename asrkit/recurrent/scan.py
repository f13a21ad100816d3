"""The recurrences as one scan over time, all directions and utterances of a step in one batched product.

Meant for CPUs, where calls are cheap and small products are dear: everything that does not depend on the state is
computed for many steps at once, a step itself is six calls into preallocated memory, and the gradient of the recurrent
weights is one product over all steps. Torch's own loop takes them one direction and one step at a time.

Layout: (D, R, .), see `asrkit.recurrent.scan_order`: D directions, R rows, of each step those utterances that are alive
and a few that are not any more. These can do no harm: no output is read from them, and their incoming gradient is zero,
which keeps the whole gradient zero until the real end. Memory is what a scan is bound by beside its products: it works
in the tensor that it is given, and its gradient is made in place as well.

Sources: GRU, Cho et al. 2014 (arXiv 1406.1078) with the reset gate after the product, as torch and cuDNN compute it;
LSTM, Gers et al. 2000 without peepholes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.recurrent.scan_order import ScanOrder, from_scan, incoming

# Numbers whose factors are prepared together in the backward pass: as many as a core's cache holds.
CHUNK = 1 << 17


def gru_scan(sums: Tensor, weight: Tensor, bias: Tensor, order: ScanOrder) -> Tensor:
    """Sums (D, R, 4H): twice the candidate's, reset, update, and room -> states (B, T, D*H), zero past each end.

    `sums` is used up. It holds the input-to-hidden sums with every bias except the candidate's recurrent one, which is
    `bias` (D, H) because the reset gate scales it; `weight` (D, 3H, H) is the recurrent one, its gates in torch's order
    reset, update, candidate. float32 or float64. The candidate is doubled since tanh(a) = 2 sigmoid(2a) - 1, and
    torch's sigmoid is several times as fast as its tanh; doubling is exact.
    """
    if torch.is_grad_enabled() and (sums.requires_grad or weight.requires_grad or bias.requires_grad):
        return _GRUScan.apply(sums, weight, bias, order)  # type: ignore[no-any-return, no-untyped-call]
    return from_scan(_gru_forward(sums, weight, bias, order), order)


def lstm_scan(sums: Tensor, weight: Tensor, order: ScanOrder) -> Tensor:
    """Sums (D, R, 4H): input, forget, twice the cell's, output -> states (B, T, D*H), zero past each end.

    `sums` is used up. It holds the input-to-hidden sums with all biases; `weight` (D, 4H, H) is the recurrent one.
    """
    if torch.is_grad_enabled() and (sums.requires_grad or weight.requires_grad):
        return _LSTMScan.apply(sums, weight, order)  # type: ignore[no-any-return, no-untyped-call]
    return from_scan(_lstm_forward(sums, weight, order)[0], order)


def doubled(tensor: Tensor, gate: int, size: int) -> Tensor:
    """A copy of (..., gates * size) with one gate doubled."""
    copy = tensor.clone(memory_format=torch.contiguous_format)
    copy[..., gate * size : (gate + 1) * size] *= 2
    return copy


def first_states(sums: Tensor, order: ScanOrder, size: int) -> Tensor:
    """Memory for states (D, R, H), those before the first step zero."""
    states = sums.new_empty(order.directions, order.rows, size)
    states[:, : order.blocks[0]] = 0
    return states


def recurrent_grad(states: Tensor, grad_sums: Tensor, gate: int) -> Tensor:
    """Gradient (D, G, H) of the recurrent weights from states (D, R, H) and grad_sums (D, R, G), one gate doubled."""
    size = states.shape[-1]
    grad = torch.bmm(grad_sums.transpose(1, 2), states)
    grad[:, gate * size : (gate + 1) * size] *= 2
    return grad


def _gru_forward(sums: Tensor, weight: Tensor, bias: Tensor, order: ScanOrder) -> Tensor:
    """States (D, R, H); `sums` then holds candidate, reset, update and the candidate's recurrent sum, doubled."""
    size = weight.shape[2]
    product = doubled(weight.transpose(1, 2), 2, size)
    sums[..., 3 * size :] = (bias * 2)[:, None]  # the product is added here
    states = first_states(sums, order, size)
    minus_one = sums.new_tensor(-1.0)
    parts = (order.steps(part) for part in sums.split(size, -1))
    baddbmm, addcmul, add, sigmoid, lerp = torch.baddbmm, torch.addcmul, torch.add, torch.sigmoid_, torch.lerp
    for before, total, reset_update, candidate, reset, update, recurrent, state in zip(
        order.steps(states),
        order.steps(sums[..., size:]),
        order.steps(sums[..., size : 3 * size]),
        *parts,
        states.split(order.blocks, 1)[1:],
        strict=True,
    ):
        baddbmm(total, before, product, out=total)
        sigmoid(reset_update)
        sigmoid(addcmul(candidate, reset, recurrent, out=candidate))
        add(minus_one, candidate, alpha=2, out=candidate)
        lerp(candidate, before, update, out=state)
    return states


class _GRUScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor, weight: Tensor, bias: Tensor, order: ScanOrder) -> Tensor:
        states = _gru_forward(sums, weight, bias, order)
        ctx.save_for_backward(weight, sums, states)
        ctx.order = order
        return from_scan(states, order)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, sums, states = ctx.saved_tensors
        order: ScanOrder = ctx.order
        size = weight.shape[2]
        product = doubled(weight.transpose(1, 2), 2, size).transpose(1, 2).contiguous()
        grad_states = incoming(grad, order)  # the recurrent part is added on the way
        grad_sums = torch.empty_like(sums)
        factors = order.steps(grad_sums.unflatten(-1, (4, size)))
        totals = order.steps(grad_sums[..., size:])
        updates = order.steps(sums[..., 2 * size : 3 * size])
        after, before = grad_states.split(order.blocks, 1)[1:], order.steps(grad_states)
        after4 = grad_states.unsqueeze(2).split(order.blocks, 1)[1:]
        for start, end, rows in order.chunks(CHUNK // (order.directions * 3 * size)):
            gru_factors(sums[:, rows], states[:, rows], grad_sums[:, rows])
            for t in reversed(range(start, end)):
                factors[t].mul_(after4[t])
                before[t].addcmul_(after[t], updates[t]).baddbmm_(totals[t], product)
        grad_sums[:, order.unused] = 0
        grad_weight = recurrent_grad(states, grad_sums[..., size:], 2)
        return grad_sums, grad_weight, grad_sums[..., 3 * size :].sum(1).mul_(2), None


def gru_factors(sums: Tensor, before: Tensor, factors: Tensor) -> None:
    """Derivatives of the states by the four sums (D, rows, 4H), all after their step, into `factors`; before (D, rows,
    H)."""
    candidate, reset, update, recurrent = sums.chunk(4, -1)  # recurrent is doubled, as are its factor and the first
    to_candidate, to_reset, to_update, to_recurrent = factors.chunk(4, -1)
    torch.addcmul(candidate.new_tensor(0.5), candidate, candidate, value=-0.5, out=to_candidate)
    to_candidate.addcmul_(to_candidate, update, value=-1)
    torch.mul(to_candidate, reset, out=to_recurrent)
    torch.mul(to_recurrent, recurrent, out=to_reset).addcmul_(to_reset, reset, value=-1)
    torch.sub(before, candidate, out=to_update).mul_(torch.addcmul(update, update, update, value=-1))


def _lstm_forward(sums: Tensor, weight: Tensor, order: ScanOrder) -> tuple[Tensor, Tensor, Tensor]:
    """States, cells before each step and tanh of those after it, at the step's rows (D, R, H); `sums`: the gates."""
    size = weight.shape[2]
    product = doubled(weight.transpose(1, 2), 2, size)
    states, cells = first_states(sums, order, size), first_states(sums, order, size)
    squash = torch.empty_like(cells)
    minus_one, two = sums.new_tensor(-1.0), sums.new_tensor(2.0)
    parts = (order.steps(part) for part in sums.split(size, -1))
    add, mul, sigmoid = torch.add, torch.mul, torch.sigmoid
    for before, cell, squashed, total, entry, forget, new, out, state, cell_after in zip(
        order.steps(states),
        order.steps(cells),
        order.steps(squash),
        order.steps(sums),
        *parts,
        states.split(order.blocks, 1)[1:],
        cells.split(order.blocks, 1)[1:],
        strict=True,
    ):
        torch.baddbmm(total, before, product, out=total).sigmoid_()
        add(minus_one, new, alpha=2, out=new)
        mul(forget, cell, out=cell_after).addcmul_(entry, new)
        add(minus_one, sigmoid(mul(cell_after, two, out=squashed), out=squashed), alpha=2, out=squashed)
        mul(out, squashed, out=state)
    return states, cells, squash


class _LSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor, weight: Tensor, order: ScanOrder) -> Tensor:
        states, cells, squash = _lstm_forward(sums, weight, order)
        ctx.save_for_backward(weight, sums, states, cells, squash)
        ctx.order = order
        return from_scan(states, order)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, sums, states, cells, squash = ctx.saved_tensors
        order: ScanOrder = ctx.order
        size = weight.shape[2]
        product = doubled(weight.transpose(1, 2), 2, size).transpose(1, 2).contiguous()
        grad_states = incoming(grad, order)
        grad_sums, by_cell = torch.empty_like(sums), torch.empty_like(states)
        grad_cell = sums.new_zeros(order.directions, order.batch, size)
        factors = order.steps(grad_sums[..., : 3 * size].unflatten(-1, (3, size)))
        totals, outs, slopes = (order.steps(t) for t in (grad_sums, grad_sums[..., 3 * size :], by_cell))
        forgets = order.steps(sums[..., size : 2 * size])
        after, before = grad_states.split(order.blocks, 1)[1:], order.steps(grad_states)
        for start, end, rows in order.chunks(CHUNK // (order.directions * 4 * size)):
            lstm_factors(sums[:, rows], cells[:, rows], squash[:, rows], grad_sums[:, rows], by_cell[:, rows])
            for t in reversed(range(start, end)):
                now = after[t]
                cell = grad_cell[:, : now.shape[1]]
                cell.addcmul_(now, slopes[t])
                factors[t].mul_(cell.unsqueeze(2))
                outs[t].mul_(now)
                cell.mul_(forgets[t])
                before[t].baddbmm_(totals[t], product)
        grad_sums[:, order.unused] = 0
        return grad_sums, recurrent_grad(states, grad_sums, 2), None


def lstm_factors(sums: Tensor, cells: Tensor, squashed: Tensor, factors: Tensor, by_cell: Tensor) -> None:
    """Derivatives by the four sums, into `factors` (D, rows, 4H): of the cell (three) and of the state (output); and of
    the state by the cell, into `by_cell` (D, rows, H). sums: the gates; cells: before each step; squashed: tanh of the
    cell after it."""
    entry, forget, new, out = sums.chunk(4, -1)
    to_entry, to_forget, to_new, to_out = factors.chunk(4, -1)
    torch.mul(new, torch.addcmul(entry, entry, entry, value=-1), out=to_entry)
    torch.mul(cells, torch.addcmul(forget, forget, forget, value=-1), out=to_forget)
    torch.addcmul(new.new_tensor(0.5), new, new, value=-0.5, out=to_new).mul_(entry)  # its sum is doubled
    torch.mul(squashed, torch.addcmul(out, out, out, value=-1), out=to_out)
    torch.mul(out, squashed.square(), out=by_cell)
    torch.sub(out, by_cell, out=by_cell)
