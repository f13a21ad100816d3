"""What the README says is true: its files exist, its commands parse, its plugin trains."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from toy import make_corpus, toy_recipe

from asrkit import registry
from asrkit.cli import VERBS, main
from asrkit.experiment import train

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
SHELL = "".join(body for language, body in BLOCKS if language == "sh")


def test_every_file_of_the_tree_exists() -> None:
    tree = next(body for language, body in BLOCKS if not language and "asrkit/" in body)
    names = set(re.findall(r"[\w/]+\.(?:py|yaml)", tree))
    known = {path.name for path in ROOT.rglob("*") if path.suffix in (".py", ".yaml") and ".venv" not in path.parts}
    assert len(names) > 35
    assert {Path(name).name for name in names} <= known


def test_every_module_is_in_the_tree() -> None:
    """A newcomer finds each file of the package in the README."""
    modules = [path.relative_to(ROOT / "asrkit") for path in (ROOT / "asrkit").rglob("*.py")]
    shown = [
        path for path in modules if path.parts[0] not in ("cli", "synthetic") and path.stem.strip("_") == path.stem
    ]
    assert len(shown) > 110
    tree = next(body for language, body in BLOCKS if not language and "asrkit/" in body)
    entries = re.split(r"^  (?=\S)", tree.partition("plugins/asrkit_norms/")[0], flags=re.MULTILINE)
    folders = {entry.partition("/")[0]: entry for entry in entries if re.match(r"\w+/ ", entry)}
    within = [path for path in shown if len(path.parts) > 1]  # by its own folder's line: names come twice
    assert [str(path) for path in within if not re.search(rf"\b{path.name}", folders[path.parts[0]])] == []
    assert [str(path) for path in shown if path.name not in TEXT and path.name != "errors.py"] == []


def test_make_targets_exist() -> None:
    targets = re.findall(r"^make (\w+)", SHELL, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_commands_name_real_verbs_and_recipes() -> None:
    commands = re.findall(r"^\s*asrkit (.+)$", SHELL, flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command, comments=True)
        assert words[0] in VERBS
        for word in words[1:]:
            if word.endswith(".yaml") and "$" not in word:
                assert (ROOT / word).is_file(), word


def test_sixteen_arms() -> None:
    loop = SHELL[SHELL.index("for model") :]
    models = re.search(r"for model in (.+); do", loop)
    encoders = re.search(r"for encoder in (.+); do", loop)
    assert models is not None
    assert encoders is not None
    assert len(models[1].split()) * len(encoders[1].split()) == 16
    assert all((ROOT / "recipes" / "common_voice_es" / f"{name}.yaml").is_file() for name in models[1].split())
    offered = {plugin.name for plugin in registry.list_plugins("encoders")}
    assert set(encoders[1].split()) <= offered


def test_the_plugin_of_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(body for language, body in BLOCKS if language == "python" and "make_norm" in body)
    path = tmp_path / "my_norm.py"
    path.write_text(source, encoding="utf-8")
    monkeypatch.setattr(registry, "_registered", {})
    registry.load_plugin_file(path)
    corpus = make_corpus(tmp_path / "cv", train=4, dev=2, test=0)
    recipe = toy_recipe(tmp_path, corpus, ("encoder", "my_rms_norm"), ("data.test", "null"), ("training.epochs", 1))
    assert train(recipe, "", tmp_path / "run", say=lambda _: None).last["epoch"] == 1


def test_help_of_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert f"asrkit {verb}" in capsys.readouterr().out
