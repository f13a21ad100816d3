"""Means and variances of real frames: exact, in one reading of the data, over several processes where there are some.

Axes: B utterances, T frames, C features; a mask (B, T) says which frames are real, and no padding enters a sum. Moments
keep the axes of x, with length 1 where they are averaged over: `batch` (1, 1, C), `step` (1, T, C), `utterance`
(B, 1, C).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from asrkit.processes import largest, several

# A mean of so many rows in a row is exact to rounding in float32; longer runs are pooled in float64.
_ROWS = 64
# Numbers per utterance from which its real frames are worth a call of their own; smaller batches are masked whole.
_WORTH = 1 << 13
# Numbers that a core's cache holds together with what is computed from them.
CACHED = 1 << 18


class Moments(NamedTuple):
    """Mean and biased variance, and the number of frames behind them (axis C of length 1), in the shapes above."""

    mean: Tensor
    var: Tensor
    frames: Tensor


def compute_type(x: Tensor) -> torch.dtype:
    """What statistics of x are computed in: float32 for anything smaller."""
    return torch.promote_types(x.dtype, torch.float32)


def real_lengths(x: Tensor, mask: Tensor) -> list[int] | None:
    """Real frames per utterance, where x (B, T, C) is best taken utterance by utterance: on a CPU, real frames first,
    and enough of them; else None."""
    if x.device.type != "cpu" or torch.jit.is_tracing() or x.numel() < _WORTH * max(1, x.shape[0]):
        return None
    lengths = mask.sum(1)
    if not torch.equal(mask, torch.arange(mask.shape[1]) < lengths.unsqueeze(1)):
        return None
    return lengths.tolist()  # type: ignore[no-any-return]


def alive_stretches(lengths: list[int], size: int) -> list[tuple[slice, list[int]]]:
    """Stretches of time in which the same utterances are alive, and which: no padding in any of them, none skipped.

    Each holds about as many numbers as a core's cache; size: features per frame.
    """
    found: list[tuple[slice, list[int]]] = []
    start = 0
    for end in sorted(set(lengths) - {0}):
        alive = [i for i, n in enumerate(lengths) if n >= end]
        steps = max(1, CACHED // (len(alive) * size))
        found += [(slice(t, min(t + steps, end)), alive) for t in range(start, end, steps)]
        start = end
    return found


def of_alive(x: Tensor, steps: slice, alive: list[int]) -> Tensor:
    """(N, S, C): what the N utterances alive have of x (B, T, C) in S steps; where all are alive, a view."""
    return x[:, steps] if len(alive) == x.shape[0] else torch.stack([x[i, steps] for i in alive])


def masked_moments(x: Tensor, mask: Tensor, over: str, *, masked: bool = True, joint: bool = False) -> Moments:
    """Moments of x (B, T, C) over `batch`, `step` or `utterance`; mask (B, T). Groups without frames: 0, 0, 0.

    Not `masked`: every frame of the padded batch counts, the padding as zeros (the usual mistake, on purpose). `joint`:
    those of all processes' batches taken together, as one batch padded to the longest; per step, that many steps come
    back. No gradient flows here; `normalization.standardize` knows it.
    """
    x = x.detach()
    lengths = real_lengths(x, mask)
    if over == "step":
        moments = _masked(x, mask, 0) if lengths is None else _per_step(x, lengths)
    elif lengths is not None:
        moments = _per_utterance(x, lengths, together=over == "batch")
    else:
        one = over == "batch"  # all frames one after the other, as of one utterance
        moments = _masked(x.reshape(1, -1, x.shape[2]), mask.reshape(1, -1), 1) if one else _masked(x, mask, 1)
    return finished(moments, over, mask, masked, joint)


def finished(moments: Moments, over: str, mask: Tensor, masked: bool, joint: bool) -> Moments:
    """What `masked_moments` makes of the real frames' moments: its last two options."""
    frames = mask.shape[1]
    if joint and (over == "step" or not masked):
        frames = largest(frames, mask.device)
    if over == "step":
        moments = Moments(*(nn.functional.pad(m, (0, 0, 0, frames - mask.shape[1])) for m in moments))
        frames = mask.shape[0]
    if not masked:
        moments = _with_zeros(moments, frames * mask.shape[0] if over == "batch" else frames)
    return over_processes(moments) if joint and over != "utterance" else moments


