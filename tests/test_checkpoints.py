"""Checkpoints and run folders under kills, full disks, flipped bits and two owners (S01-S08, S10, S15, S18)."""

from __future__ import annotations

import errno
import json
import logging
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asrkit.checkpoints import FILES, MANIFEST, Checkpoints, optimizer_from_tensors, optimizer_to_tensors
from asrkit.errors import InUseError, NumericError, RecipeError, StorageError
from asrkit.recipe import load_recipe
from asrkit.runs import MetricsLog, RunFolder, atomic_write, environment
from asrkit.testing.faults import count_calls, die_nth, in_child


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killing a process loses nothing that was written, synced or not; waiting for the disk only costs time here.

    That everything is synced, in the right order, is a test of its own.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def tensors(value: float, size: int = 10) -> dict[str, Tensor]:
    return {"weight": torch.full((size, 4), value), "count": torch.tensor(int(value)), "half": torch.ones(3).bfloat16()}


def save(checkpoints: Checkpoints, step: int, cer: float | None = None, size: int = 10) -> Path:
    metrics = {} if cer is None else {"dev_cer": cer}
    return checkpoints.save(
        step, tensors(step, size), {"0.exp": tensors(step)["weight"]}, {"epoch": 1, "metrics": metrics}
    )


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def latest_step(folder: Path) -> int | None:
    """What a fresh process would resume from, with every tensor and the state read and consistent."""
    found = Checkpoints(folder).latest()
    if found is None:
        return None
    model = found.model()
    assert torch.equal(model["weight"], torch.full_like(model["weight"], found.step))
    assert torch.equal(found.optimizer()["0.exp"], torch.full((10, 4), float(found.step)))
    assert found.state["epoch"] == 1
    return found.step


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


@pytest.mark.fault
def test_s06_steps_order_not_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=0)
    for step, hours in ((9, 2), (10, 1), (100_000_000, 0)):
        monkeypatch.setattr(time, "time", lambda hours=hours: hours * 3600.0)
        path = save(checkpoints, step)
        os.utime(path, (hours * 3600, hours * 3600))
    assert steps(tmp_path) == [10, 100_000_000]
    assert latest_step(tmp_path) == 100_000_000


@pytest.mark.fault
def test_s07_many_saves_leave_few_files_and_read_none_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1)
    save(checkpoints, 0, 1.0)
    reads: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or real(path))
    for step in range(1, 101):
        save(checkpoints, step, 1.0 + step)
    assert reads == []
    assert steps(tmp_path) == [0, 99, 100]
    assert len(list(tmp_path.iterdir())) == 3


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


# --- S01: kill -9


def _save_for_ever(folder: Path, acknowledged: Any, size: int) -> None:
    torch.set_num_threads(1)
    checkpoints = Checkpoints(folder, keep_last=1, keep_best=1)
    for step in range(1, 10**6):
        save(checkpoints, step, 1 / step, size)
        acknowledged.value = step


def _resumes(folder: Path, acknowledged: int) -> bool:
    """What was acknowledged is still there, nothing half-made is, and the run goes on. Whether the save was cut off."""
    interrupted = any(folder.glob(".tmp-*"))
    step = latest_step(folder)
    assert step is not None
    assert acknowledged <= step <= acknowledged + 1
    assert not list(folder.glob(".*"))  # neither leftovers nor anything broken
    save(Checkpoints(folder, keep_last=1), step + 1)
    assert latest_step(folder) == step + 1
    return interrupted


@pytest.mark.fault
def test_s01_kill_during_save_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL at every call of a save with half of a write done, and from outside at random moments."""
    context = multiprocessing.get_context("fork")
    with count_calls() as calls:  # of the third save: one that also removes an old checkpoint
        checkpoints = Checkpoints(tmp_path / "count", keep_last=1, keep_best=1)
        for step in (1, 2):
            save(checkpoints, step, 1 / step)
        before = calls.count
        save(checkpoints, 3, 1 / 3)
    interrupted = 0
    for n in range(before + 1, calls.count + 1):
        acknowledged, folder = context.Value("l", 0), tmp_path / f"call{n}"
        with die_nth(n):
            assert in_child(partial(_save_for_ever, folder, acknowledged, 10)) == -signal.SIGKILL
        assert acknowledged.value == 2
        interrupted += _resumes(folder, 2)
    assert interrupted >= 15, "the kills missed the save: this tests nothing"
    rng = random.Random(1)
    for trial in range(4):
        acknowledged, folder = context.Value("l", 0), tmp_path / f"random{trial}"
        process = context.Process(target=_save_for_ever, args=(folder, acknowledged, 20_000))
        process.start()
        while acknowledged.value < 2:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        _resumes(folder, acknowledged.value)


# --- S02, S03: the N-th call fails, or the process dies there

CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")


class Faults:
    """Counts calls of os functions; at the N-th one raises `error` (or, with error None, ends the process)."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int = 0, error: int | None = errno.ENOSPC) -> None:
        self.count, self.at, self.error = 0, at, error
        for name in CALLS:
            patch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                if self.error is None:
                    os._exit(9)
                raise OSError(self.error, os.strerror(self.error))
            return real(*args, **kwargs)

        return call


