"""Norms with statistics of the batch: is the batch large enough, and is evaluation what training was?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.diagnostics.findings import Finding, finding
from asrkit.diagnostics.hooks import Given, inputs_of, is_norm, outputs_of
from asrkit.diagnostics.probes import Probe, evaluation, short, untouched

# Mean output of a norm, per feature, in its own standard deviations: a batch of speakers differs from the average by
# 0.1 to 0.2, padding in the statistics moves it by 0.4 (N01), statistics never learned by 1.
MISMATCH_ERROR, MISMATCH = 1.0, 0.5
SMALL_BATCH = 4  # utterances; N02
# Of torch's norms, (N, C, ...): those that take their statistics over more than one frame.
OVER_FRAMES = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
MOVED = 0.02  # of the spread of a norm's output, by what is put into its padding: rounding is far below


def check_norms(probe: Probe, model: nn.Module, trained: bool) -> list[Finding]:
    """Torch's batch norms with a small batch; with `trained`, each norm with buffers in training and in evaluation."""
    found = []
    torchs = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    batch = len(probe.features)
    if batch < SMALL_BATCH and torchs:
        words = f"{len(torchs)} batch norms, {batch} utterances in the batch"
        found.append(finding("batch_too_small_for_bn", "warning", words))
    norms = {n: m for n, m in model.named_modules() if is_norm(m) and any(True for _ in m.buffers())}
    if not trained or not norms:
        return found
    with outputs_of(norms) as kept:
        probe()
        evaluated = dict(kept)
        with untouched(model):
            evaluation(model, norms_training=True)
            probe()
        for name, output in evaluated.items():
            found += _judge_mismatch(probe, name, output, kept[name])
    return found


def check_unpacked(probe: Probe, model: nn.Module) -> list[Finding]:
    """Norms between layers that pack: what they get is unpacked, and padding that is added to the model's input never
    reaches it.

    Their padding are the places where other audio changes nothing, if these are about as many as there must be. What is
    put there must not move the norm's other outputs: it does not if they are left out, by a norm of one's own.
    """
    norms: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if isinstance(m, OVER_FRAMES)}
    lengths, frames = probe.lengths.double(), probe.features.shape[1]
    least, most = float(1 - lengths.mean() / lengths.max()), float(1 - lengths.mean() / frames)
    if not norms or least == 0:
        return []
    calls: list[dict[str, Given]] = [{}, {}]
    with untouched(model):
        evaluation(model)
        for call, features in zip(calls, (None, probe.noisy()), strict=True):
            with inputs_of(norms, call):
                probe(features)
        for name in [name for name in calls[0] if name in calls[1]]:
            (args, keywords), (others, _) = calls[0][name], calls[1][name]
            if args[0].shape != others[0].shape:
                continue
            padding = (args[0] == others[0]).all(1)
            if 0.5 * least <= float(padding.double().mean()) <= most + 0.1:
                moved = _moved_by_padding(norms[name], args, keywords, padding)
                if moved > MOVED:
                    words = f"other numbers in its padding move its output by {moved:.2g} standard deviations"
                    words = f"as in training, {words} at real frames"
                    return [finding("padding_in_statistics", "error", words, short(name))]
    return []


def _moved_by_padding(norm: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], padding: Tensor) -> float:
    """In training mode, in standard deviations. args[0] (N, C, ...), padding (N, ...) bool."""
    other = args[0].clone()
    frames = other.movedim(1, -1)
    frames[padding] += 3 * other.std() + 1
    norm.train()
    one, two = (norm(x, *args[1:], **keywords).movedim(1, -1)[~padding].double() for x in (args[0], other))
    return float((one - two).square().mean().sqrt() / one.std().clamp(min=1e-30))


def running_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Norms with running statistics, by path; slots around another one are left out."""
    norms = {n: m for n, m in model.named_modules() if is_norm(m) and any(True for _ in m.buffers())}
    return {n: m for n, m in norms.items() if not any(other.startswith(f"{n}.") for other in norms)}


def mismatches(probe: Probe, model: nn.Module, evaluated: dict[str, Tensor] | None = None) -> dict[str, float]:
    """Norm with running statistics -> how far evaluation is from training on one batch, in standard deviations.

    Mean over features of |mean in evaluation - mean in training|; the batch is small, so a few tenths are nothing.
    evaluated: outputs of (at least) `running_norms` in evaluation, for the probe's batch, where they are known.
    """
    norms = running_norms(model)
    if not norms:
        return {}
    with untouched(model), torch.no_grad(), outputs_of(norms) as kept:
        if evaluated is None:
            evaluation(model)
            probe()
            evaluated = dict(kept)
        evaluation(model, norms_training=True)
        probe()
        pairs = {n: _frames_of(probe, n, evaluated[n], kept[n]) for n in norms if n in evaluated and n in kept}
    found = {}
    for name, pair in pairs.items():
        if pair is not None:
            one, two = pair
            found[short(name)] = float(((one.mean(0) - two.mean(0)).abs() / two.std(0).clamp(min=1e-6)).mean())
    return found


def _frames_of(probe: Probe, name: str, evaluated: Tensor, training: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both outputs as (N, C), over real frames where they are (B, T, C)."""
    if evaluated.shape != training.shape:
        return None
    if probe.model is not None and isinstance(probe.model.get_submodule(name), nn.modules.batchnorm._BatchNorm):
        one, two = (y.transpose(1, -1).flatten(0, -2).double() for y in (evaluated, training))
    elif evaluated.dim() == 3 and evaluated.shape[0] == len(probe.features):
        real = probe.real(evaluated.shape[1])
        one, two = evaluated[real].double(), training[real].double()
    else:
        return None
    return (one, two) if len(one) >= 2 else None


def _judge_mismatch(probe: Probe, name: str, evaluated: Tensor, training: Tensor) -> list[Finding]:
    """Mean and spread of the output per feature, in both modes."""
    pair = _frames_of(probe, name, evaluated, training)
    if pair is None:
        return []
    one, two = pair
    scale = two.std(0).clamp(min=1e-6)
    shift = float(((one.mean(0) - two.mean(0)) / scale).square().mean().sqrt())
    ratio = float((one.std(0) / scale).clamp(min=1e-6).log().abs().mean())
    if max(shift, ratio) < MISMATCH:
        return []
    words = (
        f"in evaluation its output is off by {shift:.2f} standard deviations, and its spread by a factor of "
        f"{math.exp(ratio):.2f}"
    )
    severity = "error" if max(shift, ratio) > MISMATCH_ERROR else "warning"
    return [finding("train_eval_mismatch", severity, words, short(name))]
