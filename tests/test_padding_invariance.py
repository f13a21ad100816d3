"""Padding, batch mates, their order and number: what a real frame gets does not depend on them, in every placement.

At test time on nothing but the utterance itself; in training batch statistics depend on the batch mates, of course, but
still not on the padding, unless a recipe asks for that with `masked: false`.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from norm_oracle import ORACLES
from norm_product import build, our_strategies, scatter_affine
from recurrent_oracle import PLACEMENTS
from torch import Tensor

from asrkit.encoders import Encoder

LENGTHS = [6, 3, 5, 1]
CASES = [
    (name, placement)
    for name, placement in itertools.product(our_strategies(), PLACEMENTS)
    if placement not in ("recurrent", "hidden", "joined") or ORACLES[name].in_recurrence
]
EVERY = pytest.mark.parametrize(("name", "placement"), CASES, ids=str)
CELLS = pytest.mark.parametrize("cell", ["gru", "lstm"])
TOLERANCE = 1e-5


def batch(lengths: list[int], extra: int = 0, filler: float = float("nan")) -> tuple[Tensor, Tensor]:
    x = torch.randn(len(lengths), max(lengths) + extra, 4) * 1.5 + 0.5
    for b, length in enumerate(lengths):
        x[b, length:] = filler
    return x, torch.tensor(lengths)


def padded(x: Tensor, extra: int, filler: float) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, extra), value=filler)


def warm(name: str, placement: str, cell: str) -> Encoder:
    """Two layers in both directions, after two batches of training."""
    encoder = build(name, cell, placement, layers=2, size=8)
    scatter_affine(encoder)
    encoder.train()
    with torch.no_grad():
        for lengths in ([6, 3, 4, 4], [2, 5, 4]):
            encoder(*batch(lengths))
    return encoder


@torch.no_grad()
def real_frames(encoder: Encoder, x: Tensor, lengths: Tensor) -> list[Tensor]:
    y = encoder(x, lengths)[0]
    return [y[b, :length] for b, length in enumerate(lengths.tolist())]


@CELLS
@EVERY
def test_at_test_time_an_utterance_is_alone(name: str, placement: str, cell: str) -> None:
    encoder = warm(name, placement, cell).eval()
    x, lengths = batch(LENGTHS)
    expected = real_frames(encoder, x, lengths)
    order = [2, 0, 3, 1]
    others, other_lengths = batch([2, 6, 4])
    mates = torch.cat([x, 100 * others.nan_to_num()]), torch.cat([lengths, other_lengths])
    found = {
        "more padding": real_frames(encoder, padded(x, 5, 1e4), lengths),
        "another order": [real_frames(encoder, x[order], lengths[order])[order.index(b)] for b in range(4)],
        "other batch mates": real_frames(encoder, *mates)[:4],
        "batches of one": [
            real_frames(encoder, x[b : b + 1, :n], lengths[b : b + 1])[0] for b, n in enumerate(LENGTHS)
        ],
    }
    for what, frames in found.items():
        for one, another in zip(expected, frames, strict=True):
            assert torch.isfinite(one).all()
            torch.testing.assert_close(another, one, rtol=0, atol=TOLERANCE, msg=lambda text, what=what: what + text)


@CELLS
@EVERY
def test_padding_changes_nothing_in_training(name: str, placement: str, cell: str) -> None:
    """Neither its amount nor what is in it; running statistics and gradients are the same as well."""
    start = warm(name, placement, cell)
    x, lengths = batch(LENGTHS)
    results = []
    for extra, filler in ((0, 0.0), (7, 1e4), (3, float("nan"))):
        encoder = copy.deepcopy(start)
        given = padded(x, extra, filler).requires_grad_()
        y = encoder(given, lengths)[0][:, : max(LENGTHS)]
        y.square().sum().backward()
        assert given.grad is not None
        gradients = [parameter.grad for parameter in encoder.parameters()]
        results.append((y, given.grad[:, : max(LENGTHS)], gradients, list(encoder.buffers())))
    for y, grad, gradients, buffers in results[1:]:
        torch.testing.assert_close(y, results[0][0], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(grad, results[0][1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradients, results[0][2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(buffers, results[0][3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["frame_batch_norm", "sequence_batch_norm", "batch_renorm", "group_norm", "instance_norm"]
)
def test_unmasked_statistics_do_depend_on_the_padding(name: str) -> None:
    """What the tests above would find if padding were counted: the common bug, here as an option to measure it."""
    encoder = build(name, "gru", "gates", masked=False)
    x, lengths = batch(LENGTHS, filler=0.0)
    short = real_frames(copy.deepcopy(encoder), x, lengths)
    long = real_frames(copy.deepcopy(encoder), padded(x, 7, 0.0), lengths)
    if name == "frame_batch_norm":  # at every step all utterances count, however many steps follow
        masked = build(name, "gru", "gates")
        masked.load_state_dict(encoder.state_dict())
        long = real_frames(masked, x, lengths)
    assert max(float((a - b).abs().max()) for a, b in zip(short, long, strict=True)) > 1e-2
