"""Every strategy in every placement of every recurrent layer against the NumPy oracle: outputs, running statistics,
gradients."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import norm_product
import numpy as np
import pytest
import torch
from norm_oracle import ORACLES, Array, weight_norm
from norm_product import assert_running_equal, build, oracle_of, our_strategies, scatter_affine, use_backend
from recurrent_oracle import PLACEMENTS, Layer, directional_derivative
from torch import Tensor, nn

from asrkit.encoders import Encoder
from asrkit.errors import RecipeError

STRATEGIES = our_strategies()
# Steps with one and two live utterances and steps beyond the storage of frame-wise BN are among them.
TRAIN = ([5, 3, 6, 3], [2, 5, 4])
CALM = (
    [6, 3, 6, 3, 5, 6, 4],
    [4, 4, 2, 4, 4],
)  # for float32: of two utterances that are much alike, it keeps noise
TEST = [7, 1, 4]
INSIDE = ("recurrent", "hidden", "joined")  # the norm is a step of the recurrence


def refused(name: str, placement: str) -> bool:
    return placement in INSIDE and name in ORACLES and not ORACLES[name].in_recurrence


ALL = list(itertools.product(STRATEGIES, PLACEMENTS))
CASES = [case for case in ALL if not refused(*case)]
EVERY = pytest.mark.parametrize(("name", "placement"), CASES, ids=str)
CELLS = pytest.mark.parametrize("cell", ["gru", "lstm"])
DIRECTIONS = pytest.mark.parametrize("bidirectional", [False, True], ids=["uni", "bi"])

# Options of the layer that change where norms sit, each with the placements and cells it is for.
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    *[(cell, place, {"per_gate": True}) for cell in ("gru", "lstm") for place in ("gates", *INSIDE)],
    *[("lstm", place, {"cell_norm": "output"}) for place in ("none", "gates", "hidden", "joined")],
    *[("lstm", place, {"cell_norm": "stored"}) for place in ("none", "input", "gates", "recurrent", "joined")],
    ("lstm", "recurrent", {"cell_norm": "none", "per_gate": True}),
]


def fits(name: str, cell: str, placement: str, options: dict[str, Any]) -> bool:
    """Whether a strategy can be in a variant, which may be inside the recurrence by its cell norm alone."""
    inside = placement in INSIDE or options.get("cell_norm", "none") != "none"
    return not inside or ORACLES[name].in_recurrence


def ragged(lengths: list[int], extra: int = 0, inputs: int = 4) -> tuple[Tensor, Tensor]:
    """x (B, T, C) in float64 with NaN in the padding, lengths (B,)."""
    x = torch.randn(len(lengths), max(lengths) + extra, inputs, dtype=torch.float64) * 1.5 + 0.5
    for b, length in enumerate(lengths):
        x[b, length:] = float("nan")
    return x, torch.tensor(lengths)


def backends(placement: str) -> tuple[str, ...]:
    """Those with code of their own: a scan and torch's kernels, or a scan and the generic steps."""
    return ("scan", "steps") if placement in INSIDE else ("scan", "fused")


def pair(name: str, cell: str, placement: str, bidirectional: bool, **options: Any) -> tuple[Encoder, Layer]:
    """A product with gains and biases of its own, and its oracle."""
    encoder = build(name, cell, placement, bidirectional, **options)
    scatter_affine(encoder)
    return encoder, oracle_of(encoder, name, cell, placement, **options)


def clean(x: Tensor) -> Array:
    return np.nan_to_num(x.numpy())


