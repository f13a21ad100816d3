"""A corpus in Common Voice layout that takes milliseconds: every letter is a tone, so a tiny model can learn it;
and how its training is stopped half-way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA

RATE = 8000
LETTERS = "abeiou"
HEADER = (
    "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\t"
    "locale\tsegment"
)


def tones(sentence: str, seed: int) -> np.ndarray:
    """60 ms a letter, a silence for the space, a little noise: (S,) float32."""
    random = np.random.default_rng(seed)
    time = np.arange(int(0.06 * RATE)) / RATE
    parts = []
    for letter in sentence:
        level = 0.0 if letter == " " else 0.3
        frequency = 300 + 450 * LETTERS.find(letter)
        parts.append(level * np.sin(2 * np.pi * frequency * time) * np.hanning(len(time)))
    wave = np.concatenate(parts)
    return (wave + 0.003 * random.standard_normal(len(wave))).astype(np.float32)


def make_corpus(folder: Path, train: int = 12, dev: int = 4, test: int = 4, seed: int = 1) -> Path:
    """`folder` with clips/ and three tables; speakers, sentences and audio are in one split only."""
    random = np.random.default_rng(seed)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    number, seen = 0, set()
    for split, count in (("train", train), ("dev", dev), ("test", test)):
        rows = [HEADER]
        for index in range(count):
            sentence = ""
            while not sentence or sentence in seen:
                words = [
                    "".join(random.choice(list(LETTERS), random.integers(2, 5))) for _ in range(random.integers(2, 4))
                ]
                sentence = " ".join(words)
            seen.add(sentence)
            name = f"common_voice_es_{number}.wav"
            soundfile.write(folder / "clips" / name, tones(sentence, number), RATE, subtype="PCM_16")
            rows.append(f"{split}{index % 3}\t{name}\t\t{sentence.capitalize()}.\t\t2\t0\t\t\t\t\tes\t")
            number += 1
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


RECIPE = """
name: toy
encoder: sequence_batch_norm
width: 16
layers:
  - context: {left: 1, right: 1, stride: 2}
  - linear: !ref <width>
  - norm
  - relu
  - bigru: !ref <width>
  - dropout: 0.1
data: {root: null, sample_rate: 8000}
features: {name: fbank, options: {size: 16, high_hz: 0.0}}
spec_augment: {freq_masks: 1, freq_width: 2, time_masks: 0}
training:
  epochs: 3
  lr: 1.0e-2
  schedule: constant
  batch_frames: 300
  tensorboard: false
"""


def toy_recipe(folder: Path, corpus: Path, *overrides: tuple[str, Any]) -> dict[str, Any]:
    """The resolved toy recipe over this corpus, its cache inside `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    options = [("data.root", str(corpus)), ("data.cache", str(folder / "cache"))]
    return load_recipe(path, options + [(key, str(value)) for key, value in overrides], known=SCHEMA)


@contextmanager
def sigterm_after(step: int) -> Iterator[None]:
    """Training in this process is told to stop when it has made its update number `step`."""
    from asrkit.training import CTCBrain  # seconds of imports that most tests do not need

    update = CTCBrain._update

    def update_then_signal(brain: Any, batch: Any) -> bool:
        done = update(brain, batch)
        if brain.position.update == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CTCBrain, "_update", update_then_signal)
        yield


def trained_bundle(folder: Path) -> Path:
    """The model folder of a toy run that has learned to read tones."""
    from asrkit.experiment import train

    recipe = toy_recipe(
        folder, make_corpus(folder / "cv"), ("training.epochs", 25), ("training.evaluate_every", 25),
        ("training.checkpoint_every", 25),
    )  # fmt: skip
    return train(recipe, "", folder / "run", say=lambda _: None).bundle
