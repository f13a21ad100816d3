"""What the recurrent layers need to know about one ragged batch: real frames, orders of time, reversal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asrkit.recurrent.scan_order import ScanOrder, mirrored, scan_order


class Ragged:
    """One batch: which of its frames are real, and the orders of time, built when asked for."""

    def __init__(self, x: Tensor, lengths: Tensor) -> None:
        self.frames = x.shape[1]
        self.tracing = torch.jit.is_tracing()
        # On a GPU looking would mean waiting for it, and a trace must hold for other lengths too.
        self.ragged = x.is_cuda or self.tracing or bool((lengths < self.frames).any())
        self.lengths = lengths.to(x.device, torch.int64)
        self.mask = torch.arange(self.frames, device=x.device) < self.lengths[:, None]
        self._orders: dict[int, ScanOrder] = {}
        self._rows: Tensor | None = None

    def zero_padding(self, x: Tensor) -> Tensor:
        """Zero past each end: 0 * NaN is NaN, so hiding the output alone would not protect the gradients."""
        return x.masked_fill(~self.mask[..., None], 0) if self.ragged else x

    def order(self, directions: int) -> ScanOrder:
        """The order of a scan, which looks at the lengths: not for a trace, and on a GPU a wait."""
        if directions not in self._orders:
            self._orders[directions] = scan_order(self.lengths, self.frames, directions)
        return self._orders[directions]

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
