"""Norms inside a recurrence, the padding bug on purpose, batch renormalization, weight norm, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_normalization import EPS, IDENTITIES, NORMS, make, ragged
from torch import Tensor, nn

from asrkit.encoders import NormOptions, StackEncoder
from asrkit.errors import RecipeError
from asrkit.masking import frame_mask
from asrkit.model import encoder_class
from asrkit.recurrent import Recurrent
from asrkit.recurrent.placement import norm_step

BATCH_NORMS = ("frame_batch_norm", "sequence_batch_norm", "batch_renorm")


def steps(norm: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """The norm as a recurrence calls it, (B, T, C) -> (B, T, C)."""
    return torch.stack([norm_step(norm, x[:, t], t, mask[:, t]) for t in range(x.shape[1])], 1)


def assert_same_buffers(one: nn.Module, other: nn.Module) -> None:
    for (key, a), b in zip(one.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6, msg=key)


@pytest.mark.parametrize("max_steps", [1024, 4])
def test_frame_batch_norm_by_steps_equals_the_whole(max_steps: int) -> None:
    """In training, its running statistics, and in eval; a single live utterance on its step's own statistics too."""
    one = make("frame_batch_norm", 4, min_count=1, max_steps=max_steps)
    other = copy.deepcopy(one)
    for lengths in ([9, 7, 7], [5, 4, 2], [8, 8]):
        x, mask = ragged(lengths, size=4)
        y, z = one(x, mask), steps(other, x, mask)
        if max_steps == 4:  # the last row of the storage serves later steps, and has not seen them all yet
            y, z = y[mask[:, :] & (mask.sum(0) > 1)], z[mask & (mask.sum(0) > 1)]
        torch.testing.assert_close(y, z, atol=1e-6, rtol=1e-5)
        assert_same_buffers(one, other)
        assert one.fallback_share == other.fallback_share
    x, mask = ragged([30, 2], size=4)
    torch.testing.assert_close(one.eval()(x, mask), steps(other.eval(), x, mask))
    assert one.fallback_share == other.fallback_share


@pytest.mark.parametrize("name", ["sequence_batch_norm", "batch_renorm"])
def test_steps_of_a_batch_are_one_update_with_pooled_moments(name: str) -> None:
    one = make(name, 4)
    other = copy.deepcopy(one)
    for lengths in ([5, 3, 2], [7, 1], [4, 4, 4]):
        x, mask = ragged(lengths, size=4)
        one(x, mask)
        steps(other, x, mask)
        assert_same_buffers(one, other)
    x, mask = ragged([6, 2], size=4)
    torch.testing.assert_close(one.eval()(x, mask), steps(other.eval(), x, mask), atol=1e-5, rtol=1e-5)


def test_sequence_batch_norm_by_steps_equals_numpy() -> None:
    """Statistics of the live utterances; with one of them the running ones, this batch's steps so far among them."""
    norm = make("sequence_batch_norm", 4)
    lengths = [5, 3, 2]
    x, mask = ragged(lengths, size=4)
    y, values = steps(norm, x, mask).detach().numpy(), x.double().numpy()
    seen = np.zeros((0, 4))
    for t in range(5):
        live = np.stack([values[i, t] for i in range(3) if lengths[i] > t])
        seen = np.concatenate([seen, live])
        known = live if len(live) > 1 else seen
        expected = (live - known.mean(0)) / np.sqrt(known.var(0) + EPS)
        np.testing.assert_allclose(y[: len(live), t], expected, atol=1e-5)
        assert (y[len(live) :, t] == 0).all()


@pytest.mark.parametrize("name", [name for name in NORMS if name not in (*BATCH_NORMS, "instance_norm")])
def test_other_norms_take_a_step_as_a_sequence_of_one(name: str) -> None:
    x, mask = ragged([5, 3, 2], size=4)
    norm = make(name, 4)
    whole = norm(x.reshape(15, 1, 4), mask.reshape(15, 1)).view(3, 5, 4)
    torch.testing.assert_close(steps(norm, x, mask), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NORMS if name != "instance_norm"])
def test_gradients_through_steps(name: str) -> None:
    """Against finite differences in float64; at every step two utterances are alive, so that nothing is a constant."""
    x, mask = ragged([3, 3, 2], size=4)
    norm = make(name, 4).double()
    x = x.double().requires_grad_()
    before = [buffer.clone() for buffer in norm.buffers()]

    def run(values: Tensor, *_: Tensor) -> Tensor:
        for buffer, value in zip(norm.buffers(), before, strict=True):
            buffer.copy_(value)
        return steps(norm, values, mask)

    assert torch.autograd.gradcheck(run, (x, *norm.parameters()), atol=1e-6)


def test_instance_norm_is_refused_inside_a_recurrence() -> None:
    """When the layer is built: before hours of preparation."""
    with pytest.raises(RecipeError, match="one frame has no variance") as caught:
        Recurrent(3, 4, norm="recurrent", make_norm=lambda size: make("instance_norm", size))
    assert caught.value.reason == "placement"


