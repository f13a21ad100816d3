"""Known faults, switched on one by one: each does what it says, the diagnosis names each, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import make_corpus

from asrkit.bundle import load_bundle
from asrkit.ctc import required_frames
from asrkit.defects import FaultyLoss, Memory, forget
from asrkit.diagnostics import check_model
from asrkit.diagnostics.clips import some_clips
from asrkit.diagnostics.run import diagnose_run
from asrkit.errors import NumericError, RecipeError
from asrkit.experiment import train
from asrkit.features import Fbank
from asrkit.model import build_model, parameter_count
from asrkit.preparation import prepare
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import DEFECTS, SCHEMA
from asrkit.recipe.validation import validate
from asrkit.recurrent import Recurrent

ROOT = Path(__file__).resolve().parents[1]
AS_POSTED = ROOT / "recipes" / "common_voice_es" / "as_posted"

# Two recurrent layers: recurrence over the batch axis spares the first, as in the code it comes from.
RECIPE = """
name: two
encoder: sequence_batch_norm
width: 16
layers:
  - context: {left: 1, right: 1, stride: 2}
  - linear: !ref <width>
  - norm
  - relu
  - bigru: !ref <width>
  - norm
  - bigru: !ref <width>
  - dropout: 0.1
data: {root: null, sample_rate: 8000, test: null}
features: {name: fbank, options: {size: 16, high_hz: 0.0}}
training: {epochs: 2, lr: 1.0e-2, schedule: constant, batch_frames: 600, tensorboard: false, curves: false}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), train=24, dev=4, test=0)


def recipe(folder: Path, corpus: Path, *defects: str, **options: Any) -> dict[str, Any]:
    path = folder / "two.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    given = {"data.root": corpus, "data.cache": folder / "cache", "defects": f"[{', '.join(defects)}]", **options}
    return load_recipe(path, [(key, str(value)) for key, value in given.items()], known=SCHEMA)


# --- the diagnosis names each of them

NAMES = {
    "mel_axis_lengths": {"lengths_wrong_axis", "impossible_targets"},  # the second because of the first
    "zero_infinity": {"zero_infinity"},
    "normal_biases": {"wild_bias_scale"},
    "batch_axis_recurrence": {"recurrence_over_batch"},
    "linear_power_mel": {"linear_features"},
    "carried_state": {"leaked_state"},
    "padding_first": {"padding_first"},
}


def diagnosed(folder: Path, corpus: Path, *defects: str) -> tuple[set[str], list[str]]:
    """Codes of what `asrkit diagnose` finds, and the lines that training printed about findings."""
    said: list[str] = []
    try:
        train(recipe(folder, corpus, *defects), "", folder / "run", say=said.append)
    except NumericError:
        assert defects == ("mel_axis_lengths",)  # an infinite loss, and nothing that hides it
    findings = diagnose_run(folder / "run").findings
    return {one.code for one in findings if one.severity != "note"}, [s for s in said if s.startswith("diagnosis")]


def test_every_defect_has_its_finding() -> None:
    assert set(NAMES) == set(DEFECTS)


def test_without_defects_nothing_is_found(tmp_path: Path, corpus: Path) -> None:
    assert diagnosed(tmp_path, corpus) == (set(), [])


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_alone_is_named_and_nothing_else(tmp_path: Path, corpus: Path, name: str) -> None:
    found, said = diagnosed(tmp_path, corpus, name)
    assert found == NAMES[name]
    # What the first batch shows is printed before anything is trained.
    early = {"mel_axis_lengths": 2, "normal_biases": 1, "linear_power_mel": 1}
    assert len(said) == early.get(name, 0)


def test_all_defects_at_once_are_all_named_and_nothing_else(tmp_path: Path, corpus: Path) -> None:
    found, said = diagnosed(tmp_path, corpus, *DEFECTS)
    assert found == set.union(*NAMES.values())
    assert len(said) == 5  # lengths, impossible targets, zero_infinity, features, biases


