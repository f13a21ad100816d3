"""The best CTC path of a long recording in little memory.

The usual way back needs a number for every frame and state, 13 GB for an hour of speech. Here only every sqrt(T)th
column of scores is kept, and the columns between are computed again on the way back (Grice, Hughey & Speck 1997, the
idea of checkpoints): sqrt(T) columns, and about five times the time of torchaudio's compiled loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from asrkit.ctc import BLANK


def lean_path(log_probs: Tensor, labels: Sequence[int]) -> Tensor:
    """log_probs (T', V) float64, labels (L,) without blanks, T' at least what they need -> the label of every frame
    (T',), blanks included."""
    trellis = _Trellis(log_probs, labels)
    frames = log_probs.shape[0]
    stride = math.isqrt(frames) + 1
    columns = []
    for start in range(0, frames, stride):
        columns.append(trellis.scores.clone())  # before frame `start`
        for t in range(start, min(start + stride, frames)):
            trellis.advance(t)
    states = torch.zeros(frames, dtype=torch.int64)
    state = int(trellis.scores[-2:].argmax()) + len(trellis.scores) - 2
    for start in range(stride * (len(columns) - 1), -1, -stride):
        trellis.scores = columns.pop()
        back = [trellis.advance(t) for t in range(start, min(start + stride, frames))]
        for t in range(start + len(back) - 1, start - 1, -1):
            states[t] = state
            low, steps = back[t - start]
            state -= int(steps[state - low])
    return trellis.labels[states]


class _Trellis:
    """States blank, l1, blank, l2, ..., blank, and the log-probability of the best way to each."""

    def __init__(self, log_probs: Tensor, labels: Sequence[int]) -> None:
        self.log_probs = log_probs
        self.labels = torch.full((2 * len(labels) + 1,), BLANK)
        self.labels[1::2] = torch.tensor(list(labels))
        # From label to label without the blank between them, which equal ones need.
        leap = (self.labels[2:] != BLANK) & (self.labels[2:] != self.labels[:-2])
        self.no_leap = torch.cat([torch.tensor([True, True]), ~leap])
        self.scores = torch.full(self.labels.shape, -math.inf, dtype=log_probs.dtype)

    def advance(self, t: int) -> tuple[int, Tensor]:
        """Take in frame t. Returns the first state that is worked on, and how many states (0, 1, 2) each one's best
        predecessor lies before it; states that cannot be reached by now, or from which the end cannot, are left out."""
        size, frames = len(self.scores), self.log_probs.shape[0]
        low, high = max(0, size - 2 * (frames - t)), min(size, 2 * (t + 1))
        emitted = self.log_probs[t].index_select(0, self.labels[low:high])
        if t == 0:
            self.scores[low:high] = emitted
            return low, torch.zeros(high - low, dtype=torch.uint8)
        ways = self.scores.new_full((3, high - low), -math.inf)
        for step in range(3):
            first = max(low, step)
            ways[step, first - low :] = self.scores[first - step : high - step]
        ways[2].masked_fill_(self.no_leap[low:high], -math.inf)
        best, steps = ways.max(0)
        self.scores[low:high] = best.add_(emitted)
        return low, steps.to(torch.uint8)
