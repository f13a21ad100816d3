"""The numbers of a report, from cells of chosen learning rates; plain functions, nothing drawn or worded here.

A cell that failed without a model counts as all reference characters (words) deleted: error rate 1. A cell whose
model could not be scored, or which is not over, has no rate and is listed instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asrkit.comparison import FEWEST_SEEDS, LEVEL, Arm, Comparison, compare, corrected, over_seeds
from asrkit.report.collect import CellResult, StudyResult, utterances
from asrkit.report.learning import chance, worse_is_deaf
from asrkit.study.cells import arm_of, without_model


@dataclass(frozen=True)
class Spread:
    """Values over seeds: mean, least, most, and Student's 95 % interval of the mean (NaN below FEWEST_SEEDS seeds)."""

    mean: float
    least: float
    most: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of the values that are known and finite; None without any."""
    known = np.array([value for value in values if value is not None and math.isfinite(value)], float)
    if not len(known):
        return None
    found = over_seeds(np.zeros(len(known)), known)
    low, high = (found.low, found.high) if len(known) >= FEWEST_SEEDS else (math.nan, math.nan)
    return Spread(float(known.mean()), float(known.min()), float(known.max()), low, high, len(known))


# --- final error rates


@dataclass(frozen=True)
class Final:
    """One arm on one split: errors per cell (asrkit.comparison.Arm), the seeds that count as all deleted, and the names
    of the utterances."""

    arm: Arm
    without_model: tuple[int, ...]
    ids: tuple[Any, ...] = ()


def alike(one: Final, other: Final) -> bool:
    """Whether both were scored on the same utterances, so that their errors can be paired."""
    a, b = one.arm, other.arm
    return one.ids == other.ids and a.speakers == b.speakers and np.array_equal(a.lengths, b.lengths)


def default_split(found: StudyResult) -> str:
    """test where any chosen cell was scored on it, else dev."""
    return "test" if any(c.row.get("chosen") and c.scored("test") for c in found.cells) else "dev"


def finals(found: StudyResult, split: str, unit: str) -> dict[str, Final]:
    """Arm id -> its errors on the split; arms without a scored or failed cell, and contexts without any score, are
    not in it. Arms are named by their encoder. Of a context's cells those count that were scored on its utterances
    (asrkit.report.collect.utterances); `troubles` names the others."""
    result = {}
    for arms in found.contexts().values():
        members = {arm["arm"]: found.of_arm(arm["arm"]) for arm in arms}
        like = utterances([cell for group in members.values() for cell in group], split)
        if like is None:
            continue
        for arm in arms:
            final = _final(arm["encoder"], members[arm["arm"]], split, unit, like)
            if final is not None:
                result[arm["arm"]] = final
    return result


def _final(name: str, members: Sequence[CellResult], split: str, unit: str, like: dict[str, Any]) -> Final | None:
    all_deleted = {**like, unit: {**like[unit], "errors": like[unit]["lengths"]}}
    outcomes: list[dict[str, Any]] = []
    without = []
    for cell in members:
        score, seed = cell.scored(split), cell.row["seed"]
        if score is not None and score["ids"] == like["ids"]:
            outcomes.append({"seed": seed, split: score})
        elif cell.outcome is not None and without_model(cell.outcome):
            outcomes.append({"seed": seed, split: all_deleted})
            without.append(seed)
    return Final(arm_of(name, outcomes, split, unit), tuple(without), tuple(like["ids"])) if outcomes else None


def comparisons(
    found: StudyResult, result: dict[str, Final], baseline: str | None = None, level: float = LEVEL
) -> list[tuple[str, Comparison]]:
    """(context, comparison) for every pair of arms within a context, or of every arm with the baseline; Holm over all.

    No verdict where no model of the arm that looks better hears its input: its outputs are chance.
    """
    pairs = []
    for context, arms in found.contexts().items():
        cells = {arm["encoder"]: found.of_arm(arm["arm"]) for arm in arms}
        there = [result[arm["arm"]].arm for arm in arms if arm["arm"] in result]
        if baseline is not None and baseline not in [arm.name for arm in there]:
            continue
        for one in compare(there, baseline):
            arms_of = cells[one.first], cells[one.second], (one.first, one.second)
            reason, silent = chance(one.seeds.mean, *arms_of), worse_is_deaf(one.seeds.mean, *arms_of)
            pairs.append((context, replace(one, undecided=reason, deaf=silent)))
    made = corrected([one for _, one in pairs], level)
    return [(context, one) for (context, _), one in zip(pairs, made, strict=True)]


# --- generalization and cost


def end_gap(cell: CellResult) -> tuple[float, float] | None:
    """(train CER, dev CER) of the last epoch that has both. Train's is that of training: with dropout, while the
    weights moved."""
    for epoch in reversed(cell.epochs):
        train, dev = epoch.get("train", {}).get("cer"), epoch.get("dev", {}).get("cer")
        if train is not None and dev is not None:
            return float(train), float(dev)
    return None


def cost(cell: CellResult) -> dict[str, float | None]:
    """Seconds (and CPU seconds, where recorded) per update, peak memory in MB, as the cell's last process saw them."""
    known = cell.outcome or {}
    updates, seconds, cpu = known.get("updates"), known.get("train_seconds"), known.get("cpu_seconds")
    return {
        "seconds_per_update": seconds / updates if updates and seconds is not None else None,
        "cpu_per_update": cpu / updates if updates and cpu is not None else None,
        "memory_mb": known.get("memory_mb"),
    }
