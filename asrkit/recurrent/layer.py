"""One recurrent layer: projection, norms where its placement says, recurrence on the fastest path that fits."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.errors import RecipeError
from asrkit.processes import largest
from asrkit.recurrent.packed_norms import known, normed_project
from asrkit.recurrent.placement import GATES, GroupedNorm, MakeNorm, Placement, has
from asrkit.recurrent.projection import project
from asrkit.recurrent.ragged import Ragged
from asrkit.recurrent.row_norm_lstm_scan import lstm_row_norm_scan
from asrkit.recurrent.row_norm_scan import gru_row_norm_scan
from asrkit.recurrent.row_scale import RowScale
from asrkit.recurrent.scan import gru_scan, lstm_scan
from asrkit.recurrent.scan_order import to_scan
from asrkit.recurrent.steps import Norms, gru_steps, lstm_steps


class RecurrentLayer(nn.Module):
    """One layer, D directions: weight_input (D, G, C), weight_recurrent (D, G, H), two biases (D, G); G = 3H or 4H.

    Gates are in torch's order. Each norm exists once per direction (`input_norm` once), in the direction's own order of
    time; a norm that treats every feature alone and does not care about the order is one module for all directions.

    Weights may be computed by parametrizations (weight norm), so each is asked for once per forward; their type is that
    of the biases.
    """

    def __init__(
        self,
        input_size: int,
        size: int,
        cell: str,
        directions: int,
        placement: Placement | None = None,
        make_norm: MakeNorm | None = None,
    ) -> None:
        super().__init__()
        self.size, self.cell, self.directions = size, cell, directions
        self.placement = placement or Placement()
        sums = GATES[cell] * size
        self.memory: Any = None  # of states from batch to batch, a fault: only ever set by asrkit.defects
        self.weight_input = nn.Parameter(torch.empty(directions, sums, input_size))
        self.weight_recurrent = nn.Parameter(torch.empty(directions, sums, size))
        self.bias_input = nn.Parameter(torch.empty(directions, sums))
        self.bias_recurrent = nn.Parameter(torch.empty(directions, sums))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)
        self._add_norms(input_size, make_norm)

    def _add_norms(self, input_size: int, make_norm: MakeNorm | None) -> None:
        place, groups = self.placement.place, self.placement.groups(self.cell, self.size)
        if (place != "none" or self.placement.in_recurrence) and make_norm is None:
            raise RecipeError(
                f"norm: {place!r} without a norm to put there",
                fix="give make_norm, or use an encoder that makes norms",
                reason="placement",
            )

        def each(wanted: bool, groups: list[int], merge: bool = True) -> nn.ModuleList | None:
            if not wanted or make_norm is None:
                return None
            norms = [GroupedNorm(make_norm, groups, merge) for _ in range(self.directions)]
            return None if all(norm.identity for norm in norms) else nn.ModuleList(norms)

        self.input_norm = make_norm(input_size) if place == "input" and make_norm else None
        if self.input_norm is not None and has(self.input_norm, "identity"):
            self.input_norm = None
        self.gate_norms = each(place in ("gates", "recurrent"), groups)
        if self.gate_norms is not None and _alone(self.gate_norms) and make_norm:
            self.gate_norms = nn.ModuleList([GroupedNorm(make_norm, [self.directions * sum(groups)])])
        self.recurrent_norms = each(place in ("recurrent", "hidden"), groups)
        self.joined_norms = each(place == "joined", groups, merge=self.cell == "lstm")  # see steps.py
        self.cell_norms = each(self.placement.cell_norm != "none", [self.size])
        _refuse_in_recurrence(place, self.recurrent_norms, self.joined_norms, self.cell_norms)
        self.in_recurrence = any(
            norms is not None for norms in (self.recurrent_norms, self.joined_norms, self.cell_norms)
        )

    def forward(self, x: Tensor, batch: Ragged, backend: str) -> Tensor:
        """x (B, T, C), zero past each end -> (B, T, D*H), zero past each end."""
        if not batch.tracing and not x.shape[1]:  # no frame to point at; the calls of one, for other processes
            x = F.pad(x, (0, 0, 0, 1))
            return self.forward(x, Ragged(x, batch.lengths), backend)[:, :0]
        if self.input_norm is not None:
            x = batch.zero_padding(self.input_norm(x, batch.mask))
        if self.in_recurrence:
            return self._normed_recurrence(x, batch, backend)
        if self._takes_fused(x, backend):
            return self._fused(x, batch)
        return self._scanned(x, batch)

    def skips_padding(self, x: Tensor, backend: str) -> bool:
        """Whether `forward` reads real frames only, so that padding may hold anything."""
        norms = [cast(GroupedNorm, norm) for norm in self.gate_norms or ()]
        unknown = self.input_norm is not None or self.in_recurrence or not known(norms, self.directions)
        return not unknown and not self._takes_fused(x, backend) and self._exact(x)

    def _exact(self, x: Tensor) -> bool:
        """Whether W_x x is to be computed in the precision of the recurrence."""
        kept = self.bias_recurrent.dtype
        plain = x.dtype == kept == torch.promote_types(kept, torch.float32)
        return plain and not torch.is_autocast_enabled(x.device.type)

    def _takes_fused(self, x: Tensor, backend: str) -> bool:
        if backend != "auto" or self.memory is not None:
            return backend == "fused" or self.memory is not None
        if x.is_cuda or torch.jit.is_tracing():  # a traced loop would freeze the number of frames
            return True
        return self.cell == "lstm" and self.gate_norms is None and x.dtype == torch.float32

    def _normed_gates(self, x: Tensor, batch: Ragged) -> tuple[Tensor, bool]:
        """W_x x (B, T, D*G) after its norm, and whether its backward half is still in the natural order of time."""
        gates = F.linear(x, self.weight_input.flatten(0, 1))
        if self.gate_norms is None:
            return gates, True
        natural = all(norm.order_free for norm in self.gate_norms)
        if len(self.gate_norms) == 1:  # one direction, or one norm for all of them
            gates = self.gate_norms[0](gates, batch.mask)
        else:
            sides = self._own_order(gates, not natural, batch)
            gates = torch.cat([norm(side, batch.mask) for norm, side in zip(self.gate_norms, sides, strict=True)], 2)
        if not natural:  # a norm that makes no promises may leave anything in the padding
            gates = batch.zero_padding(gates)
        return gates, natural

    def _own_order(self, gates: Tensor, turn: bool, batch: Ragged) -> list[Tensor]:
        """The gate sums of each direction (B, T, G); `turn` the backward half from natural to its own order of time."""
        sides = list(gates.chunk(self.directions, 2))
        if turn:
            sides[1:] = [batch.reverse(side) for side in sides[1:]]
        return sides

    def _biases(self) -> tuple[Tensor, Tensor]:
        """What can be added to the gates before the scan (D, G), and the GRU candidate's recurrent bias (D, H)."""
        if self.cell == "lstm":
            return self.bias_input + self.bias_recurrent, self.bias_recurrent[:, :0]
        outside, candidate = self.bias_recurrent.split([2 * self.size, self.size], 1)
        return self.bias_input + F.pad(outside, (0, self.size)), candidate

    # asrkit's own scans.

    def _scanned(self, x: Tensor, batch: Ragged) -> Tensor:
        kept = self.bias_recurrent.dtype
        compute = torch.promote_types(kept, torch.float32)
        order = batch.order(self.directions)
        bias, candidate_bias = self._biases()
        sums = self._sums(x, batch, bias.to(compute))
        weight, candidate_bias = self.weight_recurrent.to(compute), candidate_bias.to(compute)
        with torch.autocast(x.device.type, enabled=False):
            if self.cell == "gru":
                return gru_scan(sums, weight, candidate_bias, order).to(kept)
            return lstm_scan(sums, weight, order).to(kept)

    def _sums(self, x: Tensor, batch: Ragged, bias: Tensor) -> Tensor:
        """What a scan begins with: W_x x after its norm, plus bias (D, G), in the scan's layout, gates and room."""
        order, room = batch.order(self.directions), self.size if self.cell == "gru" else 0
        if self._exact(x):
            if self.gate_norms is None:
                return project(x, self._turned(self.weight_input), self._turned(bias), order, room)
            norms = [cast(GroupedNorm, norm) for norm in self.gate_norms]
            turn = self.size if self.cell == "gru" else 0
            if known(norms, self.directions):
                twice = self._twice(bias)
                return normed_project(x, self.weight_input, bias, norms, batch.mask, order, turn, twice, room)
        gates, natural = self._normed_gates(x, batch)
        gates = to_scan(gates.to(bias.dtype), order, natural) + bias.unsqueeze(1)
        return F.pad(self._turned(gates, -1), (0, room))

    def _twice(self, like: Tensor) -> Tensor:
        """(G,) in the scan's order of the gates: 2 for the one whose tanh is computed by a sigmoid, else 1."""
        return self._turned(like.new_ones(GATES[self.cell] * self.size), 0)

    def _turned(self, gates: Tensor, dim: int = 1) -> Tensor:
        """From torch's order of the gates to the scan's, with the one doubled whose tanh it computes by a sigmoid."""
        parts = list(gates.split(self.size, dim))
        parts[2] = parts[2] * 2
        return torch.cat(parts[2:] + parts[:2] if self.cell == "gru" else parts, dim)

    # Norms inside the loop over time.

    def _normed_recurrence(self, x: Tensor, batch: Ragged, backend: str) -> Tensor:
        if torch.jit.is_tracing():
            raise RecipeError(
                f"norm: {self.placement.place} cannot be exported: a trace of its loop keeps the number of steps",
                possible="none, input, gates",
                reason="export",
            )
        kept = self.bias_recurrent.dtype
        compute = torch.promote_types(kept, torch.float32)
        found = None if backend == "steps" or x.is_cuda else self._row_normed(x, batch, compute)
        if found is not None:
            return found.to(kept)
        gates, natural = self._normed_gates(x, batch)
        with torch.autocast(x.device.type, enabled=False):
            return self._steps(self._own_order(gates.to(compute), natural, batch), batch).to(kept)

    def _row_normed(self, x: Tensor, batch: Ragged, compute: torch.dtype) -> Tensor | None:
        """The scan with row norms; None where a norm in the loop is of another kind or at another place."""
        if self.recurrent_norms is None:
            return None
        scale = RowScale.of([cast(GroupedNorm, side) for side in self.recurrent_norms], compute, "step")
        cell = None
        if self.cell_norms is not None:
            cell = RowScale.of([cast(GroupedNorm, side) for side in self.cell_norms], compute, "step")
        if scale is None or (cell is None) != (self.cell_norms is None):
            return None
        bias, candidate = scale.with_shift(*self._biases())
        sums, order = self._sums(x, batch, bias.to(compute)), batch.order(self.directions)
        with torch.autocast(x.device.type, enabled=False):
            weight, candidate = self.weight_recurrent.to(compute), candidate.to(compute)
            if self.cell == "gru":
                return gru_row_norm_scan(sums, weight, candidate, scale, order)
            return lstm_row_norm_scan(sums, weight, scale, cell, self.placement.cell_norm == "stored", order)

    def _steps(self, sides: list[Tensor], batch: Ragged) -> Tensor:
        """The recurrence step by step, for any norm."""
        frames, mask = batch.frames, batch.mask
        # Every process takes as many steps as the one with the longest utterance, or their sums would not meet.
        missing = largest(frames, mask.device, self.training) - frames
        if missing:
            mask = F.pad(mask, (0, missing))
            sides = [F.pad(side, (0, 0, 0, missing)) for side in sides]
        run, states = (gru_steps if self.cell == "gru" else lstm_steps), []
        parameters = (self.weight_recurrent, self.bias_input, self.bias_recurrent)
        for d, side in enumerate(sides):
            weight, bias_x, bias_h = (p[d].to(side.dtype) for p in parameters)
            found = run(side, mask, weight, bias_x, bias_h, self._norms_of(d))[:, :frames]
            states.append(batch.reverse(found) if d else found)
        return batch.zero_padding(torch.cat(states, 2))

    def _norms_of(self, direction: int) -> Norms:
        def one(norms: nn.ModuleList | None) -> GroupedNorm | None:
            return None if norms is None else cast(GroupedNorm, norms[direction])

        stored = self.placement.cell_norm == "stored"
        return Norms(one(self.recurrent_norms), one(self.joined_norms), one(self.cell_norms), stored)

    # Torch's own kernels.

    def _fused(self, x: Tensor, batch: Ragged) -> Tensor:
        """Torch's own kernels, each direction on its own real part first; with norms, over identity input weights."""
        if self.gate_norms is None:
            inputs = [x, batch.reverse(x)][: self.directions]
            weights = list(self.weight_input.unbind(0))
        else:
            inputs = self._own_order(*self._normed_gates(x, batch), batch)
            eye = torch.eye(inputs[0].shape[2], dtype=self.bias_recurrent.dtype, device=x.device)
            weights = [eye] * self.directions
        recurrent = self.weight_recurrent
        with torch.autocast(x.device.type, enabled=x.is_cuda and torch.is_autocast_enabled(x.device.type)):
            states = [self._fused_direction(d, inputs[d], weights[d], recurrent[d]) for d in range(self.directions)]
        states[1:] = [batch.reverse(side) for side in states[1:]]
        return batch.zero_padding(torch.cat(states, 2))

    def _fused_direction(self, direction: int, x: Tensor, weight_input: Tensor, weight_recurrent: Tensor) -> Tensor:
        weights = [weight_input, weight_recurrent, self.bias_input[direction], self.bias_recurrent[direction]]
        if x.is_cuda:
            # cuDNN wants one block of memory in this order and warns when it has to make one itself.
            pieces = torch.cat([w.flatten() for w in weights]).split([w.numel() for w in weights])
            weights = [piece.view_as(w) for piece, w in zip(pieces, weights, strict=True)]
        x = x.to(weight_input.dtype)
        start = x.new_zeros(1, x.shape[0], self.size)
        options = (True, 1, 0.0, self.training, False, True)  # biases, layers, dropout, train, two-sided, batch first
        first = start if self.memory is None else self.memory.start(direction, start)
        if self.cell == "gru":
            output, last = torch._VF.gru(x, first, weights, *options)
        else:
            output, last, _ = torch._VF.lstm(x, (first, start), weights, *options)
        if self.memory is not None:
            self.memory.keep(direction, last)
        return output  # type: ignore[no-any-return]


def _refuse_in_recurrence(place: str, *lists: nn.ModuleList | None) -> None:
    for part in (part for norms in lists for grouped in norms or () for part in cast(GroupedNorm, grouped).norms):
        why = getattr(part, "refuses_recurrence", None)
        if why:
            raise RecipeError(
                f"norm: {place!r}: inside a recurrence a norm sees one frame at a time, and {why}",
                possible="norm: input or gates, or `norm` as a layer",
                fix="choose another placement, or another encoder",
                reason="placement",
            )


def _alone(norms: nn.ModuleList) -> bool:
    """Whether the norms treat every feature on its own, at any order of time, so that one can do the work of all."""
    parts = [part for norm in norms for part in norm.norms]  # type: ignore[union-attr]
    return all(has(part, "per_feature") and has(part, "order_free") for part in parts)
