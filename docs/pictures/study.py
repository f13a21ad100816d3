"""A study as docs show it: one picture, and the figures behind it as small files.

    python docs/pictures/study.py studies/answer

The picture shows learning curves or, where an axis of the study has three and more numbers as values (depth), the
final error rate against it; a second one, NAME_rates.svg, the error rate against the learning rates that were tried.
Writes docs/pictures/NAME.svg and docs/studies/NAME/{curves.csv, cells.csv, report.md}; run `asrkit report` first.
"""

from __future__ import annotations

import csv
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from asrkit.report.axes import axes, families, numbers
from asrkit.report.collect import StudyResult, collect
from asrkit.report.drawing import DASHES, LIGHT, MARKERS
from asrkit.report.learning import counted, model_hears, series
from asrkit.report.measures import default_split, finals

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent.parent
Curve = list[tuple[int, float, float]]  # updates, dev CER, the same as it is drawn: 1 until the cell hears
Point = tuple[float, np.ndarray, list[bool]]  # value of the axis, error rate of every seed (K,), whether it hears (K,)


def curves_of(study: StudyResult) -> dict[tuple[str, str], dict[int, Curve]]:
    """(context, encoder) -> seed -> curve, of the cells that are over."""
    found: dict[tuple[str, str], dict[int, Curve]] = defaultdict(dict)
    for arm in study.arms:
        for cell in study.of_arm(arm["arm"]):
            if cell.over:
                looks = zip(series(cell, "dev", "cer"), counted(cell), strict=True)
                curve = [(step, min(1.0, cer), shown) for (step, _, cer), (_, shown) in looks]
                found[arm["context"], arm["encoder"]][cell.row["seed"]] = curve
    return found


