"""A study as docs show it: its learning curves as one picture, and the figures behind them as small files.

    python docs/pictures/study.py studies/answer

Writes docs/pictures/NAME.svg and docs/studies/NAME/{curves.csv, cells.csv, report.md}; run `asrkit report` first.
"""

from __future__ import annotations

import csv
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

from asrkit.report.collect import collect
from asrkit.report.drawing import DASHES, LIGHT
from asrkit.report.learning import series

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent.parent
Curve = list[tuple[int, float]]  # updates, dev CER


def curves_of(folder: Path) -> dict[tuple[str, str], dict[int, Curve]]:
    """(context, encoder) -> seed -> curve, of the cells that are over."""
    found: dict[tuple[str, str], dict[int, Curve]] = defaultdict(dict)
    study = collect(folder)
    for arm in study.arms:
        for cell in study.of_arm(arm["arm"]):
            if cell.over:
                curve = [(step, min(1.0, cer)) for step, _, cer in series(cell, "dev", "cer")]
                found[arm["context"], arm["encoder"]][cell.row["seed"]] = curve
    return found


def draw(curves: dict[tuple[str, str], dict[int, Curve]], path: Path) -> None:
    """A panel for every context; a line for every encoder: mean over seeds, band from the least to the most."""
    contexts = list(dict.fromkeys(context for context, _ in curves))
    encoders = list(dict.fromkeys(encoder for _, encoder in curves))
    columns = min(4, len(contexts))
    rows = -(-len(contexts) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.7 * rows + 0.5), sharey=True, squeeze=False)
    for panel, context in zip(panels.flat, contexts, strict=False):
        for place, encoder in enumerate(encoders):
            seeds = curves.get((context, encoder), {})
            shortest = min((len(curve) for curve in seeds.values()), default=0)
            if not shortest:
                continue
            steps = [step for step, _ in next(iter(seeds.values()))[:shortest]]
            values = 100 * np.array([[cer for _, cer in curve[:shortest]] for curve in seeds.values()])
            colour, dash = LIGHT[place % len(LIGHT)], DASHES[place % len(DASHES)]
            panel.plot(steps, values.mean(0), color=colour, dashes=dash, label=encoder, linewidth=1.8)
            panel.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        count = len(next((s for (c, _), s in curves.items() if c == context), {}))
        panel.set_title(f"{context} ({count} seed{'s' * (count != 1)})", fontsize=10)
        panel.set_xlabel("updates")
        panel.set_ylim(0, 102)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("dev CER [%]")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.09 / rows, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main(folder: Path) -> None:
    """Picture and files of one study."""
    name = folder.resolve().name
    curves = curves_of(folder)
    draw(curves, DOCS / "pictures" / f"{name}.svg")
    out = DOCS / "studies" / name
    out.mkdir(parents=True, exist_ok=True)
    with (out / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["context", "encoder", "seed", "updates", "dev_cer"])
        for (context, encoder), seeds in curves.items():
            for seed, curve in sorted(seeds.items()):
                writer.writerows([context, encoder, seed, step, f"{cer:.5f}"] for step, cer in curve)
    for file in ("cells.csv", "report.md"):
        shutil.copyfile(folder / file, out / file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
