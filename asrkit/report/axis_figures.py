"""Outcomes along an axis of a study (depth): what every encoder comes to, and how far apart two of them are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from asrkit.report.axes import Family, axes, families, numbers
from asrkit.report.collect import StudyResult
from asrkit.report.drawing import INK, Gallery, look, marker, svg
from asrkit.report.formats import context_name
from asrkit.report.learning import deaf
from asrkit.report.measures import Final


def across(found: StudyResult, scored: dict[str, dict[str, Final]], axis: str, rate: str) -> Gallery:
    """A panel per recipe (and values of all other axes) and split: error rate against the axis, a line per encoder.

    scored: split -> arm's id -> outcome. Hollow: no model of the arm hears its input.
    """
    groups, encoders = _groups(found, axis), list(dict.fromkeys(arm["encoder"] for arm in found.arms))
    most = max((100 * float(one.arm.rates.max()) for result in scored.values() for one in result.values()), default=0.0)
    panels = [
        svg(
            partial(_across, found, group, result, encoders, (f"{rate} on {split}, %", most)),
            f"axis-{axis}-{split}-{context}",
        )
        for context, group in groups.items()
        for split, result in scored.items()
    ]
    return Gallery(f"{rate} against {axis} (hollow: no model hears its input)", panels, encoders)


def _across(
    found: StudyResult, group: Sequence[Family], result: dict[str, Final], encoders: Sequence[str],
    what: tuple[str, float], figure: Any,
) -> str | None:  # fmt: skip
    picture, said = figure.subplots(), []
    values = axes(found)[group[0].axis]
    places = _places(values)
    for family in group:
        known = [(x, v, 100 * result[family.arms[v]].arm.rates) for x, v in zip(places, values, strict=True)
                 if family.arms.get(v) in result]  # fmt: skip
        if not known:
            continue
        place = encoders.index(family.encoder)
        style = look(place)
        _band(picture, known, style)
        for x, value, rates in known:
            picture.plot(
                [x] * len(rates), rates, marker(place), color=style["color"], markersize=3.5, alpha=0.8,
                markerfacecolor="none" if deaf(found.of_arm(family.arms[value])) else style["color"],
            )  # fmt: skip
        said.append(f"{family.encoder} {', '.join(f'{r.mean():.1f} at {v}' for _, v, r in known)}")
    if not said:
        return None
    _ticks(picture, values, places)
    picture.set_ylim(0, max(1.04 * what[1], 1e-9))
    picture.set_xlabel(group[0].axis)
    picture.set_title(f"{context_name(group[0].context)}: {what[0]}")
    return f"{what[0]}, {context_name(group[0].context)}, against {group[0].axis}: {'; '.join(said)}"


def _groups(found: StudyResult, axis: str) -> dict[str, list[Family]]:
    groups: dict[str, list[Family]] = {}
    for family in families(found, axis):
        groups.setdefault(family.context, []).append(family)
    return groups


def _places(values: Sequence[str]) -> list[float]:
    """Where the values of an axis stand: at their numbers, or one after the other."""
    return numbers(values) or [float(i) for i in range(len(values))]


def _band(picture: Any, known: Sequence[tuple[float, str, np.ndarray]], style: dict[str, Any], **marks: Any) -> None:
    """Mean over seeds, and a band from the least to the most. known: place, value, one number per seed (K,)."""
    at, each = [x for x, *_ in known], [rates for *_, rates in known]
    picture.plot(at, [one.mean() for one in each], linewidth=1.8, **style, **marks)
    low, high = ([pick(one) for one in each] for pick in (np.min, np.max))
    picture.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _ticks(picture: Any, values: Sequence[str], places: Sequence[float]) -> None:
    if numbers(values) and min(places) > 0 and max(places) > 30 * min(places):
        picture.set_xscale("log")
    else:
        edge = 0.12 * (max(places) - min(places))  # room for a name under the last value, whoever is there
        picture.set_xlim(min(places) - edge, max(places) + edge)
    picture.set_xticks(places, values)
    picture.set_xticks([], minor=True)


def gaps(found: StudyResult, result: dict[str, Final], axis: str, rate: str, baseline: str | None) -> Gallery:
    """A panel per recipe (and values of all other axes): every encoder's error rate less the baseline's."""
    groups, encoders = _groups(found, axis), list(dict.fromkeys(arm["encoder"] for arm in found.arms))
    base = baseline or encoders[0]
    panels = [
        svg(partial(_gap, found, group, result, encoders, (base, rate)), f"gap-{axis}-{context}")
        for context, group in groups.items()
    ]
    return Gallery(f"{rate} less that of {base}, against {axis}: below 0 the encoder is better", panels, encoders)


def _gap(
    found: StudyResult, group: Sequence[Family], result: dict[str, Final], encoders: Sequence[str],
    what: tuple[str, str], figure: Any,
) -> str | None:  # fmt: skip
    picture, said = figure.subplots(), []
    values = axes(found)[group[0].axis]
    places = _places(values)
    base = next((family for family in group if family.encoder == what[0]), None)
    for family in group if base is not None else []:
        known = []
        for x, value in zip(places, values, strict=True):
            pair = [result.get(one.arms.get(value, "")) for one in (base, family)] if base is not None else []
            if family is base or None in pair:
                continue
            arms = [one.arm for one in pair if one is not None]
            seeds = [seed for seed in arms[0].seeds if seed in arms[1].seeds]
            first, second = (np.array([arm.rates[arm.seeds.index(seed)] for seed in seeds]) for arm in arms)
            known += [(x, value, 100 * (second - first))] if seeds else []
        if not known:
            continue
        place = encoders.index(family.encoder)
        _band(picture, known, look(place), marker=marker(place), markersize=3.5)
        said.append(f"{family.encoder} {', '.join(f'{d.mean():+.1f} at {v}' for _, v, d in known)}")
    if not said:
        return None
    picture.axhline(0, color=INK, linewidth=0.8, alpha=0.6, linestyle=(0, (2, 2)))
    _ticks(picture, values, places)
    picture.set_xlabel(group[0].axis)
    picture.set_title(f"{context_name(group[0].context)}: {what[1]} less that of {what[0]}, points")
    return f"{what[1]} less that of {what[0]}, {context_name(group[0].context)}: {'; '.join(said)}"
