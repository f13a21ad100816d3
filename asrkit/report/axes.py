"""Across an axis of a study (depth, placement, residuals): cells that differ in this axis and in nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from asrkit.comparison import LEVEL, Comparison, compare, corrected, unpaired
from asrkit.report.collect import StudyResult
from asrkit.report.learning import chance, worse_is_deaf
from asrkit.report.measures import Final, alike


@dataclass(frozen=True)
class Family:
    """Arms that differ in one axis only. context: recipe and all other axes; arms: value of the axis -> arm's id."""

    axis: str
    context: str
    encoder: str
    arms: Mapping[str, str]


def numbers(values: Any) -> list[float] | None:
    """Names of an axis' values as numbers, if all of them are finite numbers."""
    try:
        found = [float(value) for value in values]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def axes(found: StudyResult) -> dict[str, list[str]]:
    """Axis -> its values, if there are several: in increasing order where they are numbers, else in the study's."""
    values: dict[str, list[str]] = {}
    for arm in found.arms:
        for axis, value in (arm.get("axes") or {}).items():
            if str(value) not in values.setdefault(str(axis), []):
                values[str(axis)].append(str(value))
    return {
        axis: sorted(names, key=float) if numbers(names) else names for axis, names in values.items() if len(names) > 1
    }


def families(found: StudyResult, axis: str) -> list[Family]:
    """In the order of the study; those of which only one value is there are left out."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for arm in found.arms:
        others = dict(arm.get("axes") or {})
        if axis not in others:
            continue
        value = str(others.pop(axis))
        context = "--".join([arm["recipe"], *(f"{name}-{one}" for name, one in others.items())])
        groups.setdefault((context, arm["encoder"]), {})[value] = arm["arm"]
    order = axes(found).get(axis, [])
    return [
        Family(axis, context, encoder, {value: arms[value] for value in order if value in arms})
        for (context, encoder), arms in groups.items() if len(arms) > 1
    ]  # fmt: skip


def questions(found: StudyResult) -> int:
    """How many questions a report asks of a study, each of which could be answered wrongly: which arm is better, which
    learns faster; with axes and several encoders also what an axis does to one, and whether to all of them the same."""
    return 4 if axes(found) and len({arm["encoder"] for arm in found.arms}) > 1 else 2


def across(found: StudyResult, result: Mapping[str, Final], level: float = LEVEL) -> list[tuple[Family, Comparison]]:
    """Every value of every axis with the axis' first (the least) of the same family; Holm over all of them together.

    Values that were not scored on the same utterances as the first (outputs too short for some) get no verdict.
    """
    pairs = []
    for axis in axes(found):
        for family in families(found, axis):
            scored = {value: result[arm] for value, arm in family.arms.items() if arm in result}
            pairs += [(family, _beside(found, family, scored, value)) for value in list(scored)[1:]]
    made = corrected([one for _, one in pairs], level)
    return [(family, one) for (family, _), one in zip(pairs, made, strict=True)]


def _beside(found: StudyResult, family: Family, scored: Mapping[str, Final], value: str) -> Comparison:
    """A value of the family's axis with its first."""
    least = next(iter(scored))
    names = (f"{family.axis} {least}", f"{family.axis} {value}")
    if not alike(scored[least], scored[value]):
        return unpaired(*names)
    (one,) = compare([replace(scored[v].arm, name=name) for v, name in zip((least, value), names, strict=True)])
    cells = [found.of_arm(family.arms[v]) for v in (least, value)]
    reason, silent = (ask(one.seeds.mean, cells[0], cells[1], names) for ask in (chance, worse_is_deaf))
    return replace(one, undecided=reason, deaf=silent)
