"""m4a, mp4, webm, mkv, wma, amr and bare AAC through PyAV (FFmpeg inside its wheel): `pip install 'asrkit[audio]'`.

A plugin of the group `asrkit.audio`, as any other package could offer one. It takes the first audio stream of a file
and leaves all pictures alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asrkit.audio.soundfile_reader import MAX_RATE, MIN_RATE, Decoded, container, label
from asrkit.errors import AudioError


class AvReader:
    """What FFmpeg reads and libsndfile does not. Where PyAV is not installed it reads nothing."""

    asrkit_api = 1
    formats: tuple[str, ...] = ("m4a", "mp4", "webm", "mkv", "aac", "wma", "amr")

    def can_read(self, head: bytes) -> bool:
        """Whether a file that starts with `head` (its first 64 bytes or fewer) needs PyAV, and PyAV is here."""
        return container(head) == "pyav" and importlib.util.find_spec("av") is not None

    def read(self, source: Path | BinaryIO, start: float, end: float | None, limit: float | None) -> Decoded:
        """Decode from `start` to `end` seconds, at most `limit` seconds. Raises `AudioError` (`not_audio`)."""
        wanted = None if end is None else max(0.0, end - start)
        most = limit if wanted is None else wanted if limit is None else min(wanted, limit)
        parts: list[np.ndarray] = []
        got, budget = 0, None
        for block in self.blocks(source, start, end):
            budget = None if most is None else round(most * block.rate)
            parts.append(block.samples)
            got += len(block.samples)
            if budget is not None and got > budget:
                break
        samples = np.concatenate([part for part in parts if len(part)] or parts)
        if budget is None or len(samples) < budget:
            claimed = block.claimed if block.claimed is None or budget is None else min(block.claimed, budget)
            return Decoded(samples, block.rate, claimed, block.problem)
        return Decoded(samples[:budget], block.rate, budget, None, more=got > budget and most != wanted)

    def blocks(self, source: Path | BinaryIO, start: float = 0.0, end: float | None = None) -> Iterator[Decoded]:
        """The same in blocks of some thousand frames: flat memory for audio of any length.

        Only the last block, which is empty, has `claimed` (for the whole of what was asked for) and `problem`.
        """
        import av

        with contextlib.ExitStack() as closing:
            # Opened here and not by FFmpeg, for which a name like `concat:a.m4a` is an address.
            handle = closing.enter_context(source.open("rb")) if isinstance(source, Path) else source
            file = closing.enter_context(_opened(av, handle, label(source)))
            if not file.streams.audio:
                raise AudioError(
                    f"{label(source)} has no audio stream", fix="give a file with sound", reason="not_audio"
                )
            stream = file.streams.audio[0]
            rate = int(stream.rate or 0)
            if not MIN_RATE <= rate <= MAX_RATE:
                raise AudioError(
                    f"{label(source)} says {rate} samples per second",
                    possible=f"{MIN_RATE} to {MAX_RATE}",
                    reason="not_audio",
                )
            first, last = round(start * rate), None if end is None else round(end * rate)
            claimed = _claimed(file, stream, rate, first, last)
            at = done = 0
            channels, problem = max(int(stream.codec_context.channels or 1), 1), None
            for samples, why in _frames(av, file, stream):
                problem = why
                part = samples[max(0, first - at) : None if last is None else max(0, last - at)]
                at += len(samples)
                if len(part):
                    done, channels = done + len(part), part.shape[1]
                    yield Decoded(part, rate)
                if last is not None and at >= last:
                    break
            if claimed is not None and done >= claimed:
                claimed = None  # codecs pad their last frame: more than was promised is no damage
            yield Decoded(np.zeros((0, channels), np.float32), rate, claimed, problem)


def _opened(av: Any, handle: BinaryIO, name: str) -> Any:
    try:
        return av.open(handle, mode="r", metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise AudioError(
            f"{name} starts like audio but does not decode ({error.strerror})",
            fix="download it again",
            reason="not_audio",
        ) from error


def _claimed(file: Any, stream: Any, rate: int, first: int, last: int | None) -> int | None:
    """Frames that the container promises from `first` to `last`, None where it promises nothing."""
    if stream.duration is not None and stream.time_base is not None:
        seconds = stream.duration * Fraction(stream.time_base)
    elif file.duration is not None and len(file.streams) == 1:
        seconds = Fraction(file.duration, 1_000_000)
    else:
        return None
    total = int(seconds * rate)
    return max(0, (total if last is None else min(total, last)) - first)


def _frames(av: Any, file: Any, stream: Any) -> Iterator[tuple[np.ndarray, str | None]]:
    """(samples (S, channels) float32, None) of every decoded frame; at the end the decoder's message, if it gave up."""
    resampler = av.AudioResampler(format="fltp")  # the format of samples only: rate and channels stay
    try:
        for frame in file.decode(stream):
            for planar in resampler.resample(frame):
                yield np.ascontiguousarray(planar.to_ndarray().T, dtype=np.float32), None
        for planar in resampler.resample(None):
            yield np.ascontiguousarray(planar.to_ndarray().T, dtype=np.float32), None
    except av.error.FFmpegError as error:
        if not isinstance(error, av.error.EOFError):
            yield np.zeros((0, 1), np.float32), str(error.strerror)
