"""Which epoch is kept, when a run is over, and what a run may go on with: choices that are easy to get silently
wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import metrics, run
from toy import make_corpus, toy_recipe

from asrkit.bundle import load_bundle
from asrkit.errors import DataError, RecipeError
from asrkit.evaluation import evaluate
from asrkit.preparation import prepare
from asrkit.training import CTCBrain


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_the_bundle_is_the_best_epoch_that_dev_has_judged(tmp_path: Path, corpus: Path) -> None:
    """Epochs without a look at dev do not compete, however low their train error is."""
    result = run(tmp_path, corpus, ("training.epochs", 11), ("training.evaluate_every", 4))
    looked = [line for line in metrics(result.folder) if line["type"] == "epoch" and "dev" in line]
    assert [line["epoch"] for line in looked] == [4, 8, 11]
    best = min(looked, key=lambda line: line["dev"]["cer"] + 1e-3 * line["dev"]["loss"])
    assert result.best["epoch"] == best["epoch"]
    # The weights in the bundle are those that gave the figures.
    bundle = load_bundle(result.bundle)
    recipe = toy_recipe(tmp_path, corpus)
    split = prepare(recipe, ("dev",), tokenizer=bundle.tokenizer).splits["dev"]
    assert evaluate(bundle.model, bundle.tokenizer, split).characters.rate == pytest.approx(best["dev"]["cer"])


def test_a_better_epoch_is_saved_between_checkpoints(tmp_path: Path, corpus: Path) -> None:
    result = run(tmp_path, corpus, ("training.epochs", 5), ("training.checkpoint_every", 5))
    looked = [line for line in metrics(result.folder) if line["type"] == "epoch"]
    best = min(looked, key=lambda line: line["dev"]["cer"] + 1e-3 * line["dev"]["loss"])
    assert result.best["epoch"] == best["epoch"]


def test_without_dev_the_train_loss_chooses(tmp_path: Path, corpus: Path) -> None:
    result = run(tmp_path, corpus, ("data.dev", "null"), ("training.epochs", 3))
    epochs = [line for line in metrics(result.folder) if line["type"] == "epoch"]
    assert result.best["epoch"] == min(epochs, key=lambda line: line["train"]["loss"])["epoch"]


def test_a_run_that_is_over_stays_over(tmp_path: Path, corpus: Path) -> None:
    options = [("encoder", "none"), ("training.lr", 1e-12), ("training.epochs", 20), ("training.early_stopping", 2)]
    first = run(tmp_path, corpus, *options)
    assert first.last["epoch"] == 3
    again = run(tmp_path, corpus, *options)
    assert metrics(again.folder) == metrics(first.folder)
    assert again.last["epoch"] == 3
    more = run(tmp_path, corpus, *options[:3], ("training.early_stopping", 4))  # more patience: it goes on
    assert more.last["epoch"] == 5


def test_other_data_in_the_same_run_are_refused(tmp_path: Path, corpus: Path) -> None:
    run(tmp_path, corpus, ("training.epochs", 1))
    moved = tmp_path / "moved"
    moved.symlink_to(corpus)
    run(tmp_path, moved, ("training.epochs", 2))  # the same data elsewhere: it goes on
    other = make_corpus(tmp_path / "other", seed=9)
    with pytest.raises(RecipeError, match="begun on other data: train, dev differ") as error:
        run(tmp_path, other, ("training.epochs", 3))
    assert error.value.exit_code == 2


def test_a_failed_first_attempt_does_not_claim_the_folder(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path, tmp_path / "nowhere", ("training.lr", 0.5))
    assert run(tmp_path, corpus, ("training.epochs", 1)).last["epoch"] == 1


def test_the_report_is_there_when_a_split_has_nothing_left(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"data_report\.jsonl|too_long"):
        run(tmp_path, corpus, ("data.max_seconds", 0.1))
    lines = (tmp_path / "run" / "data_report.jsonl").read_text().splitlines()
    assert {json.loads(line)["excluded"] for line in lines} == {"too_long"}


def test_the_test_set_does_not_depend_on_the_model(tmp_path: Path, corpus: Path) -> None:
    """A coarser model may not drop the clips that are too fast for it from what it is scored on."""
    hashes = set()
    for stride in (1, 12):
        recipe = toy_recipe(tmp_path, corpus, ("layers.0.context.stride", stride), ("data.max_bad", 1.0))
        hashes.add(prepare(recipe, ("test",)).splits["test"].hash)
    assert len(hashes) == 1


def test_the_limit_of_bad_clips_is_that_of_the_clips_asked_for(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "cv", train=40)
    for row in (corpus / "train.tsv").read_text().splitlines()[1:5]:
        (corpus / "clips" / row.split("\t")[1]).write_text("<html>")
    options = [("training.epochs", 1), ("data.max_bad", 0.15)]
    assert run(tmp_path, corpus, *options, output="all").last["train"]["utterances"] == 36  # 4 of 40
    with pytest.raises(DataError, match="4 of 6"):
        run(tmp_path, corpus, *options, ("data.max_utterances", 6), output="six")


def test_dither_is_off_in_what_is_cached(tmp_path: Path, corpus: Path) -> None:
    tables = []
    for name in ("one", "two"):
        recipe = toy_recipe(tmp_path / name, corpus, ("features.options", "{size: 16, high_hz: 0.0, dither: 1.0}"))
        tables.append(prepare(recipe, ("dev",)).splits["dev"].table.features(0))
    np.testing.assert_array_equal(tables[0], tables[1])


def test_a_refused_batch_takes_its_whole_accumulation_group_with_it(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 clips, one a batch, groups of 4; the sixth is poisoned: the second group is as if it had not been."""
    fit_batch = CTCBrain.fit_batch
    states: dict[int, dict[str, torch.Tensor]] = {}

    def poisoned(brain: CTCBrain, batch: Any) -> torch.Tensor:
        index = brain.position.batch
        states[index] = {name: value.clone() for name, value in brain.modules.state_dict().items()}
        if index == 5:
            batch.features[0, 0, 0] = float("inf")
        return fit_batch(brain, batch)

    monkeypatch.setattr(CTCBrain, "fit_batch", poisoned)
    options = [
        ("training.accumulation", 4),
        ("training.batch_size", 1),
        ("norm.batch", "micro"),
        ("training.epochs", 1),
    ]
    result = run(tmp_path, corpus, *options)
    figures = result.last["train"]
    assert figures["utterances"] == 8
    assert figures["updates"] == 2
    assert figures["refused_batches"] == 1
    assert all(torch.equal(states[4][name], states[8][name]) for name in states[4])
    assert not all(torch.equal(states[0][name], states[4][name]) for name in states[0])


