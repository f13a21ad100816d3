"""Checks of a model: any callable that maps features and lengths to CTC log-probabilities, asrkit's or not.

for finding in check_model(model, features, lengths, targets, target_lengths):
    print(finding)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.diagnostics.batch import Lengths, check_ctc_batch, rows_of
from asrkit.diagnostics.findings import Finding, finding, sort
from asrkit.diagnostics.norms import check_norms
from asrkit.diagnostics.probes import (
    Forward,
    Probe,
    dead_share,
    dependence,
    evaluation,
    is_norm,
    is_relu,
    outputs_of,
    short,
    untouched,
    watched,
    without_dropout,
)
from asrkit.diagnostics.scales import check_gradients, check_scales

# Outputs that should be equal differ by rounding, 1e-6 in float32 (TF32 is off here). What is wrong moves them by 0.05
# of their own spread and more (reliability N01: 0.33, N08: 0.05).
MOVED = 0.02
# Eleven untrained recurrent layers of width 8 with ReLU and no norm, the worst of the shipped recipes, keep 7e-4, and
# 6e-5 behind a linear layer with its bias, 9e-6 after a few updates (normalization-facts 1.8: 0.07 at width 192).
# float32 rounds to 1e-7, and then nothing is left at all.
INDEPENDENT_ERROR, INDEPENDENT = 1e-7, 1e-6
# Without a norm half of all units behind a recurrent layer never change sign; nearly all of them is another matter.
DEAD_ERROR, DEAD = 0.98, 0.9
# Linear power spans decades: 99.9 % quantile over the median. 1e4 and more for speech, below 30 for log-mel.
LINEAR = 300.0


@dataclass
class _Case:
    """One model and batch under examination."""

    probe: Probe
    targets: Tensor
    target_lengths: Tensor
    blank: int
    outputs: Tensor  # in evaluation mode
    lengths: Tensor  # of them
    before: dict[str, Tensor] = field(default_factory=dict)  # what the layers give for the batch as it is
    noise: dict[str, float] = field(default_factory=dict)  # how far they move by themselves


def check_model(
    forward: Forward,
    features: Tensor,
    lengths: Lengths,
    targets: Tensor,
    target_lengths: Lengths,
    *,
    blank: int = 0,
    model: nn.Module | None = None,
    trained: bool = False,
    batch_first: bool = True,
) -> list[Finding]:
    """What is wrong with a model, seen from one real batch of at least two utterances of different lengths.

    forward(features (B, T, F), lengths (B,)) -> log-probabilities (B, T', V), or those and the output lengths (B,).
    (T', B, V) with `batch_first=False`. model: where its layers and parameters are, unless `forward` is an nn.Module.
    targets, target_lengths: as in check_ctc_batch. trained: whether it has been trained; initial scales are then not
    judged, and running statistics are. Without gradients it is called about ten times. Parameters, gradients, buffers,
    modes and random numbers are afterwards what they were; a state that the model hides in itself is not.
    """
    lengths, target_lengths = torch.as_tensor(lengths), torch.as_tensor(target_lengths)
    module = model if model is not None else forward if isinstance(forward, nn.Module) else None
    probe = Probe(forward, module, features, lengths, batch_first)
    found = check_features(features, lengths)
    with untouched(module):
        evaluation(module)
        with torch.no_grad():
            outputs, given = probe()
            out_lengths = given if given is not None else _proportional(lengths, features.shape[1], outputs.shape[1])
            case = _Case(probe, targets, target_lengths, blank, outputs, out_lengths)
            found += check_ctc_batch(
                outputs, out_lengths, targets, target_lengths, blank=blank, input_lengths=lengths
            )  # fmt: skip
            found += _check_memory(case) + _check_mates(case) + _check_padding(case)
            if module is not None:
                found += _check_layers(probe, module, trained)
                found += check_norms(probe, module, trained)
        if module is not None:
            found += [] if trained else check_scales(module)
            evaluation(module)
            without_dropout(module)
            found += _check_backward(case, module)
    return sort(found)


def check_features(features: Tensor, lengths: Tensor) -> list[Finding]:
    """Features (B, T, F) as they go into the model: finite, and not linear power (all of one sign, over decades)."""
    frames = torch.arange(features.shape[1], device=features.device) < lengths.to(features.device)[:, None]
    real = features.detach()[frames].float()
    if not bool(real.isfinite().all()):
        return [
            finding("nan", "error", f"{float((~real.isfinite()).float().mean()):.1%} of the features are not finite")
        ]
    real = real.flatten()
    real = real[:: 1 + real.numel() // 1_000_000]  # enough for two quantiles
    if real.numel() < 1000 or float(real.min()) < 0 or float((real > 0).float().mean()) < 0.5:
        return []
    middle, high = real[real > 0].quantile(torch.tensor([0.5, 0.999], device=real.device)).tolist()
    if high <= LINEAR * middle:
        return []
    words = f"no feature is negative, and the 99.9 % quantile is {high / middle:.2g} times the median"
    return [finding("linear_features", "error", words)]


def _proportional(lengths: Tensor, frames: int, out_frames: int) -> Tensor:
    return (lengths.cpu() * out_frames / frames).ceil().long().clamp(max=out_frames)


CHANNELS_FIRST = (nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm, nn.Conv1d)  # of which outputs are (B, C, T)
Outputs = dict[str, Tensor]  # of layers, (B, T, C), by path; the model's own by ""


def _look(probe: Probe, features: Tensor | None = None) -> Outputs:
    """One call that counts: what the layers and the model give."""
    if probe.model is None:
        return {"": probe(features)[0]}
    with outputs_of(watched(probe.model)) as kept:
        outputs, _ = probe(features)
    modules, batch = dict(probe.model.named_modules()), len(probe.features)
    layers = {name: y for name, y in kept.items() if y.dim() == 3 and y.shape[0] == batch}
    for name, y in layers.items():
        if isinstance(modules[name], CHANNELS_FIRST):
            layers[name] = y.transpose(1, 2)
    return layers | {"": outputs}


def _moves(probe: Probe, before: Outputs, after: Outputs, rows: list[int] | None = None) -> dict[str, float]:
    """How far real frames are from what they were, by layer: the worst frame's RMS over its features, in units of the
    layer's spread over time in that utterance, or of 1 % of its size where it hardly has one."""
    moves = {}
    for name in [name for name, y in before.items() if name in after and y.shape[2] == after[name].shape[2]]:
        one, two, worst = before[name].double(), after[name].double(), 0.0
        for i in range(len(one)) if rows is None else rows:
            n = int(probe.lengths[i]) * one.shape[1] // probe.features.shape[1]
            n = min(max(n - 1, 1), one.shape[1], two.shape[1])  # not the edge, which a stride may share with padding
            apart = (one[i, :n] - two[i, :n]).square().mean(1).sqrt().max()
            spread = (one[i, :n] - one[i, :n].mean(0)).square().mean().sqrt()
            size = one[i, :n].square().mean().sqrt()
            worst = max(worst, float(apart / (spread + 0.01 * size).clamp(min=1e-30)))
        moves[name] = worst
    return moves


def _first(moves: dict[str, float], noise: dict[str, float]) -> str | None:
    """The first layer that has moved, by more than it moves by itself."""
    return next((name for name, move in moves.items() if move > max(MOVED, 3 * noise.get(name, 0.0))), None)


def _check_memory(case: _Case) -> list[Finding]:
    """The same batch twice, with the same random numbers, and once more after another batch."""
    probe = case.probe
    before = _look(probe)
    again = _moves(probe, before, _look(probe))
    probe(probe.other())
    later = _moves(probe, before, _look(probe))
    case.before = before
    layer = _first({name: max(move, later[name]) for name, move in again.items()}, {})
    if layer is None:
        return []
    probe.settle = 3  # from now on every call that counts begins with the state that this very batch leaves
    case.before = _look(probe)
    probe(probe.other())
    case.noise = _moves(probe, case.before, _look(probe))
    words = f"the same batch again moves its output by {max(again[layer], later[layer]):.2g} standard deviations"
    return [finding("leaked_state", "error", f"{words}, in evaluation mode", short(layer) or None)]


def _check_mates(case: _Case) -> list[Finding]:
    """Other content in all utterances but one; then the batch in reverse order."""
    probe, batch = case.probe, len(case.outputs)
    if batch < 2:
        return []
    moves = _moves(probe, case.before, _look(probe, probe.mates()), [batch // 2])
    layer = _first(moves, case.noise)
    if layer is None:
        return []
    flipped = Probe(probe.forward, probe.model, probe.features.flip(0), probe.lengths.flip(0), probe.batch_first)
    flipped.settle = probe.settle
    turned = _moves(probe, case.before, {name: y.flip(0) for name, y in _look(flipped).items()})
    words = f"other content in its batch mates moves an utterance's output by {moves[layer]:.2g} standard deviations"
    if turned[layer] > max(MOVED, 3 * case.noise.get(layer, 0.0)):
        words += f", their order by {turned[layer]:.2g}"
        return [finding("recurrence_over_batch", "error", words, short(layer) or None)]
    words += ": statistics of the batch are used in evaluation mode"
    return [finding("train_eval_mismatch", "error", words, short(layer) or None)]


def _check_padding(case: _Case) -> list[Finding]:
    """More padding, the same lengths: in evaluation mode, then with norms as in training."""
    probe, model = case.probe, case.probe.model
    words = "half as much padding again moves its output at real frames by {:.2g} standard deviations"
    moves = _moves(probe, case.before, _look(probe, probe.padded()))
    layer = _first(moves, case.noise)
    if layer is not None:
        return [finding("padding_first", "error", words.format(moves[layer]), short(layer) or None)]
    if model is None or not any(is_norm(m) for m in model.modules()):
        return []
    with untouched(model):
        evaluation(model, norms_training=True)
        moves = _moves(probe, _look(probe), _look(probe, probe.padded()))
    layer = _first(moves, case.noise)
    if layer is None:
        return []
    words = f"as in training, {words.format(moves[layer])}"
    return [finding("padding_in_statistics", "error", words, short(layer) or None)]


def _check_layers(probe: Probe, model: nn.Module, trained: bool) -> list[Finding]:
    """An untrained norm over the batch has no statistics to evaluate with, so it takes those of the batch."""
    with untouched(model), outputs_of(watched(model)) as kept:
        evaluation(model, norms_training=not trained)
        probe()
        before = dict(kept)
        probe(probe.other())
        return judge_layers(measure_layers(model, before, kept))


def measure_layers(
    model: nn.Module, before: dict[str, Tensor], after: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """`dependence` on the input of every watched layer, and `dead` units of the ReLUs among them, by short path.

    Without the last one, the output layer: healthy models too give almost nothing but blanks for a while.
    """
    modules = dict(model.named_modules())
    figures: dict[str, dict[str, float]] = {"dependence": {}, "dead": {}}
    last = list(before)[-1] if before else ""
    for name, output in before.items():
        if name in after and name != last:
            figures["dependence"][short(name)] = dependence(output, after[name])
        if is_relu(modules[name]):
            figures["dead"][short(name)] = dead_share(output)
    return figures


def judge_layers(figures: dict[str, dict[str, float]]) -> list[Finding]:
    """The first layer that no longer hears the input, and the ReLUs that are mostly dead."""
    found = []
    for name, share in figures["dependence"].items():
        if share < INDEPENDENT:
            severity = "error" if share < INDEPENDENT_ERROR else "warning"
            words = f"other audio of the same length changes its output by {share:.1e} of its size"
            found.append(finding("input_independent_layer", severity, words, name))
            break  # those above it can only hear less
    for name, share in figures["dead"].items():
        if share > DEAD:
            severity = "error" if share >= DEAD_ERROR else "warning"
            found.append(finding("dead_relus", severity, f"{share:.0%} of its units are 0 in every frame", name))
    return found


def _check_backward(case: _Case, model: nn.Module) -> list[Finding]:
    """The loss per label of the utterances that can be aligned, and its gradient."""
    sizes = case.target_lengths.cpu()
    targets = rows_of(case.targets.cpu(), sizes)
    rows = [i for i, row in enumerate(targets) if 0 < 2 * len(row) <= int(case.lengths[i])]
    rows = [i for i in rows if 0 <= int(targets[i].min()) <= int(targets[i].max()) < case.outputs.shape[2]]
    if not rows or not any(p.requires_grad for p in model.parameters()):
        return []
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        outputs, _ = case.probe()
        losses = F.ctc_loss(
            outputs[rows].transpose(0, 1).float(), torch.cat([targets[i] for i in rows]).to(outputs.device),
            case.lengths[rows].cpu(), sizes[rows], blank=case.blank, reduction="none",
        )  # fmt: skip
        if not bool(losses.isfinite().all()):
            return [finding("nan", "error", "the loss of utterances that can be aligned is not finite")]
        (losses.sum() / sizes[rows].sum()).backward()
    return check_gradients(model)
