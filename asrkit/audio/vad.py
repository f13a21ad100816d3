"""Stretches of speech in audio of any length, by silero-vad: `pip install 'asrkit[longform]'`.

The network (its weights are in the package; nothing is downloaded) says for every 32 ms how likely speech is. Speech
begins at 0.5 and ends where it has been below 0.35 for 0.3 s, the thresholds that its authors recommend; a stretch
keeps 0.2 s on either side and is cut at its least likely moment before it passes 28 s.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from asrkit.audio.stream import Resampler
from asrkit.errors import RecipeError

RATE, CHUNK = 16000, 512  # what the network takes
ON, OFF = 0.5, 0.35
QUIET, PAD, LONGEST = 0.3, 0.2, 28.0  # seconds
Probability = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Speech:
    """Samples (S,) of one stretch, and the number of samples before it."""

    start: int
    samples: np.ndarray


def silero() -> Probability:
    """Chunks of 512 samples at 16 kHz, one after the other -> how likely each is speech. Keeps a state: one per
    audio.

    Raises RecipeError (`needs_silero`) where silero-vad is not installed.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad
    except ImportError as error:
        raise RecipeError(
            "voice activity detection needs silero-vad",
            possible="windows, which need nothing",
            fix="pip install 'asrkit[longform]'",
            reason="needs_silero",
        ) from error
    torch.set_num_threads(threads)  # importing it sets one thread for the whole process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is stored in a form that torch is about to leave
        model = load_silero_vad()

    def probability(chunk: np.ndarray) -> float:
        with torch.inference_mode():
            return float(model(torch.from_numpy(chunk), RATE))

    return probability


def speech_of(blocks: Iterable[np.ndarray], rate: int, probability: Probability | None = None) -> Iterator[Speech]:
    """Blocks (S,) at `rate` samples per second -> stretches of speech, in order, in flat memory."""
    heard = probability or silero()
    resampler = Resampler(rate, RATE)
    stretches = _Stretches(rate)
    rest = np.zeros(0, np.float32)
    for block in blocks:
        stretches.add(block)
        rest = np.concatenate([rest, resampler.push(block)])
        whole = len(rest) // CHUNK * CHUNK
        for start in range(0, whole, CHUNK):
            yield from stretches.next(heard(rest[start : start + CHUNK]))
        rest = rest[whole:]
    rest = np.concatenate([rest, resampler.finish()])
    for start in range(0, len(rest), CHUNK):
        chunk = rest[start : start + CHUNK]
        yield from stretches.next(heard(np.pad(chunk, (0, CHUNK - len(chunk)))))
    yield from stretches.finish()


class _Stretches:
    """Turns probabilities into stretches, and holds the samples that one may still need. Places count in chunks."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.chunk = CHUNK / RATE  # seconds
        self.kept: list[np.ndarray] = []
        self.first = self.have = 0  # samples: where what is kept begins and ends
        self.at = 0
        self.begin: int | None = None  # of the stretch that is open
        self.quiet = 0
        self.free = 0  # no stretch begins before this place
        self.likely: list[float] = []  # of the open stretch

    def add(self, block: np.ndarray) -> None:
        self.kept.append(block)
        self.have += len(block)

    def next(self, probability: float) -> Iterator[Speech]:
        """The probability of one more chunk."""
        self.at += 1
        if self.begin is None:
            if probability >= ON:
                self.begin = max(self.free, self.at - 1 - self._chunks(PAD))
                self.quiet, self.likely = 0, [1.0] * (self.at - 1 - self.begin) + [probability]
            else:
                self._forget(self.at - self._chunks(PAD) - 1)
            return
        self.likely.append(probability)
        self.quiet = 0 if probability >= OFF else self.quiet + 1
        if self.quiet >= self._chunks(QUIET):
            yield self._cut(self.at - self.quiet + self._chunks(PAD))
            self.begin = None
        elif len(self.likely) >= self._chunks(LONGEST):
            half = len(self.likely) // 2
            place = self.begin + half + int(np.argmin(self.likely[half:]))
            likely = self.likely[place - self.begin :]
            yield self._cut(place)
            self.begin, self.likely = place, likely

    def finish(self) -> Iterator[Speech]:
        """The stretch that is open at the end."""
        if self.begin is not None:
            yield self._cut(self.at)

    def _chunks(self, seconds: float) -> int:
        return max(1, round(seconds / self.chunk))

    def _samples(self, place: int) -> int:
        return round(place * self.chunk * self.rate)

    def _cut(self, end: int) -> Speech:
        """The open stretch up to chunk `end`."""
        start = self._samples(self.begin or 0)
        joined = np.concatenate(self.kept)
        samples = joined[start - self.first : self._samples(end) - self.first].copy()
        self.kept, self.free = [joined], end
        self._forget(end)
        return Speech(start, samples)

    def _forget(self, place: int) -> None:
        """Drop samples before chunk `place`, when there are some seconds of them."""
        gone = self._samples(max(place, 0)) - self.first
        if gone > 4 * self.rate:
            self.kept = [np.concatenate(self.kept)[gone:].copy()]
            self.first += gone
