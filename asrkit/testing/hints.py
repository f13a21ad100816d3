"""Check of the hints by which a norm lets a recurrent layer take a shorter way; a false one gives wrong numbers.

`identity`: may be left out. `per_feature`: features do not see each other, so they may be grouped. `order_free`: a
permutation of an utterance's real frames permutes the output. `row_norm()`: gain, bias, eps and whether it is centred,
of a norm of each frame. `rule(frames)`: what `forward` standardizes by. Without a hint the layer takes the long way,
which is always right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asrkit.encoders import StackEncoder
from asrkit.normalization import PaddedFrames, standardize
from asrkit.normalization.contract import rule_of
from asrkit.testing.case import Case
from asrkit.testing.result import NotApplicable
from asrkit.testing.scope import SIZE, scope_batch

HINTS = ("identity", "per_feature", "order_free")


def check_hints(case: Case) -> None:
    """Every hint is true, in training and in eval."""
    encoder = case.build()
    if not isinstance(encoder, StackEncoder):
        raise NotApplicable("it has no make_norm: there is no norm to look at")
    norm = encoder.make_norm(SIZE)
    given = [hint for hint in HINTS if getattr(norm, hint, False) is True]
    row, rule = (getattr(norm, name, None) for name in ("row_norm", "rule"))
    if not given and rule is None and (row is None or row() is None):
        raise NotApplicable("its norm gives no hints, and recurrent layers take the long way")
    for training in (True, False):
        for hint in given:
            _CHECKS[hint](case, encoder, training)
        if row is not None and row() is not None:
            _row_norm(case, encoder, training)
        if rule is not None:
            _rule(case, encoder, training)


def _norm(encoder: StackEncoder, size: int, training: bool, features: slice = slice(None)) -> nn.Module:
    """A norm in float64 that has seen one batch of these features; gain and bias, where it has them, not 1 and 0."""
    norm = encoder.make_norm(size).double().train()
    for parameter in norm.parameters():
        if parameter.shape == (size,):
            parameter.data = torch.linspace(0.5, 2.0, SIZE, dtype=torch.float64)[features].clone()
    x, mask = _batch()
    with torch.no_grad():
        norm(x[..., features].flip(0), mask.flip(0))
    return norm.train(training)


def _batch() -> tuple[Tensor, Tensor]:
    x, mask = scope_batch()
    return torch.from_numpy(x), torch.from_numpy(mask)


@torch.no_grad()
def _identity(case: Case, encoder: StackEncoder, training: bool) -> None:
    norm, (x, mask) = _norm(encoder, SIZE, training), _batch()
    case.close(norm(x, mask), x, 0.0, "hint 'identity': the norm changes its input by")
    case.require(not list(norm.parameters()), "hint 'identity': the norm has parameters")


@torch.no_grad()
def _per_feature(case: Case, encoder: StackEncoder, training: bool) -> None:
    """The first half of the features alone, and as part of the whole."""
    half, (x, mask) = slice(SIZE // 2), _batch()
    whole = _norm(encoder, SIZE, training)(x, mask)[..., half][mask]
    alone = _norm(encoder, SIZE // 2, training, half)(x[..., half], mask)[mask]
    case.close(alone, whole, 1e-8, "hint 'per_feature': without half of the features the others change by")


@torch.no_grad()
def _order_free(case: Case, encoder: StackEncoder, training: bool) -> None:
    """Every utterance's real frames in reverse order."""
    x, mask = _batch()
    mirrored = x.clone()
    for row, n in enumerate(mask.sum(1).tolist()):
        mirrored[row, :n] = x[row, :n].flip(0)
    expected = _norm(encoder, SIZE, training)(x, mask)
    out = _norm(encoder, SIZE, training)(mirrored, mask)
    for row, n in enumerate(mask.sum(1).tolist()):
        what = "hint 'order_free': with the frames in another order the output changes by"
        case.close(out[row, :n].flip(0), expected[row, :n], 1e-8, what)


@torch.no_grad()
def _row_norm(case: Case, encoder: StackEncoder, training: bool) -> None:
    """gain (x - m) / sqrt(v + eps) + bias from what row_norm() says, beside forward and step."""
    norm: Any = _norm(encoder, SIZE, training)
    x, mask = _batch()
    row = norm.row_norm()
    centred = x - x.mean(-1, keepdim=True) if row.centred else x
    expected = centred / (centred.square().mean(-1, keepdim=True) + row.eps).sqrt()
    expected = expected if row.weight is None else expected * row.weight
    expected = expected if row.bias is None else expected + row.bias
    case.close(norm(x, mask)[mask], expected[mask], 1e-8, "row_norm() and the norm itself differ by")
    if hasattr(norm, "step"):
        out = torch.stack([norm.step(x[:, t], t, mask[:, t]) for t in range(x.shape[1])], 1)
        case.close(out[mask], expected[mask], 1e-8, "row_norm() and the norm's step differ by")


def _rule(case: Case, encoder: StackEncoder, training: bool) -> None:
    """One norm by its forward, another by its rule: outputs, gradients, and what they remember."""
    (x, mask), found = _batch(), list[dict[str, Any]]()
    for by_rule in (False, True):
        norm, leaf = _norm(encoder, SIZE, training), x.clone().requires_grad_()
        y = standardize(leaf, mask, *rule_of(norm, PaddedFrames(leaf, mask))) if by_rule else norm(leaf, mask)
        case.loss(y[mask]).backward()  # type: ignore[no-untyped-call]
        gradients = {f"the gradient of {name}": p.grad for name, p in norm.named_parameters() if p.grad is not None}
        found.append({"the output": y[mask], "the gradient of the input": leaf.grad, **gradients,
                      **{f"buffer {name}": value.double() for name, value in norm.named_buffers()}})  # fmt: skip
    forward, rule = found
    case.require(forward.keys() == rule.keys(), "by rule() and by forward, not the same parameters have a gradient")
    for name, expected in forward.items():
        case.close(rule[name], expected, 1e-8, f"by rule() and by forward, {name} differs by")


_CHECKS = {"identity": _identity, "per_feature": _per_feature, "order_free": _order_free}