def _prepared(folder: Path, same_step: bool) -> tuple[Checkpoints, int]:
    checkpoints = Checkpoints(folder, keep_last=1, keep_best=0)
    save(checkpoints, 5)
    return checkpoints, 5 if same_step else 6


@pytest.mark.fault
@pytest.mark.parametrize("same_step", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, None], ids=["full", "io", "death"])
def test_s02_any_single_fault_leaves_the_old_or_the_new(tmp_path: Path, error: int | None, same_step: bool) -> None:
    checkpoints, step = _prepared(tmp_path / "count", same_step)
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        save(checkpoints, step)
    total = faults.count
    assert total > 15
    outcomes = set()
    for n in range(1, total + 1):
        folder = tmp_path / str(n)
        checkpoints, step = _prepared(folder, same_step)
        if error is None:
            child = os.fork()
            if child == 0:
                Faults(pytest.MonkeyPatch(), n, None)
                save(checkpoints, step)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        else:
            with pytest.MonkeyPatch.context() as patch:
                Faults(patch, n, error)
                try:
                    save(checkpoints, step)
                except StorageError as failure:
                    outcomes.add((failure.exit_code, failure.reason))
            assert not list(folder.glob(".tmp-*")) or steps(folder) == [step]  # a failed save cleans up after itself
        found = latest_step(folder)
        assert found in (5, step)
        outcomes.add(found)
        assert not (folder / ".broken").exists()
        save(Checkpoints(folder, keep_last=1, keep_best=0), 7)
        assert latest_step(folder) == 7
        assert [path.name for path in folder.iterdir()] == ["step-00000007"]
    assert outcomes >= {5, step}
    if error == errno.ENOSPC:
        assert (5, "disk_full") in outcomes


@pytest.mark.fault
def test_s03_a_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    monkeypatch.setattr("asrkit.checkpoints.free_bytes", lambda _: 4_700_000)
    monkeypatch.setattr("asrkit.disk.free_bytes", lambda _: 4_700_000)
    with pytest.raises(StorageError, match=r"needs 4\.8 MB, 4\.7 MB free") as caught:
        checkpoints.save(2, {"w": torch.zeros(1_000_000)}, {}, {})
    assert (caught.value.exit_code, caught.value.reason) == (5, "disk_full")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    checkpoints.save(2, {"w": torch.zeros(950_000)}, {}, {})


# --- S04, S05: damage


