"""From the bytes of an audio file to samples and what its container promised: the libsndfile reader.

`asrkit.audio` calls it; a plugin of the group `asrkit.audio` offers a class with the same four members.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asrkit.audio.codecs import FORMATS, SUBTYPES, check_codec, refusal
from asrkit.audio.mp3_length import claimed_mp3_frames
from asrkit.errors import AudioError

BLOCK = 1 << 16  # frames per read
PIECE = 1 << 8  # frames per read near a place where decoding fails
MIN_RATE, MAX_RATE = 2_000, 768_000  # a forged rate would blow a small file up when it is resampled
MAX_CHANNELS = 64
MAX_VALUES = 1 << 29  # samples times channels of one read: a megabyte of flac can hold a day of silence in 8 channels
STREAMED_BYTES = 0x7FFFFF00  # what programs that write to a pipe put where the size belongs


@dataclass
class Decoded:
    """What a reader returns: samples (S, channels) float32 and what the container said about them.

    `claimed` is the number of frames the header promises for the interval that was asked for, None where the
    format makes no promise; `problem` is the decoder's own message where it gave up before the end; `more`
    says that the reader stopped at its limit.
    """

    samples: np.ndarray
    rate: int
    claimed: int | None = None
    problem: str | None = None
    more: bool = False


class SoundfileReader:
    """Everything libsndfile reads; also the contract of `asrkit.audio` plugins: the four members below."""

    asrkit_api = 1
    formats: tuple[str, ...] = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "au")

    def can_read(self, head: bytes) -> bool:
        """Whether a file that starts with `head` (its first 64 bytes or fewer) is one of `formats`."""
        return container(head) in self.formats

    def read(self, source: Path | BinaryIO, start: float, end: float | None, limit: float | None) -> Decoded:
        """Decode from `start` to `end` seconds, at most `limit` seconds. Raises `AudioError` (`not_audio`, `codec`).

        libsndfile keeps nothing of a read that fails. So where decoding fails, all is decoded once more from a fresh
        start, that last block in pieces: a damaged file loses no more than one of these, and a disk error that has
        passed nothing.
        """
        with quiet_decoders():
            decoded = self._read(source, start, end, limit)
            if decoded.problem is None:
                return decoded
            again = self._read(source, start, end, limit, good=len(decoded.samples))
            return again if len(again.samples) >= len(decoded.samples) else decoded

    def _read(
        self, source: Path | BinaryIO, start: float, end: float | None, limit: float | None, good: int | None = None
    ) -> Decoded:
        """`read`, once; after `good` frames in small pieces."""
        import soundfile

        if good is not None and not isinstance(source, Path):
            source.seek(0)
        with _open(soundfile, source) as file:
            rate, channels = _rate(file, source), file.channels
            first = round(start * rate)
            last = None if end is None else round(end * rate)
            most = None if limit is None else round(limit * rate)
            if first:
                try:
                    file.seek(first)
                except soundfile.LibsndfileError:  # beyond the end
                    return Decoded(np.zeros((0, channels), np.float32), rate)
            wanted = None if last is None else max(0, last - first)
            budget = wanted if most is None else most if wanted is None else min(wanted, most)
            samples, problem = _read_blocks(soundfile, file, budget, channels, good)
            more = budget == most != wanted and len(samples) == budget and _goes_on(soundfile, file)
            if budget == len(samples):
                return Decoded(samples, rate, budget, problem, more)
            claimed = _claimed_frames(file, source)
            if claimed is not None:
                claimed = max(0, claimed - first) if budget is None else min(max(0, claimed - first), budget)
            return Decoded(samples, rate, claimed, problem, more)

    def blocks(self, source: Path | BinaryIO, start: float = 0.0, end: float | None = None) -> Iterator[Decoded]:
        """The same in blocks of `BLOCK` frames, for audio of any length; optional for plugins.

        Only the last block, which may be empty, has `claimed` (for the whole of what was asked for) and `problem`.
        """
        import soundfile

        with quiet_decoders():
            opened = _open(soundfile, source)
        with opened as file:
            rate, channels, done, problem = _rate(file, source), file.channels, 0, None
            first = round(start * rate)
            budget = None if end is None else max(0, round(end * rate) - first)
            if first:
                try:
                    file.seek(first)
                except soundfile.LibsndfileError:  # beyond the end
                    budget = 0
            while budget is None or done < budget:
                size = BLOCK if budget is None else min(BLOCK, budget - done)
                try:
                    with quiet_decoders():
                        block = file.read(size, "float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    problem = error.error_string
                    break
                if not len(block):
                    break
                done += len(block)
                yield Decoded(block, rate)
            claimed = None if budget == done else _claimed_frames(file, source)
            if claimed is not None:
                claimed = max(0, claimed - first) if budget is None else min(max(0, claimed - first), budget)
            yield Decoded(np.zeros((0, channels), np.float32), rate, claimed, problem)


def _rate(file: Any, source: Path | BinaryIO) -> int:
    """Samples per second; AudioError if nobody records so many or so few."""
    rate = int(file.samplerate)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(
            f"{label(source)} says {rate} samples per second",
            possible=f"{MIN_RATE} to {MAX_RATE}",
            reason="not_audio",
        )
    return rate


def label(source: object) -> str:
    """What to call a source in an error: its path, or that it is bytes."""
    if isinstance(source, (str, Path)):
        return str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the given bytes"


def container(head: bytes) -> str:
    """The format that the first bytes announce: one of `SoundfileReader.formats`, `pyav`, or nothing."""
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] == b"OggS":
        return "opus" if b"OpusHead" in head else "ogg"
    starts = {
        b"fLaC": "flac",
        b".snd": "au",
        b"ID3": "mp3",
        b"\x1aE\xdf\xa3": "pyav",
        b"0&\xb2u": "pyav",
        b"#!AMR": "pyav",
    }
    for magic, container in starts.items():
        if head.startswith(magic):
            return container
    if head[4:8] == b"ftyp":  # mp4, m4a, 3gp
        return "pyav"
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:  # the sync word of MPEG audio
        layer, version = head[1] >> 1 & 3, head[1] >> 3 & 3
        if layer == 0:  # AAC in ADTS frames
            return "pyav"
        return "mp3" if version != 1 and head[2] >> 4 != 15 else ""
    return ""


def _open(soundfile: Any, source: Path | BinaryIO) -> Any:
    class Stream(soundfile.SoundFile):
        """Reads on without a seek after every block, which costs time and fails in FLAC of unknown length."""

        def seekable(self) -> bool:
            return False

    check_codec(source, label(source))
    # soundfile itself stumbles over names that are not valid UTF-8.
    named = os.fsencode(source) if isinstance(source, Path) and os.name != "nt" else source
    try:
        file = Stream(named)
    except (soundfile.LibsndfileError, TypeError) as error:
        why = getattr(error, "error_string", str(error))
        raise AudioError(
            f"{label(source)} starts like audio but does not decode ({why})",
            fix="download it again",
            reason="not_audio",
        ) from error
    if file.format in FORMATS and file.subtype in SUBTYPES and file.channels <= MAX_CHANNELS:
        return file
    file.close()
    raise refusal(label(source), f"{file.format} with {file.subtype} in {file.channels} channels")


def _goes_on(soundfile: Any, file: Any) -> bool:
    """Whether there is one more frame, be it one that does not decode."""
    try:
        return len(file.read(1)) == 1
    except soundfile.LibsndfileError:
        return True


def _read_blocks(
    soundfile: Any, file: Any, budget: int | None, channels: int, good: int | None
) -> tuple[np.ndarray, str | None]:
    """Samples (S, channels) up to `budget`, and the decoder's message where it gave up; after `good` frames in
    pieces."""
    blocks: list[np.ndarray] = []
    done, problem = 0, None
    while budget is None or done < budget:
        size = BLOCK if good is None or done + BLOCK <= good else good - done if done < good else PIECE
        try:
            block = file.read(size if budget is None else min(size, budget - done), "float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            problem = error.error_string
            break
        if not len(block):
            break
        blocks.append(block)
        done += len(block)
        if done * channels > MAX_VALUES:
            name = os.fsdecode(file.name) if isinstance(file.name, bytes) else label(file.name)
            raise AudioError(
                f"{name} decodes to over {MAX_VALUES * 4 >> 30} GiB of samples",
                fix="cut it into parts, or take stretches of it with start and end",
                reason="too_large",
            )
    return np.concatenate(blocks) if blocks else np.zeros((0, channels), np.float32), problem


def _claimed_frames(file: Any, source: Path | BinaryIO) -> int | None:
    """How many frames the container promises, None where it promises nothing."""
    frames = int(file.frames)
    if file.format == "OGG" or frames >= 1 << 62:  # Ogg has no total; FLAC may leave it open
        return None
    if file.format in ("MPEG", "MP3"):
        return claimed_mp3_frames(frames, file.samplerate, source)
    # libsndfile cuts a promise down to the size of the file, and logs what it was.
    was = re.search(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", file.extra_info)
    if was is None:
        return frames
    promised, found = int(was[1]), int(was[2])
    return None if promised >= STREAMED_BYTES else frames * promised // max(found, 1)


class _Noise:
    """Where file descriptor 2 points while decoders run: they write there past Python."""

    lock = threading.Lock()
    users = 0
    saved = -1
    caught: BinaryIO


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Swallow the lines that libmpg123 prints about damaged files; all other lines still reach stderr.

    What they mean is said by `truncated`. Threads share one redirection: the last one out restores it.
    """
    with _Noise.lock:
        if _Noise.users == 0:
            try:
                _Noise.saved = os.dup(2)
            except OSError:  # a process without stderr has nothing to keep clean
                _Noise.saved = -1
            else:
                sys.stderr.flush()
                _Noise.caught = tempfile.TemporaryFile()  # noqa: SIM115
                os.dup2(_Noise.caught.fileno(), 2)
        _Noise.users += 1
    try:
        yield
    finally:
        with _Noise.lock:
            _Noise.users -= 1
            if _Noise.users == 0 and _Noise.saved >= 0:
                os.dup2(_Noise.saved, 2)
                os.close(_Noise.saved)
                with _Noise.caught as caught:
                    caught.seek(0)
                    kept = [line for line in caught if not _DECODER_LINE.match(line)]
                if kept:
                    os.write(2, b"".join(kept))


_DECODER_LINE = re.compile(rb"\s*$|Note: |Warning: |.*libmpg123/")
