"""Draws docs/pictures/axes.svg: which numbers each strategy takes its statistics from.

python docs/pictures/axes.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import Polygon

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LENGTHS = (7, 5, 3)  # frames of the three utterances of the batch
FRAMES, FEATURES, GROUP = 7, 4, 2
CHOSEN = (1, 2, 0)  # the number that is being normalized: utterance, frame, feature
TAKEN, SELF, REAL, PADDING = "#3b82c4", "#123d66", "#e6ebf0", "#ffffff"

# Which (utterance, frame, feature) the statistics of CHOSEN come from; padding is asked for as well.
Rule = Callable[[int, int, int], bool]
RULES: dict[str, Rule] = {
    "layer_norm, rms_norm\none frame": lambda b, t, c: (b, t) == CHOSEN[:2],
    "sequence_batch_norm, batch_renorm\none feature, all real frames": lambda b, t, c: (
        c == CHOSEN[2] and t < LENGTHS[b]
    ),
    "frame_batch_norm\none feature, one step": lambda b, t, c: (t, c) == CHOSEN[1:] and t < LENGTHS[b],
    "instance_norm\none feature, one utterance": lambda b, t, c: (b, c) == (CHOSEN[0], CHOSEN[2]) and t < LENGTHS[b],
    "group_norm\na group of features, one utterance": lambda b, t, c: (
        b == CHOSEN[0] and t < LENGTHS[b] and c // GROUP == CHOSEN[2] // GROUP
    ),
    "masked: false (the usual mistake)\none feature, padding too": lambda b, t, c: c == CHOSEN[2],
}


def draw(axes: Axes, title: str, rule: Rule) -> None:
    """One panel: utterances from top to bottom, frames to the right, features into the depth."""
    depth = (0.34, 0.30)
    for b, length in enumerate(LENGTHS):
        for c in reversed(range(FEATURES)):
            for t in range(FRAMES):
                x, y = t + c * depth[0], -2.6 * b + c * depth[1]
                taken, padding = rule(b, t, c), t >= length
                colour = SELF if (b, t, c) == CHOSEN else TAKEN if taken else PADDING if padding else REAL
                edge = "#9aa5b1" if not padding or taken else "#d5dbe1"
                corners = [(x, y), (x + 0.92, y), (x + 0.92, y + 0.92), (x, y + 0.92)]
                axes.add_patch(Polygon(corners, facecolor=colour, edgecolor=edge, linewidth=0.6, zorder=-c + 10 * b))
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlim(-0.3, FRAMES + FEATURES * depth[0] + 0.2)
    axes.set_ylim(-2.6 * (len(LENGTHS) - 1) - 0.3, FEATURES * depth[1] + 1.0)
    axes.set_aspect("equal")
    axes.axis("off")


def main() -> None:
    """Write the picture beside this file."""
    plt.rcParams.update({"svg.hashsalt": "asrkit", "font.family": "DejaVu Sans"})
    figure, panels = plt.subplots(2, 3, figsize=(11, 7.2))
    for axes, (title, rule) in zip(panels.flat, RULES.items(), strict=True):
        draw(axes, title, rule)
    figure.text(
        0.01,
        0.005,
        "Three utterances of 7, 5 and 3 frames (to the right), four features (into the depth); white: padding. "
        "Dark: the number that is normalized; blue: what its statistics come from.",
        fontsize=8.5,
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(Path(__file__).with_name("axes.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
