"""A bundle gives what the model gave, and anything that is not what it says is refused before it is used."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from toy import RATE, make_corpus, tones, toy_recipe

import asrkit
from asrkit.bundle import load_bundle
from asrkit.errors import AsrkitError, AudioError, StorageError, TrustError
from asrkit.experiment import Result, train
from asrkit.transcribe import find_audio


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("trained")
    corpus = make_corpus(folder / "cv")
    recipe = toy_recipe(
        folder, corpus, ("training.epochs", 25), ("training.evaluate_every", 25), ("training.checkpoint_every", 25)
    )
    return train(recipe, "", folder / "run", say=lambda _: None), corpus


@pytest.fixture
def copy(trained: tuple[Result, Path], tmp_path: Path) -> Path:
    """A bundle of one's own to damage."""
    for path in trained[0].bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def wave(sentence: str = "abe iou", seed: int = 5) -> np.ndarray:
    return tones(sentence, seed)


def test_every_kind_of_input_gives_the_same_text(trained: tuple[Result, Path], tmp_path: Path) -> None:
    model = asrkit.load(trained[0].bundle)
    path = tmp_path / "clip.wav"
    soundfile.write(path, wave(), RATE, subtype="FLOAT")
    text = model.transcribe(path).text
    assert text
    assert model.transcribe(str(path)).text == text
    assert model.transcribe(path.read_bytes()).text == text
    assert model.transcribe(io.BytesIO(path.read_bytes())).text == text
    assert model.transcribe((wave(), RATE)).text == text
    assert [t.text for t in model.transcribe([path, (wave(), RATE)])] == [text, text]
    assert asrkit.load(trained[0].folder).transcribe(path).text == text  # the run folder will do


def test_text_does_not_depend_on_company(trained: tuple[Result, Path]) -> None:
    """Alone, in batches, in any order: the same words, times and confidences."""
    model = asrkit.load(trained[0].bundle)
    sources = [
        (wave(text, seed), RATE) for seed, text in enumerate(["a", "abe iou", "be", "iou abe oui", "eee aa", "u" * 30])
    ]
    alone = [model.transcribe(source) for source in sources]
    together = model.transcribe(sources)
    backwards = model.transcribe(sources[::-1])[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert one.text == two.text == three.text
        assert [(w.word, w.start, w.end) for w in one.words] == [(w.word, w.start, w.end) for w in two.words]
        assert [w.confidence for w in one.words] == pytest.approx([w.confidence for w in two.words], abs=1e-3)


def test_words_have_times_and_confidences(trained: tuple[Result, Path]) -> None:
    transcript = asrkit.load(trained[0].bundle).transcribe((wave("abe iou bebe"), RATE))
    assert " ".join(word.word for word in transcript.words) == transcript.text
    for word in transcript.words:
        assert 0 <= word.start < word.end <= transcript.seconds
        assert 0 < word.confidence <= 1
    data = json.loads(transcript.to("json"))
    assert data["text"] == transcript.text
    assert transcript.to("txt") == transcript.text + "\n"


def test_bad_input_in_a_list_stops_nothing(trained: tuple[Result, Path], tmp_path: Path) -> None:
    model = asrkit.load(trained[0].bundle)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "page.mp3").write_text("<html>")
    sources = [
        tmp_path / "empty.wav",
        (wave(), RATE),
        tmp_path / "page.mp3",
        tmp_path / "nowhere.wav",
        (wave()[:30], RATE),
    ]
    results = model.transcribe(sources)
    assert [r.status for r in results] == ["empty_file", "ok", "not_audio", "missing", "too_short"]
    with pytest.raises(AudioError, match="nowhere"):
        model.transcribe(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match="shape"):
        model.transcribe((np.zeros((5, 2)), RATE))


def test_log_probs(trained: tuple[Result, Path]) -> None:
    model = asrkit.load(trained[0].bundle)
    log_probs = model.log_probs((wave(), RATE))
    assert log_probs.logsumexp(-1).abs().max() < 1e-4
    assert len(log_probs) == model.model.num_frames(len(wave()))


def test_find_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.mp3", "a.wav", "deep/c.FLAC", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in find_audio([str(tmp_path)])] == ["a.wav", "b.mp3", "c.FLAC"]
    assert [p.name for p in find_audio([str(tmp_path / "*.wav"), str(tmp_path / "b.mp3")])] == ["a.wav", "b.mp3"]
    monkeypatch.chdir(tmp_path)
    assert [p.name for p in find_audio(["*.mp3", "missing.wav"])] == ["b.mp3", "missing.wav"]


def edit(config: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        config(data)
        (folder / "config.json").write_text(json.dumps(data))

    return change


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """New weights with a matching hash: what a hostile author would do."""
    import hashlib

    save_file(tensors, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit(lambda c: c["files"].update({"model.safetensors": digest}))(folder)


def poison(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.linear.bias"][0] = float("nan")
    rewrite(folder, tensors)


def reshape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.linear.bias"] = torch.zeros(10**6)
    rewrite(folder, tensors)


def huge_header(folder: Path) -> None:
    import hashlib

    data = struct.pack("<Q", 1 << 40) + b"{}"
    (folder / "model.safetensors").write_bytes(data)
    edit(lambda c: c["files"].update({"model.safetensors": hashlib.sha256(data).hexdigest()}))(folder)


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))


def scale(folder: Path) -> None:
    rewrite(folder, {k: v * 1.5 for k, v in load_file(folder / "model.safetensors").items()})


def outside(folder: Path) -> None:
    edit(lambda c: c["files"].update({"../evil.txt": "0" * 64}))(folder)


def link(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (poison, TrustError, "not finite"),
        (reshape, TrustError, "has shape"),
        (huge_header, TrustError, "header"),
        (outside, TrustError, "no asrkit model has"),
        (link, TrustError, "link"),
        (flip, StorageError, "damaged"),
        (scale, StorageError, "numbers it gave"),
        (
            edit(lambda c: c["encoder"].update(name="someones_norm", package="someones-pkg")),
            TrustError,
            "pip install someones-pkg",
        ),
        (edit(lambda c: c.pop("recipe")), TrustError, "missing or malformed: recipe"),
        (edit(lambda c: c.update(format=99)), StorageError, "format 99"),
        (lambda f: (f / "config.json").write_text("[" * 10**5), TrustError, "not an asrkit model"),
        (lambda f: (f / "config.json").write_text(" " * (2 << 20)), TrustError, "1 MiB"),
        (lambda f: (f / "config.json").unlink(), StorageError, "no config.json"),
        (lambda f: (f / "tokens.txt").write_text("x 1\n"), StorageError, "damaged"),
    ],
)
def test_damage_is_refused(copy: Path, damage: Callable[[Path], None], kind: type[AsrkitError], message: str) -> None:
    load_bundle(copy)  # it was whole
    damage(copy)
    with pytest.raises(kind, match=message) as error:
        load_bundle(copy)
    assert error.value.exit_code == (7 if kind is TrustError else 5)
