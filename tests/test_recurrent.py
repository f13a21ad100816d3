"""Recurrent layers against torch's own, one utterance at a time without padding, and against finite differences."""

from __future__ import annotations

import unittest.mock
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import asrkit.recurrent.layer
import asrkit.recurrent.scan
from asrkit import registry
from asrkit.errors import DataError, RecipeError
from asrkit.normalization import Frames, PaddedFrames, Rule, Standard, standardize
from asrkit.normalization.rows import RowNorm as RowNormRule
from asrkit.recurrent import Recurrent

LENGTHS = torch.tensor([7, 12, 1, 12, 5])
CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


@pytest.fixture(params=["gru", "lstm"])
def cell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["scan", "fused"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batch(lengths: Tensor = LENGTHS, size: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(len(lengths), int(lengths.max()), size, dtype=dtype)


def alone(module: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    """The oracle: torch's module on each utterance without padding, put into a zero batch."""
    out = [module(row[:n][None])[0][0] for row, n in zip(x, lengths.tolist(), strict=True)]
    return nn.utils.rnn.pad_sequence(out, batch_first=True)


class MaskedLayerNorm(nn.Module):
    """A norm for the gates that leaves NaN in padding, as a careless one may."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x).masked_fill(~mask[..., None], float("nan"))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_torch_and_its_gradients(cell: str, backend: str, bidirectional: bool) -> None:
    reference = CELLS[cell](6, 5, 2, bidirectional=bidirectional, batch_first=True)
    ours = Recurrent(6, 5, cell, bidirectional, layers=2, backend=backend)
    ours.load_from_torch(reference)
    x = batch().requires_grad_()
    x2 = x.detach().clone().requires_grad_()
    y, y2 = ours(x, LENGTHS), alone(reference, x2, LENGTHS)
    torch.testing.assert_close(y, y2, rtol=0, atol=2e-6)
    weight = torch.randn_like(y)  # not zero in padding: gradients that arrive there must be dropped
    (y * weight).sum().backward()
    (y2 * weight).sum().backward()
    torch.testing.assert_close(x.grad, x2.grad, rtol=0, atol=5e-6)
    for i, layer in enumerate(ours.layers):
        for d, suffix in enumerate(("", "_reverse")[: ours.directions]):
            for name, theirs in (("input", "ih"), ("recurrent", "hh")):
                for kind in ("weight", "bias"):
                    expected = getattr(reference, f"{kind}_{theirs}_l{i}{suffix}").grad
                    found = getattr(layer, f"{kind}_{name}").grad[d]
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_gradcheck_on_ragged_batches(cell: str, bidirectional: bool) -> None:
    ours = Recurrent(3, 2, cell, bidirectional, backend="scan").double()
    lengths = torch.tensor([2, 4, 0, 1])
    x = batch(lengths, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: ours(x, lengths), (x, *ours.parameters()))


def test_gradients_do_not_depend_on_the_chunks_of_the_backward_pass(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Recurrent(6, 5, cell, backend="scan")
    x = batch()
    grads = []
    for numbers in (1, 500, 1 << 20):  # one step at a time; some; all
        monkeypatch.setattr(asrkit.recurrent.scan, "CHUNK", numbers)
        grads.append(torch.autograd.grad(ours(x, LENGTHS).square().sum(), list(ours.parameters())))
    for found in grads[1:]:
        torch.testing.assert_close(found, grads[0], rtol=1e-5, atol=1e-5)


def test_scan_is_accurate_for_large_and_tiny_sums(cell: str) -> None:
    """The scan computes tanh through a sigmoid: compare it with float64 where that could lose digits."""
    for scale in (1e-3, 1.0, 30.0):
        ours = Recurrent(6, 5, cell, backend="scan")
        x = batch() * scale
        expected = Recurrent(6, 5, cell, backend="fused").double()
        expected.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x, LENGTHS).double(), expected(x.double(), LENGTHS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make_norm", [None, MaskedLayerNorm])
@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_and_neighbours_change_nothing(
    cell: str, backend: str, filler: float, make_norm: type | None, bidirectional: bool
) -> None:
    norm = "gates" if make_norm else "none"
    ours = Recurrent(6, 5, cell, bidirectional, layers=2, norm=norm, make_norm=make_norm, backend=backend)
    x = batch()
    real = torch.arange(x.shape[1]) < LENGTHS[:, None]
    clean = ours(x.masked_fill(~real[..., None], 0), LENGTHS)
    longer = torch.full((len(x), 20, 6), filler)
    longer[:, : x.shape[1]] = x.masked_fill(~real[..., None], filler)
    longer.requires_grad_()
    dirty = ours(longer, LENGTHS)
    torch.testing.assert_close(dirty[:, : x.shape[1]], clean, rtol=0, atol=1e-6)
    assert (dirty[:, x.shape[1] :] == 0).all()
    assert (clean[~real] == 0).all()
    dirty.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in ours.parameters())
    assert longer.grad is not None
    assert longer.grad[:, : x.shape[1]][real].any(1).all()
    assert (longer.grad[:, : x.shape[1]][~real] == 0).all()
    for b, n in enumerate(LENGTHS.tolist()):
        single = ours(x[b : b + 1, :n], LENGTHS[b : b + 1])
        torch.testing.assert_close(single[0], clean[b, :n], rtol=0, atol=1e-6)


def test_neighbours_do_not_reach_the_input_gradient(cell: str, backend: str) -> None:
    ours = Recurrent(6, 5, cell, layers=2, backend=backend)
    x = batch().requires_grad_()
    ours(x, LENGTHS)[1].sum().backward()
    assert x.grad is not None
    reached = x.grad.abs().sum((1, 2)) > 0
    assert reached.tolist() == [False, True, False, False, False]


def test_no_state_between_calls(cell: str, backend: str) -> None:
    ours = Recurrent(6, 5, cell, backend=backend)
    x = batch()
    first = ours(x, LENGTHS)
    ours(batch() * 100, LENGTHS)
    assert torch.equal(ours(x, LENGTHS), first)


def test_inference_equals_training_and_backward_can_run_twice(cell: str, backend: str) -> None:
    ours = Recurrent(6, 5, cell, backend=backend)
    x = batch().requires_grad_()
    y = ours(x, LENGTHS)
    with torch.inference_mode():
        assert torch.equal(ours(x, LENGTHS), y)
    first = torch.autograd.grad(y.square().sum(), [x, *ours.parameters()], retain_graph=True)
    again = torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def by_hand(layer: nn.Module, x: Tensor, direction: int, cell: str) -> Tensor:
    """One utterance (T, C), one direction, the norm on W_x x, in the simplest words."""
    x = x.flip(0) if direction else x
    w_h, b_x, b_h = layer.weight_recurrent[direction], layer.bias_input[direction], layer.bias_recurrent[direction]
    norm = layer.gate_norms[direction]
    sums = norm((x @ layer.weight_input[direction].T)[None], torch.ones(1, len(x), dtype=torch.bool))[0] + b_x
    h = c = x.new_zeros(w_h.shape[1])
    states = []
    for a in sums:
        b = w_h @ h + b_h
        if cell == "gru":
            (ar, au, ac), (br, bu, bc) = a.chunk(3), b.chunk(3)
            update = torch.sigmoid(au + bu)
            h = update * h + (1 - update) * torch.tanh(ac + torch.sigmoid(ar + br) * bc)
        else:
            i, f, g, o = (a + b).chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return torch.stack(states[::-1] if direction else states)


def test_norm_on_the_gates_against_a_loop_by_hand(cell: str, backend: str) -> None:
    ours = Recurrent(6, 5, cell, norm="gates", make_norm=MaskedLayerNorm, backend=backend).double()
    x = batch(dtype=torch.float64).requires_grad_()
    y = ours(x, LENGTHS)
    rows = [
        torch.cat([by_hand(ours.layers[0], row[:n], d, cell) for d in (0, 1)], 1)
        for row, n in zip(x, LENGTHS.tolist(), strict=True)
    ]
    expected = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    variables = [x, *ours.parameters()]
    found = torch.autograd.grad(y.square().sum(), variables)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), variables), rtol=0, atol=1e-10)


def test_the_norm_sees_each_direction_in_its_own_order_of_time(backend: str) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            seen.append((x, mask))
            return x

    sizes: list[int] = []
    ours = Recurrent(6, 5, norm="gates", make_norm=lambda size: sizes.append(size) or Spy(), backend=backend)  # type: ignore[func-returns-value]
    x = batch()
    ours(x, LENGTHS)
    assert sizes == [10, 5, 10, 5]  # reset and update share a norm, the candidate has its own, in each direction
    assert len(seen) == 4
    (mask, mask2), (forward, backward) = (
        seen[0][1:] + seen[2][1:],
        (torch.cat([seen[i][0], seen[i + 1][0]], 2) for i in (0, 2)),
    )
    assert mask.sum(1).tolist() == mask2.sum(1).tolist() == LENGTHS.tolist()
    layer = ours.layers[0]
    for b, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(forward[b, :n], x[b, :n] @ layer.weight_input[0].T)
        torch.testing.assert_close(backward[b, :n], x[b, :n].flip(0) @ layer.weight_input[1].T)


def test_dropout_is_between_layers_only_and_follows_the_global_generator(cell: str) -> None:
    one, two = Recurrent(6, 5, cell, dropout=0.9), Recurrent(6, 5, cell, layers=2, dropout=0.5)
    x = batch()
    assert torch.equal(one(x, LENGTHS), one.eval()(x, LENGTHS))
    torch.manual_seed(3)
    first = two(x, LENGTHS)
    other = two(x, LENGTHS)
    torch.manual_seed(3)
    assert torch.equal(two(x, LENGTHS), first)
    assert not torch.equal(other, first)
    assert (first[0, :7] != 0).all()  # nothing is dropped after the last layer
    two.eval()
    assert torch.equal(two(x, LENGTHS), two(x, LENGTHS))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_as_many_parameters_as_torch_and_drawn_alike(cell: str, bidirectional: bool) -> None:
    ours = Recurrent(40, 64, cell, bidirectional, layers=3)
    theirs = CELLS[cell](40, 64, 3, bidirectional=bidirectional)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours.output_size == 64 * (1 + bidirectional)
    for parameter in ours.parameters():
        assert parameter.abs().max() <= 64**-0.5
        assert parameter.std().item() == pytest.approx(64**-0.5 / 3**0.5, rel=0.15)


def test_autocast_and_16_bit_parameters(cell: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Recurrent(6, 5, cell, backend=backend)
    x = batch()
    expected = ours(x, LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x, LENGTHS)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0, atol=0.03)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
    if backend == "scan":
        seen = []
        scan = getattr(asrkit.recurrent.layer, f"{cell}_scan")
        spy = lambda gates, weight, *rest: seen.append((gates.dtype, weight.dtype)) or scan(gates, weight, *rest)  # noqa: E731
        monkeypatch.setattr(asrkit.recurrent.layer, f"{cell}_scan", spy)
        y = ours.bfloat16()(x.bfloat16(), LENGTHS)
        assert seen == [(torch.float32, torch.float32)]
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.03)


def test_lengths_of_any_integer_type_zero_included() -> None:
    ours = Recurrent(6, 5)
    lengths = torch.tensor([0, 4, 2], dtype=torch.int32)
    y = ours(batch(lengths), lengths)
    assert (y[0] == 0).all()
    assert (y[1] != 0).all()


@pytest.mark.parametrize(
    "lengths", [torch.ones(3), torch.tensor([1, 2]), torch.tensor([1, 2, 5]), torch.tensor([1, -1, 4]), torch.tensor(4)]
)
def test_wrong_lengths_are_refused(lengths: Tensor) -> None:
    with pytest.raises(DataError) as caught:
        Recurrent(6, 5)(torch.randn(3, 4, 6), lengths)
    assert caught.value.reason == "lengths"


def test_wrong_arguments_are_refused() -> None:
    for arguments in ({"cell": "gruu"}, {"size": 0}, {"layers": 0}, {"dropout": 1.0}, {"backend": "cuda"}):
        with pytest.raises(RecipeError):
            Recurrent(**{"input_size": 6, "size": 5, **arguments})  # type: ignore[arg-type]
    with pytest.raises(DataError):
        Recurrent(6, 5)(torch.randn(3, 4, 7), torch.tensor([4, 4, 4]))
    with pytest.raises(RecipeError) as caught:
        Recurrent(6, 5).load_from_torch(nn.GRU(6, 5, bidirectional=False))
    assert caught.value.reason == "shape_mismatch"


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning"
)  # the trace is what the legacy ONNX exporter starts from
@pytest.mark.parametrize("make_norm", [None, MaskedLayerNorm])
def test_a_trace_holds_for_other_shapes_and_lengths(cell: str, make_norm: type | None) -> None:
    ours = Recurrent(6, 5, cell, layers=2, norm="gates" if make_norm else "none", make_norm=make_norm).eval()
    with torch.no_grad():
        traced = torch.jit.trace(ours, (batch(), LENGTHS), check_trace=False)
        lengths = torch.tensor([20, 3, 11])
        x = batch(lengths)
        torch.testing.assert_close(traced(x, lengths), ours(x, lengths), rtol=0, atol=1e-6)


class RowNorm(nn.Module):
    """Layer norm or RMS norm with the promise that the fused scan asks for, and with it kept back."""

    order_free = True

    def __init__(self, size: int, centred: bool, affine: bool, promise: bool) -> None:
        super().__init__()
        self.centred, self.promise = centred, promise
        self.weight = nn.Parameter(torch.rand(size) + 0.5) if affine else None
        self.bias = nn.Parameter(torch.randn(size)) if affine and centred else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.centred:
            y = nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-3)
        else:
            y = nn.functional.rms_norm(x, x.shape[-1:], self.weight, 1e-3)
        return y.masked_fill(~mask[..., None], 0)

    def row_norm(self) -> RowNormRule | None:
        return RowNormRule(self.centred, 1e-3, self.weight, self.bias) if self.promise else None


@pytest.mark.parametrize(
    ("cell", "cell_norm"), [("gru", "none"), ("lstm", "none"), ("lstm", "output"), ("lstm", "stored")]
)
@pytest.mark.parametrize("place", ["recurrent", "hidden"])
@pytest.mark.parametrize("per_gate", [False, True])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_the_scan_with_row_norms_equals_the_steps(
    cell: str, cell_norm: str, place: str, per_gate: bool, centred: bool, affine: bool
) -> None:
    """Outputs and every gradient, two layers, ragged, padding full of NaN; the scan must really have been taken."""
    made = [
        Recurrent(
            4,
            3,
            cell,
            layers=2,
            norm=place,
            per_gate=per_gate,
            cell_norm=cell_norm,
            make_norm=lambda n, p=p: RowNorm(n, centred, affine, p),
        ).double()
        for p in (True, False)
    ]
    made[1].load_state_dict(made[0].state_dict())
    x = batch(size=4, dtype=torch.float64)
    x = x.masked_fill((torch.arange(x.shape[1]) >= LENGTHS[:, None])[..., None], float("nan"))
    found = []
    for module, calls in zip(made, (2, 0), strict=True):
        inputs = x.clone().requires_grad_()
        with unittest.mock.patch.object(
            asrkit.recurrent.layer,
            f"{cell}_row_norm_scan",
            wraps=getattr(asrkit.recurrent.layer, f"{cell}_row_norm_scan"),
        ) as scan:
            y = module(inputs, LENGTHS)
        assert scan.call_count == calls
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        found.append((y, torch.autograd.grad((y * weights).sum(), [inputs, *module.parameters()])))
        with torch.inference_mode():
            assert torch.equal(module(inputs, LENGTHS), y)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("strategy", ["layer_norm", "rms_norm", "sequence_batch_norm", "frame_batch_norm"])
def test_norms_at_the_gates_are_called_where_somebody_would_miss_it(cell: str, strategy: str) -> None:
    """A subclass with a forward of its own, and a hook, are heeded; without them the norm is not called at all."""
    make_norm = registry.load("encoders", strategy)(4, []).make_norm
    calls: list[str] = []

    class Louder(type(make_norm(1))):  # type: ignore[misc]
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            calls.append("forward")
            return 2 * super().forward(x, mask)

    ours = Recurrent(4, 3, cell, norm="gates", make_norm=make_norm, backend="scan").double()
    x = batch(size=4, dtype=torch.float64)
    y = ours(x, LENGTHS)
    parts = [part for norm in ours.layers[0].gate_norms for part in norm.norms]
    hooks = [part.register_forward_hook(lambda *_: calls.append("hook")) for part in parts]
    torch.testing.assert_close(ours(x, LENGTHS), y, rtol=0, atol=1e-12)
    assert calls == ["hook"] * len(parts)
    for hook, part in zip(hooks, parts, strict=True):
        hook.remove()
        part.__class__ = Louder
    calls.clear()
    assert (ours(x, LENGTHS) - y).abs().max() > 1e-3
    assert calls == ["forward"] * len(parts)


@pytest.mark.parametrize("place", ["none", "gates"])
def test_a_batch_without_a_single_frame_has_gradients_of_zero(cell: str, backend: str, place: str) -> None:
    """Whatever lies in its padding."""
    make_norm = registry.load("encoders", "layer_norm")(4, []).make_norm
    ours = Recurrent(4, 3, cell, norm=place, make_norm=make_norm, backend=backend)
    y = ours(torch.full((2, 5, 4), float("nan")), torch.zeros(2, dtype=torch.int64))
    assert not y.any()
    y.sum().backward()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@pytest.mark.parametrize(
    ("strategy", "place"),
    [(name, "gates") for name in ("layer_norm", "rms_norm", "sequence_batch_norm", "frame_batch_norm", "batch_renorm")]
    + [("layer_norm", "recurrent"), ("rms_norm", "recurrent")],
)
def test_norms_that_an_encoder_has_accepted_take_the_short_way(cell: str, strategy: str, place: str) -> None:
    """asrkit's own look at what a norm gives back is nobody who would miss the call."""
    encoder = registry.load("encoders", strategy)(4, [{f"bi{cell}": {"size": 3, "norm": place}}])
    encoder.stack.layers[0].recurrent.backend = "scan"
    kind = type(encoder.make_norm(1))
    with unittest.mock.patch.object(kind, "forward", side_effect=AssertionError("the norm was called")):
        encoder(batch(size=4), LENGTHS)


def test_a_rule_over_utterances_is_refused_at_the_gates(cell: str) -> None:
    """Frames of an utterance do not lie together there: other moments would come back without a word."""

    class ByUtterance(nn.Module):
        per_feature = True

        def __init__(self, size: int) -> None:
            super().__init__()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return standardize(x, mask, *self.rule(PaddedFrames(x, mask)))

        def rule(self, frames: Frames) -> Rule:
            moments = frames.moments("utterance")
            return Rule(moments, Standard("utterance"), (None, None), torch.ones_like(moments.frames))

    ours = Recurrent(4, 3, cell, norm="gates", make_norm=ByUtterance, backend="scan")
    with pytest.raises(RecipeError, match="'utterance'") as error:
        ours(batch(size=4), LENGTHS)
    assert error.value.reason == "encoder_contract"


@pytest.mark.parametrize("strategy", ["sequence_batch_norm", "frame_batch_norm", "batch_renorm"])
def test_a_graph_keeps_no_moments_beside_what_its_gradient_needs(cell: str, strategy: str) -> None:
    """Those of frame-wise batch norm are as long as an utterance."""
    make_norm = registry.load("encoders", strategy)(4, []).make_norm
    kind, made = type(make_norm(1)), []
    plain = kind.rule

    def rule(norm: nn.Module, frames: Any) -> Any:
        found = plain(norm, frames)
        made.append(weakref.ref(found.moments.mean))
        return found

    ours = Recurrent(4, 3, cell, norm="gates", make_norm=make_norm, backend="scan")
    with unittest.mock.patch.object(kind, "rule", rule):
        y = ours(batch(size=4), LENGTHS)
    assert made
    assert not any(moments() is not None for moments in made)
    y.sum().backward()


@pytest.mark.parametrize("place", ["none", "gates", "recurrent", "joined"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_computed_is_computed_once(cell: str, backend: str, place: str, dtype: torch.dtype) -> None:
    """Spectral norm changes with every look at it."""
    make_norm = registry.load("encoders", "layer_norm")(4, []).make_norm
    ours = Recurrent(4, 3, cell, norm=place, make_norm=make_norm, backend=backend).to(dtype)
    looks: list[str] = []

    class Look(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, weight: Tensor) -> Tensor:
            looks.append(self.name)
            return weight.clone()

    for name in ("weight_input", "weight_recurrent"):
        parametrize.register_parametrization(ours.layers[0], name, Look(name))
    looks.clear()
    ours(batch(size=4, dtype=dtype), LENGTHS)
    assert sorted(looks) == ["weight_input", "weight_recurrent"]


@pytest.mark.parametrize("place", ["none", "gates", "recurrent", "joined"])
def test_no_frames_go_the_way_of_some(cell: str, backend: str, place: str) -> None:
    """T = 0; with several processes a way of its own would leave the others waiting."""
    make_norm = registry.load("encoders", "layer_norm")(4, []).make_norm
    ours = Recurrent(4, 3, cell, norm=place, make_norm=make_norm, backend=backend)
    x = torch.zeros(2, 0, 4, requires_grad=True)
    with unittest.mock.patch.object(asrkit.recurrent.layer, "largest", side_effect=lambda n, *_: n) as exchanged:
        y = ours(x, torch.tensor([0, 0]))
        calls = exchanged.call_count
        ours(batch(size=4), LENGTHS)
    assert exchanged.call_count == 2 * calls
    assert y.shape == (2, 0, 6)
    y.sum().backward()


def test_row_norms_in_the_recurrence_are_called_where_somebody_would_miss_it(cell: str) -> None:
    """A hook, a step of a subclass, and one of the norm itself."""
    make_norm = registry.load("encoders", "layer_norm")(4, []).make_norm
    ours = Recurrent(4, 3, cell, norm="hidden", make_norm=make_norm).double()
    x = batch(size=4, dtype=torch.float64)
    y = ours(x, LENGTHS)
    parts = [part for norm in ours.layers[0].recurrent_norms for part in norm.norms]
    calls: list[str] = []
    for part in parts:
        part.register_forward_hook(lambda *_: calls.append("hook"))
    torch.testing.assert_close(ours(x, LENGTHS), y, rtol=0, atol=1e-12)
    assert len(calls) == len(parts) * x.shape[1]
    for part in parts:
        part._forward_hooks.clear()

    class Louder(type(parts[0])):  # type: ignore[misc]
        def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
            return 2 * self(x.unsqueeze(1), mask.unsqueeze(1)).squeeze(1)

    for part in parts:
        part.__class__ = Louder
    twice = ours(x, LENGTHS)
    assert (twice - y).abs().max() > 1e-3
    for part in parts:
        part.__class__ = Louder.__base__
        part.step = Louder.step.__get__(part)
    torch.testing.assert_close(ours(x, LENGTHS), twice, rtol=0, atol=0)


def test_norms_in_the_recurrence_refuse_what_they_cannot_do() -> None:
    for options, given in (
        ({"norm": "gate"}, "gate"),
        ({"norm": "gates"}, "without a norm"),
        ({"cell": "gru", "cell_norm": "output", "make_norm": MaskedLayerNorm}, "no cell"),
        ({"cell": "lstm", "cell_norm": "inside", "make_norm": MaskedLayerNorm}, "inside"),
        ({"norm": "gates", "per_gate": 1, "make_norm": MaskedLayerNorm}, "per_gate"),
    ):
        with pytest.raises(RecipeError, match=given) as caught:
            Recurrent(6, 5, **options)
        assert caught.value.reason == "placement"
    ours = Recurrent(6, 5, norm="recurrent", make_norm=MaskedLayerNorm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RecipeError, match="exported"):
            torch.jit.trace(ours, (batch(), LENGTHS))


@pytest.mark.parametrize("place", ["none", "gates", "recurrent", "joined"])
def test_a_batch_without_utterances(cell: str, place: str) -> None:
    ours = Recurrent(6, 5, cell, layers=2, norm=place, make_norm=MaskedLayerNorm)
    x = torch.zeros(0, 4, 6, requires_grad=True)
    y = ours(x, torch.zeros(0, dtype=torch.int64))
    assert y.shape == (0, 4, 10)
    y.sum().backward()
