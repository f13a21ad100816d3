"""Does an axis change what an encoder does? Differences of differences: does a norm help more in deep models?

Where an axis has three and more numbers as values (depth), one question is asked of all of them together: by how much
the difference changes with each doubling of the axis. Else every value is held beside the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asrkit.comparison import LEVEL, Difference, corrected, over_seeds, unpaired
from asrkit.report.axes import Family, axes, families, numbers
from asrkit.report.collect import StudyResult
from asrkit.report.learning import chance
from asrkit.report.measures import Final, alike
from asrkit.study.cells import COLLAPSED, FAILED

FEWEST_VALUES = 3  # of an axis of numbers, for a slope


@dataclass(frozen=True)
class Interaction:
    """By how much `second less first` differs between two values of an axis, over seeds that all four arms have.

    difference: (second less first at `to`) less (second less first at `start`), in error rate; or, with `per`, the
    slope of second less first (least squares, seed by seed) per doubling of the axis, or per unit of it. gaps: mean of
    second less first at every value that counts. left_out: values where the better of the two hears nothing; unpaired:
    that were not scored on the same utterances as the first. undecided: why no verdict is given, in words. level: what
    p_holm must be below.
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
    gaps: tuple[tuple[str, float], ...] = ()
    per: str = ""
    left_out: tuple[str, ...] = ()
    unpaired: tuple[str, ...] = ()
    level: float = LEVEL

    @property
    def different(self) -> bool:
        """Whether it stands, at its level over all of them together."""
        return self.undecided is None and self.p_holm < self.level


def interactions(
    found: StudyResult, result: Mapping[str, Final], baseline: str | None = None, level: float = LEVEL
) -> list[Interaction]:
    """Every encoder with the baseline (default: the first of the study), along an axis of numbers, or every value of an
    axis with the axis' first, all else equal; Holm over all of them together."""
    pairs: list[Interaction] = []
    for axis, values in axes(found).items():
        of_pair = _along if len(values) >= FEWEST_VALUES and numbers(values) else _of_pair
        groups: dict[str, dict[str, Family]] = {}
        for family in families(found, axis):
            groups.setdefault(family.context, {})[family.encoder] = family
        for group in groups.values():
            name = baseline if baseline in group else next(iter(group))
            for other in group:
                if other != name:
                    pairs += of_pair(found, result, group[name], group[other])
    return corrected(pairs, level)


def _of_pair(found: StudyResult, result: Mapping[str, Final], first: Family, second: Family) -> list[Interaction]:
    values, made = _shared(result, first, second), []
    for value in values[1:]:
        places = (values[0], value)
        pairs = [(first.arms[v], second.arms[v]) for v in places]
        if not alike(result[pairs[0][0]], result[pairs[1][0]]):
            made.append(_unpaired(result, first, second, places))
            continue
        before, after = _gaps(result, pairs)
        both = (first, second)
        made.append(Interaction(
            first.axis, first.context, values[0], value, first.encoder, second.encoder, over_seeds(before, after),
            differences=tuple((after - before).tolist()),
            undecided=_chance(found, values[0], both, before) or _chance(found, value, both, after),
            gaps=_means(places, (before, after)),
        ))  # fmt: skip
    return made


def _along(found: StudyResult, result: Mapping[str, Final], first: Family, second: Family) -> list[Interaction]:
    """One for all values. Those where the better of the two hears nothing say nothing and are left out, as are those
    that were not scored on the same utterances as the first."""
    shared = _shared(result, first, second)
    values = [v for v in shared if alike(result[first.arms[shared[0]]], result[first.arms[v]])]
    if len(values) < 2:
        return [_unpaired(result, first, second, shared)] if len(shared) > 1 else []
    pairs = [(first.arms[v], second.arms[v]) for v in values]
    why = [_chance(found, v, (first, second), _gaps(result, [pair])[0]) for v, pair in zip(values, pairs, strict=True)]
    kept = [i for i, reason in enumerate(why) if reason is None]
    undecided = None
    if len(kept) < FEWEST_VALUES:
        few = f"no verdict: fewer than {FEWEST_VALUES} values are there to compare"
        undecided = next(filter(None, why), few + " on the same utterances" * (len(values) < len(shared)))
        kept = list(range(len(values)))
    gaps = _gaps(result, [pairs[i] for i in kept])  # (values, seeds)
    at = np.array(numbers([values[i] for i in kept]))
    doubling = at.min() > 0 and at.max() >= 3 * at.min()
    x = np.log2(at) if doubling else at
    slopes = (x - x.mean()) @ gaps / ((x - x.mean()) ** 2).sum()
    return [Interaction(
        first.axis, first.context, values[kept[0]], values[kept[-1]], first.encoder, second.encoder,
        over_seeds(np.zeros(len(slopes)), slopes), differences=tuple(slopes.tolist()), undecided=undecided,
        gaps=_means([values[i] for i in kept], gaps), per=f"doubling of {first.axis}" if doubling else first.axis,
        left_out=tuple(v for i, v in enumerate(values) if i not in kept),
        unpaired=tuple(v for v in shared if v not in values),
    )]  # fmt: skip


def _unpaired(result: Mapping[str, Final], first: Family, second: Family, values: Sequence[str]) -> Interaction:
    """Of values that were not scored on the same utterances: the difference at each, and nothing of how it changes."""
    gaps = [_gaps(result, [(first.arms[v], second.arms[v])])[0] for v in values]
    none = unpaired(first.encoder, second.encoder)
    return Interaction(
        first.axis, first.context, values[0], values[-1], first.encoder, second.encoder, none.difference,
        undecided=none.undecided, gaps=_means(values, gaps), unpaired=tuple(values[1:]),
    )  # fmt: skip


def _shared(result: Mapping[str, Final], first: Family, second: Family) -> list[str]:
    """The values that both have been scored at."""
    return [v for v in first.arms if v in second.arms and first.arms[v] in result and second.arms[v] in result]


def _gaps(result: Mapping[str, Final], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Second less first of every pair of arms (pairs, K), of the K seeds that all of these arms have."""
    arms = [[result[one].arm for one in pair] for pair in pairs]
    seeds = [seed for seed in arms[0][0].seeds if all(seed in arm.seeds for pair in arms for arm in pair)]
    rates = [[[arm.rates[arm.seeds.index(seed)] for seed in seeds] for arm in pair] for pair in arms]
    return np.array([np.subtract(second, first) for first, second in rates])


def _means(values: Sequence[str], gaps: Sequence[np.ndarray] | np.ndarray) -> tuple[tuple[str, float], ...]:
    return tuple((v, float(gap.mean()) if len(gap) else math.nan) for v, gap in zip(values, gaps, strict=True))


def _chance(found: StudyResult, value: str, families: tuple[Family, Family], difference: np.ndarray) -> str | None:
    """In words why the difference of two arms at a value is none (asrkit.report.learning.chance): the one that looks
    better hears nothing. Not where all its cells collapsed or failed, which is an outcome of the axis."""
    mean = float(difference.mean()) if len(difference) else 0.0
    first, second = (found.of_arm(family.arms[value]) for family in families)
    if all(cell.status in (COLLAPSED, FAILED) for cell in (second if mean < 0 else first) if cell.over):
        return None
    reason = chance(mean, first, second, (families[0].encoder, families[1].encoder))
    return f"at {families[0].axis} {value}, {reason}" if reason is not None else None
