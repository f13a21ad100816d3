"""StackEncoder and its layers: exact lengths, no trace of padding or batch mates, and what a recipe may not ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asrkit import registry
from asrkit.encoders import NormOptions, StackEncoder
from asrkit.errors import RecipeError
from asrkit.layers import Context, Conv

ARMS = ("none", "layer_norm", "frame_batch_norm", "sequence_batch_norm")
SIZE = 9


class Identity(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x


class Plain(StackEncoder):
    """StackEncoder with a norm that does nothing."""

    def make_norm(self, size: int) -> nn.Module:
        return Identity()


def build(*layers: Any, size: int = SIZE) -> StackEncoder:
    return Plain(size, list(layers)).eval()


CONVS = [
    {"conv": {"channels": 2, "kernel": [kernel, 3], "stride": [stride, 2], "padding": [padding, 1]}}
    for kernel, stride, padding in (
        (1, 1, 0), (2, 1, 0), (2, 1, 1), (3, 1, 1), (3, 2, 1), (3, 3, 0), (4, 2, 1), (4, 2, 2), (5, 3, 2), (5, 3, 0),
        (7, 4, 3), (1, 5, 0), (11, 2, 5),
    )
]  # fmt: skip
CONTEXTS = [
    {"context": {"left": left, "right": right, "stride": stride}}
    for left, right, stride in ((0, 0, 1), (0, 0, 3), (2, 0, 1), (0, 3, 2), (5, 5, 4), (1, 2, 7))
]
CHAINS = [
    [CONVS[4], CONVS[4]],
    [CONVS[6], CONVS[3], {"linear": 5}, CONTEXTS[4]],
    [CONTEXTS[3], {"linear": 6}, CONVS[8], "relu", CONVS[2]],
    [CONVS[2], CONVS[1], {"bigru": 3}, CONTEXTS[1]],
    [{"repeat": {"times": 3, "layers": [CONTEXTS[3], {"linear": 4}]}}],
    [{"repeat": {"times": 2, "residual": True, "layers": ["norm", {"bigru": 5}]}}, CONTEXTS[3]],
    [{"linear": 6}, {"residual": [{"conv": {"channels": 1}}]}, CONVS[4], "norm"],
]
STACKS = [[layer] for layer in CONVS + CONTEXTS] + CHAINS


@pytest.mark.parametrize("layers", STACKS, ids=str)
def test_num_frames_is_the_real_shape(layers: list[Any]) -> None:
    """For T = 0 to 60: the lengths that come out, the shape of an unpadded utterance, integers and tensors agree."""
    encoder = build(*layers)
    counts = torch.arange(61)
    with torch.no_grad():
        for frames in counts.tolist():
            y, lengths = encoder(torch.randn(1, frames, SIZE), torch.tensor([frames]))
            expected = encoder.num_frames(frames)
            assert isinstance(expected, int)
            assert y.shape == (1, expected, encoder.output_size)
            assert lengths.tolist() == [expected]
            assert lengths.dtype == torch.int64
        # All of them in one batch.
        y, lengths = encoder(torch.randn(61, 60, SIZE), counts)
    assert torch.equal(encoder.num_frames(counts), lengths)
    assert lengths.tolist() == [encoder.num_frames(frames) for frames in range(61)]
    assert y.shape[1] == int(lengths.max())


@pytest.mark.parametrize("layers", STACKS, ids=str)
def test_padding_and_batch_mates_change_nothing(layers: list[Any]) -> None:
    """Every utterance alone, and in a batch whose padding holds NaN, noise or zeros."""
    encoder = build(*layers)
    lengths = torch.tensor([37, 1, 0, 12, 23, 5])
    utterances = [torch.randn(1, int(length), SIZE) for length in lengths]
    with torch.no_grad():
        alone = [encoder(x, torch.tensor([x.shape[1]]))[0][0] for x in utterances]
        for fill in (float("nan"), 1e4, 0.0):
            for extra in (0, 9):
                batch = torch.full((len(utterances), 37 + extra, SIZE), fill)
                for row, x in enumerate(utterances):
                    batch[row, : x.shape[1]] = x[0]
                y, frames = encoder(batch, lengths)
                for row, expected in enumerate(alone):
                    assert int(frames[row]) == len(expected)
                    torch.testing.assert_close(y[row, : len(expected)], expected, rtol=1e-5, atol=1e-6)
                    assert not y[row, len(expected) :].any()  # zeros, and no NaN


@pytest.mark.parametrize(("kernel", "stride", "padding"), [((3, 3), (2, 2), (1, 1)), ((5, 4), (3, 1), (2, 0))])
def test_conv_is_torchs_conv2d(kernel: Any, stride: Any, padding: Any) -> None:
    """Layout (B, T, F * C), frequency-major, channel fastest; against Conv2d on (B, C, T, F), two layers deep."""
    options = {"kernel": list(kernel), "stride": list(stride), "padding": list(padding)}
    encoder = build({"conv": {"channels": 4, **options}}, {"conv": {"channels": 6, **options}}, size=20)
    weights = dict(encoder.named_parameters())
    names = [name.removesuffix(".weight") for name in weights if name.endswith("weight")]
    reference = nn.Sequential(nn.Conv2d(1, 4, kernel, stride, padding), nn.Conv2d(4, 6, kernel, stride, padding))
    with torch.no_grad():
        for name, conv in zip(names, reference, strict=True):
            conv.weight.copy_(weights[f"{name}.weight"])
            conv.bias.copy_(weights[f"{name}.bias"])
        x = torch.randn(1, 31, 20)
        expected = reference(x[:, None])  # (1, C, T', F')
        y, lengths = encoder(x, torch.tensor([31]))
    assert y.shape == (1, expected.shape[2], expected.shape[1] * expected.shape[3])
    for channel in range(6):
        torch.testing.assert_close(y[..., channel::6], expected[:, channel], rtol=1e-5, atol=1e-6)
    assert lengths.tolist() == [expected.shape[2]]


def test_conv_defaults_keep_the_number_of_frames() -> None:
    for kernel in (1, 3, 5, 7):
        conv = Conv(SIZE, 2, kernel)
        assert [conv.num_frames(t) for t in range(20)] == list(range(20))
        assert conv.output_size == 2 * SIZE


def test_channels_reach_the_next_conv_through_frame_wise_layers() -> None:
    encoder = build({"conv": 3}, "norm", "relu", {"dropout": 0.1}, {"residual": ["tanh"]}, {"conv": 5})
    shapes = [tuple(p.shape) for p in encoder.parameters() if p.dim() == 4]
    assert shapes == [(3, 1, 3, 3), (5, 3, 3, 3)]
    flat = build({"conv": 3}, {"linear": 7}, {"conv": 5})  # after a linear layer there is one channel again
    assert [tuple(p.shape) for p in flat.parameters() if p.dim() == 4] == [(3, 1, 3, 3), (5, 1, 3, 3)]


def test_context_is_a_window_of_neighbours() -> None:
    x = torch.arange(1.0, 11.0).reshape(1, 5, 2)
    y, lengths = Context(2, left=1, right=1, stride=2)(x, torch.tensor([5]))
    assert y.tolist() == [[[0, 0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8], [7, 8, 9, 10, 0, 0]]]
    assert lengths.tolist() == [3]


def test_residual_adds_its_input() -> None:
    encoder = build({"residual": [{"linear": SIZE}, "tanh"]})
    weight, bias = encoder.parameters()
    x = torch.randn(2, 6, SIZE)
    y, lengths = encoder(x, torch.tensor([6, 4]))
    expected = x + torch.tanh(x @ weight.T + bias)
    torch.testing.assert_close(y[0], expected[0])
    torch.testing.assert_close(y[1, :4], expected[1, :4])
    assert lengths.tolist() == [6, 4]
    named = build({"residual": {"layers": [{"linear": SIZE}]}})
    assert named.output_size == SIZE


def test_residual_blocks_add_their_input_beside_zeros() -> None:
    """`repeat: {residual: true}`, block by block in NumPy's terms: 12 features of 9, then 12 of 12."""
    torch.manual_seed(3)
    encoder = build({"repeat": {"times": 3, "residual": True, "layers": [{"linear": 12}, "tanh"]}})
    torch.manual_seed(3)
    plain = build({"repeat": {"times": 3, "layers": [{"linear": 12}, "tanh"]}})
    weights = list(encoder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, plain.parameters(), strict=True))
    x = torch.randn(2, 6, SIZE)
    y, lengths = encoder(x, torch.tensor([6, 4]))
    expected = x.detach().numpy()
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = np.tanh(expected @ weight.detach().numpy().T + bias.detach().numpy())
        layer[..., : expected.shape[2]] += expected
        expected = layer
    np.testing.assert_allclose(y[0].detach().numpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(y[1, :4].detach().numpy(), expected[1, :4], atol=1e-5)
    assert lengths.tolist() == [6, 4]


def test_identity_stands_where_an_activation_stood() -> None:
    x, lengths = torch.randn(2, 6, SIZE), torch.tensor([6, 6])
    assert torch.equal(build("identity", {"dropout": 0.1})(x, lengths)[0], x)


def test_repeat_makes_layers_of_their_own() -> None:
    """`repeat` is the layers written out: as many weights, none shared, in the same order."""
    block = [{"linear": 7}, "norm", "relu"]
    torch.manual_seed(3)
    repeated = build({"repeat": {"times": 3, "layers": block}})
    torch.manual_seed(3)
    written = build(*block, *block, *block)
    ours, theirs = list(repeated.parameters()), list(written.parameters())
    assert [tuple(p.shape) for p in ours if p.dim() == 2] == [(7, SIZE), (7, 7), (7, 7)]
    assert not torch.equal(ours[2], ours[4])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    x = torch.randn(2, 5, SIZE)
    assert torch.equal(repeated(x, torch.tensor([5, 3]))[0], written(x, torch.tensor([5, 3]))[0])


def test_all_encoders_start_from_the_same_weights() -> None:
    """Outside their norms; also an encoder whose norm draws numbers."""

    class Drawing(StackEncoder):
        def make_norm(self, size: int) -> nn.Module:
            self.drawn = torch.rand(17)
            return Identity()

    layers = [{"conv": 2}, "norm", {"bigru": 4}, "norm", {"linear": 5}]
    seen = []
    for cls in [*(registry.load("encoders", name) for name in ARMS), Drawing]:
        torch.manual_seed(11)
        encoder = cls(SIZE, layers, NormOptions())
        seen.append({k: v for k, v in encoder.named_parameters() if ".norm." not in k})
        if cls is not Drawing:
            assert torch.equal(torch.rand(3), seen_after(layers)), cls  # and leave the generator where it was
    for other in seen[1:]:
        assert other.keys() == seen[0].keys()
        assert all(torch.equal(other[key], seen[0][key]) for key in other)
    assert len(seen[0]) >= 8


def seen_after(layers: list[Any]) -> Tensor:
    """The next three numbers of the generator after building without a norm."""
    torch.manual_seed(11)
    Plain(SIZE, layers)
    return torch.rand(3)


WRONG = [
    ({"linear": -3}, "layers.0: linear: size = -3; possible: a whole number from 1"),
    ({"linear": 0}, "linear: size = 0"),
    ({"linear": True}, "linear: size = True"),
    ({"linear": 2.0}, "linear: size = 2.0"),
    ({"linear": {"size": 3, "bias": "no"}}, "linear: bias = 'no'; possible: true or false"),
    ({"conv": {"channels": 4, "stride": 0}}, "conv: stride = 0; possible: a whole number from 1"),
    ({"conv": {"channels": 4, "kernel": [3, 0]}}, "conv: kernel = [3, 0]"),
    ({"conv": {"channels": 4, "kernel": "abc"}}, "conv: kernel = 'abc'"),
    ({"conv": {"channels": 4, "kernel": [1, 2, 3]}}, "conv: kernel = [1, 2, 3]"),
    ({"conv": {"channels": 4, "padding": -1}}, "conv: padding = -1; possible: a whole number from 0"),
    ({"conv": {"channels": 4, "padding": 3}}, "conv: padding [3, 3] with kernel [3, 3]"),
    ({"conv": {"channels": 4, "kernel": [3, 12], "padding": 0}}, "does not fit 9 features"),
    ({"conv": {"channels": 0}}, "conv: channels = 0"),
    ({"conv": None}, "missing 1 required positional argument: 'channels'"),
    ({"context": {"left": 1, "stride": 0}}, "context: stride = 0"),
    ({"context": {"left": -9}}, "context: left = -9; possible: a whole number from 0"),
    ({"dropout": 1.5}, "dropout: p = 1.5; possible: a number from 0 and below 1"),
    ({"dropout": "much"}, "dropout: p = 'much'"),
    ({"leaky_relu": "x"}, "leaky_relu: negative_slope = 'x'"),
    ({"gelu": {"approximate": "tan"}}, "did you mean 'tanh'?"),
    ({"relu": 3}, "relu does not take 3 (it has no options)"),
    ({"relu": {"inplace": True}}, "it has no option 'inplace'"),
    ({"bigru": {"size": 4, "layers": 0}}, "layers.0: layers: 0; possible: whole numbers from 1"),
    ({"bigru": {"size": 4, "gate_norm": 3}}, "it has no option 'gate_norm'"),
    ({"bigru": {"size": 4, "cell": "lstm"}}, "it has no option 'cell'"),
    ({"repeat": {"times": True, "layers": ["relu"]}}, "times is an integer of at least 1"),
    ({"repeat": {"times": 0, "layers": ["relu"]}}, "times is an integer of at least 1"),
    ({"repeat": {"layers": ["relu"]}}, "it needs times and layers"),
    ({"repeat": {"times": 2, "layers": ["relu"], "residual": 1}}, "residual is true or false"),
    ({"repeat": {"times": 2, "layers": [{"linear": 4}], "residual": True}}, "its layers map 9 features to 4"),
    ({"identity": 3}, "identity does not take 3 (it has no options)"),
    ({"residual": [{"linear": 4}]}, "residual: its layers map 9 features to 4 and 1000 frames to 1000"),
    ({"residual": [{"context": {"stride": 2}}]}, "1000 frames to 500"),
    ({"residual": {"layers": ["relu"], "scale": 2}}, "it needs layers and nothing else"),
    ({"residual": [{"linear": -1}]}, "layers.0.residual.0: linear: size = -1"),
    ({"norm": {"eps": 1}}, "norm takes no options of its own"),
    ({"linaer": 4}, "did you mean 'linear'?"),
    ({3: 4}, "unknown layer 3"),
    ({"linear": 4, "conv": 4}, "possible: a name such as norm"),
    (7, "layers.0 = 7"),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "message"), WRONG, ids=str)
