"""Norms of gate sums in the layout of a scan: what `asrkit.normalization` and `asrkit.normalization.rows` do, where the
sums lie.

A norm at the gates is bound by memory. Here its input comes from the projection in the scan's order (rows (D, R, .),
see `asrkit.recurrent.scan_order`), its output goes where the scan works, and its gradient is made in the memory of the
incoming one, which the scan has made and nobody else reads. Equations: the two modules named.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.errors import RecipeError
from asrkit.normalization import Rule, Standard, shared
from asrkit.normalization.contract import rule_of
from asrkit.normalization.moments import CACHED, Moments, finished, pool
from asrkit.recurrent.placement import GroupedNorm, heard, offers
from asrkit.recurrent.projection import project
from asrkit.recurrent.row_scale import RowScale
from asrkit.recurrent.scan_order import ScanOrder


def normed_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norms: list[GroupedNorm],
    mask: Tensor,
    order: ScanOrder,
    turn: int,
    twice: Tensor,
    room: int,
) -> Tensor:
    """x (B, T, C), weight (D, G, C), bias (D, G) -> (N(x W') + bias) twice, (D, R, G + room).

    norms: of each direction, or one for all of them; they are `known`. The columns of the result are the G gates turned
    by `turn`, as are those of `twice` (G,).
    """
    each = order.directions // len(norms)
    scale = RowScale.of(norms, bias.dtype)
    if scale is not None and each == 1:
        sums = project(x, scale.centre(weight).roll(turn, 1), None, order)
        gain = None if scale.gain is None else scale.gain.roll(turn, -1)
        bias = (bias if scale.shift is None else bias + scale.shift).roll(turn, -1)
        groups = scale.groups[-1:] + scale.groups[:-1] if turn else scale.groups
        return rows_normalized(sums, gain, bias, twice, groups, scale.eps, room)
    sums = project(x, weight.roll(turn, 1), None, order)
    rules = [
        rule_of(norm.norms[0], PackedFrames(sums[d * each : (d + 1) * each], mask, order, turn))
        for d, norm in enumerate(norms)
    ]

    def columns(which: int) -> Tensor | None:
        found = [rule.gains[which] for rule in rules]
        if any(gain is None for gain in found):
            return None
        return torch.cat([gain.view(each, -1) for gain in found if gain is not None]).to(bias.dtype)

    gain, shift = columns(0), columns(1)
    gain = None if gain is None else gain.roll(turn, -1)
    bias = (bias if shift is None else bias + shift).roll(turn, -1)
    return standardized(sums, rules, gain, bias, twice, order, room, turn)


def known(norms: list[GroupedNorm], directions: int) -> bool:
    """Whether `normed_project` can do the work of these norms, so that nobody misses their call."""
    if not norms or (len(norms) == directions and RowScale.of(norms, torch.float32) is not None):
        return True
    return all(len(norm.norms) == 1 and offers(norm.norms[0], "rule") and not heard(norm) for norm in norms)


class PackedFrames:
    """The sums (D, R, K) of some directions as frames for a strategy, their features side by side: (D*K).

    mask (B, T); the columns of `sums` are the norm's features, turned by `turn` places.
    """

    def __init__(self, sums: Tensor, mask: Tensor, order: ScanOrder, turn: int) -> None:
        self.sums, self.mask, self.order, self.turn = sums.detach(), mask, order, turn
        self.batch, self.length = mask.shape

    def moments(self, over: str, *, masked: bool = True, joint: bool = False) -> Moments:
        """See `normalization.moments.masked_moments`; over `batch` or `step`, else RecipeError (`encoder_contract`)."""
        if over not in ("batch", "step"):
            raise RecipeError(
                f"rule(frames) asks for moments over {over!r} at the gates, where no utterance's frames lie together",
                possible="batch, step",
                fix="leave rule out: then forward is called",
                reason="encoder_contract",
            )
        sums, order = self.sums, self.order
        count, _, size = sums.shape
        mean, var = sums.new_zeros(2, count, self.length, size)
        for d, steps, rows, block, alive in _pieces(count, size, order):
            real = sums[d, rows].unflatten(0, (-1, block))[:, :alive]
            torch.mean(real, 1, out=mean[d, steps])
            torch.mean((real - mean[d, steps].unsqueeze(1)).square_(), 1, out=var[d, steps])
        frames = sums.new_zeros(1, self.length, 1)
        frames[0, : len(order.alive), 0] = sums.new_tensor(order.alive)
        mean, var = (_side_by_side(torch.roll(m, -self.turn, -1)) for m in (mean, var))
        found = Moments(mean, var, frames)
        if over == "batch":
            found = pool(Moments(*(m.transpose(0, 1) for m in found)))
        return finished(found, over, self.mask, masked, joint)


def standardized(
    sums: Tensor,
    rules: list[Rule],
    gain: Tensor | None,
    bias: Tensor,
    twice: Tensor,
    order: ScanOrder,
    room: int,
    turn: int,
) -> Tensor:
    """Sums (D, R, K) by the moments of `rules`, times gain, plus bias, times `twice`: (D, R, K + room).

    rules: of each direction, or one for all of them side by side; gain, bias (D, K) and twice (K,) in the order of the
    columns, which are the norm's features turned by `turn`. The last `room` columns hold nothing.
    """
    return _Standardized.apply(sums, gain, bias, twice, rules, order, room, turn)  # type: ignore[no-any-return, no-untyped-call]


class _Standardized(torch.autograd.Function):
    """As `asrkit.normalization._Standardize`, whose equations it follows."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        gain: Tensor | None,
        bias: Tensor,
        twice: Tensor,
        rules: list[Rule],
        order: ScanOrder,
        room: int,
        turn: int,
    ) -> Tensor:
        count, _, size = sums.shape
        of_rules = [[_apart(m[:, : order.length], count // len(rules)) for m in rule.moments[:2]] for rule in rules]
        mean = torch.cat([m for m, _ in of_rules]).roll(turn, -1)
        spread = [torch.rsqrt(var + rule.how.eps) for (_, var), rule in zip(of_rules, rules, strict=True)]
        rstd = torch.cat(spread).roll(turn, -1)
        scale = rstd * _gains(gain, twice)
        shift = torch.addcmul((bias * twice).unsqueeze(1), mean, scale, value=-1)
        out = sums.new_empty(count, order.rows, size + room)
        for d, now, rows, block, _ in _pieces(count, size, order):
            there = out[d, rows, :size].unflatten(0, (-1, block))
            torch.addcmul(_at(shift, d, now), sums[d, rows].unflatten(0, (-1, block)), _at(scale, d, now), out=there)
        ctx.save_for_backward(sums, gain, twice, mean, rstd)
        constant = all(rule.own is None for rule in rules)
        ctx.shares = None if constant else [(rule.how, _share(rule)) for rule in rules]  # and not all of the moments
        ctx.order, ctx.turn = order, turn
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums, gain, twice, mean, rstd = ctx.saved_tensors
        order: ScanOrder = ctx.order
        count, _, size = sums.shape
        grad = grad[..., :size]
        found = sums.new_zeros(2, count, order.length, size)  # sums of g and of g xhat, at each step
        for d, now, rows, block, _ in _pieces(count, size, order):
            g, x = (m[d, rows].unflatten(0, (-1, block)) for m in (grad, sums))
            torch.sum(g, 1, out=found[0, d, now])
            torch.sum((x - _at(mean, d, now)).mul_(g), 1, out=found[1, d, now])
        found[1] *= rstd
        dbias, dgain = found.sum(2) * twice
        line = None
        if ctx.shares is not None:
            line = _line(found * _gains(gain, twice), mean, rstd, ctx.shares, ctx.turn)
        scale = rstd * _gains(gain, twice)
        for d, now, rows, block, alive in _pieces(count, size, order):
            g = grad[d, rows].unflatten(0, (-1, block)).mul_(_at(scale, d, now))  # of rows past an end it is 0
            if line is not None:
                x = sums[d, rows].unflatten(0, (-1, block))[:, :alive]
                g[:, :alive] += torch.addcmul(_at(line[1], d, now), x, _at(line[0], d, now))
        return grad, None if gain is None else dgain, dbias, None, None, None, None, None


def _share(rule: Rule) -> Tensor:
    """own / n in the shape of the moments' frames; 0 where they are constants."""
    frames = rule.moments.frames
    return torch.zeros_like(frames) if rule.own is None else rule.own / frames.clamp(min=1)


def _line(
    sums: Tensor, mean: Tensor, rstd: Tensor, shares: list[tuple[Standard, Tensor]], turn: int
) -> tuple[Tensor, Tensor]:
    """Slope and intercept (D, T or 1, K) of what the gradient gets through the moments.

    sums (2, D, T, K): of the gradient times gain, and of that times xhat, at each step; shares: own / n of each rule.
    """
    parts = []
    for (how, share), part in zip(shares, sums.roll(-turn, -1).chunk(len(shares), 1), strict=True):
        if how.over == "batch":
            part = part.sum(2, keepdim=True)
        both = torch.stack([_side_by_side(one) for one in part])
        parts.append(torch.stack([_apart(one, part.shape[1]) for one in shared(both, share, how)]))
    by_mean, by_var = torch.cat(parts, 1).roll(turn, -1)
    slope = rstd.square().mul_(by_var).neg_()
    return slope, torch.addcmul(rstd * by_mean, slope, mean).neg_()


def _gains(gain: Tensor | None, twice: Tensor) -> Tensor:
    return twice if gain is None else (gain * twice).unsqueeze(1)


def _pieces(count: int, size: int, order: ScanOrder) -> list[tuple[int, slice, slice, int, int]]:
    """Direction, steps, rows, rows per step, alive ones: pieces that a core's cache holds."""
    return [(d, *stretch) for d in range(count) for stretch in order.stretches(CACHED // size)]


def _at(moment: Tensor, direction: int, steps: slice) -> Tensor:
    """(D, T or 1, K) -> (S or 1, 1, K), for some steps or for all."""
    return moment[direction, steps if moment.shape[1] > 1 else slice(None)].unsqueeze(1)


def _side_by_side(parts: Tensor) -> Tensor:
    """(D, T, K) -> (1, T, D*K)."""
    return parts.transpose(0, 1).flatten(1).unsqueeze(0)


def _apart(joined: Tensor, directions: int) -> Tensor:
    """(1, T, D*K) -> (D, T, K)."""
    return joined[0].unflatten(-1, (directions, -1)).transpose(0, 1)


def rows_normalized(
    sums: Tensor, gain: Tensor | None, bias: Tensor, twice: Tensor, groups: list[int], eps: float, room: int
) -> Tensor:
    """Sums (D, R, K), each group of columns divided by its root mean square; gain, bias, twice and room as above.

    `sums` is used up. Of layer norm that is all once the mean over a group has been taken from the weights that make
    the sums (`asrkit.recurrent.row_norm_scan`).
    """
    return _RowsNormalized.apply(sums, gain, bias, twice, groups, eps, room)  # type: ignore[no-any-return, no-untyped-call]


class _RowsNormalized(torch.autograd.Function):
    """du = (g - xhat mean(g xhat)) / s, with xhat = u / s, s = sqrt(mean u^2 + eps), g what comes in times gain."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        gain: Tensor | None,
        bias: Tensor,
        twice: Tensor,
        groups: list[int],
        eps: float,
        room: int,
    ) -> Tensor:
        count, length, size = sums.shape
        out = sums.new_empty(count, length, size + room)
        rstd = sums.new_empty(count, length, len(groups))
        scale, shift = _gains(gain, twice), bias * twice
        for d, rows in _row_pieces(sums):
            now = sums[d, rows]
            for i, part in enumerate(now.split(groups, -1)):
                square = torch.linalg.vector_norm(part, dim=-1).square_().div_(groups[i])
                torch.rsqrt(square.add_(eps), out=rstd[d, rows, i])
                part.mul_(rstd[d, rows, i : i + 1])
            torch.addcmul(shift[d], now, scale if gain is None else scale[d], out=out[d, rows, :size])
        ctx.save_for_backward(sums, rstd, gain, twice)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hats, rstd, gain, twice = ctx.saved_tensors
        count, _, size = hats.shape
        grad, scale = grad[..., :size], _gains(gain, twice)
        dgain, dbias = hats.new_zeros(2, count, size)
        for d, rows in _row_pieces(hats):
            g, hat = grad[d, rows], hats[d, rows]
            dbias[d] += g.sum(0)
            dgain[d] += (g * hat).sum(0)
            g.mul_(scale if gain is None else scale[d])
            inner = g * hat
            for i, (part, product, of_hat) in enumerate(
                zip(g.split(ctx.groups, -1), inner.split(ctx.groups, -1), hat.split(ctx.groups, -1), strict=True)
            ):
                part.addcmul_(of_hat, product.mean(-1, keepdim=True), value=-1).mul_(rstd[d, rows, i : i + 1])
        return grad, None if gain is None else dgain * twice, dbias * twice, None, None, None, None


def _row_pieces(sums: Tensor) -> list[tuple[int, slice]]:
    count, length, size = sums.shape
    each = max(1, (CACHED >> 2) * torch.get_num_threads() // size)
    return [(d, slice(r, min(r + each, length))) for d in range(count) for r in range(0, length, each)]