OF_MODELS = {"leaked_state", "recurrence_over_batch", "padding_first"}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["model1", "model2", "model3"])
def test_all_defects_of_the_shipped_models_at_once(tmp_path: Path, corpus: Path, name: str, seed: int) -> None:
    """Untrained: one fault hides no other, and none is named that is not there. The state of random weights that is
    carried is as loud as what it is carried into."""
    options = {
        "width": 16, "seed": seed, "defects": f"[{', '.join(DEFECTS)}]", "data.root": corpus, "data.test": "null",
        "data.cache": tmp_path / "cache", "data.sample_rate": 8000, "features.options.high_hz": 4000.0,
    }  # fmt: skip
    narrow = load_recipe(
        AS_POSTED / f"{name}.yaml", [(key, str(value)) for key, value in options.items()], known=SCHEMA
    )
    prepared = prepare(narrow, ("train",))
    batch = some_clips(prepared.splits["train"], 8)
    prepared.model.acoustic.objective = None
    found = check_model(
        prepared.model.acoustic, batch.features, batch.lengths, batch.targets, batch.target_lengths
    )  # fmt: skip
    # Recurrence over the batch is put in place of the other's way through it: model3 alone has a layer that is spared.
    expected = OF_MODELS - (set() if name == "model3" else {"padding_first"})
    depth = {"vanishing_gradients", "input_independent_layer", "dead_relus"}
    assert {one.code for one in found if one.severity != "note"} - depth == expected | {
        "wild_bias_scale", "linear_features",
    }  # fmt: skip


# --- each does what it says


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 9, 5), torch.tensor([9, 6, 4])


def stacks(acoustic: nn.Module) -> list[Recurrent]:
    return [m for m in acoustic.modules() if isinstance(m, Recurrent)]


def built(tmp_path: Path, *defects: str) -> nn.Module:
    return build_model(recipe(tmp_path, tmp_path, *defects), 7).acoustic.eval()


def as_torch(stack: Recurrent, batch_first: bool) -> nn.GRU:
    """torch's own layer with the same weights: the oracle."""
    layer = stack.layers[0]
    gru = nn.GRU(stack.input_size, stack.size, bidirectional=True, batch_first=batch_first)
    with torch.no_grad():
        for d, suffix in enumerate(("", "_reverse")):
            for ours, theirs in (("weight_input", "weight_ih"), ("weight_recurrent", "weight_hh"),
                                 ("bias_input", "bias_ih"), ("bias_recurrent", "bias_hh")):  # fmt: skip
                getattr(gru, f"{theirs}_l0{suffix}").copy_(getattr(layer, ours)[d])
    return gru


def test_padding_first_is_torch_without_packing(tmp_path: Path) -> None:
    x, lengths = torch.randn(3, 9, 16), torch.tensor([9, 6, 4])
    stack = stacks(built(tmp_path, "padding_first"))[0]
    assert torch.allclose(stack(x, lengths), as_torch(stack, True)(x)[0], atol=1e-6)
    right = stacks(built(tmp_path))[0]
    assert not torch.allclose(right(x, lengths)[2, :4], stack(x, lengths)[2, :4], atol=1e-3)
    assert torch.allclose(right(x, lengths)[0], stack(x, lengths)[0], atol=1e-6)  # the longest has no padding


def test_batch_axis_recurrence_is_torch_without_batch_first(tmp_path: Path) -> None:
    first, second = stacks(built(tmp_path, "batch_axis_recurrence"))
    x, lengths = torch.randn(3, 9, 32), torch.tensor([9, 6, 4])
    assert first.fault is None
    assert torch.allclose(second(x, lengths), as_torch(second, False)(x)[0], atol=1e-6)


