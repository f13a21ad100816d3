"""GRU and LSTM layers over ragged batches, with a norm on their input, their gates or their recurrence.

One layer: (norm) -> project all directions in one product -> (norm) -> scan each direction over the real part of the
utterance -> back. Nothing is packed; what an utterance gets does not depend on its padding or its batch mates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asrkit.errors import DataError, RecipeError, nearest
from asrkit.recurrent.layer import RecurrentLayer
from asrkit.recurrent.placement import GATES, MakeNorm, Placement
from asrkit.recurrent.ragged import Ragged

BACKENDS = ("auto", "scan", "fused", "steps")


class Recurrent(nn.Module):
    """A stack of GRU or LSTM layers: x (B, T, C), lengths (B,) -> (B, T, D), D = size * directions.

    Frames past an utterance's length are exactly 0 in the output, whatever they hold in the input (NaN included). Both
    directions start from a zero state, the backward one at the utterance's own last frame. The cells are those of
    `nn.GRU` and `nn.LSTM`, as are the number of parameters and their initial distribution (two bias vectors per
    direction, uniform in +-1/sqrt(size)); `load_from_torch` copies the weights of one. `dropout` acts between layers.

    `norm`, `per_gate` and `cell_norm` say where norms sit and on which sums (`asrkit.recurrent.placement`);
    `make_norm(C)` makes one: a module `norm(x (B, T, C), mask (B, T)) -> same shape`, and inside the recurrence `step(x
    (B, C), t, mask (B,))` where it has one.

    `backend`: "scan" is asrkit's own loop (`scan.py`), "fused" torch's kernels (cuDNN on a GPU), "auto" the faster one
    of the two for the device and cell; they agree to rounding. With a norm inside the recurrence, layer norm and RMS
    norm at `recurrent` or `hidden` have scans of their own on a CPU (`row_norm_scan.py`, `row_norm_lstm_scan.py`);
    every other one, and all of them with "steps", goes step by step. Under autocast the input projection takes the
    lower precision, the recurrence and the output stay float32, except in cuDNN, which computes all of a layer in the
    lower one. 16-bit parameters on a CPU: the recurrence runs in float32, the output has their type.

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
        norm: str = "none",
        per_gate: bool = False,
        cell_norm: str | None = None,
        make_norm: MakeNorm | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _check_arguments(input_size, size, cell, layers, dropout, backend)
        self.input_size, self.size, self.cell, self.dropout, self.backend = input_size, size, cell, dropout, backend
        self.directions = 2 if bidirectional else 1
        self.output_size = size * self.directions
        self.fault: Callable[[Recurrent, Tensor, Tensor], Tensor] | None = None  # only ever set by asrkit.defects
        self.placement = Placement.of(cell, norm, per_gate, cell_norm)
        self.layers = nn.ModuleList(
            RecurrentLayer(
                self.output_size if i else input_size, size, cell, self.directions, self.placement, make_norm
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, T, C), lengths (B,) int64 -> (B, T, D)."""
        if not torch.jit.is_tracing():  # a check would become a constant of the trace
            _check_input(x, lengths, self.input_size)
        return self.run(x, lengths) if self.fault is None else self.fault(self, x, lengths)

    def run(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`forward` with arguments that are known to fit, and without faults."""
        batch = Ragged(x, lengths)
        skips = cast(RecurrentLayer, self.layers[0]).skips_padding(x, self.backend)
        if not skips or not batch.mask.any():  # of no frames at all a scan still reads one
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
            for kind in ("weight", "bias"):
                for ours_name, name in (("input", "ih"), ("recurrent", "hh")):
                    sides = [getattr(module, f"{kind}_{name}_l{i}{suffix}") for suffix in ("", "_reverse")[:directions]]
                    _set(layer, f"{kind}_{ours_name}", torch.stack(sides))

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.size}, {self.cell}, directions={self.directions}, norm={self.placement.place}"


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    """The numbers of a weight. One that a norm of weights computes is no tensor to fill: the norm takes them apart."""
    if parametrize.is_parametrized(layer, name):
        setattr(layer, name, value)
    else:
        getattr(layer, name).copy_(value)


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
