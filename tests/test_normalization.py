"""All strategies against formulas written again in NumPy float64, and their gradients against finite differences.

On a CPU large batches are taken utterance by utterance and small ones whole: every test of numbers runs both ways.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asrkit_norms.frame_batch_norm import TAIL
from torch import nn

from asrkit.encoders import NormOptions, StackEncoder
from asrkit.errors import RecipeError
from asrkit.masking import frame_mask
from asrkit.model import encoder_class
from asrkit.normalization import moments
from asrkit.registry import list_plugins

EPS = 1e-5
GROUPS = 2
LENGTHS = [9, 6, 6, 1]
NAMES = sorted(plugin.name for plugin in list_plugins("encoders") if plugin.package == "asrkit")
IDENTITIES = ("none", "weight_norm")
NORMS = [name for name in NAMES if name not in IDENTITIES]


@pytest.fixture(params=["whole", "by_utterance"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_WORTH", 0 if request.param == "by_utterance" else 1 << 60)
    monkeypatch.setattr(moments, "_ROWS", 4)  # so that small batches have several parts, too
    monkeypatch.setattr(moments, "CACHED", 24)


both_ways = pytest.mark.usefixtures("way")


def make(name: str, size: int, **options: object) -> nn.Module:
    settings = NormOptions(**{"groups": GROUPS, **options})  # type: ignore[arg-type]
    encoder = encoder_class(name)(input_size=size, layers=["relu"], norm=settings)
    assert isinstance(encoder, StackEncoder)
    return encoder.make_norm(size)


def ragged(
    lengths: list[int], size: int = 6, padding: float = 0.0, extra: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, T, C) with chosen padding, and its mask."""
    steps = max(lengths) + extra
    x = 3 * torch.randn(len(lengths), max(lengths), size, generator=torch.Generator().manual_seed(3)) + 1
    x = nn.functional.pad(x, (0, 0, 0, extra))
    mask = frame_mask(torch.tensor(lengths), steps)
    return x.masked_fill(~mask.unsqueeze(-1), padding), mask


