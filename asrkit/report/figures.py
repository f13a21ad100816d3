"""The pictures of a report: SVG text for inside a page, in the page's own text colour, without a link to anywhere."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from asrkit.report.collect import CellResult, StudyResult
from asrkit.report.measures import Final, gradient_ratio, series, spread
from asrkit.report.words import context_name
from asrkit.study.cells import FAILED

INK = "#010203"  # stands for the reader's text colour
COLOURS = ("#2b8a9c", "#d0603f", "#8f75cc", "#b58a1b", "#3f9f63", "#c45f9f", "#5f86d8", "#96796c", "#84943a")
STYLES = ("-", "--", "-.", ":")
Points = list[tuple[int, float, float]]
Panel = tuple[str, str, Callable[[CellResult], Points], int, float]  # label, scale, points, x: 0 or 1, factor


def learning(found: StudyResult, context: str) -> str:
    """Loss on train and dev and CER on dev, against updates (above) and seconds of training (below)."""
    wanted = (("loss on train [nats per label]", "log", "train", "loss", 1.0),
              ("loss on dev [nats per label]", "log", "dev", "loss", 1.0),
              ("CER on dev [%]", "linear", "dev", "cer", 100.0))  # fmt: skip
    panels: list[Panel] = [
        (label, scale, partial(_values, split, key), axis, factor)
        for axis in (0, 1)
        for label, scale, split, key, factor in wanted
    ]
    return _curves(found, context, panels, 2)


def _values(split: str, key: str, cell: CellResult) -> Points:
    return series(cell, split, key)


def inside(found: StudyResult, context: str) -> str:
    """Blank frames and empty outputs on dev, gradient norm of the first against the last layer, over the updates."""
    panels: list[Panel] = [
        ("blank frames on dev [%]", "linear", lambda cell: series(cell, "dev", "blank"), 0, 100.0),
        ("empty outputs on dev [%]", "linear", lambda cell: series(cell, "dev", "empty"), 0, 100.0),
        ("gradient norm, first / last layer", "log", gradient_ratio, 0, 1.0),
    ]
    return _curves(found, context, panels, 1)


def _curves(found: StudyResult, context: str, panels: Sequence[Panel], rows: int) -> str:
    """Mean and least to most over seeds; a cell that failed is a thin line that ends in a cross. "" without a point."""
    arms = found.contexts()[context]
    drawn = 0

    def draw(figure: Any) -> None:
        nonlocal drawn
        axes = figure.subplots(rows, 3, squeeze=False)
        for axis, (label, scale, points, x, factor) in zip(axes.flat, panels, strict=True):
            here = 0
            for place, arm in enumerate(arms):
                members = [cell for cell in found.of_arm(arm["arm"]) if cell.over]
                look = {"color": COLOURS[place % 9], "linestyle": STYLES[(place // 9 + place) % 4]}
                here += _band(axis, [points(c) for c in members if c.status != FAILED], x, factor, look, arm["encoder"])
                here += _broken(axis, [points(c) for c in members if c.status == FAILED], x, factor, look)
            if here:
                axis.set_yscale(scale)
            axis.set_ylabel(label)
            axis.set_xlabel("seconds of training" if x else "updates")
            axis.grid(alpha=0.25)
            drawn += here
        handles = {t: h for a in axes.flat for h, t in zip(*a.get_legend_handles_labels(), strict=True)}
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False)

    text = _svg(draw, (11, 3.1 * rows + 0.4), f"{'learning' if rows > 1 else 'inside'}-{context}")
    return text if drawn else ""


def _band(axis: Any, lines: Sequence[Points], x: int, factor: float, look: dict[str, Any], name: str) -> int:
    """Mean with its band, at every look that all cells of the arm have; how many points there were."""
    lines = [line for line in lines if line]
    if not lines:
        return 0
    looks = min(map(len, lines))
    table = np.array([line[:looks] for line in lines])  # (seeds, looks, 3)
    at, values = table[:, :, x].mean(0), factor * table[:, :, 2]
    axis.plot(at, values.mean(0), label=name, linewidth=1.8, marker="o" if looks < 3 else None, **look)
    if len(lines) > 1:
        axis.fill_between(at, values.min(0), values.max(0), color=look["color"], alpha=0.18, linewidth=0)
    return looks


def _broken(axis: Any, lines: Sequence[Points], x: int, factor: float, look: dict[str, Any]) -> int:
    for line in filter(None, lines):
        at, values = [point[x] for point in line], [factor * point[2] for point in line]
        axis.plot(at, values, linewidth=0.8, **look)
        axis.plot(at[-1:], values[-1:], marker="x", color=look["color"], linestyle="")
    return sum(map(len, lines))


def outcome(found: StudyResult, result: dict[str, Final], rate: str, split: str) -> str:
    """Every arm's seeds as dots, their mean as a stroke, its interval as a line. "" without a scored arm."""
    arms = [arm for arm in found.arms if arm["arm"] in result]
    if not arms:
        return ""
    encoders = list(dict.fromkeys(arm["encoder"] for arm in found.arms))

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for row, arm in enumerate(reversed(arms)):
            rates = 100 * result[arm["arm"]].arm.rates
            colour = COLOURS[encoders.index(arm["encoder"]) % 9]
            one = spread(rates.tolist())
            assert one is not None  # a Final has a seed
            if one.low == one.low:
                axis.plot([max(one.low, 0), one.high], [row, row], color=colour, linewidth=5, alpha=0.25)
            axis.plot(rates, [row] * len(rates), "o", color=colour, markersize=5, alpha=0.8)
            axis.plot([one.mean], [row], "|", color=INK, markersize=14, markeredgewidth=1.8)
        axis.set_yticks(range(len(arms)), [context_name(arm["arm"]) for arm in reversed(arms)])
        axis.set_ylim(-0.6, len(arms) - 0.4)
        axis.set_xlim(left=0)
        axis.set_xlabel(f"{rate} on {split} [%]")
        axis.grid(alpha=0.25, axis="x")

    return _svg(draw, (11, 0.9 + 0.34 * len(arms)), f"outcome-{rate}")


def _svg(draw: Callable[[Any], None], size: tuple[float, float], key: str) -> str:
    """What `draw` puts on a figure, as an <svg> element; the same input gives the same text."""
    import matplotlib
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    options: Any = dict.fromkeys(inks, INK) | {
        "svg.fonttype": "none", "svg.hashsalt": key, "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False,
    }  # fmt: skip
    buffer = io.StringIO()
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name in letters that the measuring font lacks
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text).replace("xlink:href", "href")
    prefix = re.sub(r"\W", "_", key)  # ids are the page's, not the picture's
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    return text.replace(INK, "currentColor").strip()
