"""The folder of a cell: a run folder with `task.json` (what is asked) and `cell.json` (what came of it).

cell.json is written last and at once: a cell that has one is over, whatever came of it. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asrkit.disk import atomic_write
from asrkit.errors import RecipeError, StorageError
from asrkit.hearing import model_hears
from asrkit.recipe import ABSENT, differences, recipe_hash
from asrkit.recipe.schema import NEUTRAL
from asrkit.runs import MetricsLog
from asrkit.study.plan import Cell, Study, common, identity

FORMAT = 1
ARRAYS = ("ids", "speakers", "characters", "words")  # of a scored split: one entry per utterance
ESSENTIAL = ("id", "arm", "lr", "seed", "status")  # of cell.json: what all readers take for granted
ANEW = "remove the folder: the cell is done anew"
DONE, COLLAPSED, FAILED, SKIPPED, PENDING = "done", "collapsed", "failed", "skipped_budget", "pending"


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell of the study in `folder` lies."""
    return folder / "cells" / cell.id


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """What a cell has left, None while it is not over. Raises StorageError where cell.json is damaged."""
    outcome = _read(folder / "cell.json", "remove it: the cell is scored again")
    if outcome is not None and "hears" not in outcome:  # written before cells knew
        lines: list[dict[str, Any]] = []
        with contextlib.suppress(StorageError):  # damaged: then it is not known
            lines = MetricsLog.read(folder / "metrics.jsonl")
        epochs = [line for line in lines if line.get("type") == "epoch"]
        outcome["hears"] = best_model_hears(outcome.get("status", ""), epochs, outcome.get("best_epoch"))
    return outcome


def best_model_hears(status: str, epochs: Sequence[Mapping[str, Any]], best_epoch: int | None) -> bool | None:
    """Whether a cell's best model hears its input (`asrkit.hearing`); None where that is not recorded.

    One that writes nothing does not, nor one that failed before its first epoch.
    """
    if status == COLLAPSED or (status == FAILED and not epochs):
        return False
    return model_hears(epochs, best_epoch)


def without_model(outcome: Mapping[str, Any]) -> bool:
    """Whether a cell failed before it had any model, so that it counts as all deleted. One whose model could not be
    scored (`dev_error`) has no error rate instead: `asrkit study --retry-failed` scores it."""
    return outcome.get("status") == FAILED and not outcome.get("dev") and not outcome.get("dev_error")


def _read(path: Path, fix: str) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", reason="unreadable") from error
    except ValueError as error:
        raise StorageError(f"{path} is damaged ({error})", fix=fix, reason="damaged") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise StorageError(f"{path} is of another asrkit", fix="give another folder with --output", reason="format")
    return data


def write_outcome(folder: Path, outcome: Mapping[str, Any]) -> None:
    """Replace cell.json; readers see the old or the new one."""
    atomic_write(folder / "cell.json", json.dumps({"format": FORMAT, **outcome}, ensure_ascii=False) + "\n")


def about(cell: Cell) -> dict[str, Any]:
    """Which cell it is: what cell.json and study.json begin with."""
    facts = {"id": cell.id, "arm": cell.arm, "context": cell.context, "recipe": cell.recipe, "axes": cell.axes}
    return {**facts, "encoder": cell.encoder, "lr": cell.lr, "seed": cell.seed}


def failure(cell: Cell, code: str, message: str, exit_code: int | None) -> dict[str, Any]:
    """The outcome of a cell whose process has left none."""
    error = {"code": code, "message": message, "exit_code": exit_code}
    return {**about(cell), "status": FAILED, "error": error, "dev": None, "test": None, "test_error": None}


def awaits_its_score(outcome: Mapping[str, Any] | None) -> bool:
    """Whether a cell's process was ended from outside, and its best checkpoint is still to be scored."""
    return outcome is not None and bool(outcome.get("unscored"))


def write_task(folder: Path, cell: Cell, study: Study, plugins: Sequence[str], threads: int) -> None:
    """What the cell's process reads. The folder must be there."""
    task = {
        "format": FORMAT,
        "cell": about(cell),
        "settings": cell.settings,
        "source": study.sources[cell.recipe],
        "plugins": list(plugins),
        "threads": threads,
        "keep_checkpoints": study.definition["keep_checkpoints"],
    }
    atomic_write(folder / "task.json", json.dumps(task, ensure_ascii=False) + "\n")


def read_task(folder: Path) -> dict[str, Any]:
    """The task in a cell's folder."""
    task = _read(folder / "task.json", ANEW)
    if task is None:
        raise StorageError(f"{folder} has no task.json, which says what was asked", fix=ANEW, reason="no_task")
    return task


def refuse_other_cells(study: Study, folder: Path) -> None:
    """RecipeError (`other_study`, `other_cell`) where the folder holds another study, none of whose arms is one of
    this, or a cell of the same name that was made with other settings. A damaged study.json is written anew."""
    there = None
    with contextlib.suppress(StorageError):
        there = _read(folder / "study.json", "")
    if there is not None and there.get("name") != study.name:
        raise RecipeError(
            f"{folder} holds the study {there.get('name')!r}", fix="give another --output", reason="other_study"
        )
    _refuse_other_arms(study, folder)
    for cell in study.cells:
        task = _read(cell_folder(folder, cell) / "task.json", ANEW)
        if task is None:
            continue
        changed = _changed(task["settings"], cell.settings)
        if changed:
            raise RecipeError(
                f"{cell_folder(folder, cell)} was made with other settings: {'; '.join(changed)}",
                fix="give another folder with --output, or take these back",
                reason="other_cell",
            )


