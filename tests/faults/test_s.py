"""Rows S01 to S18 of the fault matrix: kills, full disks, flipped bits, two owners, signals, workers, memory.

Each test asserts how it ended (exit and reason code), what is on disk afterwards, and that a healthy run then succeeds.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import faulthandler
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import RECIPE, latest_step, save, steps
from trials import Ended, Trial, digest, without_times

from asrkit import experiment
from asrkit.batching import Batch
from asrkit.checkpoints import Checkpoints
from asrkit.checkpoints.files import FILES, MANIFEST
from asrkit.cli import main
from asrkit.errors import InUseError, RecipeError, StorageError
from asrkit.exhaustion import in_parts, is_out_of_memory
from asrkit.preparation.splits import Split
from asrkit.recipe.schema import NEUTRAL
from asrkit.registry import list_plugins
from asrkit.runs import MetricsLog, RunFolder
from asrkit.testing.faults import (
    count_calls,
    cut,
    die_nth,
    fail_nth,
    flip_bit,
    in_child,
    kill_at_step,
    shifted_clock,
    zero_block,
)
from asrkit.training import CTCBrain, Stage
from asrkit.training.update_group import UpdateGroup

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("quick")]

ENCODERS = [plugin.name for plugin in list_plugins("encoders") if plugin.package == "asrkit"]
ROWS = [f"s{number:02d}" for number in range(1, 19)]


def test_every_row_is_here() -> None:
    names = [name for name, value in globals().items() if name.startswith("test_s") and callable(value)]
    assert sorted({name.split("_")[1] for name in names}) == ROWS


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


def test_s01_kill_in_a_save_of_training(trial: Trial) -> None:
    """The same through the command line: killed while it writes the second checkpoint."""
    assert trial.train(output="whole").code == 0
    real, saves = Checkpoints.save, 0

    def save_and_die(store: Checkpoints, *args: Any, **kwargs: Any) -> Path:
        nonlocal saves
        saves += 1
        with die_nth(6) if saves == 2 else count_calls():
            return real(store, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        assert trial.child("--training.checkpoint_minutes=0").code == -signal.SIGKILL
    assert steps(trial.run / "checkpoints") == [1]
    assert list((trial.run / "checkpoints").glob(".tmp-*")), "it died in the midst of a save"
    assert trial.train().code == 0
    assert trial.outcome() == trial.outcome("whole")
    assert not list((trial.run / "checkpoints").glob(".*"))


@pytest.mark.soak
def test_s01_kill_five_hundred_times(tmp_path: Path) -> None:
    """From outside, at random moments of saving back to back."""
    context = multiprocessing.get_context("fork")
    rng, interrupted = random.Random(2), 0
    for _ in range(500):
        acknowledged, folder = context.Value("l", 0), tmp_path / "run"
        process = context.Process(target=_save_for_ever, args=(folder, acknowledged, 125_000))  # 2 MB
        process.start()
        while acknowledged.value < 1:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        interrupted += _resumes(folder, acknowledged.value)
        for path in folder.glob("step-*"):
            subprocess.run(["rm", "-r", str(path)], check=True)
    print(f"500 kills while saving, {interrupted} of them with a half-written folder, 500 resumes")
    assert interrupted > 20


# --- S02, S03: the N-th call fails, or the process dies there


def _prepared(folder: Path, same_step: bool) -> tuple[Checkpoints, int]:
    checkpoints = Checkpoints(folder, keep_last=1, keep_best=0)
    save(checkpoints, 5)
    return checkpoints, 5 if same_step else 6


@pytest.mark.parametrize("same_step", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, None], ids=["full", "io", "death"])
def test_s02_any_single_fault_leaves_the_old_or_the_new(tmp_path: Path, error: int | None, same_step: bool) -> None:
    checkpoints, step = _prepared(tmp_path / "count", same_step)
    with count_calls() as calls:
        save(checkpoints, step)
    total = calls.count
    assert total > 15
    outcomes = set()
    for n in range(1, total + 1):
        folder = tmp_path / str(n)
        checkpoints, step = _prepared(folder, same_step)
        if error is None:
            with die_nth(n):
                assert in_child(partial(save, checkpoints, step)) == -signal.SIGKILL
        else:
            with fail_nth(n, error):
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


def test_s03_a_full_disk_in_training(trial: Trial) -> None:
    assert trial.train(output="whole").code == 0
    with kill_at_step(2, signal.SIGTERM):
        assert trial.train().end == (75, "stopped")
    before = trial.state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asrkit.checkpoints.free_bytes", lambda _: 1000)
        ended = trial.train()
    assert ended.end == (5, "disk_full")
    assert "needs 0.1 MB" in ended.error
    assert "the same command goes on" in ended.error
    after = trial.state()
    assert {name: after[name] for name in before if "checkpoints" in name} == {
        name: value for name, value in before.items() if "checkpoints" in name
    }
    assert trial.train().code == 0
    assert trial.outcome() == trial.outcome("whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A real file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if os.name == "nt" or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_s03_a_full_disk_that_is_real(small_disk: Path) -> None:
    """Filled by somebody else between the look at the free space and the writing."""
    checkpoints = Checkpoints(small_disk / "checkpoints")
    save(checkpoints, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asrkit.checkpoints.free_bytes", lambda _: 10**9)
        with pytest.raises(StorageError, match=r"needs 12\.8 MB, 4\.\d MB free") as caught:
            save(checkpoints, 2, size=400_000)
    assert (caught.value.exit_code, caught.value.reason) == (5, "disk_full")
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step-00000001"]
    assert latest_step(small_disk / "checkpoints") == 1
    save(checkpoints, 2)
    assert latest_step(small_disk / "checkpoints") == 2


# --- S04 to S07: damage, clocks, many saves


def test_s04_every_flipped_bit_is_caught(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(0)
    caught = 0
    for trial in range(50):
        folder = tmp_path / str(trial)
        checkpoints = Checkpoints(folder)
        save(checkpoints, 1)
        path = save(checkpoints, 2)
        file = path / rng.choice(FILES)
        flip_bit(file, rng.randrange(8 * file.stat().st_size))
        caplog.clear()
        caught += latest_step(folder) == 1
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert file.name in caplog.text
        assert (folder / ".broken" / "step-00000002").is_dir()
        save(Checkpoints(folder), 2)
        assert latest_step(folder) == 2
    assert caught == 50


@pytest.mark.parametrize("damage", [lambda path: flip_bit(path, 8 * 3000), lambda path: zero_block(path, 1000)])
def test_s04_a_damaged_newest_checkpoint(trial: Trial, damage: Any) -> None:
    """An older one is used, with a warning, and the result is the same; `--exact` refuses and touches nothing."""
    assert trial.train(output="whole").code == 0
    with kill_at_step(5, signal.SIGTERM):
        assert trial.train("--training.checkpoint_minutes=0").code == 75
    assert steps(trial.run / "checkpoints") == [3, 4, 5]  # the last two and the best
    damage(trial.run / "checkpoints" / "step-00000005" / "model.safetensors")
    before = trial.state()
    ended = trial.train("--exact")
    assert ended.end == (5, "damaged")
    assert "model.safetensors is not what was written" in ended.error
    assert trial.state() == before
    assert trial.train().code == 0
    assert "step-00000005 is damaged" in (trial.run / "log.txt").read_text(encoding="utf-8")
    assert (trial.run / "checkpoints" / ".broken" / "step-00000005").is_dir()
    assert trial.outcome() == trial.outcome("whole")


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_s05_a_torn_checkpoint_hides_no_other(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    for index, part in enumerate([None, 0.0, 0.1, 0.5, 0.9, 0.999]):
        folder = tmp_path / str(index)
        checkpoints = Checkpoints(folder, keep_last=3)
        paths = [save(checkpoints, step, cer) for step, cer in ((1, 0.3), (2, 0.2), (3, 0.1))]
        if part is None:
            (paths[2] / name).unlink()
        else:
            cut(paths[2] / name, part)
        caplog.clear()
        assert Checkpoints(folder).best().step == 2  # type: ignore[union-attr]
        assert latest_step(folder) == 2
        assert len(caplog.records) == 1, "one warning, not one per reading"
        assert steps(folder) == [1, 2]
        save(Checkpoints(folder, keep_last=3), 3)
        assert latest_step(folder) == 3


def test_s06_steps_order_not_the_clock(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=0)
    for step, hours in ((9, 2), (10, 1), (100_000_000, 0)):
        with shifted_clock(3600 * (hours - 5)):
            path = save(checkpoints, step)
            os.utime(path, (time.time(), time.time()))
    assert steps(tmp_path) == [10, 100_000_000]
    assert latest_step(tmp_path) == 100_000_000


def test_s06_a_clock_that_jumps_back_during_training(trial: Trial) -> None:
    assert trial.train(output="whole").code == 0
    with kill_at_step(4, signal.SIGTERM):
        assert trial.train().code == 75
    with shifted_clock(-3600):
        assert trial.train().code == 0
    assert trial.outcome() == trial.outcome("whole")
    found = Checkpoints(trial.run / "checkpoints").latest()
    assert found is not None
    assert found.step == 6


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


def test_s07_many_saves_take_no_longer(tmp_path: Path) -> None:
    """By calls of the operating system, which no neighbour on the machine can disturb."""
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1)
    calls = []
    for step in range(300):
        with count_calls() as counted:
            save(checkpoints, step, 1.0 + step)
        calls.append(counted.count)
    assert max(calls[-10:]) == max(calls[3:13])
    assert steps(tmp_path) == [0, 298, 299]
    assert latest_step(tmp_path) == 299


# --- S08: two owners


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


def test_s08_a_second_training_is_refused(trial: Trial) -> None:
    with kill_at_step(2, signal.SIGTERM):
        assert trial.train().code == 75
    before = trial.state()
    with RunFolder(trial.run).lock():
        ended = trial.train()
    assert ended.end == (6, "in_use")
    assert f"process {os.getpid()} on " in ended.error
    assert trial.state() == before
    assert trial.train().code == 0


# --- S09: killed after each single step


def _prepare_once(patch: pytest.MonkeyPatch) -> None:
    """Features are read and the model is built once; every run trains its own copy of it."""
    real, known = experiment.prepare, {}

    def prepare(recipe: dict[str, Any], **options: Any) -> Any:
        key = json.dumps(recipe, sort_keys=True, default=str)
        if key not in known:
            known[key] = real(recipe, **options)
        known[key].splits["train"].set_epoch(0)  # where it stands before training
        return dataclasses.replace(known[key], model=copy.deepcopy(known[key].model))

    patch.setattr(experiment, "prepare", prepare)


KILLS = [(encoder, ()) for encoder in ENCODERS] + [
    ("sequence_batch_norm", ("--training.accumulation=4", "--norm.batch=micro", "--training.workers=2",
                             "--augment.speed=[0.9,1.0,1.1]", "--augment.noise.share=0.5")),
    ("frame_batch_norm", ("--training.accumulation=2", "--norm.batch=micro", "--training.workers=2")),
    ("layer_norm", ("--training.accumulation=4", "--training.optimizer=sgd")),
    ("none", ("--ctc.label_prior=0.5", "--ctc.intermediate.weight=0.3", "--training.accumulation=2",
              "--layers=[{linear: 16}, {bigru: 8}, {dropout: 0.1}, {bigru: 8}]")),
]  # fmt: skip


@pytest.mark.parametrize(("encoder", "options"), KILLS)
def test_s09_killed_after_every_step(
    trial: Trial, encoder: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chain of kills: every checkpoint of it equals that of the run that nobody killed, so each kill alone is
    harmless too. Dropout, SpecAugment, statistics, optimizer, meters, metrics: bit by bit."""
    _prepare_once(monkeypatch)
    command = (f"--encoder={encoder}", "--training.batch_size=2", "--training.checkpoint_minutes=0", *options)
    monkeypatch.setattr(Checkpoints, "save", _keeping(Checkpoints.save, trial.folder / "kept"))
    assert trial.train(*command, output="whole").code == 0
    whole = {path.name: path.read_bytes() for path in (trial.folder / "kept").iterdir()}
    last = max(int(name) for name in whole)
    assert last == len(whole) >= 4
    for path in (trial.folder / "kept").iterdir():
        path.unlink()
    for step in range(1, last + 1):
        with kill_at_step(step):
            assert trial.child(*command).code == -signal.SIGKILL
        done = Checkpoints(trial.run / "checkpoints").latest()
        assert (done.step if done is not None else 0) == step - 1
    assert trial.child(*command).code == 0
    assert {path.name: path.read_bytes() for path in (trial.folder / "kept").iterdir()} == whole
    assert trial.outcome() == trial.outcome("whole")


