"""What can be transcribed: paths, pieces of files, bytes, open files, arrays; and the audio files among what a command
line names, or a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from asrkit.audio import MAX_PEAK, Audio, read_audio, resample
from asrkit.audio.stream import audio_blocks
from asrkit.corpus.tables import read_rows
from asrkit.disk import unreadable
from asrkit.errors import AudioError, DataError

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aiff", ".aif", ".au",
    ".m4a", ".m4b", ".mp4", ".webm", ".mkv", ".mka", ".mov", ".3gp", ".aac", ".wma", ".amr",
)  # fmt: skip
ARRAY_RATES = (1_000, 1_000_000)  # samples per second that an array may have


@dataclass(frozen=True)
class Piece:
    """A part of a file, from `start` to `end` in seconds (None: its end). Times of its words count from `start`."""

    file: Path
    start: float
    end: float | None = None

    @property
    def place(self) -> Path:
        """A name of its own beside its file: talk.wav -> talk#1.500-4.000.wav."""
        end = "" if self.end is None else f"-{self.end:.3f}"
        return self.file.with_name(f"{self.file.stem}#{self.start:.3f}{end}{self.file.suffix}")

    @property
    def name(self) -> str:
        """The last part of `place`, as that of a Path."""
        return self.place.name

    def __str__(self) -> str:
        return str(self.place)


Source = str | Path | Piece | bytes | BinaryIO | tuple[np.ndarray | Tensor, int]


@dataclass(frozen=True)
class Input:
    """One input, opened as far as one pass of the model goes: all of it in `audio`, or, with `long`, its beginning."""

    name: str
    source: Path | bytes | None  # what `blocks` reads again; None: it is all in `audio`
    audio: Audio
    long: bool
    start: float = 0.0  # seconds in `source`
    end: float | None = None

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples as blocks (S,), however many there are; each call begins anew."""
        if self.source is None:
            return iter([self.audio.samples])
        blocks = audio_blocks(self.source, self.audio.sample_rate)
        if not self.start and self.end is None:
            return blocks
        end = None if self.end is None else round(self.end * self.audio.sample_rate)
        return _between(blocks, round(self.start * self.audio.sample_rate), end)


def open_input(source: Source, sample_rate: int, one_pass: int | None = None) -> Input:
    """Decode up to `one_pass` samples (None: all). Raises AudioError and StorageError as `read_audio` does, for
    arrays `bad_array`, `bad_rate`, and for what is none of these `bad_source`."""
    name = name_of(source)
    if isinstance(source, tuple):
        samples, rate = _array(source)
        audio = Audio(resample(samples, rate, sample_rate), sample_rate, rate, 1, ())
        return Input(name, None, audio, one_pass is not None and len(audio.samples) > one_pass)
    again: Path | bytes
    start, end = 0.0, None
    if isinstance(source, Piece):
        again, start, end = source.file, source.start, source.end
    elif isinstance(source, str | Path):
        again = Path(source)
    else:
        again = _bytes(source, name)
    limit = None if one_pass is None else one_pass / sample_rate
    audio = read_audio(again, sample_rate, start=start, end=end, max_seconds=limit)
    return Input(name, again, audio, "cut" in audio.notes, start, end)


def name_of(source: Source) -> str:
    """What to call an input in its transcript."""
    if isinstance(source, str | Path | Piece):
        return str(source)
    if isinstance(source, tuple | np.ndarray | Tensor):
        return "array"
    return str(getattr(source, "name", "bytes"))


def find_audio(inputs: Sequence[str]) -> list[Path]:
    """Files, folders (searched through, by suffix) and glob patterns -> audio files, in the order given, sorted
    within.

    What has none (a missing file, an empty folder, a pattern that matches nothing) stays as it was given, so that it
    becomes a result with its status and not a silent gap.
    """
    found: list[Path] = []
    for given in inputs:
        path = Path(given)
        files: Iterable[Path] = ()
        if path.is_dir():
            files = (p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
        elif not path.exists():
            matches = glob(given, recursive=True, include_hidden=True)
            files = (Path(match) for match in matches if os.path.isfile(match))
        found += sorted(files) or [path]
    return found


def read_clips(table: Path, required: Sequence[str] = ("path",)) -> list[tuple[Path | Piece, str]]:
    """(clip, sentence or nothing) of the rows of a table; clips lie beside it, or in clips/ as in Common Voice. A row
    with `start` or `end` is that piece of its clip.

    required: columns that the table must have. Raises DataError: `missing_table`, and what `read_rows` and `Row.span`
    raise.
    """
    if not table.is_file():
        raise DataError(f"{table}: no such file", fix="give a .tsv, .csv or .jsonl table", reason="missing_table")
    found: list[tuple[Path | Piece, str]] = []
    for row in read_rows(table, required):
        cells, (start, end) = row.cells, row.span()
        clip = table.parent / cells["path"]
        if not clip.is_file() and (table.parent / "clips" / cells["path"]).is_file():
            clip = table.parent / "clips" / cells["path"]
        whole = not start and end is None
        found.append((clip if whole else Piece(clip, start, end), cells.get("sentence", "")))
    return found


def _between(blocks: Iterator[np.ndarray], first: int, last: int | None) -> Iterator[np.ndarray]:
    """Of blocks (S,) the samples from `first` on, up to `last` (None: all)."""
    begin = 0
    for block in blocks:
        yield block[max(0, first - begin) : None if last is None else max(0, last - begin)]
        begin += len(block)
        if last is not None and begin >= last:
            return


def _bytes(source: Any, name: str) -> bytes:
    """The contents of bytes or of an open binary file. Raises AudioError (`bad_source`) for what is neither."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    what = f"an input of type {type(source).__name__}"
    if hasattr(source, "read"):
        try:
            data = source.read()
        except OSError as error:
            raise unreadable(error, name) from error
        except UnicodeDecodeError:
            data = ""  # a file of bytes that was opened as text
        if isinstance(data, bytes):
            return data
        what = "an open file that reads as text"
    raise AudioError(
        what,
        possible="a path, a Piece, bytes, an open binary file, or samples with their rate: (samples, 16000)",
        fix="open files with 'rb'" if hasattr(source, "read") else "give an array as (samples, its rate in Hz)",
        reason="bad_source",
    )