def _refuse_other_arms(study: Study, folder: Path) -> None:
    # By their folders' names, which begin with the arm: what is in them is read once, later.
    arms = {place.parent.name.rpartition("--lr-")[0] for place in folder.glob("cells/*--lr-*/cell.json")}
    if arms and not arms & set(study.arms):
        shown = ", ".join(sorted(arms)[:3]) + (f" and {len(arms) - 3} more" if len(arms) > 3 else "")
        raise RecipeError(
            f"{folder} holds a study of the same name and of other arms ({shown})",
            fix="give another --output, or another `name:` in the study's file", reason="other_study",
        )  # fmt: skip


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What makes another cell of it. Not a key that asrkit has got since, and that may change between the runs of a
    folder anyway."""
    return [
        f"{path}: {old} -> {new}"
        for path, old, new in differences(identity(before), identity(after))
        if not (old == ABSENT and path in NEUTRAL)
    ]


def read_outcomes(study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """What the study's cells have left so far, by id, without what belongs to single utterances. A cell that awaits
    its score is not over."""
    found = {}
    for cell in study.cells:
        outcome = read_outcome(cell_folder(folder, cell))
        if outcome is not None and not awaits_its_score(outcome):
            found[cell.id] = figures_of(outcome)
            if outcome.get("proof"):
                found[cell.id]["proof"] = _comparable(outcome["proof"], cell, folder)
    return found


def other_outcomes(study: Study, folder: Path) -> list[dict[str, Any]]:
    """What cells in the folder have left that are none of the study as it is now: it was edited, or called with other
    options."""
    known = {cell.id for cell in study.cells}
    places = sorted(path.parent for path in folder.glob("cells/*/cell.json"))
    found = [_whole(place) for place in places if place.name not in known]
    return [figures_of(outcome) for outcome in found if outcome is not None]


def _whole(folder: Path) -> dict[str, Any] | None:
    """`read_outcome`, of a folder of which it is not known that a study has made it."""
    outcome = read_outcome(folder)
    missing = [key for key in ESSENTIAL if key not in outcome] if outcome is not None else []
    if missing:
        raise StorageError(
            f"{folder / 'cell.json'} is not what a cell leaves (no {', '.join(missing)})", fix="remove its folder",
            reason="damaged",
        )  # fmt: skip
    return outcome


def _comparable(proof: Mapping[str, Any], cell: Cell, folder: Path) -> dict[str, Any]:
    """A cell's proof, its settings hashed with the keys that asrkit has got since: cells of both times are compared."""
    now = recipe_hash(common(cell.settings))
    if proof["settings"] != now:
        task = read_task(cell_folder(folder, cell))["settings"]
        if recipe_hash(common(task)) == proof["settings"] and not _changed(task, cell.settings):
            return {**proof, "settings": now}
    return dict(proof)


def figures_of(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome without its arrays: a thousand of them fit into memory."""
    slim = dict(outcome)
    for split in ("dev", "test"):
        if slim.get(split):
            slim[split] = {key: value for key, value in slim[split].items() if key not in ARRAYS}
    return slim


def set_aside_failures(study: Study, folder: Path) -> list[str]:
    """Make cells that have failed, or whose test could not be decoded, open again; what they had left is kept beside
    as cell.failed-N.json. Returns their ids."""
    reopened = []
    for cell in study.cells:
        place = cell_folder(folder, cell)
        outcome = read_outcome(place)
        if outcome is None or (outcome["status"] != FAILED and not outcome.get("test_error")):
            continue
        number = 1
        while (kept := place / f"cell.failed-{number}.json").exists():
            number += 1
        atomic_write(kept, (place / "cell.json").read_bytes())
        if outcome["status"] == FAILED:
            (place / "cell.json").unlink()
        else:
            write_outcome(place, {**outcome, "test_error": None})
        reopened.append(cell.id)
    return reopened


def arm_of(
    name: str,
    outcomes: Sequence[Mapping[str, Any]],
    split: str = "test",
    unit: str = "characters",
) -> Any:
    """Outcomes of one arm with different seeds -> asrkit.comparison.Arm; cells without that split are left out.

    split: dev or test. unit: characters or words.

    Raises RecipeError where they were not scored on the same utterances, ValueError where none was scored.
    """
    import numpy as np

    from asrkit.comparison import Arm

    scored = [outcome for outcome in outcomes if outcome.get(split)]
    if not scored:
        raise ValueError(f"{name}: no cell has been scored on {split}")
    first = scored[0][split]
    if any(outcome[split]["ids"] != first["ids"] for outcome in scored):
        raise RecipeError(f"{name}: the {split} split is not the same in all cells", reason="split_hash")
    return Arm(
        name,
        np.array([outcome[split][unit]["errors"] for outcome in scored]),
        np.array(first[unit]["lengths"]),
        tuple(first["speakers"]),
        tuple(outcome["seed"] for outcome in scored),
    )