@pytest.mark.fault
def test_s04_every_flipped_bit_is_caught(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(0)
    caught = 0
    for trial in range(50):
        folder = tmp_path / str(trial)
        checkpoints = Checkpoints(folder)
        save(checkpoints, 1)
        path = save(checkpoints, 2)
        file = path / rng.choice(FILES)
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        caplog.clear()
        caught += latest_step(folder) == 1
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert file.name in caplog.text
        assert (folder / ".broken" / "step-00000002").is_dir()
    assert caught == 50


@pytest.mark.fault
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_s05_a_torn_checkpoint_hides_no_other(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    for index, part in enumerate([None, 0.0, 0.1, 0.5, 0.9, 0.999]):
        folder = tmp_path / str(index)
        checkpoints = Checkpoints(folder, keep_last=3)
        paths = [save(checkpoints, step, cer) for step, cer in ((1, 0.3), (2, 0.2), (3, 0.1))]
        data = (paths[2] / name).read_bytes()
        if part is None:
            (paths[2] / name).unlink()
        else:
            (paths[2] / name).write_bytes(data[: int(len(data) * part)])
        caplog.clear()
        assert Checkpoints(folder).best().step == 2  # type: ignore[union-attr]
        assert latest_step(folder) == 2
        assert len(caplog.records) == 1, "one warning, not one per reading"
        assert steps(folder) == [1, 2]


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

RECIPE = {
    "name": "m",
    "encoder": "none",
    "seed": 1,
    "training": {"lr": 1e-3, "epochs": 3},
    "layers": [{"conv": {"kernel": 4}}],
}


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


@pytest.mark.fault
@pytest.mark.parametrize(
    ("edit", "line"),
    [
        ({"seed": 2}, "seed: 1 -> 2"),
        ({"encoder": "layer_norm"}, 'encoder: "none" -> "layer_norm"'),
        ({"training": {"lr": 2e-3, "epochs": 3}}, "training.lr: 0.001 -> 0.002"),
        ({"training": {"lr": 1e-3}}, "training.epochs: 3 -> (absent)"),
        ({"layers": [{"conv": {"kernel": 5}}]}, "layers.0.conv.kernel: 4 -> 5"),
        ({"layers": []}, 'layers.0: {"conv":{"kernel":4}} -> (absent)'),
        ({"extra": None}, "extra: (absent) -> null"),
        ({"trainings": 1}, "trainings: (absent) -> 1"),
    ],
)
def test_s10_another_recipe_is_refused_key_by_key(tmp_path: Path, edit: dict[str, Any], line: str) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(RECIPE)
    with pytest.raises(RecipeError) as caught:
        folder.claim({**RECIPE, **edit}, neutral=["train", "logging"])
    assert (caught.value.exit_code, caught.value.reason) == (2, "other_recipe")
    assert line in str(caught.value)
    assert "--output" in str(caught.value)
    assert folder.claim(RECIPE) == []


@pytest.mark.parametrize(
    ("name", "encoder"), [("../x", "none"), ("a/b", "none"), ("m", ".."), ("", "none"), (None, "none")]
)
def test_a_recipe_cannot_choose_a_folder_outside(tmp_path: Path, name: Any, encoder: str) -> None:
    with pytest.raises(RecipeError, match="cannot name a folder"):
        RunFolder.of(tmp_path / "runs", name, encoder, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault
def test_s15_unusable_folders_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "below", Path("/proc/asrkit")):
        with pytest.raises(StorageError, match="cannot be used") as caught:
            RunFolder(path)
        assert caught.value.exit_code == 5
    with pytest.raises(StorageError):
        Checkpoints(file)
    assert file.read_text() == "x"


HOLDER = """
import os, sys, time
from asrkit.runs import RunFolder
with RunFolder(sys.argv[1]).lock():
    worker = os.fork()  # a data worker, which outlives its killed parent for a while
    if worker == 0:
        print(os.getpid(), flush=True)
        sys.stdout.close(); os.close(1)
    time.sleep(60)
"""


@pytest.mark.fault
def test_s08_one_owner_and_a_dead_owner_frees_the_folder(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    worker = int(owner.stdout.readline())
    try:
        in_use = pytest.raises(InUseError, match=rf"process {owner.pid} on \S+ since 20")
        with in_use as caught, RunFolder(tmp_path).lock():
            pass
        assert caught.value.exit_code == 6
        owner.kill()
        owner.wait()
        os.kill(worker, 0)  # still there
        ours = pytest.raises(InUseError, match=f"process {os.getpid()} ")
        with RunFolder(tmp_path).lock(), ours, RunFolder(tmp_path).lock():
            pass
    finally:
        owner.kill()
        os.kill(worker, signal.SIGKILL)
        owner.communicate()


@pytest.mark.fault
def test_s08_a_lock_ends_with_its_block_whatever_was_forked_in_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for _ in range(20):
        children = []
        with folder.lock():
            children.append(os.fork())
            if children[0] == 0:
                time.sleep(60)
                os._exit(0)
        try:
            with folder.lock():
                pass
        finally:
            os.kill(children[0], signal.SIGKILL)
            os.waitpid(children[0], 0)
    with folder.lock():
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            with pytest.raises(InUseError), folder.lock():  # a child that leaves the block frees nothing
                pass
    if child == 0:
        os._exit(0)


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


@pytest.mark.fault
def test_s18_torn_lines_and_steps_after_the_checkpoint_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step})
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        path.write_bytes(whole[:-cut])
        assert [record["step"] for record in MetricsLog.read(path)] == [1, 2, 3, 4]
    log = MetricsLog(path)  # opened after the crash
    log.append({"step": 5})
    assert [record["step"] for record in MetricsLog.read(path)] == [1, 2, 3, 4, 5]
    path.write_bytes(path.read_bytes() + b'{"st')
    log.truncate_after(3)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    path.write_bytes(b'{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(StorageError, match=r"metrics.jsonl line 2 is damaged"):
        MetricsLog.read(path)
    assert MetricsLog.read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("error", [errno.ENOSPC, None], ids=["full", "death"])
def test_atomic_write_replaces_or_leaves(tmp_path: Path, error: int | None) -> None:
    path, seen = tmp_path / "a.txt", set()
    for n in range(1, 10):  # seven calls, and none
        atomic_write(path, "old ñ")
        child = os.fork()
        if child == 0:
            faults = Faults(pytest.MonkeyPatch(), n, error)
            try:
                atomic_write(path, b"new")
            except StorageError as failure:
                os._exit(5 if failure.reason == "disk_full" else 1)
            os._exit(0 if faults.count < n else 3)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen.add((code, path.read_text()))
        assert error is None or list(tmp_path.iterdir()) == [path]
        if error is None:
            assert code in (0, 9)
    assert {text for _, text in seen} == {"old ñ", "new"}
    assert {code for code, _ in seen} >= ({0, 9} if error is None else {0, 5})
    with pytest.raises(StorageError):
        atomic_write(tmp_path / "missing" / "a", "x")


def test_environment_names_versions_without_importing_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # importing it now fails
    found = json.loads(json.dumps(environment()))
    assert found["torch"] == torch.__version__
    assert found["torchaudio"].startswith("2.")
    assert any("encoders:none asrkit" in line for line in found["plugins"])
    assert found["cuda"] is None or isinstance(found["cuda"], str)
