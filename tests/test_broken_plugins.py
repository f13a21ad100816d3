"""A broken plugin is listed, named and explained, and breaks no other; nothing of another API is ever instantiated."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy import RATE, RECIPE, make_corpus, toy_recipe

from asrkit import registry
from asrkit.audio import read_audio
from asrkit.cli import doctor, main
from asrkit.corpus import open_corpus
from asrkit.errors import AudioError, RecipeError
from asrkit.experiment import train

GOOD = """
from torch import nn
from asrkit import StackEncoder

class Identity(nn.Module):
    def forward(self, x, mask):
        return x

class Encoder(StackEncoder):
    asrkit_api = 1
    def make_norm(self, size):
        return Identity()
"""
OTHER_API = """
import pathlib

class Encoder:
    asrkit_api = {api}
    batch_statistics = False

    def __init__(self, *args, **options):
        pathlib.Path(__file__).with_suffix(".instantiated").touch()
"""
# Name -> (the module, what of it is offered, the reason with which it is refused, what the message must say).
BROKEN = {
    "from_the_future": (OTHER_API.format(api=99), "Encoder", "plugin_api", "asrkit_api = 99, this asrkit speaks 1"),
    "from_the_past": (OTHER_API.format(api=0), "Encoder", "plugin_api", "asrkit_api = 0, this asrkit speaks 1"),
    "without_number": ("class Encoder: pass", "Encoder", "plugin_api", "declares no asrkit_api"),
    "api_in_words": (OTHER_API.format(api="'1'"), "Encoder", "plugin_api", "asrkit_api = '1'"),
    "raises": ("raise OSError('its library is gone')", "Encoder", "broken_plugin", "OSError: its library is gone"),
    "leaves": ("raise SystemExit('bye')", "Encoder", "broken_plugin", "SystemExit: bye"),
    "unreadable_code": ("class Encoder(", "Encoder", "broken_plugin", "SyntaxError"),
    "a_module": (GOOD, None, "plugin_api", "'a_module' is a module, no class, and declares no asrkit_api"),
    "attribute_gone": (GOOD, "Encodr", "broken_plugin", "AttributeError"),
    "module_gone": (None, "Encoder", "broken_plugin", "ModuleNotFoundError"),
}


def target(module: str, attribute: str | None) -> str:
    return module if attribute is None else f"{module}:{attribute}"


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(package, {name: target}, code)`: a package as pip leaves it, on a path that is on sys.path."""
    site = tmp_path / "site"
    site.mkdir()
    before = set(sys.modules)
    monkeypatch.setattr(registry, "_registered", {})

    def add(package: str, offers: dict[str, str] | str, code: str | None, kind: str = "encoders") -> None:
        info = site / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n", encoding="utf-8")
        lines = offers if isinstance(offers, str) else "".join(f"{n} = {t}\n" for n, t in offers.items())
        (info / "entry_points.txt").write_text(f"[asrkit.{kind}]\n{lines}", encoding="utf-8")
        if code is not None:
            (site / f"{package}.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(site)  # also forgets what importlib remembers of the folder

    yield add
    for module in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


@pytest.fixture
def all_broken(install: Install) -> None:
    """Every package of BROKEN, two that offer `twin`, and a good one."""
    for name, (code, attribute, _, _) in BROKEN.items():
        install(name, {name: target(name, attribute)}, code)
    install("one", {"twin": "one:Encoder"}, GOOD)
    install("two", {"twin": "two:Encoder"}, GOOD)
    install("good_guest", {"good": "good_guest:Encoder"}, GOOD)


@pytest.mark.parametrize("name", BROKEN)
def test_each_is_refused_with_its_reason(name: str, install: Install, tmp_path: Path) -> None:
    code, attribute, reason, text = BROKEN[name]
    install(name, {name: target(name, attribute)}, code)
    with pytest.raises(RecipeError) as caught:
        registry.load("encoders", name)
    assert caught.value.reason == reason
    assert text in str(caught.value)
    assert f"{name} 1.2" in str(caught.value)  # the package and its version
    assert caught.value.fix
    assert not list(tmp_path.rglob("*.instantiated"))


@pytest.mark.parametrize("verb", ["train", "show"])
def test_a_wrong_api_number_stops_a_command_before_anything_is_built(
    verb: str, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("from_the_future", {"from_the_future": "from_the_future:Encoder"}, OTHER_API.format(api=2))
    corpus = make_corpus(tmp_path / "cv", train=4, dev=2, test=0)
    (tmp_path / "toy.yaml").write_text(RECIPE, encoding="utf-8")
    words = [verb, str(tmp_path / "toy.yaml"), f"--data.root={corpus}", "--encoder=from_the_future"]
    words += [f"--data.cache={tmp_path / 'cache'}", "--data.test=null"]
    assert main(words + [f"--output={tmp_path / 'run'}"] * (verb == "train")) == 2
    assert "error[plugin_api]" in (err := capsys.readouterr().err)
    assert "asrkit is the older side" in err
    assert not list(tmp_path.rglob("*.instantiated"))
    assert not (tmp_path / "run").exists()


def test_a_name_offered_twice_names_both_packages(install: Install) -> None:
    install("one", {"twin": "one:Encoder"}, GOOD)
    install("two", {"twin": "two:Encoder"}, GOOD)
    with pytest.raises(
        RecipeError, match=r"'twin' is offered twice, by (one 1.2 and two|two 1.2 and one) 1.2"
    ) as caught:
        registry.load("encoders", "twin")
    assert caught.value.reason == "duplicate_plugin"
    assert "one" not in sys.modules  # not even imported
    assert "two" not in sys.modules


@pytest.mark.usefixtures("all_broken")
class TestTheOthersWork:
    def test_all_are_listed_and_none_is_imported(self, capsys: pytest.CaptureFixture[str]) -> None:
        before = set(sys.modules)
        assert main(["plugins", "--json"]) == 0
        listed = {(plugin["name"], plugin["package"]) for plugin in json.loads(capsys.readouterr().out)}
        assert {(name, name) for name in BROKEN} | {("good", "good_guest"), ("twin", "one"), ("twin", "two")} <= listed
        assert {("none", "asrkit"), ("layer_norm", "asrkit"), ("common_voice", "asrkit")} <= listed
        assert not (set(sys.modules) - before) & {*BROKEN, "one", "two", "good_guest"}
        assert main(["plugins"]) == 0
        assert "'twin' (encoders) is offered by " in capsys.readouterr().out

    def test_doctor_names_each_and_counts_the_rest(self) -> None:
        *findings, summary = doctor.check_plugins()
        assert {finding.status for finding in findings} == {"FAIL"}
        found = [finding.found for finding in findings]
        for name, (_, _, _, text) in BROKEN.items():
            assert [line for line in found if repr(name) in line and text in line], name
        assert [line for line in found if "'twin'" in line]
        assert len(found) == len(BROKEN) + 1
        names = {(plugin.kind, plugin.name) for plugin in registry.list_plugins()}
        assert summary.status == "ok"
        assert summary.found.startswith(f"{len(names) - len(BROKEN) - 1} of {len(names)} names load")

    def test_training_with_others(self, tmp_path: Path) -> None:
        """The whole way from a corpus that every reader is asked about to a model that is loaded again."""
        corpus = make_corpus(tmp_path / "cv", train=4, dev=2, test=0)
        losses = []
        for encoder in ("none", "good"):
            changes = [("encoder", encoder), ("data.test", "null"), ("training.epochs", 1)]
            recipe = toy_recipe(tmp_path, corpus, *changes)
            result = train(recipe, "", tmp_path / encoder, say=lambda _: None)
            losses.append(result.last["train"]["loss"])
        assert losses[0] == losses[1]  # `good` does nothing either

    def test_an_unknown_name_still_gets_its_answer(self) -> None:
        with pytest.raises(RecipeError, match="did you mean 'good'"):
            registry.load("encoders", "goood")


def test_a_package_whose_entry_points_cannot_be_read(install: Install) -> None:
    """importlib gives up on all packages then, and so do others who ask it; asrkit lists the rest and says which."""
    install("scrambled", "this line is no entry point\n", GOOD)
    install("good_guest", {"good": "good_guest:Encoder"}, GOOD)
    names = {plugin.name for plugin in registry.list_plugins("encoders")}
    assert {"none", "layer_norm", "good"} <= names
    assert registry.load("encoders", "good").__module__ == "good_guest"
    assert list(registry.unreadable_packages()) == ["scrambled"]


def test_doctor_names_that_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "unreadable_packages", lambda: {"scrambled": "TypeError: no entry point"})
    monkeypatch.setattr(registry, "list_plugins", lambda kind=None: [])
    first, *_ = doctor.check_plugins()
    assert (first.status, first.fix) == ("FAIL", "reinstall scrambled")
    assert "what scrambled offers cannot be read (TypeError: no entry point)" in first.found


def test_damaged_metadata(install: Install, tmp_path: Path) -> None:
    """A package without a METADATA file still works; where it comes from is not known."""
    install("nameless", {"works": "nameless:Encoder"}, GOOD)
    (tmp_path / "site" / "nameless-1.2.dist-info" / "METADATA").unlink()
    plugin = registry.describe("encoders", "works")
    assert (plugin.package, plugin.version) == ("?", "?")
    assert registry.load("encoders", "works").asrkit_api == 1


def test_broken_readers_of_corpora_and_audio(install: Install, tmp_path: Path) -> None:
    """Every reader is asked whether it knows a folder or a file; one that does not load is not asked."""
    install("bad_corpus", {"aaa": "bad_corpus:Corpus"}, "raise OSError('gone')", kind="corpora")
    install("bad_audio", {"aaa": "bad_audio:Reader"}, "raise OSError('gone')", kind="audio")
    corpus = open_corpus(make_corpus(tmp_path / "cv", train=2, dev=2, test=0))
    assert type(corpus).__name__ == "CommonVoice"
    (tmp_path / "x.wav").write_bytes(b"<html>no audio</html>")
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / "x.wav", RATE)
    assert caught.value.reason == "not_audio"


