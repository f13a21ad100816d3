"""The NumPy oracle of the placement tests against torch's own modules, where torch has them."""

from __future__ import annotations

from typing import Any

import norm_oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from norm_oracle import ORACLES, Norm
from recurrent_oracle import Layer
from torch import Tensor, nn

LENGTHS = [6, 3, 5, 1]


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * 2 + 1


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("directions", [1, 2])
def test_cells_are_those_of_torch(cell: str, directions: int) -> None:
    module = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](3, 4, bidirectional=directions == 2, batch_first=True).double()
    names = {"weight_input": "weight_ih", "weight_recurrent": "weight_hh", "bias_input": "bias_ih"}
    names["bias_recurrent"] = "bias_hh"
    weights = {
        ours: np.stack([getattr(module, f"{theirs}_l0{end}").detach().numpy() for end in ("", "_reverse")[:directions]])
        for ours, theirs in names.items()
    }
    x = values(4, 6, 3)
    y = Layer(cell, "none", weights).forward(x.numpy(), LENGTHS)
    for b, length in enumerate(LENGTHS):
        np.testing.assert_allclose(y[b, :length], module(x[b : b + 1, :length])[0][0].detach().numpy(), atol=1e-12)
        assert not y[b, length:].any()


def torch_norms(x: Tensor, gain: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Outputs (B, T, C) of torch's functions for a batch without padding; eps is 1e-3 throughout."""
    channels = x.transpose(1, 2)
    batches = F.batch_norm(channels, None, None, gain, bias, training=True, eps=1e-3).transpose(1, 2)
    steps = [F.batch_norm(x[:, t], None, None, gain, bias, training=True, eps=1e-3) for t in range(x.shape[1])]
    return {
        "none": x,
        "weight_norm": x,
        "layer_norm": F.layer_norm(x, (x.shape[2],), gain, bias, eps=1e-3),
        "rms_norm": F.rms_norm(x, (x.shape[2],), gain, eps=1e-3) + bias,
        "group_norm": F.group_norm(channels, 2, gain, bias, eps=1e-3).transpose(1, 2),
        "instance_norm": F.instance_norm(channels, weight=gain, bias=bias, eps=1e-3).transpose(1, 2),
        "frame_batch_norm": torch.stack(steps, 1),
        "sequence_batch_norm": batches,
        "batch_renorm": batches,  # nothing is seen yet, so there is nothing to correct towards
    }


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_norms_are_those_of_torch(name: str) -> None:
    x, gain, bias = values(4, 6, 8), values(8), values(8)
    norm = ORACLES[name](8, gain.numpy(), bias.numpy(), eps=1e-3, groups=2)
    norm.training = True
    expected = torch_norms(x, gain, bias)[name].numpy()
    np.testing.assert_allclose(norm.forward(x.numpy(), [6] * 4), expected, atol=1e-12)
    # Padding is left out: each utterance's own norms are those of the utterance alone.
    if name in ("layer_norm", "rms_norm", "group_norm", "instance_norm"):
        y = norm.forward(x.numpy(), LENGTHS)
        for b, length in enumerate(LENGTHS):
            alone = x[b : b + 1, :length]
            if length > 1:  # torch's instance norm refuses one frame
                np.testing.assert_allclose(y[b, :length], torch_norms_alone(name, alone, gain, bias), atol=1e-12)
            assert not y[b, length:].any()


def torch_norms_alone(name: str, x: Tensor, gain: Tensor, bias: Tensor) -> Any:
    return torch_norms(torch.cat([x, x]), gain, bias)[name][0].numpy()


@pytest.mark.parametrize("name", ["frame_batch_norm", "sequence_batch_norm", "batch_renorm"])
def test_the_steps_of_a_forward_leave_the_running_statistics_of_one_update(name: str) -> None:
    together, stepwise = (ORACLES[name](3, min_count=1) for _ in range(2))
    for norm in (together, stepwise):
        norm.training = True
    for lengths in (LENGTHS, [2, 4, 4, 4]):
        x = values(4, max(lengths), 3).numpy()
        together.forward(x, lengths)
        for t in range(max(lengths)):
            stepwise.step(x[:, t], t, np.array(lengths) > t)
    probe = values(4, 6, 3).numpy()
    outputs = []
    for norm in (together, stepwise):
        norm.training = False
        outputs.append(norm.forward(probe, LENGTHS))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-12)
    assert np.abs(outputs[0] - probe)[0].max() > 0.1


def test_batch_renorm_by_hand() -> None:
    """Two frames, then two others: r and d from the running moments of the first, clipped and not."""
    for r_max, d_max in ((100.0, 100.0), (1.5, 0.25), (1.0, 0.0)):
        norm = ORACLES["batch_renorm"](1, eps=0.0, renorm_r=r_max, renorm_d=d_max, renorm_warmup=0)
        norm.training = True
        norm.forward(np.array([[[-1.0], [1.0]]]), [2])  # mean 0, variance 1
        y = norm.forward(np.array([[[1.0], [5.0]]]), [2])  # mean 3, variance 4: r = 2, d = 3
        r, d = min(2.0, r_max), min(3.0, d_max)
        np.testing.assert_allclose(y[0, :, 0], [-r + d, r + d])
    assert norm.window.count == pytest.approx(2 + 1.8)


def test_batch_renorm_warms_up_over_updates() -> None:
    norm = norm_oracle.BatchRenorm(1, renorm_r=3.0, renorm_d=5.0, renorm_warmup=4)
    limits = []
    for _ in range(6):
        norm.begin()
        limits.append(norm.before[3:])
    assert limits == [(1.0, 0.0), (1.5, 1.25), (2.0, 2.5), (2.5, 3.75), (3.0, 5.0), (3.0, 5.0)]


def test_layer_norm_in_a_step_is_that_of_the_frame() -> None:
    norm: Norm = ORACLES["layer_norm"](4)
    x = values(2, 4)
    np.testing.assert_allclose(
        norm.step(x.numpy(), 3, np.array([True, False]))[0], F.layer_norm(x, (4,))[0].numpy(), atol=1e-12
    )


def test_weight_norm_is_that_of_torch() -> None:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(3, 5).double())
    g, v = linear.parametrizations.weight.original0, linear.parametrizations.weight.original1
    with torch.no_grad():
        g.normal_()
    found = norm_oracle.weight_norm(g.detach().numpy()[:, 0], v.detach().numpy())
    np.testing.assert_allclose(found, linear.weight.detach().numpy(), atol=1e-14)
