"""What a study writes down beside its cells: the proof before training, study.json, which test splits were touched."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asrkit.disk import atomic_write
from asrkit.errors import RecipeError, StorageError
from asrkit.study import cells, proof
from asrkit.study.plan import Cell, Study
from asrkit.study.schedule import Outcomes, counted_cer, total_cells, tuning, wanted_cells


def prove(study: Study, plugins: Sequence[str] = (), progress: bool = False) -> dict[str, dict[str, Any]]:
    """Prepare the data of every context once, for all processes, and take the fingerprint of every cell of it.

    Raises RecipeError (`not_only_the_axis`) before anything is trained, and what `asrkit train` would raise.
    """
    from asrkit import registry
    from asrkit.experiment import check_recipe
    from asrkit.preparation import prepare

    for file in plugins:
        registry.load_plugin_file(file)
    wanted = ("train", "dev", "test") if study.definition["test"] else ("train", "dev")
    found: dict[str, dict[str, Any]] = {}
    for context in dict.fromkeys(cell.context for cell in study.cells):
        members = [cell for cell in study.cells if cell.context == context]
        for cell in {member.arm: member for member in members}.values():
            check_recipe(cell.settings)
        prepared = prepare(members[0].settings, wanted, progress=progress)
        plans: dict[int, dict[str, Any]] = {}
        prints: dict[tuple[str, int], dict[str, Any]] = {}
        for cell in members:
            if cell.seed not in plans:
                plans[cell.seed] = proof.planned(cell.settings, prepared.splits["train"])
            key = (cell.encoder, cell.seed)  # the learning rate changes nothing before the first update
            if key not in prints:
                prints[key] = proof.fingerprint(cell.settings, prepared) | plans[cell.seed]
            found[cell.id] = prints[key]
    proof.check(study, found)
    return found


def touched(folder: Path) -> dict[str, list[float]]:
    """Arm -> the learning rates that the test split was decoded with, in their order."""
    path = folder / "test_touched.json"
    try:
        ledger = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {arm: rates if isinstance(rates, list) else [float(rates)] for arm, rates in ledger.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} is damaged", fix="begin a new study with --output", reason="damaged") from error


def touch_test(folder: Path, cell: Cell, again: bool = False) -> None:
    """Note that the test split is decoded with this arm's learning rate.

    Raises RecipeError (`test_touched`) where it was decoded with another one, as the choice has changed since; with
    `again` that is noted too, and a report says so.
    """
    ledger = touched(folder)
    before = ledger.get(cell.arm, [])
    if cell.lr in before:
        return
    if before and not again:
        raise RecipeError(
            f"{cell.arm}: the test split was decoded with learning rate {before[-1]:g}, and {cell.lr:g} is chosen now",
            fix="take the new learning rates or seeds back, begin a new study with --output, or allow it with "
            "--test-again: the report then says it",
            reason="test_touched",
        )
    ledger[cell.arm] = [*before, cell.lr]
    plain = {arm: rates if len(rates) > 1 else rates[0] for arm, rates in ledger.items()}
    atomic_write(folder / "test_touched.json", json.dumps(plain, indent=1) + "\n")


def note(folder: Path, text: str) -> None:
    """One line of log.txt, with the time."""
    with (folder / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def summary(
    study: Study,
    outcomes: Outcomes,
    rates: Mapping[str, float | None],
    out_of_time: bool = False,
    ledger: Mapping[str, list[float]] | None = None,
    others: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """study.json without its proof: the definition, every arm with its learning rates, every cell with its path.

    ledger: as `touched` returns it. others: as `cells.other_outcomes` returns it.
    """
    from asrkit import __version__

    wanted = wanted_cells(study, outcomes)
    open_status = cells.SKIPPED if out_of_time else cells.PENDING
    rows = [_row(cell, outcomes.get(cell.id), rates[cell.arm] == cell.lr, open_status) for cell in wanted]
    total = total_cells(study)
    status = Counter(row["status"] for row in rows)
    status[open_status] += total - len(rows)
    tests = study.definition["test"]
    tested = all(row["tested"] or row["test_error"] or row["dev_cer"] is None for row in rows if row["chosen"])
    return {
        "format": cells.FORMAT,
        "asrkit": __version__,
        "name": study.name,
        "file": study.file.name,
        "definition": study.definition,
        "seeds": study.definition["seeds"],
        "tuning_seeds": study.tuning_seeds,
        "total_cells": total,
        "complete": all(row["over"] for row in rows) and len(rows) == total and (tested or not tests),
        "counts": {name: count for name, count in status.items() if count},
        "arms": _arms(study, outcomes, rates),
        # Arms whose test split was decoded with a learning rate that is not theirs now, before the grid was widened.
        "tested_before": {
            arm: before
            for arm, used in (ledger or {}).items()
            if rates.get(arm) is not None and (before := [lr for lr in used if lr != rates[arm]])
        },
        "cells": rows,
        "left_out": _left_out(wanted, outcomes, others),
    }


def _arms(study: Study, outcomes: Outcomes, rates: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Every arm with the learning rate that is its own, and what each rate came to."""
    arms, tries = [], tuning(study, outcomes)
    for arm, members in study.arms.items():
        first = members[0]
        grid = [
            {"lr": lr, "dev_cer": None if tried is None else tried.cer, "deaf": None if tried is None else tried.deaf}
            for lr, tried in tries[arm].items()
        ]
        arms.append({"arm": arm, "context": first.context, "recipe": first.recipe, "axes": first.axes,
                     "encoder": first.encoder, "lr": rates[arm], "tuning": grid})  # fmt: skip
    return arms


