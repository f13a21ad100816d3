"""docs/writing-a-plugin.md does what it says: its Python in this process, its commands in a fresh environment."""

from __future__ import annotations

import importlib
import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
from fresh import FreshEnvironment
from toy import RECIPE

from asrkit import registry, scaffold
from asrkit.testing import CHECKS, check_encoder

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
PYTHON = [body for language, body in BLOCKS if language == "python"]
COMMANDS = [line for language, body in BLOCKS if language == "bash" for line in body.splitlines()]


def edits() -> list[tuple[str, str, str]]:
    """(file, place in it, what to put there) of the blocks that begin with such a comment."""
    found = []
    for body in PYTHON:
        head = re.match(r"# \.\./asrkit-my-norm/(\S+), (.+)\n", body)
        if head is not None:
            found.append((head[1], head[2], body[head.end() :]))
    return found


def apply_edits(folder: Path) -> None:
    """What a reader of the page does in an editor."""
    for name, place, code in edits():
        path = folder / name
        text = path.read_text(encoding="utf-8")
        if place == "between >>> and <<<":
            pattern, indent = r"(?<= >>> ).*?(?=^ +# <<<)", " " * 8
        else:
            assert place == "the last line"
            pattern, indent = r"^[^\n]*\n\Z", " " * 4
        [old] = re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE)
        kept = old[: old.index("\n") + 1] if old.startswith("Your formula") else ""  # the rest of that comment
        path.write_text(text.replace(old, kept + textwrap.indent(code, indent)), encoding="utf-8")


def notebook_cell() -> str:
    [cell] = [body for body in PYTHON if "register_encoder" in body]
    return cell


def test_the_page_holds_what_is_tested_here() -> None:
    assert [name for name, _, _ in edits()] == ["my_norm.py", "tests/test_my_norm.py"]
    assert len(PYTHON) == 3
    assert len(COMMANDS) == 12
    assert {command.split()[0] for command in COMMANDS} == {"asrkit", "pip", "pytest"}


def test_the_edited_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaffold.write_plugin("my_norm", tmp_path)
    before = (tmp_path / "my_norm.py").read_text(encoding="utf-8")
    apply_edits(tmp_path)
    assert (tmp_path / "my_norm.py").read_text(encoding="utf-8") != before
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "tests")
    try:
        cls = importlib.import_module("my_norm").MyNormEncoder
        failed = {result.check: str(result) for result in check_encoder(cls) if result.status == "failed"}
        assert failed == {}
        monkeypatch.setattr(registry, "_registered", {("encoders", "my_norm"): cls})
        importlib.import_module("test_my_norm").test_formula()
    finally:
        for name in ("my_norm", "test_my_norm"):
            sys.modules.pop(name, None)


def test_the_notebook_cell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    definitions = "".join(notebook_cell().splitlines(keepends=True)[:-2])
    exec(definitions, {"__name__": "__main__"})
    exec(notebook_cell(), {"__name__": "__main__"})  # "Running the cell again replaces the class."
    assert capsys.readouterr().out == "all well\n"


def test_every_check_is_explained() -> None:
    table = TEXT.partition("## What a failing check means")[2].partition("\n## ")[0]
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for name in re.findall(r"\w+", row)
    }
    assert named == set(CHECKS)


def test_reasons_and_files_exist() -> None:
    table = TEXT.partition("## What an installed plugin can do wrong")[2].partition("\n## ")[0]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "asrkit").rglob("*.py"))
    reasons = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert len(reasons) == 4
    assert [reason for reason in reasons if f'reason="{reason}"' not in sources] == []
    for name in re.findall(r"`((?:plugins|tests|recipes)/[\w./-]+)`", TEXT):
        assert (ROOT / name).exists(), name
    for page in re.findall(r"\]\(([\w-]+\.md)", TEXT):
        assert (ROOT / "docs" / page).is_file(), page


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="its commands are scripts of a POSIX shell")
def test_every_command(tmp_path: Path) -> None:
    """In order, as they are written, but for the size of the corpus and of the demo's model."""
    for library in ("pip", "hatchling", "espeakng_loader"):
        pytest.importorskip(library)
    work, fresh = tmp_path / "work", FreshEnvironment(tmp_path / "environment")
    (work / "recipes").mkdir(parents=True)
    small = RECIPE.replace("name: toy", "name: demo").replace("root: null", "root: work/synthetic_es")
    (work / "recipes" / "demo.yaml").write_text(small.replace("epochs: 3", "epochs: 1"), encoding="utf-8")
    printed = {}
    for command in COMMANDS:
        if "max_norm.py" in command and not (work / "max_norm.py").exists():
            lines = notebook_cell().splitlines(keepends=True)
            (work / "max_norm.py").write_text("".join(lines[:-2]), encoding="utf-8")
        smaller = command.replace("--hours 1 --speakers 56", "--clips 30 --speakers 10")
        printed[command] = fresh.run("sh", "-c", smaller, folder=work)
        if command.startswith("asrkit plugins new"):
            apply_edits(tmp_path / "asrkit-my-norm")
    assert re.search(r"^my_norm +encoders +asrkit-my-norm +0\.1\.0$", printed["asrkit plugins --kind encoders"], re.M)
    assert re.search(r"\d+ passed, 1 skipped", printed["pytest ../asrkit-my-norm"])
    assert "max_norm: 2" in printed["asrkit plugins check max_norm --plugin max_norm.py"]
    for arm in ("my_norm", "none"):
        assert re.search(r"^CER +\d+\.\d+%", printed[f"asrkit evaluate runs/demo/{arm}/seed1"], re.M)
