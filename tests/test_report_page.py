"""A report as a reader has it: in a real browser, wide and on a phone, light and dark, and for colour-blind eyes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find
from report_study import change, epochs, make_study, write_epochs

from asrkit.page_style import STYLE
from asrkit.report.drawing import DARK, LIGHT, key, look, marker
from asrkit.report.export import write_report

ENCODERS = ("none", "layer_norm", "sequence_batch_norm", "an_encoder_of_somebody_with_a_rather_long_name")

# Boxes of what is drawn as text, by picture, that overlap each other or leave their picture.
OVERLAPS = """
(() => {
  const found = [];
  for (const svg of document.querySelectorAll('.panels svg')) {
    const outer = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect(), t]);
    for (const [i, [text, a, node]] of boxes.entries()) {
      const out = a.left < outer.left - 1 || a.right > outer.right + 1 || a.bottom > outer.bottom + 1;
      if (out) found.push('out: ' + text);
      for (const [other, b, neighbour] of boxes.slice(i + 1)) {
        const turned = [node, neighbour].some(n => /rotate\\(-(?!0\\b)/.test(n.getAttribute('transform') || ''));
        const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (!turned && x > 1 && y > 2) found.push(text + ' / ' + other);
      }
    }
  }
  return found;
})()
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two depths, four encoders, a failed cell with a long message, and many layers."""
    folder = tmp_path_factory.mktemp("report") / "s"
    rng = np.random.default_rng(3)
    for depth in ("1", "11"):
        errors = {name: rng.integers(0, 10, (3, 4)).tolist() for name in ENCODERS}
        make_study(folder, errors, axes={"depth": depth})
        for name in ENCODERS:
            for seed in (1, 2, 3):
                lines = epochs(np.sort(rng.uniform(0.1, 1.2, 12))[::-1].tolist(), ["below_floor"] * 12)
                for line in lines:
                    paths = [f"layers.{i}.3.recurrent.0" for i in range(2 * int(depth))]
                    line["train"]["grad_norm_by_layer"] = {p: 10.0 ** -(i / 3) for i, p in enumerate(reversed(paths))}
                    line["diagnosis"]["dependence"] = {p: 0.5 ** (i / 2) for i, p in enumerate(paths)}
                write_epochs(folder / f"cells/m--depth-{depth}--{name}--seed-{seed}", lines)
    error = {"code": "nonfinite", "message": f"loss of {'averylongnamewithoutanyspace' * 6}", "exit_code": 4}
    change(folder, "m--depth-11--none--seed-2", status="failed", error=error, dev=None, test=None)
    write_report(folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    with Browser(program) as one:
        yield one


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (768, True), (400, False), (320, True)])
def test_in_a_browser(browser: Browser, report: Path, width: int, dark: bool) -> None:
    """Nothing on the console, no request but the page itself, nothing wider than the window, no label over another."""
    browser.open(report, width, dark=dark)
    assert browser.troubles == []
    assert browser.requests == [report.resolve().as_uri()]
    assert browser.value(OVERFLOW) <= 0
    assert browser.value(OVERLAPS) == []
    ink, card = (browser.value(f"getComputedStyle(document.querySelector('{where}')).{what}")
                 for where, what in ((".panels svg text", "fill"), (".card", "backgroundColor")))  # fmt: skip
    assert _contrast(_numbers(ink), _numbers(card)) > 7
    stroke = browser.value("getComputedStyle(document.querySelector('svg.key line')).stroke")
    assert _hex(_numbers(stroke)) == (DARK if dark else LIGHT)[0]
    sizes = browser.value(
        "[...document.querySelectorAll('.panels svg text')].map(t => t.getBoundingClientRect().height)"
    )
    assert len(sizes) > 100
    assert min(sizes) > 8  # legible on a phone too
    assert browser.value(
        "[...document.querySelectorAll('.panels svg')].every(s => s.querySelector('title').textContent)"
    )


def test_what_is_long_is_folded_and_opens(browser: Browser, report: Path) -> None:
    """Tables of many rows, and pairs without evidence; opened, they are as wide as the page and no wider."""
    browser.open(report, 400)
    folded = browser.value("[...document.querySelectorAll('details > summary')].map(s => s.textContent)")
    assert "All tests" not in " ".join(folded)  # 12 rows
    assert "Layer by layer: m, depth-11 (22 rows)" in folded
    assert any(text.endswith("12 pairs without evidence") for text in folded)
    browser.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.value("[...document.querySelectorAll('details')].every(d => d.getBoundingClientRect().height > 60)")
    assert browser.value(OVERFLOW) <= 0


def test_the_browser_sees_what_it_is_asked_for(browser: Browser, tmp_path: Path) -> None:
    """A page with an error, a request and an overflow: else the test above could not fail."""
    page = tmp_path / "bad.html"
    page.write_text('<div style="width:900px">x</div><img src="gone.png">'
                    '<div class="panels"><svg width="90" height="40">'
                    '<text x="5" y="20">one</text><text x="8" y="22">two</text></svg></div>'
                    "<script>console.error('a'); missing()</script>")  # fmt: skip
    browser.open(page, 400)
    assert len(browser.requests) == 2
    assert any("missing" in trouble for trouble in browser.troubles)
    assert any("consoleAPICalled" in event.get("method", "") for event in browser.events)
    assert browser.value(OVERFLOW) > 400
    assert browser.value(OVERLAPS) == ["one / two"]
    picture = tmp_path / "bad.png"
    browser.screenshot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- colours

# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def _numbers(text: str) -> tuple[float, ...]:
    """`rgb(1, 2, 3)` or `#010203`."""
    if text.startswith("#"):
        digits = text[1:] if len(text) == 7 else "".join(2 * c for c in text[1:])
        return tuple(int(digits[i : i + 2], 16) for i in (0, 2, 4))
    return tuple(float(part) for part in re.findall(r"[\d.]+", text)[:3])


def _hex(numbers: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(n):02x}" for n in numbers)


def _linear(numbers: tuple[float, ...]) -> Any:
    c = np.array(numbers) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG 2.2, relative luminance."""
    a, b = sorted(float(_linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (b + 0.05) / (a + 0.05)


def _lab(linear: Any) -> Any:
    """CIE L*a*b* of linear RGB (D65)."""
    m = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    t = np.array(m) @ np.clip(linear, 0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("colours", "scheme"), [(LIGHT, 0), (DARK, 1)])
def test_colours_stand_out_and_apart(colours: tuple[str, ...], scheme: int) -> None:
    """Contrast of 3 with the card (WCAG 2.2, 1.4.11); the first four differ by 15 in L*a*b* to red-green blind eyes."""
    card = re.findall(r"--card:(#\w+)", STYLE)[scheme]
    assert all(_contrast(_numbers(colour), _numbers(card)) >= 3 for colour in colours)
    for matrix in BLINDNESS.values():
        seen = [_lab(np.array(matrix) @ _linear(_numbers(colour))) for colour in colours[:4]]
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[i + 1 :]]
        assert min(gaps) > 15


def test_looks_differ_without_colour_too() -> None:
    """Dashes of four neighbours, and markers of seven, whatever their colours."""
    dashes = [str(look(place)["linestyle"]) for place in range(4)]
    assert len(set(dashes)) == 4
    assert len({marker(place) for place in range(7)}) == 7
    assert len({(look(p)["color"], str(look(p)["linestyle"])) for p in range(28)}) == 28
    assert "dasharray" not in key(0)
    assert "dasharray" in key(1)