def assert_agree(encoder: Encoder, oracle: Layer, exact: bool, extra: int = 0) -> None:
    """Two training batches and a test batch; outputs to 1e-5 and running statistics to 1e-6, or, in float64, 1e-9."""
    encoder = copy.deepcopy(encoder).to(torch.float64 if exact else torch.float32)
    oracle = copy.deepcopy(oracle)
    close, statistics = (1e-9, 1e-9) if exact else (1e-5, 1e-6)
    batches = TRAIN if exact else CALM
    for training, lengths in ((True, batches[0]), (True, batches[1]), (False, TEST)):
        encoder.train(training)
        oracle.train(training)
        x, counts = ragged(lengths, extra)
        y, out = encoder(x if exact else x.float(), counts)
        assert torch.equal(out, counts)
        # What is given to the product in float32 is given to the oracle too.
        given = x if exact else x.float().double()
        np.testing.assert_allclose(y.detach().double().numpy(), oracle.forward(clean(given), lengths), 0, close)
        assert_running_equal(encoder, oracle, statistics)


def test_every_strategy_of_ours_has_an_oracle() -> None:
    """A new strategy without one must fail here, not be left out."""
    assert sorted(ORACLES) == STRATEGIES


def assert_refused(name: str, cell: str, placement: str, **options: Any) -> None:
    """When the encoder is built, or at the latest with its first batch, in words."""
    with pytest.raises(RecipeError) as caught:
        build(name, cell, placement, **options)(torch.randn(2, 3, 4), torch.tensor([3, 2]))
    assert caught.value.reason == "placement"
    assert name in str(caught.value)
    assert caught.value.possible
    assert caught.value.fix


@CELLS
@DIRECTIONS
@EVERY
def test_agrees_with_numpy(name: str, placement: str, cell: str, bidirectional: bool) -> None:
    encoder, oracle = pair(name, cell, placement, bidirectional)
    assert_agree(encoder, oracle, exact=False)  # the backend that asrkit takes by itself
    for backend in backends(placement):
        use_backend(encoder, backend)
        assert_agree(encoder, oracle, exact=True)


@pytest.mark.parametrize(("cell", "placement", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("name", STRATEGIES)
def test_variants_agree_with_numpy(name: str, cell: str, placement: str, options: dict[str, Any]) -> None:
    if not fits(name, cell, placement, options):
        assert_refused(name, cell, placement, **options)
        return
    encoder, oracle = pair(name, cell, placement, True, **options)
    for backend in ("auto", "steps"):
        use_backend(encoder, backend)
        assert_agree(encoder, oracle, exact=True)


UNMASKED = ["frame_batch_norm", "sequence_batch_norm", "batch_renorm", "group_norm", "instance_norm"]


UNMASKED_CASES = [
    (name, placement)
    for name, placement in itertools.product(UNMASKED, ("input", "gates", "recurrent", "joined"))
    if not refused(name, placement) and (name, placement) != ("group_norm", "joined")  # one frame has no padding
]


@CELLS
@pytest.mark.parametrize(("name", "placement"), UNMASKED_CASES, ids=str)
def test_unmasked_statistics_agree_with_numpy(name: str, placement: str, cell: str) -> None:
    """Padding counts, in every utterance and beyond the longest one."""
    encoder, oracle = pair(name, cell, placement, True, masked=False)
    assert_agree(encoder, oracle, exact=True, extra=2)
    masked = oracle_of(encoder, name, cell, placement)
    for layer in (oracle, masked):
        layer.train()
    x = clean(ragged(TRAIN[0])[0])
    assert np.abs(oracle.forward(x, TRAIN[0]) - masked.forward(x, TRAIN[0])).max() > 1e-2


@CELLS
@pytest.mark.parametrize("placement", ["input", "gates", *INSIDE])
def test_steps_beyond_those_of_training_agree_with_numpy(placement: str, cell: str) -> None:
    """Frame-wise BN at steps never seen: the pooled tail holds the last steps only, not all of them."""
    encoder, oracle = pair("frame_batch_norm", cell, placement, True, max_steps=12, min_count=1)
    assert_agree(encoder, oracle, exact=True)


@pytest.mark.parametrize(("name", "placement"), [case for case in ALL if refused(*case)], ids=str)
@CELLS
def test_what_needs_several_frames_is_refused_in_a_recurrence(name: str, placement: str, cell: str) -> None:
    assert_refused(name, cell, placement)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        build("group_norm", "gru", "gates", size=3, groups=4)
    assert "divi" in str(caught.value)


@pytest.mark.parametrize("placement", ["input", "gates", "recurrent", "joined"])
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("none", "weight_norm", "instance_norm")])
def test_the_initial_gain_is_that_of_the_layer_or_of_all(name: str, placement: str) -> None:
    for options, expected in (({}, 1.0), ({"gain": 0.1}, 0.1)):
        (layer,) = norm_product.recurrent_layers(build(name, "lstm", placement, **options))
        for kind in ("input", *norm_product.KINDS):
            gains = norm_product.row(norm_product.norms_of(layer, kind), "weight")
            if gains is not None:
                np.testing.assert_allclose(gains, expected)