def panels_for(count: int, most: int, height: float) -> tuple[Any, np.ndarray]:
    """A figure and its panels (rows, columns), `most` in a row of `height` inches; as wide as its legend at least."""
    columns = min(most, count)
    rows = -(-count // columns)
    size = max(3.1 * columns, 7.6), height * rows + 0.5
    figure, panels = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    return figure, panels


def draw(curves: dict[tuple[str, str], dict[int, Curve]], path: Path) -> None:
    """A panel for every context; a line for every encoder: mean over seeds, band from the least to the most."""
    contexts = list(dict.fromkeys(context for context, _ in curves))
    encoders = list(dict.fromkeys(encoder for _, encoder in curves))
    figure, panels = panels_for(len(contexts), 4, 2.7)
    for panel, context in zip(panels.flat, contexts, strict=False):
        for place, encoder in enumerate(encoders):
            seeds = curves.get((context, encoder), {})
            shortest = min((len(curve) for curve in seeds.values()), default=0)
            if not shortest:
                continue
            steps = [step for step, *_ in next(iter(seeds.values()))[:shortest]]
            values = 100 * np.array([[shown for *_, shown in curve[:shortest]] for curve in seeds.values()])
            colour, dash = LIGHT[place % len(LIGHT)], DASHES[place % len(DASHES)]
            panel.plot(steps, values.mean(0), color=colour, dashes=dash, label=encoder, linewidth=1.8)
            panel.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        count = len(next((s for (c, _), s in curves.items() if c == context), {}))
        panel.set_title(f"{context} ({count} seed{'s' * (count != 1)})", fontsize=10)
        panel.set_xlabel("updates")
        panel.set_ylim(0, 102)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("dev CER [%]; 100 until it hears")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.09 / len(panels), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def numeric_axis(study: StudyResult) -> str | None:
    """The study's first axis with three and more numbers as values."""
    return next((axis for axis, values in axes(study).items() if len(values) > 2 and numbers(values)), None)


def points_of(study: StudyResult, axis: str) -> dict[tuple[str, str], list[Point]]:
    """(recipe and all other axes, encoder) -> what its arms came to, in the order of the axis."""
    result = finals(study, default_split(study), "characters")
    found: dict[tuple[str, str], list[Point]] = {}
    for family in families(study, axis):
        points = []
        for value, arm in family.arms.items():
            if arm in result:
                outcome = result[arm].arm
                known = {cell.row["seed"]: model_hears(cell) is not False for cell in study.of_arm(arm)}
                points.append((float(value), outcome.rates, [known[seed] for seed in outcome.seeds]))
        found[family.context, family.encoder] = points
    return found


def draw_axis(points: dict[tuple[str, str], list[Point]], axis: str, split: str, path: Path) -> None:
    """A panel for every context; a line for every encoder, with its seeds and their band; hollow: it hears nothing."""
    contexts = list(dict.fromkeys(context for context, _ in points))
    encoders = list(dict.fromkeys(encoder for _, encoder in points))
    figure, panels = plt.subplots(
        1, len(contexts), figsize=(4.2 * len(contexts) + 0.4, 3.9), sharey=True, squeeze=False
    )
    for panel, context in zip(panels.flat, contexts, strict=True):
        for place, encoder in enumerate(encoders):
            known = points.get((context, encoder), [])
            if not known:
                continue
            colour, at = LIGHT[place % len(LIGHT)], [value for value, *_ in known]
            dash, rates = DASHES[place % len(DASHES)], [100 * one for _, one, _ in known]
            panel.plot(at, [one.mean() for one in rates], color=colour, dashes=dash, label=encoder, linewidth=1.8)
            panel.fill_between(
                at, [one.min() for one in rates], [one.max() for one in rates], color=colour, alpha=0.15, linewidth=0
            )
            for (value, _, heard), shown in zip(known, rates, strict=True):
                for rate, hears in zip(shown, heard, strict=True):
                    panel.plot(
                        value, rate, MARKERS[place % len(MARKERS)], color=colour, markersize=4,
                        markerfacecolor=colour if hears else "white",
                    )  # fmt: skip
        panel.set_title(context.replace("--", ", "), fontsize=10)
        panel.set_xlabel(axis)
        panel.set_xticks(sorted({value for (c, _), known in points.items() if c == context for value, *_ in known}))
        panel.set_ylim(0, 102)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel(f"{split} CER [%]; hollow: hears nothing")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", ncols=len(encoders), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def draw_rates(study: StudyResult, path: Path) -> None:
    """A panel for every context: dev CER of the tuning seeds against the learning rate; large: the arm's own; hollow: a
    model that does not hear its input."""
    contexts = study.contexts()
    encoders = list(dict.fromkeys(arm["encoder"] for arm in study.arms))
    figure, panels = panels_for(len(contexts), 5, 2.9)
    for panel, (context, arms) in zip(panels.flat, contexts.items(), strict=False):
        for arm in arms:
            place = encoders.index(arm["encoder"])
            colour, tried = LIGHT[place % len(LIGHT)], [one for one in arm["tuning"] if one["dev_cer"] is not None]
            at, rates = [one["lr"] for one in tried], [100 * one["dev_cer"] for one in tried]
            panel.plot(at, rates, color=colour, dashes=DASHES[place % len(DASHES)], label=arm["encoder"], linewidth=1.8)
            for one, rate in zip(tried, rates, strict=True):
                panel.plot(
                    one["lr"], rate, MARKERS[place % len(MARKERS)], color=colour,
                    markersize=8 if one["lr"] == arm["lr"] else 4, markerfacecolor="white" if one["deaf"] else colour,
                )  # fmt: skip
        grid = sorted({one["lr"] for arm in arms for one in arm["tuning"]})
        panel.set_xscale("log")
        panel.set_xticks(grid, [f"{1000 * lr:g}" for lr in grid])
        panel.set_xticks([], minor=True)
        panel.set_title(context.replace("--", ", "), fontsize=10)
        panel.set_xlabel("learning rate / 0.001")
        panel.set_ylim(0, 102)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("dev CER [%]; hollow: hears nothing")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", ncols=len(encoders), frameon=False)
    figure.tight_layout(rect=(0, 0.08 / len(panels), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main(folder: Path, docs: Path = DOCS) -> None:
    """Picture and files of one study."""
    name, study = folder.resolve().name, collect(folder)
    curves, axis = curves_of(study), numeric_axis(study)
    picture = docs / "pictures" / f"{name}.svg"
    if axis is None:
        draw(curves, picture)
    else:
        draw_axis(points_of(study, axis), axis, default_split(study), picture)
    if any(len(arm.get("tuning") or []) > 1 for arm in study.arms):
        draw_rates(study, docs / "pictures" / f"{name}_rates.svg")
    out = docs / "studies" / name
    out.mkdir(parents=True, exist_ok=True)
    with (out / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["context", "encoder", "seed", "updates", "dev_cer"])
        for (context, encoder), seeds in curves.items():
            for seed, curve in sorted(seeds.items()):
                writer.writerows([context, encoder, seed, step, f"{cer:.5f}"] for step, cer, _ in curve)
    for file in ("cells.csv", "report.md"):
        shutil.copyfile(folder / file, out / file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
