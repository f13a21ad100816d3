"""The numbers of a report, from cells of chosen learning rates; plain functions, nothing drawn or worded here.

A cell that failed without a model counts as all reference characters (words) deleted: error rate 1. A cell whose
decoding failed, or which is not over, has no rate and is listed instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asrkit.comparison import FEWEST_SEEDS, Arm, Comparison, Difference, compare, holm, over_seeds
from asrkit.report.collect import CellResult, StudyResult
from asrkit.study.cells import FAILED, arm_of

THRESHOLDS = (0.8, 0.5, 0.3, 0.2, 0.1, 0.05)


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
    """One arm on one split: errors per cell (asrkit.comparison.Arm), and the seeds that count as all deleted."""

    arm: Arm
    without_model: tuple[int, ...]


def default_split(found: StudyResult) -> str:
    """test where any chosen cell was scored on it, else dev."""
    return "test" if any(c.row.get("chosen") and c.scored("test") for c in found.cells) else "dev"


def finals(found: StudyResult, split: str, unit: str) -> dict[str, Final]:
    """Arm id -> its errors on the split; arms without a scored or failed cell, and contexts without any score, are
    not in it. Arms are named by their encoder."""
    result = {}
    for arms in found.contexts().values():
        members = {arm["arm"]: found.of_arm(arm["arm"]) for arm in arms}
        scores = [score for group in members.values() for cell in group if (score := cell.scored(split))]
        if not scores:
            continue
        for arm in arms:
            final = _final(arm["encoder"], members[arm["arm"]], split, unit, scores[0])
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
        elif cell.over and cell.status == FAILED and not (cell.outcome or {}).get("dev"):
            outcomes.append({"seed": seed, split: all_deleted})
            without.append(seed)
    return Final(arm_of(name, outcomes, split, unit), tuple(without)) if outcomes else None


def comparisons(found: StudyResult, result: dict[str, Final]) -> list[tuple[str, Comparison]]:
    """(context, comparison) for every pair of arms within a context; Holm's correction over all of them together."""
    pairs = []
    for context, arms in found.contexts().items():
        pairs += [(context, one) for one in compare([result[a["arm"]].arm for a in arms if a["arm"] in result])]
    usable = [one.seeds.p if one.seeds.seeds >= FEWEST_SEEDS else math.nan for _, one in pairs]
    return [(context, replace(one, p_holm=p)) for (context, one), p in zip(pairs, holm(usable), strict=True)]


# --- learning


def series(cell: CellResult, *keys: str) -> list[tuple[int, float, float]]:
    """(updates, seconds of training so far, value) of every epoch whose record has the value and finite."""
    points, seconds = [], 0.0
    for epoch in cell.epochs:
        seconds += float(epoch.get("seconds") or 0.0)
        value: Any = epoch
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and math.isfinite(value):
            points.append((int(epoch.get("step", 0)), seconds, float(value)))
    return points


def reached(cell: CellResult, threshold: float) -> int | None:
    """Updates at the first look at dev with a CER not above the threshold."""
    return next((step for step, _, cer in series(cell, "dev", "cer") if cer <= threshold), None)


def end_gap(cell: CellResult) -> tuple[float, float] | None:
    """(train CER, dev CER) of the last epoch that has both. Train's is that of training: with dropout, while the
    weights moved."""
    for epoch in reversed(cell.epochs):
        train, dev = epoch.get("train", {}).get("cer"), epoch.get("dev", {}).get("cer")
        if train is not None and dev is not None:
            return float(train), float(dev)
    return None


@dataclass(frozen=True)
class Pace:
    """Which of two arms learns faster: difference (second less first) of the dev CER averaged over all looks at dev.

    goal: the lowest threshold that every seed of both has reached, and mean updates of first and second to it.
    """

    context: str
    first: str
    second: str
    difference: Difference
    p_holm: float
    goal: tuple[float, float, float] | None

    @property
    def different(self) -> bool:
        """Whether it stands, at 5 % over all pairs together."""
        return self.p_holm < 0.05


