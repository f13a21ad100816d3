"""Audio files and bytes to a mono waveform at one rate: the only home of decoders and of resampling.

Decoding goes block by block, so memory follows the samples that are really there and not what a header
claims. The first bytes decide what a file is, never its name. Whatever was done to a clip beyond decoding it
is in `Audio.notes`; whatever cannot be used is an `AudioError` with a reason code.
"""

from __future__ import annotations

import errno
import io
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asrkit import registry
from asrkit.audio.isolation import guard
from asrkit.audio.soundfile_reader import (
    Decoded,
    SoundfileReader,
    container,
    label,
)
from asrkit.disk import unreadable
from asrkit.errors import AudioError

__all__ = ["Audio", "Decoded", "SoundfileReader", "is_truncated", "num_samples_after", "read_audio", "resample"]

Source = str | Path | bytes | BinaryIO

MAX_PEAK = 8.0  # full scale is 1; louder than this is a wrong format, not loud speech
FULL_SCALE, CLIPPED_SHARE = 0.999, 0.01
SILENT_PEAK = 1e-3  # of full scale: -60 dB
TRUNCATED_SHARE, TRUNCATED_SECONDS = 0.02, 0.1
MIX_LOSS_DB = 20.0  # channels that cancel by more than this are in anti-phase
LONGEST = 600.0  # seconds of a clip of the test split, which no recipe shortens: what bounds memory there
MIN_OUTPUTS, ROWS = 32, 4096  # outputs per row of a resampling product, rows per product
READ = 1 << 20  # bytes
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)  # no such file; all else may pass
MAX_RATIO = 1_000  # largest numerator and denominator of a resampling ratio: bounds the filter bank