def test_instance_norm_of_one_frame_is_the_bias_exactly() -> None:
    norm = make("instance_norm", 4)
    norm.affine.bias.data.fill_(0.7)
    x, mask = ragged([5, 1], size=4)
    x.requires_grad_()
    y = norm(x, mask)
    assert torch.equal(y[1, 0], torch.full((4,), 0.7))
    y.square().sum().backward()
    assert x.grad is not None
    assert (x.grad[1] == 0).all()


# The padding bug on purpose, against the modules of torch that have it.


@pytest.mark.parametrize("name", [*BATCH_NORMS, "group_norm", "instance_norm"])
def test_unmasked_statistics_are_those_of_torch_on_the_padded_batch(name: str) -> None:
    x, mask = ragged([9, 6, 6, 1], extra=2)
    _, frames, size = x.shape
    channels = x.transpose(1, 2)
    torch_norms = {
        "frame_batch_norm": lambda: nn.BatchNorm1d(frames * size)(x.flatten(1)).view(x.shape),
        "sequence_batch_norm": lambda: nn.BatchNorm1d(size)(channels).transpose(1, 2),
        "batch_renorm": lambda: nn.BatchNorm1d(size)(channels).transpose(1, 2),
        "group_norm": lambda: F.group_norm(channels, 2).transpose(1, 2),
        "instance_norm": lambda: F.instance_norm(channels).transpose(1, 2),
    }
    y = make(name, size, masked=False)(x, mask)
    torch.testing.assert_close(y[mask], torch_norms[name]()[mask], atol=1e-5, rtol=1e-5)
    assert (y[~mask] == 0).all()
    assert not torch.allclose(y[mask], make(name, size)(x, mask)[mask], atol=0.1)


def test_unmasked_running_averages_are_those_of_the_padded_batch() -> None:
    x, mask = ragged([9, 6, 1], extra=2)
    norm = make("sequence_batch_norm", 6, masked=False)
    norm(x, mask)
    torch.testing.assert_close(norm.running.mean, x.mean((0, 1)))
    torch.testing.assert_close(norm.running.var, x.var((0, 1), correction=0))
    assert norm.running.count == x.shape[0] * x.shape[1]


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", *IDENTITIES])
def test_norms_of_frames_do_not_care(name: str) -> None:
    x, mask = ragged([9, 6, 1])
    assert torch.equal(make(name, 6, masked=False)(x, mask), make(name, 6)(x, mask))


# Batch renormalization.


def renorm_oracle(x: np.ndarray, mean: np.ndarray, var: np.ndarray, r_max: float, d_max: float) -> np.ndarray:
    """Algorithm 1 of the paper for rows x (N, C), running moments before the batch."""
    own, sigma = np.sqrt(x.var(0) + EPS), np.sqrt(var + EPS)
    r, d = np.clip(own / sigma, 1 / r_max, r_max), np.clip((x.mean(0) - mean) / sigma, -d_max, d_max)
    return (x - x.mean(0)) / own * r + d


def batches() -> list[tuple[Tensor, Tensor]]:
    """Four batches whose moments move further with each."""
    made = [ragged(lengths, size=4) for lengths in ([6, 4], [7, 3, 1], [9, 2], [5, 5])]
    return [((x * 1.5**k + k) * mask.unsqueeze(-1), mask) for k, (x, mask) in enumerate(made)]


@pytest.mark.parametrize("by_steps", [False, True])
def test_batch_renorm_equals_numpy_through_its_warm_up(by_steps: bool) -> None:
    norm = make("batch_renorm", 4, renorm_r=2.0, renorm_d=1.0, renorm_warmup=2)
    clipped = 0
    for update, (x, mask) in enumerate(batches()):
        mean, var = (buffer.double().numpy() for buffer in (norm.running.mean, norm.running.var))
        mean, var = mean.copy(), var.copy()
        share = min(1.0, update / 2)
        r_max, d_max = 1 + share * 1.0, share * 1.0
        y = (steps if by_steps else norm)(*((norm, x, mask) if by_steps else (x, mask)))
        parts = [mask & (torch.arange(mask.shape[1]) == t) for t in range(mask.shape[1])] if by_steps else [mask]
        for part in parts:
            real = x[part].double().numpy()
            if len(real) > 1:
                expected = renorm_oracle(real, mean, var, r_max, d_max)
                np.testing.assert_allclose(y[part].detach().numpy(), expected, atol=1e-5)
                clipped += int((np.abs(real.mean(0) - mean) > np.sqrt(var + EPS) * d_max).any())
        assert int(norm.updates) == update + 1
    assert clipped > 2  # the limits were in force


def test_batch_renorm_without_limits_trains_as_it_tests() -> None:
    """Where no clip acts, the output is that of the running averages before the batch."""
    norm = make("batch_renorm", 4, renorm_r=1e6, renorm_d=1e6, renorm_warmup=0)
    first, second = batches()[:2]
    norm(*first)
    expected = copy.deepcopy(norm).eval()(*second)
    torch.testing.assert_close(norm(*second), expected, atol=1e-5, rtol=1e-5)