def offered_names() -> set[str]:
    return {plugin.name for plugin in registry.list_plugins("encoders")}


def test_packages_are_read_once(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("good_guest", {"good": "good_guest:Encoder"}, GOOD)
    real, asked = registry.entry_points, []
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or real(group=group))
    for _ in range(3):
        registry.load("encoders", "good")
    assert asked == ["asrkit.encoders"]


@pytest.mark.parametrize("at_once", [True, False])
def test_what_changes_while_the_process_runs_is_seen(install: Install, tmp_path: Path, at_once: bool) -> None:
    """Installed, replaced, removed; on a path that was there before, within one tick of the clock of the disk or long
    afterwards, and in the folder of the process, which Python calls ''."""
    site, tick, hours = tmp_path / "site", time.time(), iter(range(1, 9))

    def now() -> set[str]:
        when = tick if at_once else 3600.0 * next(hours)
        os.utime(site, (when, when))
        return offered_names()

    install("first", {"one": "first:Encoder"}, GOOD)
    assert "one" in now()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.path", [*sys.path, ""])  # nothing of it is to be prepended again
        patch.setattr(pytest.MonkeyPatch, "syspath_prepend", lambda self, path: None)
        install("second", {"two": "second:Encoder"}, GOOD)
        assert {"one", "two"} <= now()
        assert registry.load("encoders", "two").__module__ == "second"
        patch.chdir(tmp_path / "site")
        shutil.rmtree("second-1.2.dist-info")  # as pip does before it writes the new one
        install("second", {"three": "second:Encoder"}, GOOD)
        assert {"one", "three"} <= now()
        assert "two" not in now()
        Path("second-1.2.dist-info").rename("second-1.3.dist-info")
        assert registry.describe("encoders", "three").package == "second"
        shutil.rmtree("second-1.3.dist-info")
        assert "three" not in now()
        patch.setattr("sys.path", sys.path[1:])
        assert "one" in now()  # still below ''
        patch.chdir(tmp_path)
        assert "one" not in now()
