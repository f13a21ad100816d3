"""Recipes: friendly ones resolve, misspelled ones are named, hostile ones run nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ruamel.yaml
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asrkit.errors import AsrkitError, RecipeError, StorageError, TrustError
from asrkit.recipe import ANY, REQUIRED, difference, dump_recipe, load_recipe, recipe_hash

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a recipe (and files beside it) into a folder of its own; returns the recipe's path."""

    def write(text: str, **others: str) -> Path:
        folder = tmp_path / "recipes"
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        for name, content in others.items():
            (folder / "parts" / f"{name}.yaml").write_text(content)
        path = folder / "recipe.yaml"
        path.write_text(text)
        return path

    return write


MODEL2 = """\
name: model2
encoder: none
width: 512
layers:
  - conv: {channels: 32, kernel: 4, stride: 2}
  - linear: !ref <width>
  - dropout: 0.2
  - norm
  - bigru: {size: !ref <width>, layers: 5}
data: !include:parts/data.yaml
training: !include:parts/training.yaml
half: !ref <width> // 2
"""
PARTS = {
    "data": "root: !PLACEHOLDER  # folder of the corpus\ntrain: train\n",
    "training": "lr: 1e-3\npeak: !ref <lr> * 10\nsize: !ref <width> * 2\ndeep: {a: {b: 1}}\n",
}
ROOT = ("data.root", "/cv/es")


# --- friendly recipes


def test_a_recipe_resolves_to_plain_data(write: Write) -> None:
    assert load_recipe(write(MODEL2, **PARTS), [ROOT]) == {
        "name": "model2",
        "encoder": "none",
        "width": 512,
        "layers": [
            {"conv": {"channels": 32, "kernel": 4, "stride": 2}},
            {"linear": 512},
            {"dropout": 0.2},
            "norm",
            {"bigru": {"size": 512, "layers": 5}},
        ],
        "data": {"root": "/cv/es", "train": "train"},
        "training": {"lr": 0.001, "peak": 0.01, "size": 1024, "deep": {"a": {"b": 1}}},
        "half": 256,
    }


def test_an_override_reaches_every_reference_and_every_depth(write: Write) -> None:
    options = [
        ROOT,
        ("width", "128"),
        ("layers.0.conv.kernel", "5"),
        ("training.deep.a.b", "[1, x]"),
        ("layers.3", "id"),
    ]
    data = load_recipe(write(MODEL2, **PARTS), options)
    assert data["layers"][1] == {"linear": 128}
    assert data["layers"][4]["bigru"]["size"] == 128
    assert (data["half"], data["training"]["size"]) == (64, 256)
    assert data["layers"][0]["conv"]["kernel"] == 5
    assert data["layers"][3] == "id"
    assert data["training"]["deep"]["a"]["b"] == [1, "x"]


def test_a_missing_value_names_the_option(write: Write) -> None:
    with pytest.raises(RecipeError, match=r"data\.root has no value; fix: give --data\.root=<value>") as caught:
        load_recipe(write(MODEL2, **PARTS))
    assert (caught.value.exit_code, caught.value.reason) == (2, "missing_value")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 3\nb: !ref <a> * 2 + 1\n", 7),
        ("a: 3\nb: !ref (<a> + 1) * 2\n", 8),
        ("a: 3\nb: !ref <a> / 2\n", 1.5),
        ("a: 7\nb: !ref <a> % 4 - 1.5\n", 1.5),
        ("a: -3\nb: !ref <a> * 2\n", -6),
        ("a: {c: {d: 4}}\nb: !ref <a[c][d]>\n", 4),
        ("a: {c: 1}\nb: !copy <a>\n", {"c": 1}),
        ("b: !ref <a> * 2\na: !ref <c> + 1\nc: 3\n", 8),
        ("b: !ref <a>\na: !ref <c>\nc: {x: !ref <d>}\nd: 9\n", {"x": 9}),
        ("b: !ref <a[x]>\na: !ref <c>\nc: {x: 5}\n", 5),
        ("a: /runs (o'brien) 9*9 <x>\nb: !ref <a>/clips\n", "/runs (o'brien) 9*9 <x>/clips"),
        ('a: "2 ** 9 ** 9"\nb: !ref <a>\n', "2 ** 9 ** 9"),
        ('a: "10"\nc: 5\nb: !ref <a>/<c>\n', "10/5"),
        ("b: 1e-3\n", 1e-3),
        ("b: 2024-01-01\n", "2024-01-01"),
        ("b: '(3, 4)'\n", "(3, 4)"),
        ('b: "yes"\n', "yes"),
        ("b: !!str 3\n", "3"),
        ("b: !!float 3\n", 3.0),
        ("b: 0x1F\n", 31),
        ("b: ~\n", None),
        ("b: -.inf\n", -math.inf),
        ("b: .INF\n", math.inf),
        ("b: [.Inf, .inf, -.INF]\n", [math.inf, math.inf, -math.inf]),
        ("c: &x [1, 2]\nb: [*x, *x]\n", [[1, 2], [1, 2]]),
        ("b: ñandú\n", "ñandú"),
    ],
)
def test_values_and_references(write: Write, text: str, expected: Any) -> None:
    value = load_recipe(write(text))["b"]
    assert value == expected
    assert type(value) is type(expected)