def _keeping(real: Any, folder: Path) -> Any:
    """Checkpoints.save that leaves hashes of all it saved, times aside, under the step's number."""
    folder.mkdir(exist_ok=True)

    def save_and_keep(store: Checkpoints, step: int, model: Any, optimizer: Any, state: Any) -> Path:
        path = real(store, step, model, optimizer, state)
        known = [digest(path / name) for name in FILES[:2]]
        known.append(json.dumps(without_times(json.loads((path / "state.json").read_bytes()))))
        (folder / str(step)).write_text("\n".join(known))
        return path

    return save_and_keep


def test_s09_dropout_draws_other_numbers_at_every_step(trial: Trial) -> None:
    """What the test above would miss if nothing were random: without the seed of the step the result is another."""
    assert trial.train(output="whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asrkit.training.step_seed", lambda seed, epoch, batch: 7 * epoch + batch)
        assert trial.train().code == 0
    assert trial.outcome()[0] != trial.outcome("whole")[0]


# --- S10: another recipe


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
    ("option", "said"),
    [
        ("--training.lr=0.02", "training.lr: 0.01 -> 0.02"),
        ("--seed=2", "seed: 1 -> 2"),
        ("--training.accumulation=2", "training.accumulation: 1 -> 2"),
        ("--text.options={alphabet: 'abeiou xyz'}", "text.options"),
        ("--training.epochs=3", None),
        ("--training.workers=1", None),
        ("--data.max_bad=0.5", None),
    ],
)
def test_s10_one_key_changed(trial: Trial, option: str, said: str | None) -> None:
    with kill_at_step(2, signal.SIGTERM):
        assert trial.train("--encoder=layer_norm").code == 75
    before = trial.state()
    ended = trial.train("--encoder=layer_norm", option)
    if said is None:
        assert ended.code == 0
        assert option[2:].split("=")[0] in NEUTRAL
        assert f"goes on with another setting: {option[2:].split('=')[0]}" in (trial.run / "log.txt").read_text()
        return
    assert ended.end == (2, "other_recipe")
    assert said in ended.error
    assert "--output" in ended.error
    assert trial.state() == before
    assert trial.train("--encoder=layer_norm").code == 0


