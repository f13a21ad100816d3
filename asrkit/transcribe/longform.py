"""Audio of any length through a model in flat memory: overlapping windows whose log-probabilities are joined.

A bidirectional recurrent model wants to hear what comes before and after a frame, but not minutes of it. So the
audio goes through in windows of `CONTEXT + HOP + CONTEXT` seconds, and of each window the frames of its middle are
kept. Windows begin on the model's own grid of frames, so the joined frames are those of one pass, one by one.

Exact, up to rounding: features, the number and the times of frames, utterance CMVN (its mean and deviation are
those of the whole audio, gathered in a first pass), convolutions and all else whose reach is less than the context.
Approximate: recurrent layers, which start every window from a zero state and forget it within the context; norms
over the time of an utterance (`instance_norm`), which see a window; and `frame_batch_norm`, whose steps count from
the beginning of the window. Audio that fits into one window is not cut at all. `tests/test_longform.py` measures how
far the joined log-probabilities are from one pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asrkit.ctc import BLANK
from asrkit.decoders import Decoder, Hypothesis
from asrkit.model import CTCModel

HOP, CONTEXT = 20.0, 5.0  # seconds kept of a window, and heard on either side of them
PIECE = 30.0  # seconds of frames that are decoded together at least; the cut is looked for in a second stretch as long


@dataclass(frozen=True)
class Window:
    """Samples (S,) of a window and which of its output frames are kept, `last` None: all to the end."""

    samples: np.ndarray
    first: int
    last: int | None


@dataclass(frozen=True)
class Grid:
    """The windows of a model: how many samples a unit has, output frames per unit, and units kept and heard."""

    samples: int
    frames: int
    hop: int
    context: int

    @classmethod
    def of(cls, model: CTCModel, hop: float = HOP, context: float = CONTEXT) -> Grid:
        """The finest grid on which windows of this model may begin."""
        rate = model.features.sample_rate
        frame = round(model.features.frame_seconds * rate)  # samples from one frame of features to the next
        ratio = Fraction(model.frame_seconds / model.features.frame_seconds).limit_denominator(1000)
        samples, frames = frame * ratio.numerator, ratio.denominator
        unit = samples / rate
        return cls(samples, frames, max(1, math.ceil(hop / unit)), math.ceil(context / unit))

    @property
    def one_pass(self) -> int:
        """The longest audio, in samples, that goes through in one window."""
        return (self.hop + self.context) * self.samples

    def windows(self, blocks: Iterable[np.ndarray]) -> Iterator[Window]:
        """Blocks (S,) of any sizes -> windows; which ones does not depend on the sizes."""
        kept: list[np.ndarray] = []
        have = begin = index = 0  # `begin`: the unit at which what is kept begins
        for block in blocks:
            kept.append(block)
            have += len(block)
            while have > ((index + 1) * self.hop + self.context - begin) * self.samples:
                joined = np.concatenate(kept)
                end = (index + 1) * self.hop
                window = joined[: (end + self.context - begin) * self.samples]
                first = (index * self.hop - begin) * self.frames
                yield Window(window, first, (end - begin) * self.frames)
                index += 1
                begin, before = max(0, index * self.hop - self.context), begin
                kept = [joined[(begin - before) * self.samples :].copy()]
                have = len(kept[0])
        yield Window(np.concatenate(kept or [np.zeros(0, np.float32)]), (index * self.hop - begin) * self.frames, None)


def padded(waveforms: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Waveforms (S,) -> (B, S) padded with zeros, and their lengths (B,)."""
    lengths = torch.tensor([len(samples) for samples in waveforms])
    out = torch.zeros(len(waveforms), max(int(lengths.max()), 1))
    for row, samples in enumerate(waveforms):
        out[row, : len(samples)] = torch.from_numpy(samples)
    return out, lengths


