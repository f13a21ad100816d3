"""`batch_renorm`: sequence-wise batch norm, corrected towards what the running averages would give.

With mu_B, sigma_B = sqrt(var_B + eps) over all real frames of the batch, and mu, sigma the running averages of the
batches before it:

    r = clip(sigma_B / sigma, 1/r_max, r_max),   d = clip((mu_B - mu) / sigma, -d_max, d_max)   (no gradient)
    y_itc = gain_c ((x_itc - mu_Bc) / sigma_Bc r_c + d_c) + bias_c

Ioffe 2017 (arXiv 1702.03275), algorithm 1. Without the clips training would compute just what a test does. r_max grows
from 1 to `norm.renorm_r` and d_max from 0 to `norm.renorm_d` over the first `norm.renorm_warmup` updates; before
anything was seen r = 1 and d = 0. Everything else is as in `sequence_batch_norm`, `step` included: r and d of all steps
come from the averages before the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.encoders import NormOptions
from asrkit.normalization import Affine, Frames, PaddedFrames, Rule, Standard, standardize
from asrkit.normalization.moments import Moments, RunningMoments, masked_moments, or_stored


class BatchRenorm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding. `updates`: training batches seen."""

    scope = "sequence"
    per_feature = order_free = True
    updates: Tensor

    def __init__(self, size: int, options: NormOptions) -> None:
        super().__init__()
        self.options = options
        self.how = Standard("batch", options.eps, joint=True)
        self.running = RunningMoments(size, options.momentum)
        self.affine = Affine(size, options.affine, options.gain)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._before: tuple[Moments, Tensor, Tensor] | None = None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return standardize(x, mask, *self.rule(PaddedFrames(x, mask)))

    def rule(self, frames: Frames) -> Rule:
        """Takes a batch in; how it is normalized."""
        if not self.training:
            return Rule(self.running.constant(), self.how, self.affine(), None)
        batch = frames.moments("batch", masked=self.options.masked, joint=True)
        own = torch.ones_like(batch.frames)
        gains = self._corrected(batch, own, self._begin())
        self.running.update(batch)
        return Rule(batch, self.how, gains, own)

    def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
        """x (B, C), mask (B,) -> (B, C) at step t of a recurrence."""
        if not self.training:
            return self(x.unsqueeze(1), mask.unsqueeze(1)).squeeze(1)  # type: ignore[no-any-return]
        x, mask = x.unsqueeze(1), mask.unsqueeze(1)
        if t == 0 or self._before is None:
            self._before = self._begin()
        batch = masked_moments(x, mask, "batch", masked=self.options.masked, joint=True)
        self.running.update(batch, fade=t == 0)
        moments, own = or_stored(batch, self.running.current())
        return standardize(x, mask, moments, self.how, self._corrected(batch, own, self._before), own).squeeze(1)

    def _begin(self) -> tuple[Moments, Tensor, Tensor]:
        """The averages, r_max and d_max of a new batch, which is counted."""
        options = self.options
        share = (self.updates / max(1, options.renorm_warmup)).clamp(max=1.0)
        if options.renorm_warmup == 0:
            share = torch.ones_like(share)
        self.updates += 1
        before = Moments(*(m.clone() for m in self.running.current()))
        return before, 1 + share * (options.renorm_r - 1), share * options.renorm_d

    def _corrected(
        self, batch: Moments, own: Tensor, given: tuple[Moments, Tensor, Tensor]
    ) -> tuple[Tensor | None, Tensor | None]:
        """gain r and bias + gain d, where the batch's own moments are used and there is something to correct to."""
        before, r_max, d_max = given
        sigma = (before.var + self.options.eps).sqrt()
        r = ((batch.var + self.options.eps).sqrt() / sigma).clamp(1 / r_max, r_max)
        d = ((batch.mean - before.mean) / sigma).clamp(-d_max, d_max)
        known = (before.frames > 0) & (own > 0)
        r, d = (torch.where(known, t, e).flatten() for t, e in ((r, 1.0), (d, 0.0)))
        gain, bias = self.affine()
        return (r, d) if gain is None or bias is None else (gain * r, torch.addcmul(bias, gain, d))


class BatchRenormEncoder(StackEncoder):
    """The recipe's layers with batch renormalization in the `norm` slot."""

    batch_statistics = True

    def make_norm(self, size: int) -> nn.Module:
        return BatchRenorm(size, self.norm)
