"""Norms per frame (layer norm, RMS norm) of a layer's sums, as what is left of them once the weights are centred.

W x has mean 0 over a group of rows when the mean of these rows has been taken from the weights, which is done once per
batch and is exact. What is left to do per frame is a root mean square per group. Ba et al. 2016 (arXiv 1607.06450);
Zhang & Sennrich 2019 (arXiv 1910.07467) for RMS norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asrkit.normalization.contract import row_norm_of
from asrkit.recurrent.placement import GroupedNorm, heard, offers


@dataclass(frozen=True)
class RowScale:
    """Norms of a layer's sums: gain and shift (D, G), None without; eps; centred or not; sizes of the groups."""

    gain: Tensor | None
    shift: Tensor | None
    eps: float
    centred: bool
    groups: list[int]

    @classmethod
    def of(cls, sides: list[GroupedNorm], dtype: torch.dtype, *called: str) -> RowScale | None:
        """From the norms of each direction; None unless all parts offer `row_norm()` and agree in their rule, or where
        somebody would miss a call of theirs, or of what is `called` beside `forward`."""
        if any(heard(side) or not all(offers(norm, "row_norm", *called) for norm in side.norms) for side in sides):
            return None
        found = [[row_norm_of(norm) for norm in side.norms] for side in sides]
        rows = [row for side in found for row in side if row is not None]
        rules = {(row.centred, row.eps, row.weight is None, row.bias is None) for row in rows}
        if len(rows) < sum(map(len, found)) or len(rules) > 1:
            return None
        first = rows[0]

        def joined(name: str) -> Tensor | None:
            if getattr(first, name) is None:
                return None
            return torch.stack([torch.cat([getattr(row, name) for row in side]) for side in found]).to(dtype)

        return cls(joined("weight"), joined("bias"), first.eps, first.centred, sides[0].groups)

    def with_shift(self, bias: Tensor, candidate_bias: Tensor) -> tuple[Tensor, Tensor]:
        """The shift is a constant of the sums, so it can be added with the biases (D, 3H) and (D, H)."""
        if self.shift is None:
            return bias, candidate_bias
        size = candidate_bias.shape[1]
        if not size:  # an LSTM
            return bias + self.shift, candidate_bias
        gates, candidate = self.shift.split([2 * size, size], 1)
        return bias + nn.functional.pad(gates, (0, size)), candidate_bias + candidate

    def centre(self, weight: Tensor) -> Tensor:
        """Weights (D, G, .) less the mean row of each group, where the norm takes its mean away."""
        if not self.centred:
            return weight
        return torch.cat([part - part.mean(1, keepdim=True) for part in weight.split(self.groups, 1)], 1)

    def mixing(self, weight: Tensor) -> Tensor:
        """(gates, gates): sums over the gates -> the mean over the group that each gate belongs to."""
        size = weight.shape[2]
        member = torch.arange(len(self.groups)).repeat_interleave(torch.tensor(self.groups) // size)
        same = (member[:, None] == member).to(weight)
        return same / (same.sum(1, keepdim=True) * size)