# --- S11: signals


def _signal_in(patch: pytest.MonkeyPatch, where: str, number: int) -> None:
    """The signal comes when the method is entered for the first time."""
    cls: Any = {"save": Checkpoints, "start": UpdateGroup}.get(where, CTCBrain)
    real, sent = getattr(cls, where), []

    def signalled(*args: Any, **kwargs: Any) -> Any:
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    patch.setattr(cls, where, signalled)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["fit_batch", "compute_forward", "_update", "save", "measure", "start"])
def test_s11_a_signal_at_any_moment(trial: Trial, where: str, number: int) -> None:
    options = ("--encoder=layer_norm", "--training.accumulation=2")
    assert trial.train(*options, output="whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        _signal_in(patch, where, number)
        ended = trial.train(*options)
    assert ended.end == (75, "stopped")
    assert signal.Signals(number).name in ended.error
    assert Checkpoints(trial.run / "checkpoints").latest() is not None
    assert trial.train(*options).code == 0
    assert trial.outcome() == trial.outcome("whole")


def test_s11_usr1_saves_and_goes_on(trial: Trial) -> None:
    assert trial.train(output="whole").code == 0
    saved: list[int] = []
    real = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda store, step, *rest: saved.append(step) or real(store, step, *rest))
        with kill_at_step(2, signal.SIGUSR1):
            assert trial.train().code == 0
    assert saved == [2, 3, 6]  # asked for, and after each epoch
    assert trial.outcome() == trial.outcome("whole")