def group(name: str, x: np.ndarray, lengths: list[int], i: int, t: int, c: int) -> np.ndarray:
    """The numbers that the definition averages over for frame t of utterance i, feature c."""
    width = x.shape[2] // GROUPS
    if name in ("layer_norm", "rms_norm"):
        return x[i, t]
    if name == "group_norm":
        return x[i, : lengths[i], c // width * width : (c // width + 1) * width]
    if name == "instance_norm":
        return x[i, : lengths[i], c]
    if name == "frame_batch_norm":
        return np.stack([x[j, t, c] for j in range(len(lengths)) if lengths[j] > t])
    return np.concatenate([x[j, :n, c] for j, n in enumerate(lengths)])


def oracle(name: str, x: np.ndarray, lengths: list[int], gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Training-mode output of a first batch (of batch renormalization too: nothing to correct towards), 0 in the
    padding; NaN for steps with one live utterance, which frame-wise BN takes from elsewhere."""
    y = np.zeros_like(x)
    if name in IDENTITIES:
        return x
    for i, length in enumerate(lengths):
        for t in range(length):
            for c in range(x.shape[2]):
                values = group(name, x, lengths, i, t, c)
                centre, square = values.mean(), values.var()
                if name == "rms_norm":
                    centre, square = 0.0, (values**2).mean()
                y[i, t, c] = gain[c] * (x[i, t, c] - centre) / np.sqrt(square + EPS) + bias[c]
                if name == "frame_batch_norm" and len(values) < 2:
                    y[i, t, c] = np.nan
    return y


@both_ways
@pytest.mark.parametrize("name", NAMES)
def test_output_equals_numpy(name: str) -> None:
    x, mask = ragged(LENGTHS)
    norm = make(name, 6)
    gain, bias = np.ones(6), np.zeros(6)
    for key, parameter in norm.named_parameters():
        values = torch.randn(6) + 1.5
        parameter.data.copy_(values)
        if "weight" in key:
            gain = values.double().numpy()
        else:
            bias = values.double().numpy()
    expected = oracle(name, x.double().numpy(), LENGTHS, gain, bias)
    got = norm(x, mask).detach().numpy()
    compared = ~np.isnan(expected)
    assert compared.mean() > 0.8
    np.testing.assert_allclose(got[compared], expected[compared], atol=1e-5)


def test_strategies_differ_from_each_other() -> None:
    """A test that cannot tell the norms apart would prove nothing."""
    x, mask = ragged(LENGTHS)
    names = [name for name in NAMES if name not in ("weight_norm", "batch_renorm")]  # their first batch is another's
    outputs = [make(name, 6)(x, mask)[0, :6].detach() for name in names]
    for i, first in enumerate(outputs):
        for second in outputs[i + 1 :]:
            assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_returns_the_very_tensor(name: str) -> None:
    x, mask = ragged(LENGTHS)
    norm = make(name, 6)
    assert norm(x, mask) is x
    assert norm.step(x[:, 0], 0, mask[:, 0]).data_ptr() == x.data_ptr()
    assert not list(norm.parameters())
    assert not list(norm.buffers())


@both_ways
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_no_real_frame(name: str, training: bool) -> None:
    """Neither its content (NaN included, but for the identity) nor its amount."""
    norms = [make(name, 6).train(training) for _ in range(3)]
    outputs = []
    for norm, padding, extra in zip(norms, (0.0, 1e4, float("nan")), (0, 7, 30), strict=True):
        x, mask = ragged(LENGTHS, padding=padding, extra=extra)
        if not training:
            warm, warm_mask = ragged([9, 8, 7, 6])
            norm.train()(warm, warm_mask)
            norm.eval()
        outputs.append(norm(x, mask)[:, : max(LENGTHS)][mask[:, : max(LENGTHS)]])
    for other in outputs[1:]:
        assert torch.allclose(outputs[0], other, atol=1e-6)
    for norm in norms[1:]:
        for a, b in zip(norms[0].buffers(), norm.buffers(), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


@both_ways
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_at_test_time_a_broken_utterance_spoils_no_other(name: str, wrong: float) -> None:
    norm = make(name, 6)
    norm(*ragged([9, 8, 7, 6]))
    x, mask = ragged(LENGTHS)
    expected = norm.eval()(x, mask)
    x[1, 2, 3] = wrong
    others = [0, 2, 3]
    torch.testing.assert_close(norm(x, mask)[others], expected[others])


@both_ways
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_what_padding_holds_leaves_no_trace_in_gradients(name: str, training: bool) -> None:
    """Not finite in the input, and not finite in the gradient that comes in there."""
    found = []
    for padding in (0.0, float("nan"), float("inf")):
        norm = make(name, 6)
        norm(*ragged([9, 8, 7, 6]))
        x, mask = ragged(LENGTHS, padding=padding)
        x.requires_grad_()
        y = norm.train(training)(x, mask)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        y.backward(grad.masked_fill(~mask.unsqueeze(-1), padding))
        assert (y[~mask] == 0).all()
        assert x.grad is not None
        assert (x.grad[~mask] == 0).all()
        found.append([x.grad, *(p.grad for p in norm.parameters())])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


@both_ways
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_gradients(name: str, masked: bool) -> None:
    """Of input, gain and bias against finite differences in float64, on a ragged batch, padding included."""
    x, mask = ragged([5, 3, 3], size=4)
    norm = make(name, 4, masked=masked, min_count=1, renorm_warmup=0).double()
    for parameter in norm.parameters():
        parameter.data.copy_(torch.linspace(0.5, 2.0, 4))
    if name == "batch_renorm":  # r and d are constants for the gradient: made so here by statistics out of reach
        for buffer, value in zip(norm.running.buffers(), (1e3, 1e-4, 9.0), strict=True):
            buffer.fill_(value)
    x = x.double().requires_grad_()
    before = [buffer.clone() for buffer in norm.buffers()]

    def run(values: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        for buffer, value in zip(norm.buffers(), before, strict=True):  # each call starts from the same averages
            buffer.copy_(value)
        y = norm(values, mask)
        # Steps with one live utterance: constants from running averages of x itself.
        return y[:, :3] if name == "frame_batch_norm" and masked else y

    assert torch.autograd.gradcheck(run, (x, *norm.parameters()), atol=1e-6)


@both_ways
@pytest.mark.parametrize("name", NORMS)
def test_gradients_in_eval(name: str) -> None:
    x, mask = ragged([5, 3, 3], size=4)
    norm = make(name, 4, min_count=1).double()
    norm(*(part.double() if part.is_floating_point() else part for part in ragged([5, 4, 4], size=4)))
    inputs = (x.double().requires_grad_(), *norm.eval().parameters())
    assert torch.autograd.gradcheck(lambda values, *_: norm(values, mask), inputs, atol=1e-6)


@both_ways
def test_gradient_against_plain_autograd() -> None:
    """The hand-written backward equals that of the formula written in torch operations."""
    x, mask = ragged(LENGTHS)
    x = x.double().requires_grad_()
    weights = torch.randn_like(x)
    norm = make("sequence_batch_norm", 6).double()
    (norm(x, mask) * weights).sum().backward()
    ours, x.grad = x.grad, None
    real = x[mask]
    y = (real - real.mean(0)) / torch.sqrt(real.var(0, unbiased=False) + EPS)
    (y * weights[mask]).sum().backward()
    assert x.grad is not None
    assert torch.allclose(ours, x.grad, atol=1e-9)


@both_ways
def test_sequence_running_averages() -> None:
    """Three batches of different sizes: moments of all frames, each batch fading by 1 - momentum and weighted by its
    frames."""
    norm = make("sequence_batch_norm", 4)
    frames, weights = [], []
    for number, lengths in enumerate(([7, 3], [2, 2, 2], [9])):
        x = torch.randn(len(lengths), max(lengths), 4) * (number + 1) + number
        norm(x, frame_mask(torch.tensor(lengths), max(lengths)))
        real = np.concatenate([x[i, :n].double().numpy() for i, n in enumerate(lengths)])
        frames.append(real)
        weights = [w * 0.9 for w in weights] + [1.0]
    w = np.concatenate([np.full(len(f), weight) for f, weight in zip(frames, weights, strict=True)])
    values = np.concatenate(frames)
    mean = (w[:, None] * values).sum(0) / w.sum()
    var = (w[:, None] * (values - mean) ** 2).sum(0) / w.sum()
    np.testing.assert_allclose(norm.running.mean.numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(norm.running.var.numpy(), var, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(norm.running.count.numpy(), w.sum(), rtol=1e-6)
    norm.eval()
    x, mask = ragged([3, 2], size=4)
    expected = (x.double().numpy() - mean) / np.sqrt(var + EPS)
    np.testing.assert_allclose(norm(x, mask)[mask].detach().numpy(), expected[mask.numpy()], atol=1e-5)


@both_ways
def test_frame_running_averages_per_step() -> None:
    """Each step keeps its own moments; a batch that does not reach a step leaves it alone."""
    norm = make("frame_batch_norm", 3, min_count=1)
    batches = [torch.randn(4, 6, 3) + 1, torch.randn(4, 2, 3) - 1, torch.randn(4, 6, 3)]
    for x in batches:
        norm(x, torch.ones(x.shape[:2], dtype=torch.bool))
    for t in (0, 1, 4):
        parts = [x[:, t].double().numpy() for x in batches if x.shape[1] > t]
        w = np.concatenate([np.full(4, 0.9 ** (len(parts) - 1 - k)) for k in range(len(parts))])
        values = np.concatenate(parts)
        mean = (w[:, None] * values).sum(0) / w.sum()
        var = (w[:, None] * (values - mean) ** 2).sum(0) / w.sum()
        np.testing.assert_allclose(norm.running.mean[t].numpy(), mean, atol=1e-6)
        np.testing.assert_allclose(norm.running.var[t].numpy(), var, atol=1e-6)
    assert norm.running.count[6:].sum() == 0


def test_frame_tail_pools_the_last_steps_and_serves_any_length() -> None:
    norm = make("frame_batch_norm", 3, min_count=4, momentum=0.0)
    for _ in range(3):
        x, mask = ragged([20, 20, 20, 12, 12, 8], size=3)
        norm(x, mask)
    counts = norm.running.count.squeeze(1)
    assert counts[0] == 18
    assert counts[12] == 9
    assert counts[20] == 0
    (mean, var, _), rare = norm.statistics(600)
    assert not rare[0, :20].any()
    assert rare[0, 20:].all()
    # The tail: the last steps that together hold TAIL * 4 frames, 9 at each step from 12 on.
    first = 20 - int(np.ceil(TAIL * 4 / 9))
    pooled = np.concatenate([x[i, first:20].double().numpy() for i in range(3)])
    np.testing.assert_allclose(mean[0, 25].numpy(), pooled.mean(0), atol=1e-5)
    np.testing.assert_allclose(var[0, 599].numpy(), pooled.var(0), atol=1e-5)
    norm.eval()
    y = norm(torch.randn(2, 600, 3), torch.ones(2, 600, dtype=torch.bool))
    assert torch.isfinite(y).all()
    assert norm.fallback_share == pytest.approx(580 / 600)


@both_ways
def test_frame_steps_beyond_the_storage_share_the_last_row() -> None:
    norm = make("frame_batch_norm", 2, max_steps=4, min_count=1)
    x = torch.randn(3, 9, 2)
    norm(x, torch.ones(3, 9, dtype=torch.bool))
    late = x[:, 3:].double().numpy().reshape(-1, 2)
    np.testing.assert_allclose(norm.running.mean[3].numpy(), late.mean(0), atol=1e-6)
    np.testing.assert_allclose(norm.running.var[3].numpy(), late.var(0), atol=1e-6)


def test_frame_single_live_utterance_uses_running_statistics() -> None:
    """Not zero, as per-step statistics over one utterance would give, and counted."""
    norm = make("frame_batch_norm", 3, min_count=2)
    x, mask = ragged([8, 8, 8, 8], size=3)
    norm(x, mask)
    x, mask = ragged([8, 5, 5], size=3)
    y = norm(x, mask)
    assert y[0, 5:].abs().min() > 1e-4
    assert norm.fallback_share == pytest.approx(3 / 18)


def test_frame_batch_of_one_is_refused_until_statistics_exist() -> None:
    norm = make("frame_batch_norm", 3)
    one = torch.randn(1, 6, 3), torch.ones(1, 6, dtype=torch.bool)
    with pytest.raises(RecipeError, match="batch of one"):
        norm(*one)
    norm(torch.randn(4, 6, 3), torch.ones(4, 6, dtype=torch.bool))
    assert torch.isfinite(norm(*one)).all()
    allowed = make("frame_batch_norm", 3, allow_batch_of_one=True)
    assert torch.isfinite(allowed(*one)).all()


@both_ways
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_half_precision_computes_in_single(name: str, training: bool) -> None:
    """The output is the exact one of the rounded input, rounded; gradients are those of single precision, rounded."""
    x, mask = ragged(LENGTHS)
    rough = x.bfloat16().requires_grad_()
    exact = x.bfloat16().float().requires_grad_()
    for values in (rough, exact):
        norm = make(name, 6)
        norm(*ragged([9, 8, 7, 6]))
        y = norm.train(training)(values, mask)
        assert y.dtype == values.dtype
        y.backward(torch.ones_like(y).cumsum(1))
        if values is rough:
            output, gains = y, [p.grad for p in norm.parameters()]
    torch.testing.assert_close(output, y.bfloat16(), atol=1e-3, rtol=0.01)
    assert rough.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(rough.grad, exact.grad.bfloat16(), atol=1e-3, rtol=0.01)
    torch.testing.assert_close(gains, [p.grad for p in norm.parameters()])


@both_ways
@pytest.mark.parametrize("name", NORMS)
def test_parameters_of_half_precision(name: str) -> None:
    """A 16-bit model works, on 16-bit frames and on the float32 ones that a recurrence hands to its norms."""
    x, mask = ragged(LENGTHS)
    expected = make(name, 6)(x, mask)
    for kind in (torch.bfloat16, torch.float32):
        norm = make(name, 6).bfloat16()
        y = norm(x.to(kind), mask)
        assert y.dtype == kind
        torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.05)
        y.sum().backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in norm.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_without_affine_there_is_nothing_to_learn(name: str) -> None:
    assert not list(make(name, 6, affine=False).parameters())


@pytest.mark.parametrize("name", NORMS)
def test_gain_starts_where_the_recipe_says(name: str) -> None:
    parameters = dict(make(name, 6, gain=0.1).named_parameters())
    assert torch.equal(parameters.pop("affine.weight"), torch.full((6,), 0.1))
    assert all(torch.equal(p, torch.zeros(6)) for p in parameters.values())
    assert (name == "rms_norm") == (not parameters)


@pytest.mark.parametrize("over", ["batch", "utterance", "step"])
@both_ways
def test_moments_far_from_zero(over: str) -> None:
    """E x^2 - (E x)^2 in float32 would have no digit left."""
    x = 1000 + torch.randn(8, 50, 16, generator=torch.Generator().manual_seed(0))
    mask = frame_mask(torch.arange(8) + 43, 50)
    found = moments.masked_moments(x, mask, over)
    values = np.ma.masked_array(x.double().numpy(), np.broadcast_to(~mask[..., None].numpy(), x.shape))
    axes = {"batch": (0, 1), "utterance": 1, "step": 0}[over]
    np.testing.assert_allclose(found.mean.squeeze().numpy(), values.mean(axes).squeeze(), rtol=3e-7)
    np.testing.assert_allclose(found.var.squeeze().numpy(), values.var(axes).squeeze(), rtol=1e-3)
    np.testing.assert_array_equal(found.frames.squeeze().numpy(), mask.numpy().sum(axes))


@pytest.mark.parametrize("name", NORMS)
def test_large_batches_and_views_of_memory(name: str) -> None:
    """A batch that is large enough by itself, in a part of another tensor, equals the same one taken whole."""
    lengths = torch.tensor([150, 77, 149, 0, 1])
    memory = torch.randn(5, 150, 300, generator=torch.Generator().manual_seed(0))
    mask = frame_mask(lengths, 150)
    found = []
    for x in (memory[..., 100:228], memory[..., 100:228].double()):
        norm = make(name, 128, eps=0.1).to(x.dtype)
        assert moments.real_lengths(x, mask) == lengths.tolist()
        x = x.detach().requires_grad_()
        y = norm(x, mask)
        y.backward(memory[..., :128].to(x.dtype))
        found.append([y, x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), atol=1e-4, rtol=1e-5)


@both_ways
def test_real_frames_need_not_come_first() -> None:
    x, _ = ragged([9, 9, 9])
    mask = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.6
    y = make("sequence_batch_norm", 6)(x, mask)
    real = x[mask].double()
    expected = (real - real.mean(0)) / torch.sqrt(real.var(0, correction=0) + EPS)
    np.testing.assert_allclose(y[mask].detach().numpy(), expected.numpy(), atol=1e-5)
    assert (y[~mask] == 0).all()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["sequence_batch_norm", "batch_renorm", "frame_batch_norm"])
def test_a_gradient_in_eval_survives_further_training(name: str, inside: bool) -> None:
    """Its running moments are those of its own forward, whatever comes in before its backward."""
    x, mask = ragged([5, 4, 3])

    def after(training_between: bool) -> torch.Tensor:
        norm = make(name, x.shape[2], min_count=1)
        norm(x, mask)
        leaf = x.clone().requires_grad_()
        norm.eval()
        y = norm.step(leaf[:, 0], 0, mask[:, 0]) if inside else norm(leaf, mask)
        if training_between:
            norm.train()(5 * x + 2, mask)
        y.square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    expected = after(training_between=False)
    assert expected.abs().max() > 0
    torch.testing.assert_close(after(training_between=True), expected, rtol=0, atol=0)
