"""`frame_batch_norm`: every feature at every time step by its mean and variance over the utterances still alive there.

    n_t = #{i: T_i > t},   mu_tc = 1/n_t sum_{i: T_i > t} x_itc,   var_tc = 1/n_t sum_{i: T_i > t} (x_itc - mu_tc)^2
    y_itc = gain_c (x_itc - mu_tc) / sqrt(var_tc + eps) + bias_c        (gain and bias are shared over time)

Laurent et al. 2015 (arXiv 1510.01378), frame-wise normalization. What the paper leaves open is settled so:

* A step with one live utterance has variance 0. In training it is normalized with running statistics instead, and
counted.
* Running statistics are kept per step, with the number of frames behind them. A step with fewer than `min_count`
frames,
  and every step beyond the longest clip seen, uses one pooled tail: the last steps that together hold 8 `min_count`
  frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.encoders import NormOptions
from asrkit.errors import RecipeError
from asrkit.normalization import Affine, RunningMoments, masked_moments, normalize

TAIL = 8  # the pooled tail rests on this many times `min_count` frames, where training has seen as many


class FrameBatchNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding. `fallback_share`: of the last batch's frames, in
    training those at steps with one live utterance, at test time those on the pooled tail."""

    def __init__(self, size: int, options: NormOptions) -> None:
        super().__init__()
        self.options = options
        self.running = RunningMoments(size, options.momentum, steps=options.max_steps)
        self.affine = Affine(size, options.affine)
        self.fallback_share = 0.0

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        real = x.float() if x.dtype.itemsize < 4 else x
        real = real.masked_fill(~mask.unsqueeze(-1), 0.0)
        alive = mask.sum(0).unsqueeze(-1).to(real.dtype)
        if self.training:
            self._refuse_batch_of_one(x)
            mean, var, count = masked_moments(real, mask, per_step=True)
            self._update(mean, var, count)
            own = (count >= 2).to(real.dtype)
            if not bool((own > 0).all()):
                stored_mean, stored_var, _ = self.statistics(x.shape[1])
                mean = torch.where(own > 0, mean, stored_mean)
                var = torch.where(own > 0, var, stored_var)
            fallback = 1 - own
        else:
            mean, var, tail = self.statistics(x.shape[1])
            count, own, fallback = alive, torch.zeros_like(alive), tail.to(real.dtype)
        self.fallback_share = float((fallback * alive).sum() / alive.sum().clamp(min=1))
        xhat = normalize(real, mask, mean, var, self.options.eps, count=count, own=own)
        return self.affine(xhat, mask).to(x.dtype)

    def statistics(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Running mean and variance (T, C) for T = `steps`, and which steps are on the pooled tail (T, 1)."""
        running, limit = self.running, self.options.max_steps
        index = torch.arange(steps, device=running.mean.device).clamp(max=limit - 1)
        mean, var, count = running.mean[index], running.var[index], running.count[index]
        rare = count < self.options.min_count
        tail_mean, tail_var = self._tail()
        return torch.where(rare, tail_mean, mean), torch.where(rare, tail_var, var), rare

    def _tail(self) -> tuple[Tensor, Tensor]:
        """Pooled mean and variance (C,) of the last steps that together hold TAIL * min_count frames."""
        running = self.running
        later = running.count.flip(0).cumsum(0).flip(0) - running.count  # frames behind all later steps
        weight = torch.where(later < TAIL * self.options.min_count, running.count, torch.zeros_like(running.count))
        total = weight.sum()
        if total == 0:  # nothing seen yet: the neutral statistics that the buffers start with
            return running.mean[0], running.var[0]
        mean = (weight * running.mean).sum(0) / total
        return mean, (weight * (running.var + (running.mean - mean).square())).sum(0) / total

    def _update(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        last = self.options.max_steps - 1
        self.running.update(mean[:last], var[:last], count[:last])
        if mean.shape[0] > last:
            self.running.update_pooled(last, mean[last:], var[last:], count[last:])

    def _refuse_batch_of_one(self, x: Tensor) -> None:
        if x.shape[0] > 1 or self.options.allow_batch_of_one or bool(self.running.count.any()):
            return
        raise RecipeError(
            "frame_batch_norm got a batch of one utterance before any larger one: it has no statistics over utterances",
            possible="batches of at least 2 utterances (better 8), or another encoder",
            fix="raise training.batch_size or training.batch_frames, or set norm.allow_batch_of_one=true to train on "
            "running statistics alone",
            reason="batch_of_one",
        )


class FrameBatchNormEncoder(StackEncoder):
    """The recipe's layers with frame-wise batch normalization in the `norm` slot."""

    batch_statistics = True

    def make_norm(self, size: int) -> nn.Module:
        return FrameBatchNorm(size, self.norm)
