"""Check of the declared scope: over which numbers a norm takes its mean and variance, by NumPy in float64.

A norm module (or its encoder class) declares one of

* `none`: y = x. `frame`: each (b, t) over C. `frame_rms`: the same without a mean, by the root mean square.
* `step`: each (t, c) over the utterances alive at t. `sequence`: each c over all real frames of the batch.
* `utterance`: each (b, c) over the real frames of b. `group`: each b and group of features, over both.
* `weights`: the layer is left alone and its weights are normalized instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asrkit.encoders import StackEncoder
from asrkit.testing.case import Case
from asrkit.testing.result import NotApplicable

SCOPES = ("none", "frame", "frame_rms", "step", "sequence", "utterance", "group", "weights")
SIZE, LENGTHS = 8, (11, 8, 8, 3)
MANY, LONG = 32, (300, 270, 13, 280)  # enough numbers for what implementations do with large batches only
Array = np.ndarray[Any, Any]


def declared_scope(encoder: StackEncoder, norm: nn.Module) -> str | None:
    """What the norm says of itself, else the encoder's class."""
    return getattr(norm, "scope", None) or getattr(type(encoder), "scope", None)


def check_scope(case: Case) -> None:
    """The statistics are over exactly what is declared, in training, with gain 1 and bias 0."""
    encoder = case.build()
    if not isinstance(encoder, StackEncoder):
        raise NotApplicable("it has no make_norm: there is no norm to look at")
    scope = declared_scope(encoder, encoder.make_norm(SIZE))
    batches = [scope_batch(SIZE, LENGTHS), scope_batch(MANY, LONG, padding=np.nan)]
    fits = [_fits(case, encoder, *batch) for batch in batches]
    fitting = [name for name in fits[0] if all(off[name] < TOL for off in fits)]
    if scope is None:
        found = f"; by measurement it is {fitting[0]!r}" if fitting else ""
        raise NotApplicable(f"it declares no scope (one of {', '.join(SCOPES)}){found}")
    case.require(scope in SCOPES, f"scope = {scope!r} is none of {', '.join(SCOPES)}")
    if scope == "weights":
        case.require(fitting[:1] == ["none"], "scope 'weights' leaves frames alone, but its norm changes them")
        _check_weights(case)
        return
    found = f"; it fits {fitting[0]!r}" if fitting else ""
    what = f"declared {scope!r}{found}: from (x - mean) / sqrt(var + eps) over that scope the output is off by"
    for off in fits:
        case.measure(off[scope], TOL, what)
    if scope in ("frame", "frame_rms", "group"):
        for batch in (scope_batch(), scope_batch(MANY, range(1, 25))):
            _check_step(case, encoder, *(torch.from_numpy(array) for array in batch))
    elif scope in ("step", "sequence"):
        _check_batch_step(case, encoder)


@torch.no_grad()
def _check_step(case: Case, encoder: StackEncoder, x: Tensor, mask: Tensor) -> None:
    """`step`, where the norm has one, is `forward` of the single frame: x (B, T, C), mask (B, T)."""
    for training in (True, False):
        norms: list[Any] = [encoder.make_norm(x.shape[2]).double().train(training) for _ in range(2)]
        if not hasattr(norms[0], "step"):
            return
        for norm in norms:
            for parameter in norm.parameters():
                if parameter.shape == x.shape[2:]:
                    parameter.copy_(torch.linspace(0.5, 2.0, x.shape[2]))
        for t in range(x.shape[1]):
            here, real = mask[:, t : t + 1], x[:, t : t + 1]
            whole, single = norms[0](real, here)[:, 0], norms[1].step(x[:, t], t, mask[:, t])
            what = "of one frame, the norm's forward and its step (inside a recurrence) differ by"
            case.close(single[mask[:, t]], whole[mask[:, t]], 1e-8, what)