def parameters(encoder: nn.Module) -> list[Tensor]:
    return [parameter for parameter in encoder.parameters() if parameter.requires_grad]


def restored(encoder: nn.Module) -> Any:
    """A function that puts all buffers back to what they are now: finite differences call a layer many times."""
    kept = {name: buffer.clone() for name, buffer in encoder.named_buffers()}

    def restore() -> None:
        for name, buffer in encoder.named_buffers():
            buffer.copy_(kept[name])

    return restore


def assert_gradcheck(name: str, cell: str, placement: str, bidirectional: bool, **options: Any) -> None:
    """In training, from the first batch on: nothing that the gradient takes as a constant depends on x here."""
    if name == "group_norm":
        options["groups"] = 1  # groups of one feature are refused inside a recurrence
    encoder = build(name, cell, placement, bidirectional, inputs=2, size=2, **options).double()
    scatter_affine(encoder)
    lengths = [4, 2, 4]
    x = torch.nan_to_num(ragged(lengths, inputs=2)[0]).requires_grad_()
    restore = restored(encoder)

    def run(x: Tensor, *_: Tensor) -> Tensor:
        restore()
        y: Tensor = encoder(x, torch.tensor(lengths))[0]
        return y

    for backend in backends(placement):
        use_backend(encoder, backend)
        assert torch.autograd.gradcheck(run, (x, *parameters(encoder)), fast_mode=True, atol=1e-6, rtol=1e-5)


@CELLS
@DIRECTIONS
@EVERY
def test_gradcheck(name: str, placement: str, cell: str, bidirectional: bool) -> None:
    assert_gradcheck(name, cell, placement, bidirectional)


@pytest.mark.parametrize(
    ("name", "cell", "placement", "options"),
    [(name, *variant) for variant in VARIANTS for name in STRATEGIES if fits(name, *variant)],
    ids=str,
)
def test_gradcheck_of_variants(name: str, cell: str, placement: str, options: dict[str, Any]) -> None:
    assert_gradcheck(name, cell, placement, True, **options)


@CELLS
@pytest.mark.parametrize(("name", "placement"), UNMASKED_CASES, ids=str)
def test_gradcheck_of_unmasked_statistics(name: str, placement: str, cell: str) -> None:
    assert_gradcheck(name, cell, placement, True, masked=False)


def test_no_combination_is_left_out() -> None:
    """All strategies in all placements, but the three that instance norm refuses; with them all of the variants."""
    assert len(CASES) == len(STRATEGIES) * len(PLACEMENTS) - 3
    assert {case for case in ALL if refused(*case)} == {("instance_norm", place) for place in INSIDE}
    lost = [(name, *variant) for variant in VARIANTS for name in STRATEGIES if not fits(name, *variant)]
    assert {name for name, *_ in lost} == {"instance_norm"}
    assert len(lost) == sum(placement in INSIDE or "cell_norm" in options for _, placement, options in VARIANTS)


