"""Pictures of a report: what they show of arms that hear nothing, and of intervals that go beyond the frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_study import change, epochs, make_study, write_epochs

from asrkit.report import figures
from asrkit.report.collect import collect
from asrkit.report.measures import finals


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Axes of what is drawn, in its order."""
    found: list[Any] = []

    def keep(draw: Callable[[Figure], str | None], *_: Any) -> str:
        figure = Figure()
        words = draw(figure)
        found.append(figure.axes[0])
        return words or ""

    monkeypatch.setattr(figures, "svg", keep)
    return found


def bars(axis: Any) -> list[tuple[float, float]]:
    return [tuple(line.get_xdata()) for line in axis.lines if line.get_linewidth() == 6]


def markers(axis: Any, kind: str) -> int:
    return sum(line.get_marker() == kind for line in axis.lines)


def show(folder: Path) -> Any:
    found = collect(folder)
    return figures.outcome(found, finals(found, "test", "characters"), "CER", "test")


def test_an_interval_is_drawn_to_its_end(tmp_path: Path, drawn: list[Any]) -> None:
    """Rates of 40, 50 and 60 %: the interval goes to 74.8 %, and the frame with it."""
    gallery = show(make_study(tmp_path / "s", {"none": [[10] * 4, [12, 13, 10, 15], [15] * 4]}))
    (axis,) = drawn
    ((low, high),) = bars(axis)
    assert (low, high) == pytest.approx((50 - 24.84, 50 + 24.84), abs=0.01)
    assert axis.get_xlim()[1] == pytest.approx(1.04 * high)
    assert gallery.title == "CER on test, %: seeds, mean, interval"
    assert markers(axis, ">") == 0


def test_an_interval_beyond_all_errors_ends_in_an_arrow(tmp_path: Path, drawn: list[Any]) -> None:
    """Rates of 60, 80 and 100 %: the interval would go to 130 %."""
    gallery = show(make_study(tmp_path / "s", {"none": [[15] * 4, [20] * 4, [25] * 4], "layer_norm": [[1] * 4] * 2}))
    (axis,) = drawn
    end = axis.get_xlim()[1]
    assert end == pytest.approx(104)
    assert [high for _, high in bars(axis)] == [end]
    assert markers(axis, ">") == 1
    assert gallery.title.endswith("interval (arrow: goes on)")


def test_arms_that_hear_nothing_are_hollow(tmp_path: Path, drawn: list[Any]) -> None:
    folder = make_study(tmp_path / "s", {"none": [[5] * 4, [6] * 4], "layer_norm": [[1] * 4, [2] * 4]})
    for seed in (1, 2):
        change(folder, f"m--none--seed-{seed}", status="collapsed")
    gallery = show(folder)
    seeds = [line for line in drawn[0].lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "None"]
    assert [line.get_markerfacecolor() == "none" for line in seeds] == [True, False]
    assert gallery.title.endswith("interval (hollow: no model hears its input)")
    assert gallery.panels == ["CER on test in %, m: none 22.0 (hears nothing), layer_norm 6.0"]


def test_the_overview_shows_what_the_test_of_speed_counts(tmp_path: Path, drawn: list[Any]) -> None:
    """An arm whose CER falls to 60 % on the plateau, deaf, is at 100 %, beside one that hears at 90 %."""
    folder = tmp_path / "s"
    for depth in ("1", "2"):
        make_study(folder, {"none": [[1] * 4] * 2, "layer_norm": [[2] * 4] * 2}, axes={"depth": depth})
    title = "CER on dev, %, against updates"
    assert [one.title for one in figures.overview(collect(folder))] == [title]  # nothing is known of hearing
    for cell in folder.glob("cells/*"):
        deaf = "none" in cell.name
        write_epochs(cell, epochs([0.9, 0.6], ["on_floor"] * 2) if deaf else epochs([0.95, 0.9], ["below_floor"] * 2))
    drawn.clear()
    (gallery,) = figures.overview(collect(folder))
    assert gallery.title == "CER on dev, % (100 % until the model hears), against updates"
    for axis in drawn:
        none, layer_norm = (line.get_ydata() for line in axis.lines)
        assert np.allclose(none, [100, 100])
        assert np.allclose(layer_norm, [95, 90])
