"""What every arm came to with every learning rate of its grid: how much it depends on the choice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from asrkit.report.collect import StudyResult
from asrkit.report.drawing import Gallery, look, marker, svg
from asrkit.report.formats import context_name

SIDE = 1.35  # room beside the first and last rate, as a factor


def learning_rates(found: StudyResult) -> list[Gallery]:
    """A panel per recipe (and values of axes): dev CER against the learning rate, a line per encoder.

    Large: the rate that is the arm's. Hollow: no model of the tuning seeds hears its input. Nothing where no arm has
    two rates.
    """
    grid = found.learning_rates
    if len(grid) < 2:
        return []
    encoders = list(dict.fromkeys(arm["encoder"] for arm in found.arms))
    panels = [
        svg(partial(_panel, found, context, arms, encoders), f"rates-{context}")
        for context, arms in found.contexts().items()
    ]
    title = "CER on dev against the learning rate (large: the arm's; hollow: does not hear its input)"
    return [Gallery(title, panels, encoders)]


def _panel(
    found: StudyResult, context: str, arms: Sequence[dict[str, Any]], encoders: Sequence[str], figure: Any
) -> str | None:
    picture, grid, said = figure.subplots(), found.learning_rates, []
    for arm in arms:
        tried = sorted(
            (entry for entry in arm.get("tuning") or [] if entry.get("dev_cer") is not None),
            key=lambda entry: entry["lr"],
        )
        if not tried:
            continue
        place = encoders.index(arm["encoder"])
        style = look(place)
        picture.plot([e["lr"] for e in tried], [100 * e["dev_cer"] for e in tried], linewidth=1.8, **style)
        for entry in tried:
            picture.plot(
                entry["lr"], 100 * entry["dev_cer"], marker(place), color=style["color"],
                markersize=7 if entry["lr"] == arm.get("lr") else 3.5,
                markerfacecolor="none" if found.tried_in_vain(entry) else style["color"],
            )  # fmt: skip
        values = ", ".join(f"{100 * entry['dev_cer']:.1f} at {entry['lr']:g}" for entry in tried)
        said.append(f"{arm['encoder']} {values}")
    if not said:
        return None
    picture.set_xscale("log")
    picture.set_xlim(grid[0] / SIDE, grid[-1] * SIDE)
    picture.set_xticks(grid, [f"{lr:g}" for lr in grid])
    picture.set_xticks([], minor=True)
    picture.set_ylim(0, 102)
    picture.set_xlabel("learning rate")
    picture.set_title(f"{context_name(context)}: CER on dev, %")
    return f"CER on dev, {context_name(context)}, against the learning rate: {'; '.join(said)}"
