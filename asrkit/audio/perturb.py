"""Waveform augmentation: speed, noise and loudness, drawn anew for every epoch and utterance.

All random numbers of an utterance come from (seed, epoch, id), so neither the order of batches nor a stop and a
resumption changes them. Epoch 0 is the clean waveform. Noise files are listened to before the first epoch: one that
cannot be used is left out and named, and does not stop training on the day that it is drawn.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asrkit.audio import num_samples_after, read_audio, resample
from asrkit.errors import AudioError, DataError, RecipeError

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff")
SLOWEST, FASTEST, FINEST = Fraction(1, 2), Fraction(2), 100  # speeds, and the largest denominator of one
NOISE_SECONDS = 60.0  # of every noise file, from its start
CHECKED_SECONDS = 5.0  # of every noise file, before training
logger = logging.getLogger(__name__)
LOWEST_HZ = 20.0  # below it, generated noise is flat


@dataclass(frozen=True)
class Noise:
    """Noise for a `share` of the utterances, at a signal-to-noise ratio uniform in `snr_db` (low, high).

    files: where it comes from; none: it is generated, with power falling as 1/f^a, a uniform in [0, 1] (white to pink).
    fingerprint: hash of the names and sizes of the files, "" if there are none.
    """

    share: float
    snr_db: tuple[float, float]
    files: tuple[Path, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True)
class Perturbation:
    """What `augment:` asks for. `speeds` ascend; `gain_db` is (low, high)."""

    seed: int
    sample_rate: int
    speeds: tuple[Fraction, ...] = ()
    noise: Noise | None = None
    gain_db: tuple[float, float] | None = None

    def speed(self, epoch: int, identity: str, allowed: int | None = None) -> Fraction:
        """The speed of this utterance in this epoch, one of the `allowed` slowest (None: of all), 1 if there is none.

        Speed s turns S samples into `num_samples(S, s)` and raises the pitch with it, as in Ko et al. 2015.
        """
        speeds = self.speeds[:allowed]
        if epoch == 0 or not speeds:
            return Fraction(1)
        return speeds[int.from_bytes(self._digest(epoch, identity)[16:24], "big") % len(speeds)]

    def __call__(self, samples: np.ndarray, epoch: int, identity: str, allowed: int | None = None) -> np.ndarray:
        """Samples (S,) float32 -> (S',) float32, S' = `num_samples(S, speed(...))`; the input is left as it is."""
        speed = self.speed(epoch, identity, allowed)
        samples = resample(samples, speed.numerator, speed.denominator)
        if epoch == 0:
            return samples
        random = np.random.default_rng(int.from_bytes(self._digest(epoch, identity)[:16], "big"))
        if self.noise is not None and random.random() < self.noise.share:
            samples = samples + self._noise(self.noise, samples, random)
        if self.gain_db is not None:
            samples = samples * np.float32(10 ** (random.uniform(*self.gain_db) / 20))
        return samples

    def _digest(self, epoch: int, identity: str) -> bytes:
        return hashlib.sha256(f"{self.seed}/{epoch}/{identity}".encode()).digest()

    def _noise(self, noise: Noise, samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Noise (S,) float32 at its level below the mean power of the samples; zeros for digital silence."""
        ratio = random.uniform(*noise.snr_db)
        if noise.files:
            recorded = _recorded(noise.files[random.integers(len(noise.files))], self.sample_rate)
            start = int(random.integers(len(recorded)))
            values = np.take(recorded, np.arange(start, start + len(samples)), mode="wrap")
        else:
            values = _generated(len(samples), self.sample_rate, random.random(), random)
        power, signal = float(values @ values), float(samples @ samples)
        if power == 0:
            return np.zeros_like(samples)
        return values * np.float32(math.sqrt(signal / power) * 10 ** (-ratio / 20))


def num_samples(samples: int, speed: Fraction) -> int:
    """How many samples are left of so many at this speed."""
    return num_samples_after(samples, speed.numerator, speed.denominator)


def build_perturbation(recipe: dict[str, Any]) -> Perturbation | None:
    """What the recipe's `augment:` asks for; None where it asks for nothing.

    Noise files that cannot be used are left out and logged. Raises RecipeError (`augment`) for values that make no
    sense, DataError (`noise_folder`) for a folder without usable audio.
    """
    section = recipe.get("augment") or {}
    noise = section.get("noise") or {}
    speeds, gain = section.get("speed"), section.get("gain_db")
    share = _number("augment.noise.share", noise.get("share", 0.0), 0, 1)
    if not share and noise.get("folder") is not None:
        raise RecipeError(
            f"augment.noise.folder = {noise['folder']!r}, but augment.noise.share is 0: no noise would be added",
            possible="a share above 0 of the utterances, or no folder",
            fix="--augment.noise.share=0.5, or --augment.noise.folder=null",
            reason="augment",
        )
    wanted = _speeds(speeds) if speeds else ()
    if wanted in ((), (Fraction(1),)) and not share and gain is None:
        return None
    return Perturbation(
        seed=int(recipe["seed"]),
        sample_rate=int(recipe["data"]["sample_rate"]),
        speeds=wanted,
        noise=_build_noise(noise, share, int(recipe["data"]["sample_rate"])) if share else None,
        gain_db=None if gain is None else _range("augment.gain_db", gain),
    )


def _speeds(given: Any) -> tuple[Fraction, ...]:
    try:
        speeds = {Fraction(str(speed)) for speed in given}
        good = all(SLOWEST <= speed <= FASTEST and speed.denominator <= FINEST for speed in speeds)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise RecipeError(
            f"augment.speed = {given!r}",
            possible=f"a list of speeds from {float(SLOWEST)} to {float(FASTEST)} with up to two decimals",
            fix="--augment.speed='[0.9, 1.0, 1.1]'",
            reason="augment",
        )
    return tuple(sorted(speeds))


def _build_noise(options: dict[str, Any], share: float, sample_rate: int) -> Noise:
    ratio = _range("augment.noise.snr_db", options.get("snr_db", (10, 30)))
    if options.get("folder") is None:
        return Noise(share, ratio)
    folder = Path(options["folder"]).expanduser()
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    states = tuple((path, *_state(path)) for path in found)
    files = _usable(states, sample_rate)
    if not files:
        raise DataError(
            f"augment.noise.folder: {folder} holds no audio"
            + (f" that can be used, {len(found)} files that cannot" if found else ""),
            possible=", ".join(SUFFIXES),
            fix="give a folder of noise recordings, or null for generated noise",
            reason="noise_folder",
        )
    named = [f"{path.relative_to(folder).as_posix()} {size}" for path, size, _ in states if path in set(files)]
    return Noise(share, ratio, files, hashlib.sha256("\n".join(named).encode(errors="surrogateescape")).hexdigest())


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change."""
    try:
        stat = os.stat(path)
    except OSError:  # reading it will say why
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=8)
def _usable(states: tuple[tuple[Path, int, int], ...], sample_rate: int) -> tuple[Path, ...]:
    """The files whose first seconds decode; the others are logged, once. Raises StorageError where the disk fails."""
    files = [path for path, _, _ in states]
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(partial(_fault, sample_rate=sample_rate), files))
    for fault in filter(None, faults):
        logger.warning("augment.noise.folder: left out: %s", fault)
    return tuple(path for path, fault in zip(files, faults, strict=True) if not fault)


def _fault(path: Path, sample_rate: int) -> str:
    """Why a noise file cannot be used, "" if it can."""
    try:
        _heard(path, sample_rate, CHECKED_SECONDS)
    except AudioError as error:
        return f"{error.what} ({error.reason})"
    return ""


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RecipeError(f"{name} = {value!r}", possible=f"a number from {low:g} to {high:g}", reason="augment")
    return float(value)


def _range(name: str, value: Any) -> tuple[float, float]:
    """Two numbers of decibels, the lower one first."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise RecipeError(f"{name} = {value!r}", possible="[low, high] in decibels", reason="augment")
    low, high = (_number(name, end, -100, 100) for end in value)
    if low > high:
        raise RecipeError(f"{name} = {value!r}", fix="write the lower one first", reason="augment")
    return low, high


@lru_cache(maxsize=64)
def _recorded(path: Path, sample_rate: int) -> np.ndarray:
    """Samples (S,) of the first `NOISE_SECONDS` of a file; where these cannot be used, of the part that was checked."""
    try:
        return _heard(path, sample_rate, NOISE_SECONDS)
    except AudioError:
        return _heard(path, sample_rate, CHECKED_SECONDS)


def _heard(path: Path, sample_rate: int, seconds: float) -> np.ndarray:
    return read_audio(path, sample_rate, max_seconds=seconds, keep_truncated=True).samples


def _generated(size: int, sample_rate: int, fall: float, random: np.random.Generator) -> np.ndarray:
    """Normal noise (S,) float32 whose power falls as 1/f^fall above `LOWEST_HZ`."""
    whole = 1 << max(size - 1, 1).bit_length()  # other sizes take their Fourier transform up to ten times as long
    spectrum = torch.fft.rfft(torch.from_numpy(random.standard_normal(whole, dtype=np.float32)))
    spectrum *= (_log_frequencies(whole, sample_rate) * (-fall / 2)).exp_()
    return torch.fft.irfft(spectrum, whole)[:size].numpy()


@lru_cache(maxsize=16)
def _log_frequencies(size: int, sample_rate: int) -> torch.Tensor:
    return torch.fft.rfftfreq(size, 1 / sample_rate).clamp_(min=LOWEST_HZ).log_()
