"""Recipe values are checked before any work: types, ranges, choices, names; and plugins that do not fit are refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asrkit import registry
from asrkit.cli import main
from asrkit.encoders import Encoder, StackEncoder
from asrkit.errors import RecipeError
from asrkit.recipe import ANY, load_recipe
from asrkit.recipe.schema import SCHEMA
from asrkit.recipe.validation import INNER_RULES, RULES, validate

RECIPE = "layers: [{linear: 8}, norm, {gru: 4}]\nfeatures: {options: {size: 8}}\n"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def resolved(recipe_file: Path) -> Callable[..., dict[str, Any]]:
    return lambda *options: load_recipe(recipe_file, options, known=SCHEMA)


@pytest.fixture
def registered() -> Iterator[Callable[[str, Any], None]]:
    """Registers encoders for one test."""
    before = dict(registry._registered)
    yield lambda name, cls: registry._registered.__setitem__(("encoders", name), cls)
    registry._registered.clear()
    registry._registered.update(before)


def leaves(schema: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for key, value in schema.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{at}{key}.")
        else:
            yield at + key


def test_every_key_of_the_schema_has_a_rule() -> None:
    keys = list(leaves(SCHEMA))
    assert len(keys) > 50
    assert sorted(keys) == sorted(RULES), "add the new key to asrkit/recipe/validation.py"
    free = {key for key in keys if SCHEMA.get(key.split(".")[0]) is ANY}
    assert all(key.split(".")[0] in free for key in INNER_RULES)


def test_defaults_and_shipped_recipes_are_valid(root: Path, resolved: Callable[..., dict[str, Any]]) -> None:
    validate(resolved())
    paths = [
        p for p in (root / "recipes").rglob("*.yaml") if "parts" not in p.parts and not p.name.endswith("study.yaml")
    ]
    assert len(paths) >= 5
    for path in paths:
        validate(load_recipe(path, known=SCHEMA))


WRONG = [
    ("training.lr", "abc", "training.lr = 'abc'; possible: a number above 0"),
    ("training.lr", "0", "possible: a number above 0"),
    ("training.lr", "-1", "possible: a number above 0"),
    ("training.lr", ".nan", "possible: a number above 0"),
    ("training.lr", "true", "training.lr = True"),
    ("training.lr", "null", "training.lr = None"),
    ("training.lr", "'1e-3'", "training.lr = '1e-3'; possible: a number above 0; fix: write 1e-3 without quotes"),
    ("training.precision", "half", "training.precision = 'half'; possible: bf16, fp16, fp32"),
    ("training.epochs", "ten", "training.epochs = 'ten'; possible: a whole number from 1"),
    ("training.epochs", "0", "training.epochs = 0; possible: a whole number from 1"),
    ("training.epochs", "2.0", "training.epochs = 2.0; possible: a whole number from 1"),
    ("training.epochs", "true", "training.epochs = True"),
    ("training.device", "foo", "training.device = 'foo'; possible: auto, cpu, cuda, cuda:0"),
    ("training.device", "cuda-0", "training.device = 'cuda-0'"),
    ("training.betas", "3", "training.betas = 3; possible: a list of two numbers"),
    ("training.betas", "[0.9, 1.0]", "training.betas"),
    ("training.betas", "[0.9]", "training.betas"),
    ("training.clip", "x", "training.clip = 'x'; possible: a number above 0, or null"),
    ("training.evaluate_every", "0", "training.evaluate_every = 0; possible: a whole number from 1"),
    ("training.accumulation", "0", "training.accumulation = 0; possible: a whole number from 1"),
    ("training.batch_frames", "-1", "training.batch_frames = -1; possible: a whole number from 1, or null"),
    ("training.early_stopping", "0", "a whole number from 1, or null"),
    ("training.warmup_share", "1.5", "a number from 0 to 1"),
    ("training.momentum", "1", "a number from 0 and below 1"),
    ("training.optimizer", "adamm", "training.optimizer = 'adamm'; possible: adam, adamw, sgd (did you mean 'adam"),
    ("training.schedule", "[1]", "possible: constant, onecycle, warmup"),
    ("training.anneal", "cos", "did you mean 'cosine'?"),
    ("training.order", "bucket", "did you mean 'bucketed'?"),
    ("training.tensorboard", "yes-please", "possible: true or false"),
    ("training.first_epoch", "sorted", "training.first_epoch = 'sorted'; possible: "),
    ("ctc.blank_bias", "99", "ctc.blank_bias = 99; possible: a number from -20 to 20"),
    ("ctc.label_prior", "1.5", "ctc.label_prior = 1.5; possible: a number from 0 to 1"),
    ("ctc.decode_prior", "-1", "ctc.decode_prior = -1; possible: a number from 0 to 1"),
    ("ctc.intermediate.weight", "1", "ctc.intermediate.weight = 1; possible: a number from 0 and below 1"),
    ("ctc.intermediate.after", "[0]", "ctc.intermediate.after = [0]; possible: a list of different whole numbers"),
    ("ctc.intermediate.after", "[3, 3]", "possible: a list of different whole numbers from 1 such as [4, 8], or null"),
    ("norm.eps", "small", "norm.eps = 'small'; possible: a number above 0"),
    ("norm.momentum", "0", "possible: a number above 0 to 1"),
    ("norm.batch", "3", "possible: micro, update"),
    ("norm.masked", "1", "norm.masked = 1; possible: true or false"),
    ("norm.groups", "0", "possible: a whole number from 1"),
    ("norm.gain", "0", "possible: a number above 0"),
    ("norm.renorm_r", "0.5", "possible: a number from 1"),
    ("norm.renorm_d", "-1", "possible: a number from 0"),
    ("norm.renorm_warmup", "2.5", "possible: a whole number from 0"),
    ("cmvn.mode", "globall", "did you mean 'global'?"),
    ("cmvn.std", "1", "cmvn.std = 1; possible: true or false"),
    ("seed", "abc", "seed = 'abc'; possible: a whole number from 0"),
    ("seed", "-1", "seed = -1"),
    ("data.max_seconds", "x", "data.max_seconds = 'x'; possible: a number above 0"),
    ("data.max_bad", "2", "data.max_bad = 2; possible: a number from 0 to 1"),
    ("data.max_utterances", "0", "data.max_utterances = 0; possible: a whole number from 1, or null"),
    ("data.train", "null", "data.train = None; possible: a text"),
    ("data.dev", "7", "data.dev = 7; possible: a text, or null; fix: write '\"7\"'"),
    ("text.map", "3", "text.map = 3; possible: a mapping from text to text"),
    ("text.map", "{a: 3}", "text.map = {'a': 3}"),
    ("text.options", "3", "text.options = 3"),
    ("text.unknown", "dropp", "did you mean 'drop'?"),
    ("features.options", "{size: 8}", ""),
    ("spec_augment", "3", "spec_augment = 3; possible: a mapping"),
    ("spec_augment", "{freq_masks: 1.5}", "spec_augment.freq_masks = 1.5; possible: a whole number from 0"),
    ("spec_augment", "{fill: x}", "spec_augment.fill = 'x'; possible: a number"),
    ("decoder.name", "nonsense", "decoder.name: unknown decoder 'nonsense'; possible: beam, greedy"),
    ("decoder.name", "gredy", "did you mean 'greedy'?"),
    ("encoder", "layer_nrom", "encoder: unknown encoder 'layer_nrom'; possible: "),
    ("encoder", "3", "encoder = 3"),
    ("features.name", "fbnak", "did you mean 'fbank'?"),
    ("text.rules", "spanisch", "did you mean 'spanish'?"),
    ("text.tokenizer", "character", "did you mean 'characters'?"),
    ("data.format", "common_vioce", "did you mean 'common_voice'?"),
    ("layers", "[]", "the recipe has no layers; fix: add `layers:`"),
    ("layers", "null", "the recipe has no layers"),
    ("layers", "norm", "layers = 'norm'; possible: a list"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text", "message"), WRONG)
def test_wrong_values(resolved: Callable[..., dict[str, Any]], key: str, text: str, message: str) -> None:
    recipe = resolved((key, text))
    if not message:  # the right way, so that the others fail for their values
        validate(recipe)
        return
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        validate(recipe)
    assert caught.value.exit_code == 2
    assert caught.value.reason


RIGHT = [
    ("training.lr", "1e-3"), ("training.clip", "null"), ("training.device", "cuda:1"), ("training.batch_size", "4"),
    ("data.dev", "null"), ("data.max_utterances", "7"), ("spec_augment", "{freq_masks: 1}"), ("spec_augment", "null"),
    ("text.map", "{à: a}"), ("name", "2024"), ("seed", "0"), ("norm.momentum", "1.0"), ("training.momentum", "0.0"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text"), RIGHT)
def test_right_values(resolved: Callable[..., dict[str, Any]], key: str, text: str) -> None:
    validate(resolved((key, text)))


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "+1e-3", ".1e-2"])
def test_floats_without_a_point_are_numbers(tmp_path: Path, text: str) -> None:
    """PyYAML alone reads 1e-3 as text (YAML 1.1); recipes and options follow YAML 1.2."""
    path = tmp_path / "r.yaml"
    path.write_text(f"{RECIPE}training: {{lr: {text}}}\n", encoding="utf-8")
    for recipe in (load_recipe(path, known=SCHEMA), load_recipe(path, [("training.lr", text)], known=SCHEMA)):
        assert recipe["training"]["lr"] == pytest.approx(1e-3, rel=1e-15)
        validate(recipe)


def test_some_size_of_batches_is_needed(resolved: Callable[..., dict[str, Any]]) -> None:
    validate(resolved(("training.batch_frames", "null"), ("training.batch_size", "2")))
    with pytest.raises(RecipeError, match=r"neither training\.batch_frames nor") as caught:
        validate(resolved(("training.batch_frames", "null")))
    assert caught.value.reason == "batch"


def test_choices_are_those_of_the_code() -> None:
    """The table cannot import torch; so the lists are compared here."""
    from speechbrain.utils.autocast import AMPConfig

    from asrkit.batching import ORDERS
    from asrkit.corpus.selection import POLICIES
    from asrkit.features.cmvn import MODES
    from asrkit.training.schedules import OPTIMIZERS, SCHEDULES

    for key, names in (
        ("training.optimizer", OPTIMIZERS),
        ("training.schedule", SCHEDULES),
        ("training.order", ORDERS),
        ("cmvn.mode", MODES),
        ("text.unknown", POLICIES),
    ):
        assert set(RULES[key].choices) == set(names), key
    for precision in RULES["training.precision"].choices:
        AMPConfig.from_name(precision)


def test_validation_needs_no_torch_and_no_plugin(recipe_file: Path) -> None:
    code = (
        "import sys; from asrkit.recipe import load_recipe; from asrkit.recipe.schema import SCHEMA\n"
        f"from asrkit.recipe.validation import validate; validate(load_recipe({str(recipe_file)!r}, known=SCHEMA))\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'speechbrain', 'asrkit_norms', 'asrkit.decoders')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# The command line.


@pytest.mark.parametrize("verb", ["train", "show"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--training.lr=abc", "training.lr = 'abc'; possible: a number above 0"),
        ("--decoder.name=nonsense", "unknown decoder 'nonsense'"),
        ("--encoder=nonsense", "unknown encoder 'nonsense'"),
        ("--layers=[]", "error[layers]: the recipe has no layers"),
        ("--training.epochs=0", "training.epochs = 0"),
    ],
)
def test_verbs_refuse(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], verb: str, option: str, message: str
) -> None:
    assert main([verb, str(recipe_file), option]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["global", "utterance", "none"])
def test_show_needs_no_data(recipe_file: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    assert main(["show", str(recipe_file), f"--cmvn.mode={mode}"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"cmvn +\(1, 1000, 8\)", out)
    assert re.search(r"gru x 1 +\(1, 1000, 4\)", out)


# Plugin files.


@pytest.mark.parametrize(
    ("body", "line", "what"),
    [
        ("x = 1\ndef f(:\n    pass\n", 2, "SyntaxError"),
        ("x = 1\n\nraise ValueError('no luck')\n", 3, "ValueError: no luck"),
        ("import no_such_module_here\n", 1, "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("import json\ndef f():\n    return json.loads('{')\n\n\nf()\n", 3, "JSONDecodeError"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("import asrkit\n\n@asrkit.register_encoder('half')\nclass E(asrkit.Encoder):\n    pass\n\n1 / 0\n", 7, "Zero"),
    ],
)
def test_plugin_files_that_do_not_run(
    tmp_path: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str], body: str, line: int, what: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(body, encoding="utf-8")
    before = dict(registry._registered)
    assert main(["show", str(recipe_file), "--plugin", str(path)]) == 2
    err = capsys.readouterr().err
    assert f"mine.py:{line}: {what}" in err
    assert err.startswith("asrkit: error[plugin_file]")
    assert registry._registered == before
    assert "asrkit_plugin_mine" not in sys.modules


def test_a_plugin_file_that_registers_a_taken_name_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import asrkit\n@asrkit.register_encoder('none')\nclass E(asrkit.Encoder):\n    pass\n")
    with pytest.raises(RecipeError, match="'none' is already offered by asrkit") as caught:
        registry.load_plugin_file(path)
    assert caught.value.reason == "duplicate_plugin"


def test_a_plugin_file_that_registers_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the file of `asrkit plugins new`, which is installed and has no decorator."""
    monkeypatch.setattr(registry, "_silent", [])
    path = tmp_path / "mine.py"
    path.write_text("class E:\n    pass\n")
    registry.load_plugin_file(path)
    with pytest.raises(RecipeError, match=r"mine\.py registers nothing: put @asrkit\.register_encoder\(\"my_norm\"\)"):
        registry.load("encoders", "my_norm")


