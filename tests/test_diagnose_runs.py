"""`asrkit diagnose` on runs that died, were stopped, are damaged or lie elsewhere; what it says of rates."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import make_corpus, sigterm_after, toy_recipe

from asrkit.checkpoints import Checkpoints
from asrkit.checkpoints.reading import newest_intact
from asrkit.cli import main
from asrkit.diagnostics.clips import middle_clips, some_clips
from asrkit.diagnostics.findings import Finding
from asrkit.diagnostics.logs import last_error
from asrkit.diagnostics.monitor import Monitor
from asrkit.diagnostics.progress import RECENT, judge_epochs
from asrkit.diagnostics.run import diagnose_run
from asrkit.errors import DataError, NumericError, RecipeError, StoppedError
from asrkit.experiment import train
from asrkit.preparation import prepare
from asrkit.preparation.splits import Split
from asrkit.runs import MetricsLog, started_in

FLOOR = 3.0
MANY = (("data.test", "null"), ("training.batch_frames", 100), ("encoder", "layer_norm"))  # updates in few epochs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), train=16, dev=2, test=0)


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of more than 30 updates, with two checkpoints; tests take copies."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = toy_recipe(folder, corpus, *MANY, ("training.epochs", 3))
    return train(recipe, "", folder / "run", say=lambda _: None).folder


def found_in(folder: Path) -> dict[str, Finding]:
    return {one.code: one for one in diagnose_run(folder).findings}


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder`."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


# --- runs without an epoch


def test_a_run_that_died_of_nan_in_its_first_epoch(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (("data.test", "null"), ("training.lr", 1e25), ("training.clip", "null"), ("training.optimizer", "sgd"))
    recipe = toy_recipe(tmp_path, corpus, *options, ("encoder", "none"), ("training.batch_frames", 100))
    with pytest.raises(NumericError, match="3 batches in a row"):
        train(recipe, "", tmp_path / "run", say=lambda _: None)
    records = MetricsLog.read(tmp_path / "run" / "metrics.jsonl")
    refused = [one for one in records if one["type"] == "refused"]
    assert [one["type"] for one in records if one["type"] != "refused"] == ["diagnosis", "update"]
    capsys.readouterr()
    assert main(["diagnose", str(tmp_path / "run"), "--json"]) == 4
    answer = json.loads(capsys.readouterr().out)
    assert answer["figures"]["update"] == 1
    assert answer["ended"].startswith("NumericError: 3 batches in a row had non-finite")
    nan = next(one for one in answer["findings"] if one["code"] == "nan")
    assert nan["severity"] == "error"
    assert nan["measured"].startswith("3 of about 4 batches were refused")
    assert f"for its {refused[-1]['what']}, in epoch 1 after update 1, with {refused[-1]['ids'][0]}" in nan["measured"]
    text = diagnose_run(tmp_path / "run").text()
    assert "no epoch has been finished, update 1\nits log ends with NumericError: 3 batches" in text


def test_a_run_that_was_stopped_knows_its_updates(tmp_path: Path, corpus: Path) -> None:
    recipe = toy_recipe(tmp_path, corpus, *MANY)
    with sigterm_after(5), pytest.raises(StoppedError):
        train(recipe, "", tmp_path / "run", say=lambda _: None)
    diagnosis = diagnose_run(tmp_path / "run")
    assert diagnosis.figures["update"] == 5
    assert (diagnosis.ended or "").startswith("StoppedError: stopped by SIGTERM in epoch 1 after update 5")
    assert diagnosis.text().endswith("nothing else found so far: 5 updates tell nothing of how it learns (from 300 on)")
    train(recipe, "", tmp_path / "run", say=lambda _: None)  # it went on, and its log ends with something else
    assert diagnose_run(tmp_path / "run").ended is None


def test_refused_batches_after_the_last_epoch_are_counted_once() -> None:
    whole = {"epoch": 1, "step": 10, "train": {"loss": 1.0, "empty": 0.0, "utterances": 80, "updates": 10}}
    whole["train"] |= {"refused_batches": 1}  # type: ignore[dict-item, operator]
    records = [
        {"epoch": epoch, "batch": batch, "step": step, "what": "loss", "ids": list("abcdef")}
        for epoch, batch, step in ((1, 3, 3), (2, 7, 16), (2, 8, 16), (2, 7, 16))  # the last one after a new beginning
    ]
    [nan] = judge_epochs([whole], FLOOR, refused=records)
    assert nan.measured.startswith("3 of about 19 batches were refused because they were not finite; the last one ")
    assert nan.measured.endswith("with a, b, c, d and 2 more")
    [nan] = judge_epochs([whole], FLOOR, refused=records[:1])
    assert nan.measured.startswith("1 of about 11 ")
    [nan] = judge_epochs([whole], FLOOR)
    assert nan.measured == "1 of about 11 batches were refused because they were not finite"


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert last_error(log) is None
    stamp = "2026-11-30 04:00:00,123 "
    log.write_text(f"{stamp}epoch 1/3\n{stamp}RuntimeError: a\nb: c\n", encoding="utf-8")
    assert last_error(log) == "RuntimeError: a"
    for line in ("toy, none: 9 parameters", "diagnosis: error[nan]: x", "Training: y"):
        log.write_text(f"{stamp}ValueError: before\n{stamp}{line}\n", encoding="utf-8")
        assert last_error(log) is None
    log.write_bytes(b"x" * 100_000 + f"\n{stamp}KeyError: '\x1b'\n".encode())
    assert last_error(log) == "KeyError: '\\u001b'"


# --- the learning rate


def epoch(step: int, loss: float, **train: Any) -> dict[str, Any]:
    return {"step": step, "train": {"loss": loss, "empty": 0.5, "utterances": 80, "updates": 10, **train}}


@pytest.mark.parametrize(
    ("epochs", "recent", "expected"),
    [
        ([epoch(185, 4.6)], 1.6, set()),  # a healthy first epoch, whose mean holds its start
        ([epoch(400, 3.9)], 2.9, set()),
        ([epoch(400, 3.4)], 3.3, set()),  # on the floor: short utterances weigh more in a mean over batches
        ([epoch(400, 4.6)], 4.3, {"lr_too_low"}),
        ([epoch(400, 4.6)], 4.8, {"lr_too_high"}),
        ([epoch(190, 4.6)], 4.3, set()),  # the last updates began too early
        ([epoch(400, 4.6)], None, set()),  # not known how far the epoch came
        ([epoch(100, 5.0), epoch(200, 4.4)], 4.1, {"lr_too_low"}),
        ([epoch(100, 5.0), epoch(200, 4.4)], 2.0, set()),
        ([epoch(160, 5.0), epoch(320, 4.4)], None, {"lr_too_low"}),
        ([epoch(160, 5.0), epoch(320, 4.4)], 2.9, set()),  # it got there at last
        ([epoch(100, 2.0), epoch(200, 4.0)], 4.0, {"lr_too_high"}),
    ],
)
def test_the_mean_of_a_first_epoch_is_no_verdict(
    epochs: list[dict[str, Any]], recent: float | None, expected: set[str]
) -> None:
    losses = [] if recent is None else [9.0, *[recent] * RECENT]
    assert {one.code for one in judge_epochs(epochs, FLOOR, recent=losses)} == expected


def test_with_a_label_prior_the_loss_tells_nothing_of_the_rate() -> None:
    """What studies/cures saw: the plain loss went up and down while the objective fell."""
    epochs = [epoch(88, 3.362), epoch(132, 3.677), epoch(176, 3.192), epoch(352, 3.9)]
    assert {one.code for one in judge_epochs(epochs, 2.981)} == {"lr_too_high"}
    assert judge_epochs(epochs, 2.981, prior=True) == []


@pytest.mark.parametrize("prior", [0.0, 0.3])
def test_the_monitor_knows_of_the_prior_and_of_the_last_updates(tmp_path: Path, corpus: Path, prior: float) -> None:
    recipe = toy_recipe(tmp_path, corpus, ("data.test", "null"), ("ctc.label_prior", prior))
    prepared = prepare(recipe, ("train",))
    monitor = Monitor(recipe, prepared.model, prepared.splits["train"])
    for number in range(RECENT):  # they would be two epochs of healthy losses
        monitor.updated(number / RECENT)
    monitor.resume(
        [{"type": "update", "step": n, "loss": 9.0} for n in range(400)]
        + [{"type": "epoch", **epoch(200, 9.5)}, {"type": "refused", "step": 400}]
    )
    codes = {one["code"] for one in monitor.epoch(epoch(400, 9.4))["findings"]}
    assert ("lr_too_low" in codes) == (prior == 0)
    for _ in range(RECENT):
        monitor.updated(0.5)
    assert "lr_too_low" not in {one["code"] for one in monitor.epoch(epoch(500, 9.3))["findings"]}


def test_training_tells_the_monitor_of_its_updates(tmp_path: Path, corpus: Path) -> None:
    """Also where it goes on in the middle of an epoch."""
    seen: dict[str, list[float]] = {}
    judge = Monitor.epoch

    def watch(monitor: Monitor, figures: dict[str, Any]) -> dict[str, Any]:
        seen[name] = list(monitor.recent)
        return judge(monitor, figures)

    recipe = toy_recipe(tmp_path, corpus, *MANY, ("training.epochs", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "epoch", watch)
        name = "again"
        with sigterm_after(5), pytest.raises(StoppedError):
            train(recipe, "", tmp_path / name, say=lambda _: None)
        for name in ("again", "whole"):
            train(recipe, "", tmp_path / name, say=lambda _: None)
    records = MetricsLog.read(tmp_path / "whole" / "metrics.jsonl")
    assert seen["whole"] == seen["again"] == [one["loss"] for one in records if one["type"] == "update"]


def test_what_training_said_of_the_rate_is_decided_again(tmp_path: Path, finished: Path) -> None:
    """A false alarm that an older version has written is not repeated; what needs the model is."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    log = MetricsLog(folder / "metrics.jsonl")
    last = [one for one in MetricsLog.read(log.path) if one["type"] == "epoch"][-1]
    own = [Finding(code, "warning", None, "x", "y", "z") for code in ("lr_too_low", "dead_relus")]
    last["diagnosis"]["findings"] = [one.as_dict() for one in own]
    log.append(last)
    assert "lr_too_low" not in found_in(folder)
    assert found_in(folder)["dead_relus"].measured == "x"


