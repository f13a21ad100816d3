"""Checkpoints, run folders and logs; what faults do to them is in faults/test_s.py."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored import RECIPE, save, steps
from torch import Tensor

from asrkit.checkpoints import Checkpoints
from asrkit.checkpoints.files import FILES, MANIFEST
from asrkit.checkpoints.optimizer_state import optimizer_from_tensors, optimizer_to_tensors
from asrkit.errors import NumericError, RecipeError, StorageError
from asrkit.recipe import load_recipe
from asrkit.runs import MetricsLog, RunFolder, atomic_write, environment
from asrkit.testing.faults import die_nth, fail_nth


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killing a process loses nothing that was written, synced or not; waiting for the disk only costs time here.

    That everything is synced, in the right order, is a test of its own.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_round_trip(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "a" / "checkpoints")
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    tied = torch.randn(5, 3)
    model = {"a": tied, "b": tied, "view": tied.t(), "empty": torch.zeros(0, 2), "flag": torch.tensor(True)}
    state = {
        "epoch": 2,
        "batch": 7,
        "metrics": {"dev_cer": 0.1 + 0.2, "wer": math.nan},
        "nested": {"x": [1, None, "é"]},
    }
    state |= {"np": np.float64(0.5), "tensor": torch.tensor(3)}  # numbers become plain ones
    path = checkpoints.save(12, model, {}, state)
    assert path.name == "step-00000012"
    found = Checkpoints(path.parent).latest()
    assert found is not None
    assert (found.step, found.path, found.optimizer()) == (12, path, {})
    assert found.state["metrics"]["dev_cer"] == 0.1 + 0.2
    assert math.isnan(found.state["metrics"]["wer"])
    assert (found.state["np"], found.state["tensor"], found.state["nested"]) == (0.5, 3, {"x": [1, None, "é"]})
    loaded = found.model()
    assert loaded.keys() == model.keys()
    assert all(torch.equal(loaded[k], model[k]) and loaded[k].dtype == model[k].dtype for k in model)


def test_last_and_best_are_kept_and_nan_is_never_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1)
    for step, cer in enumerate([0.9, 0.3, 0.3, math.nan, None, 0.5, math.nan], 1):
        save(checkpoints, step, cer)
    assert steps(tmp_path) == [2, 6, 7]
    for reader in (checkpoints, Checkpoints(tmp_path)):
        best, latest = reader.best(), reader.latest()
        assert best is not None
        assert latest is not None
        assert (best.step, latest.step) == (2, 7)
    again = Checkpoints(tmp_path, keep_last=1, keep_best=2, lower_is_better=False)
    save(again, 8, 0.4)
    assert steps(tmp_path) == [6, 8]
    assert again.best().step == 6  # type: ignore[union-attr]
    with pytest.raises(RecipeError):
        Checkpoints(tmp_path, keep_last=0)


def test_non_finite_tensors_are_refused_by_name(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    good, bad = {"w": torch.ones(3)}, {"w": torch.ones(3), "running_var": torch.tensor([1.0, math.inf, math.nan])}
    for model, optimizer, part in ((bad, good, "model"), (good, bad, "optimizer")):
        with pytest.raises(
            NumericError, match=f"{part} tensor 'running_var' holds NaN or infinity in 2 of 3"
        ) as caught:
            checkpoints.save(2, model, optimizer, {})
        assert caught.value.exit_code == 4
    with pytest.raises(StorageError, match="a set is not JSON data"):
        checkpoints.save(2, good, good, {"x": {1, 2}})
    with pytest.raises(StorageError, match="negative"):
        checkpoints.save(-1, good, good, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_files_are_synced_before_the_manifest_and_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    real_open, real_rename = os.open, os.rename

    def open_(path: Any, *args: Any, **kwargs: Any) -> int:
        descriptor = real_open(path, *args, **kwargs)
        names[descriptor] = Path(path).name
        return descriptor

    def rename(old: Any, new: Any) -> None:
        events.append(("rename", Path(new).name))
        real_rename(old, new)

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(("sync", names[descriptor])))
    save(checkpoints, 3)
    assert events == [
        *(("sync", name) for name in (*FILES, MANIFEST)),
        ("sync", f".tmp-{os.getpid()}-step-00000003"),
        ("rename", "step-00000003"),
        ("sync", tmp_path.name),
    ]


@pytest.mark.fault
def test_damage_between_finding_and_reading_is_caught(tmp_path: Path) -> None:
    path = save(Checkpoints(tmp_path), 1)
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    (path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"model\.safetensors is not what was written"):
        found.model()


def test_leftovers_of_dead_processes_go_and_of_living_ones_stay(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead, alive = tmp_path / f".tmp-{child}-step-00000001", tmp_path / f".tmp-{os.getppid()}-step-00000001"
    dead.mkdir()
    alive.mkdir()
    Checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == [alive]


# --- optimizers


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.3}, {"params": p[1:], "betas": (0.5, 0.75)}], lr=1e-3),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1)),
    ],
)
def test_optimizer_round_trip_is_bit_exact(tmp_path: Path, make: Callable[[Any], torch.optim.Optimizer]) -> None:
    def train(parameters: list[Tensor], optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            sum((p * torch.sin(p + step)).sum() for p in parameters).backward()  # type: ignore[union-attr]
            optimizer.step()

    start = [torch.randn(4, 3), torch.randn(5)]
    straight = [p.clone().requires_grad_() for p in start]
    train(straight, make(straight), 0, 10)

    parameters = [p.clone().requires_grad_() for p in start]
    optimizer = make(parameters)
    train(parameters, optimizer, 0, 4)
    flat, structure = optimizer_to_tensors(optimizer.state_dict())
    model = {str(i): p.detach() for i, p in enumerate(parameters)}
    Checkpoints(tmp_path).save(4, model, flat, {"optimizer": structure})

    found = Checkpoints(tmp_path).latest()
    assert found is not None
    resumed = [p.requires_grad_() for _, p in sorted(found.model().items())]
    optimizer = make(resumed)
    state = optimizer_from_tensors(found.optimizer(), found.state["optimizer"])
    optimizer.load_state_dict(state)
    assert str(state["param_groups"][-1].get("betas")) == str(optimizer.param_groups[-1].get("betas"))
    train(resumed, optimizer, 4, 10)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
    if flat:
        with pytest.raises(StorageError, match="is missing"):
            optimizer_from_tensors({}, found.state["optimizer"])


# --- run folders


def test_a_run_folder_is_claimed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder.of(tmp_path, "m", "none", 1)
    assert folder.path == tmp_path / "m" / "none" / "seed1"
    assert folder.claim(RECIPE, source="name: m  # mine\n") == []
    assert sorted(path.name for path in folder.path.iterdir()) == ["env.json", "recipe.yaml", "resolved.yaml"]
    assert (folder.path / "recipe.yaml").read_text() == "name: m  # mine\n"
    assert load_recipe(folder.path / "resolved.yaml") == RECIPE
    assert json.loads((folder.path / "env.json").read_text())["torch"] == torch.__version__
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with caplog.at_level(logging.INFO, logger="asrkit.runs"):
        changed = {**RECIPE, "training": {"lr": 1e-3, "epochs": 9}}
        assert RunFolder(folder.path).claim(changed, neutral=["training.epochs"]) == ["training.epochs: 3 -> 9"]
    assert "training.epochs: 3 -> 9" in caplog.text
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "encoder"), [("../x", "none"), ("a/b", "none"), ("m", ".."), ("", "none"), (None, "none")]
)
def test_a_recipe_cannot_choose_a_folder_outside(tmp_path: Path, name: Any, encoder: str) -> None:
    with pytest.raises(RecipeError, match="cannot name a folder"):
        RunFolder.of(tmp_path / "runs", name, encoder, 1)
    assert list(tmp_path.iterdir()) == []


# --- logs


def test_metrics_keep_all_digits_and_name_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    records = [
        {"step": 1, "loss": 0.1 + 0.2, "norms": {"a/b": math.inf, "c": [1.0, -math.inf]}, "text": "ñ"},
        {"step": 2, "loss": np.float32(0.1), "big": torch.tensor(2**60), "nan": math.nan},
    ]
    for record in records:
        log.append(record)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert lines[0]["norms"] == {"a/b": None, "c": [1.0, None]}
    assert lines[0]["_not_finite"] == [["norms", "a/b", "inf"], ["norms", "c", "1", "-inf"]]
    first, second = MetricsLog.read(path)
    assert first == records[0]
    assert (second["loss"], second["big"]) == (float(np.float32(0.1)), 2**60)
    assert math.isnan(second["nan"])


@pytest.mark.parametrize("error", [errno.ENOSPC, None], ids=["full", "death"])
def test_atomic_write_replaces_or_leaves(tmp_path: Path, error: int | None) -> None:
    path, seen = tmp_path / "a.txt", set()
    for n in range(1, 10):  # seven calls, and none
        atomic_write(path, "old ñ")
        child = os.fork()
        if child == 0:
            with fail_nth(n, error) if error is not None else die_nth(n) as calls:
                try:
                    atomic_write(path, b"new")
                except StorageError as failure:
                    os._exit(5 if failure.reason == "disk_full" else 1)
            os._exit(0 if calls.count < n else 3)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen.add((code, path.read_text()))
        assert error is None or list(tmp_path.iterdir()) == [path]
        if error is None:
            assert code in (0, -9)
    assert {text for _, text in seen} == {"old ñ", "new"}
    assert {code for code, _ in seen} >= ({0, -9} if error is None else {0, 5})
    with pytest.raises(StorageError):
        atomic_write(tmp_path / "missing" / "a", "x")


def test_environment_names_versions_without_importing_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # importing it now fails
    found = json.loads(json.dumps(environment()))
    assert found["torch"] == torch.__version__
    assert found["torchaudio"].startswith("2.")
    assert any("encoders:none asrkit" in line for line in found["plugins"])
    assert found["cuda"] is None or isinstance(found["cuda"], str)
