"""What normalization plugins are made of: exact norms of real frames, with gradients of their own.

The strategies themselves (what is averaged over what) are plugins; see plugins/asrkit_norms. Axes: B utterances, T
frames, C features; a mask (B, T) says which frames are real. Padding enters no sum, whatever it holds, and is 0 in
every output. Moments, running moments and several processes: `asrkit.normalization.moments`; norms of single frames:
`asrkit.normalization.rows`.

A norm is bound by memory, not by arithmetic. On a CPU `standardize` goes utterance by utterance over the real frames
(padding is not even read), or with moments of every step through all utterances at once (padding is read, and zeroed
after), keeps nothing but x for the backward pass, and makes no tensor of its size but the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

from asrkit.normalization.moments import (
    CACHED,
    Moments,
    alive_stretches,
    compute_type,
    masked_moments,
    of_alive,
    real_lengths,
)
from asrkit.normalization.rows import RowNorm, normalize_rows
from asrkit.processes import several

__all__ = ["Affine", "Frames", "PaddedFrames", "RowNorm", "Rule", "Standard", "normalize_rows", "standardize"]

Gains = tuple[Tensor | None, Tensor | None]


class Affine(nn.Module):
    """gain (C,) and bias (C,), shared over time, which start at `gain` and 0; None for what is not learned."""

    def __init__(self, size: int, affine: bool = True, gain: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), float(gain))) if affine else None
        self.bias = nn.Parameter(torch.zeros(size)) if affine and bias else None

    def forward(self) -> Gains:
        return self.weight, self.bias


class Standard(NamedTuple):
    """How `standardize` works: over `batch`, `step` or `utterance`; eps; `groups` of consecutive features that share
    their moments (None: each has its own); whether the moments are `joint`, of the batches of all processes."""

    over: str = "batch"
    eps: float = 1e-5
    groups: int | None = None
    joint: bool = False


class Rule(NamedTuple):
    """What `standardize` does with a batch: its arguments of the same names."""

    moments: Moments
    how: Standard
    gains: Gains
    own: Tensor | None


class Frames(Protocol):
    """Frames wherever they lie: B utterances of up to T = `length`, mask (B, T)."""

    mask: Tensor
    batch: int
    length: int

    def moments(self, over: str, *, masked: bool = True, joint: bool = False) -> Moments:
        """As `asrkit.normalization.moments.masked_moments` of them, over `batch` or `step`."""


class PaddedFrames:
    """x (B, T, C), mask (B, T)."""

    def __init__(self, x: Tensor, mask: Tensor) -> None:
        self.x, self.mask = x, mask
        self.batch, self.length = mask.shape

    def moments(self, over: str, *, masked: bool = True, joint: bool = False) -> Moments:
        """See `asrkit.normalization.moments.masked_moments`."""
        return masked_moments(self.x, self.mask, over, masked=masked, joint=joint)


def standardize(
    x: Tensor, mask: Tensor, moments: Moments, how: Standard, gains: Gains = (None, None), own: Tensor | None = None
) -> Tensor:
    """y (B, T, C) = gain (x - mean) / sqrt(var + eps) + bias on real frames, 0 in the padding.

    moments: (1, 1, C), (1, T or more, C) or (B, 1, C), as `how.over` says. own, in the shape of moments.frames: 1 where
    they were computed from this x, so that gradients flow through them, 0 where they are constants (running averages);
    None: all constants. gains: (gain, bias), each (C,) or None. Statistics and gradients are float32 for a smaller x.
    """
    mean, var = (m.to(compute_type(x)) for m in moments[:2])
    rstd = torch.rsqrt(var + how.eps)
    share = None if own is None else own / moments.frames.clamp(min=1)
    if torch.jit.is_tracing():  # a trace shows formulas, not functions of ours, and is never trained
        return _formula(x, mean, rstd, gains).masked_fill(~mask.unsqueeze(-1), 0.0)
    return _Standardize.apply(x, *gains, mask, mean, rstd, share, how)  # type: ignore[no-any-return,no-untyped-call]


class _Standardize(torch.autograd.Function):
    """The formula as y = scale x + shift, differentiated through mean and variance where they are x's own.

    With n frames behind a mean, xhat the output without gain and bias, and g the incoming gradient times gain, the
    chain rule gives dx = (g - own (sum g + xhat sum(g xhat)) / n) / sqrt(var + eps)   (Ioffe & Szegedy 2015,
    section 3); the sums go over all frames that share a mean, wherever they are. `share` = own / n.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mask: Tensor,
        mean: Tensor,
        rstd: Tensor,
        share: Tensor | None,
        how: Standard,
    ) -> Tensor:
        if how.over == "step":  # of all processes together there may be more steps than here
            mean, rstd = mean[:, : x.shape[1]], rstd[:, : x.shape[1]]
        ctx.lengths, ctx.how = real_lengths(x, mask), how
        ctx.save_for_backward(x, mask, weight, mean, rstd, share)
        if ctx.lengths is None:
            return _formula(x, mean, rstd, (weight, bias)).masked_fill_(~mask.unsqueeze(-1), 0.0).to(x.dtype)
        scale, shift = _line(mean, rstd, (weight, bias))
        y = x.new_empty(x.shape)
        for piece in _pieces(ctx.lengths, how.over, x.shape[2]):
            _line_into(y[piece], x[piece], _of(scale, piece), _of(shift, piece))
        return _zero_padding(y, ctx.lengths)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, weight, mean, rstd, share = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        through = for_x and share is not None
        dx = dweight = dbias = line = None
        if through or for_weight or for_bias:
            sums = _sums(g, x, mask, mean, rstd, ctx.how.over, ctx.lengths)
            dbias, dweight = sums.sum((1, 2))
        if for_x:
            if through:
                by_mean, by_var = shared(sums if weight is None else sums * weight, share, ctx.how)
                slope = rstd.square().mul_(by_var).neg_()
                line = slope, torch.addcmul(rstd * by_mean, slope, mean).neg_()
            dx = _to_input(g, x, mask, rstd if weight is None else rstd * weight, line, ctx.how.over, ctx.lengths)
        return dx, dweight if for_weight else None, dbias if for_bias else None, None, None, None, None, None


