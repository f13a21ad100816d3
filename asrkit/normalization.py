"""What normalization plugins are made of: moments of real frames, an exact normalization, running moments.

The strategies themselves (what is averaged over what) are plugins; see plugins/asrkit_norms. Axes: B utterances,
T frames, C features; a mask (B, T) says which frames are real, and padding enters no sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def masked_moments(x: Tensor, mask: Tensor, *, per_step: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of the real frames, and how many they are.

    x (B, T, C), already 0 in the padding; mask (B, T). Over the batch and time: (C,), (C,), (1,); or, `per_step`, over
    the utterances still alive at each step: (T, C), (T, C), (T, 1). No gradient flows here; `normalize` knows it.
    """
    x = x.detach()
    weights = mask.to(x.dtype)
    if per_step:
        count = weights.sum(0).unsqueeze(-1)
        mean = x.sum(0) / count.clamp(min=1)
        centred = (x - mean) * weights.unsqueeze(-1)
        return mean, centred.square_().sum(0) / count.clamp(min=1), count
    count = weights.sum().reshape(1)
    rows = x.flatten(0, 1)
    mean = rows.sum(0) / count.clamp(min=1)
    centred = (rows - mean).square_()
    return mean, weights.flatten() @ centred / count.clamp(min=1), count


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) on real frames, differentiated through the mean and the variance where they are x's
    own.

    With n frames behind a mean, xhat the output and g the incoming gradient (0 in the padding), the chain rule gives
    dx = (g - own * (sum g + xhat * sum(g xhat)) / n) / sqrt(var + eps)   (Ioffe & Szegedy 2015, section 3).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, mean: Tensor, var: Tensor, count: Tensor, own: Tensor, eps: float
    ) -> Tensor:
        scale = torch.rsqrt(var + eps)
        xhat = (x - mean).mul_(scale).masked_fill_(~mask, 0.0)
        ctx.save_for_backward(xhat, mask, scale, own / count.clamp(min=1))
        ctx.per_step = mean.dim() == 2
        return xhat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        xhat, mask, scale, share = ctx.saved_tensors
        g = grads[0].masked_fill(~mask, 0.0)
        dims = (0,) if ctx.per_step else (0, 1)
        sum_g, sum_gx = g.sum(dims) * share, (g * xhat).sum(dims) * share
        g.sub_(sum_g).sub_(xhat * sum_gx).mul_(scale).masked_fill_(~mask, 0.0)
        return g, None, None, None, None, None, None


def normalize(
    x: Tensor, mask: Tensor, mean: Tensor, var: Tensor, eps: float, *, count: Tensor, own: Tensor | None = None
) -> Tensor:
    """xhat (B, T, C) = (x - mean) / sqrt(var + eps), 0 in the padding.

    mean, var: (C,) or (T, C). count: frames behind them, (1,) or (T, 1). own: 1 where they were computed from this x,
    so that gradients flow through them, 0 where they are constants (running averages); default all their own.
    """
    own = torch.ones_like(count) if own is None else own
    return _Normalize.apply(x, mask.unsqueeze(-1), mean, var, count, own, eps)


class Affine(nn.Module):
    """gain * x + bias per feature (C,), shared over time; gain starts at 1, bias at 0. Without `affine`: the
    identity."""

    def __init__(self, size: int, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size)) if affine else None
        self.bias = nn.Parameter(torch.zeros(size)) if affine else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            return x
        return torch.addcmul(self.bias, x, self.weight).masked_fill(~mask.unsqueeze(-1), 0.0)


def merge_moments(
    mean: Tensor, var: Tensor, count: Tensor, mean2: Tensor, var2: Tensor, count2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of two groups of frames taken together (Chan, Golub & LeVeque 1979); biased variances, any weights >=
    0."""
    total = count + count2
    share = count2 / total.clamp(min=torch.finfo(total.dtype).tiny)
    delta = mean2 - mean
    return mean + share * delta, var + share * (var2 - var) + share * (1 - share) * delta.square(), total


class RunningMoments(nn.Module):
    """Averages for test time, weighted by real frames: what lies k batches back weighs (1 - momentum)^k of its frames.

    `mean`, `var` (*shape, C) and `count` (*shape, 1). Before the first update they are 0, 1 and 0. The variance is that
    of all frames in the window (within and between batches), so that small batches do not shrink it. An entry that a
    batch does not reach keeps what it has.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int, momentum: float, steps: int | None = None) -> None:
        super().__init__()
        shape = (size,) if steps is None else (steps, size)
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.zeros((1,) if steps is None else (steps, 1)))

    @torch.no_grad()
    def update(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Take in one batch's moments; with per-step storage the first T rows."""
        rows = slice(None) if self.mean.dim() == 1 else slice(0, mean.shape[0])
        seen = count > 0
        kept = torch.where(seen, self.count[rows] * (1 - self.momentum), self.count[rows])
        merged = merge_moments(self.mean[rows], self.var[rows], kept, mean, var, count)
        for buffer, value in zip((self.mean, self.var, self.count), merged, strict=True):
            buffer[rows] = torch.where(seen, value, buffer[rows])

    @torch.no_grad()
    def update_pooled(self, row: int, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Take several steps' moments (K, C), counts (K, 1) together into one row."""
        total = count.sum(0).clamp(min=torch.finfo(count.dtype).tiny)
        pooled = (mean * count).sum(0) / total
        spread = ((var + (mean - pooled).square()) * count).sum(0) / total
        padded = [torch.zeros_like(t[: row + 1]) for t in (self.mean, self.var, self.count)]
        for target, value in zip(padded, (pooled, spread, count.sum(0)), strict=True):
            target[row] = value
        self.update(*padded)