@CELLS
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@EVERY
def test_gradients_of_a_warm_layer_are_those_of_numpy(name: str, placement: str, cell: str, training: bool) -> None:
    """Along a random direction of the input and all parameters; running statistics, r and d are constants."""
    encoder, oracle = pair(name, cell, placement, True)
    encoder.double()
    for lengths in TRAIN:  # warm up both
        x, counts = ragged(lengths)
        oracle.train()
        encoder(x, counts)
        oracle.forward(clean(x), lengths)
    lengths = [5, 2, 3]
    x = torch.nan_to_num(ragged(lengths)[0])
    variables = [x, *parameters(encoder)]
    moves = [torch.randn_like(variable) for variable in variables]
    weights = torch.randn(3, 5, 8, dtype=torch.float64)
    start = [variable.detach().clone() for variable in variables]
    oracle.train(training)
    encoder.train(training)
    restore = restored(encoder)
    recorded = copy.deepcopy(oracle)
    for norm in recorded.all_norms():
        norm.tape.clear()
    recorded.forward(clean(x), lengths)

    def loss(amount: float) -> float:
        with torch.no_grad():
            for variable, value, move in zip(variables, start, moves, strict=True):
                variable.copy_(value + amount * move)
        moved, fresh = copy.deepcopy(oracle), oracle_of(encoder, name, cell, placement)
        moved.weights = fresh.weights
        tapes = zip(moved.all_norms(), fresh.all_norms(), recorded.all_norms(), strict=True)
        for norm, gained, played in tapes:
            norm.gain, norm.bias, norm.tape = gained.gain, gained.bias, played.tape
            norm.replay()
        return float((moved.forward(x.detach().numpy(), lengths) * weights.numpy()).sum())

    expected = directional_derivative(loss)
    loss(0.0)
    restore()
    x.requires_grad_()
    for backend in backends(placement):
        restore()
        use_backend(encoder, backend)
        y = encoder(x, torch.tensor(lengths))[0]
        grads = torch.autograd.grad((y * weights).sum(), variables, allow_unused=True)
        found = sum(float((g * move).sum()) for g, move in zip(grads, moves, strict=True) if g is not None)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("placement", PLACEMENTS)
@CELLS
def test_weight_norm_holds_the_weights_that_the_norm_would_follow(placement: str, cell: str) -> None:
    """w = g v / ||v|| for every row of the weights whose sums the placement normalizes; nothing changes at first."""
    torch.manual_seed(5)
    plain = norm_product.recurrent_layers(build("none", cell, placement))[0]
    torch.manual_seed(5)
    layer = norm_product.recurrent_layers(build("weight_norm", cell, placement))[0]
    normalized = {
        "none": [], "input": ["weight_input"], "gates": ["weight_input"], "hidden": ["weight_recurrent"],
        "recurrent": ["weight_input", "weight_recurrent"], "joined": ["weight_input", "weight_recurrent"],
    }[placement]  # fmt: skip
    given = getattr(layer, "parametrizations", {})
    assert sorted(given) == normalized
    for key in ("weight_input", "weight_recurrent"):
        np.testing.assert_allclose(norm_product.effective(layer, key), norm_product.effective(plain, key), atol=1e-6)
    scatter_affine(layer)
    for key in normalized:
        g, v = (norm_product.array(getattr(given[key], f"original{k}")) for k in (0, 1))
        np.testing.assert_allclose(norm_product.effective(layer, key), weight_norm(g[..., 0], v), atol=1e-6)
        assert not np.allclose(norm_product.effective(layer, key), norm_product.effective(plain, key), atol=1e-2)


def test_several_layers_have_norms_of_their_own() -> None:
    encoder = build("sequence_batch_norm", "gru", "recurrent", layers=3)
    first, second, third = norm_product.recurrent_layers(encoder)
    assert first.gate_norms is not second.gate_norms
    assert second.weight_input.shape[2] == third.weight_input.shape[2] == 8
    encoder.train()(*(part.float() if part.is_floating_point() else part for part in ragged(TRAIN[0])))
    means = [norm_product.row(layer.recurrent_norms, "mean") for layer in (first, second, third)]
    assert not np.allclose(means[1], means[2])
