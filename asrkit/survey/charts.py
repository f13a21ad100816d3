"""Pictures of a survey as HTML fragments: inline SVG and bars, coloured by the page's style, every text escaped."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from html import escape

from asrkit.survey.figures import Group, Histogram
from asrkit.survey.text import bin_label

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 34, 10, 16, 34
TICKS = 7  # labels below a histogram, at most


def histogram(chart: Histogram, unit: str, noun: str, title: str) -> str:
    """Bars of equal width, one a bin; each tells its numbers when pointed at. Median as a line where bins are even."""
    filled = [place for place, count in enumerate(chart.counts) if count]
    if not filled or chart.median is None:
        return '<p class="none">no length is known</p>'
    first, last = (0 if filled[0] < 4 else filled[0] - 1), filled[-1]
    counts = chart.counts[first : last + 1]
    plot, base = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM
    step, most = plot / len(counts), max(counts)
    even = chart.even
    parts = [_grid(most, base)]
    for place, count in enumerate(counts):
        height = max((base - TOP) * count / most, 1.5 if count else 0)
        tip = f"{bin_label(chart, first + place)}{f' {unit}' if unit else ''}: {count:,} {noun}"
        x, width = LEFT + place * step, max(step - 2, step * 0.7)
        parts.append(
            f'<g><rect class="hit" x="{x:.1f}" y="{TOP}" width="{step:.1f}" height="{base - TOP}"/>'
            f'<rect class="bar" x="{x + (step - width) / 2:.1f}" y="{base - height:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="2"/><title>{escape(tip)}</title></g>'
        )
    parts += _ticks(chart, first, last, step, base, even)
    if even:
        parts.append(_median(chart, first, last, step, base, unit))
    text = f"{title}: median {chart.median:.3g}, from {chart.low:.3g} to {chart.high:.3g} for 90 %"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(text)}">{"".join(parts)}</svg>'
        f'<p class="note">median {chart.median:.3g}{f" {unit}" if unit else ""}, '
        f"90 % between {chart.low:.3g} and {chart.high:.3g}</p>"
    )


def _grid(most: int, base: float) -> str:
    """Lines at round numbers, so that heights can be read."""
    size = 10 ** (len(str(most)) - 1)
    step = next(size * part for part in (0.25, 0.5, 1, 2, 2.5, 5) if most / (size * part) <= 4)
    step = max(1, int(step))
    lines = []
    for value in range(0, most + 1, step):
        y = base - (base - TOP) * value / most
        label = f"{value / 1000:g}k" if value >= 1000 else str(value)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    return "".join(lines)


def _ticks(chart: Histogram, first: int, last: int, step: float, base: float, even: bool) -> list[str]:
    """Values at the edges of even bins; else where each bin begins, below its middle."""
    edges, labels = chart.edges, []
    for place in range(first, min(last + 2, len(edges)), -(-(last - first + 1) // TICKS) if even else 1):
        more = "+" if place == len(edges) - 1 == last else ""
        x = LEFT + (place - first + (0 if even else 0.5)) * step
        labels.append((x, (f"{edges[place]:g}" if edges[place] < 1000 else f"{edges[place] // 1000:g}k") + more))
    labels = labels if even or last + 1 == len(edges) else labels[:-1]
    return [f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{text}</text>' for x, text in labels]


def _median(chart: Histogram, first: int, last: int, step: float, base: float, unit: str) -> str:
    assert chart.median is not None
    place = min((chart.median - chart.edges[first]) / (chart.edges[1] - chart.edges[0]), last - first + 1)
    x = LEFT + place * step
    return (
        f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{base}"/>'
        f"<title>median {chart.median:.3g} {escape(unit)}</title>"
    )


def ranked(rows: Sequence[tuple[str, float, str, str]], total: float, limit: int = 12) -> str:
    """Bars from left to right, one a row: (name, size, text at the end, text when pointed at); a bar's full width is
    the largest size. What does not fit `limit` is summed up in a last row."""
    if not rows:
        return '<p class="none">none</p>'
    shown, rest = list(rows[:limit]), rows[limit:]
    if rest:
        size = sum(row[1] for row in rest)
        shown.append((f"{len(rest)} more", size, f"{size / total:.1%}" if total else "", ""))
    most = max(row[1] for row in shown) or 1
    items = [
        f'<li title="{escape(tip or f"{name}: {text}")}"><span class="name"><bdi>{escape(name)}</bdi></span>'
        f'<span class="end">{escape(text)}</span>'
        f'<span class="rail"><i style="width:{100 * size / most:.2f}%"></i></span></li>'
        for name, size, text, tip in shown
    ]
    return f'<ul class="ranked">{"".join(items)}</ul>'


def groups(found: Mapping[str, Group], total: int, keep_order: bool = False) -> str:
    """Clips by what speakers say of themselves; those who said nothing come last."""
    if not set(found) - {""}:
        return '<p class="none">not given in these tables</p>'
    items = list(found.items()) if keep_order else sorted(found.items(), key=lambda pair: pair[0] == "")
    rows = [
        (
            value or "not given",
            float(group.clips),
            f"{group.clips / total:.1%}",
            f"{value or 'not given'}: {group.clips:,} clips, {group.speakers:,} speakers"
            + (f", {group.hours:,.2f} hours" if group.hours is not None else ""),
        )
        for value, group in items
    ]
    return ranked(rows, total)


def letters(alphabet: Mapping[str, int], outside: Sequence[str]) -> str:
    """A tile for each character, filled from below by how frequent it is (square root of its count)."""
    most = max(alphabet.values(), default=1)
    tiles = []
    for character, count in sorted(alphabet.items(), key=lambda pair: (pair[0] in outside, pair[0])):
        odd = character in outside
        code = f"U+{ord(character):04X}"
        tip = f"{code}: {count:,} times" + (", outside the alphabet" if odd else "")
        tiles.append(
            f'<li class="tile{" odd" if odd else ""}" title="{escape(tip)}">'
            f'<i style="height:{100 * (count / most) ** 0.5:.1f}%"></i>'
            f"<b>{visible(character)}</b><small>{code if odd else _short(count)}</small></li>"
        )
    return f'<ul class="tiles">{"".join(tiles)}</ul>'


def visible(character: str) -> str:
    """The character as it can be shown: the space as ␣, a combining mark on ◌, what has no shape as nothing."""
    if character == " ":
        return "␣"
    kind = unicodedata.category(character)
    if kind.startswith("M"):
        return "◌" + character
    return "·" if kind[0] in "CZ" else f"<bdi>{escape(character)}</bdi>"


def _short(count: int) -> str:
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if count >= size:
            return f"{count / size:.1f}{letter}" if count < 10 * size else f"{count // size}{letter}"
    return str(count)