def test_carried_state_is_torch_with_the_last_state(tmp_path: Path) -> None:
    acoustic = built(tmp_path, "carried_state")
    stack = stacks(acoustic)[0]
    x, lengths = torch.randn(3, 9, 16), torch.full((3,), 9)
    gru = as_torch(stack, True)
    one, state = gru(x)
    two, _ = gru(x.flip(1), state)
    assert torch.allclose(stack(x, lengths), one, atol=1e-6)
    assert torch.allclose(stack(x.flip(1), lengths), two, atol=1e-6)
    forget(acoustic)
    assert torch.allclose(stack(x, lengths), one, atol=1e-6)
    # Larger and smaller batches: by place, zeros where there was nobody.
    wider, _ = gru(torch.cat([x, x]), torch.cat([state, torch.zeros_like(state)], 1))
    assert torch.allclose(stack(torch.cat([x, x]), torch.full((6,), 9)), wider, atol=1e-6)
    assert stack(x[:1], lengths[:1]).shape == (1, 9, 32)


def test_a_state_that_is_not_finite_is_not_carried() -> None:
    memory = Memory()
    memory.keep(0, torch.ones(1, 2, 3))
    memory.keep(0, torch.full((1, 2, 3), float("nan")))
    assert torch.equal(memory.start(0, torch.zeros(1, 2, 3)), torch.ones(1, 2, 3))


def test_normal_biases_change_biases_alone(tmp_path: Path) -> None:
    right, wrong = dict(built(tmp_path).named_parameters()), dict(built(tmp_path, "normal_biases").named_parameters())
    changed = [name for name in right if not torch.equal(right[name], wrong[name])]
    assert changed
    assert all("bias" in name.rsplit(".", 1)[1] and ".norm." not in name for name in changed)
    drawn = torch.cat([wrong[name].detach().flatten() for name in changed])
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.1)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.1)
    again = dict(built(tmp_path, "normal_biases").named_parameters())
    assert all(torch.equal(again[name], wrong[name]) for name in wrong)


def test_linear_power_mel_is_the_exponential_of_the_features(tmp_path: Path) -> None:
    wave, lengths = torch.randn(2, 4000) / 10, torch.tensor([4000, 2500])
    right, wrong = (build_model(recipe(tmp_path, tmp_path, *d), 7).features for d in ((), ("linear_power_mel",)))
    assert isinstance(wrong, Fbank)
    log, power = right(wave, lengths)[0], wrong(wave, lengths)[0]
    assert torch.allclose(log[0].exp(), power[0], rtol=1e-4)
    with pytest.raises(RecipeError, match="linear_power_mel with features mfcc"):
        build_model(
            recipe(tmp_path, tmp_path, "linear_power_mel", **{"features.name": "mfcc", "features.options": "{}"}), 7
        )


def test_the_loss_of_mel_axis_lengths_and_zero_infinity(tmp_path: Path) -> None:
    log_probs, lengths = torch.randn(3, 20, 7).log_softmax(-1), torch.tensor([20, 15, 12])
    targets, sizes = torch.randint(1, 7, (3, 9)), torch.tensor([3, 2, 9])
    faulty = FaultyLoss(recipe(tmp_path, tmp_path, "mel_axis_lengths", "zero_infinity"), features=16)
    expected = nn.functional.ctc_loss(
        log_probs.transpose(0, 1), targets, torch.full((3,), 8), sizes, reduction="none", zero_infinity=True
    )
    got = faulty(log_probs, lengths, targets, sizes, ("a", "b", "c"))
    assert torch.equal(got, expected)
    assert got[2] == 0.0
    assert (
        faulty.feasible(faulty.lengths(lengths, 20), [row[:n].tolist() for row, n in zip(targets, sizes, strict=True)])[
            2
        ]
        is False
    )
    assert required_frames(targets[2].tolist()) > 8
    assert faulty.lengths(lengths, 5).tolist() == [5, 5, 5]  # never more than there are
    right = FaultyLoss(recipe(tmp_path, tmp_path), features=16)
    assert torch.equal(right.lengths(lengths, 20), lengths)


