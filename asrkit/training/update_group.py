"""Batches whose gradients make one update: what they have changed is put back where one of them is refused."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit.training.meters import Meter


class UpdateGroup:
    """Buffers (running statistics) and sums at the start of a group, and whether the group has been dropped."""

    def __init__(self, modules: nn.Module) -> None:
        self._buffers = [b for b in modules.buffers() if b.numel()]
        self._saved = [torch.empty_like(b) for b in self._buffers]
        self._meter = Meter()
        self.dropped = False

    def start(self, meter: Meter) -> None:
        """Remember what `drop` must put back."""
        _copy(self._saved, self._buffers)
        self._meter = Meter(**meter.state())
        self.dropped = False

    def drop(self) -> Meter:
        """As if the group had never begun; its other batches are left out. Returns the sums of before."""
        _copy(self._buffers, self._saved)
        self.dropped = True
        return self._meter


def _copy(target: list[Tensor], source: list[Tensor]) -> None:
    if target:
        torch._foreach_copy_(target, source)