def pool(moments: Moments) -> Moments:
    """The first axis taken together (Chan, Golub & LeVeque 1979), leaving it with length 1."""
    kind = moments.mean.dtype
    # Not every accelerator has float64, and there the first axis is short.
    mean, var, count = (m.double() if m.device.type == "cpu" else m for m in moments)
    total = count.sum(0, keepdim=True)
    share = count / total.clamp(min=torch.finfo(total.dtype).tiny)
    pooled = (share * mean).sum(0, keepdim=True)
    spread = (mean - pooled).square_().add_(var).mul_(share).sum(0, keepdim=True)
    return Moments(pooled.to(kind), spread.to(kind), total.to(kind))


def over_processes(moments: Moments) -> Moments:
    """Moments of all processes taken together; the same numbers, to the bit, on each of them."""
    if not several():
        return moments
    mine = torch.cat(moments, -1).contiguous()
    all_of_them = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(all_of_them, mine)
    mean, var, frames = torch.cat(all_of_them).split([m.shape[-1] for m in moments], -1)
    return pool(Moments(mean, var, frames))


def grouped(moments: Moments, groups: int) -> Moments:
    """(B, 1, C) with the C/groups consecutive features of every group taken together; each has the group's moments."""
    mean, var = (m.unflatten(-1, (groups, -1)) for m in moments[:2])
    centre = mean.mean(-1, keepdim=True)
    spread = (var + (mean - centre).square()).mean(-1, keepdim=True)
    return Moments(centre.expand_as(mean).flatten(-2), spread.expand_as(mean).flatten(-2), moments.frames)


def or_stored(batch: Moments, stored: Moments) -> tuple[Moments, Tensor]:
    """The batch's moments where they rest on 2 frames or more, else the stored ones; and own: 1 where the batch's."""
    own = batch.frames >= 2
    mean, var = (torch.where(own, ours, theirs) for ours, theirs in zip(batch[:2], stored[:2], strict=True))
    return Moments(mean, var, batch.frames), own.to(batch.frames.dtype)