def test_included_files_see_their_own_names_first_and_take_a_body(write: Write) -> None:
    path = write(
        "lr: 1\nparts: !include:parts/outer.yaml\n  fixed: 7\n",
        outer="lr: 2\nfixed: 0\nmine: !ref <lr>\ninner: !include:inner.yaml\n",
        inner="mine: !ref <lr>\nfrom_outer: !ref <fixed> * 2\n",
    )
    inner = {"mine": 2, "from_outer": 14}
    assert load_recipe(path)["parts"] == {"lr": 2, "fixed": 7, "mine": 2, "inner": inner}
    with pytest.raises(RecipeError, match=r"'fixd'.*did you mean 'fixed'"):
        load_recipe(write("parts: !include:parts/outer.yaml\n  fixd: 7\n"))


# --- the schema

SCHEMA = {"name": None, "encoder": "none", "layers": ANY, "data": {"root": REQUIRED, "train": "train"},
          "training": {"lr": 1e-3, "epochs": 30}, "text": {"options": ANY}}  # fmt: skip


def test_defaults_are_under_the_recipe(write: Write) -> None:
    path = write("width: 8\nlayers: [{linear: !ref <width>}]\ntraining: {lr: 1}\ndata:\n")
    data = load_recipe(path, [ROOT, ("training.epochs", "2"), ("text.options", "{size: 9}")], known=SCHEMA)
    assert data["training"] == {"lr": 1, "epochs": 2}
    assert data["data"] == {"root": "/cv/es", "train": "train"}
    assert data["text"] == {"options": {"size": 9}}
    assert (data["encoder"], data["width"]) == ("none", 8)
    with pytest.raises(RecipeError, match=r"data\.root has no value"):
        load_recipe(path, known=SCHEMA)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epocs: 2}\n", r"recipe.yaml line 1: 'epocs' is not a key of training; .*did you mean 'epochs'"),
        ("x: {sedd: 2}\ntraining: !ref <x>\n", r"'x' is not a key of a recipe"),
        ("encodr: none\n", r"'encodr' is not a key of a recipe.*did you mean 'encoder'"),
        ("unused: 3\n", r"'unused' is not a key"),
        ("name: {a: 1}\n", r"name must be a single value"),
        ("training: 5\n", r"training must be a section"),
    ],
)
def test_unknown_keys_of_the_recipe(write: Write, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(text), [ROOT], known=SCHEMA)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("encodr", "none"), r"--encodr: 'encodr' is not a key of the recipe; .*did you mean 'encoder'"),
        (("training.deep.a.c", "1"), r"--training\.deep\.a\.c: 'c' is not a key of training\.deep\.a; possible: b"),
        (("training.deep.x.b", "1"), r"'x' is not a key of training\.deep"),
        (("training", "{sedd: 2}"), r"'sedd' is not a key of training"),
        (("layers.0.conv.kernal", "3"), r"'kernal' is not a key of layers\.0\.conv.*did you mean 'kernel'"),
        (("layers.5", "norm"), r"layers has no item '5'; possible: 0 to 4"),
        (("layers.-1", "norm"), r"layers has no item '-1'"),
        (("layers.0.conv.kernel.x", "3"), r"layers\.0\.conv\.kernel has no keys"),
        (("half.x", "3"), r"half is a reference"),
        (("training", "3"), r"training is a section"),
        (("", "3"), r"'' is not a key"),
        (("a..b", "3"), r"'a' is not a key"),
        (("width", ""), r"--width= has no value"),
        (("width", "a: b"), r"not a single value"),
        (("width", "- 3"), r"not a single value"),
        (("width", "&a 3"), r"not a single value"),
        (("width", "*a"), r"stands for nothing"),
        (("width", "/data/cv #1"), r"would be cut to '/data/cv'"),
        (("width", "[1, 2"), r"not valid YAML"),
        (("width", "@home"), r"not valid YAML"),
        (("width", "yes"), r"write true or false"),
        (("width", "\udcff"), r"not text"),
    ],
)
def test_wrong_options(write: Write, option: tuple[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(MODEL2, **PARTS), [ROOT, option])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r"line 2: 'a' is given twice \(also recipe.yaml line 1\)"),
        ("a: no\n", r"line 1: no is a truth value"),
        ("1: a\n", r"key '1' is not text"),
        ("x: &x {a: 1}\nb:\n  <<: *x\n", r"merge keys"),
        ("a: !ref <b>\n", r"line 1: !ref '<b>': there is no 'b'"),
        ("a: !ref <b>\nb: !ref <c> + 1\nc: !ref <a>\n", r"run in a circle"),
        ("a: {b: !ref <a>}\n", r"run in a circle"),
        ("a: [1]\nb: !ref <a[0]>\n", r"list items cannot be named"),
        ("a: x\nb: !ref <a> * 2\n", r"needs numbers"),
        ("a: 0\nb: !ref 1 / <a>\n", r"division by zero"),
        ("a: 3\nb: !ref 2 * -<a>\n", r"not a sum of numbers"),
        ("a: 3\nb: !ref <a> <a> +\n", r"not a sum of numbers"),
        ("a: ~\nb: !ref <a>/x\n", r"<a> is null"),
        ("a: 1e999\n", r"out of range"),
        ("a: !!int x\n", r"not of type !!int"),
        ("a: !ref [1]\n", r"wrong kind"),
        ("a: 1\n--- \nb: 2\n", r"several documents"),
        ("- 1\n", r"not a mapping"),
        ("", r"is empty"),
        ("a: [1\n", r"not valid YAML"),
        ("a: &a [*a]\n", r"stands for nothing, or for itself"),
        ("a: !include:parts/nothing.yaml\n", r"no such file"),
        ("a: !include:parts/cycle.yaml\n", r"include each other: recipe.yaml -> cycle.yaml -> cycle.yaml"),
    ],
)
def test_mistakes_in_recipes(write: Write, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(text, cycle="again: !include:cycle.yaml\n"))
    assert caught.value.exit_code == 2