def test_gradients_of_layers_that_only_training_has_are_not_compared() -> None:
    """Layers of ctc.intermediate come after the output layer, which is of another size than all others."""
    norms = {"0": 2e-5, "1": 5e-5, "3": 0.4, "4": 0.4, "ctc": 1.2}
    inner = {"acoustic.objective.heads.0.linear": 0.9}
    for layers in (norms, norms | inner, inner | norms):
        assert judge_epochs([epoch(20, 1.0, grad_norm_by_layer=layers)], FLOOR) == []  # 5e-5 of 0.4, not of 1.2
    faint = norms | {"0": 1e-6, "1": 1e-6} | inner
    [one] = judge_epochs([epoch(20, 1.0, grad_norm_by_layer=faint)], FLOOR)
    assert (one.code, one.layer) == ("vanishing_gradients", "layers.0")
    assert one.measured.endswith("of that of 3")
    assert judge_epochs([epoch(20, 1.0, grad_norm_by_layer={"0": 1e-9, "1": 1.0, "ctc": 1.0} | inner)], FLOOR) == []


# --- a run is only read


def test_damage_is_reported_and_nothing_is_moved(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert main(["diagnose", str(folder)]) == 0
    assert content(folder) == content(finished)
    steps = sorted(path for path in (folder / "checkpoints").iterdir() if path.name.startswith("step-"))
    tensors = steps[-1] / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    shutil.copytree(steps[0], folder / "checkpoints" / ".old-step-00000001")
    before = content(folder)
    capsys.readouterr()
    assert main(["diagnose", str(folder)]) == 5
    out = capsys.readouterr().out
    assert f"damaged: checkpoint {steps[-1].name} (model.safetensors is not what was written: size or sha256" in out
    assert "nothing else found" in out
    assert content(folder) == before
    assert main(["diagnose", str(folder), "--json"]) == 5
    assert len(json.loads(capsys.readouterr().out)["damaged"]) == 1
    # Its logs alone say so, too.
    assert main(["diagnose", str(folder), "--data.root=/nowhere/cv"]) == 5
    assert "damaged: checkpoint" in capsys.readouterr().out


def test_a_model_folder_that_cannot_be_read_is_no_end(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints")
    assert main(["diagnose", str(folder)]) == 0
    (folder / "model" / "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert main(["diagnose", str(folder)]) == 5
    out = capsys.readouterr().out
    assert "damaged: model/ (" in out
    assert "only its logs" not in out


def test_a_model_folder_is_read_beside_checkpoints(tmp_path: Path, finished: Path) -> None:
    """It is what people pass on."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    tensors = folder / "model" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    [line] = diagnose_run(folder).damaged
    assert line.startswith("model/ (")


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_logs_that_are_gone_are_damage(tmp_path: Path, finished: Path, how: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    step = max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    (folder / "metrics.jsonl").unlink()
    if how == "emptied":
        (folder / "metrics.jsonl").touch()
    word = "missing" if how == "removed" else "empty"
    assert diagnose_run(folder).damaged == [f"metrics.jsonl ({word}, and there is a checkpoint of update {step})"]


def test_it_is_said_that_no_trained_weights_were_looked_at(
    tmp_path: Path, finished: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert diagnose_run(folder).untrained is None
    for name in ("checkpoints", "model"):
        shutil.rmtree(folder / name)
    capsys.readouterr()
    assert main(["diagnose", str(folder)]) == 0
    words = "no trained weights were looked at: neither a checkpoint nor a model folder is left of "
    assert words in capsys.readouterr().out
    short = train(
        toy_recipe(tmp_path, corpus, ("data.test", "null")), "", tmp_path / "short", say=lambda _: None
    ).folder
    assert "the newest checkpoint is of update " in (diagnose_run(short).untrained or "")


def test_impossible_targets_are_those_of_the_whole_split(tmp_path: Path, finished: Path) -> None:
    """Training has said so of its first batch alone."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    first = Finding("impossible_targets", "error", None, "1 of 2 utterances (50%) have", "why", "fix")
    record = {"type": "diagnosis", "step": 1, "findings": [first.as_dict()]}
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n" + lines)
    assert found_in(folder)["impossible_targets"].measured == first.measured
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "asrkit.defects.FaultyLoss.feasible", lambda _, lengths, labels: [False] + [True] * (len(labels) - 1)
        )
        assert found_in(folder)["impossible_targets"].measured.startswith("1 of all 16 utterances (6.2%) have fewer")


@pytest.mark.parametrize(("broken", "given"), [((8,), [7, 9]), ((7, 8, 9), [6, 10]), ((0, 15), [7, 8])])
def test_a_clip_that_cannot_be_read_is_not_looked_at(
    tmp_path: Path, corpus: Path, finished: Path, broken: tuple[int, ...], given: list[int]
) -> None:
    """Training leaves it out; the checks take its neighbours by length."""
    recipe = toy_recipe(tmp_path, corpus, ("data.test", "null"))
    split = prepare(recipe, ("train",)).splits["train"]
    order = sorted(range(len(split)), key=split.frames.__getitem__)
    wrong, read = {order[place] for place in broken}, Split._features

    def features(self: Split, row: int) -> Any:
        if self.name == "train" and row in wrong:
            raise OSError("Input/output error")
        return read(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Split, "_features", features)
        assert sorted(order.index(row) for row in middle_clips(split, 2).rows) == given
        rows = [order.index(row) for row in some_clips(split, 8).rows]
        assert len(set(rows)) == 8
        assert not set(rows) & set(broken)
        assert not diagnose_run(finished).damaged
        wrong.update(order)
        with pytest.raises(DataError, match=r"neither \S+ nor its neighbours by length can be read \(OSError: Input"):
            middle_clips(split, 2)


def test_both_contents_as_one_batch_say_the_same(tmp_path: Path, corpus: Path) -> None:
    """And the number of threads is what it was."""
    recipe = toy_recipe(tmp_path, corpus, ("data.test", "null"), ("encoder", "sequence_batch_norm"))
    prepared = prepare(recipe, ("train",))
    monitor = Monitor(recipe, prepared.model, prepared.splits["train"])
    together = monitor._layers()
    monitor.defects = ("mel_axis_as_length",)  # whatever it is: then each content is a batch of its own
    apart = monitor._layers()
    assert together.keys() == apart.keys()
    for kind, figures in apart.items():
        assert together[kind] == pytest.approx(figures, rel=1e-4, abs=1e-6)
    assert len(apart["dependence"]) > 3
    torch.set_num_threads(2)
    try:
        monitor.epoch(epoch(100, 3.0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("accumulation", "expected"), [(1, False), (4, True)])
def test_statistics_of_a_micro_batch_are_those_of_few_utterances(accumulation: int, expected: bool) -> None:
    record = epoch(100, 2.0)
    record["train"] |= {"utterances": 800, "updates": 100}
    found = judge_epochs([record], FLOOR, True, accumulation=accumulation)
    small = [one.measured for one in found if one.code == "batch_too_small_for_bn"]
    assert small == ["2.0 utterances in each of the 4 batches of an update"] * expected


def test_a_checkpoint_of_another_model_is_no_end(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    store = Checkpoints(folder / "checkpoints")
    store.save(999, {"weight": torch.ones(2)}, {}, {})
    [line] = diagnose_run(folder).damaged
    assert line.startswith("checkpoint step-00000999 (")


def test_the_newest_intact_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    assert newest_intact(folder) == (None, {})
    assert not folder.exists()
    store = Checkpoints(folder, keep_last=3)
    for step in (1, 2, 3):
        store.save(step, {"weight": torch.ones(step)}, {}, {})
    found, damaged = newest_intact(folder)
    assert found is not None
    assert (found.step, damaged) == (3, {})
    (folder / "step-00000003" / "state.json").unlink()
    found, damaged = newest_intact(folder)
    assert found is not None
    assert (found.step, list(damaged)) == (2, ["step-00000003"])
    # A training that goes on beside it removes what was listed: that is no damage, and the list is taken again.
    listed = [[(9, folder / "step-00000009")], [(2, folder / "step-00000002")]]
    monkeypatch.setattr("asrkit.checkpoints.reading.steps_in", lambda _: listed.pop(0))
    found, damaged = newest_intact(folder)
    assert found is not None
    assert (found.step, damaged) == (2, {})


# --- data that are relative to another folder


def test_a_relative_root_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus(tmp_path / "home" / "cv", train=6, dev=2, test=0)
    monkeypatch.chdir(tmp_path / "home")
    recipe = toy_recipe(Path("r"), Path("cv"), ("data.test", "null"), ("training.epochs", 1), ("data.cache", "kept"))
    folder = train(recipe, "", tmp_path / "run", say=lambda _: None).folder
    assert started_in(folder) == tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert diagnose_run(folder).without_data is None
    assert os.listdir() == []  # its cache is found, too
    # Where the data have moved: what to do, not where to download Spanish.
    (tmp_path / "home" / "cv").rename(tmp_path / "cv")
    without = diagnose_run(folder).without_data or ""
    assert f"data.root: cv does not exist in {tmp_path / 'elsewhere'}" in without
    assert f"relative to {tmp_path / 'home'}" in without
    assert "give --data.root=" in without
    assert "synth" not in without
    assert main(["diagnose", str(folder), f"--data.root={tmp_path / 'cv'}"]) == 0
    assert "only its logs" not in capsys.readouterr().out
    # Of a run that has not kept where it was started.
    kept = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    del kept["working_directory"]
    (folder / "env.json").write_text(json.dumps(kept), encoding="utf-8")
    assert started_in(folder) is None
    assert "relative to where the run was started: run this from there, or" in (diagnose_run(folder).without_data or "")
    monkeypatch.chdir(tmp_path)
    assert diagnose_run(folder).without_data is None


def test_only_places_may_be_given(finished: Path) -> None:
    with pytest.raises(RecipeError, match=r"--training.lr would be another run.*possible: data.root and data.cache"):
        diagnose_run(finished, [("training.lr", "1")])
    assert main(["diagnose", str(finished), "--width=8"]) == 2
