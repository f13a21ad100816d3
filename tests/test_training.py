"""The training loop on a corpus of tones: it learns, repeats itself and resumes bit by bit.

Bad batches, kills and signals are in faults/.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from toy import make_corpus, sigterm_after, toy_recipe

from asrkit import experiment
from asrkit.errors import DataError, RecipeError, StoppedError
from asrkit.experiment import train
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA
from asrkit.registry import list_plugins
from asrkit.runs import MetricsLog

ENCODERS = [plugin.name for plugin in list_plugins("encoders") if plugin.package == "asrkit"]
TIMES = ("seconds", "cpu_seconds", "frames_per_second", "memory_mb")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def run(folder: Path, corpus: Path, *overrides: tuple[str, Any], output: str = "run") -> experiment.Result:
    return train(toy_recipe(folder, corpus, *overrides), "", folder / output, say=lambda _: None)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what may differ: times."""
    lines = MetricsLog.read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_there_are_nine_encoders() -> None:
    assert sorted(ENCODERS) == [
        "batch_renorm", "frame_batch_norm", "group_norm", "instance_norm", "layer_norm", "none", "rms_norm",
        "sequence_batch_norm", "weight_norm",
    ]  # fmt: skip


def test_it_learns_and_leaves_what_it_promises(tmp_path: Path, corpus: Path) -> None:
    result = run(
        tmp_path, corpus, ("training.epochs", 40), ("training.evaluate_every", 40), ("training.checkpoint_every", 40)
    )
    assert result.last["train"]["cer"] < 0.25
    assert result.last["dev"]["cer"] < 0.5
    names = {path.name for path in result.folder.iterdir()}
    expected = {"recipe.yaml", "resolved.yaml", "env.json", "metrics.jsonl", "data_report.jsonl", "curves.png", "model"}
    assert expected <= names
    assert {path.name for path in result.bundle.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokens.txt",
        "README.md",
    }
    epochs = [line for line in metrics(result.folder) if line["type"] == "epoch"]
    assert len(epochs) == 40
    assert {"loss", "cer", "wer", "blank", "empty", "grad_norm"} <= epochs[0]["train"].keys()
    config = json.loads((result.bundle / "config.json").read_text())
    assert config["splits"]["train"] != config["splits"]["dev"]


def test_the_resolved_recipe_is_a_recipe_without_its_constants(tmp_path: Path, corpus: Path) -> None:
    resolved = run(tmp_path, corpus, ("training.epochs", 1)).folder / "resolved.yaml"
    recipe = load_recipe(resolved, known=SCHEMA)  # refuses a key that nothing uses, such as `width` once it is used up
    written = toy_recipe(tmp_path / "again", corpus, ("training.epochs", 1), ("data.cache", recipe["data"]["cache"]))
    assert written.pop("width") == 16
    assert recipe == written
    with pytest.raises(RecipeError, match=r"another recipe: .*layers.1.linear: 16 -> 24"):
        run(tmp_path, corpus, ("training.epochs", 1), ("width", 24))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_same_seed_same_metrics(tmp_path: Path, corpus: Path, encoder: str) -> None:
    one = run(tmp_path, corpus, ("encoder", encoder), ("training.epochs", 2), output="one")
    two = run(tmp_path, corpus, ("encoder", encoder), ("training.epochs", 2), output="two")
    assert metrics(one.folder) == metrics(two.folder)
    assert weights(one.folder) == weights(two.folder)
    other = run(tmp_path, corpus, ("encoder", encoder), ("training.epochs", 2), ("seed", 2), output="three")
    assert metrics(other.folder) != metrics(one.folder)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("accumulation", "step"), [(1, 2), (1, 5), (2, 3)])
def test_resume_after_a_stop_is_bit_identical(
    tmp_path: Path, corpus: Path, encoder: str, accumulation: int, step: int
) -> None:
    """Dropout, SpecAugment, statistics, optimizer, meters: all as if nothing had happened."""
    options = [
        ("encoder", encoder),
        ("training.accumulation", accumulation),
        ("norm.batch", "micro"),
        ("training.epochs", 2),
    ]
    whole = run(tmp_path, corpus, *options, output="whole")
    with sigterm_after(step), pytest.raises(StoppedError, match="SIGTERM") as error:
        run(tmp_path, corpus, *options, output="stopped")
    assert error.value.exit_code == 75
    assert len(metrics(tmp_path / "stopped")) < len(metrics(whole.folder))
    resumed = run(tmp_path, corpus, *options, output="stopped")
    assert metrics(resumed.folder) == metrics(whole.folder)
    assert weights(resumed.folder) == weights(whole.folder)


def test_more_epochs_go_on_from_the_end(tmp_path: Path, corpus: Path) -> None:
    run(tmp_path, corpus, ("training.epochs", 1))
    result = run(tmp_path, corpus, ("training.epochs", 3))
    assert [line["epoch"] for line in metrics(result.folder) if line["type"] == "epoch"] == [1, 2, 3]
    assert "already trained" not in (result.folder / "log.txt").read_text()
    run(tmp_path, corpus, ("training.epochs", 3))
    assert "already trained, to epoch 3; training.epochs=3" in (result.folder / "log.txt").read_text()


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path, corpus: Path) -> None:
    run(tmp_path, corpus, ("training.epochs", 1))
    with pytest.raises(RecipeError, match=r"training\.lr: 0\.01 -> 0\.02") as error:
        run(tmp_path, corpus, ("training.epochs", 1), ("training.lr", 0.02))
    assert "--output" in str(error.value)


