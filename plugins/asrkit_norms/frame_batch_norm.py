"""`frame_batch_norm`: every feature at every time step by its mean and variance over the utterances still alive there.

    n_t = #{i: T_i > t},   mu_tc = 1/n_t sum_{i: T_i > t} x_itc,   var_tc = 1/n_t sum_{i: T_i > t} (x_itc - mu_tc)^2
    y_itc = gain_c (x_itc - mu_tc) / sqrt(var_tc + eps) + bias_c        (gain and bias are shared over time)

Laurent et al. 2015 (arXiv 1510.01378), frame-wise normalization; in a recurrence (`step`) Cooijmans et al. 2016 (arXiv
1603.09025). With several processes the batch is that of all of them. What the papers leave open is settled so:

* A step with one live utterance has variance 0. In training it is normalized with running statistics instead (as
  constants, this batch included), and counted.
* Running statistics are kept per step, with the number of frames behind them. A step with fewer than `min_count`
  frames, and every step beyond the longest clip seen, uses one pooled tail: the last steps that together hold
  8 `min_count` frames.
* `norm.masked: false` counts the padding as zeros, as most toolkits do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.encoders import NormOptions
from asrkit.errors import RecipeError
from asrkit.normalization import Affine, Frames, PaddedFrames, Rule, Standard, standardize
from asrkit.normalization.moments import Moments, RunningMoments, masked_moments, or_stored, pool

TAIL = 8  # the pooled tail rests on this many times `min_count` frames, where training has seen as many


class FrameBatchNorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding. `fallback_share`: of the last batch's frames, in
    training those at steps with one live utterance, at test time those on the pooled tail."""

    scope = "step"
    per_feature = True

    def __init__(self, size: int, options: NormOptions) -> None:
        super().__init__()
        self.options = options
        self.how = Standard("step", options.eps, joint=True)
        self.running = RunningMoments(size, options.momentum, steps=options.max_steps)
        self.affine = Affine(size, options.affine, options.gain)
        self._served: list[Tensor | float] = [0.0, 0.0]  # frames on the fallback, all frames
        self._at_test: tuple[Moments, Tensor] | None = None  # of all stored steps, while a recurrence runs over them

    @property
    def fallback_share(self) -> float:
        fallback, frames = map(float, self._served)
        return fallback / max(1.0, frames)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return standardize(x, mask, *self.rule(PaddedFrames(x, mask)))

    def rule(self, frames: Frames) -> Rule:
        """Takes a batch in; how it is normalized."""
        if not self.training:
            moments, tail = self.statistics(frames.length)
            self._count(frames.mask, tail, first=True)
            return Rule(moments, self.how, self.affine(), None)
        batch = frames.moments("step", masked=self.options.masked, joint=True)
        self._refuse_batch_of_one(frames.batch, batch)
        self._update(batch)
        moments, own = batch, torch.ones_like(batch.frames)
        few = (batch.frames[0, :, 0] < 2).nonzero()
        if len(few):
            moments, own = self._or_running(batch, int(few[0]))
        self._count(frames.mask, own == 0, first=True)
        return Rule(moments, self.how, self.affine(), own)

    def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
        """x (B, C), mask (B,) -> (B, C) at step t of a recurrence; running statistics are those of step t."""
        x, mask, last = x.unsqueeze(1), mask.unsqueeze(1), self.options.max_steps - 1
        own = None
        if self.training:
            self._at_test = None
            batch = masked_moments(x, mask, "batch", masked=self.options.masked, joint=True)
            if t == 0:
                self._refuse_batch_of_one(x.shape[0], batch)
            self.running.update(batch, first=min(t, last), fade=t <= last)
            moments, own = batch, torch.ones_like(batch.frames)
            if bool(batch.frames < 2):
                moments, own = or_stored(batch, self.statistics(1, first=t)[0])
            fallback = own == 0
        else:
            if t == 0 or self._at_test is None:
                self._at_test = self.statistics(last + 1)
            now = slice(min(t, last), min(t, last) + 1)
            moments, fallback = Moments(*(m[:, now] for m in self._at_test[0])), self._at_test[1][:, now]
        self._count(mask, fallback, first=t == 0)
        return standardize(x, mask, moments, self.how._replace(over="batch"), self.affine(), own).squeeze(1)

    def _or_running(self, batch: Moments, first: int) -> tuple[Moments, Tensor]:
        """The batch's moments (1, T, C), from step `first` on only where they rest on 2 frames or more, else the
        running ones; and own (1, T, 1): 1 where the batch's."""
        rest = Moments(*(m[:, first:] for m in batch))
        moments, own = or_stored(rest, self.statistics(batch.frames.shape[1] - first, first)[0])
        ours = batch.frames.new_ones(1, first, 1)
        joined = (torch.cat([m[:, :first], late], 1) for m, late in zip(batch, moments, strict=True))
        return Moments(*joined), torch.cat([ours, own], 1)

    def statistics(self, steps: int, first: int = 0) -> tuple[Moments, Tensor]:
        """Running moments (1, T, C) of T = `steps` from `first` on, and which of them are on the tail (1, T, 1)."""
        stored = self.running.current()
        index = torch.arange(first, first + steps, device=stored.mean.device).clamp(max=self.options.max_steps - 1)
        mean, var, count = (m[:, index] for m in stored)
        rare = count < self.options.min_count
        if torch.jit.is_tracing() or bool(rare.any()):  # the trace must hold for longer clips too
            tail = self._tail()
            mean, var = torch.where(rare, tail.mean, mean), torch.where(rare, tail.var, var)
        return Moments(mean, var, count), rare

    def _tail(self) -> Moments:
        """Pooled moments (1, 1, C) of the last steps that together hold TAIL * min_count frames."""
        count = self.running.count[:, 0]
        later = count.flip(0).cumsum(0).flip(0) - count  # frames behind all later steps
        rows = ((later < TAIL * self.options.min_count) & (count > 0)).nonzero()[:, 0]
        if rows.numel() == 0:  # nothing seen yet: the neutral statistics that the buffers start with
            return Moments(*(m[:, :1] for m in self.running.current()))
        return pool(Moments(*(m[0, rows].unsqueeze(1) for m in self.running.current())))

    def _update(self, batch: Moments) -> None:
        """Every step to its own row, those beyond the storage together to the last."""
        last = self.options.max_steps - 1
        self.running.update(Moments(*(m[:, :last] for m in batch)))
        if batch.frames.shape[1] > last:
            self.running.update(pool(Moments(*(m[0, last:].unsqueeze(1) for m in batch))), first=last)

    def _count(self, mask: Tensor, fallback: Tensor, first: bool) -> None:
        alive = mask.sum(0)
        served = [(alive * fallback[0, : mask.shape[1], 0]).sum(), alive.sum()]
        self._served = [new if first else old + new for old, new in zip(self._served, served, strict=True)]

    def _refuse_batch_of_one(self, utterances: int, batch: Moments) -> None:
        if utterances > 1 or self.options.allow_batch_of_one or bool(self.running.count.any()):
            return
        if bool((batch.frames > 1).any()):  # of several processes, each with a batch of one
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