@dataclass(frozen=True)
class Audio:
    """One clip, decoded: `samples` (S,) float32, mono, full scale 1, at `sample_rate` samples per second.

    `notes` tells what a listener should know: `low_rate` (the source has less than the target rate),
    `clipped` (over 1 % of it at full scale), `anti_phase` (channels cancel, so the first one was taken),
    `cut` (reading stopped at `max_seconds` with more to come), `truncated` (with `keep_truncated`).
    `claimed_seconds` is what the header promises for the stretch that was read, None where it promises nothing.
    """

    samples: np.ndarray
    sample_rate: int
    source_rate: int
    source_channels: int
    notes: tuple[str, ...] = ()
    claimed_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Duration of `samples`."""
        return len(self.samples) / self.sample_rate


def read_audio(
    source: Source,
    sample_rate: int = 16000,
    *,
    start: float = 0.0,
    end: float | None = None,
    max_seconds: float | None = None,
    keep_truncated: bool = False,
) -> Audio:
    """Decode a file, bytes or an open binary file into a mono waveform at `sample_rate`.

    `start` and `end` are seconds in the source; at most `max_seconds` from `start` are read, however long the
    file is (note `cut`). Channels are averaged. With `keep_truncated` what is left of a truncated clip is
    returned with that note instead of raising.

    Raises `AudioError` with reason `missing`, `empty_file`, `not_audio`, `codec` (one that asrkit does not decode),
    `needs_pyav` (a format that needs PyAV), `truncated` (decoded and promised length differ by over 2 % and over 0.1 s,
    or the decoder gave up), `nonfinite`, `bad_scale` (peak over 8), `too_large` (over 2 GiB) or `no_samples`.
    Ogg, and MP3 without a Xing header, promise nothing that a clean cut would not shorten too: `clip_durations.tsv` is
    what shows those. Raises `StorageError` (`unreadable`) where the file is there and the disk, or a missing
    permission, does not let it be read.
    """
    name = label(source)
    if start < 0 or (end is not None and end <= start):
        raise AudioError(f"{name}: nothing lies between start={start} s and end={end} s", reason="no_samples")
    opened, head = open_source(source, name)
    decoded = _decode(opened, head, name, start, end, max_seconds)
    truncated = truncation(len(decoded.samples), decoded, name)
    if truncated is not None:
        _read_through(opened, name)
    if truncated is not None and not (keep_truncated and len(decoded.samples)):
        raise truncated
    check_samples(decoded.samples, name)
    mono, notes = to_mono(decoded.samples)
    if truncated is not None:
        notes.append("truncated")
    if np.count_nonzero(np.abs(decoded.samples) >= FULL_SCALE) > CLIPPED_SHARE * decoded.samples.size:
        notes.append("clipped")
    if decoded.rate < sample_rate:
        notes.append("low_rate")
    if decoded.more:
        notes.append("cut")
    samples = resample(mono, decoded.rate, sample_rate)
    claimed = None if decoded.claimed is None else decoded.claimed / decoded.rate
    return Audio(samples, sample_rate, decoded.rate, decoded.samples.shape[1], tuple(notes), claimed)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Change the rate of samples (S,) float32 to (S',), S' = `num_samples_after(S, from_rate, to_rate)`.

    Band-limited interpolation with a Hann-windowed sinc (torchaudio). Rates without a small common ratio are
    taken at the nearest one that has, which is off by under 0.1 %.
    """
    ratio = rate_ratio(from_rate, to_rate)
    if ratio == 1:
        return samples
    import torch

    orig, new = ratio.denominator, ratio.numerator
    matrix, before = filters(orig, new)
    taps, per_row = matrix.shape
    step = per_row // new * orig
    wanted = num_samples_after(len(samples), from_rate, to_rate)
    rows = -(-wanted // per_row)
    padded = torch.zeros(max((rows - 1) * step + taps, before + len(samples)))
    padded[before : before + len(samples)] = torch.from_numpy(samples)
    windows = padded.unfold(0, taps, step)[:rows]
    out = torch.empty(rows, per_row)
    for row in range(0, rows, ROWS):  # `windows` overlap and are copied for the product: a part at a time
        torch.mm(windows[row : row + ROWS], matrix, out=out[row : row + ROWS])
    return out.view(-1)[:wanted].numpy()


def num_samples_after(samples: int, from_rate: int, to_rate: int) -> int:
    """How many samples `resample` returns for `samples` of them."""
    ratio = rate_ratio(from_rate, to_rate)
    return math.ceil(samples * ratio.numerator / ratio.denominator)


def rate_ratio(from_rate: int, to_rate: int) -> Fraction:
    ratio = Fraction(to_rate, from_rate)
    if max(ratio.numerator, ratio.denominator) <= MAX_RATIO:
        return ratio
    if ratio < 1:
        return ratio.limit_denominator(MAX_RATIO)
    return 1 / (1 / ratio).limit_denominator(MAX_RATIO)


@lru_cache(maxsize=16)
def filters(orig: int, new: int) -> tuple[Any, int]:
    """torchaudio's polyphase filters as one matrix (taps, outputs), and how many zeros go before the samples.

    A product with `orig` samples in and `new` out is a thin one, so several steps share a matrix: this is
    several times faster than torchaudio's own convolution.
    """
    import torch
    from torchaudio.transforms import Resample

    design = Resample(orig, new, dtype=torch.float64)  # in float32 the filters are off by up to 2e-5
    kernel = design.kernel[:, 0].T.float()  # (taps, new)
    repeats = -(-MIN_OUTPUTS // new)
    matrix = torch.zeros((repeats - 1) * orig + len(kernel), repeats * new)
    for i in range(repeats):
        matrix[i * orig : i * orig + len(kernel), i * new : (i + 1) * new] = kernel
    return matrix, design.width


def open_source(source: Source, name: str) -> tuple[Path | BinaryIO, bytes]:
    """Something a reader can open (a path, or a seekable stream at 0) and its first bytes."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        try:
            with path.open("rb") as file:
                head = file.read(64)
        except IsADirectoryError as error:
            raise AudioError(
                f"{name} is a folder", fix="name an audio file, or a folder that holds some", reason="not_audio"
            ) from error
        except ValueError as error:  # a name that no file can have
            raise AudioError(f"{name} cannot be opened: {error}", fix="check the path", reason="missing") from error
        except OSError as error:
            if error.errno not in MISSING:
                raise unreadable(error, name) from error
            why = error.strerror
            raise AudioError(f"{name} cannot be opened: {why}", fix="check the path", reason="missing") from error
        opened: Path | BinaryIO = path
    else:
        try:
            data = source if isinstance(source, bytes) else source.read()
        except OSError as error:
            raise unreadable(error, name) from error
        opened, head = io.BytesIO(data), data[:64]
    if not head:
        raise AudioError(f"{name} is empty (0 bytes)", fix="record or download it again", reason="empty_file")
    return opened, head


def _decode(
    opened: Path | BinaryIO, head: bytes, name: str, start: float, end: float | None, limit: float | None
) -> Decoded:
    """What the reader of this format makes of it."""
    reader = reader_of(head, name)
    try:
        decoded: Decoded = reader.read(opened, start, end, limit)
    except OSError as error:
        raise unreadable(error, name) from error
    except AudioError:
        _read_through(opened, name)
        raise
    return decoded


def _read_through(opened: Path | BinaryIO, name: str) -> None:
    """Read a file to its end: decoders call it damaged when it is the disk that fails. Raises `StorageError`."""
    if isinstance(opened, Path):
        try:
            with opened.open("rb", buffering=0) as file:
                while file.read(READ):
                    pass
        except OSError as error:
            raise unreadable(error, name) from error


def reader_of(head: bytes, name: str) -> Any:
    """The built-in reader where it knows the format, else the first plugin that does."""
    builtin = SoundfileReader()
    if builtin.can_read(head):
        return guard("soundfile", builtin)
    for plugin, guest in registry.loadable("audio").items():
        if plugin != "soundfile" and (reader := guest()).can_read(head):
            return guard(plugin, reader)
    possible = ", ".join(builtin.formats)
    if container(head) == "pyav":
        raise AudioError(
            f"{name} is m4a, mp4, webm or alike, which needs PyAV",
            possible=possible,
            fix="pip install 'asrkit[audio]', or convert it to flac",
            reason="needs_pyav",
        )
    raise AudioError(
        f"{name} is not audio: it starts with {head[:16]!r}",
        possible=possible,
        fix="download it again; a web page saved under an audio name starts with '<'",
        reason="not_audio",
    )


def is_truncated(seconds: float, claimed: float) -> bool:
    """Whether a decoded length differs from a claimed one by over 2 % and over 0.1 s."""
    off = abs(claimed - seconds)
    return off > TRUNCATED_SHARE * claimed and off > TRUNCATED_SECONDS


def truncation(frames: int, decoded: Decoded, name: str) -> AudioError | None:
    """The error for a clip of which the decoder gives another number of frames than its headers promise, or gives
    up."""
    seconds = frames / decoded.rate
    if decoded.claimed is not None and is_truncated(seconds, decoded.claimed / decoded.rate):
        return AudioError(
            f"{name} decodes to {seconds:.2f} s, its headers say {decoded.claimed / decoded.rate:.2f} s",
            fix="download it again, or convert it to flac",
            reason="truncated",
        )
    if decoded.problem is not None:
        return AudioError(
            f"{name}: decoding stops at {seconds:.2f} s ({decoded.problem})",
            fix="download it again",
            reason="truncated",
        )
    return None


def check_samples(samples: np.ndarray, name: str) -> None:
    """Raise `AudioError` if these samples (S, channels) cannot be used."""
    again = "download it again"
    if len(samples) == 0:
        raise AudioError(
            f"{name} holds no samples here", fix="record it again, or change start and end", reason="no_samples"
        )
    # The largest magnitude is NaN or Inf when any sample is: one pass answers both questions.
    peak = max(float(samples.max()), -float(samples.min()))
    if not math.isfinite(peak):
        raise AudioError(f"{name} has samples that are NaN or infinite", fix=again, reason="nonfinite")
    if peak > MAX_PEAK:
        raise AudioError(
            f"{name} peaks at {peak:.3g} where full scale is 1",
            possible=f"at most {MAX_PEAK:g}",
            fix="write it as 16-bit, or divide by its full scale",
            reason="bad_scale",
        )


def to_mono(samples: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Mean of the channels, or the first one where they cancel. (S, channels) -> (S,)"""
    if samples.shape[1] == 1:
        return samples[:, 0], []
    channels = samples.shape[1]
    mono = samples @ np.full(channels, 1 / channels, np.float32)
    power, left = float(np.square(samples).mean()), float(np.square(mono).mean())
    if power > 0 and left < power * 10 ** (-MIX_LOSS_DB / 10):
        return np.ascontiguousarray(samples[:, 0]), ["anti_phase"]
    return mono, []
