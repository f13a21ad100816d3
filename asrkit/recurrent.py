"""GRU and LSTM layers over ragged batches, with a place for a norm on the sums `W_x x` that enter the gates.

One layer: project all directions in one product -> (norm) -> reverse the real part of the backward half -> scan ->
reverse back. Nothing is packed; what an utterance gets does not depend on its padding or its batch mates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.errors import DataError, RecipeError, nearest
from asrkit.scan import ScanOrder, gru_scan, lstm_scan, mirrored, scan_order

GATES = {"gru": 3, "lstm": 4}
BACKENDS = ("auto", "scan", "fused")


class Recurrent(nn.Module):
    """A stack of GRU or LSTM layers: x (B, T, C), lengths (B,) -> (B, T, D), D = size * directions.

    Frames past an utterance's length are exactly 0 in the output, whatever they hold in the input (NaN included). Both
    directions start from a zero state, the backward one at the utterance's own last frame. The cells are those of
    `nn.GRU` and `nn.LSTM`, as are the number of parameters and their initial distribution (two bias vectors per
    direction, uniform in +-1/sqrt(size)); `load_from_torch` copies the weights of one. `dropout` acts between layers.

    `gate_norm(3 * size)` (`4 * size` for an LSTM) is called once per layer and direction and returns a module
    `norm(gates (B, T, 3 * size), mask (B, T)) -> same shape`, applied to `W_x x` of that direction in the direction's
    own order of time (frame 0 of the backward one is the utterance's last); biases are added after it
    (Laurent et al. 2015, arXiv 1510.01378; Amodei et al. 2015, arXiv 1512.02595).

    `backend`: "scan" is asrkit's own loop (`scan.py`), "fused" torch's kernels (cuDNN on a GPU), "auto" the faster one
    of the two for the device and cell; they agree to rounding. Under autocast the input projection takes the lower
    precision, the recurrence and the output stay float32, except in cuDNN, which computes all of a layer in the lower
    one. 16-bit parameters on a CPU: the recurrence runs in float32, the output has their type.

    Raises `RecipeError` for arguments that cannot work, `DataError` (reason `lengths`) for lengths that are not
    integers of shape (B,) between 0 and T; values are checked where they can be without waiting for a GPU.
    """

    def __init__(
        self,
        input_size: int,
        size: int,
        cell: str = "gru",
        bidirectional: bool = True,
        layers: int = 1,
        dropout: float = 0.0,
        gate_norm: Callable[[int], nn.Module] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _check_arguments(input_size, size, cell, layers, dropout, backend)
        self.input_size, self.size, self.cell, self.dropout, self.backend = input_size, size, cell, dropout, backend
        self.directions = 2 if bidirectional else 1
        self.output_size = size * self.directions
        self.layers = nn.ModuleList(
            RecurrentLayer(self.output_size if i else input_size, size, cell, self.directions, gate_norm)
            for i in range(layers)
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, T, C), lengths (B,) int64 -> (B, T, D)."""
        if not torch.jit.is_tracing():  # a check would become a constant of the trace
            _check_input(x, lengths, self.input_size)
        batch = Ragged(x, lengths)
        x = batch.zero_padding(x)
        for i, layer in enumerate(self.layers):
            if i and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            x = layer(x, batch, self.backend)
        return x

    @torch.no_grad()
    def load_from_torch(self, module: nn.GRU | nn.LSTM) -> None:
        """Copy the weights of a torch module of the same shape; raises `RecipeError` (reason `shape_mismatch`)."""
        ours = (self.cell, self.input_size, self.size, len(self.layers), self.directions, True, 0)
        directions = 2 if module.bidirectional else 1
        kind, projected = module.mode.lower(), getattr(module, "proj_size", 0)
        theirs = (kind, module.input_size, module.hidden_size, module.num_layers, directions, module.bias, projected)
        if ours != theirs:
            names = "cell, input size, size, layers, directions, biases, projection"
            raise RecipeError(
                f"cannot copy the weights of {module}: ({names}) are {theirs}, here {ours}",
                fix="build both with the same arguments",
                reason="shape_mismatch",
            )
        for i, layer in enumerate(self.layers):
            for d, suffix in enumerate(("", "_reverse")[:directions]):
                for ours_name, name in (("weight", "weight"), ("bias", "bias")):
                    getattr(layer, f"{ours_name}_input")[d].copy_(getattr(module, f"{name}_ih_l{i}{suffix}"))
                    getattr(layer, f"{ours_name}_recurrent")[d].copy_(getattr(module, f"{name}_hh_l{i}{suffix}"))

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.size}, {self.cell}, directions={self.directions}, dropout={self.dropout}"