def test_several_processes_are_refused(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="torchrun"):
        run(tmp_path, corpus)


def test_epoch_records_hold_what_a_reader_looks_for(tmp_path: Path, corpus: Path) -> None:
    result = run(tmp_path, corpus, ("training.epochs", 1))
    train = result.last["train"]
    # layers: 0 context, 1 linear, 2 norm, 3 relu, 4 bigru, 5 dropout, then the output layer
    assert set(train["grad_norm_by_layer"]) == {"1", "2", "4", "ctc"}
    assert all(value > 0 for value in train["grad_norm_by_layer"].values())
    assert train["lr"] == 0.01
    assert result.last["memory_mb"] > 50
    assert "epoch   1/1" in (result.folder / "log.txt").read_text()


def test_global_cmvn_is_that_of_the_train_split(tmp_path: Path, corpus: Path) -> None:
    result = run(tmp_path, corpus, ("cmvn.mode", "global"), ("training.epochs", 1))
    split = prepare(toy_recipe(tmp_path, corpus), ("train",)).splits["train"]
    frames = np.concatenate([split.table.features(row) for row in split.rows]).astype(np.float64)
    cmvn = load_bundle(result.bundle).model.acoustic.cmvn
    np.testing.assert_allclose(cmvn.mean.numpy(), frames.mean(0), rtol=1e-4)
    np.testing.assert_allclose(cmvn.deviation.numpy(), frames.std(0), rtol=1e-4)
