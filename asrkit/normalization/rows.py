"""Norms of single frames, layer norm and its kin: no frame needs another, nothing is stored, padding cannot enter.

Axes: B utterances, T frames, C features; mask (B, T).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.normalization.moments import compute_type, real_lengths

_ROWS = 64  # frames that are worked on together: what is computed from them stays in a core's cache


class RowNorm(NamedTuple):
    """y = weight * (x - m) / sqrt(v + eps) + bias for every frame x (C,).

    centred: m = mean over C and v = biased variance (layer norm); else m = 0 and v = mean square (RMS norm). weight,
    bias: (C,) or None for 1 and 0.
    """

    centred: bool
    eps: float
    weight: Tensor | None
    bias: Tensor | None


def normalize_rows(x: Tensor, mask: Tensor, norm: RowNorm) -> Tensor:
    """x (B, T, C) -> (B, T, C), 0 in the padding, whatever it holds; float32 inside for a smaller x."""
    lengths = real_lengths(x, mask)
    if lengths is not None:
        return _Rows.apply(x, norm.weight, norm.bias, lengths, norm.centred, norm.eps)  # type: ignore[no-any-return,no-untyped-call]
    padding, kind = ~mask.unsqueeze(-1), compute_type(x)
    gain, bias = (None if p is None else p.to(kind) for p in norm[2:])  # torch's own want them like x
    y = row_norm(x.to(kind).masked_fill(padding, 0.0), norm._replace(weight=gain, bias=bias))
    return y.masked_fill(padding, 0.0).to(x.dtype)


def row_norm(x: Tensor, norm: RowNorm) -> Tensor:
    """x (..., C) -> (..., C) in torch's own operations; every row is taken for real."""
    if torch.jit.is_tracing():  # ONNX has no RMS norm, and wants a layer norm's size as a constant
        x = x - x.mean(-1, keepdim=True) if norm.centred else x
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
        y = y if norm.weight is None else y * norm.weight
        return y if norm.bias is None else y + norm.bias
    if norm.centred:
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    y = F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return y if norm.bias is None else y + norm.bias


class _Rows(torch.autograd.Function):
    """Utterance by utterance over the real frames. With xhat = (x - m) / s, s = sqrt(v + eps) and g the incoming
    gradient times weight: dx = (g - centred mean(g) - xhat mean(g xhat)) / s, means over C."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        lengths: list[int],
        centred: bool,
        eps: float,
    ) -> Tensor:
        y, kind = x.new_empty(x.shape), compute_type(x)
        ctx.lengths, ctx.centred, saved = lengths, centred, []
        weight, bias = (None if p is None else p.to(kind) for p in (weight, bias))
        for i, n in enumerate(lengths):
            y[i, n:] = 0.0
            if n and centred:
                y[i, :n], *moments = torch.native_layer_norm(x[i, :n].to(kind), x.shape[-1:], weight, bias, eps)
                saved += moments
            elif n:
                saved.append(_rms_forward(x[i, :n], y[i, :n], weight, bias, eps))
        ctx.save_for_backward(x, weight, bias, *saved)
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, *saved = ctx.saved_tensors
        dx, kind = x.new_empty(x.shape), compute_type(x)
        sums = torch.zeros(2, x.shape[-1], dtype=kind)
        per_run = iter(saved)
        for i, n in enumerate(ctx.lengths):
            dx[i, n:] = 0.0
            if n and ctx.centred:
                rows = (m[i, :n].to(kind) for m in (g, x))
                wanted = [True, weight is not None, bias is not None]
                dx[i, :n], *parts = torch.ops.aten.native_layer_norm_backward(
                    *rows, x.shape[-1:], next(per_run), next(per_run), weight, bias, wanted
                )
                for total, part, want in zip(sums, parts, wanted[1:], strict=True):
                    if want:
                        total += part
            elif n:
                _rms_backward(g[i, :n], x[i, :n], next(per_run), weight, dx[i, :n], sums)
        return dx, sums[0] if weight is not None else None, sums[1] if bias is not None else None, None, None, None


def _rms_forward(x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Fill y (N, C); returns 1 / sqrt(mean square + eps), (N, 1)."""
    kind = compute_type(x)
    found = []
    for rows, out in zip(x.split(_ROWS), y.split(_ROWS), strict=True):
        rows = rows.to(kind)
        square = torch.linalg.vector_norm(rows, dim=1, keepdim=True).square_().div_(x.shape[1])
        found.append(square.add_(eps).rsqrt_())
        rows = rows * found[-1]
        if weight is not None:
            rows.mul_(weight)
        out.copy_(rows if bias is None else rows.add_(bias))
    return torch.cat(found)


def _rms_backward(g: Tensor, x: Tensor, rstd: Tensor, weight: Tensor | None, dx: Tensor, sums: Tensor) -> None:
    """Fill dx (N, C) and add to the sums (2, C) of g xhat and g."""
    kind = compute_type(x)
    for g_rows, x_rows, r, out in zip(*(m.split(_ROWS) for m in (g, x, rstd, dx)), strict=True):
        xhat, g_rows = x_rows.to(kind) * r, g_rows.to(kind)
        sums[1] += g_rows.sum(0)
        product = g_rows * xhat
        sums[0] += product.sum(0)
        if weight is None:
            slope, g_rows = product.mean(1, keepdim=True), g_rows * r
        else:
            slope, g_rows = (product @ weight).div_(x.shape[1]).unsqueeze(1), (g_rows * weight).mul_(r)
        out.copy_(g_rows.addcmul_(xhat, slope.mul_(r), value=-1))