def test_zero_infinity_keeps_what_cannot_be_aligned(tmp_path: Path, corpus: Path) -> None:
    """Its users train on such clips; without it they are excluded and counted."""
    options = {"layers.0.context.stride": 6, "data.max_bad": 1.0}
    kept = train(recipe(tmp_path, corpus, "zero_infinity", **options), "", tmp_path / "kept", say=lambda _: None)
    left = train(recipe(tmp_path, corpus, **options), "", tmp_path / "left", say=lambda _: None)
    assert kept.last["train"]["utterances"] == 24
    assert 0 < left.last["train"]["utterances"] < 24
    found = {one.code: one for one in diagnose_run(tmp_path / "kept").findings}
    assert found["zero_infinity"].severity == "error"
    assert "impossible_targets" in found
    assert {one.code for one in diagnose_run(tmp_path / "left").findings if one.severity != "note"} == set()


# --- bundles, recipes, validation


def test_a_bundle_keeps_its_defects_and_says_so(tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = train(recipe(tmp_path, corpus, *DEFECTS), "", tmp_path / "run", say=lambda _: None)
    with caplog.at_level(logging.WARNING, logger="asrkit"):
        bundle = load_bundle(result.bundle)
    assert "has known defects" in caplog.text
    assert bundle.config["recipe"]["defects"] == list(DEFECTS)
    assert not bundle.model.features.log  # type: ignore[union-attr]
    assert stacks(bundle.model.acoustic)[1].fault is not None
    healthy = train(recipe(tmp_path, corpus), "", tmp_path / "healthy", say=lambda _: None)
    caplog.clear()
    assert "defects" not in load_bundle(healthy.bundle).config["recipe"]
    assert caplog.text == ""


@pytest.mark.parametrize("value", ["[dead_relus]", "zero_infinity", "[zero_infinity, zero_infinity]", "null", "{}"])
def test_other_values_are_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"defects.*(possible: a list of mel_axis_lengths|)"):
        validate(load_recipe(path, [("defects", value)], known=SCHEMA))


def test_carried_state_and_a_norm_in_the_recurrence_do_not_go_together(tmp_path: Path) -> None:
    layers = "[{bigru: {size: 8, norm: recurrent}}]"
    with pytest.raises(RecipeError, match="carried_state with a norm inside"):
        build_model(recipe(tmp_path, tmp_path, "carried_state", layers=layers, encoder="layer_norm"), 7)


@pytest.mark.parametrize(("name", "millions"), [("model1", 7.24), ("model2", 23.14), ("model3", 45.05)])
def test_as_posted(tmp_path: Path, corpus: Path, name: str, millions: float) -> None:
    """The notebooks' sizes (normalization-facts 1.2), and a run of a narrow one whose faults are all named."""
    path = AS_POSTED / f"{name}.yaml"
    posted = load_recipe(path, known=SCHEMA)
    validate(posted)
    assert parameter_count(build_model(posted, 29).acoustic) / 1e6 == pytest.approx(millions, abs=0.005)
    options = {
        "width": 8, "data.root": corpus, "data.test": "null", "data.cache": tmp_path / "cache",
        "training.epochs": 1, "training.tensorboard": "false", "training.curves": "false", "training.batch_size": 12,
        "data.sample_rate": 8000, "features.options.high_hz": 4000.0,
        # as long in frames as the notebooks' clips were, which their 64 frames did not reach
        "features.options.window_ms": 16.0, "features.options.hop_ms": 4.0,
    }  # fmt: skip
    narrow = load_recipe(path, [(key, str(value)) for key, value in options.items()], known=SCHEMA)
    train(narrow, "", tmp_path / "run", say=lambda _: None)
    found = {one.code for one in diagnose_run(tmp_path / "run").findings if one.severity != "note"}
    expected = set.union(*(NAMES[defect] for defect in posted["defects"])) - {"impossible_targets"}
    assert expected <= found
    assert found - expected <= {"impossible_targets", "vanishing_gradients", "input_independent_layer", "dead_relus"}