def test_the_tail_of_an_accumulation_is_stepped(tmp_path: Path, corpus: Path) -> None:
    """12 utterances, one per batch, factor 5: 3 updates an epoch, none lost."""
    result = run(
        tmp_path,
        corpus,
        ("encoder", "layer_norm"),
        ("training.batch_size", 1),
        ("training.accumulation", 5),
        ("training.epochs", 2),
    )
    assert result.last["step"] == 6


def test_accumulation_equals_the_joint_batch(tmp_path: Path, corpus: Path) -> None:
    """Without statistics over the batch and without dropout, 2 x half the batch is the whole batch."""
    common = [("encoder", "layer_norm"), ("layers", "[{linear: 8}, norm, {bigru: 8}]"), ("spec_augment.freq_masks", 0),
              ("training.order", "file"), ("training.batch_frames", 100000), ("training.epochs", 1)]  # fmt: skip
    joint = run(tmp_path, corpus, *common, ("training.batch_size", 4), output="joint")
    halves = run(tmp_path, corpus, *common, ("training.batch_size", 2), ("training.accumulation", 2), output="halves")
    norms = [[line["grad_norm"] for line in metrics(r.folder) if line["type"] == "update"] for r in (joint, halves)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_batch_norm_with_accumulation_must_be_meant(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(RecipeError, match=r"norm\.batch=micro"):
        run(tmp_path, corpus, ("training.accumulation", 2))
    with pytest.raises(RecipeError, match="batch_size = 1"):
        run(tmp_path, corpus, ("encoder", "frame_batch_norm"), ("training.batch_size", 1))


def test_early_stopping(tmp_path: Path, corpus: Path) -> None:
    result = run(
        tmp_path,
        corpus,
        ("encoder", "none"),
        ("training.lr", 1e-12),
        ("training.epochs", 20),
        ("training.early_stopping", 2),
    )
    assert result.last["epoch"] == 3


def test_bfloat16_trains(tmp_path: Path, corpus: Path) -> None:
    result = run(tmp_path, corpus, ("training.precision", "bf16"), ("training.epochs", 1))
    assert result.last["train"]["loss"] > 0


def test_impossible_clips_are_excluded_counted_and_named(tmp_path: Path) -> None:
    """Too short for its labels, not audio, empty text: three reasons, three lines, and the rest trains."""
    corpus = make_corpus(tmp_path / "cv", train=12)
    lines = (corpus / "train.tsv").read_text().splitlines()
    lines[1] = lines[1].replace(lines[1].split("\t")[3], "a" * 60)
    lines[2] = lines[2].replace(lines[2].split("\t")[3], "...")
    (corpus / "train.tsv").write_text("\n".join(lines) + "\n")
    (corpus / "clips" / lines[3].split("\t")[1]).write_text("<html>")
    with pytest.raises(DataError, match="3 of 12"):
        run(tmp_path, corpus, ("training.epochs", 1), output="strict")
    result = run(tmp_path, corpus, ("training.epochs", 1), ("data.max_bad", 0.5))
    report = [json.loads(line) for line in (result.folder / "data_report.jsonl").read_text().splitlines()]
    excluded = {line["excluded"]: line for line in report if "excluded" in line}
    assert excluded.keys() == {"too_short_for_ctc", "empty_text", "not_audio"}
    assert excluded["too_short_for_ctc"]["needed"] == 119
    assert result.last["train"]["utterances"] == 9


def test_characters_outside_the_alphabet(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "cv")
    text = (corpus / "train.tsv").read_text()
    first = text.splitlines()[1].split("\t")[3]
    (corpus / "train.tsv").write_text(text.replace(first, "abe 80% ŷ"))
    with pytest.raises(DataError, match="U\\+0177") as error:
        run(tmp_path, corpus, output="error")
    assert error.value.exit_code == 3
    result = run(tmp_path, corpus, ("text.unknown", "drop"), ("data.max_bad", 0.5), ("training.epochs", 1))
    assert result.last["train"]["utterances"] == 11


def test_no_corpus_and_no_data(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.root"):
        run(tmp_path, corpus, ("data.root", "null"))


def test_global_cmvn_comes_from_the_train_split(tmp_path: Path, corpus: Path) -> None:
    result = run(tmp_path, corpus, ("cmvn.mode", "global"), ("training.epochs", 1))
    config = json.loads((result.bundle / "config.json").read_text())
    assert config["recipe"]["cmvn"]["mode"] == "global"


def test_features_are_computed_once(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run reads the Arrow files; a changed clip is noticed."""
    run(tmp_path, corpus, ("training.epochs", 1), output="first")
    with monkeypatch.context() as patch:
        patch.setattr("asrkit.preparation.clips.read_audio", None)
        run(tmp_path, corpus, ("training.epochs", 1), output="second")
        clip = next((corpus / "clips").iterdir())
        stat = clip.stat()
        os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        with pytest.raises(TypeError):
            run(tmp_path, corpus, ("training.epochs", 1), output="third")


def test_the_cache_opens_with_datasets(tmp_path: Path, corpus: Path) -> None:
    import datasets

    run(tmp_path, corpus, ("training.epochs", 1))
    [file] = (tmp_path / "cache").glob("train-*/*.arrow")
    table = datasets.Dataset.from_file(str(file))
    assert len(table) == 12
    assert set(table.column_names) == {"id", "frames", "features"}