def merge_moments(
    mean: Tensor, var: Tensor, count: Tensor, mean2: Tensor, var2: Tensor, count2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of two groups of frames taken together (Chan, Golub & LeVeque 1979); biased variances, any weights >=
    0."""
    total = count + count2
    share = count2 / total.clamp(min=torch.finfo(total.dtype).tiny)
    delta = mean2 - mean
    return mean + share * delta, var + share * (var2 - var) + (share * (1 - share)) * delta.square(), total


def _with_zeros(moments: Moments, frames: int) -> Moments:
    """With zeros added until every count is `frames`."""
    zeros = torch.zeros_like(moments.mean)
    return Moments(*merge_moments(*moments, zeros, zeros, frames - moments.frames))


def _per_utterance(x: Tensor, lengths: list[int], together: bool) -> Moments:
    """Some rows at a time by the kernel of torch's batch norm; then the parts of an utterance, or of the whole batch
    (`together`), are pooled in float64: a float32 sum over many rows is not exact enough."""
    kind, size = compute_type(x), x.shape[2]
    start = x.new_zeros(size, dtype=kind)
    parts, owners, counts = [start, start], [0], [0.0]  # mean, variance, mean, variance, ...
    for i, n in enumerate(lengths):
        for rows in x[i, :n].to(kind).contiguous().split(_ROWS) if n else ():
            parts += torch.batch_norm_update_stats(rows, None, None, 0.0)
            owners.append(0 if together else i)
            counts.append(float(rows.shape[0]))
    owner, count = torch.tensor(owners), torch.tensor(counts, dtype=torch.float64).unsqueeze(1)
    # Row by row and no product with a matrix of shares: there 0 times one utterance's NaN would be NaN for all.
    nothing = torch.zeros(1 if together else len(lengths), size, dtype=torch.float64)
    frames = nothing[:, :1].index_add(0, owner, count)
    share = count / frames.clamp(min=1)[owner]
    mean, var = torch.stack(parts).view(-1, 2, size).double().unbind(1)
    pooled = nothing.index_add(0, owner, share * mean)
    spread = nothing.index_add(0, owner, mean.sub_(pooled[owner]).square_().add_(var).mul_(share))
    return Moments(*(m.to(kind).unsqueeze(1) for m in (pooled, spread, frames)))


def _per_step(x: Tensor, lengths: list[int]) -> Moments:
    """A stretch of time at a time, so that what is centred is still in the cache when it is squared."""
    kind, (_, steps, size) = compute_type(x), x.shape
    mean, var = x.new_zeros(2, steps, size, dtype=kind)
    frames = x.new_zeros(steps, 1, dtype=kind)
    for stretch, alive in alive_stretches(lengths, size):
        rows = of_alive(x, stretch, alive).to(kind)
        torch.mean(rows, 0, out=mean[stretch])
        torch.mean((rows - mean[stretch]).square_(), 0, out=var[stretch])
        frames[stretch] = len(alive)
    return Moments(*(m.unsqueeze(0) for m in (mean, var, frames)))


def _masked(x: Tensor, mask: Tensor, dim: int) -> Moments:
    """Over one axis, with whole tensors: the way that needs no look at the mask."""
    real = mask.unsqueeze(-1)
    x = x.to(compute_type(x)).masked_fill(~real, 0.0)
    count = real.sum(dim, keepdim=True).to(x.dtype)
    mean = x.sum(dim, keepdim=True) / count.clamp(min=1)
    spread = (x - mean).masked_fill_(~real, 0.0).square_()
    return Moments(mean, spread.sum(dim, keepdim=True) / count.clamp(min=1), count)


class RunningMoments(nn.Module):
    """Averages for test time, weighted by real frames: what lies k batches back weighs (1 - momentum)^k of its frames.

    `mean`, `var` (*shape, C) and `count` (*shape, 1). Before the first update they are 0, 1 and 0. The variance is that
    of all frames in the window (within and between batches), so that small batches do not shrink it. An entry that a
    batch does not reach, or only with NaN or infinity, keeps what it has.
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

    def current(self) -> Moments:
        """As moments that fit x (B, T, C): (1, 1, C), or (1, steps, C) with per-step storage."""
        return Moments(*(b.view(1, -1, b.shape[-1]) for b in (self.mean, self.var, self.count)))

    def constant(self) -> Moments:
        """`current`, and where a backward pass may use it a copy that no later `update` changes."""
        moments = self.current()
        kept = torch.is_grad_enabled() and not torch.jit.is_tracing()
        return Moments(*(m.clone() for m in moments)) if kept else moments

    @torch.no_grad()
    def update(self, moments: Moments, first: int = 0, *, fade: bool = True) -> None:
        """Take in one batch's moments (1, K, C), with per-step storage as the rows from `first` on.

        Not `fade`: they are a further part of the batch that the last update was about.
        """
        rows = slice(first, first + moments.mean.shape[1])
        old = [b.view(-1, b.shape[-1])[rows] for b in (self.mean, self.var, self.count)]
        new = [m[0] for m in moments]
        seen = (new[2] > 0) & torch.isfinite(new[0] + new[1]).all(-1, keepdim=True)
        kept = torch.where(seen, old[2] * (1 - self.momentum if fade else 1.0), old[2])
        merged = merge_moments(old[0], old[1], kept, *new)
        every = bool(seen.all())
        for buffer, value in zip(old, merged, strict=True):
            buffer.copy_(value if every else torch.where(seen, value, buffer))
