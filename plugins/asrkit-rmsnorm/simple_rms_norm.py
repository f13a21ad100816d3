"""`simple_rms_norm`: every frame divided by the root mean square of its features.

    y_tc = gain_c x_tc / sqrt(1/C sum_c x_tc^2 + eps)

Zhang & Sennrich 2019 (arXiv 1910.07467), equation 4. asrkit's own `rms_norm` gives the same numbers in less time; this
one shows how little a package of one's own needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit import StackEncoder


class SimpleRMSNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding."""

    order_free, scope = True, "frame_rms"

    def __init__(self, size: int, eps: float, gain: float, affine: bool) -> None:
        super().__init__()
        self.eps, self.gain = eps, nn.Parameter(torch.full((size,), gain)) if affine else 1.0

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.gain * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return y.masked_fill(~mask.unsqueeze(-1), 0.0)


class SimpleRMSNormEncoder(StackEncoder):
    """The recipe's layers with `simple_rms_norm` in every `norm` slot and placement."""

    asrkit_api = 1

    def make_norm(self, size: int) -> nn.Module:
        return SimpleRMSNorm(size, self.norm.eps, self.norm.gain, self.norm.affine)
