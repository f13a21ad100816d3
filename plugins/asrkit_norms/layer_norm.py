"""`layer_norm`: every frame by its own mean and variance over its features.

    mu_t = 1/C sum_c x_tc,   var_t = 1/C sum_c (x_tc - mu_t)^2,   y_tc = gain_c (x_tc - mu_t) / sqrt(var_t + eps) +
    bias_c

Ba, Kiros & Hinton 2016 (arXiv 1607.06450), equation 3, with eps inside the root as in their code. The statistics of a
frame need no other frame: training and test compute the same, and padding cannot enter.
"""

from __future__ import annotations

from torch import Tensor, nn

from asrkit import StackEncoder


class LayerNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding."""

    def __init__(self, size: int, eps: float, affine: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps=eps, elementwise_affine=affine)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x).masked_fill(~mask.unsqueeze(-1), 0.0)


class LayerNormEncoder(StackEncoder):
    """The recipe's layers with layer normalization in the `norm` slot."""

    def make_norm(self, size: int) -> nn.Module:
        return LayerNorm(size, self.norm.eps, self.norm.affine)