def test_files_that_are_no_recipes(tmp_path: Path, write: Write) -> None:
    path = write("a: 1\n")
    with pytest.raises(RecipeError, match=r"no recipe .*did you mean 'recipe.yaml'"):
        load_recipe(path.with_name("recpe.yaml"))
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="is a folder; fix: give a recipe"):
        load_recipe(tmp_path)


# --- hostile recipes

HOSTILE = {  # each would leave MARKER behind, read a foreign file, or never end
    "apply": "a: !apply:os.system [touch MARKER]\n",
    "new": "a: !new:subprocess.Popen [[touch, MARKER]]\n",
    "name": "a: !name:os.system\n",
    "module": "a: !module:this\n",
    "applyref": "a: !applyref:os.system\n  _args: [touch MARKER]\n  _kwargs: {}\n",
    "python": "a: !!python/object/apply:os.system [touch MARKER]\n",
    "python_name": "a: !!python/name:os.system\n",
    "verbatim": "a: !<tag:yaml.org,2002:python/object/apply:os.system> [touch MARKER]\n",
    "verbatim_ref": "b: 1\na: !<!ref> <b>\n",
    "handle": "%TAG !e! tag:yaml.org,2002:python/object/apply:\n---\na: !e!os.system [touch MARKER]\n",
    "primary_handle": "%TAG ! tag:yaml.org,2002:python/object/apply:\n---\na: !os.system [touch MARKER]\n",
    "handle_of_an_allowed_tag": "%TAG !e! !re\n---\nb: 1\na: !e!f <b>\n",
    "hidden": "__a: !apply:os.system [touch MARKER]\nb: 1\n",
    "key": "? !!python/object/apply:os.system [touch MARKER]\n: 1\n",
    "tagged_key": "!apply:os.system x: 1\n",
    "tuple_text": 'a: (!!python/object/apply:os.system ["touch MARKER"] , 1)\n',
    "tuple_tag": "a: !tuple \"(!!python/object/apply:os.system ['touch MARKER'] , 1)\"\n",
    "tuple_reference": "a: '!!python/object/apply:os.system [touch MARKER]'\nb: !ref (<a>, 1)\n",
    "attribute": "a: x\nb: !ref <a.__class__>\n",
    "quoted_reference": "a: 1\nb: !ref \"'x' * 9 + <a>\"\n",
    "call_reference": "a: 1\nb: !ref __import__('os').system('touch MARKER') + <a>\n",
    "prefix": "a: !apply:speechbrain.utils.checkpoints.os.system [touch MARKER]\n",
    "include_absolute": "a: !include:/etc/hostname\n",
    "include_parent": "a: !include:../outside.yaml\n",
    "include_dots": "a: !include:parts/../../outside.yaml\n",
    "include_link": "a: !include:parts/link.yaml\n",
    "include_linked_folder": "a: !include:parts/linked/outside.yaml\n",
    "included": "a: !include:parts/payload.yaml\n",
    "included_parent": "a: !include:parts/climber.yaml\n",
    "unknown": "a: !wherever x\n",
    "binary": "a: !!binary aGk=\n",
    "set": "a: !!set {x}\n",
    "non_specific": "a: ! x\n",
    "alias_bomb": "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9)),
    "power": "a: 9\nb: !ref <a> ** 9 ** 9\n",
    "power_by_parts": "a: 9\ne: ''\nb: !ref <a> *<e>* <a>\n",
    "reference_bomb": "a0: [1]\n" + "".join(f"a{i}: [{', '.join([f'!ref <a{i - 1}>'] * 9)}]\n" for i in range(1, 9)),
    "empty_bomb": "a0: []\n" + "".join(f"a{i}: [{', '.join([f'!ref <a{i - 1}>'] * 9)}]\n" for i in range(1, 6)),
    "copy_bomb": "a0: {x: 1}\n" + "".join(f"a{i}: [!copy <a{i - 1}>, !copy <a{i - 1}>]\n" for i in range(1, 30)),
    "text_bomb": "a0: x\n" + "".join(f"a{i}: !ref {f'<a{i - 1}>' * 9}\n" for i in range(1, 30)),
    "square_bomb": "a0: 9\n" + "".join(f"a{i}: !ref <a{i - 1}> * <a{i - 1}>\n" for i in range(1, 40)),
    "digits": "a0: 9\n" + "".join(f"a{i}: !ref <a{i - 1}> * <a{i - 1}>\n" for i in range(1, 11)),
    "deep": "a: " + "[" * 5000 + "]" * 5000 + "\n",
    "deep_blocks": "".join(" " * i + "a:\n" for i in range(100)),
    "large": "a: '" + "x" * (1 << 20) + "'\n",
    "many": "a: [" + "1," * 30_000 + "]\n",
    "backtrack": "a: 1\nb: !ref <a>" + "1" * 400 + "!\n",
    "long_reference": "a: 1\nb: !ref <a>" + "+1" * 400 + "\n",
}  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path, write: Write) -> Iterator[tuple[Write, Path]]:
    """Writes recipes into a folder with a way out; afterwards no marker may exist and no loader may be changed."""
    marker = tmp_path / "marker"
    (tmp_path / "outside.yaml").write_text("secret: 1\n")
    path = write(
        "a: 1\n", climber="a: !include:../../outside.yaml\n", payload=f"a: !apply:os.system [touch {marker}]\n"
    )
    (path.parent / "parts" / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (path.parent / "parts" / "linked").symlink_to(tmp_path)

    def write_hostile(text: str) -> Path:
        path.write_text(text.replace("MARKER", str(marker)))
        return path

    before = _registered()
    yield write_hostile, marker
    assert not marker.exists()
    assert _registered() == before


def _registered() -> list[int]:
    loaders = (
        yaml.SafeLoader,
        yaml.Loader,
        yaml.FullLoader,
        yaml.CSafeLoader,
        ruamel.yaml.Loader,
        ruamel.yaml.SafeLoader,
    )
    return [
        len(table)
        for loader in loaders
        for table in (loader.yaml_constructors, loader.yaml_multi_constructors)  # type: ignore[attr-defined]
    ] + [len(ruamel.yaml.resolver.implicit_resolvers)]


@pytest.mark.fault
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_refused_and_runs_nothing(hostile: tuple[Write, Path], name: str) -> None:
    write, _ = hostile
    before = set(sys.modules)
    with pytest.raises(TrustError) as caught:
        load_recipe(write(HOSTILE[name]))
    assert caught.value.exit_code == 7
    assert caught.value.reason
    assert "this" not in set(sys.modules) - before


@pytest.mark.fault
def test_a_refusal_names_tag_and_line(hostile: tuple[Write, Path]) -> None:
    write, _ = hostile
    with pytest.raises(TrustError, match=r"recipe.yaml line 3: tag !new:subprocess.Popen is not allowed"):
        load_recipe(write("a: 1\nb:\n  - !new:subprocess.Popen [[touch, MARKER]]\n"))
    with pytest.raises(TrustError, match=r"payload.yaml line 1: tag !apply:os.system is not allowed"):
        load_recipe(write(HOSTILE["included"]))


@pytest.mark.fault
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "!apply:os.system [touch MARKER]",
        "!!python/object/apply:os.system [touch MARKER]",
        "!new:subprocess.Popen [[touch, MARKER]]",
        "[1, {a: !apply:os.system [touch MARKER]}]",
        "(!!python/object/apply:os.system ['touch MARKER'] , 1)",
        "(3, 4)",
        "!tuple (3, 4)",
        "!ref <b>",
        "!include:/etc/hostname",
        "!PLACEHOLDER",
        "%TAG ! tag:yaml.org,2002:python/object/apply:\n---\n!os.system [touch MARKER]",
        "!<tag:yaml.org,2002:python/object/apply:os.system> [touch MARKER]",
        "[" * 100 + "]" * 100,
        "[" + "1," * 3000 + "]",
    ],
)
def test_a_hostile_option_is_refused_even_for_a_trusted_recipe(
    hostile: tuple[Write, Path], text: str, trust: bool
) -> None:
    write, marker = hostile
    with pytest.raises(TrustError):
        load_recipe(write("a: 1\nb: 2\n"), [("a", text.replace("MARKER", str(marker)))], trust=trust)