def test_two_plugin_files_that_offer_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With classes of one name too; a file that is loaded again offers what it offered."""
    monkeypatch.setattr(registry, "_registered", {})
    body = "import asrkit\n@asrkit.register_encoder('same')\nclass Same(asrkit.StackEncoder):\n    pass\n"
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(body)
    registry.load_plugin_file(tmp_path / "one.py")
    registry.load_plugin_file(tmp_path / "one.py")
    with pytest.raises(RecipeError, match=r"'same' is already offered by asrkit_plugin_one\.Same in this process"):
        registry.load_plugin_file(tmp_path / "two.py")


# Encoders that do not keep the contract.


class Plain(nn.Module):
    asrkit_api = 1

    def __init__(self, input_size: int, layers: list[Any], norm: Any) -> None:
        super().__init__()


class Raises(Encoder):
    def __init__(self, input_size: int, layers: list[Any], norm: Any) -> None:
        raise KeyError("forgot")


class NoSize(Encoder):
    def __init__(self, input_size: int, layers: list[Any], norm: Any) -> None:
        super().__init__()


class FewerArguments(Encoder):
    def __init__(self, input_size: int) -> None:
        super().__init__()


class ReturnsNone(StackEncoder):
    def make_norm(self, size: int) -> Any:
        return None


class NormRaises(StackEncoder):
    def make_norm(self, size: int) -> Any:
        return self.not_there


class NoMakeNorm(StackEncoder):
    pass


class NormWithoutMask(StackEncoder):
    """What anybody tries first."""

    def make_norm(self, size: int) -> nn.Module:
        return nn.LayerNorm(size)


class NormIsAFunction(StackEncoder):
    def make_norm(self, size: int) -> Any:
        return lambda x, mask: x


class Tuple(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
        return x, mask


class NormGivesTwo(StackEncoder):
    def make_norm(self, size: int) -> nn.Module:
        return Tuple()


class Narrow(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x.mean(-1)


class NormLosesAnAxis(StackEncoder):
    def make_norm(self, size: int) -> nn.Module:
        return Narrow()


class Unlucky(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x / self.deviation  # type: ignore[operator]


class NormForwardRaises(StackEncoder):
    def make_norm(self, size: int) -> nn.Module:
        return Unlucky()


class NotATensor(Encoder):
    def __init__(self, input_size: int, layers: list[Any], norm: Any) -> None:
        super().__init__()
        self.output_size = input_size

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        return None


@pytest.mark.parametrize(
    ("cls", "message", "reason"),
    [
        (Plain, "possible: a subclass of asrkit.Encoder", "encoder_contract"),
        (Raises, "Raises) cannot be built: KeyError: 'forgot'", "broken_plugin"),
        (NoSize, "NoSize) has output_size = None", "encoder_contract"),
        (FewerArguments, "does not take these options", "plugin_option"),
        (ReturnsNone, "ReturnsNone.make_norm(8) returns None; possible: an nn.Module", "encoder_contract"),
        (NormRaises, "NormRaises.make_norm(8) fails: AttributeError", "broken_plugin"),
        (NoMakeNorm, "NoMakeNorm must define make_norm(size)", "broken_plugin"),
        (NormWithoutMask, "returns a LayerNorm, whose forward does not take x, mask (too many", "encoder_contract"),
        (NormIsAFunction, "NormIsAFunction.make_norm(8) returns a function", "encoder_contract"),
        (NormGivesTwo, "the norm Tuple returns a tuple for x (1, ", "encoder_contract"),
        (NormLosesAnAxis, "the norm Narrow returns a tensor (1, ", "encoder_contract"),
        (NormForwardRaises, ", in forward: AttributeError: 'Unlucky' object has no attribute", "broken_plugin"),
        (NotATensor, "(NotATensor) returns a NoneType", "encoder_contract"),
    ],
)
def test_encoders_that_break_the_contract(
    recipe_file: Path,
    capsys: pytest.CaptureFixture[str],
    registered: Callable[[str, Any], None],
    cls: type,
    message: str,
    reason: str,
) -> None:
    registered("mine", cls)
    assert main(["show", str(recipe_file), "--encoder=mine"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert f"error[{reason}]" in err


@pytest.mark.parametrize(
    ("api", "side"), [(2, "asrkit is the older side"), (0, "the plugin is"), (None, "the plugin is")]
)
def test_another_api_is_refused_before_anything_is_built(api: Any, side: str) -> None:
    built = []

    class Foreign(Encoder):
        asrkit_api = api

        def __init__(self, *_: Any, **__: Any) -> None:
            built.append(1)

    with pytest.raises(RecipeError, match=side) as caught:
        registry.register_encoder("foreign")(Foreign)
    assert (caught.value.reason, built) == ("plugin_api", [])
    assert all(plugin.name != "foreign" for plugin in registry.list_plugins("encoders"))


def test_another_api_of_an_installed_package_is_refused(
    monkeypatch: pytest.MonkeyPatch, resolved: Callable[..., dict[str, Any]]
) -> None:
    from asrkit.model import build_encoder

    class Entry:
        name, value, dist = "foreign", "theirs:Foreign", None

        def load(self) -> type:
            return type("Foreign", (Encoder,), {"asrkit_api": 99})

    real = registry.entry_points
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [*real(group=group), *([Entry()] if group == "asrkit.encoders" else [])]
    )
    recipe = resolved(("encoder", "foreign"))
    validate(recipe)  # the name is there
    with pytest.raises(RecipeError, match="declares asrkit_api = 99, this asrkit speaks 1"):
        build_encoder(recipe, 8)
