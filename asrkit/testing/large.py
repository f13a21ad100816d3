"""The norm alone on a large batch: faults that only a way for large batches has, of many frames or many utterances.

Each function is the large part of the check of its name, once per encoder. Encoders without `make_norm` have no norm to
look at, and nothing is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.encoders import StackEncoder
from asrkit.testing.case import NAN, Case, buffers, gradients
from asrkit.testing.scope import LONG, MANY, scope_batch

MATES = 22  # utterances beside those of LONG, of 8 to 260 frames
LENGTHS = (*LONG, *(8 + 12 * i for i in range(MATES)))
WHAT = f"the norm alone, on {len(LENGTHS)} utterances of up to {max(LENGTHS)} frames"
Make = Callable[[bool], nn.Module]


def _once(check: Callable[[Case, Make], None]) -> Callable[[Case], None]:
    """In the kit's first stack only, for norms: the check is given a maker of norms, training or not."""

    @wraps(check)
    def run(case: Case) -> None:
        encoder = case.build() if case.first else None
        if isinstance(encoder, StackEncoder):
            check(case, lambda training: _norm(encoder, training))

    return run


def _norm(encoder: StackEncoder, training: bool) -> nn.Module:
    """A norm with gains some way from 1 that has seen the batch once, turned round."""
    torch.manual_seed(0)
    norm = encoder.make_norm(MANY).train()
    x, mask = _batch()
    with torch.no_grad():
        for parameter in norm.parameters():
            if parameter.shape == (MANY,):
                parameter.copy_(torch.linspace(0.5, 2.0, MANY))
        norm(x.flip(0), mask.flip(0))
    return norm.train(training)


def _batch(fill: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor]:
    """x (B, T + extra, C) float32 with `fill` in the padding, mask (B, T + extra)."""
    array, real = scope_batch(MANY, LENGTHS)
    x, mask = torch.from_numpy(array).float(), torch.from_numpy(real)
    x, mask = F.pad(x, (0, 0, 0, extra)), F.pad(mask, (0, extra))
    return x.masked_fill(~mask.unsqueeze(-1), fill), mask


@_once
@torch.no_grad()
def padding_eval(case: Case, make: Make) -> None:
    """Numbers only, no NaN: a StackEncoder hides that before its first layer."""
    x, mask = _batch()
    expected = make(False)(x, mask)[mask]
    for fill, extra in ((-1e4, 0), (1e4, 37)):
        x, mask = _batch(fill, extra)
        what = f"{WHAT}: {fill:g} in the padding changes real frames by"
        case.close(make(False)(x, mask)[mask], expected, 1e-5, what)


@_once
def padding_train(case: Case, make: Make) -> None:
    expected, grads, kept, _ = _step(case, make, *_batch())
    out, other_grads, other_kept, _ = _step(case, make, *_batch(1e4, 37))
    what = f"{WHAT}: 10000 in the padding changes"
    case.close(out, expected, 1e-5, f"{what} real frames by")
    for name, grad in grads.items():
        case.close(other_grads[name], grad, 1e-4, f"{what} the gradient of {name} by")
    for name, buffer in kept.items():
        if buffer.is_floating_point():
            case.close(other_kept[name], buffer, 1e-5, f"{what} the buffer {name} by")


@_once
def padding_output(case: Case, make: Make) -> None:
    """What a norm alone leaves in the padding is its own business, but no gradient of real frames goes there."""
    x, mask = _batch(1.0)
    _, grads, _, grad = _step(case, make, x, mask)
    case.finite(grads, f"{WHAT}: the gradient of")
    if grad is not None:
        case.require(not bool(grad[~mask].any()), f"{WHAT}: a gradient reaches the padding")


@_once
@torch.no_grad()
def batch_mates(case: Case, make: Make) -> None:
    x, mask = _batch()
    expected = make(False)(x, mask)
    for index in (torch.tensor([0, 1]), torch.tensor([2, 3, 7]), torch.arange(len(LENGTHS)).flip(0)):
        out = make(False)(x[index], mask[index])[mask[index]]
        what = f"{WHAT}: with others beside them, real frames change by"
        case.close(out, expected[index][mask[index]], 1e-5, what)


@_once
@torch.no_grad()
def nan(case: Case, make: Make) -> None:
    x, mask = _batch()
    expected = make(False)(x, mask)[1:][mask[1:]]
    bad = x.clone()
    bad[0, 5, 3] = NAN
    norm = make(False)
    with case.refusable(f"{WHAT}: NaN in eval"):
        case.close(norm(bad, mask)[1:][mask[1:]], expected, 1e-5, f"{WHAT}: NaN in one utterance changes others by")
    case.finite(buffers(norm), f"{WHAT}: after a NaN in eval, the buffer")
    norm = make(True)
    with case.refusable(f"{WHAT}: NaN in training"):
        norm(bad, mask)
    case.finite(buffers(norm), f"{WHAT}: after a NaN in training, the buffer")
    case.finite(norm(x, mask)[mask], f"{WHAT}: one batch after a NaN, the output")


def _step(
    case: Case, make: Make, x: Tensor, mask: Tensor
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """One batch in training: the real frames of the output, gradients (per frame), buffers, the input's gradient."""
    norm: Any = make(True)
    x.requires_grad_()
    real = norm(x, mask)[mask]
    (case.loss(real) / len(real)).backward()
    grads = {name: grad for name, grad in gradients(norm).items() if grad is not None}
    if x.grad is not None:
        grads["the input"] = x.grad[mask] * len(real)
    return real.detach(), grads, buffers(norm), x.grad
