"""docs/normalization.md against the product: its tables of invariances, its strategies, its picture."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from test_invariances import COLUMNS, TABLES

from asrkit import registry

PAGE = Path(__file__).parents[1] / "docs" / "normalization.md"


def rows_below(heading: str) -> dict[str, list[str]]:
    """The cells of the first table below a heading, by their first one; the header as `""`."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n### `{heading}`")[2]
    table = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert table is not None, heading
    cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[0].splitlines()]
    return {row[0]: row[1:] for row in cells if not set("".join(row)) <= set("-")}


@pytest.mark.parametrize("place", TABLES)
def test_the_page_shows_the_invariances_that_are_tested(place: str) -> None:
    rows = rows_below(place)
    assert tuple(rows.pop("")) == COLUMNS
    assert rows == {name: ["yes" if a == "yes" else "" for a in answers] for name, answers in TABLES[place].items()}


def test_the_page_names_every_strategy() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    ours = {p.name for p in registry.list_plugins("encoders") if p.package == "asrkit"}
    assert ours <= named


def test_the_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    script = PAGE.parent / "pictures" / "axes.py"
    (tmp_path / "axes.py").write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    runpy.run_path(str(tmp_path / "axes.py"), run_name="__main__")
    drawn, kept = ((folder / "axes.svg").read_text(encoding="utf-8") for folder in (tmp_path, script.parent))
    assert drawn.count("<path") == kept.count("<path") > 500
