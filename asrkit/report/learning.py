"""How fast cells learn: their curves, when they begin to hear, and which of two arms is quicker.

A CTC model begins with random characters, falls onto a plateau of blanks, where its loss is that of a model that hears
nothing (asrkit.hearing), and reads from then on. The CER of a model that hears nothing may be anything from 70 to
100 %, as it writes frequent characters or blanks, and says nothing. Until it hears, the CER therefore counts as 1
here, and two arms of which no cell hears are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asrkit.comparison import FEWEST_SEEDS, LEVEL, Difference, corrected, over_seeds
from asrkit.hearing import epoch_hears
from asrkit.report.collect import CellResult, StudyResult
from asrkit.report.formats import amount
from asrkit.study.cells import FAILED, best_model_hears

THRESHOLDS = (0.8, 0.5, 0.3, 0.2, 0.1, 0.05)
AHEAD = 0.02  # of dev CER: what an arm must lead by, in every seed, for its curve to be called ahead
Points = list[tuple[int, float, float]]


def series(cell: CellResult, *keys: str, clock: str = "seconds") -> Points:
    """(updates, seconds of training so far, value) of every epoch whose record has the value and finite.

    clock: which of an epoch's times is added up, `seconds` (wall) or `cpu_seconds`.
    """
    points, seconds = [], 0.0
    for epoch in cell.epochs:
        seconds += float(epoch.get(clock) or 0.0)
        value: Any = epoch
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and math.isfinite(value):
            points.append((int(epoch.get("step", 0)), seconds, float(value)))
    return points


def reached(cell: CellResult, threshold: float) -> int | None:
    """Updates at the first look at dev with a CER not above the threshold, from when on the cell hears."""
    start = _start(cell)
    return next((step for step, _, cer in series(cell, "dev", "cer") if cer <= threshold and step >= start), None)


def floor(cell: CellResult) -> float | None:
    """Loss of the best model that hears nothing, in nats per label, as the run has recorded it."""
    found = series(cell, "diagnosis", "floor")
    return found[-1][2] if found else None


def listening(cell: CellResult) -> list[tuple[int, bool]]:
    """(updates, whether it hears its input) of every epoch whose diagnosis is recorded."""
    found = [(int(epoch.get("step", 0)), epoch_hears(epoch)) for epoch in cell.epochs]
    return [(step, one) for step, one in found if one is not None]


def hears(cell: CellResult) -> bool | None:
    """Whether it has heard its input at any epoch; None where that is not recorded.

    A cell that failed before its first epoch hears nothing.
    """
    known = listening(cell)
    if known:
        return any(one for _, one in known)
    return False if cell.status == FAILED and not cell.epochs else None


def heard_from(cell: CellResult) -> int | None:
    """Updates at the first epoch that hears; None if none does, or that is not recorded."""
    return next((step for step, one in listening(cell) if one), None)


def _start(cell: CellResult) -> float:
    """Updates from which on a CER is no longer chance: 0 where that is not recorded, infinity for a deaf cell."""
    start = heard_from(cell) if listening(cell) else 0
    return math.inf if start is None else start


def model_hears(cell: CellResult) -> bool | None:
    """Whether the best model of a cell, which is the one that is scored, hears its input: what its epoch recorded, or,
    where that is damaged, what the cell itself has said.

    That of a collapsed cell, which writes nothing, does not.
    """
    known = cell.outcome or {}
    if (not cell.epochs or cell.damage) and known.get("hears") is not None:
        return bool(known["hears"])
    return best_model_hears(cell.status, cell.epochs, known.get("best_epoch"))


def deaf(cells: Sequence[CellResult]) -> bool:
    """Whether none of these cells' models hears its input: of those that are over, if any, none is known to."""
    over = [cell for cell in cells if cell.over]
    return bool(over) and all(model_hears(cell) is False for cell in over)


def chance(
    mean: float, first: Sequence[CellResult], second: Sequence[CellResult], names: tuple[str, str]
) -> str | None:
    """In words why a difference in error rate (mean of second less first) is none: no model of the arm that looks
    better hears its input. None where one does."""
    better, name = (second, names[1]) if mean < 0 else (first, names[0])
    if not deaf(better):
        return None
    return (
        unheard([*first, *second]) or f"no verdict: {name} makes fewer errors, and none of its models hears its input"
    )


def worse_is_deaf(
    mean: float, first: Sequence[CellResult], second: Sequence[CellResult], names: tuple[str, str]
) -> str | None:
    """The arm with more errors (mean: second less first), where none of its models hears its input."""
    worse, name = (first, names[0]) if mean < 0 else (second, names[1])
    return name if mean and deaf(worse) else None


def unheard(cells: Sequence[CellResult]) -> str | None:
    """In words why these cells cannot be told apart: none of those that are over hears at any epoch. None where one
    does."""
    over = [cell for cell in cells if cell.over]
    if not over or any(hears(cell) is not False for cell in over):
        return None
    updates = max((cell.epochs[-1].get("step", 0) for cell in over if cell.epochs), default=0)
    return f"no seed of either hears its input within {amount(updates, 'update')}: too short to tell"