def test_layers_that_cannot_be(layer: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(layer)
    assert message in str(caught.value)
    assert caught.value.reason


def test_a_residual_must_keep_short_utterances_too() -> None:
    """One frame less and then one more is the identity for 1000 frames, but not for an utterance of one."""
    shrink = {"conv": {"channels": 1, "kernel": [2, 3], "padding": [0, 1]}}
    grow = {"conv": {"channels": 1, "kernel": [2, 3], "padding": [1, 1]}}
    with pytest.raises(RecipeError, match="and 1 frames to 0"):
        build({"residual": [shrink, grow]})
    build({"residual": [grow, shrink]})  # one more first: nothing is lost


def test_the_options_offered_are_those_that_a_recipe_can_give() -> None:
    for name in ("gru", "bigru", "lstm", "bilstm"):
        with pytest.raises(RecipeError) as caught:
            build({name: {"size": 4, "wrong": 1}})
        assert caught.value.possible == (
            "size: int, layers: int = 1, dropout: float = 0.0, norm: str = none, per_gate: bool = False, "
            "cell_norm: str | None = None, gain: float | None = None"
        )


def test_weight_norm_reaches_the_layer_after_every_norm() -> None:
    """Past activations and context, into repeats and residuals; one layer per norm, and the outputs stay."""
    layers = [
        "norm", "relu", {"context": {"left": 1}}, {"linear": 6},
        "norm", {"repeat": {"times": 2, "layers": [{"bigru": 3}, "norm", {"dropout": 0.1}]}},
        {"residual": [{"linear": 6}]}, {"linear": 5},
    ]  # fmt: skip
    torch.manual_seed(5)
    ours = registry.load("encoders", "weight_norm")(SIZE, layers).eval()
    torch.manual_seed(5)
    plain = registry.load("encoders", "none")(SIZE, layers).eval()
    wrapped = [name for name, module in ours.named_modules() if name.endswith("parametrizations")]
    assert len(wrapped) == 4  # linear, two bigru, the linear in the residual; not the last one
    x, lengths = torch.randn(2, 9, SIZE), torch.tensor([9, 4])
    torch.testing.assert_close(ours(x, lengths)[0], plain(x, lengths)[0])
