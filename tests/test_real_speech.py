"""The main job on real recordings: the peer test, twenty Common Voice clips, audio of other kinds."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import asrkit
from asrkit.experiment import Result, train
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA

ROOT = Path(__file__).resolve().parents[1]
CORPUS = "cv-corpus-6.1-2020-12-11/es"


def run(folder: Path, name: str, *overrides: tuple[str, Any]) -> Result:
    path = next((ROOT / "recipes").rglob(f"{name}.yaml"))
    options = [("data.cache", str(folder / "cache")), *((key, str(value)) for key, value in overrides)]
    recipe = load_recipe(path, options, known=SCHEMA)
    return train(recipe, "", folder / "run", say=lambda _: None)


def test_peer_test_is_beaten(tmp_path: Path, shared_data: Path) -> None:
    """SpeechBrain's own script ends its CTC integration test with train loss 0.54 and asks for 1.0."""
    pytest.importorskip("torch")
    result = run(tmp_path, "peer_speechbrain_ctc", ("data.root", shared_data / "speechbrain_asr_ctc"))
    assert result.last["step"] == 120
    assert result.last["train"]["utterances"] == 8
    assert result.last["train"]["loss"] < 0.54
    assert json.loads((result.bundle / "config.json").read_text())["labels"] == 44


@pytest.mark.slow
def test_twenty_real_clips_are_learned_by_heart(tmp_path: Path, shared_data: Path) -> None:
    from asrkit.evaluation import evaluate
    from asrkit.preparation import prepare

    options = [
        ("data.root", shared_data / CORPUS), ("width", 128), ("encoder", "sequence_batch_norm"),
        ("data.max_utterances", 20), ("training.epochs", 200), ("training.lr", 1.5e-3),
        ("training.schedule", "warmup"), ("training.warmup_share", 0.05), ("training.hold_share", 0.5),
        ("training.batch_size", 2), ("training.evaluate_every", 200), ("training.checkpoint_every", 200),
    ]  # fmt: skip
    result = run(tmp_path, "model2", *options)
    model = asrkit.load(result.bundle)
    recipe = load_recipe(result.folder / "resolved.yaml")
    split = prepare(recipe, ("train",), tokenizer=model.tokenizer).splits["train"]
    assert len(split) == 20
    assert evaluate(model.model, model.tokenizer, split).characters.rate < 0.05


def test_audio_of_other_kinds_transcribes_without_a_warning(tmp_path: Path, shared_data: Path) -> None:
    """48 kHz mp3, 44.1 kHz stereo ogg, 8 kHz wav through a bundle trained for one epoch."""
    result = run(
        tmp_path, "model2", ("data.root", shared_data / CORPUS), ("width", 16), ("training.epochs", 1),
        ("data.max_utterances", 6), ("training.tensorboard", "false"),
    )  # fmt: skip
    clips = [
        next((shared_data / CORPUS / "clips").glob("*.mp3")),
        next((shared_data / "tuxpaint_stamps_es" / "clips").glob("*.ogg")),
        next((shared_data / "asterisk_core_es" / "clips").rglob("*.wav")),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transcripts = asrkit.load(result.bundle).transcribe(clips)
    assert [t.status for t in transcripts] == ["ok"] * 3
    assert all(t.seconds > 0.3 for t in transcripts)


def test_every_language_folder_opens(shared_data: Path) -> None:
    """The rows of five real release folders, quotes and all."""
    from asrkit.corpus import open_corpus

    for language in ("es", "ca", "pt", "it", "fr"):
        root = shared_data / "cv-corpus-6.1-2020-12-11" / language
        corpus = open_corpus(root)
        for split in ("train", "dev", "test"):
            lines = (root / f"{split}.tsv").read_text(encoding="utf-8").count("\n")
            assert len(corpus.read(split)) == lines - 1