def test_s11_a_second_signal_ends_it_now(trial: Trial) -> None:
    with kill_at_step(1, signal.SIGTERM), kill_at_step(1, signal.SIGINT):
        ended = trial.child()
    assert ended.code == 130
    assert steps(trial.run / "checkpoints") == []
    assert trial.train().code == 0


# --- S12, S13: workers


POISONED = "common_voice_es_5"


def _poison(patch: pytest.MonkeyPatch, how: str, times: Path | None = None) -> None:
    """Reading one clip kills, crashes or stops its worker, or raises; with `times` only the first time."""
    real, trainer = Split.__getitem__, os.getpid()

    def read(split: Split, index: int) -> Any:
        if os.getpid() != trainer and split.utterances[index].id == POISONED and (times is None or not times.exists()):
            if times is not None:
                times.write_text("done")
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "segfault":
                faulthandler.disable()  # pytest's would print all that a segmentation fault can be told of
                os.kill(os.getpid(), signal.SIGSEGV)
            if how == "hangs":
                time.sleep(60)
            raise ValueError("broken codec")
        return real(split, index)

    patch.setattr(Split, "__getitem__", read)


WHY = {
    "killed": "its worker was ended by SIGKILL",
    "segfault": "its worker was ended by SIGSEGV",
    "hangs": "took more than 0.5 s",
    "raises": "ValueError: broken codec",
}


