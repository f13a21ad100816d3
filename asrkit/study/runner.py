"""Runs a study: prepare once, prove, then a process per cell, a few at a time; the same call goes on after any end.

Nothing here trains: what is done is what the cells' folders say, so a study that is killed loses only what its cells
had not saved. A cell that crashes is a result: it is shown, and not tried again unless that is asked for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from asrkit.disk import atomic_write
from asrkit.errors import AsrkitError, InUseError, RecipeError, StoppedError, StorageError
from asrkit.position import StopSignal
from asrkit.runs import RunFolder
from asrkit.study import cells, proof, record
from asrkit.study.plan import Study
from asrkit.study.schedule import Job, chosen_rates, next_jobs, seconds_left, total_cells, wanted_cells

Say = Callable[[str], None]
GRACE = 120.0  # seconds that cells are given to save before they are killed
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What ends the study instead of a cell: disk, folder, and signals are nobody's result.
NOT_THE_CELLS: dict[int, type[AsrkitError]] = {5: StorageError, 6: InUseError}


@dataclass
class _Running:
    """One cell's process."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    asked_to_stop: float | None = None


class Runner:
    """One call of a study in its folder.

    plugins: files that register plugins, for every process. retry_failed: do cells that have crashed again. test_again:
    decode the test split of an arm with another learning rate than before, where a wider grid has changed the choice.
    command_line: what was typed, for study.json and log.txt.
    """

    def __init__(
        self,
        study: Study,
        folder: str | Path,
        *,
        plugins: Sequence[str | Path] = (),
        retry_failed: bool = False,
        test_again: bool = False,
        progress: bool = False,
        say: Say = print,
        command_line: str | None = None,
    ) -> None:
        self.study, self.folder = study, Path(folder)
        self.plugins = [str(Path(file).resolve()) for file in plugins]
        self.retry_failed, self.test_again, self.progress, self.say = retry_failed, test_again, progress, say
        self.command_line = command_line
        self.budget = study.definition["budget"]
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] = []
        self.interrupted: set[str] = set()
        self.planned: dict[str, dict[str, Any]] = {}
        self.running: list[_Running] = []
        self.open: list[Job] = []
        self.out_of_time = False
        self.stop = StopSignal()

    def run(self) -> dict[str, Any]:
        """Everything that is left, within the budget; returns what study.json holds.

        Raises StoppedError (exit 75) after a signal and when the time is up, RecipeError (exit 2) where arms differ in
        more than they may, and for cells that were made with other settings.
        """
        started = time.monotonic()
        if self.budget["gpus"] is not None:
            _gpus(self.budget["gpus"])
        with RunFolder(self.folder).lock():
            cells.refuse_other_cells(self.study, self.folder)
            if self.retry_failed:
                for name in cells.set_aside_failures(self.study, self.folder):
                    self.say(f"again: {name}")
            self.outcomes = cells.read_outcomes(self.study, self.folder)
            self.others = cells.other_outcomes(self.study, self.folder)
            atomic_write(self.folder / self.study.file.name, self.study.file.read_text(encoding="utf-8"))
            self.open = next_jobs(self.study, self.outcomes)
            if self.open:
                unused = len(self.outcomes) - self._done() + len(self.others)
                rest = f"; {unused} more are not in use, of other learning rates or arms" if unused else ""
                self.say(f"{self.folder}: {self._done()} of {total_cells(self.study)} cells are done{rest}")
                if self.command_line:
                    record.note(self.folder, self.command_line)
                self._warn_of_test()
                self.planned = record.prove(self.study, self.plugins, self.progress)
                deadline = None if self.budget["minutes"] is None else started + 60 * self.budget["minutes"]
                with self.stop:
                    self._work(deadline)
            return self._close()

    def _warn_of_test(self) -> None:
        """Before hours of training: where the choice is open again, the test split may have been decoded already."""
        rates = chosen_rates(self.study, self.outcomes)
        arms = [arm for arm in record.touched(self.folder) if arm in rates and rates[arm] is None]
        if arms and not self.test_again:
            are = "arm has its" if len(arms) == 1 else "arms have their"
            self.say(
                f"! {len(arms)} {are} learning rate open again, and test was decoded with the old one: where another "
                "is chosen the study will stop, unless it is called with --test-again, which the report says"
            )

    def _close(self) -> dict[str, Any]:
        summary = self._write()
        proof.check(self.study, self._fingerprints())
        if self.stop.received is not None or self.out_of_time:
            what = f"stopped by {self.stop.name}" if self.stop.received is not None else "the time budget is used up"
            untested = sum(job.cell.id in self.outcomes for job in self.open)
            rest = f", test is still to be decoded with {untested} of them" if untested else ""
            raise StoppedError(
                f"{what}; {self._done()} of {total_cells(self.study)} cells are trained{rest}",
                fix="type the same command to go on",
                reason="stopped" if self.stop.received is not None else "out_of_time",
            )
        return summary

    # --- processes

    def _work(self, deadline: float | None) -> None:
        bar = tqdm(
            total=total_cells(self.study), initial=self._done(), desc=self.study.name, unit="cell",
            disable=not self.progress, dynamic_ncols=True, smoothing=0.1,
        )  # fmt: skip
        try:
            with bar:
                while self._step(deadline, bar):
                    time.sleep(0.05)
        except BaseException:  # a second Ctrl-C, a difference between arms, a full disk: no process outlives the study
            self._kill_all()
            raise

    def _step(self, deadline: float | None, bar: Any) -> bool:
        """Look at the processes, start what can be started; whether there is more to do."""
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            self._finished(one)
            bar.update(self._done() - bar.n)
        if deadline is not None and time.monotonic() > deadline:
            self.out_of_time = self.out_of_time or bool(self.open)
        if self.stop.received is not None or self.out_of_time:
            self._ask_to_stop()
            return bool(self.running)
        busy = {one.job.cell.id for one in self.running}
        jobs = [job for job in self.open if job.cell.id not in busy]
        for job in jobs[: self.budget["processes"] - len(self.running)]:
            self._start(job)
        return bool(self.running)

    def _done(self) -> int:
        return sum(cell.id in self.outcomes for cell in wanted_cells(self.study, self.outcomes))

    def _start(self, job: Job) -> None:
        folder = cells.cell_folder(self.folder, job.cell)
        RunFolder(folder)  # proves that it can be written to
        if job.test:
            record.touch_test(self.folder, job.cell, self.test_again)
        cells.write_task(folder, job.cell, self.study, self.plugins, self.budget["threads"])
        slot = min(set(range(self.budget["processes"])) - {one.slot for one in self.running})
        command = self.command(folder, job.test)
        with (folder / "output.txt").open("ab") as output:
            # A session of its own: Ctrl-C reaches the study alone, which then asks its cells to save.
            process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
                env=self._environment(slot),
            )  # fmt: skip
        self.running.append(_Running(job, process, slot))
        record.note(self.folder, f"start {job.cell.id}{' with test' if job.test else ''}")

    def command(self, folder: Path, test: bool) -> list[str]:
        """What does a cell; another launcher overrides this."""
        return [sys.executable, "-m", "asrkit.study.worker", str(folder), *(["--test"] if test else [])]

    def _environment(self, slot: int) -> dict[str, str]:
        found = dict(os.environ) | {name: str(self.budget["threads"]) for name in THREADS}
        if self.budget["gpus"] is not None:
            found["CUDA_VISIBLE_DEVICES"] = _gpus(self.budget["gpus"])[slot % self.budget["gpus"]]
        return found

    def _finished(self, one: _Running) -> None:
        """Take in what a process has left, or that it has left nothing."""
        code, cell = one.process.returncode, one.job.cell
        folder = cells.cell_folder(self.folder, cell)
        if one.process.stdin is not None:
            one.process.stdin.close()
        outcome = cells.read_outcome(folder)
        record.note(self.folder, f"end {cell.id} exit {code}")
        complete = _complete(outcome, one.job.test)
        if not complete:
            if self.stop.received is not None or self.out_of_time:
                return  # it has saved, and the next call goes on
            if code in NOT_THE_CELLS:
                self._give_up(code, folder)
            if self._once_more(one, outcome, folder):
                return
            outcome = self._crashed(one, outcome, folder)
            cells.write_outcome(folder, outcome)
        assert outcome is not None
        first = cell.id not in self.outcomes
        self.outcomes[cell.id] = cells.figures_of(outcome)
        self.open = next_jobs(self.study, self.outcomes)
        self.say(record.line(outcome, self._done(), total_cells(self.study), first))
        if first and sum(bool(o.get("wall_seconds")) for o in self.outcomes.values()) == 1:
            left = seconds_left(self.study, self.outcomes, self.budget["processes"])
            self.say(f"about {record.duration(left or 0.0)} for the others, as far as one cell can tell")
        self._write()
        proof.check(self.study, self._fingerprints())

    def _once_more(self, one: _Running, outcome: dict[str, Any] | None, folder: Path) -> bool:
        """Whether a cell that left no word shall have another process: one that somebody else stopped goes on, and one
        that was killed has its best checkpoint scored, as any other that ends before its time."""
        from asrkit.checkpoints.files import steps_in  # torch, which a plan does without

        code, cell, saved = one.process.returncode, one.job.cell, folder / "checkpoints"
        if code == StoppedError.exit_code and cell.id not in self.interrupted:
            self.interrupted.add(cell.id)
            self.say(f"{cell.id}: its process was stopped, not by this study; it goes on")
            return True
        if code < 0 and outcome is None and saved.is_dir() and steps_in(saved):
            cells.write_outcome(folder, {**self._crashed(one, None, folder), "unscored": True})
            return True
        return False

    def _crashed(self, one: _Running, outcome: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
        """The outcome of a process that died before it could say why."""
        code = one.process.returncode
        if code < 0:
            name = signal.Signals(-code).name
            reason = "killed"
            message = f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        else:
            reason, message = ("stopped" if code == 75 else "crashed"), _last_line(folder / "output.txt")
        if outcome is None:
            return cells.failure(one.job.cell, reason, message, code)
        if cells.awaits_its_score(outcome):  # it died of that too
            return {key: value for key, value in outcome.items() if key != "unscored"}
        return {**outcome, "test_error": {"code": reason, "message": message, "exit_code": code}}

    def _give_up(self, code: int, folder: Path) -> NoReturn:
        raise NOT_THE_CELLS[code](
            f"{folder.name}: {_last_line(folder / 'output.txt')}",
            fix="mend it; the same command goes on",
            reason="cell_storage" if code == 5 else "in_use",
        )

    def _ask_to_stop(self) -> None:
        for one in self.running:
            if one.asked_to_stop is None:
                one.asked_to_stop = time.monotonic()
                one.process.terminate()
            elif time.monotonic() - one.asked_to_stop > GRACE:
                one.process.kill()

    def _kill_all(self) -> None:
        for one in self.running:
            one.process.kill()
        for one in self.running:
            one.process.wait()
            if one.process.stdin is not None:
                one.process.stdin.close()

    # --- the record

    def _fingerprints(self) -> dict[str, dict[str, Any]]:
        return {name: outcome["proof"] for name, outcome in self.outcomes.items() if outcome.get("proof")}

    def _write(self) -> dict[str, Any]:
        """study.json, up to date; returned as data."""
        rates = chosen_rates(self.study, self.outcomes)
        ledger = record.touched(self.folder)
        summary = record.summary(self.study, self.outcomes, rates, self.out_of_time, ledger, self.others)
        summary["command"] = self.command_line
        known = self._fingerprints() or self.planned
        summary["proof"] = proof.table(self.study, known)
        atomic_write(self.folder / "study.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
        return summary


def _gpus(count: int) -> list[str]:
    """So many GPUs, those that CUDA_VISIBLE_DEVICES names where it is set: all others are somebody else's."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        there = torch.cuda.device_count()
        if count > there:
            raise RecipeError(
                f"budget.gpus = {count}, and this machine has {there}", reason="gpus",
                fix=f"--budget.gpus={there or 'null'}",
            )  # fmt: skip
        return [str(place) for place in range(count)]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if len(names) < count:
        raise RecipeError(
            f"budget.gpus = {count}, and CUDA_VISIBLE_DEVICES={visible!r} names {len(names)}",
            fix=f"--budget.gpus={len(names) or 'null'}, or name more in CUDA_VISIBLE_DEVICES", reason="gpus",
        )  # fmt: skip
    return names[:count]


def _complete(outcome: dict[str, Any] | None, test: bool) -> bool:
    """Whether a cell is over, with test where that was asked for."""
    if outcome is None or cells.awaits_its_score(outcome):
        return False
    tested = outcome.get("test") is not None or outcome.get("test_error") is not None
    return not test or outcome.get("dev") is None or tested


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1].strip() if lines else "its process left no word"


def run_study(study: Study, folder: str | Path, **options: Any) -> dict[str, Any]:
    """`Runner(study, folder, **options).run()`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "a study starts its own processes", fix="start it without torchrun", reason="several_processes"
        )
    return Runner(study, folder, **options).run()