@torch.no_grad()
def _check_batch_step(case: Case, encoder: StackEncoder) -> None:
    """`step`, where a norm over the batch has one: inside a recurrence its batch is what is alive at a step."""
    norm: Any = encoder.make_norm(SIZE).double().train()
    if not hasattr(norm, "step"):
        return
    array, real = scope_batch()
    expected = standardized("step", array, real, case.norm.eps, 1)
    x, mask = torch.from_numpy(array), torch.from_numpy(real)
    y = np.stack([norm.step(x[:, t], t, mask[:, t]).numpy() for t in range(x.shape[1])], 1)
    known = ~np.isnan(expected)
    off = np.abs(y - expected)[known]
    what = "in training, its step (inside a recurrence) is off from the mean and variance of what is alive by"
    case.measure(float(off.max()) if np.isfinite(off).all() else float("inf"), TOL, what)


TOL = 1e-4


def scope_batch(size: int = SIZE, lengths: Sequence[int] = LENGTHS, padding: float = 1.0) -> tuple[Array, Array]:
    """x (B, T, C) float64, mask (B, T): features, frames and utterances all of their own size and place, noise times
    `padding` past each end."""
    rng = np.random.default_rng(4)
    batch, frames = len(lengths), max(lengths)
    x = rng.normal(size=(batch, frames, size)) * rng.uniform(0.5, 3, size=(batch, 1, size))
    x += rng.normal(size=(1, frames, size)) + 2 * rng.normal(size=(batch, 1, size))
    mask = np.arange(frames) < np.array(lengths)[:, None]
    x[~mask] *= padding
    return x, mask


def groups_of(scope: str, mask: Array, size: int, groups: int) -> Iterator[tuple[Any, ...]]:
    """Index arrays (b, t, c) of the real numbers that share one mean and variance, one group after the other."""
    batch, frames = np.nonzero(mask)
    features = np.arange(size)
    parts = np.split(features, groups) if scope == "group" else np.split(features, size)
    if scope in ("frame", "frame_rms"):
        chosen, parts = [slice(i, i + 1) for i in range(len(batch))], [features]
    elif scope == "step":
        chosen = [frames == t for t in range(mask.shape[1])]
    elif scope == "sequence":
        chosen = [slice(None)]
    else:
        chosen = [batch == b for b in range(mask.shape[0])]
    for which in chosen:
        for part in parts:
            yield batch[which][:, None], frames[which][:, None], part[None]


def standardized(scope: str, x: Array, mask: Array, eps: float, groups: int) -> Array:
    """What the scope's norm gives, NaN in the padding and where a variance of one number says nothing."""
    if scope == "none":
        return np.where(mask[:, :, None], x, np.nan)
    y = np.full_like(x, np.nan)
    for index in groups_of(scope, mask, x.shape[2], groups):
        values = x[index]
        if values.size < 2:
            continue
        mean = 0.0 if scope == "frame_rms" else values.mean()
        y[index] = (values - mean) / np.sqrt(((values - mean) ** 2).mean() + eps)
    return y


@torch.no_grad()
def _fits(case: Case, encoder: StackEncoder, x: Array, mask: Array) -> dict[str, float]:
    """For each scope the largest distance of the norm's output from what that scope would give."""
    norm = encoder.make_norm(x.shape[2]).double().train()
    y = norm(torch.from_numpy(x), torch.from_numpy(mask)).numpy()
    found = {}
    for scope in SCOPES[:-1]:
        expected = standardized(scope, x, mask, case.norm.eps, int(getattr(case.norm, "groups", 1)))
        known = ~np.isnan(expected)
        off = np.abs(y[known] - expected[known])
        found[scope] = float(off.max()) if np.isfinite(off).all() else float("inf")
    return found


def _check_weights(case: Case) -> None:
    """A normalized weight does not care how long its raw vectors are: doubling them changes nothing."""
    batch = case.batch()
    expected = case.evaluate(*batch, case.build()).real
    plain = dict(case.build().named_parameters())
    free = 0
    for name, parameter in plain.items():
        encoder = case.build()
        with torch.no_grad():
            dict(encoder.named_parameters())[name].mul_(2.0)
            out = case.evaluate(*batch, encoder).real
        free += parameter.dim() > 1 and bool((out - expected).abs().max() < 1e-5)
    case.require(free > 0, "scope 'weights', but doubling any weight changes the output: none is normalized")