def _left_out(wanted: Sequence[Cell], outcomes: Outcomes, others: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells that are over and that nothing is compared with: they have cost as much, and who leaves them out after
    seeing them has chosen. Their test is not repeated here."""
    kept = {cell.id for cell in wanted}
    open_again = [one for name, one in outcomes.items() if name not in kept]
    rows = [(one, "rate not chosen now") for one in open_again] + [(one, "no longer in the study") for one in others]
    return [
        {**{key: one[key] for key in ("id", "arm", "lr", "seed", "status")}, "why": why,
         "dev_cer": one["dev"]["cer"] if one.get("dev") else None}
        for one, why in rows
    ]  # fmt: skip


def _row(cell: Cell, outcome: Mapping[str, Any] | None, chosen: bool, open_status: str) -> dict[str, Any]:
    """One cell in study.json; `chosen`: it has its arm's learning rate."""
    row = {**cells.about(cell), "path": f"cells/{cell.id}", "chosen": chosen, "over": outcome is not None}
    known = outcome or {}
    return {
        **row,
        "status": known.get("status", open_status),
        "error": known.get("error"),
        "hears": known.get("hears"),
        "counted_cer": counted_cer(outcome) if outcome is not None else None,
        "dev_cer": known["dev"]["cer"] if known.get("dev") else None,
        "tested": bool(known.get("test")),
        "test_cer": known["test"]["cer"] if known.get("test") else None,
        "test_wer": known["test"]["wer"] if known.get("test") else None,
        "test_error": known.get("test_error"),
        "seconds": known.get("wall_seconds"),
    }


def line(outcome: Mapping[str, Any], done: int, total: int, trained: bool = True) -> str:
    """One cell in words, for a terminal; `trained`: by the process that has just ended."""
    text = f"[{done}/{total}] {outcome['arm']} lr {outcome['lr']:g} seed {outcome['seed']}: {outcome['status']}"
    if outcome.get("error"):
        text += f" ({outcome['error']['code']}: {outcome['error']['message']})"
    for split in ("dev", "test"):
        if outcome.get(split):
            text += f", {split} CER {outcome[split]['cer']:.1%}"
    if outcome.get("test_error"):
        text += f", test failed ({outcome['test_error']['code']}: {outcome['test_error']['message']})"
    return f"{text}, {duration(outcome['wall_seconds'])}" if trained and outcome.get("wall_seconds") else text


def duration(seconds: float) -> str:
    """`42 s`, `3.5 min`, `7.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
