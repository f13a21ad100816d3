"""The four strategies against formulas written again in NumPy float64, and their gradients against finite
differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asrkit_norms.frame_batch_norm import TAIL, FrameBatchNorm
from asrkit_norms.layer_norm import LayerNorm
from asrkit_norms.none import NoNorm
from asrkit_norms.sequence_batch_norm import SequenceBatchNorm
from torch import nn

from asrkit.encoders import NormOptions
from asrkit.errors import RecipeError
from asrkit.masking import frame_mask

EPS = 1e-5
LENGTHS = [9, 6, 6, 1]


def make(name: str, size: int, **options: object) -> nn.Module:
    settings = NormOptions(**options)  # type: ignore[arg-type]
    if name == "frame_batch_norm":
        return FrameBatchNorm(size, settings)
    if name == "sequence_batch_norm":
        return SequenceBatchNorm(size, settings.eps, settings.affine, settings.momentum)
    if name == "layer_norm":
        return LayerNorm(size, settings.eps, settings.affine)
    return NoNorm()


NAMES = ("none", "layer_norm", "frame_batch_norm", "sequence_batch_norm")


def ragged(
    lengths: list[int], size: int = 5, padding: float = 0.0, extra: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, T, C) with chosen padding, and its mask."""
    steps = max(lengths) + extra
    x = 3 * torch.randn(len(lengths), max(lengths), size, generator=torch.Generator().manual_seed(3)) + 1
    x = nn.functional.pad(x, (0, 0, 0, extra))
    mask = frame_mask(torch.tensor(lengths), steps)
    return x.masked_fill(~mask.unsqueeze(-1), padding), mask


def oracle(name: str, x: np.ndarray, lengths: list[int], gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Training-mode output, one loop per average that the definition names; steps with one live utterance left out
    (NaN)."""
    y = np.zeros_like(x)
    if name == "none":
        return x
    for i, length in enumerate(lengths):
        for t in range(length):
            if name == "layer_norm":
                values = x[i, t]
                y[i, t] = gain * (values - values.mean()) / np.sqrt(values.var() + EPS) + bias
                continue
            if name == "sequence_batch_norm":
                group = np.concatenate([x[j, : lengths[j]] for j in range(len(lengths))])
            else:
                group = np.stack([x[j, t] for j in range(len(lengths)) if lengths[j] > t])
            if name == "frame_batch_norm" and len(group) < 2:
                y[i, t] = np.nan
                continue
            y[i, t] = gain * (x[i, t] - group.mean(0)) / np.sqrt(group.var(0) + EPS) + bias
    return y


@pytest.mark.parametrize("name", NAMES)
def test_output_equals_numpy(name: str) -> None:
    x, mask = ragged(LENGTHS)
    norm = make(name, 5)
    gain, bias = np.ones(5), np.zeros(5)
    for key, parameter in norm.named_parameters():
        values = torch.randn(5) + 1.5
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
    outputs = [make(name, 5)(x, mask)[0, :6].detach() for name in NAMES]
    for i, first in enumerate(outputs):
        for second in outputs[i + 1 :]:
            assert (first - second).abs().max() > 0.1


def test_none_is_the_identity() -> None:
    x, mask = ragged(LENGTHS)
    norm = NoNorm()
    assert norm(x, mask) is x
    assert not list(norm.parameters())
    assert not list(norm.buffers())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_no_real_frame(name: str, training: bool) -> None:
    """Neither its content (NaN included, but for the identity) nor its amount."""
    norms = [make(name, 5).train(training) for _ in range(3)]
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


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    """Against finite differences in float64, on a ragged batch, with the padding asked for as well."""
    x, mask = ragged([5, 3, 3], size=3)
    norm = make(name, 3, min_count=1).double()
    x = x.double().requires_grad_()
    before = [buffer.clone() for buffer in norm.buffers()]

    def run(values: torch.Tensor) -> torch.Tensor:
        for buffer, value in zip(norm.buffers(), before, strict=True):  # each call starts from the same averages
            buffer.copy_(value)
        y = norm(values, mask)
        return y[:, :3] if name == "frame_batch_norm" else y  # later steps: constants from running averages of x itself

    assert torch.autograd.gradcheck(run, (x,), atol=1e-6)


def test_gradient_against_plain_autograd() -> None:
    """The hand-written backward equals that of the formula written in torch operations."""
    x, mask = ragged(LENGTHS)
    x = x.double().requires_grad_()
    weights = torch.randn_like(x)
    norm = make("sequence_batch_norm", 5).double()
    (norm(x, mask) * weights).sum().backward()
    ours, x.grad = x.grad, None
    real = x[mask]
    y = (real - real.mean(0)) / torch.sqrt(real.var(0, unbiased=False) + EPS)
    (y * weights[mask]).sum().backward()
    assert x.grad is not None
    assert torch.allclose(ours, x.grad, atol=1e-9)


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
    mean, var, rare = norm.statistics(600)
    assert not rare[:20].any()
    assert rare[20:].all()
    # The tail: the last steps that together hold TAIL * 4 frames, 9 at each step from 12 on.
    first = 20 - int(np.ceil(TAIL * 4 / 9))
    pooled = np.concatenate([x[i, first:20].double().numpy() for i in range(3)])
    np.testing.assert_allclose(mean[25].numpy(), pooled.mean(0), atol=1e-5)
    np.testing.assert_allclose(var[599].numpy(), pooled.var(0), atol=1e-5)
    norm.eval()
    y = norm(torch.randn(2, 600, 3), torch.ones(2, 600, dtype=torch.bool))
    assert torch.isfinite(y).all()
    assert norm.fallback_share == pytest.approx(580 / 600)


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


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_computes_statistics_in_single(name: str) -> None:
    x, mask = ragged(LENGTHS)
    exact, rough = make(name, 5)(x, mask), make(name, 5)(x.bfloat16(), mask)
    assert rough.dtype in (torch.bfloat16, torch.float32)
    assert (exact - rough.float()).abs().max() < 0.15


@pytest.mark.parametrize("name", NAMES)
def test_without_affine_there_is_nothing_to_learn(name: str) -> None:
    assert not list(make(name, 5, affine=False).parameters())