def _formula(x: Tensor, mean: Tensor, rstd: Tensor, gains: Gains) -> Tensor:
    weight, bias = gains
    centred, scale = x - mean, rstd if weight is None else rstd * weight
    return centred * scale if bias is None else torch.addcmul(bias, centred, scale)


def _line(mean: Tensor, rstd: Tensor, gains: Gains) -> tuple[Tensor, Tensor]:
    """scale and shift of y = scale x + shift."""
    weight, bias = gains
    scale = rstd if weight is None else rstd * weight
    return scale, -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)


def _pieces(lengths: list[int], over: str, size: int) -> list[tuple[int | slice, slice]]:
    """Pieces x[who, when] that hold all real frames. An utterance each; with moments of every step all utterances in a
    stretch of time, so that its moments are read from the cache, and of padding what lies between."""
    if over != "step":
        return [(i, slice(n)) for i, n in enumerate(lengths)]
    steps = max(1, CACHED // (len(lengths) * size))
    return [(slice(None), slice(t, t + steps)) for t in range(0, max(lengths), steps)]


def _of(moment: Tensor, piece: tuple[int | slice, slice]) -> Tensor:
    """What a piece has of a (1, 1, C), (1, T, C) or (B, 1, C)."""
    who, when = piece
    return moment[who if moment.shape[0] > 1 else 0, when]


def _zero_padding(x: Tensor, lengths: list[int]) -> Tensor:
    for i, n in enumerate(lengths):
        x[i, n:] = 0.0
    return x


def _line_into(out: Tensor, rows: Tensor, scale: Tensor, shift: Tensor) -> None:
    if out.dtype == scale.dtype:
        torch.addcmul(shift, rows, scale, out=out)
    else:
        out.copy_(torch.addcmul(shift, rows.to(scale.dtype), scale))


def _sums(
    g: Tensor, x: Tensor, mask: Tensor, mean: Tensor, rstd: Tensor, over: str, lengths: list[int] | None
) -> Tensor:
    """sum g and sum(g xhat), stacked: (2, 1, T, C) per step, else (2, B, 1, C), each utterance by itself."""
    if lengths is None:
        return _masked_sums(g, x, mask, mean, rstd, dim=0 if over == "step" else 1)
    if over == "step":
        sums = mean.new_zeros(2, 1, *x.shape[1:])
        for stretch, alive in alive_stretches(lengths, x.shape[2]):
            of_g, of_x = (of_alive(m, stretch, alive).to(mean.dtype) for m in (g, x))
            torch.sum(of_g, 0, out=sums[0, 0, stretch])
            torch.sum((of_x - mean[0, stretch]).mul_(of_g), 0, out=sums[1, 0, stretch]).mul_(rstd[0, stretch])
        return sums
    sums = mean.new_zeros(2, x.shape[0], 1, x.shape[2])
    for i, n in enumerate(lengths):
        if n:
            rows = (m[i, :n].to(mean.dtype).contiguous() for m in (g, x))
            sums[:, i, 0] = _column_sums(*rows, *(_of(m, (i, slice(n)))[0] for m in (mean, rstd)))
    return sums


def _column_sums(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """sum g and sum(g xhat) over the rows of g and x (N, K), mean and rstd (K,) -> (2, K).

    Torch's own batch norm finds the two in one pass on its way to its gradient, which is not asked for.
    """
    _, with_xhat, alone = torch.ops.aten.native_batch_norm_backward(
        g, x, None, None, None, mean, rstd, True, 0.0, [False, True, True]
    )
    return torch.stack([alone, with_xhat])


def _masked_sums(g: Tensor, x: Tensor, mask: Tensor, mean: Tensor, rstd: Tensor, dim: int) -> Tensor:
    padding = ~mask.unsqueeze(-1)
    g = g.to(mean.dtype).masked_fill(padding, 0.0)
    with_xhat = (x - mean).mul_(rstd).masked_fill_(padding, 0.0).mul_(g)
    return torch.stack([g.sum(dim, keepdim=True), with_xhat.sum(dim, keepdim=True)])


def shared(sums: Tensor, share: Tensor, how: Standard) -> Tensor:
    """The sums over all frames that share a mean, times own / n: (2, *the shape of a moment)."""
    steps = sums.shape[2]
    if how.over == "batch":
        sums = sums.sum(1, keepdim=True)
    if how.joint and how.over != "utterance" and several():
        sums = F.pad(sums, (0, 0, 0, share.shape[1] - steps if how.over == "step" else 0)).contiguous()
        distributed.all_reduce(sums)
    sums = (sums * share)[:, :, :steps]
    if how.groups is None:
        return sums
    return sums.unflatten(-1, (how.groups, -1)).mean(-1, keepdim=True).expand(
        -1, -1, -1, -1, sums.shape[-1] // how.groups
    ).flatten(-2)  # fmt: skip


def _to_input(
    g: Tensor,
    x: Tensor,
    mask: Tensor,
    scale: Tensor,
    line: tuple[Tensor, Tensor] | None,
    over: str,
    lengths: list[int] | None,
) -> Tensor:
    """dx = scale g + slope x + intercept on real frames, 0 in the padding; line = (slope, intercept)."""
    if lengths is None:
        dx = g * scale
        if line is not None:
            dx.add_(torch.addcmul(line[1], x.to(scale.dtype), line[0]))
        return dx.masked_fill_(~mask.unsqueeze(-1), 0.0).to(x.dtype)
    dx = x.new_empty(x.shape)
    for piece in _pieces(lengths, over, x.shape[2]):
        rows, out, slope = g[piece], dx[piece], _of(scale, piece)
        exact = out if out.dtype == scale.dtype else torch.empty_like(out, dtype=scale.dtype)
        if line is None:
            torch.mul(rows, slope, out=exact)
        else:
            _line_into(exact, x[piece], *(_of(part, piece) for part in line))
            exact.addcmul_(rows, slope)
        if exact is not out:
            out.copy_(exact)
    return _zero_padding(dx, lengths)
