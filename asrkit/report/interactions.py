"""Does an axis change what an encoder does? Differences of differences: does a norm help more in deep models?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from asrkit.comparison import FEWEST_SEEDS, LEVEL, Difference, holm, more_seeds, over_seeds, seeds_for, span
from asrkit.report.axes import Family, axes, families
from asrkit.report.collect import StudyResult
from asrkit.report.learning import model_hears
from asrkit.report.measures import Final
from asrkit.report.words import context_name
from asrkit.study.cells import COLLAPSED, FAILED


@dataclass(frozen=True)
class Interaction:
    """By how much `second less first` differs between two values of an axis, over seeds that all four arms have.

    difference: (second less first at `to`) less (second less first at `start`), in error rate. undecided: why no
    verdict is given, in words.
    """

    axis: str
    context: str
    start: str
    to: str
    first: str
    second: str
    difference: Difference
    p_holm: float = math.nan
    seeds_needed: int | None = None
    differences: tuple[float, ...] = ()
    undecided: str | None = None

    @property
    def different(self) -> bool:
        """Whether it stands, at LEVEL over all of them together."""
        return self.undecided is None and self.p_holm < LEVEL


def interactions(found: StudyResult, result: Mapping[str, Final], baseline: str | None = None) -> list[Interaction]:
    """Every encoder with the baseline (default: the first of the study), every value of an axis with the axis' first,
    all else equal; Holm over all of them together."""
    pairs = []
    for axis in axes(found):
        groups: dict[str, dict[str, Family]] = {}
        for family in families(found, axis):
            groups.setdefault(family.context, {})[family.encoder] = family
        for group in groups.values():
            name = baseline if baseline in group else next(iter(group))
            for other in group:
                if other != name:
                    pairs += _of_pair(found, result, group[name], group[other])
    usable = [
        one.difference.p if one.difference.seeds >= FEWEST_SEEDS and one.undecided is None else math.nan
        for one in pairs
    ]
    return [
        replace(one, p_holm=p, seeds_needed=seeds_for(np.array(one.differences), tests=len(pairs)))
        for one, p in zip(pairs, holm(usable), strict=True)
    ]


def _of_pair(found: StudyResult, result: Mapping[str, Final], first: Family, second: Family) -> list[Interaction]:
    values = [v for v in first.arms if v in second.arms and first.arms[v] in result and second.arms[v] in result]
    made = []
    for value in values[1:]:
        ids = [family.arms[v] for v in (values[0], value) for family in (first, second)]
        arms = [result[one].arm for one in ids]
        seeds = [seed for seed in arms[0].seeds if all(seed in arm.seeds for arm in arms)]
        a, b, c, d = (np.array([arm.rates[arm.seeds.index(seed)] for seed in seeds]) for arm in arms)
        made.append(Interaction(
            first.axis, first.context, values[0], value, first.encoder, second.encoder, over_seeds(b - a, d - c),
            differences=tuple(((d - c) - (b - a)).tolist()),
            undecided=_chance(found, ids[:2], b - a) or _chance(found, ids[2:], d - c),
        ))  # fmt: skip
    return made


def _chance(found: StudyResult, pair: Sequence[str], difference: np.ndarray) -> str | None:
    """In words why the difference of two arms is none: the one that looks better hears nothing, and has not collapsed
    or failed in all cells, which would be an outcome. An arm that hears nothing may well be the worse one."""
    better = pair[1] if len(difference) and difference.mean() < 0 else pair[0]
    over = [cell for cell in found.of_arm(better) if cell.over]
    ended = all(cell.status in (COLLAPSED, FAILED) for cell in over)
    if not over or ended or any(model_hears(cell) is not False for cell in over):
        return None
    return f"no verdict: no model of {context_name(over[0].row['context'])}, {over[0].row['encoder']} hears its input"


def interaction_in_words(one: Interaction, rate: str) -> str:
    """What the axis does to the difference of two encoders, or "no evidence", and what it would take."""
    d = one.difference
    begin = f"{context_name(one.context)}: {one.second} beside {one.first}, from {one.axis} {one.start} to {one.to}: "
    if one.undecided is not None:
        return begin + one.undecided
    if d.seeds < FEWEST_SEEDS:
        return f"{begin}{d.seeds} paired seed{'s' * (d.seeds != 1)}, too few to tell (at least {FEWEST_SEEDS})"
    moved = f"{'gains' if d.mean < 0 else 'loses'} {100 * abs(d.mean):.2f} points"
    if one.different:
        return f"{begin}it {moved} of {rate} ({span(d, one.p_holm, sign=False)})"
    return (
        f"{begin}no evidence that the difference changes: it {moved} of {rate} ({span(d, one.p_holm)})"
        f"{more_seeds(one.seeds_needed, d)}"
    )
