"""The order in which a scan visits the frames of a ragged batch, and the way there and back.

Each direction begins at the utterance's own end; all of them, and all utterances, take a step together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScanOrder:
    """Where each row of a batch-major (B, T, D, .) tensor stands in a scan, and back; built once per forward.

    `gates` (T*D*B,): rows of the caller's gates, in the scan's order. `gates_back` (B*T*D,): its inverse, rows of a
    (D, T, B, .) tensor in the caller's order. `output` (B*T*D,): rows of states (D, T + 1, B, H) in the caller's order,
    and for padding row 0, which is zero. `output_back` (T*D*B,): rows of the caller's output, in the scan's order.
    `padding` (T, 1, B, 1): true past the end; None when no utterance is padded.
    """

    gates: Tensor
    gates_back: Tensor
    output: Tensor
    output_back: Tensor
    padding: Tensor | None
    batch: int
    frames: int
    directions: int


def mirrored(lengths: Tensor, frames: int) -> Tensor:
    """(B, T) int64: for each frame the one that takes its place when only the real part is reversed; own inverse."""
    t = torch.arange(frames, device=lengths.device)
    return torch.where(t < lengths[:, None], lengths[:, None] - 1 - t, t)


def scan_order(lengths: Tensor, frames: int, directions: int, reverse: bool = True, ragged: bool = True) -> ScanOrder:
    """The row orders for lengths (B,); `reverse=False` when the backward half of the gates has been reversed before."""
    batch, device = lengths.shape[0], lengths.device
    t = torch.arange(frames, device=device).expand(batch, frames)
    b = torch.arange(batch, device=device)[:, None, None]
    d = torch.arange(directions, device=device)
    sides = [t, mirrored(lengths, frames)][:directions]
    out_step = torch.stack(sides, 2)  # (B, T, D): the step of the scan that holds this frame
    in_step = out_step if reverse else t[..., None].expand(batch, frames, directions)
    output = (d * (frames + 1) + out_step + 1) * batch + b
    padding = (t >= lengths[:, None]) if ragged else None
    if padding is not None:
        output = output.masked_fill(padding[..., None], 0)

    def rows(step: Tensor) -> Tensor:
        return ((b * frames + step) * directions + d).permute(1, 2, 0).reshape(-1)

    return ScanOrder(
        gates=rows(in_step),
        gates_back=((d * frames + in_step) * batch + b).reshape(-1),
        output=output.reshape(-1),
        output_back=rows(out_step),
        padding=None if padding is None else padding.t()[:, None, :, None],
        batch=batch,
        frames=frames,
        directions=directions,
    )


def to_scan(rows: Tensor, index: Tensor, order: ScanOrder) -> Tensor:
    """(B, T, D*N) -> a new contiguous (T, D, B, N)."""
    size = rows.shape[-1] // order.directions
    flat = rows.reshape(order.batch * order.frames * order.directions, size)
    return flat.index_select(0, index).view(order.frames, order.directions, order.batch, size)


def from_scan(tensor: Tensor, index: Tensor, order: ScanOrder) -> Tensor:
    """(D, T, B, N), or states (D, T + 1, B, N) -> (B, T, D*N)."""
    size = tensor.shape[-1]
    rows = tensor.reshape(tensor.numel() // size, size).index_select(0, index)
    return rows.view(order.batch, order.frames, order.directions * size)


def incoming(grad: Tensor, order: ScanOrder) -> Tensor:
    """The gradient of the output (B, T, D*H) -> a new (T, D, B, H), zero past each end."""
    grads = to_scan(grad, order.output_back, order)
    return grads if order.padding is None else grads.masked_fill_(order.padding, 0)