class Ragged:
    """What all layers need to know about one batch: which frames are real, and the orders of time, built when asked."""

    def __init__(self, x: Tensor, lengths: Tensor) -> None:
        self.frames = x.shape[1]
        self.tracing = torch.jit.is_tracing()
        # On a GPU looking would mean waiting for it, and a trace must hold for other lengths too.
        self.ragged = x.is_cuda or self.tracing or bool((lengths < self.frames).any())
        self.lengths = lengths.to(x.device, torch.int64)
        self.mask = torch.arange(self.frames, device=x.device) < self.lengths[:, None]
        self._orders: dict[tuple[int, bool], ScanOrder] = {}
        self._rows: Tensor | None = None

    def zero_padding(self, x: Tensor) -> Tensor:
        """Zero past each end: 0 * NaN is NaN, so hiding the output alone would not protect the gradients."""
        return x.masked_fill(~self.mask[..., None], 0) if self.ragged else x

    def order(self, directions: int, reverse: bool) -> ScanOrder:
        key = directions, reverse
        if key not in self._orders:
            self._orders[key] = scan_order(self.lengths, self.frames, directions, reverse, self.ragged)
        return self._orders[key]

    def reverse(self, x: Tensor) -> Tensor:
        """(B, T, N) with the real part of each utterance reversed; its own inverse."""
        if self._rows is None:
            starts = torch.arange(x.shape[0], device=x.device)[:, None] * self.frames
            self._rows = (mirrored(self.lengths, self.frames) + starts).reshape(-1)
        flat = x.reshape(-1, x.shape[2])
        rows = flat.index_select(0, self._rows) if self.tracing else _Permute.apply(flat, self._rows)  # type: ignore[no-untyped-call]
        return rows.view(x.shape)  # type: ignore[no-any-return]


