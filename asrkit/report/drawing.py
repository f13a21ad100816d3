"""How a report draws: small SVG pictures in the page's own colours, and the looks that tell arms apart.

Colours are variables of the page, so that one picture serves light and dark; they keep apart for colour-blind readers
(after Okabe & Ito 2008, shifted until each has a contrast of 3 with its background), and dashes and markers say the
same once more.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

INK = "#010203"  # stands for the reader's text colour
LIGHT = ("#0068b0", "#e0600a", "#0aa27a", "#7a2f78", "#7d6a10", "#3a3a42", "#3f97d0")
DARK = ("#3c90dc", "#ea6a1c", "#2fc79a", "#d8b0e6", "#f2cf52", "#e6e6ec", "#8ae0f5")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))  # in line widths
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
VARIABLES = (
    ":root{" + "".join(f"--c{i}:{c};" for i, c in enumerate(LIGHT)) + "}@media (prefers-color-scheme:dark){:root{"
    + "".join(f"--c{i}:{c};" for i, c in enumerate(DARK)) + "}}"
)  # fmt: skip
SIZE = (4.1, 2.75)  # inches of a panel, at 72 CSS pixels each: three fit beside each other, one fits a phone
MARGINS = (0.52, 0.47)


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading: panels are <svg> elements (empty ones are left out), legend the arms' names in the
    order of their looks."""

    title: str
    panels: Sequence[str]
    legend: Sequence[str] = ()


def _turned(place: int) -> int:
    """Each round through the colours begins one dash and one marker further on."""
    return place % len(LIGHT) + place // len(LIGHT)


def look(place: int) -> dict[str, Any]:
    """Colour and dashes of the arm at this place of its context, for matplotlib's `plot`."""
    dashes = DASHES[_turned(place) % len(DASHES)]
    return {"color": _sentinel(place % len(LIGHT)), "linestyle": (0, dashes) if dashes else "-"}


def marker(place: int) -> str:
    """Marker of the arm at this place."""
    return MARKERS[_turned(place) % len(MARKERS)]


def key(place: int) -> str:
    """A short line with the look of this place, as <svg>, for a legend in the page."""
    dashes = DASHES[_turned(place) % len(DASHES)]
    pattern = f' stroke-dasharray="{" ".join(f"{2.4 * d:g}" for d in dashes)}"' if dashes else ""
    colour = f'style="stroke:var(--c{place % len(LIGHT)})"'
    return (
        '<svg class="key" width="34" height="10" viewBox="0 0 34 10" aria-hidden="true">'
        f'<line x1="1" y1="5" x2="33" y2="5" stroke-width="2.4" {colour}{pattern}/></svg>'
    )


def svg(
    draw: Callable[[Any], str | None],
    name: str,
    size: tuple[float, float] = SIZE,
    margins: tuple[float, float] = MARGINS,
) -> str:
    """What `draw` puts on a figure, as an <svg> element; what it returns says the same in words, None draws nothing.

    name: different for every picture of a page. size, margins (left, bottom): inches; fixed ones, because a layout that
    measures its texts takes longer than all the rest. The same input gives the same text.
    """
    import matplotlib
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    options: Any = dict.fromkeys(inks, INK) | {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.grid": True,
        "grid.alpha": 0.2, "axes.axisbelow": True, "axes.edgecolor": INK, "text.parse_math": False,
    }  # fmt: skip
    buffer = io.StringIO()
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name in letters that the measuring font lacks
        figure = Figure(figsize=size)
        left, bottom = margins[0] / size[0], margins[1] / size[1]
        figure.subplots_adjust(left=left, bottom=bottom, right=1 - 0.12 / size[0], top=1 - 0.28 / size[1])
        words = draw(figure)
        if words is None:
            return ""
        figure.savefig(buffer, format="svg", transparent=True)
    return _for_the_page(buffer.getvalue(), name, words)


def _for_the_page(text: str, name: str, words: str) -> str:
    """matplotlib's file -> an element: ids of the page, colours of the reader, a title in words."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text).replace("xlink:href", "href")
    prefix = re.sub(r"\W", "_", name)  # ids are the page's, not the picture's
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    for place, colour in enumerate(LIGHT):
        text = text.replace(_sentinel(place), f"var(--c{place},{colour})")
    title = f'<title id="{prefix}-title">{escape(words)}</title>'
    text = re.sub(r"^<svg([^>]*)>", rf'<svg\1 role="img" aria-labelledby="{prefix}-title">{_literal(title)}', text)
    return text.replace(INK, "currentColor").strip()


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")


def _sentinel(place: int) -> str:
    """A colour that nothing else has, in place of a variable that matplotlib does not know."""
    return f"#0a0b{place:02x}"
