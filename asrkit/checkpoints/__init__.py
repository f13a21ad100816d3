"""Checkpoints of a run: atomic, hashed, ordered by step; `asrkit.checkpoints.files` has what one of them is.

A save writes `.tmp-*`, syncs each file, writes MANIFEST.json (sizes and sha256) last, syncs, and renames: whatever
fails at whatever moment, the newest valid checkpoint is the old one or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from asrkit.checkpoints.files import (
    FILES,
    MANIFEST,
    Checkpoint,
    Damaged,
    open_checkpoint,
    refuse_non_finite,
    state_to_bytes,
    steps_in,
    tensors_to_bytes,
)
from asrkit.disk import disk_full, free_bytes, storage_error, sync_folder, write_synced
from asrkit.errors import RecipeError, StorageError

logger = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"\.tmp-(\d+)-.*")


class Checkpoints:
    """All checkpoints of a run, in one folder that one process at a time writes to (`RunFolder.lock`).

    Args:
        folder: made when missing; leftovers of dead processes in it are removed.
        keep_last: how many of the newest to keep, at least 1.
        keep_best: how many of the best by `state["metrics"][key]` to keep besides; NaN is never best.
        key: the metric.
        lower_is_better: whether smaller metrics are better.

    Raises:
        StorageError: the folder cannot be used (exit 5).
    """

    def __init__(
        self,
        folder: str | Path,
        keep_last: int = 2,
        keep_best: int = 1,
        key: str = "dev_cer",
        lower_is_better: bool = True,
    ) -> None:
        if keep_last < 1 or keep_best < 0:
            raise RecipeError(
                f"keep_last={keep_last}, keep_best={keep_best}", possible="keep_last >= 1, keep_best >= 0"
            )
        self.folder, self.keep_last, self.keep_best = Path(folder), keep_last, keep_best
        self.key, self.lower_is_better = key, lower_is_better
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
        except OSError as error:
            raise storage_error(error, self.folder) from error
        self._scores: dict[int, float] | None = None  # by step; so that a save costs the same after thousands

    def _clean(self) -> None:
        """Finish a replacement that was cut off, and remove what dead processes left."""
        for entry in sorted(self.folder.iterdir()):
            if entry.name.startswith(".old-"):
                target = self.folder / entry.name.removeprefix(".old-")
                if target.exists():
                    shutil.rmtree(entry)
                else:
                    os.rename(entry, target)
            elif (match := _TEMPORARY.fullmatch(entry.name)) and not _is_running(int(match[1])):
                shutil.rmtree(entry, ignore_errors=True)

    # --- saving

    def save(
        self, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Path:
        """Write one checkpoint, then remove the ones that are no longer kept.

        Args:
            step: optimizer steps so far; the only thing that orders checkpoints.
            model, optimizer: flat tensors (`optimizer_to_tensors`); copied, so tied weights are fine.
            state: JSON data; `state["metrics"]` holds the metrics.

        Raises:
            NumericError: a tensor holds NaN or infinity (exit 4). Nothing is written.
            StorageError: no space or no permission (exit 5). What was there before still is.
        """
        step = int(step)
        if step < 0:
            raise StorageError(f"step {step} is negative", reason="step")
        for part, tensors in (("model", model), ("optimizer", optimizer)):
            refuse_non_finite(part, tensors)
        text = state_to_bytes(state)
        size = sum(t.numel() * t.element_size() for part in (model, optimizer) for t in part.values()) + len(text)
        try:
            if free_bytes(self.folder) < 1.2 * size:
                raise disk_full(self.folder, int(1.2 * size))
            contents = dict(zip(FILES, (tensors_to_bytes(model), tensors_to_bytes(optimizer), text), strict=True))
            path = self._write(step, contents)
        except OSError as error:
            raise storage_error(error, self.folder, size) from error
        self._remember(step, json.loads(text))
        self._prune(step)
        return path

    def _write(self, step: int, contents: Mapping[str, bytes]) -> Path:
        name = f"step-{step:08d}"
        final, old = self.folder / name, self.folder / f".old-{name}"
        temporary = self.folder / f".tmp-{os.getpid()}-{name}"
        manifest = {n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents.items()}
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            os.mkdir(temporary)
            for file, data in contents.items():
                write_synced(temporary / file, data)
            write_synced(temporary / MANIFEST, json.dumps({"step": step, "files": manifest}, indent=1).encode())
            sync_folder(temporary)
            if final.exists():  # the same step again, after a resume
                os.rename(final, old)
            os.rename(temporary, final)
            sync_folder(self.folder)
        except BaseException:  # an interrupt too: nothing half-written stays
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not final.exists():
                os.rename(old, final)
            raise
        finally:
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
        return final

    def _remember(self, step: int, state: Mapping[str, Any]) -> None:
        if self._scores is None:
            self._scores = {}
            for other, path in self._steps():
                with contextlib.suppress(Damaged):
                    self._scores[other] = self._score(open_checkpoint(path, other, verify=False).state)
        self._scores[step] = self._score(state)

    def _score(self, state: Mapping[str, Any]) -> float:
        """The metric, smaller is better; infinity where there is none."""
        metrics = state.get("metrics")
        value = metrics.get(self.key) if isinstance(metrics, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return math.inf
        return float(value) if self.lower_is_better else -float(value)

    def _prune(self, newest: int) -> None:
        """Keep the last and the best ones; a folder leaves by a rename, so that half of one is never seen."""
        scores = self._scores or {}
        steps = sorted(step for step, _ in self._steps())
        best = sorted((step for step in steps if scores.get(step, math.inf) < math.inf), key=lambda s: (scores[s], s))
        keep = {*steps[-self.keep_last :], *best[: self.keep_best], newest}
        for step, path in self._steps():
            if step in keep:
                continue
            doomed = self.folder / f".tmp-{os.getpid()}-{path.name}"
            try:
                os.rename(path, doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                logger.warning("%s: could not be removed (%s)", path, error.strerror)
            scores.pop(step, None)

    # --- loading

    def _steps(self) -> list[tuple[int, Path]]:
        return steps_in(self.folder)

    def latest(self, exact: bool = False) -> Checkpoint | None:
        """The newest checkpoint whose hashes are right; damaged ones move to `.broken/`, each with one warning.

        With `exact` the newest or none: a damaged one raises StorageError (exit 5) and stays where it is.
        """
        if exact and (steps := self._steps()):
            step, path = steps[0]
            try:
                return open_checkpoint(path, step, verify=True)
            except Damaged as damage:
                fix = "go on from an older one without --exact"
                raise StorageError(f"checkpoint {path} is damaged: {damage}", fix=fix, reason="damaged") from damage
        return next((found for step, path in self._steps() if (found := self._usable(step, path))), None)

    def best(self) -> Checkpoint | None:
        """The best one by the metric whose hashes are right, the earliest of equals; None where none has the metric."""
        candidates = []
        for step, path in self._steps():
            try:
                score = self._score(open_checkpoint(path, step, verify=False).state)
            except Damaged as damage:
                self._quarantine(path, damage)
                continue
            if score < math.inf:
                candidates.append((score, step, path))
        return next((found for _, step, path in sorted(candidates) if (found := self._usable(step, path))), None)

    def choose(self, count: int, by: str = "last") -> list[Checkpoint]:
        """The `count` newest (`by` last) or best (`by` best) ones whose hashes are right, oldest first.

        Raises RecipeError (`checkpoints`) where there are not as many.
        """
        found = [one for step, path in self._steps() if (one := self._usable(step, path))]
        if by == "best":
            found = sorted((one for one in found if self._score(one.state) < math.inf), key=self._order)
        if not 1 <= count <= len(found):
            raise RecipeError(
                f"--{by} {count}: {self.folder} has {len(found)} such checkpoints",
                possible=f"1 to {len(found)}",
                fix=f"train with training.keep_{by}={count} to keep more of them",
                reason="checkpoints",
            )
        return sorted(found[:count], key=lambda one: one.step)

    def _order(self, one: Checkpoint) -> tuple[float, int]:
        return self._score(one.state), one.step

    def _usable(self, step: int, path: Path) -> Checkpoint | None:
        try:
            return open_checkpoint(path, step, verify=True)
        except Damaged as damage:
            self._quarantine(path, damage)
            return None

    def _quarantine(self, path: Path, damage: Damaged) -> None:
        broken = self.folder / ".broken"
        target = broken / path.name
        try:
            broken.mkdir(exist_ok=True)
            number = 1
            while target.exists():
                number += 1
                target = broken / f"{path.name}.{number}"
            os.rename(path, target)
            logger.warning(
                "checkpoint %s is damaged (%s); moved to %s, an older one is used", path.name, damage, target
            )
        except OSError as error:
            logger.warning("checkpoint %s is damaged (%s) and cannot be moved (%s)", path, damage, error.strerror)
        if self._scores is not None:
            self._scores.pop(int(path.name.removeprefix("step-")), None)


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False  # an earlier process had our number: ours has not begun a save yet
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
