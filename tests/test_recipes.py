"""Every recipe of the project builds, runs forward and backward, and the four of the question train with every
encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import make_corpus

from asrkit.ctc import ctc_loss
from asrkit.entries import TAKERS, options_of, signature
from asrkit.errors import RecipeError
from asrkit.experiment import train
from asrkit.layers import ACTIVATIONS
from asrkit.model import build_model, parameter_count
from asrkit.recipe import load_recipe
from asrkit.recipe.overrides import LAYER_OPTIONS
from asrkit.recipe.schema import SCHEMA
from asrkit.registry import list_plugins

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "parts")
STUDIES = [path for path in FILES if path.name.endswith("study.yaml")]  # of recipes; see tests/test_study.py
AS_POSTED = [path for path in FILES if path.parent.name == "as_posted"]  # known defects; see tests/test_defects.py
RECIPES = [path for path in FILES if path not in STUDIES + AS_POSTED] + AS_POSTED
QUESTION = ("model1", "model2", "model3", "model3_conv")
ENCODERS = ("none", "layer_norm", "frame_batch_norm", "sequence_batch_norm")
STRATEGIES = sorted(plugin.name for plugin in list_plugins("encoders") if plugin.package == "asrkit")
ARMS = [(model, encoder) for model in QUESTION for encoder in ENCODERS]


def recipe(name: str, *overrides: tuple[str, Any]) -> dict[str, Any]:
    path = next(path for path in RECIPES if path.stem == name)
    return load_recipe(path, [(key, str(value)) for key, value in overrides], known=SCHEMA)


def test_the_recipes_are_counted() -> None:
    assert [path.stem for path in RECIPES] == [
        "depth",
        "model1",
        "model2",
        "model3",
        "model3_conv",
        "demo",
        "peer_speechbrain_ctc",
        "model1",
        "model2",
        "model3",
    ]
    assert [path.name for path in STUDIES] == [
        "answer_study.yaml", "cures_study.yaml", "depth_study.yaml", "posted_study.yaml", "real_study.yaml",
        "study.yaml",
        "demo_study.yaml",
    ]  # fmt: skip
    assert len(ARMS) == 16
    assert set(ENCODERS) < set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_an_arm_of_every_model(name: str) -> None:
    """Built at a small width, and the same features of one second go through."""
    for path in RECIPES[:5]:
        model = build_model(recipe(path.stem, ("encoder", name), ("width", 16)), 29).eval()
        log_probs, lengths = model.acoustic(torch.randn(2, 101, model.features.size), torch.tensor([101, 60]))
        assert log_probs.isfinite().all()
        assert lengths[0] == log_probs.shape[1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_opens_with_its_command(path: Path) -> None:
    head = path.read_text(encoding="utf-8").splitlines()[:3]
    assert all(line.startswith("# ") for line in head)
    assert any(f"asrkit train {path.relative_to(ROOT)} " in line for line in head)


@pytest.mark.parametrize(
    ("model", "encoder", "millions"),
    # normalization-facts of the question's notebooks: printed layers, counted there; 11 blocks as in the question's
    # text
    [("model1", "layer_norm", 7.24), ("model2", "none", 23.14), ("model3", "layer_norm", 49.78)],
)
def test_parameter_counts_of_the_question(model: str, encoder: str, millions: float) -> None:
    built = build_model(recipe(model, ("encoder", encoder)), num_labels=29)
    assert built.features.size == 128
    assert parameter_count(built.acoustic) / 1e6 == pytest.approx(millions, abs=0.005)


def test_ten_blocks_as_the_notebook_printed() -> None:
    ten = recipe("model3", ("layers.0.repeat.times", 10))
    assert parameter_count(build_model(ten, 29).acoustic) / 1e6 == pytest.approx(45.05, abs=0.005)


def test_depth_is_model3_conv_with_a_dial() -> None:
    """The same weights and outputs; with residual connections the same weights, and each block adds its input."""
    models = [
        build_model(recipe(name, ("width", 8), *options), 29).eval()
        for name, options in (("model3_conv", ()), ("depth", ()), ("depth", (("residual", True),)))
    ]
    first, plain, residual = (list(model.acoustic.parameters()) for model in models)
    assert len(first) == len(plain) == len(residual)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, plain, residual, strict=True))
    x, lengths = torch.randn(2, 60, 128), torch.tensor([60, 41])
    outputs = [model.acoustic(x, lengths)[0] for model in models]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-2)
    shallow = build_model(recipe("depth", ("width", 8), ("depth", 1), ("residual", True)), 29)
    assert len(list(shallow.parameters())) < len(plain)


def test_siblings_differ_in_name_encoder_and_layers_only() -> None:
    rest = []
    for name in QUESTION:
        data = recipe(name)
        for key in ("name", "encoder", "layers"):
            data.pop(key)
        rest.append(data)
    assert all(other == rest[0] for other in rest[1:])


@pytest.mark.parametrize("model", QUESTION)
def test_all_arms_start_from_the_same_weights_outside_their_norms(model: str) -> None:
    def weights(encoder: str) -> dict[str, torch.Tensor]:
        built = build_model(recipe(model, ("encoder", encoder), ("width", 8)), 29)
        return {name: value for name, value in built.acoustic.named_parameters() if ".norm." not in name}

    base = weights("none")
    assert len(base) > 5
    for encoder in ENCODERS[1:]:
        other = weights(encoder)
        assert other.keys() == base.keys()
        assert all(torch.equal(other[name], base[name]) for name in base)
    norms = [
        n
        for n, _ in build_model(recipe(model, ("encoder", "layer_norm"), ("width", 8)), 29).named_parameters()
        if ".norm." in n
    ]
    assert norms  # the slot is there in every recipe


def test_none_is_the_model_without_the_slot() -> None:
    """Bit by bit, with weights drawn the same way."""
    with_slot = recipe("model2", ("encoder", "none"), ("width", 8))
    without = recipe("model2", ("encoder", "none"), ("width", 8))
    without["layers"].remove("norm")
    x, lengths = torch.randn(2, 40, 128), torch.tensor([40, 25])
    outputs = [build_model(r, 29).eval().acoustic(x, lengths)[0] for r in (with_slot, without)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("model", "encoder"), ARMS)
def test_every_arm_runs_forward_and_backward(model: str, encoder: str) -> None:
    built = build_model(recipe(model, ("encoder", encoder), ("width", 8)), 29)
    x, lengths = torch.randn(3, 60, 128), torch.tensor([60, 50, 31])
    log_probs, out = built.acoustic(x, lengths)
    assert out.tolist() == [built.acoustic.encoder.num_frames(n) for n in lengths.tolist()]
    assert log_probs.shape[1] == built.acoustic.encoder.num_frames(60)
    ctc_loss(log_probs, out, torch.tensor([[1, 2], [3, 3], [4, 5]]), torch.tensor([2, 2, 2])).sum().backward()
    for name, parameter in built.acoustic.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    # In evaluation an utterance does not depend on its batch, nor on how it is padded.
    built.eval()
    together = built.acoustic(x, lengths)[0]
    for i, n in enumerate(lengths.tolist()):
        alone = built.acoustic(x[i : i + 1, :n], lengths[i : i + 1])[0][0]
        assert torch.allclose(together[i, : len(alone)], alone, atol=1e-5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), train=6, dev=2, test=0)


@pytest.mark.parametrize(("model", "encoder"), ARMS)
def test_every_arm_trains_an_epoch(tmp_path: Path, corpus: Path, model: str, encoder: str) -> None:
    """From audio files to a bundle, with the recipe as it is but for width, epochs and the corpus of tones."""
    data = recipe(
        model,
        ("encoder", encoder),
        ("width", 8),
        ("data.root", corpus),
        ("data.test", "null"),
        ("data.cache", corpus / "cache"),
        ("training.epochs", 1),
        ("training.tensorboard", "false"),
    )
    result = train(data, "", tmp_path / "run", say=lambda _: None)
    assert result.last["train"]["utterances"] == 6
    assert (result.bundle / "config.json").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_misspelled_override_at_any_depth_is_an_error(path: Path) -> None:
    from asrkit.errors import RecipeError

    for wrong, right in (
        ("encodr", "encoder"),
        ("training.epoch", "epochs"),
        ("data.rot", "root"),
        ("norm.epss", "eps"),
    ):
        with pytest.raises(RecipeError, match=f"did you mean '{right}'"):
            load_recipe(path, [(wrong, "1")], known=SCHEMA)


def recurrent_paths(layers: Any, at: str = "layers") -> list[str]:
    """The command-line paths of all recurrent layers of resolved `layers:`."""
    found = []
    for index, layer in enumerate(layers):
        name, options = next(iter(layer.items())) if isinstance(layer, dict) else (layer, None)
        here = f"{at}.{index}.{name}"
        if name.removeprefix("bi") in ("gru", "lstm"):
            found.append(here)
        elif name in ("repeat", "residual"):
            inner = options["layers"] if isinstance(options, dict) else options
            found += recurrent_paths(inner, f"{here}.layers" if isinstance(options, dict) else here)
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_placements_are_chosen_on_the_command_line(path: Path) -> None:
    """With any recipe, however it writes its layers; the size still follows `width`."""
    plain = recipe(path.stem, ("width", 16))
    places = recurrent_paths(plain["layers"])
    assert places
    for place in places:
        changed = recipe(path.stem, ("width", 16), (f"{place}.norm", "recurrent"), ("encoder", "layer_norm"))
        model = build_model(changed, 29)
        norms = [name for name, _ in model.named_parameters() if "recurrent_norms" in name]
        assert norms
        widths = {p.shape[-1] for name, p in model.named_parameters() if name.endswith("weight_recurrent")}
        assert widths <= {8, 16}  # half of `width` in the peer's recipe
    whole = recipe(path.stem, ("width", 16), (places[0], "{size: 8, norm: gates}"))
    assert recurrent_paths(whole["layers"]) == places
    with pytest.raises(RecipeError, match=r"'nrom' is not a key of .* 'norm'"):
        recipe(path.stem, ("width", 16), (f"{places[0]}.nrom", "gates"))


def test_the_options_of_layers_are_known_without_torch() -> None:
    assert set(LAYER_OPTIONS) == ({*TAKERS, "bigru", "bilstm", "repeat"} - set(ACTIVATIONS))
    for name, options in LAYER_OPTIONS.items():
        if name == "repeat":
            assert all(f"{option}:" in signature(name) for option in options)
            continue
        assert options_of(name, 3) == {options[0]: 3}
        assert options_of(name, dict.fromkeys(options)) == dict.fromkeys(options)
        assert len(signature(name).split(", ")) == len(options)
