"""The picture of a run: loss, error rates, blanks and gradient norm over the updates, as one PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_curves(epochs: list[dict[str, Any]], path: Path, title: str) -> None:
    """Epoch records of metrics.jsonl -> PNG. Train dotted, dev solid, as in the papers this project answers."""
    if not epochs:
        return
    from matplotlib.figure import Figure

    panels = [
        ("loss", "loss [nats per label]", 1.0),
        ("cer", "character error rate [%]", 100.0),
        ("blank", "blank frames [%]", 100.0),
        ("grad_norm", "gradient norm before clipping", 1.0),
    ]
    figure = Figure(figsize=(10, 6.5))
    axes = figure.subplots(2, 2, sharex=True)
    for axis, (key, label, scale) in zip(axes.flat, panels, strict=True):
        for stage, style in (("train", ":"), ("dev", "-")):
            points = [(e["step"], scale * e[stage][key]) for e in epochs if key in e.get(stage, {})]
            if points:
                axis.plot(*zip(*points, strict=True), style, marker=".", label=stage, linewidth=1.8)
        if key == "cer":
            points = [(e["step"], 100 * e["dev"]["wer"]) for e in epochs if "dev" in e]
            if points:
                axis.plot(*zip(*points, strict=True), "-", color="tab:gray", label="dev, words", linewidth=1.0)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("updates")
    figure.suptitle(title, parse_math=False)  # a dollar sign in a name is a dollar sign
    figure.subplots_adjust(left=0.08, right=0.98, top=0.93, bottom=0.08, wspace=0.2, hspace=0.1)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)
