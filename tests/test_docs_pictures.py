"""Scripts of docs/pictures on studies that are written by hand."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_study import change, make_study
from scipy import stats

from asrkit.report.collect import collect
from asrkit.report.export import write_report

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(PICTURES / name))


def rates(folder: Path, arm: str) -> np.ndarray:
    """Test CER by seed, from the cells themselves."""
    cells = sorted(folder.glob(f"cells/{arm}--seed-*/cell.json"))
    return np.array([sum(json.loads(c.read_text())["test"]["characters"]["errors"]) / 100 for c in cells])


@pytest.fixture
def depth(tmp_path: Path) -> Path:
    """Two encoders at three depths, which the study does not name in order, with and without residual connections."""
    folder = tmp_path / "depth"
    for value, level in (("11", 18), ("1", 4), ("3", 8)):
        for skip in ("plain", "residual"):
            bad = level if skip == "plain" else 4
            arms = {"none": [[bad + s] * 4 for s in range(3)], "layer_norm": [[4, 5, 6, 5 + s] for s in range(3)]}
            make_study(folder, arms, axes={"depth": value, "skip": skip})
    for seed in (1, 2, 3):
        change(folder, f"m--depth-11--skip-plain--none--seed-{seed}", status="collapsed")
    return folder


def test_depth_is_drawn_against_the_error_rate(tmp_path: Path, depth: Path) -> None:
    made = script("study.py")
    study = collect(depth)
    assert made["numeric_axis"](study) == "depth"
    points = made["points_of"](study, "depth")
    assert list(points) == [(f"m--skip-{s}", e) for s in ("plain", "residual") for e in ("none", "layer_norm")]
    for (context, encoder), known in points.items():
        assert [value for value, *_ in known] == [1.0, 3.0, 11.0]
        for value, found, heard in known:
            skip = context.removeprefix("m--")
            assert found == pytest.approx(rates(depth, f"m--depth-{value:.0f}--{skip}--{encoder}"))
            expected = (value, skip, encoder) != (11, "skip-plain", "none")
            assert heard == [expected] * 3
    write_report(depth)
    change(depth, "m--depth-3--skip-plain--none--seed-2", status="collapsed")  # one seed of three
    assert made["points_of"](collect(depth), "depth")["m--skip-plain", "none"][1][2] == [True, False, True]
    docs = tmp_path / "docs"
    made["main"](depth, docs)
    picture = (docs / "pictures" / "depth.svg").read_text()
    said = re.findall(r"<!-- (.*?) -->", picture)  # matplotlib names the texts that it draws as outlines
    for text in (
        "m, skip-plain",
        "m, skip-residual",
        "depth",
        "none",
        "layer_norm",
        "11",
        "test CER [%]; hollow: hears nothing",
    ):
        assert text in said
    assert sorted(p.name for p in (docs / "studies" / "depth").iterdir()) == ["cells.csv", "curves.csv", "report.md"]


def test_without_a_numeric_axis_curves_are_drawn(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"none": [[1] * 4] * 2, "layer_norm": [[2] * 4] * 2})
    write_report(folder)
    made = script("study.py")
    made["main"](folder, tmp_path / "docs")
    said = re.findall(r"<!-- (.*?) -->", (tmp_path / "docs" / "pictures" / "s.svg").read_text())
    assert "m (2 seeds)" in said
    assert "updates" in said
    assert not (tmp_path / "docs" / "pictures" / "s_rates.svg").exists()  # one rate: nothing to draw
    study = json.loads((folder / "study.json").read_text())
    for arm in study["arms"]:
        arm["tuning"] = [{"lr": lr, "dev_cer": cer, "deaf": 0} for lr, cer in ((0.002, 0.3), (0.004, None))]
    (folder / "study.json").write_text(json.dumps(study))
    made["main"](folder, tmp_path / "docs")
    said = re.findall(r"<!-- (.*?) -->", (tmp_path / "docs" / "pictures" / "s_rates.svg").read_text())
    assert {"m", "none", "layer_norm", "2", "4", "learning rate / 0.001"} <= set(said)


def test_the_table_of_cures(tmp_path: Path) -> None:
    folder, rng = tmp_path / "cures", np.random.default_rng(3)
    for cure, level in (("plain", 15), ("residual", 4), ("clip_1", 15)):
        arms = {
            name: np.minimum(level + (name == "none") + rng.integers(0, 2, (3, 4)), [20, 30, 10, 40]).tolist()
            for name in ("none", "layer_norm")
        }
        make_study(folder, arms, axes={"cure": cure})
    for seed in (1, 2, 3):
        change(folder, f"m--cure-clip_1--none--seed-{seed}", status="collapsed")
    write_report(folder)
    docs = tmp_path / "docs"
    docs.mkdir()
    page = (PICTURES.parent / "cures.md").read_text(encoding="utf-8")
    (docs / "cures.md").write_text(page, encoding="utf-8")
    made = script("cures.py")
    for _ in range(2):  # a second time replaces the first
        made["main"](folder, docs)
    text = (docs / "cures.md").read_text(encoding="utf-8")
    assert text.partition("<!-- evidence -->")[0] == page.partition("<!-- evidence -->")[0]
    rows = {cells[1].strip("` "): [c.strip() for c in cells[2:4]] for line in text.splitlines()
            if line.startswith("| `") and len(cells := line.split("|")) == 5}  # fmt: skip
    assert list(rows) == ["plain", "residual", "clip_1"]
    for column, name in enumerate(("none", "layer_norm")):
        plain, cured = (rates(folder, f"m--cure-{cure}--{name}") for cure in ("plain", "residual"))
        cell = rows["residual"][column].strip("*")
        assert cell.startswith(f"{100 * cured.mean():.1f} ({100 * cured.min():.1f} to {100 * cured.max():.1f}); ")
        low, high = 100 * np.array(stats.ttest_rel(cured, plain).confidence_interval())
        assert f"; {100 * (cured - plain).mean():+.1f} [{low:+.1f}, {high:+.1f}], p = " in cell
        assert rows["plain"][column] == f"{100 * plain.mean():.1f} ({100 * plain.min():.1f} to {100 * plain.max():.1f})"
        p = stats.ttest_rel(cured, plain).pvalue
        assert rows["residual"][column].startswith("**") == (4 * p < 0.025)
    assert "*deaf*" in rows["clip_1"][0]
    assert "*deaf*" not in rows["clip_1"][1]
    assert "of the rates" not in text
    study = json.loads((folder / "study.json").read_text())
    study["arms"][0]["tuning"].append({"lr": 0.004, "dev_cer": 0.6})
    (folder / "study.json").write_text(json.dumps(study))
    made["main"](folder, docs)
    text = (docs / "cures.md").read_text(encoding="utf-8")
    assert "over 3 seeds, with the best on dev of the rates 0.001, 0.004; then the difference" in text
    assert f"| `plain` | {rows['plain'][0]} at 0.001 |" in text
    (docs / "cures.md").write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="has not both"):
        made["main"](folder, docs)
