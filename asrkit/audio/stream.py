"""Audio of any length as mono blocks at one rate, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from asrkit.audio import (
    Decoded,
    Source,
    check_samples,
    filters,
    num_samples_after,
    open_source,
    rate_ratio,
    reader_of,
    to_mono,
    truncation,
)
from asrkit.audio.soundfile_reader import label
from asrkit.disk import unreadable
from asrkit.errors import AudioError

BLOCK_SECONDS = 2.0  # of the source, in one block at least: products of two seconds are not thin


def audio_blocks(source: Source, sample_rate: int) -> Iterator[np.ndarray]:
    """A path, bytes or an open binary file -> blocks (S,) float32, mono, full scale 1, at `sample_rate`.

    Together they are the samples of `read_audio(source, sample_rate)` up to rounding, except that channels that
    cancel are looked for in every block on its own. Raises what `read_audio` raises: `truncated` and `no_samples` when
    the end has been reached, everything else at the block that shows it.
    """
    name = label(source)
    opened, head = open_source(source, name)
    reader = reader_of(head, name)
    resampler: Resampler | None = None
    total = 0
    last: Decoded | None = None
    pending: list[np.ndarray] = []
    try:
        whole = reader.blocks(opened) if hasattr(reader, "blocks") else iter([reader.read(opened, 0.0, None, None)])
        for last in whole:
            resampler = resampler or Resampler(last.rate, sample_rate)
            total += len(last.samples)
            pending.append(last.samples)
            if sum(map(len, pending)) >= BLOCK_SECONDS * last.rate:
                yield resampler.push(_mono(pending, name))
                pending = []
    except OSError as error:
        raise unreadable(error, name) from error
    if last is None or resampler is None or total == 0:
        raise AudioError(f"{name} holds no samples", fix="record it again", reason="no_samples")
    if pending and sum(map(len, pending)):
        yield resampler.push(_mono(pending, name))
    yield resampler.finish()
    damaged = truncation(total, last, name)
    if damaged is not None:
        raise damaged


def _mono(blocks: list[np.ndarray], name: str) -> np.ndarray:
    """Blocks (S, channels) -> (S,)."""
    joined = np.concatenate([block for block in blocks if len(block)])
    check_samples(joined, name)
    return to_mono(joined)[0]


class Resampler:
    """`asrkit.audio.resample` for a waveform that comes in pieces: the same filters, the same number of samples."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self.rates = (from_rate, to_rate)
        ratio = rate_ratio(from_rate, to_rate)
        self.plain = ratio == 1
        self.given = self.returned = 0
        if not self.plain:
            self.matrix, before = filters(ratio.denominator, ratio.numerator)
            self.taps, self.per_row = self.matrix.shape
            self.step = self.per_row // ratio.numerator * ratio.denominator
            self.kept = np.zeros(before, np.float32)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples (S,) float32 -> those of the result that are now known."""
        self.given += len(samples)
        if self.plain:
            return samples
        self.kept = np.concatenate([self.kept, samples])
        rows = max(0, (len(self.kept) - self.taps) // self.step + 1)
        return self._rows(rows)

    def finish(self) -> np.ndarray:
        """What is left when nothing more comes."""
        wanted = num_samples_after(self.given, *self.rates) - self.returned
        if self.plain or wanted <= 0:
            return np.zeros(0, np.float32)
        rows = -(-wanted // self.per_row)
        missing = max(0, (rows - 1) * self.step + self.taps - len(self.kept))
        self.kept = np.concatenate([self.kept, np.zeros(missing, np.float32)])
        return self._rows(rows)[:wanted]

    def _rows(self, rows: int) -> np.ndarray:
        if rows == 0:
            return np.zeros(0, np.float32)
        import torch

        windows = torch.from_numpy(self.kept).unfold(0, self.taps, self.step)[:rows]
        out = torch.mm(windows, self.matrix).view(-1).numpy()
        self.kept = self.kept[rows * self.step :].copy()
        self.returned += len(out)
        return out
