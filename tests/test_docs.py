"""docs/normalization.md against the product: its tables of invariances, its strategies, its picture."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
from test_invariances import COLUMNS, TABLES

from asrkit import registry
from asrkit.comparison import ALPHA, LEVEL
from asrkit.diagnostics import CATALOG
from asrkit.encoders import NormOptions
from asrkit.recipe.schema import SCHEMA
from asrkit.study.definition import STUDY_SCHEMA
from asrkit.study.plan import common, load_study

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


def test_the_page_counts_what_norms_learn_and_keep() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## What it costs")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([^|,]+)[^|]* \| ([^|]+) \|$", text, re.MULTILINE)
    assert {name for name, *_ in rows} == {p.name for p in registry.list_plugins("encoders") if p.package == "asrkit"}
    for name, *formulas in rows:
        for size, steps in ((16, 5), (24, 7)):
            encoder = registry.load("encoders", name)(size, ["relu"], NormOptions(max_steps=steps))
            norm = encoder.make_norm(size)
            found = [sum(t.numel() for t in tensors) for tensors in (norm.parameters(), norm.buffers())]
            spelled = [re.sub(r"(?<=[\dM]) (?=[C(])", " * ", formula) for formula in formulas]
            assert [eval(f, {"C": size, "M": steps}) for f in spelled] == found, name


def test_the_page_of_cures_names_every_key_and_every_arm_of_its_study() -> None:
    text = (PAGE.parent / "cures.md").read_text(encoding="utf-8")
    study = load_study(PAGE.parents[1] / "recipes" / "common_voice_es" / "cures_study.yaml")
    cures = study.definition["axes"]["cure"]
    assert cures["plain"] == {}
    keys = {f"ctc.{key}" for key in SCHEMA["ctc"]} | {key for options in cures.values() for key in options}
    missing = [key for key in keys if key not in text and key.rpartition(".")[2] not in text]
    assert missing == []
    for cell in study.cells:  # each arm is another recipe
        repeat = cell.settings["layers"][3]["repeat"]
        assert repeat.get("residual", False) is ("residual" in cell.axes["cure"])
        assert ("relu" not in repeat["layers"]) is ("no_relu" in cell.axes["cure"])
    different = {json.dumps(common(cell.settings), sort_keys=True) for cell in study.cells if cell.seed == 1}
    assert len(different) == len(cures) == 12


def test_the_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    script = PAGE.parent / "pictures" / "axes.py"
    (tmp_path / "axes.py").write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    runpy.run_path(str(tmp_path / "axes.py"), run_name="__main__")
    drawn, kept = ((folder / "axes.svg").read_text(encoding="utf-8") for folder in (tmp_path, script.parent))
    assert drawn.count("<path") == kept.count("<path") > 500


def test_the_page_of_studies_has_every_key_and_its_study_can_be_read(tmp_path: Path) -> None:
    text = (PAGE.parent / "study.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    shutil.copytree(PAGE.parents[1] / "recipes" / "common_voice_es", tmp_path / "recipes")
    (tmp_path / "recipes" / "page.yaml").write_text(block, encoding="utf-8")
    study = load_study(tmp_path / "recipes" / "page.yaml")
    assert set(re.findall(r"^(\w+):", block, flags=re.MULTILINE)) == set(STUDY_SCHEMA)
    assert set(study.definition["budget"]) == set(re.findall(r"(\w+):", block.rpartition("budget: ")[2]))
    assert len(study.cells) == 2 * 2 * 2 * 3
    assert (ALPHA, LEVEL) == (0.05, 0.025)
    for level in ("share 5 %", "below 0.025 without axes", "below 0.0125 with axes"):
        assert level in " ".join(text.split())


DIAGNOSIS = PAGE.parent / "diagnosis.md"


def test_the_page_of_the_diagnosis_has_every_code() -> None:
    """`python docs/diagnosis_codes.py` writes the table anew."""
    script = runpy.run_path(str(PAGE.parent / "diagnosis_codes.py"))
    page = DIAGNOSIS.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    assert list(rows) == list(CATALOG)
    assert set(", ".join(rows.values()).split(", ")) == {"batch", "model", "run"}  # each is found somewhere
    assert script["written"](page) == page


def test_the_example_of_the_diagnosis_finds_its_fault(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", DIAGNOSIS.read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {"__name__": "page"})
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "error[recurrence_over_batch] in gru"
    ]
