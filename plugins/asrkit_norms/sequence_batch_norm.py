"""`sequence_batch_norm`: every feature by its mean and variance over all real frames of the batch.

    n = sum_i T_i,   mu_c = 1/n sum_i sum_{t < T_i} x_itc,   var_c = 1/n sum_i sum_{t < T_i} (x_itc - mu_c)^2
    y_itc = gain_c (x_itc - mu_c) / sqrt(var_c + eps) + bias_c

Laurent et al. 2015 (arXiv 1510.01378), sequence-wise normalization: n counts unpadded frames only. At test time running
averages, weighted by the number of frames behind them, stand in for mu and var.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.normalization import Affine, RunningMoments, masked_moments, normalize


class SequenceBatchNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding."""

    def __init__(self, size: int, eps: float, affine: bool, momentum: float) -> None:
        super().__init__()
        self.eps = eps
        self.running = RunningMoments(size, momentum)
        self.affine = Affine(size, affine)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        real = x.float() if x.dtype.itemsize < 4 else x
        real = real.masked_fill(~mask.unsqueeze(-1), 0.0)
        if self.training:
            mean, var, count = masked_moments(real, mask, per_step=False)
            self.running.update(mean, var, count)
            xhat = normalize(real, mask, mean, var, self.eps, count=count)
        else:
            running = self.running
            own = torch.zeros_like(running.count)
            xhat = normalize(real, mask, running.mean, running.var, self.eps, count=running.count, own=own)
        return self.affine(xhat, mask).to(x.dtype)


class SequenceBatchNormEncoder(StackEncoder):
    """The recipe's layers with sequence-wise batch normalization in the `norm` slot."""

    batch_statistics = True

    def make_norm(self, size: int) -> nn.Module:
        return SequenceBatchNorm(size, self.norm.eps, self.norm.affine, self.norm.momentum)
