"""`group_norm`: every utterance and group of consecutive features by its mean and variance over group and real frames.

    n_i = T_i C/G,   mu_ig = 1/n_i sum_{t < T_i} sum_{c in g} x_itc,   var_ig = 1/n_i sum sum (x_itc - mu_ig)^2
    y_itc = gain_c (x_itc - mu_ig) / sqrt(var_ig + eps) + bias_c        with c in g, G = norm.groups

Wu & He 2018 (arXiv 1803.08494), section 3, with time in the place of the image. No statistics of other utterances, so
training and test compute the same. In a recurrence each frame is a sequence of one: the group's features are averaged.
`norm.masked: false` counts the padding as zeros, as most toolkits do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.encoders import NormOptions
from asrkit.errors import RecipeError
from asrkit.normalization import Affine, Standard, standardize
from asrkit.normalization.moments import grouped, masked_moments


class GroupNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding."""

    scope = "group"
    order_free = True

    def __init__(self, size: int, options: NormOptions) -> None:
        super().__init__()
        if size % options.groups:
            divisors = [n for n in range(1, size + 1) if size % n == 0]
            raise RecipeError(
                f"norm.groups = {options.groups} does not divide the {size} features of a norm",
                possible=", ".join(map(str, divisors)),
                fix=f"set norm.groups, for example to {max(n for n in divisors if n <= options.groups)}",
                reason="groups",
            )
        if size == options.groups:
            self.refuses_recurrence = "group_norm: groups of one feature have no variance"
        self.options = options
        self.affine = Affine(size, options.affine, options.gain)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        options = self.options
        moments = masked_moments(x, mask, "utterance", masked=options.masked, joint=self.training)
        how = Standard("utterance", options.eps, options.groups)
        own = torch.ones_like(moments.frames)
        return standardize(x, mask, grouped(moments, options.groups), how, self.affine(), own)


class GroupNormEncoder(StackEncoder):
    """The recipe's layers with group normalization in the `norm` slot."""

    def make_norm(self, size: int) -> nn.Module:
        return GroupNorm(size, self.norm)