@pytest.mark.parametrize("how", list(WHY))
def test_s12_a_clip_that_ends_its_worker(trial: Trial, how: str) -> None:
    options = ("--training.workers=2", "--training.worker_timeout=0.5", "--training.batch_size=2")
    with pytest.MonkeyPatch.context() as patch:
        _poison(patch, how)
        strict = trial.train(*options)
        assert strict.end == (3, "quarantined")
        assert f"1 of 12 clips could not be read while training, the last was {POISONED} ({WHY[how]})" in strict.error
        with kill_at_step(9, signal.SIGTERM):
            assert trial.train(*options, "--data.max_bad=0.5").code == 75
        assert trial.train(*options, "--data.max_bad=0.5").code == 0  # still poisoned: it knows
    lines = MetricsLog.read(trial.run / "metrics.jsonl")
    [bad] = [line for line in lines if line["type"] == "quarantined"]
    assert (bad["id"], bad["why"], bad["epoch"]) == (POISONED, WHY[how], 1)
    assert [line["train"]["utterances"] for line in lines if line["type"] == "epoch"] == [11, 11]
    # The others in the order of before: as if the clip had never been in its batch.
    real = CTCBrain.run

    def without(brain: CTCBrain) -> Any:
        brain.position.quarantined.append(POISONED)
        return real(brain)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CTCBrain, "run", without)
        assert trial.train(*options, "--data.max_bad=0.5", output="without").code == 0
    assert trial.outcome()[0] == trial.outcome("without")[0]


