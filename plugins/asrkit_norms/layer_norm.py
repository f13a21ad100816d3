"""`layer_norm`: every frame by its own mean and variance over its features.

    mu_t = 1/C sum_c x_tc,   var_t = 1/C sum_c (x_tc - mu_t)^2,   y_tc = gain_c (x_tc - mu_t) / sqrt(var_t + eps) +
    bias_c

Ba, Kiros & Hinton 2016 (arXiv 1607.06450), equation 3, with eps inside the root as in their code. The statistics of a
frame need no other frame: training and test compute the same, and padding cannot enter.
"""

from __future__ import annotations

from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.encoders import NormOptions
from asrkit.normalization import Affine, RowNorm, normalize_rows


class LayerNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding."""

    scope = "frame"
    order_free = True

    def __init__(self, size: int, options: NormOptions) -> None:
        super().__init__()
        self.eps = options.eps
        self.affine = Affine(size, options.affine, options.gain)

    def row_norm(self) -> RowNorm:
        """The same as a rule for one frame."""
        return RowNorm(True, self.eps, *self.affine())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return normalize_rows(x, mask, self.row_norm())


class LayerNormEncoder(StackEncoder):
    """The recipe's layers with layer normalization in the `norm` slot."""

    def make_norm(self, size: int) -> nn.Module:
        return LayerNorm(size, self.norm)