def test_a_trusted_recipe_is_a_program(write: Write) -> None:
    path = write(
        "size: 3\ncounter: !new:collections.Counter\n  a: !ref <size>\npair: (3, 4)\n"
        "parts: !include:parts/own.yaml\nwhere: !apply:os.path.join [x, !ref <size>/y]\nword: 'yes'\nexp: '1e-3'\n",
        own="base: 2\nmine: !ref <base> * 2\nalso: !ref <counter>\n",
    )
    before = _registered()
    with pytest.raises(TrustError):
        load_recipe(path)
    data = load_recipe(path, [("size", "5")], trust=True)
    assert type(data["counter"]).__name__ == "Counter"
    assert data["counter"]["a"] == 5
    assert (data["pair"], data["where"], data["word"], data["exp"]) == ((3, 4), "x/5/y", "yes", "1e-3")
    assert data["parts"]["mine"] == 4
    assert load_recipe(path, [("size", "5")], trust=True)["pair"] == (3, 4)  # the second one in a process, too
    assert _registered() == before
    with pytest.raises(RecipeError, match="'siz' is not a key"):
        load_recipe(path, [("siz", "5")], trust=True)


def test_a_failing_trusted_recipe_leaves_yaml_as_it_was(write: Write) -> None:
    defaults = yaml.constructor.BaseConstructor.construct_object.__defaults__
    with pytest.raises(RecipeError, match="the trusted recipe fails: ImportError"):
        load_recipe(write("a: !new:no.such.thing\n"), trust=True)
    assert yaml.constructor.BaseConstructor.construct_object.__defaults__ == defaults