def test_s12_a_worker_killed_from_outside_costs_nothing(trial: Trial) -> None:
    assert trial.train(output="whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        _poison(patch, "killed", trial.folder / "once")
        assert trial.train("--training.workers=2").code == 0
    assert (trial.folder / "once").exists()
    assert trial.outcome() == trial.outcome("whole")


def test_s12_what_a_clip_raises_on_purpose_is_raised(trial: Trial) -> None:
    """A disk that fails says nothing about the clip."""
    real = Split.__getitem__

    def read(split: Split, index: int) -> Any:
        if split.utterances[index].id == POISONED and split.name == "train" and split.epoch_is_on:  # type: ignore
            raise StorageError("the disk is gone", fix="mend it", reason="unreadable")
        return real(split, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Split, "set_epoch", lambda split, epoch: setattr(split, "epoch_is_on", True))
        patch.setattr(Split, "epoch_is_on", False, raising=False)
        patch.setattr(Split, "__getitem__", read)
        for workers in (0, 2):
            assert trial.train(f"--training.workers={workers}", output=f"run{workers}").end == (5, "unreadable")
    assert trial.train("--training.workers=2", output="run2").code == 0


def test_s13_workers_of_a_killed_trainer_are_gone(trial: Trial) -> None:
    assert trial.train(output="whole").code == 0
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    pids = trial.folder / "pids"
    pids.mkdir()
    real, trainer = Split.__getitem__, []

    def read(split: Split, index: int) -> Any:
        if trainer and os.getpid() != trainer[0]:
            (pids / str(os.getpid())).touch()
            time.sleep(0.3)
        return real(split, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Split, "__getitem__", read)
        child = os.fork()
        if child == 0:
            trainer.append(os.getpid())
            os._exit(main(trial.words("--training.workers=2")))
        while len(list(pids.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    deadline = time.monotonic() + 10
    workers = [int(path.name) for path in pids.iterdir()]
    while any(_lives(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its trainer"
        time.sleep(0.05)
    assert (set(os.listdir("/dev/shm")) if before else before) <= before
    assert trial.train().code == 0
    assert trial.outcome() == trial.outcome("whole")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- S14: memory

# In a process of its own: what other tests have freed would make room under the limit, or splinter it.
LIMITED = """
import resource, sys
from asrkit.cli import main
from asrkit.training import CTCBrain
real = CTCBrain.on_fit_start
def start(brain):
    real(brain)
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 120 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
CTCBrain.on_fit_start = start
sys.exit(main(sys.argv[1:]))
"""


def test_s14_out_of_memory_names_the_batch_and_a_size_that_fits(trial: Trial) -> None:
    """Under a real limit, twice: the batch that does not fit, and the size that the error proposes."""
    options = (
        "--layers=[{linear: 40000}, relu, {linear: 8}, {bigru: 8}]", "--encoder=none", "--spec_augment=null",
        "--training.epochs=1", "--training.optimizer=sgd",
    )  # fmt: skip

    def limited(*more: str, output: str) -> Ended:
        words = [sys.executable, "-c", LIMITED, *trial.words(*options, *more, output=output)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        return Ended(done.returncode, done.stderr)

    ended = limited("--training.batch_frames=100000", output="large")
    assert ended.end == (4, "out_of_memory")
    assert "out of memory in a batch of 12 x " in ended.error
    assert "common_voice_es_" in ended.error
    assert "of them fit (tried)" in ended.error
    assert steps(trial.folder / "large" / "checkpoints") == []
    fits = ended.error.split("--training.batch_frames=")[1].split()[0]
    assert limited(f"--training.batch_frames={fits}", output="small").code == 0


def test_s14_dev_is_looked_at_in_parts_where_a_batch_of_it_does_not_fit(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation has no batch to change results with: it takes halves by itself, down to single clips."""
    assert trial.train(output="whole").code == 0
    real, seen = CTCBrain.compute_forward, []

    def narrow(brain: CTCBrain, batch: Any, stage: Any) -> Any:
        if stage is Stage.VALID:
            seen.append(len(batch.ids))
            if len(batch.ids) > 1:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(brain, batch, stage)

    monkeypatch.setattr(CTCBrain, "compute_forward", narrow)
    assert trial.train().code == 0
    assert max(seen) > 1
    assert seen.count(1) > 1
    parts, whole = (
        [line["dev"] for line in MetricsLog.read(trial.folder / name / "metrics.jsonl") if "dev" in line]
        for name in ("run", "whole")
    )
    for one, other in zip(parts, whole, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_s14_a_full_memory_anywhere_else_is_no_bug(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks for memory in vain: exit 4, and words about memory."""

    def full(brain: CTCBrain) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(CTCBrain, "on_fit_start", full)
    ended = trial.train()
    assert ended.end == (4, "out_of_memory")
    assert "smaller batches" in ended.error


@pytest.mark.parametrize(
    ("said", "out"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("MPS backend out of memory (MPS allocated: 8.00 GB)", True),
        ("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory", True),
        ("std::bad_alloc", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_s14_all_ways_to_say_out_of_memory(said: str, out: bool) -> None:
    assert is_out_of_memory(RuntimeError(said)) is out
    assert not is_out_of_memory(ValueError(said))


def test_s14_a_look_that_makes_nothing_of_a_batch_is_over() -> None:
    numbers = torch.ones(2, dtype=torch.int64)
    batch = Batch(torch.zeros(2, 1, 1), numbers, numbers[:, None], numbers, ("a", "b"), (0, 1))
    assert [(part.ids, found) for part, found in in_parts(batch, lambda _: None)] == [(("a", "b"), None)]


# --- S15 to S18


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


def test_s15_training_is_refused_before_any_work(trial: Trial) -> None:
    (trial.folder / "file").write_text("x")
    for output in ("file", "file/below", "/proc/asrkit"):
        assert trial.train(output=output).end == (5, "run_folder")
    assert not (trial.folder / "cache").exists()
    assert (trial.folder / "file").read_text() == "x"
    assert trial.train("--training.epochs=1").code == 0


def test_s16_data_changed_under_a_run(trial: Trial) -> None:
    """Neither the cache nor the run takes the new rows for the old ones."""
    assert trial.train("--training.epochs=1").code == 0
    before = trial.state()
    table = trial.corpus / "train.tsv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:7]), encoding="utf-8")  # 12 rows -> 6
    ended = trial.train("--training.epochs=3")
    assert ended.end == (2, "other_data")
    assert {k: v for k, v in trial.state().items() if "data_report" not in k} == {
        k: v for k, v in before.items() if "data_report" not in k
    }
    assert trial.train(output="new").code == 0
    epochs = [line for line in MetricsLog.read(trial.folder / "new" / "metrics.jsonl") if line["type"] == "epoch"]
    assert [line["train"]["utterances"] for line in epochs] == [6, 6]
    table.write_text("".join(lines), encoding="utf-8")
    assert trial.train("--training.epochs=3").code == 0


PLUGIN = """
import asrkit, torch

class Scale(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(size))
    def forward(self, x, mask):
        return FACTOR * self.gain * x

@asrkit.register_encoder("scaled")
class Scaled(asrkit.StackEncoder):
    def make_norm(self, size):
        return Scale(size)
"""


def test_s17_plugin_code_edited_before_a_resume(trial: Trial) -> None:
    file = trial.folder / "scaled.py"
    file.write_text(PLUGIN.replace("FACTOR", "1.0"), encoding="utf-8")
    command = (f"--plugin={file}", "--encoder=scaled")
    assert trial.child(*command, "--training.epochs=1").code == 0
    before = trial.state()
    assert trial.child(*command, "--training.epochs=1", "--exact").code == 0, "nothing has changed"
    file.write_text(PLUGIN.replace("FACTOR", "1.01"), encoding="utf-8")
    ended = trial.child(*command, "--exact")
    assert ended.end == (5, "other_code")
    assert "asrkit_plugin_scaled changed" in ended.error
    after = trial.state()
    assert {k: v for k, v in after.items() if "checkpoints" in k} == {
        k: v for k, v in before.items() if "checkpoints" in k
    }
    assert trial.child(*command).code == 0
    assert "begun with other code: asrkit_plugin_scaled changed" in (trial.run / "log.txt").read_text(encoding="utf-8")


def test_s18_torn_lines_and_steps_after_the_checkpoint_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step})
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for missing in range(1, len(last)):
        path.write_bytes(whole[:-missing])
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


@pytest.mark.parametrize("tail", [b'{"type": "upd', b"\0\0\0\0", b'{"type": "update", "step": 3, "epoch": 1}\n'])
def test_s18_a_torn_log_of_a_run(trial: Trial, tail: bytes) -> None:
    assert trial.train(output="whole").code == 0
    with kill_at_step(2, signal.SIGTERM):
        assert trial.train().code == 75
    with (trial.run / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert trial.train().code == 0
    assert trial.outcome() == trial.outcome("whole")