def statistics(
    model: CTCModel, grid: Grid, blocks: Iterable[np.ndarray], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean (F,) and deviation (F,) of the features of the whole audio, gathered in float64."""
    total = squares = torch.zeros(model.features.size, dtype=torch.float64, device=device)
    count, per_unit = 0, grid.samples // round(model.features.frame_seconds * model.features.sample_rate)
    for window in grid.windows(blocks):
        waveforms, lengths = padded([window.samples])
        with torch.inference_mode():
            features, frames = model.features(waveforms.to(device), lengths.to(device))
        last = int(frames[0]) if window.last is None else window.last // grid.frames * per_unit
        x = features[0, window.first // grid.frames * per_unit : last].double()
        total, squares, count = total + x.sum(0), squares + x.square().sum(0), count + len(x)
    mean = total / max(count, 1)
    return mean.float(), (squares / max(count, 1) - mean.square()).clamp(min=0).sqrt().float()


def joined_log_probs(
    forward: Callable[[list[np.ndarray]], tuple[Tensor, Tensor]], windows: Iterable[Window], batch: int
) -> Iterator[Tensor]:
    """Log-probabilities (T', V) of the kept frames of one window after the other.

    forward: waveforms -> log-probabilities (B, T', V) and lengths (B,). batch: windows in one call of it.
    """

    def run(group: list[Window]) -> Iterator[Tensor]:
        log_probs, lengths = forward([window.samples for window in group])
        for row, window in enumerate(group):
            last = int(lengths[row]) if window.last is None else window.last
            yield log_probs[row, window.first : last].clone()

    group: list[Window] = []
    for window in windows:
        group.append(window)
        if len(group) == batch:
            yield from run(group)
            group = []
    if group:
        yield from run(group)


def decode_pieces(
    decoder: Decoder,
    pieces: Iterable[Tensor],
    frame_seconds: float,
    lock: contextlib.AbstractContextManager[Any] | None = None,
) -> Hypothesis:
    """The best hypothesis of log-probabilities (T', V) that come in pieces, in memory that follows its labels.

    Decoded is what lies between two cuts, and a cut is made where the model is silent: in the middle of the longest run
    of frames whose best label is blank. For best-path decoding this changes nothing; a decoder with a language model
    starts anew after every cut, which is a pause. lock: held while it decodes.
    """

    def best(log_probs: Tensor) -> Hypothesis:
        with lock or contextlib.nullcontext():
            return decoder(log_probs.unsqueeze(0), torch.tensor([len(log_probs)]))[0][0]

    at_least = max(1, math.ceil(PIECE / frame_seconds))
    parts: list[Hypothesis] = []
    done = 0
    kept = torch.zeros(0, 0)
    for piece in pieces:
        kept = torch.cat([kept, piece]) if len(kept) else piece
        while len(kept) >= 2 * at_least:
            cut = _cut(kept, at_least, forced=len(kept) >= 4 * at_least)
            if cut is None:
                break
            parts.append(_shifted(best(kept[:cut]), done))
            done += cut
            kept = kept[cut:].clone()
    if len(kept):
        parts.append(_shifted(best(kept), done))
    return _concatenated(parts)


def _cut(log_probs: Tensor, first: int, forced: bool) -> int | None:
    """The middle of the longest blank run in the frames from `first` on; without one None, or if forced the change of
    labels at which blank is likeliest."""
    tail = log_probs[first:]
    path = tail.argmax(-1)
    best, counts = torch.unique_consecutive(path, return_counts=True)
    blank = torch.where(best == BLANK, counts, 0)
    longest = int(blank.argmax())
    if int(blank[longest]):
        return first + int(counts[:longest].sum()) + int(counts[longest]) // 2
    changes = torch.nonzero(path[1:] != path[:-1]).flatten() + 1
    if not forced or not len(changes):
        return None
    return first + int(changes[tail[changes, BLANK].argmax()])


def _shifted(hypothesis: Hypothesis, frames: int) -> Hypothesis:
    return Hypothesis(
        hypothesis.labels,
        hypothesis.score,
        tuple(start + frames for start in hypothesis.starts),
        tuple(end + frames for end in hypothesis.ends),
        hypothesis.confidences,
    )


def _concatenated(parts: list[Hypothesis]) -> Hypothesis:
    def all_of(name: str) -> tuple:
        return tuple(value for part in parts for value in getattr(part, name))

    return Hypothesis(
        all_of("labels"), sum(p.score for p in parts), all_of("starts"), all_of("ends"), all_of("confidences")
    )