# --- saving and comparing

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=12)
    | st.sampled_from(["yes", "(1)", "1e-3", "0x1", "null", "~", "!x", "- a", "a: b", "1_0", "12:30", "=", "<<"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(st.text(min_size=1, max_size=8), PLAIN, min_size=1, max_size=5))
@example(data={"a": "yes", "b": ["(1, 2)", "1e-3", "1_000", ""], "no": {"1": 1e-05, "é\n ": "\x85\u2028"}})
def test_a_saved_recipe_reads_back_equal(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "saved.yaml"
    path.write_bytes(dump_recipe(data).encode())
    again = load_recipe(path)
    assert json.dumps(again) == json.dumps(data)  # order and types too; NaN equals NaN
    assert recipe_hash(again) == recipe_hash(data)
    assert difference(again, data) == []


def test_hash_and_difference() -> None:
    old = {"training": {"lr": 0.001, "epochs": 3}, "layers": [{"conv": {"kernel": 4}}, "norm"], "seed": 1}
    new = {"seed": 1.0, "layers": [{"conv": {"kernel": 5}}], "training": {"epochs": 3, "lr": 0.002, "clip": None}}
    assert difference(old, new) == [
        "training.lr: 0.001 -> 0.002",
        "training.clip: (absent) -> null",
        "layers.0.conv.kernel: 4 -> 5",
        'layers.1: "norm" -> (absent)',
        "seed: 1 -> 1.0",
    ]
    assert recipe_hash({"b": 1, "a": "ñ"}) == hashlib.sha256('{"a":"ñ","b":1}'.encode()).hexdigest()
    assert recipe_hash({"a": "ñ", "b": 1}) == recipe_hash({"b": 1, "a": "ñ"})
    assert len({recipe_hash({"a": value}) for value in (1, 1.0, True, "1")}) == 4
    assert list(yaml.safe_load(dump_recipe({"b": 1, "a": 2}))) == ["b", "a"]
    with pytest.raises(RecipeError, match=r"a\.0 is a PosixPath"):
        recipe_hash({"a": [Path()]})
    with pytest.raises(RecipeError, match=r"a is a set"):
        dump_recipe({"a": {1}})


WORDS = """a b : | - | [ ] { } , !ref| <a> <b[c]> !copy| !include: x.yaml !PLACEHOLDER &a| *a ' " # > ?| %TAG| ---
... !!int| 1 - ( ) ** * // é << ~ .nan 1e9 !new:x !< .. /"""
PIECES = [piece.replace("|", " ") for piece in WORDS.split()] + [
    " ",
    "\n",
    "\n  ",
    "\t",
    "\x00",
    "\x85",
    "\ufeff",
    "\udcff",
]


@pytest.mark.fault
def test_random_text_never_raises_anything_else(tmp_path: Path) -> None:
    """Random and half-sensible text, as a recipe, as an option's value and as an option's path."""
    path, fixed = tmp_path / "fuzz.yaml", tmp_path / "x.yaml"
    fixed.write_text("a: 1\nb: {c: [!ref <a>]}\n")
    accepted = [0]

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text() | st.binary())
    def run(text: str | bytes) -> None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
        attempts: list[tuple[Path, list[tuple[str, str]]]] = [(path, [])]
        if isinstance(text, str):
            attempts += [(fixed, [("a", text)]), (fixed, [(text, "1")])]
        for recipe, options in attempts:
            with contextlib.suppress(AsrkitError):
                load_recipe(recipe, options)
                accepted[0] += 1

    run()
    assert accepted[0] > 0, "nothing random was valid: this tests nothing"


def test_an_unreadable_recipe(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    path = write("a: 1\n")
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(StorageError, match="cannot be read"):
        load_recipe(path)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_every_spelling_of_nan(write: Write, text: str) -> None:
    assert math.isnan(load_recipe(write(f"b: {text}\n"))["b"])
