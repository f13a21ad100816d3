"""The pictures of a report: curves over training, layers from input to output, outcomes (along axes: axis_figures)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from asrkit.report import layers
from asrkit.report.collect import CellResult, StudyResult
from asrkit.report.drawing import INK, MARGINS, SIZE, Gallery, look, marker, svg
from asrkit.report.formats import context_name
from asrkit.report.learning import Points, counted, deaf, floor, raised, series
from asrkit.report.measures import Final, spread
from asrkit.study.cells import FAILED


@dataclass(frozen=True)
class Panel:
    """One picture of curves. points: of a cell; x: what they are drawn against, 0 updates, 1 time; unit: in words."""

    title: str
    scale: str
    points: Callable[[CellResult], Points]
    x: int = 0
    factor: float = 1.0
    floor: bool = False  # whether the loss of a model that hears nothing is drawn too
    unit: str = "updates"
    limits: tuple[float, float] | None = None


UPDATES, WALL, CPU = "updates", "seconds of training", "CPU seconds of training"


def learning(found: StudyResult, context: str) -> Gallery:
    """Loss on train and dev and CER on dev, against updates (first row) and time of training (second).

    Where CPU time is recorded it is drawn too: unlike the wall's it is hardly that of other work on the machine.
    """
    train, dev = ((f"loss on {split}, nats per label", split, "loss") for split in ("train", "dev"))
    cer = ("CER on dev, %", "dev", "cer")
    members = [c for arm in found.contexts()[context] for c in found.of_arm(arm["arm"]) if c.over and c.epochs]
    known = members and all(epoch.get("cpu_seconds") is not None for cell in members for epoch in cell.epochs)
    second = [(train, WALL), (cer, WALL), (cer, CPU)] if known else [(one, WALL) for one in (train, dev, cer)]
    panels = [
        Panel(
            title, "log" if name == "loss" else "linear", partial(_values, split, name, unit), int(unit != UPDATES),
            1.0 if name == "loss" else 100.0, name == "loss", unit,
        )
        for (title, split, name), unit in [(train, UPDATES), (dev, UPDATES), (cer, UPDATES), *second]
    ]  # fmt: skip
    return _curves(found, context, panels, "learning")


def overview(found: StudyResult) -> list[Gallery]:
    """CER on dev against updates, a panel per recipe (and values of axes), all on one scale: as it counts where it is
    asked which arm learns faster (asrkit.report.learning.counted)."""
    contexts = found.contexts()
    encoders = list(dict.fromkeys(arm["encoder"] for arm in found.arms))
    one_look = all([arm["encoder"] for arm in arms] == encoders for arms in contexts.values())
    if len(contexts) < 2 or not one_look:  # one picture is that of the learning curves; one legend must fit all
        return []
    drawn = [
        svg(
            partial(
                _panel, found, arms, Panel(context_name(context), "linear", _counted, factor=100.0, limits=(0.0, 102.0))
            ),
            f"overview-{context}",
        )
        for context, arms in contexts.items()
    ]
    members = [cell for arm in found.arms for cell in found.of_arm(arm["arm"]) if cell.over]
    until = " (100 % until the model hears)" if raised(members) else ""
    return [Gallery(f"CER on dev, %{until}, against updates", drawn, encoders)]


def _counted(cell: CellResult) -> Points:
    return [(step, 0.0, cer) for step, cer in counted(cell)]


def _values(split: str, name: str, unit: str, cell: CellResult) -> Points:
    return series(cell, split, name, clock="cpu_seconds" if unit == CPU else "seconds")


def inside(found: StudyResult, context: str) -> Gallery:
    """Blank frames, empty outputs, gradients and what hears least over the updates; every layer at the end."""
    panels = [
        Panel("blank frames on dev, %", "linear", partial(_values, "dev", "blank", UPDATES), 0, 100.0),
        Panel("empty outputs on dev, %", "linear", partial(_values, "dev", "empty", UPDATES), 0, 100.0),
        Panel("gradient norm, first / last layer", "log", layers.gradient_ratio),
        Panel("dependence on the input, weakest layer", "log", layers.weakest),
    ]
    over_time = _curves(found, context, panels, "inside")
    by_layer = [
        _by_layer(found, context, layers.GRADIENT, "gradient norm of every layer, last epoch"),
        _by_layer(found, context, layers.DEPENDENCE, "dependence on the input of every layer, at the end"),
    ]
    return Gallery(over_time.title, [*over_time.panels, *by_layer], over_time.legend)


def _curves(found: StudyResult, context: str, panels: Sequence[Panel], kind: str) -> Gallery:
    """Mean and least to most over seeds; a cell that failed is a thin line that ends in a cross."""
    arms = found.contexts()[context]
    drawn = [svg(partial(_panel, found, arms, panel), f"{kind}-{i}-{context}") for i, panel in enumerate(panels)]
    return Gallery(context_name(context), drawn, [arm["encoder"] for arm in arms])


def _panel(found: StudyResult, arms: Sequence[dict[str, Any]], panel: Panel, figure: Any) -> str | None:
    axis = figure.subplots()
    ends, floors = [], []
    for place, arm in enumerate(arms):
        members = [cell for cell in found.of_arm(arm["arm"]) if cell.over]
        whole = [panel.points(cell) for cell in members if cell.status != FAILED]
        end = _band(axis, whole, panel, look(place))
        _broken(axis, [panel.points(cell) for cell in members if cell.status == FAILED], panel, look(place))
        floors += [one for cell in members if (one := floor(cell)) is not None]
        ends += [f"{arm['encoder']} ends at {end:.3g}"] if end is not None else []
    if not axis.lines:
        return None
    if panel.floor and floors:
        axis.axhline(panel.factor * float(np.mean(floors)), color=INK, linewidth=0.8, alpha=0.6, linestyle=(0, (2, 2)))
    _scale(axis, panel.scale)
    if panel.limits is not None:
        axis.set_ylim(*panel.limits)
    axis.set_title(panel.title)
    axis.set_xlabel(panel.unit)
    return f"{panel.title}, against {panel.unit}: {', '.join(ends) or 'failed cells only'}"


def _band(axis: Any, lines: Sequence[Points], panel: Panel, style: dict[str, Any]) -> float | None:
    """Mean with its band, at every look that all cells of the arm have; the last mean."""
    lines = [line for line in lines if line]
    if not lines:
        return None
    looks = min(map(len, lines))
    table = np.array([line[:looks] for line in lines])  # (seeds, looks, 3)
    at, values = table[:, :, panel.x].mean(0), panel.factor * table[:, :, 2]
    axis.plot(at, values.mean(0), linewidth=1.8, marker="o" if looks < 3 else None, **style)
    if len(lines) > 1:
        axis.fill_between(at, values.min(0), values.max(0), color=style["color"], alpha=0.18, linewidth=0)
    return float(values.mean(0)[-1])


def _broken(axis: Any, lines: Sequence[Points], panel: Panel, style: dict[str, Any]) -> None:
    for line in filter(None, lines):
        at, values = [point[panel.x] for point in line], [panel.factor * point[2] for point in line]
        axis.plot(at, values, linewidth=0.8, **style)
        axis.plot(at[-1:], values[-1:], marker="x", color=style["color"], linestyle="")


def _scale(axis: Any, scale: str) -> None:
    """Plain numbers beside the axis; a logarithmic one only where values are above 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if scale != "log":
        axis.yaxis.set_major_locator(MaxNLocator(5))
        return
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    # Few decades: 1, 2, 5 of each; many: the decades alone.
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.yaxis.set_major_formatter(FuncFormatter(_tick))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _tick(value: float, _: Any) -> str:
    """`0.05`, `1e-4`."""
    return f"{value:g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _short(name: str) -> str:
    """A name that leaves room for the picture beside it."""
    return name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"