def test_batch_renorm_starts_as_sequence_batch_norm() -> None:
    renorm, plain = make("batch_renorm", 4), make("sequence_batch_norm", 4)
    for x, mask in batches()[:1]:
        assert torch.equal(renorm(x, mask), plain(x, mask))


# Weight norm.


def wrapped(layer: nn.Module, *names: str) -> nn.Module:
    encoder = encoder_class("weight_norm")(input_size=4, layers=["relu"], norm=NormOptions())
    assert isinstance(encoder, StackEncoder)
    return encoder.wrap(layer, names)


@pytest.mark.parametrize(
    "make_layer", [lambda: nn.Linear(4, 5), lambda: nn.Conv2d(2, 3, (3, 2)), lambda: nn.Conv1d(4, 3, 2)]
)
def test_weight_norm_equals_that_of_torch(make_layer: object) -> None:
    """Values and gradients, at the start and after g has moved."""
    assert callable(make_layer)
    layer = make_layer()
    theirs = nn.utils.parametrizations.weight_norm(copy.deepcopy(layer))
    state = torch.random.get_rng_state()
    ours = wrapped(copy.deepcopy(layer), "weight")
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(ours.weight, layer.weight)
    for _ in range(2):
        for module in (ours, theirs):
            module.zero_grad()
            module.weight.square().mul(torch.arange(module.weight.numel()).view_as(module.weight)).sum().backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(a.grad, b.grad)
            with torch.no_grad():
                for parameter in (a, b):
                    parameter.mul_(torch.linspace(0.5, 2, parameter.numel()).view_as(parameter))


def test_weight_norm_of_recurrent_weights_goes_by_rows() -> None:
    layer = nn.Module()
    layer.weight_input = nn.Parameter(torch.randn(2, 6, 4))
    before = layer.weight_input.detach().clone()
    assert wrapped(layer, "weight_input") is layer
    torch.testing.assert_close(layer.weight_input, before)
    g = layer.parametrizations.weight_input.original0
    assert g.shape == (2, 6, 1)
    with torch.no_grad():
        g.fill_(1.0)
    torch.testing.assert_close(layer.weight_input.norm(dim=2), torch.ones(2, 6))


def test_weight_norm_starts_from_the_weights_of_none() -> None:
    layers = ["norm", {"conv": {"channels": 2, "kernel": 3}}, "norm", {"linear": 6}, "norm", {"bigru": 3}]
    x, lengths = torch.randn(2, 9, 8), torch.tensor([9, 4])
    outputs = []
    for name in IDENTITIES:
        torch.manual_seed(1)
        encoder = encoder_class(name)(input_size=8, layers=layers, norm=NormOptions())
        outputs.append(encoder(x, lengths)[0])
    assert sum("original0" in key for key, _ in encoder.named_parameters()) == 3
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=1e-5)


def test_normalized_weights_take_those_of_a_torch_module() -> None:
    """What a weight norm computes is no tensor to copy into."""
    encoder = encoder_class("weight_norm")(8, [{"bigru": {"size": 3, "norm": "recurrent"}}], NormOptions())
    ours, theirs = encoder.stack.layers[0].recurrent, nn.GRU(8, 3, bidirectional=True, batch_first=True)
    ours.load_from_torch(theirs)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(x, torch.tensor([5, 5])), theirs(x)[0])


def test_groups_must_divide_the_features() -> None:
    with pytest.raises(RecipeError, match="does not divide the 6 features") as caught:
        make("group_norm", 6, groups=4)
    assert caught.value.reason == "groups"
    assert caught.value.possible == "1, 2, 3, 6"
    assert "to 3" in caught.value.fix


def test_one_group_and_groups_of_one() -> None:
    """Of one feature each they are instance norm."""
    x, mask = ragged([9, 6, 6, 2])
    torch.testing.assert_close(make("group_norm", 6, groups=6)(x, mask), make("instance_norm", 6)(x, mask))
    y = make("group_norm", 6, groups=1)(x, frame_mask(torch.tensor([9, 6, 6, 2]), 9))
    torch.testing.assert_close(y[1, :6].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(y[1, :6].var(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_group_norm_with_groups_of_one_is_refused_inside_a_recurrence() -> None:
    Recurrent(3, 8, norm="recurrent", make_norm=lambda size: make("group_norm", size, groups=4))
    with pytest.raises(RecipeError, match="groups of one feature") as caught:
        Recurrent(3, 8, norm="recurrent", per_gate=True, make_norm=lambda size: make("group_norm", size, groups=8))
    assert caught.value.reason == "placement"


def test_frame_batch_norm_step_at_test_time_equals_forward_for_any_length() -> None:
    """Beyond what is stored, and after more training: nothing old is kept."""
    norm = make("frame_batch_norm", 4, max_steps=6, min_count=3)
    for _ in range(2):
        norm.train()(torch.randn(5, 9, 4) + 1, torch.ones(5, 9, dtype=torch.bool))
        x, mask = torch.randn(3, 12, 4), torch.ones(3, 12, dtype=torch.bool)
        norm.eval()
        stepped = torch.stack([norm.step(x[:, t], t, mask[:, t]) for t in range(12)], 1)
        torch.testing.assert_close(stepped, norm(x, mask))