@dataclass(frozen=True)
class Pace:
    """Which of two arms learns faster: difference (second less first) of the dev CER averaged over all looks at dev.

    goal: the lowest threshold that every seed of both has reached, and mean updates of first and second to it.
    ratio: updates to the goal, second / first: geometric mean over paired seeds with its 95 % interval.
    differences: of every paired seed. undecided: why no verdict is given in spite of p, in words. crossing: which arm
    is ahead by AHEAD and more in every seed, from and to which updates, where it is the one early and the other late.
    raised: whether any of these CERs was lower as recorded, and counts as 1 because its cell did not hear yet. level:
    what p_holm must be below.
    """

    context: str
    first: str
    second: str
    difference: Difference
    p_holm: float
    goal: tuple[float, float, float] | None
    ratio: tuple[float, float, float] | None = None
    seeds_needed: int | None = None
    differences: tuple[float, ...] = ()
    undecided: str | None = None
    crossing: tuple[tuple[str, int, int], ...] = ()
    raised: bool = False
    level: float = LEVEL

    @property
    def different(self) -> bool:
        """Whether it stands, at its level over all pairs together."""
        return self.undecided is None and self.p_holm < self.level


def average_cer(cell: CellResult, looks: int) -> float | None:
    """Dev CER, at most 1, and 1 before the cell hears, averaged over `looks` looks: the area under the learning curve.

    A cell that failed early keeps its last value; None for one that is not over, or whose metrics are lost.
    """
    if not cell.over or (cell.damage and not cell.epochs):
        return None
    values = [cer for _, cer in counted(cell)]
    if not values and cell.status != FAILED:
        return None
    last = values[-1] if values else 1.0
    return float(np.mean(values + [last] * (looks - len(values)))) if looks else None


def counted(cell: CellResult) -> list[tuple[int, float]]:
    """(updates, dev CER) of every look, at most 1, and 1 before the cell hears."""
    start = _start(cell)
    return [(step, 1.0 if step < start else min(cer, 1.0)) for step, _, cer in series(cell, "dev", "cer")]


def raised(cells: Sequence[CellResult]) -> bool:
    """Whether any look counts with more than its CER, because the cell did not hear yet."""
    return any(
        value > cer
        for cell in cells
        for (_, value), (_, _, cer) in zip(counted(cell), series(cell, "dev", "cer"), strict=True)
    )


def paces(found: StudyResult, baseline: str | None = None, level: float = LEVEL) -> list[Pace]:
    """Every pair of arms within a context, or every arm with the baseline, over paired seeds; Holm over all of them."""
    result = []
    for context, arms in found.contexts().items():
        members = {arm["encoder"]: found.of_arm(arm["arm"]) for arm in arms}
        looks = max((len(series(c, "dev", "cer")) for group in members.values() for c in group), default=0)
        means = {
            name: {c.row["seed"]: m for c in group if (m := average_cer(c, looks)) is not None}
            for name, group in members.items()
        }
        names = [name for name, values in means.items() if values]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        if baseline is not None:
            pairs = [(baseline, name) for name in names if name != baseline] if baseline in names else []
        result += [_pace(context, a, b, means, members) for a, b in pairs]
    return corrected(result, level)


def _pace(
    context: str, a: str, b: str, means: dict[str, dict[int, float]], members: dict[str, list[CellResult]]
) -> Pace:
    seeds = [seed for seed in means[a] if seed in means[b]]
    x, y = (np.array([means[name][seed] for seed in seeds]) for name in (a, b))
    pair = [[next(c for c in members[n] if c.row["seed"] == seed) for seed in seeds] for n in (a, b)]
    goal, ratio = _goal(*pair)
    differences = tuple((y - x).tolist())
    return Pace(
        context, a, b, over_seeds(x, y), math.nan, goal, ratio, None, differences, unheard(pair[0] + pair[1]),
        _crossing((a, b), pair), raised([*pair[0], *pair[1]]),
    )  # fmt: skip


def _crossing(names: tuple[str, str], pair: Sequence[Sequence[CellResult]]) -> tuple[tuple[str, int, int], ...]:
    """(name, from, to): who is ahead early and who late; empty where it is always the same, or nobody."""
    curves = [[counted(cell) for cell in group] for group in pair]
    looks = min((len(curve) for group in curves for curve in group), default=0)
    if not looks:
        return ()
    steps = [step for step, _ in curves[0][0][:looks]]
    first, second = (np.array([[cer for _, cer in curve[:looks]] for curve in group]) for group in curves)
    ahead = [np.flatnonzero((one <= other - AHEAD).all(0)) for one, other in ((first, second), (second, first))]
    if not len(ahead[0]) or not len(ahead[1]):
        return ()
    early, late = sorted((0, 1), key=lambda which: ahead[which][0])
    if ahead[early][-1] > ahead[late][0]:  # to and fro
        return ()
    return tuple((names[i], steps[ahead[i][0]], steps[ahead[i][-1]]) for i in (early, late))


def _goal(
    first: Sequence[CellResult], second: Sequence[CellResult]
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    """The goal of a Pace and its ratio; both arms' cells in the same order of seeds."""
    for threshold in sorted(THRESHOLDS):
        updates = [[reached(cell, threshold) for cell in group] for group in (first, second)]
        if not first or any(step is None for group in updates for step in group):
            continue
        a, b = np.array(updates, float)
        d = over_seeds(np.log(np.maximum(a, 1)), np.log(np.maximum(b, 1)))
        ratio = tuple(math.exp(v) for v in (d.mean, d.low, d.high)) if len(a) >= FEWEST_SEEDS else None
        return (threshold, float(a.mean()), float(b.mean())), ratio  # type: ignore[return-value]
    return None, None
