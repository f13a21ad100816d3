"""Speakers and their voices: espeak-ng through ctypes, and what a microphone adds (level, noise).

espeak-ng keeps pitch flutter, wave phase, echo and a random state from one utterance to the next, and neither a new
voice nor `espeak_Initialize` resets all of it: the same sentence sounds different after another one. So the library is
loaded afresh for every utterance (about a millisecond), from a copy that nobody else in the process can hold open, and
its random generator is seeded; the audio then depends on its arguments alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asrkit.errors import DataError, RecipeError

RATE = 16_000  # of the clips, in hertz; speech recognition works at this rate
_ESPEAK_RATE = 22_050
_FIX = "pip install 'asrkit[synth]'"

# Variants of espeak-ng with distinct, intelligible audio. Whispering, croaking and robot voices are left out, and so
# are the `klatt` ones (a different synthesizer, much slower), the ones that drawl and the one that speaks English.
FEMALE = ("f1", "f2", "f3", "f4", "f5", "Andrea", "Annie", "anika", "aunty", "belinda", "grandma", "linda", "steph")
MALE = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Andy", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo"),
    *("Jacky", "Lee", "Mario", "Michael", "Nguyen", "RicishayMax", "boris", "ed", "grandpa", "gustave", "ian", "iven"),
    *("iven2", "iven3", "john", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy"),
    *("rob", "robert", "shelby", "travis", "victor", "zac", "antonio"),
)
LANGUAGES = {"es": "España peninsular", "es-419": "América Latina"}

_AUDIO_OUTPUT_SYNCHRONOUS, _CHARS_UTF8 = 2, 1
_SPEED, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Speaker:
    """A voice variant with base values; every clip varies a little around them.

    `speed` is in words per minute, `pitch` and `pitch_range` are espeak's 0 .. 99, `level` is the speech's RMS in dB
    re full scale, `snr` the ratio of speech to noise in dB, `noise` is `white` or `pink`.
    """

    client_id: str
    language: str
    variant: str
    gender: str
    speed: float
    pitch: float
    pitch_range: float
    level: float
    snr: float
    noise: str


def make_speakers(count: int, seed: int) -> list[Speaker]:
    """`count` distinct speakers, the same for the same seed; every third one is a woman while there are new ones.

    Every variant is used once before one returns with the other Spanish; after that only the base values differ.
    """
    rng = random.Random(f"{seed} speakers")
    women, men = (iter(rng.sample(variants, len(variants))) for variants in (FEMALE, MALE))
    order: list[tuple[str, str, str]] = []
    for index in range(len(FEMALE) + len(MALE)):
        woman = next(women, None) if index % 3 == 2 else None
        gender = "female" if woman else "male"
        order.append((rng.choice(sorted(LANGUAGES)), woman or next(men), gender))
    other = {"es": "es-419", "es-419": "es"}
    order += [(other[language], variant, gender) for language, variant, gender in order]
    return [_make_speaker(index, seed, *order[index % len(order)]) for index in range(count)]


def _make_speaker(index: int, seed: int, language: str, variant: str, gender: str) -> Speaker:
    rng = random.Random(f"{seed} speaker {index}")
    return Speaker(
        client_id=hashlib.sha512(f"asrkit synthetic speaker {seed} {index}".encode()).hexdigest(),
        language=language,
        variant=variant,
        gender=gender,
        speed=rng.uniform(130, 180),
        pitch=rng.uniform(35, 65),
        pitch_range=rng.uniform(35, 65),
        level=rng.uniform(-32, -20),
        snr=rng.uniform(20, 38),
        noise=rng.choice(("white", "pink")),
    )


def speak(text: str, speaker: Speaker, rng: np.random.Generator, library: str) -> np.ndarray:
    """One clip, (S,) float32 at 16 kHz: the speaker's voice varied slightly by `rng`, with silence and noise around.

    `library` is what `private_library` yields. Raises DataError when espeak-ng says nothing for this text.
    """
    speed, pitch, span = (rng.normal(mean, width) for mean, width in ((speaker.speed, 8), (speaker.pitch, 3), (0, 4)))
    samples = espeak(
        text,
        f"{speaker.language}+{speaker.variant}",
        speed=round(float(np.clip(speed, 110, 230))),
        pitch=round(float(np.clip(pitch, 5, 95))),
        pitch_range=round(float(np.clip(speaker.pitch_range + span, 5, 95))),
        seed=int(rng.integers(1, 2**31)),
        library=library,
    )
    if not np.any(samples):
        raise DataError(
            f"espeak-ng has no sound for {text!r}", fix="give a sentence with Spanish words", reason="silent_sentence"
        )
    return _record(samples.astype(np.float64) / 32768, speaker, rng)


def _record(speech: np.ndarray, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Silence around the speech, 22.05 -> 16 kHz, the speaker's level, and noise of the wanted ratio."""
    before, after = (int(rng.uniform(0.1, 0.3) * _ESPEAK_RATE) for _ in range(2))
    block = 441 * 8  # 22050 : 16000 = 441 : 320, so whole blocks make the resampling below exact
    total = -(-(before + len(speech) + after) // block) * block
    spectrum = np.fft.rfft(np.pad(speech, (before, total - before - len(speech))))
    size = total // 441 * 320
    # Cutting the spectrum is ideal resampling; the ends of the clip are silent, so the transform's wrap is harmless.
    clip = np.fft.irfft(spectrum[: size // 2 + 1], size) * (320 / 441)
    loud = np.abs(clip) > 0.05 * np.abs(clip).max()
    clip *= 10 ** (rng.normal(speaker.level, 1.0) / 20) / np.sqrt(np.mean(clip[loud] ** 2))
    noise = _noise(size, speaker.noise, rng)
    snr = np.clip(rng.normal(speaker.snr, 1.5), 15, 40)
    clip += noise * np.sqrt(np.mean(clip[loud] ** 2)) / 10 ** (snr / 20)
    return (clip * min(1.0, 0.98 / np.abs(clip).max())).astype(np.float32)


def _noise(size: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(size)
    if kind == "pink":  # power falls with 1/f; below 50 Hz it stays flat, as no microphone hears more there
        frequency = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 50.0)
        noise = np.fft.irfft(np.fft.rfft(noise) / np.sqrt(frequency), size)
    return noise / np.sqrt(np.mean(noise**2))


@contextlib.contextmanager
def private_library() -> Iterator[str]:
    """The path of a copy of the espeak-ng library, for the time of the `with` block.

    A library stays loaded, with its state, while anybody in the process holds it (phonemizers do); a copy is ours.
    Raises RecipeError without the extra `synth`, or when the library does not load.
    """
    source = Path(find_espeak().get_library_path())
    with tempfile.TemporaryDirectory(prefix="asrkit-espeak-", ignore_cleanup_errors=True) as folder:
        copy = str(shutil.copy(source, folder))
        _unload(_load(copy))
        yield copy


def _load(path: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise RecipeError(
            f"espeak-ng does not load ({error})",
            fix=f"reinstall: {_FIX}; if the temporary folder may not run programs, set TMPDIR to one that may",
            reason="no_espeak",
        ) from error


def espeak(text: str, voice: str, *, speed: int, pitch: int, pitch_range: int, seed: int, library: str) -> np.ndarray:
    """What espeak-ng says, (S,) int16 at 22.05 kHz; depends on the arguments alone. See the module's docstring."""
    loaded = _load(library)
    try:
        return _synthesize(loaded, find_espeak().get_data_path(), text, voice, (speed, pitch, pitch_range, seed))
    finally:
        loaded.espeak_Terminate()
        _unload(loaded)


def _synthesize(
    library: ctypes.CDLL, data: str, text: str, voice: str, settings: tuple[int, int, int, int]
) -> np.ndarray:
    speed, pitch, pitch_range, seed = settings
    pieces: list[bytes] = []

    @_Callback
    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data.encode(), 0)
    if rate != _ESPEAK_RATE:
        raise RecipeError(f"espeak-ng does not start (rate {rate})", fix=f"reinstall: {_FIX}", reason="no_espeak")
    library.espeak_SetSynthCallback(collect)
    library.espeak_ng_SetRandSeed(ctypes.c_long(seed))  # breath noise
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise DataError(f"espeak-ng has no voice {voice!r}", fix=f"reinstall: {_FIX}", reason="no_voice")
    # Some variants clip at full volume; the level is set later.
    for parameter, value in ((_SPEED, speed), (_VOLUME, 60), (_PITCH, pitch), (_RANGE, pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)
    utf8 = text.encode() + b"\0"
    library.espeak_Synth(utf8, ctypes.c_size_t(len(utf8)), 0, 0, 0, _CHARS_UTF8, None, None)
    return np.frombuffer(b"".join(pieces), np.int16)


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    close: Any = getattr(_ctypes, "FreeLibrary" if sys.platform == "win32" else "dlclose")
    close(library._handle)


def find_espeak() -> Any:
    """The module that ships espeak-ng and its voices, or a RecipeError that says how to install it."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise RecipeError(
            "synthetic speech needs espeak-ng, which is not installed", fix=_FIX, reason="no_espeak"
        ) from error
    return espeakng_loader
