"""`sequence_batch_norm`: every feature by its mean and variance over all real frames of the batch.

    n = sum_i T_i,   mu_c = 1/n sum_i sum_{t < T_i} x_itc,   var_c = 1/n sum_i sum_{t < T_i} (x_itc - mu_c)^2
    y_itc = gain_c (x_itc - mu_c) / sqrt(var_c + eps) + bias_c

Laurent et al. 2015 (arXiv 1510.01378), sequence-wise normalization: n counts unpadded frames only. At test time running
averages, weighted by the number of frames behind them, stand in for mu and var. With several processes the batch is
that of all of them.

In a recurrence (`step`) the batch is what is alive at a step, since a later step's states do not exist yet: statistics
of its own for every step, one set of running averages for all of them, updated once per batch. A step with one live
utterance has variance 0 and uses the running averages. `norm.masked: false` counts the padding as zeros, as most
toolkits do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.encoders import NormOptions
from asrkit.normalization import Affine, Frames, PaddedFrames, Rule, Standard, standardize
from asrkit.normalization.moments import RunningMoments, masked_moments, or_stored


class SequenceBatchNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding."""

    scope = "sequence"
    per_feature = order_free = True

    def __init__(self, size: int, options: NormOptions) -> None:
        super().__init__()
        self.masked = options.masked
        self.how = Standard("batch", options.eps, joint=True)
        self.running = RunningMoments(size, options.momentum)
        self.affine = Affine(size, options.affine, options.gain)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return standardize(x, mask, *self.rule(PaddedFrames(x, mask)))

    def rule(self, frames: Frames) -> Rule:
        """Takes a batch in; how it is normalized."""
        if not self.training:
            return Rule(self.running.constant(), self.how, self.affine(), None)
        moments = frames.moments("batch", masked=self.masked, joint=True)
        self.running.update(moments)
        return Rule(moments, self.how, self.affine(), torch.ones_like(moments.frames))

    def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
        """x (B, C), mask (B,) -> (B, C) at step t of a recurrence."""
        x, mask = x.unsqueeze(1), mask.unsqueeze(1)
        if not self.training:
            return self(x, mask).squeeze(1)  # type: ignore[no-any-return]
        batch = masked_moments(x, mask, "batch", masked=self.masked, joint=True)
        self.running.update(batch, fade=t == 0)
        moments, own = or_stored(batch, self.running.current())
        return standardize(x, mask, moments, self.how, self.affine(), own).squeeze(1)


class SequenceBatchNormEncoder(StackEncoder):
    """The recipe's layers with sequence-wise batch normalization in the `norm` slot."""

    batch_statistics = True

    def make_norm(self, size: int) -> nn.Module:
        return SequenceBatchNorm(size, self.norm)
