"""The order in which a scan visits the frames of a ragged batch, and the way there and back.

Each direction begins at the utterance's own end; all of them, and all utterances, take a step together. Utterances
stand in the order of their lengths, longest first, so that those alive at a step are the first ones: the rows of a step
are one block, and what has ended takes no room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows of a step are a multiple of this: MKL multiplies 12 rows in less time than 11 or 9.
_ROUND = 4


@dataclass(frozen=True)
class ScanOrder:
    """Where each frame of a batch-major (B, T, .) tensor stands in a scan of S steps; built once per forward.

    A scan's tensors are (D, R, .): for each direction R rows in S + 1 blocks. In tensors of sums, block t holds the
    sums of step t; in tensors of states the state before step t, so that block t + 1 is what step t makes, and rows of
    the two that belong together have the same number. `blocks` (S + 1): rows per block. `computed` (S): the first rows
    of the block that step t works on, which are those of block t + 1; the last ones end there, and are `unused` in
    tensors of sums. `alive` (S): the first rows that are real; the others between are past their utterance's end, read
    a frame of the same utterance again, and get no gradient.

    `inputs` (D, R): the frame (of B*T) that a row reads. `own`: the same where the backward half has been reversed
    before. `frames` (D, B*T): the row (of D*R) that has read a frame, one without gradient for padding; `own_frames`:
    the same, as above. `output` (B*T*D): rows of states in the caller's order, for padding row 0, which is zero.
    `output_back` (D*R): rows of the caller's output in the order of the states; `dead`: rows (of D*R) of states that
    have no frame.
    """

    blocks: list[int]
    computed: list[int]
    alive: list[int]
    inputs: Tensor
    own: Tensor
    frames: Tensor
    own_frames: Tensor
    output: Tensor
    output_back: Tensor
    dead: Tensor
    unused: Tensor
    batch: int
    length: int
    directions: int

    @property
    def rows(self) -> int:
        """R."""
        return self.inputs.shape[1]

    def steps(self, tensor: Tensor) -> list[Tensor]:
        """(D, R, .) -> views (D, rows, .) of what each step works on: its sums, or the state before it."""
        blocks = tensor.split(self.blocks, 1)
        return [
            block if block.shape[1] == rows else block[:, :rows]
            for block, rows in zip(blocks, self.computed, strict=False)
        ]

    def chunks(self, numbers: int) -> list[tuple[int, int, slice]]:
        """Steps that hold at most so many rows together, last first: first step, end, rows."""
        found, end, row = [], len(self.computed), self.rows - self.blocks[-1]
        while end:
            start, first = end - 1, row - self.blocks[end - 1]
            while start and row - (first - self.blocks[start - 1]) <= numbers:
                start -= 1
                first -= self.blocks[start]
            found.append((start, end, slice(first, row)))
            end, row = start, first
        return found

    def stretches(self, numbers: int) -> list[tuple[slice, slice, int, int]]:
        """Steps with equally large blocks and equally many alive, at most so many rows together: steps, rows, rows per
        block, alive."""
        found: list[tuple[slice, slice, int, int]] = []
        start = row = 0
        for t in range(1, len(self.computed) + 1):
            block, alive = self.blocks[start], self.alive[start]
            same = t < len(self.computed) and (self.blocks[t], self.alive[t]) == (block, alive)
            if not same or (t + 1 - start) * block > numbers:
                end = row + (t - start) * block
                found.append((slice(start, t), slice(row, end), block, alive))
                start, row = t, end
        return found


def mirrored(lengths: Tensor, frames: int) -> Tensor:
    """(B, T) int64: for each frame the one that takes its place when only the real part is reversed; own inverse."""
    t = torch.arange(frames, device=lengths.device)
    return torch.where(t < lengths[:, None], lengths[:, None] - 1 - t, t)


def scan_order(lengths: Tensor, frames: int, directions: int) -> ScanOrder:
    """The order for lengths (B,) of a batch of T = `frames`."""
    batch, device = lengths.shape[0], lengths.device
    steps = int(lengths.max()) if batch else 0
    sorted_lengths, utterance = lengths.sort(descending=True, stable=True)
    alive = (lengths[:, None] > torch.arange(steps, device=device)).sum(0).tolist()
    computed = [min(alive[0], -(-n // _ROUND) * _ROUND) for n in alive]  # nobody without a frame, whatever lies there
    blocks = [computed[0] if computed else min(1, batch), *computed]
    sizes = torch.tensor(blocks, device=device)
    starts = sizes.cumsum(0) - sizes
    step = torch.arange(steps + 1, device=device).repeat_interleave(sizes)
    place = torch.arange(len(step), device=device) - starts[step]
    b, end = utterance[place], sorted_lengths[place]
    last = (end - 1).clamp(min=0)
    ahead = torch.minimum(step, last)
    inputs = torch.stack([b * frames + ahead, b * frames + last - ahead][:directions])
    own = torch.stack([b * frames + ahead] * directions)
    # The frame that a state belongs to: the one that the step before has read.
    real = (step > 0) & (step <= end)
    made = torch.stack([step - 1, end - step][:directions]).clamp(min=0).minimum(last)
    d = torch.arange(directions, device=device)[:, None]
    output_back = (b * frames + made) * directions + d
    # From the caller's side: frame (b, t) is read at step t, or len - 1 - t.
    rank = torch.empty_like(utterance).scatter_(0, utterance, torch.arange(batch, device=device))
    t = torch.arange(frames, device=device).expand(batch, frames)
    padding = t >= lengths[:, None]
    sides = torch.stack([t, mirrored(lengths, frames)][:directions]).clamp(max=max(0, steps - 1))
    rows = starts[sides] + rank[:, None] + d[..., None] * len(step)
    after = starts[(sides + 1).clamp(max=steps)] + rank[:, None] + d[..., None] * len(step)
    own_rows = starts[sides[:1]] + rank[:, None] + d[..., None] * len(step)
    nothing = len(step) - 1  # of the last block, which is no step's
    return ScanOrder(
        blocks=blocks,
        computed=computed,
        alive=alive,
        inputs=inputs,
        own=own,
        frames=rows.masked_fill(padding, nothing).flatten(1),
        own_frames=own_rows.masked_fill(padding, nothing).flatten(1),
        output=after.masked_fill(padding, 0).permute(1, 2, 0).reshape(-1),
        output_back=output_back.reshape(-1),
        dead=(~real).repeat(directions).nonzero()[:, 0],
        unused=(place >= torch.tensor([*computed, 0], device=device)[step]).nonzero()[:, 0],
        batch=batch,
        length=frames,
        directions=directions,
    )


def to_scan(gates: Tensor, order: ScanOrder, natural: bool) -> Tensor:
    """Gates (B, T, D*G) -> (D, R, G); `natural`: the backward half is in the order of time, not yet in its own."""
    return _ToScan.apply(gates, order, natural)  # type: ignore[no-any-return, no-untyped-call]


class _ToScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, order: ScanOrder, natural: bool) -> Tensor:
        ctx.order, ctx.natural = order, natural
        count, size = order.directions, gates.shape[2] // order.directions
        index = order.inputs if natural else order.own
        index = index * count + torch.arange(count, device=index.device)[:, None]
        return gates.reshape(-1, size).index_select(0, index.flatten()).view(count, order.rows, size)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order: ScanOrder = ctx.order
        index = (order.frames if ctx.natural else order.own_frames).t()
        found = grad.reshape(-1, grad.shape[2]).index_select(0, index.flatten())
        return found.view(order.batch, order.length, order.directions * grad.shape[2]), None, None


def from_scan(states: Tensor, order: ScanOrder) -> Tensor:
    """States (D, R, H) -> (B, T, D*H), zero past each end."""
    rows = states.view(-1, states.shape[2]).index_select(0, order.output)
    return rows.view(order.batch, order.length, order.directions * states.shape[2])


def incoming(grad: Tensor, order: ScanOrder) -> Tensor:
    """The gradient of the output (B, T, D*H) -> a new one of the states (D, R, H), zero where there is no frame."""
    size = grad.shape[2] // order.directions
    rows = grad.reshape(-1, size).index_select(0, order.output_back).index_fill_(0, order.dead, 0.0)
    return rows.view(order.directions, order.rows, size)