class _Permute(torch.autograd.Function):
    """Rows in an order that is its own inverse; the general gradient of index_select would add row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Permute.apply(grad, ctx.saved_tensors[0]), None  # type: ignore[no-untyped-call]


class RecurrentLayer(nn.Module):
    """One layer, D directions: weight_input (D, G, C), weight_recurrent (D, G, H), two biases (D, G); G = 3H or 4H.

    `gate_norms`: None, or one module per direction. Gates are in torch's order.
    """

    def __init__(
        self, input_size: int, size: int, cell: str, directions: int, gate_norm: Callable[[int], nn.Module] | None
    ) -> None:
        super().__init__()
        self.size, self.cell, self.directions = size, cell, directions
        sums = GATES[cell] * size
        self.weight_input = nn.Parameter(torch.empty(directions, sums, input_size))
        self.weight_recurrent = nn.Parameter(torch.empty(directions, sums, size))
        self.bias_input = nn.Parameter(torch.empty(directions, sums))
        self.bias_recurrent = nn.Parameter(torch.empty(directions, sums))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)
        self.gate_norms = nn.ModuleList(gate_norm(sums) for _ in range(directions)) if gate_norm else None

    def forward(self, x: Tensor, batch: Ragged, backend: str) -> Tensor:
        """x (B, T, C), zero past each end -> (B, T, D*H), zero past each end."""
        if backend == "fused" or (backend == "auto" and self._prefers_fused(x)):
            return self._fused(x, batch)
        bias, candidate_bias = self._biases()
        if self.gate_norms is None:
            gates = F.linear(x, self.weight_input.flatten(0, 1), bias.flatten())
        else:
            gates = torch.cat([g + b for g, b in zip(self._normed_gates(x, batch), bias, strict=True)], 2)
        order = batch.order(self.directions, reverse=self.gate_norms is None)
        return self._scan(gates, candidate_bias, order)

    def _prefers_fused(self, x: Tensor) -> bool:
        if x.is_cuda or torch.jit.is_tracing():  # a traced loop would freeze the number of frames
            return True
        return self.cell == "lstm" and self.gate_norms is None and x.dtype == torch.float32

    def _project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_input.flatten(0, 1))

    def _normed_gates(self, x: Tensor, batch: Ragged) -> list[Tensor]:
        """W_x x of each direction after its norm, in the direction's own order of time, finite past each end."""
        assert self.gate_norms is not None
        gates = list(self._project(x).chunk(self.directions, 2))
        gates[1:] = [batch.reverse(side) for side in gates[1:]]
        normed = [norm(side, batch.mask) for norm, side in zip(self.gate_norms, gates, strict=True)]
        return [batch.zero_padding(side) for side in normed]

    def _biases(self) -> tuple[Tensor, Tensor]:
        """What can be added to the gates before the scan (D, G), and the GRU candidate's recurrent bias (D, H)."""
        if self.cell == "lstm":
            return self.bias_input + self.bias_recurrent, self.bias_recurrent[:, :0]
        outside, candidate = self.bias_recurrent.split([2 * self.size, self.size], 1)
        return self.bias_input + F.pad(outside, (0, self.size)), candidate

    def _scan(self, gates: Tensor, candidate_bias: Tensor, order: ScanOrder) -> Tensor:
        kept = self.weight_recurrent.dtype
        compute = torch.promote_types(kept, torch.float32)
        gates, weight, bias = (t.to(compute) for t in (gates, self.weight_recurrent, candidate_bias))
        with torch.autocast(gates.device.type, enabled=False):
            states = gru_scan(gates, weight, bias, order) if self.cell == "gru" else lstm_scan(gates, weight, order)
        return states.to(kept)

    def _fused(self, x: Tensor, batch: Ragged) -> Tensor:
        """Torch's own kernels, each direction on its own real part first; with norms, over identity input weights."""
        if self.gate_norms is None:
            inputs = [x, batch.reverse(x)][: self.directions]
            weights = list(self.weight_input.unbind(0))
        else:
            inputs = self._normed_gates(x, batch)
            eye = torch.eye(inputs[0].shape[2], dtype=self.weight_recurrent.dtype, device=x.device)
            weights = [eye] * self.directions
        with torch.autocast(x.device.type, enabled=x.is_cuda and torch.is_autocast_enabled(x.device.type)):
            states = [self._fused_direction(d, inputs[d], weights[d]) for d in range(self.directions)]
        states[1:] = [batch.reverse(side) for side in states[1:]]
        return batch.zero_padding(torch.cat(states, 2))

    def _fused_direction(self, direction: int, x: Tensor, weight_input: Tensor) -> Tensor:
        weights = [weight_input, self.weight_recurrent[direction]]
        weights += [self.bias_input[direction], self.bias_recurrent[direction]]
        if x.is_cuda:
            # cuDNN wants one block of memory in this order and warns when it has to make one itself.
            pieces = torch.cat([w.flatten() for w in weights]).split([w.numel() for w in weights])
            weights = [piece.view_as(w) for piece, w in zip(pieces, weights, strict=True)]
        x = x.to(weight_input.dtype)
        start = x.new_zeros(1, x.shape[0], self.size)
        options = (True, 1, 0.0, self.training, False, True)  # biases, layers, dropout, train, two-sided, batch first
        if self.cell == "gru":
            return torch._VF.gru(x, start, weights, *options)[0]  # type: ignore[no-any-return]
        return torch._VF.lstm(x, (start, start), weights, *options)[0]  # type: ignore[no-any-return]


def _check_arguments(input_size: int, size: int, cell: str, layers: int, dropout: float, backend: str) -> None:
    if cell not in GATES:
        raise RecipeError(f"unknown cell {cell!r}", possible=nearest(str(cell), GATES), reason="unknown_cell")
    if backend not in BACKENDS:
        raise RecipeError(f"unknown backend {backend!r}", possible=nearest(str(backend), BACKENDS), reason="backend")
    for name, number in (("input_size", input_size), ("size", size), ("layers", layers)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise RecipeError(f"{name}: {number!r}", possible="whole numbers from 1", reason="bad_size")
    if not 0 <= dropout < 1:
        raise RecipeError(f"dropout: {dropout!r}", possible="0 up to, not including, 1", reason="bad_dropout")


def _check_input(x: Tensor, lengths: Tensor, input_size: int) -> None:
    if x.dim() != 3 or x.shape[2] != input_size:
        raise DataError(f"input of shape {tuple(x.shape)}", possible=f"(B, T, {input_size})", reason="shape")
    good = lengths.dim() == 1 and lengths.shape[0] == x.shape[0] and not lengths.dtype.is_floating_point
    if not good or lengths.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise DataError(
            f"lengths of shape {tuple(lengths.shape)} and type {lengths.dtype}",
            possible=f"integers of shape ({x.shape[0]},), in frames",
            fix="count frames; relative lengths are not used here",
            reason="lengths",
        )
    if lengths.is_cuda:
        return
    if lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]:
        raise DataError(f"lengths {lengths.tolist()}", possible=f"0 to T = {x.shape[1]}", reason="lengths")
