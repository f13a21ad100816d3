"""Checks of a model: any callable that maps features and lengths to CTC log-probabilities, asrkit's or not.

for finding in check_model(model, features, lengths, targets, target_lengths):
    print(finding)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit.diagnostics.backward import check_backward
from asrkit.diagnostics.batch import SMALL, check_ctc_batch
from asrkit.diagnostics.behaviour import Case, check_chance, check_mates, check_memory, check_padding
from asrkit.diagnostics.findings import Finding, finding, sort
from asrkit.diagnostics.hooks import Seen, functions_of, outputs_of, watched
from asrkit.diagnostics.norms import check_norms
from asrkit.diagnostics.probes import (
    Forward,
    Probe,
    dead_share,
    dependence,
    evaluation,
    is_relu,
    short,
    untouched,
    without_dropout,
)
from asrkit.diagnostics.scales import check_scales
from asrkit.diagnostics.shapes import Lengths, Targets, as_targets, as_tensor, check_forward, check_inputs

# Eleven untrained recurrent layers of width 8 with ReLU and no norm, the worst of the shipped recipes, keep 7e-4, and
# 6e-5 behind a linear layer with its bias, 9e-6 after a few updates (normalization-facts 1.8: 0.07 at width 192).
# float32 rounds to 1e-7, and then nothing is left at all.
INDEPENDENT_ERROR, INDEPENDENT = 1e-7, 1e-6
# Without a norm half of all units behind a recurrent layer never change sign; nearly all of them is another matter.
DEAD_ERROR, DEAD = 0.98, 0.9
# Linear power spans decades: 99.9 % quantile over the median. 1e4 and more for speech, below 30 for log-mel.
LINEAR = 300.0


def check_model(
    forward: Forward,
    features: Tensor,
    lengths: Lengths,
    targets: Targets,
    target_lengths: Lengths,
    *,
    blank: int = 0,
    model: nn.Module | None = None,
    trained: bool = False,
    batch_first: bool = True,
) -> list[Finding]:
    """What is wrong with a model, seen from one real batch of at least two utterances of different lengths.

    forward(features (B, T, F), lengths (B,)) -> log-probabilities (B, T', V), or those and the output lengths (B,), or
    a mapping or an object with `log_probs` (or `logits`) and `lengths`. (T', B, V) with `batch_first=False`. Waveforms
    (B, S) will do. model: where its layers are, unless `forward` is an nn.Module. targets, target_lengths: as in
    check_ctc_batch. trained: whether it has been trained; initial scales are then not judged, and running statistics
    are. Where nothing is wrong it is called 13 times (11 without norms, and 2 more with torch's norms over frames or
    in half precision), once of them with gradients; faults take some more to be told apart. Parameters, gradients,
    buffers, modes and random numbers are afterwards what they were. A check that the model did not allow is a note
    `not_checked`. Raises DataError (`shapes`) for arguments and outputs that are not as above, and scripted models.
    """
    with torch.inference_mode(False):
        module = model if model is not None else forward if isinstance(forward, nn.Module) else None
        lengths = as_tensor(lengths, "lengths", "one number for each utterance (B,)")
        check_forward(forward)
        check_inputs(features, lengths, module)
        sizes = as_tensor(target_lengths, "target lengths", "one number for each utterance (B,)")
        features = features.detach().clone() if features.is_inference() else features.detach()
        probe = Probe(forward, module, features, lengths, batch_first)
        with untouched(module):
            found = _check(probe, as_targets(targets), sizes, blank, trained)
            if probe.fresh:  # it remembers; not what it was given here
                probe.forget()
        return sort(found)


def _check(probe: Probe, targets: Tensor, target_lengths: Tensor, blank: int, trained: bool) -> list[Finding]:
    """Forward in evaluation mode, then once backward."""
    model = probe.model
    evaluation(model)
    with torch.no_grad():
        case, found = _begin(probe, targets, target_lengths, blank)
        found = check_features(probe.features, probe.lengths) + found
        found += check_memory(case) + check_chance(case) + check_mates(case) + check_padding(case)
        if model is not None:
            found += _check_layers(probe, model, trained)
            found += check_norms(probe, model, trained)
    if model is not None:
        found += [] if trained else check_scales(model, case.outputs.shape[2])
        evaluation(model)
        without_dropout(model)
        found += check_backward(case, model)
    return found


def _begin(probe: Probe, targets: Tensor, target_lengths: Tensor, blank: int) -> tuple[Case, list[Finding]]:
    """The first call, and what is wrong with what it gives to the loss. Lengths that the model does not give are taken
    in proportion, and are not judged."""
    seen = Seen()
    with functions_of(probe.model, seen):
        outputs, given = probe()
    lengths = _proportional(probe, outputs) if given is None else given
    found = check_ctc_batch(
        outputs, lengths, targets, target_lengths, blank=blank,
        input_lengths=probe.lengths if given is not None else None,
        input_frames=probe.features.shape[1] if given is not None else None,
    )  # fmt: skip
    if given is None:
        found = [one for one in found if not one.code.startswith("lengths_")]
    found = _small_scores(found, _has_softmax(seen, outputs)) if seen.functions else found
    return Case(probe, targets, target_lengths, blank, outputs, lengths, seen.kinds), found


def _small_scores(found: list[Finding], softmax: bool) -> list[Finding]:
    """What numbers alone leave open: whether scores are small by themselves or a softmax made them so."""
    open_ = [one for one in found if one.measured.endswith(SMALL)]
    words = [f"{one.measured.removesuffix(SMALL)}; a softmax over the labels was called" for one in open_ if softmax]
    return [one for one in found if one not in open_] + [finding("log_softmax_twice", "error", one) for one in words]


def _has_softmax(seen: Seen, outputs: Tensor) -> bool:
    """Over the labels, of a padded or a packed batch."""
    return any(
        shape[-1] == outputs.shape[2] and (len(shape) == 2 or sorted(shape) == sorted(outputs.shape))
        for shape in seen.softmaxes
    )


def check_features(features: Tensor, lengths: Lengths) -> list[Finding]:
    """Features (B, T, F) as they go into the model: finite, and not linear power (all of one sign, over decades)."""
    lengths = as_tensor(lengths, "lengths", "one number for each utterance (B,)")
    check_inputs(features, lengths, None)
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


def _proportional(probe: Probe, outputs: Tensor) -> Tensor:
    """Output lengths by the stride. Features may be padded beyond the longest utterance: where more of it gives no
    more frames (a packed recurrence gives back the longest one's), T' is what the longest utterance has."""
    frames, lengths = probe.features.shape[1], probe.lengths.cpu()
    if int(lengths.max()) < frames:
        try:
            same = probe(probe.padded())[0].shape[1] == outputs.shape[1]
        except Exception:  # whatever the model raises: check_padding says so
            same = False
        frames = int(lengths.max()) if same else frames
    return (lengths * outputs.shape[1] / frames).ceil().long().clamp(max=outputs.shape[1])


def _check_layers(probe: Probe, model: nn.Module, trained: bool) -> list[Finding]:
    """An untrained norm over the batch has no statistics to evaluate with, so it takes those of the batch."""
    seen, other = Seen(), Seen()
    with untouched(model):
        evaluation(model, norms_training=not trained)
        with outputs_of(watched(model), seen) as before, functions_of(model, seen):
            probe()
        with outputs_of(watched(model), other) as after:
            probe(probe.other())
    figures = measure_layers(model, before, after, seen, other)
    figures["dead"] = _dead(probe, model, before, seen)
    return judge_layers(figures)


def measure_layers(
    model: nn.Module,
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    seen: Seen | None = None,
    other: Seen | None = None,
) -> dict[str, dict[str, float]]:
    """`dependence` on the input of every watched layer, and `dead` units of the ReLUs among them, by short path.

    Without the last one, the output layer: healthy models too give almost nothing but blanks for a while. With `seen`
    and `other`, what the layers were given, those are left out that were given the same (a table of positions).
    """
    modules = dict(model.named_modules())
    figures: dict[str, dict[str, float]] = {"dependence": {}, "dead": {}}
    last = list(before)[-1] if before else ""
    for name, output in before.items():
        fed = seen is None or other is None or _differ(seen.inputs.get(name, []), other.inputs.get(name, []))
        if name in after and name != last and fed and not isinstance(modules[name], nn.Embedding):
            figures["dependence"][short(name)] = dependence(output, after[name])
        if is_relu(modules[name]):
            figures["dead"][short(name)] = dead_share(output)
    return figures


def _differ(one: list[Tensor], two: list[Tensor]) -> bool:
    pairs = zip(one, two, strict=False)
    return len(one) != len(two) or any(x.shape != y.shape or not torch.equal(x, y) for x, y in pairs)


def _dead(probe: Probe, model: nn.Module, outputs: dict[str, Tensor], seen: Seen) -> dict[str, float]:
    """Dead units of all ReLUs, modules and functions, in real frames (B, T, C) or (B, C, T)."""
    modules = dict(model.named_modules())
    relus = [(short(n), y, seen.channels_first[n]) for n, y in outputs.items() if is_relu(modules[n])]
    relus += [(f"relu after {short(n) or 'the input'}", y, turned) for n, (y, turned) in seen.relus.items()]
    shares = {}
    for name, output, turned in relus:
        output = output.transpose(1, 2) if turned and output.dim() == 3 else output
        batch = output.dim() == 3 and output.shape[0] == len(probe.features)
        shares[name] = dead_share(output, probe.real(output.shape[1]) if batch else None)
    return shares


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
