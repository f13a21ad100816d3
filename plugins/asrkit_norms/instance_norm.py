"""`instance_norm`: every utterance and feature by its mean and variance over the utterance's real frames.

    mu_ic = 1/T_i sum_{t < T_i} x_itc,   var_ic = 1/T_i sum_{t < T_i} (x_itc - mu_ic)^2
    y_itc = gain_c (x_itc - mu_ic) / sqrt(var_ic + eps) + bias_c

Ulyanov et al. 2016 (arXiv 1607.08022), with time in the place of the image. Training and test compute the same. A
single frame has no variance over time: an utterance of one frame gives bias_c, and inside a recurrence, which sees one
frame at a time, there is nothing to compute (RecipeError, reason `placement`). `norm.masked: false` counts the padding
as zeros, as most toolkits do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.encoders import NormOptions
from asrkit.normalization import Affine, Standard, standardize
from asrkit.normalization.moments import masked_moments


class InstanceNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding."""

    scope = "utterance"
    per_feature = order_free = True
    # So that a recipe is refused when the layer is built, and not at its first batch.
    refuses_recurrence = "instance_norm: one frame has no variance over time"

    def __init__(self, size: int, options: NormOptions) -> None:
        super().__init__()
        self.options = options
        self.affine = Affine(size, options.affine, options.gain)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        options = self.options
        moments = masked_moments(x, mask, "utterance", masked=options.masked, joint=self.training)
        # A single frame: 1 / sqrt(inf) = 0, exactly, where 1 / sqrt(0 + eps) would enlarge rounding errors.
        moments = moments._replace(var=moments.var.masked_fill(moments.frames < 2, torch.inf))
        how = Standard("utterance", options.eps)
        return standardize(x, mask, moments, how, self.affine(), own=torch.ones_like(moments.frames))


class InstanceNormEncoder(StackEncoder):
    """The recipe's layers with instance normalization over time in the `norm` slot."""

    def make_norm(self, size: int) -> nn.Module:
        return InstanceNorm(size, self.norm)