def _by_layer(found: StudyResult, context: str, kind: str, title: str) -> str:
    """A line per arm over the layers from input to output, bands over seeds, as they are at the end."""
    arms = found.contexts()[context]
    values = {
        arm["encoder"]: [one for c in found.of_arm(arm["arm"]) if c.over and (one := layers.at_end(c, kind))]
        for arm in arms
    }
    names = layers.order([list(one) for group in values.values() for one in group])

    def draw(figure: Any) -> str | None:
        if not names:
            return None
        axis, lows = figure.subplots(), []
        for place, (encoder, group) in enumerate(values.items()):
            there = [(i, [one[n] for one in group if n in one]) for i, n in enumerate(names)]
            there = [(i, known) for i, known in there if known]
            if not there:
                continue
            at = [i for i, _ in there]
            means = [float(np.mean(known)) for _, known in there]
            axis.plot(at, means, marker=marker(place), markersize=3.5, linewidth=1.3, **look(place))
            axis.fill_between(
                at, [min(k) for _, k in there], [max(k) for _, k in there], color=look(place)["color"], alpha=0.18,
                linewidth=0,
            )  # fmt: skip
            least = min(range(len(means)), key=means.__getitem__)
            lows.append(f"{encoder} is least in layer {names[at[least]]} with {means[least]:.2g}")
        if any(value > 0 for group in values.values() for one in group for value in one.values()):
            _scale(axis, "log")
        step = -(-len(names) // 14)
        axis.set_xticks(range(0, len(names), step), names[::step], rotation=45, ha="right", rotation_mode="anchor")
        axis.tick_params(axis="x", labelsize=7.5)
        axis.set_title(title)
        return f"{title}, from input to output: {', '.join(lows)}"

    longest = max(map(len, names), default=0)
    return svg(draw, f"layers-{kind}-{context}", margins=(MARGINS[0], min(0.3 + 0.05 * longest, 1.2)))


CUT = 100.0  # %: an interval may end beyond, its picture does not, unless a seed does


def outcome(found: StudyResult, result: dict[str, Final], rate: str, split: str) -> Gallery:
    """A panel per context: every arm's seeds as dots, their mean as a stroke, its interval as a bar; one scale.

    Hollow: no model of the arm hears its input. An interval that goes on beyond the frame ends in an arrow.
    """
    shown = {context: [a for a in arms if a["arm"] in result] for context, arms in found.contexts().items()}
    rates = [100 * one.arm.rates for one in result.values()]
    highs = [min(end, CUT) for one in rates if (end := _interval(one)[1]) == end]
    most = max([*(float(one.max()) for one in rates), *highs], default=0.0)
    longest = max((len(_short(arm["encoder"])) for arms in shown.values() for arm in arms), default=0)
    margins = (min(0.15 + 0.085 * longest, 2.2), 0.26)
    panels = [
        svg(partial(_outcome, found, context, result, (rate, split), max(1.04 * most, 1e-9)),
            f"outcome-{context}", (SIZE[0], 0.62 + 0.3 * len(arms)), margins)
        for context, arms in shown.items() if arms
    ]  # fmt: skip
    notes = ["hollow: no model hears its input"] if any(deaf(found.of_arm(arm)) for arm in result) else []
    notes += ["arrow: goes on"] if any(_interval(one)[1] > 1.04 * most for one in rates) else []
    noted = f" ({'; '.join(notes)})" if notes else ""
    return Gallery(f"{rate} on {split}, %: seeds, mean, interval{noted}", panels)


def _interval(rates: np.ndarray) -> tuple[float, float]:
    """Ends of the interval of the mean, NaN where there is none; from 0 on."""
    one = spread(rates.tolist())
    return (max(one.low, 0.0), one.high) if one is not None and one.low == one.low else (math.nan, math.nan)


def _outcome(
    found: StudyResult, context: str, result: dict[str, Final], what: tuple[str, str], end: float, figure: Any
) -> str:
    axis = figure.subplots()
    said: list[str] = []
    names: list[str] = []
    for place, arm in enumerate(found.contexts()[context]):
        if arm["arm"] not in result:
            continue
        row, rates, colour = len(names), 100 * result[arm["arm"]].arm.rates, look(place)["color"]
        low, high = _interval(rates)
        if low == low:
            axis.plot([low, min(high, end)], [row, row], color=colour, linewidth=6, alpha=0.25, solid_capstyle="butt")
        if high > end:
            axis.plot([end], [row], ">", color=colour, markersize=6, clip_on=False)
        silent = deaf(found.of_arm(arm["arm"]))
        axis.plot(rates, [row] * len(rates), marker(place), color=colour, markersize=5, alpha=0.85,
                  markerfacecolor="none" if silent else colour)  # fmt: skip
        axis.plot([rates.mean()], [row], "|", color=INK, markersize=14, markeredgewidth=1.8)
        names.append(_short(arm["encoder"]))
        said.append(f"{arm['encoder']} {rates.mean():.1f}{' (hears nothing)' * silent}")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, end)
    axis.grid(False, axis="y")
    axis.set_title(context_name(context))
    return f"{what[0]} on {what[1]} in %, {context_name(context)}: {', '.join(said)}"
