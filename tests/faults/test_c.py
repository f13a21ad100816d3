"""Rows C01 to C09 of the fault matrix: targets, lengths and batches that a CTC loss turns into nonsense in silence.

Through the command line where a run meets them: how it ended, what is on disk, and that a healthy run then succeeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import RATE, tones, toy_recipe
from trials import Trial

from asrkit import experiment, load
from asrkit.checkpoints import Checkpoints
from asrkit.ctc import CTCHead, ctc_loss
from asrkit.encoders import NormOptions
from asrkit.errors import AudioError, NumericError
from asrkit.experiment import train
from asrkit.model import encoder_class
from asrkit.preparation.splits import Split
from asrkit.registry import list_plugins
from asrkit.runs import MetricsLog
from asrkit.testing.faults import tiny_corpus
from asrkit.training import CTCBrain

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("quick")]

ENCODERS = [plugin.name for plugin in list_plugins("encoders") if plugin.package == "asrkit"]
ROWS = [f"c{number:02d}" for number in range(1, 10)]


def test_every_row_is_here() -> None:
    names = [name for name, value in globals().items() if name.startswith("test_c") and callable(value)]
    assert sorted({name.split("_")[1] for name in names}) == ROWS


def excluded(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "data_report.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["id"]: line for line in lines if "excluded" in line}


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in MetricsLog.read(folder / "metrics.jsonl") if line["type"] == kind]


def saved(folder: Path) -> list[str]:
    return [path.name for path in (folder / "checkpoints").glob("*")]


@pytest.mark.parametrize(("labels", "needed"), [([1, 2, 3], 3), ([1, 1, 1, 1], 7), ([1, 1, 2], 4)])
def test_c01_the_boundary_of_what_can_be_aligned(labels: list[int], needed: int) -> None:
    """One frame less than labels and repeats need is an error with the numbers; torch alone gives infinity, or 0."""
    targets, size = torch.tensor([labels]), torch.tensor([len(labels)])
    for frames in (needed - 1, needed, needed + 1):
        log_probs = torch.randn(1, frames, 5).log_softmax(-1)
        if frames >= needed:
            assert torch.isfinite(ctc_loss(log_probs, torch.tensor([frames]), targets, size)).all()
            continue
        with pytest.raises(NumericError, match=rf"clip: .* need {needed} frames, the encoder gives {frames}") as caught:
            ctc_loss(log_probs, torch.tensor([frames]), targets, size, ["clip"])
        assert (caught.value.exit_code, caught.value.reason) == (4, "too_short_for_ctc")


def test_c01_infeasible_clips_are_excluded_with_their_numbers(trial: Trial) -> None:
    """The mean is over the others: two of twelve do not make the loss better."""
    tiny_corpus(trial.corpus)
    assert trial.train("--training.epochs=1", output="whole").code == 0
    tiny_corpus(trial.corpus, ["too_short_for_ctc", "too_short_for_ctc"])
    assert trial.train("--training.epochs=1").end == (3, "too_many_excluded")
    assert saved(trial.run) == []
    found = excluded(trial.run)
    assert found.keys() == {"common_voice_es_0", "common_voice_es_1"}
    assert {(line["excluded"], line["labels"], line["needed"]) for line in found.values()} == {
        ("too_short_for_ctc", 60, 119)
    }
    assert all(line["frames"] < 119 for line in found.values())
    assert trial.train("--training.epochs=1", "--data.max_bad=0.5").code == 0
    [epoch], [whole] = records(trial.run, "epoch"), records(trial.folder / "whole", "epoch")
    assert epoch["train"]["utterances"] == 10
    assert epoch["train"]["loss"] > 0.9 * whole["train"]["loss"]
    card = (trial.run / "model" / "README.md").read_text(encoding="utf-8")
    assert "too_short_for_ctc" in card


def test_c02_lengths_are_those_of_the_real_convolutions() -> None:
    """11,325 pairs of batch and clip length: `num_frames` against what comes out; relative lengths fail a fifth."""
    layers = [{"conv": {"channels": 2, "kernel": 3, "stride": 2}}, {"conv": {"channels": 2, "kernel": 3, "stride": 2}}]
    encoder = encoder_class("none")(input_size=4, layers=layers, norm=NormOptions()).eval()
    wrong = pairs = 0
    with torch.inference_mode():
        shapes = [0] + [encoder(torch.zeros(1, n, 4), torch.tensor([n]))[0].shape[1] for n in range(1, 151)]
        for longest in range(1, 151):
            lengths = torch.arange(1, longest + 1)
            real = torch.tensor(shapes[1 : longest + 1])
            assert torch.equal(encoder.num_frames(lengths), real)
            assert int(encoder.num_frames(longest)) == shapes[longest]
            relative = (lengths / longest * shapes[longest]).round().long()
            wrong += int((relative != real).sum())
            pairs += longest
        given = torch.tensor([150, 77, 3])
        assert torch.equal(encoder(torch.zeros(3, 150, 4), given)[1], torch.tensor([shapes[n] for n in (150, 77, 3)]))
    assert pairs == 11325
    assert wrong / pairs > 0.15


def test_c03_empty_transcript(trial: Trial) -> None:
    tiny_corpus(trial.corpus, ["empty_text"])
    assert trial.train().end == (3, "too_many_excluded")
    assert saved(trial.run) == []
    assert {name: line["excluded"] for name, line in excluded(trial.run).items()} == {"common_voice_es_0": "empty_text"}
    assert trial.train("--training.epochs=1", "--data.max_bad=0.5").code == 0
    assert records(trial.run, "epoch")[0]["train"]["utterances"] == 11


def _relabelled(patch: pytest.MonkeyPatch, label: int) -> None:
    """One label of one train clip is another, after all checks of the preparation."""
    real = experiment.prepare

    def prepare(*args: Any, **options: Any) -> Any:
        prepared = real(*args, **options)
        prepared.splits["train"].labels[3][0] = label
        return prepared

    patch.setattr(experiment, "prepare", prepare)


def _labels_outside(trial: Trial, label: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _relabelled(patch, label)
        ended = trial.train()
    assert ended.end == (4, "target_out_of_range")
    assert f"target label {label}; possible: 1 to " in ended.error
    assert "common_voice_es_3" in ended.error
    assert all(step == "step-00000000" for step in saved(trial.run)), "nothing of such a batch is saved"
    assert trial.train().code == 0


@pytest.mark.parametrize("label", [-1, 1000, 10**9])
def test_c04_labels_outside_the_alphabet(trial: Trial, label: int) -> None:
    _labels_outside(trial, label)


def test_c05_the_blank_inside_a_target(trial: Trial) -> None:
    _labels_outside(trial, 0)


def test_c06_raw_logits_instead_of_log_probabilities(trial: Trial) -> None:
    """Named from the first batch in the log; a healthy run says nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CTCHead, "forward", lambda head, x: head.linear(x).float())
        trial.train("--training.epochs=1", output="raw")
    assert "log_softmax_missing" in (trial.folder / "raw" / "log.txt").read_text(encoding="utf-8")
    [first] = records(trial.folder / "raw", "diagnosis")
    assert "log_softmax_missing" in {finding["code"] for finding in first["findings"]}
    assert trial.train("--training.epochs=1").code == 0
    assert records(trial.run, "diagnosis")[0]["findings"] == []


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("where", ["features", "loss", "gradient"])
def test_c07_a_non_finite_batch_leaves_no_trace(
    trial: Trial, encoder: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, buffers and optimizer are bit for bit those from before the batch."""
    states: list[dict[str, Any]] = []
    fit_batch = CTCBrain.fit_batch

    def state(brain: CTCBrain) -> dict[str, Any]:
        tensors = {k: v.clone() for k, v in brain.modules.state_dict().items()}
        for index, one in enumerate(brain.optimizer.state.values()):
            tensors |= {f"optimizer.{index}.{k}": v.clone() for k, v in one.items()}
        return tensors

    def poisoned(brain: CTCBrain, batch: Any) -> torch.Tensor:
        if brain.position.update != 1 or states:
            return fit_batch(brain, batch)
        states.append(state(brain))
        with pytest.MonkeyPatch.context() as patch:
            if where == "features":
                batch.features[0, 0, 0] = float("nan")
            elif where == "loss":
                inf = torch.full((2,), float("inf"), requires_grad=True)
                patch.setattr(CTCBrain, "compute_objectives", lambda *_: inf)
            else:
                patch.setattr("asrkit.training.step.clip_gradients", lambda *_: (float("nan"), {}))
            loss = fit_batch(brain, batch)
        states.append(state(brain))
        assert all(p.grad is None for p in brain.modules.parameters())
        return loss

    monkeypatch.setattr(CTCBrain, "fit_batch", poisoned)
    recipe = toy_recipe(trial.folder, trial.corpus, ("encoder", encoder), ("training.epochs", 1),
                        ("training.curves", False))  # fmt: skip
    result = train(recipe, "", trial.run, say=lambda _: None)
    before, after = states
    assert len(before) > len(result.last)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.last["train"]["refused_batches"] == 1
    [refused] = records(trial.run, "refused")
    assert refused["what"] == where
    assert refused["ids"]


def test_c07_too_many_in_a_row_end_the_run(trial: Trial) -> None:
    with pytest.MonkeyPatch.context() as patch:
        nan = torch.full((2,), float("nan"), requires_grad=True)
        patch.setattr(CTCBrain, "compute_objectives", lambda *_: nan)
        ended = trial.train()
    assert ended.end == (4, "nonfinite")
    assert "3 batches in a row had non-finite loss; the last held common_voice_es_" in ended.error
    assert saved(trial.run) == []
    assert trial.train().code == 0


def test_c07_what_is_not_finite_is_never_saved(trial: Trial) -> None:
    real = CTCBrain._update

    def spoilt(brain: CTCBrain, batch: Any) -> bool:
        done = real(brain, batch)
        if brain.position.update == 5:
            next(brain.modules.parameters()).data.view(-1)[0] = float("nan")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CTCBrain, "_update", spoilt)
        ended = trial.train()
    assert ended.code == 4
    assert ended.reason in ("nonfinite", "non_finite_checkpoint")
    assert saved(trial.run) == ["step-00000003"]
    assert trial.train().code == 0
    assert trial.train(output="whole").code == 0
    assert trial.outcome() == trial.outcome("whole")


def test_c08_a_model_that_hears_nothing_is_on_the_floor_and_a_healthy_one_below(trial: Trial) -> None:
    """Whatever the share of blanks: at first both give nothing but blanks."""
    deaf = ("--encoder=none", "--layers=[{linear: 4}]", "--cmvn.mode=none", "--training.lr=0.3", "--training.epochs=25",
            "--training.evaluate_every=25", "--spec_augment=null", "--training.checkpoint_every=25")  # fmt: skip
    real = Split.__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Split, "__getitem__", lambda split, i: (*real(split, i)[:2], 0 * real(split, i)[2], split.labels[i])
        )
        assert trial.train(*deaf, output="deaf").code == 0
    last = records(trial.folder / "deaf", "epoch")[-1]
    assert last["diagnosis"]["phase"] == "on_floor"
    assert last["train"]["loss"] == pytest.approx(last["diagnosis"]["floor"], rel=0.1)
    healthy = (
        "--training.epochs=14",
        "--training.evaluate_every=14",
        "--training.lr=0.02",
        "--training.checkpoint_every=14",
    )
    assert trial.train(*healthy).code == 0
    epochs = records(trial.run, "epoch")
    assert epochs[0]["diagnosis"]["phase"] == "above_floor"
    assert epochs[-1]["diagnosis"]["phase"] == "below_floor"
    assert epochs[1]["train"]["blank"] > 0.8


def test_c09_no_more_than_a_few_samples(trial: Trial) -> None:
    """Left out of training by name; transcribed to nothing, with a status."""
    tiny_corpus(trial.corpus, ["too_short"])
    assert trial.train().end == (3, "too_many_excluded")
    assert {name: line["excluded"] for name, line in excluded(trial.run).items()} == {"common_voice_es_0": "too_short"}
    assert trial.train("--training.epochs=1", "--data.max_bad=0.5").code == 0
    model = load(trial.run / "model")
    speech = tones("abe iou", 1)
    with pytest.raises(AudioError) as caught:
        model.transcribe((speech[:0], RATE))
    assert (caught.value.exit_code, caught.value.reason) == (3, "no_samples")
    for count in (1, 20, 50, 100, 200, 201, 400):
        result = model.transcribe((speech[:count], RATE))
        enough = model.model.num_frames(count) > 0
        assert result.status == ("ok" if enough else "too_short"), count
        assert enough or (result.text, result.words) == ("", ())
    assert model.transcribe((np.resize(speech, RATE), RATE)).status == "ok"
    assert [found.step for found in [Checkpoints(trial.run / "checkpoints").latest()] if found] == [3]
