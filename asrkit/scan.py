"""The recurrences as one scan over time, all directions and utterances of a step in one batched product.

Meant for CPUs, where calls are cheap and small products are dear: everything that does not depend on the state is
computed for many steps at once, a step itself is five or six calls into preallocated memory, and the gradient of the
recurrent weights is one product over all steps. Torch's own loop takes them one direction and one step at a time.

Layout: the caller's tensors are batch-major rows (B, T, D, .), D directions; the scan works on (T, D, B, .) or
(D, T, B, .). Within a scan, every direction starts at its own beginning: the backward one at the clip's last real
frame. Real steps therefore come first in both directions, and steps past the end can do no harm: no output is read
from them, and their incoming gradient is set to zero, which keeps the whole gradient zero until the real end.

Sources: GRU, Cho et al. 2014 (arXiv 1406.1078) with the reset gate after the product, as torch and cuDNN compute it;
LSTM, Gers et al. 2000 without peepholes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.scan_order import ScanOrder, from_scan, incoming, to_scan

# Steps whose factors are prepared together in the backward pass: as many as keep them in a core's cache.
_CHUNK_NUMBERS = 1 << 17


def gru_scan(gates: Tensor, weight: Tensor, bias: Tensor, order: ScanOrder) -> Tensor:
    """Gate inputs (B, T, D*3H) in the order reset, update, candidate -> states (B, T, D*H), zero past each end.

    `gates` holds the input-to-hidden sums with every bias except the candidate's recurrent one, which is `bias` (D, H)
    because the reset gate scales it; `weight` (D, 3H, H) is the recurrent one. float32 or float64.
    """
    if torch.is_grad_enabled() and (gates.requires_grad or weight.requires_grad or bias.requires_grad):
        return _GRUScan.apply(gates, weight, bias, order)  # type: ignore[no-any-return, no-untyped-call]
    return _gru_forward(gates, weight, bias, order)[0]


def lstm_scan(gates: Tensor, weight: Tensor, order: ScanOrder) -> Tensor:
    """Gate inputs (B, T, D*4H) in the order input, forget, cell, output -> states (B, T, D*H), zero past each end.

    `gates` holds the input-to-hidden sums with all biases; `weight` (D, 4H, H) is the recurrent one.
    """
    if torch.is_grad_enabled() and (gates.requires_grad or weight.requires_grad):
        return _LSTMScan.apply(gates, weight, order)  # type: ignore[no-any-return, no-untyped-call]
    return _lstm_forward(gates, weight, order)[0]


def _with_doubled(weight: Tensor, gate: int) -> Tensor:
    """Recurrent weights (D, G, H) -> (D, H, G) contiguous, one gate's columns doubled.

    tanh(a) = 2 sigmoid(2a) - 1, and torch's sigmoid is several times as fast as its tanh; doubling is exact.
    """
    size = weight.shape[2]
    doubled = weight.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    doubled[..., gate * size : (gate + 1) * size] *= 2
    return doubled


def chunks(frames: int, numbers_per_step: int) -> list[slice]:
    """Slices of the time axis, last first."""
    length = max(1, _CHUNK_NUMBERS // max(1, numbers_per_step))
    return [slice(max(0, end - length), end) for end in range(frames, 0, -length)]


def _recurrent_grad(states: Tensor, grad_sums: Tensor, gate: int) -> Tensor:
    """Gradient (D, G, H) of the recurrent weights from states (D, T + 1, B, H) and grad_sums (D, T, B, G)."""
    size = states.shape[-1]
    grad = torch.bmm(grad_sums.flatten(1, 2).transpose(1, 2), states[:, :-1].flatten(1, 2))
    grad[:, gate * size : (gate + 1) * size] *= 2  # the gate that _with_doubled doubled
    return grad


def _gru_forward(gates: Tensor, weight: Tensor, bias: Tensor, order: ScanOrder) -> tuple[Tensor, ...]:
    size = weight.shape[2]
    sums = to_scan(gates, order.gates, order)
    doubled = _with_doubled(weight, 2)
    candidates = sums[..., 2 * size :] * 2
    sums[..., 2 * size :] = (bias * 2)[:, None]  # the product is added here, so this third is its own sum
    states = sums.new_empty(order.directions, order.frames + 1, order.batch, size)
    states[:, 0] = 0
    minus_one = sums.new_tensor(-1.0)
    before, *after = states.unbind(1)
    steps = zip(
        sums.unbind(0),
        sums[..., : 2 * size].unbind(0),
        sums[..., :size].unbind(0),
        sums[..., size : 2 * size].unbind(0),
        sums[..., 2 * size :].unbind(0),
        candidates.unbind(0),
        after,
        strict=True,
    )
    baddbmm, addcmul, add, sigmoid, lerp = torch.baddbmm, torch.addcmul, torch.add, torch.sigmoid_, torch.lerp
    for total, reset_update, reset, update, recurrent, candidate, state in steps:
        baddbmm(total, before, doubled, out=total)
        sigmoid(reset_update)
        sigmoid(addcmul(candidate, reset, recurrent, out=candidate))
        add(minus_one, candidate, alpha=2, out=candidate)
        before = lerp(candidate, before, update, out=state)
    return from_scan(states, order.output, order), sums, candidates, states


class _GRUScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, order: ScanOrder) -> Tensor:
        output, sums, candidates, states = _gru_forward(gates, weight, bias, order)
        ctx.save_for_backward(weight, sums, candidates, states)
        ctx.order = order
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, sums, candidates, states = ctx.saved_tensors
        order: ScanOrder = ctx.order
        size = weight.shape[2]
        doubled = _with_doubled(weight, 2).transpose(1, 2).contiguous()
        grad_states = incoming(grad, order)  # (T, D, B, H); the recurrent part is added on the way
        grad_sums = sums.new_empty(order.directions, order.frames, order.batch, 3 * size)
        grad_candidates = torch.empty_like(grad_states)
        spare = torch.empty_like(grad_states[0])
        for chunk in chunks(order.frames, order.directions * order.batch * 3 * size):
            factors = grad_sums[:, chunk].transpose(0, 1).unflatten(-1, (3, size))
            to_candidate = gru_factors(sums[chunk], candidates[chunk], states[:, chunk].transpose(0, 1), factors)
            steps = zip(
                grad_states[chunk].unbind(0),
                grad_states[chunk].unsqueeze(3).unbind(0),
                [spare, *grad_states[: chunk.stop - 1].unbind(0)][chunk.start :],
                sums[chunk, ..., size : 2 * size].unbind(0),
                factors.unbind(0),
                grad_sums[:, chunk].unbind(1),
                strict=True,
            )
            for now, now3, before, update, factor, product in reversed(list(steps)):
                factor.mul_(now3)
                before.addcmul_(now, update)
                before.baddbmm_(product, doubled)
            torch.mul(grad_states[chunk], to_candidate, out=grad_candidates[chunk])
        grad_weight = _recurrent_grad(states, grad_sums, 2)
        grad_bias = grad_sums[..., 2 * size :].sum((1, 2)).mul_(2)
        grad_sums[..., 2 * size :] = grad_candidates.transpose(0, 1)
        return from_scan(grad_sums, order.gates_back, order), grad_weight, grad_bias, None


def gru_factors(sums: Tensor, candidate: Tensor, before: Tensor, factors: Tensor) -> Tensor:
    """Derivatives of a step's state by its three recurrent sums, into `factors` (T, D, B, 3, H).

    Returns the derivative by the candidate's input (T, D, B, H).
    """
    reset, update, recurrent = sums.chunk(3, -1)  # after their sigmoids; the last one doubled, as is its factor
    to_candidate = (1 - update).mul_(torch.addcmul(torch.ones_like(candidate), candidate, candidate, value=-1))
    to_reset, to_update, to_recurrent = factors.unbind(3)
    torch.mul(to_candidate, reset, out=to_recurrent).mul_(0.5)
    torch.mul(to_recurrent, recurrent, out=to_reset).mul_(1 - reset)
    torch.sub(before, candidate, out=to_update).mul_(torch.addcmul(update, update, update, value=-1))
    return to_candidate


def _lstm_forward(gates: Tensor, weight: Tensor, order: ScanOrder) -> tuple[Tensor, ...]:
    size = weight.shape[2]
    sums = to_scan(gates, order.gates, order)
    sums[..., 2 * size : 3 * size] *= 2
    doubled = _with_doubled(weight, 2)
    states = sums.new_empty(order.directions, order.frames + 1, order.batch, size)
    states[:, 0] = 0
    cells = sums.new_zeros(order.frames + 1, order.directions, order.batch, size)
    squashed = torch.empty_like(cells[0])
    minus_one, two = sums.new_tensor(-1.0), sums.new_tensor(2.0)
    before, *after = states.unbind(1)
    cell, *cells_after = cells.unbind(0)
    parts = (part.unbind(0) for part in sums.split(size, -1))
    add, mul, sigmoid = torch.add, torch.mul, torch.sigmoid
    for total, entry, forget, new, out, state, cell_after in zip(
        sums.unbind(0), *parts, after, cells_after, strict=True
    ):
        torch.baddbmm(total, before, doubled, out=total).sigmoid_()
        add(minus_one, new, alpha=2, out=new)
        cell = mul(forget, cell, out=cell_after).addcmul_(entry, new)
        add(minus_one, sigmoid(mul(cell, two, out=squashed), out=squashed), alpha=2, out=squashed)
        before = mul(out, squashed, out=state)
    return from_scan(states, order.output, order), sums, cells, states


class _LSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, order: ScanOrder) -> Tensor:
        output, sums, cells, states = _lstm_forward(gates, weight, order)
        ctx.save_for_backward(weight, sums, cells, states)
        ctx.order = order
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, sums, cells, states = ctx.saved_tensors
        order: ScanOrder = ctx.order
        size = weight.shape[2]
        doubled = _with_doubled(weight, 2).transpose(1, 2).contiguous()
        grad_states = incoming(grad, order)
        grad_sums = sums.new_empty(order.directions, order.frames, order.batch, 4 * size)
        grad_cell = torch.zeros_like(grad_states[0])
        spare = torch.empty_like(grad_cell)
        for chunk in chunks(order.frames, order.directions * order.batch * 4 * size):
            factors = grad_sums[:, chunk].transpose(0, 1).unflatten(-1, (4, size))
            to_cell = _lstm_factors(sums[chunk], cells[chunk.start : chunk.stop + 1], factors)
            steps = zip(
                grad_states[chunk].unbind(0),
                [spare, *grad_states[: chunk.stop - 1].unbind(0)][chunk.start :],
                to_cell.unbind(0),
                sums[chunk, ..., size : 2 * size].unbind(0),
                factors[..., :3, :].unbind(0),
                factors[..., 3, :].unbind(0),
                grad_sums[:, chunk].unbind(1),
                strict=True,
            )
            for now, before, by_cell, forget, factor, out, product in reversed(list(steps)):
                grad_cell.addcmul_(now, by_cell)
                factor.mul_(grad_cell.unsqueeze(2))
                out.mul_(now)
                grad_cell.mul_(forget)
                before.baddbmm_(product, doubled)
        grad_weight = _recurrent_grad(states, grad_sums, 2)
        grad_sums[..., 2 * size : 3 * size] *= 2
        return from_scan(grad_sums, order.gates_back, order), grad_weight, None


def _lstm_factors(sums: Tensor, cells: Tensor, factors: Tensor) -> Tensor:
    """Derivatives by a step's four sums, into `factors` (T, D, B, 4, H): of the cell (three) and of the state (output).

    Returns the derivative of the state by the cell (T, D, B, H).
    """
    entry, forget, new, out = sums.chunk(4, -1)
    squashed = cells[1:].tanh()
    to_entry, to_forget, to_new, to_out = factors.unbind(3)
    torch.mul(new, torch.addcmul(entry, entry, entry, value=-1), out=to_entry)
    torch.mul(cells[:-1], torch.addcmul(forget, forget, forget, value=-1), out=to_forget)
    torch.mul(entry, torch.addcmul(torch.ones_like(new), new, new, value=-1), out=to_new).mul_(0.5)
    torch.mul(squashed, torch.addcmul(out, out, out, value=-1), out=to_out)
    return torch.addcmul(out, out, squashed.square_(), value=-1)