def _array(source: tuple[Any, ...]) -> tuple[np.ndarray, int]:
    """(samples (S,), rate) as a caller gives them -> float32 samples, full scale 1, and a whole rate.

    Raises AudioError: `bad_array`, `bad_rate`, or as for files `no_samples`, `nonfinite`, `bad_scale`.
    """
    possible = "finite samples (S,) with their rate: (samples, 16000)"
    if len(source) != 2:
        raise AudioError(f"a tuple of {len(source)}", possible=possible, reason="bad_array")
    given, rate = source
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    samples = np.asarray(given)
    if samples.ndim != 1 or samples.dtype.kind not in "fiu":
        fix = "average the channels: (samples.mean(axis), rate)" if samples.ndim == 2 else None
        what = f"an array of shape {samples.shape}, {samples.dtype}"
        raise AudioError(what, possible=possible, fix=fix, reason="bad_array")
    if samples.dtype.kind in "iu" and samples.dtype.itemsize > 4:  # nobody records them, and 16-bit values get into one
        raise AudioError(
            f"an array of {samples.dtype}, whose full scale is anyone's guess",
            possible="floats with full scale 1, or integers of at most 32 bits",
            fix="say what they are, as in samples.astype('int16')",
            reason="bad_array",
        )
    try:
        whole = int(rate)
    except (TypeError, ValueError, OverflowError):
        whole = -1
    if isinstance(rate, str | bytes | bool) or whole != rate or not ARRAY_RATES[0] <= whole <= ARRAY_RATES[1]:
        raise AudioError(
            f"an array with the rate {rate!r}",
            possible=f"{ARRAY_RATES[0]} to {ARRAY_RATES[1]} samples per second, a whole number",
            reason="bad_rate",
        )
    return _full_scale(samples), whole


def _full_scale(samples: np.ndarray) -> np.ndarray:
    """Samples (S,) of any type -> float32 with full scale 1; AudioError if that cannot be."""
    if samples.size == 0:
        raise AudioError("an array without samples", possible="at least one", reason="no_samples")
    if samples.dtype.kind in "iu":
        middle = 2.0 ** (8 * samples.dtype.itemsize - 1)  # unsigned samples have silence in the middle, as in WAV
        offset = middle if samples.dtype.kind == "u" else 0.0
        return ((samples.astype(np.float64) - offset) / middle).astype(np.float32)
    peak = float(np.abs(samples).max())  # NaN or infinite if any sample is
    if not np.isfinite(peak):
        raise AudioError(f"an array of shape {samples.shape} with NaN or infinity", reason="nonfinite")
    if peak > MAX_PEAK:
        raise AudioError(
            f"an array that peaks at {peak:.3g} where full scale is 1",
            possible=f"at most {MAX_PEAK:g}",
            fix="divide by its full scale (32768 for 16-bit values)",
            reason="bad_scale",
        )
    return samples.astype(np.float32)