def average_cer(cell: CellResult, looks: int) -> float | None:
    """Dev CER averaged over `looks` looks: the area under the learning curve. A cell that failed early keeps its last
    CER, 1 if it had none; None for a cell that is not over, or whose metrics are lost."""
    if not cell.over or (cell.damage and not cell.epochs):
        return None
    values = [cer for _, _, cer in series(cell, "dev", "cer")]
    if not values and cell.status != FAILED:
        return None
    last = values[-1] if values else 1.0
    return float(np.mean(values + [last] * (looks - len(values)))) if looks else None


def paces(found: StudyResult) -> list[Pace]:
    """Every pair of arms within a context, over paired seeds; Holm over all of them together."""
    result = []
    for context, arms in found.contexts().items():
        members = {arm["encoder"]: found.of_arm(arm["arm"]) for arm in arms}
        looks = max((len(series(c, "dev", "cer")) for group in members.values() for c in group), default=0)
        means = {
            name: {c.row["seed"]: m for c in group if (m := average_cer(c, looks)) is not None}
            for name, group in members.items()
        }
        names = [name for name, values in means.items() if values]
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                seeds = [seed for seed in means[a] if seed in means[b]]
                found_ = over_seeds(np.array([means[a][s] for s in seeds]), np.array([means[b][s] for s in seeds]))
                pair = [[c for c in members[n] if c.row["seed"] in seeds] for n in (a, b)]
                result.append(Pace(context, a, b, found_, math.nan, _goal(*pair)))
    usable = [one.difference.p if one.difference.seeds >= FEWEST_SEEDS else math.nan for one in result]
    return [replace(one, p_holm=p) for one, p in zip(result, holm(usable), strict=True)]


def _goal(first: Sequence[CellResult], second: Sequence[CellResult]) -> tuple[float, float, float] | None:
    for threshold in sorted(THRESHOLDS):
        updates = [[reached(cell, threshold) for cell in group] for group in (first, second)]
        known = [[step for step in group if step is not None] for group in updates]
        if all(known) and list(map(len, known)) == list(map(len, updates)):
            return threshold, float(np.mean(known[0])), float(np.mean(known[1]))
    return None


# --- cost and gradients


def cost(cell: CellResult) -> dict[str, float | None]:
    """Seconds (and CPU seconds, where recorded) per update, peak memory in MB, as the cell's last process saw them."""
    known = cell.outcome or {}
    updates, seconds, cpu = known.get("updates"), known.get("train_seconds"), known.get("cpu_seconds")
    return {
        "seconds_per_update": seconds / updates if updates and seconds is not None else None,
        "cpu_per_update": cpu / updates if updates and cpu is not None else None,
        "memory_mb": known.get("memory_mb"),
    }


def end_gradients(cell: CellResult) -> tuple[str, float, str, float] | None:
    """(first layer, its gradient norm, last layer, its norm) in the last epoch that has both; layers as recorded, from
    input to output."""
    for epoch in reversed(cell.epochs):
        norms = list((epoch.get("train", {}).get("grad_norm_by_layer") or {}).items())
        if len(norms) > 1:
            return norms[0][0], float(norms[0][1]), norms[-1][0], float(norms[-1][1])
    return None


def gradient_ratio(cell: CellResult) -> list[tuple[int, float, float]]:
    """(updates, seconds, gradient norm of the first layer / that of the last) of every epoch that has both."""
    points, seconds = [], 0.0
    for epoch in cell.epochs:
        seconds += float(epoch.get("seconds") or 0.0)
        norms = list((epoch.get("train", {}).get("grad_norm_by_layer") or {}).values())
        if len(norms) > 1 and norms[0] and norms[-1] and all(map(math.isfinite, (norms[0], norms[-1]))):
            points.append((int(epoch.get("step", 0)), seconds, norms[0] / norms[-1]))
    return points
