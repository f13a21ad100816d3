"""`rms_norm`: every frame by the root mean square of its features; layer norm without the mean, and without a bias.

    y_tc = gain_c x_tc / sqrt(1/C sum_c x_tc^2 + eps)

Zhang & Sennrich 2019 (arXiv 1910.07467), equation 4, with eps inside the root. As with layer norm, training and test
compute the same, and padding cannot enter; adding a constant to all features of a frame does change the output.
"""

from __future__ import annotations

from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.encoders import NormOptions
from asrkit.normalization import Affine, RowNorm, normalize_rows


class RMSNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding."""

    scope = "frame_rms"
    order_free = True

    def __init__(self, size: int, options: NormOptions) -> None:
        super().__init__()
        self.eps = options.eps
        self.affine = Affine(size, options.affine, options.gain, bias=False)

    def row_norm(self) -> RowNorm:
        """The same as a rule for one frame."""
        return RowNorm(False, self.eps, *self.affine())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return normalize_rows(x, mask, self.row_norm())


class RMSNormEncoder(StackEncoder):
    """The recipe's layers with root mean square normalization in the `norm` slot."""

    def make_norm(self, size: int) -> nn.Module:
        return RMSNorm(size, self.norm)
