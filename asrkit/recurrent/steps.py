"""GRU and LSTM step by step with any norm inside: plain autograd, on every device; the slow way that is always right.

Equations and sources: `asrkit.recurrent.placement`. Gates are in torch's order, biases are added after the norms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asrkit.recurrent.placement import GroupedNorm


class Norms(NamedTuple):
    """The norms of one direction: on W_h h, on the whole sums, on the cell; and whether the stored cell is meant."""

    recurrent: GroupedNorm | None = None
    joined: GroupedNorm | None = None
    cell: GroupedNorm | None = None
    stored: bool = False


def gru_steps(gates: Tensor, mask: Tensor, weight: Tensor, bias_x: Tensor, bias_h: Tensor, norms: Norms) -> Tensor:
    """W_x x after its norm (B, T, 3H) in own order of time, mask (B, T), weight (3H, H), biases (3H,) -> (B, T, H)."""
    size = weight.shape[1]
    outside, candidate_bias = bias_h.split([2 * size, size])
    bias = bias_x + torch.cat([outside, torch.zeros_like(candidate_bias)])
    if norms.joined is None:
        gates = gates + bias
    state = gates.new_zeros(gates.shape[0], size)
    states = []
    for t, (x, alive) in enumerate(zip(gates.unbind(1), mask.unbind(1), strict=True)):
        h = state @ weight.t()
        if norms.recurrent is not None:
            h = norms.recurrent.step(h, t, alive)
        if norms.joined is None:
            reset, update = torch.sigmoid(x[:, : 2 * size] + h[:, : 2 * size]).chunk(2, 1)
            candidate = torch.tanh(x[:, 2 * size :] + reset * (h[:, 2 * size :] + candidate_bias))
        else:
            reset, update, candidate = _joined_gru(x, h, t, alive, norms.joined, bias, candidate_bias)
        state = torch.lerp(candidate, state, update)
        states.append(state)
    return torch.stack(states, 1) if states else gates.new_zeros(gates.shape[0], 0, size)


def _joined_gru(
    x: Tensor, h: Tensor, t: int, alive: Tensor, norm: GroupedNorm, bias: Tensor, candidate_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates and candidate of a step whose sums are normalized whole.

    The candidate's sum needs the reset gate, which needs its own sum first, so the norm is called for the parts.
    """
    size = candidate_bias.shape[0]
    both = [2 * size, size]
    (x_gates, x_new), (h_gates, h_new), (b_gates, b_new) = (part.split(both, -1) for part in (x, h, bias))
    total = norm.gates_step(x_gates + h_gates, t, alive)
    reset, update = torch.sigmoid(total + b_gates).chunk(2, 1)
    candidate = norm.candidate_step(x_new + reset * h_new, t, alive)
    return reset, update, torch.tanh(candidate + b_new + reset * candidate_bias)


def lstm_steps(gates: Tensor, mask: Tensor, weight: Tensor, bias_x: Tensor, bias_h: Tensor, norms: Norms) -> Tensor:
    """W_x x after its norm (B, T, 4H) in own order of time, mask (B, T), weight (4H, H), biases (4H,) -> (B, T, H)."""
    bias = bias_x + bias_h
    state = gates.new_zeros(gates.shape[0], weight.shape[1])
    cell, states = state, []
    for t, (x, alive) in enumerate(zip(gates.unbind(1), mask.unbind(1), strict=True)):
        h = state @ weight.t()
        if norms.recurrent is not None:
            h = norms.recurrent.step(h, t, alive)
        total = x + h
        if norms.joined is not None:
            total = norms.joined.step(total, t, alive)
        entry, forget, new, out = (total + bias).chunk(4, 1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(entry) * torch.tanh(new)
        shown = cell if norms.cell is None else norms.cell.step(cell, t, alive)
        if norms.stored:
            cell = shown
        state = torch.sigmoid(out) * torch.tanh(shown)
        states.append(state)
    return torch.stack(states, 1) if states else gates.new_zeros(gates.shape[0], 0, weight.shape[1])
