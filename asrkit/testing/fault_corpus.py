"""A corpus of tones in Common Voice layout that is made in milliseconds, with chosen faults in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asrkit.errors import RecipeError, nearest

RATE = 8000  # Hz
LETTERS = "abeiou"
HEADER = (
    "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\t"
    "locale\tsegment"
)


def tones(sentence: str, seed: int = 0) -> np.ndarray:
    """One tone of 60 ms per letter, silence for a space, a little noise: (S,) float32 at 8 kHz."""
    random = np.random.default_rng(seed)
    time = np.arange(int(0.06 * RATE)) / RATE
    waves = [
        (0.0 if letter == " " else 0.3) * np.sin(2 * np.pi * (300 + 450 * LETTERS.find(letter)) * time)
        for letter in sentence
    ]
    wave = np.concatenate([wave * np.hanning(len(time)) for wave in waves])
    return (wave + 0.003 * random.standard_normal(len(wave))).astype(np.float32)


def _write(path: Path, samples: np.ndarray) -> None:
    import soundfile

    soundfile.write(path, samples, RATE, subtype="FLOAT", format="WAV")


def _truncated(path: Path, samples: np.ndarray) -> None:
    _write(path, samples)
    path.write_bytes(path.read_bytes()[: 44 + 2 * len(samples)])  # of four bytes a sample


# What is wrong with a clip, and how: name -> (path, samples) -> the file. The names are the reason codes of data
# reports.
FAULTS: dict[str, Callable[[Path, np.ndarray], object]] = {
    "missing": lambda path, samples: path.unlink(missing_ok=True),
    "empty_file": lambda path, samples: path.write_bytes(b""),
    "not_audio": lambda path, samples: path.write_text("<html><title>404 Not Found</title></html>"),
    "truncated": _truncated,
    "nonfinite": lambda path, samples: _write(path, np.where(np.arange(len(samples)) == 99, np.nan, samples)),
    "bad_scale": lambda path, samples: _write(path, samples * 1e6),
    "silent": lambda path, samples: _write(path, samples * 1e-4),
    "too_short": lambda path, samples: _write(path, samples[:20]),
    "too_long": lambda path, samples: _write(path, np.tile(samples, 1 + 25 * RATE // len(samples))),  # over 25 s
    "too_short_for_ctc": _write,  # of 60 equal letters
    "empty_text": _write,
}
_TEXTS = {"too_short_for_ctc": "a" * 60, "empty_text": "..."}


def tiny_corpus(
    folder: str | Path, faults: Sequence[str] = (), *, train: int = 12, dev: int = 4, test: int = 4, seed: int = 1
) -> Path:
    """Write `clips/`, `train.tsv`, `dev.tsv` and `test.tsv` of made-up words over six letters; returns the folder.

    Args:
        folder: made when missing.
        faults: names of `FAULTS`; the i-th spoils the i-th clip of train, `common_voice_es_<i>`, from 0.
        train, dev, test: how many clips; speakers and sentences are in one split only.
        seed: another seed, other sentences.

    Raises:
        RecipeError: an unknown fault, or more faults than clips.
    """
    folder = Path(folder)
    for fault in faults:
        if fault not in FAULTS:
            raise RecipeError(f"fault {fault!r}", possible=nearest(fault, FAULTS), reason="fault")
    if len(faults) > train:
        raise RecipeError(f"{len(faults)} faults for {train} clips", fix="raise train", reason="fault")
    random = np.random.default_rng(seed)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    number, seen = 0, {""}
    for split, count in (("train", train), ("dev", dev), ("test", test)):
        rows = [HEADER]
        for index in range(count):
            fault = faults[number] if number < len(faults) else ""
            sentence = ""
            while sentence in seen:
                words = ["".join(random.choice(list(LETTERS), random.integers(2, 5))) for _ in range(3)]
                sentence = " ".join(words[: random.integers(2, 4)])
            seen.add(sentence)
            path = folder / "clips" / f"common_voice_es_{number}.wav"
            FAULTS.get(fault, _write)(path, tones(sentence, number))
            text = _TEXTS.get(fault, sentence.capitalize() + ".")
            rows.append(f"{split}{index % 3}\t{path.name}\t\t{text}\t\t2\t0\t\t\t\t\tes\t")
            number += 1
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
