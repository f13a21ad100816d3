"""What moves the outputs of a model in evaluation mode, and should not: chance, what came before, mates, padding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asrkit.diagnostics.findings import Finding, finding
from asrkit.diagnostics.hooks import CHANNELS_LAST, Seen, is_norm, outputs_of, watched
from asrkit.diagnostics.norms import check_unpacked
from asrkit.diagnostics.probes import Probe, evaluation, short, untouched

# Outputs that should be equal differ by rounding, 1e-6 in float32 (TF32 is off here). What is wrong moves them by 0.05
# of their own spread and more (reliability N01: 0.33, N08: 0.05).
MOVED = 0.02
UNMOVED = 1e-3  # far above rounding: an output that moves by less is not reached
# Types with a larger eps than this (float32: 1e-7, float16: 1e-3, bfloat16: 8e-3) round by so much that it has to be
# measured: attention over more padding adds up in another order, and moved twelve healthy layers in bfloat16 by 0.4.
# One rounding of the input moves them as far (more padding 0.8 to 1.2 times as far; 48 times and more without a mask).
FINE, NOISY = 1e-4, 3.0
OTHER_SEED = 1

Outputs = dict[str, Tensor]  # of layers, (B, T, C), by path; the model's own by ""


@dataclass
class Case:
    """One model and batch under examination."""

    probe: Probe
    targets: Tensor
    target_lengths: Tensor
    blank: int
    outputs: Tensor  # in evaluation mode
    lengths: Tensor  # of them
    kinds: set[torch.dtype]  # that the model computes in
    before: Outputs = field(default_factory=dict)  # what the layers give for the batch as it is
    noise: dict[str, float] = field(default_factory=dict)  # how far they move by themselves
    random: bool = False  # whether another seed moves them


def look(probe: Probe, features: Tensor | None = None) -> Outputs:
    """One call that counts: what the layers and the model give."""
    if probe.model is None:
        return {"": probe(features)[0]}
    seen = Seen()
    with outputs_of(watched(probe.model), seen) as kept:
        outputs, _ = probe(features)
    probe.order = list(kept)
    given = probe.features if features is None else features
    layers = {name: as_frames(y, seen.channels_first[name], given) for name, y in kept.items()}
    return {name: y for name, y in layers.items() if y is not None} | {"": outputs}


def as_frames(y: Tensor, channels_first: bool, features: Tensor) -> Tensor | None:
    """A layer's output as (B, T', C): of (B, C, T'), (T', B, C), (B, C, F', T') and (B, C, T', F') too, and None where
    it is not clear what it is."""
    batch = len(features)
    if y.dim() == 3 and y.shape[0] == batch:
        return y.transpose(1, 2) if channels_first else y
    if y.dim() == 3 and y.shape[1] == batch and not channels_first:
        return y.transpose(0, 1)
    if y.dim() != 4 or y.shape[0] != batch or not channels_first or features.dim() != 3:
        return None
    # Strides are about the same over time and frequency: which axis is which should differ by a factor of 2 at least.
    (frames, bins), (one, two) = features.shape[1:], y.shape[2:]
    first, last = (abs(math.log(t / frames * bins / f)) for t, f in ((one, two), (two, one)))
    if abs(first - last) < math.log(2):
        return None
    return y.movedim(2 if first < last else 3, 1).flatten(2)


def moves(probe: Probe, before: Outputs, after: Outputs, rows: list[int] | None = None) -> dict[str, float]:
    """How far real frames are from what they were, by layer: the worst frame's RMS over its features, in units of the
    layer's spread over time in that utterance, or of 1 % of its size where it hardly has one."""
    found = {}
    for name in [name for name, y in before.items() if name in after and y.shape[2] == after[name].shape[2]]:
        one, two, worst = before[name].double(), after[name].double(), 0.0
        for i in range(len(one)) if rows is None else rows:
            n = int(probe.lengths[i]) * one.shape[1] // probe.features.shape[1]
            n = min(max(n - 1, 1), one.shape[1], two.shape[1])  # not the edge, which a stride may share with padding
            apart = (one[i, :n] - two[i, :n]).square().mean(1).sqrt().max()
            spread = (one[i, :n] - one[i, :n].mean(0)).square().mean().sqrt()
            size = one[i, :n].square().mean().sqrt()
            worst = max(worst, float(apart / (spread + 0.01 * size).clamp(min=1e-30)))
        found[name] = worst
    return found


def first(case: Case, moved: dict[str, float]) -> str | None:
    """The first layer that has moved, by more than it moves by itself and by rounding."""
    return next((name for name, move in moved.items() if move > max(MOVED, NOISY * case.noise.get(name, 0.0))), None)


def _blame(case: Case, code: str, words: str, layer: str) -> Finding:
    """With the layers right before it of which the outputs could not be read: it may be one of them."""
    unread: list[str] = []
    order = [*case.probe.order, ""]
    for name in reversed(order[: order.index(layer)] if layer in order else []):
        if name in case.before:
            break
        unread.insert(0, short(name))
    if unread:
        words += f" (not looked at: {unread[0]}{f' to {unread[-1]}' if len(unread) > 1 else ''} before it)"
    return finding(code, "error", words, short(layer) or None)


def _rounding(case: Case) -> dict[str, float]:
    """How far rounding moves the layers, where the model computes in types that round coarsely."""
    probe, kinds = case.probe, case.kinds | {y.dtype for y in case.before.values()}
    eps = max(torch.finfo(kind).eps for kind in kinds)
    if eps < FINE:
        return {}
    probe.fresh = True  # whatever it remembers is another matter
    moved = moves(probe, look(probe), look(probe, probe.rounded(eps)))
    probe.fresh = False
    return moved


def check_memory(case: Case) -> list[Finding]:
    """The same batch twice, with the same random numbers, and once more after another batch.

    Buffers go on from call to call, but for those of norms: a state may be kept in one.
    """
    probe = case.probe
    probe.forget()
    probe.remembers = True
    try:
        case.before = look(probe)
        again = moves(probe, case.before, look(probe))
        probe(probe.other())
        later = moves(probe, case.before, look(probe))
    finally:
        probe.remembers = False
    case.noise = _rounding(case)
    layer = first(case, {name: max(move, later[name]) for name, move in again.items()})
    if layer is None:
        return []
    _settle(case)
    words = f"the same batch again moves its output by {max(again[layer], later[layer]):.2g} standard deviations"
    return [_blame(case, "leaked_state", f"{words}, in evaluation mode", layer)]


def _settle(case: Case) -> None:
    """From now on every call that counts begins with the state of the beginning, where it can be put back, else with
    the one that this very batch leaves, which differs a little every time."""
    probe, noise = case.probe, {}
    probe.forget()
    probe.fresh = True
    for probe.settle in (0, 3):
        case.before = look(probe)
        probe(probe.other())
        noise = moves(probe, case.before, look(probe))
        if first(case, noise) is None:
            break
    case.noise = {name: max(move, case.noise.get(name, 0.0)) for name, move in noise.items()}


def check_chance(case: Case) -> list[Finding]:
    """The same batch with another seed."""
    probe = case.probe
    probe.seed = OTHER_SEED
    try:
        moved = moves(probe, case.before, look(probe))
    finally:
        probe.seed = 0
    layer = first(case, moved)
    if layer is None:
        return []
    case.random = True
    mode = "in evaluation mode" if probe.model is not None else "in the mode that it is in (give `model` to set it)"
    words = f"another seed moves its output by {moved[layer]:.2g} standard deviations {mode}"
    return [_blame(case, "random_in_evaluation", words, layer)]


def check_mates(case: Case) -> list[Finding]:
    """Other content in all utterances but one; if that moves its output, the batch in reverse order."""
    probe, batch = case.probe, len(case.outputs)
    if batch < 2:
        words = "recurrence over the batch, statistics of the batch: it has one utterance"
        return [finding("not_checked", "note", words)]
    after = look(probe, probe.mates())
    moved = moves(probe, case.before, after, [probe.kept])
    layer = _reached(case, moved)
    if layer is None:
        return []
    if order := _out_of_order(case, after):
        return order
    words = f"other content in its batch mates moves an utterance's output by {moved[layer]:.2g} standard deviations"
    turned, why = (None, "the output is random") if case.random else _turned(probe)
    if turned is None:
        words += f"; whether their order does was not seen: {why}"
    elif first(case, turned) is not None:
        words += f", their order by {max(turned.values()):.2g}"
        return [_blame(case, "recurrence_over_batch", words, layer)]
    else:
        words += ": statistics of the batch are used in evaluation mode"
    return [_blame(case, "train_eval_mismatch", words, layer)]


def _out_of_order(case: Case, after: Outputs) -> list[Finding]:
    """Is the only output that other content in all utterances but one has not moved another one's? Then a model that
    sorts its batch has not put it back."""
    kept = case.probe.kept
    before = {"": case.before[""]}
    still = [i for i in range(len(case.outputs)) if first(case, moves(case.probe, before, after, [i])) is None]
    if len(still) != 1 or still == [kept]:
        return []
    words = f"with other content in all utterances but number {kept}, output number {still[0]} stays as it was"
    return [finding("outputs_out_of_order", "error", f"{words} (counted from 0)")]


def _turned(probe: Probe) -> tuple[dict[str, float] | None, str]:
    """How far the reverse order moves utterances of equal length, as a model that packs wants them sorted by it; or
    None, and what the model raises."""
    shortest = int(probe.lengths.min())
    frames = shortest // 16 * 16 or shortest  # whole multiples of 16 for strides
    try:
        before, after = look(probe.cut(frames)), look(probe.cut(frames, backwards=True))
    except Exception as error:  # whatever somebody's model raises for a batch that it was not made for
        return None, _said(error)
    return moves(probe.cut(frames), before, {name: y.flip(0) for name, y in after.items()}), ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]


def check_padding(case: Case) -> list[Finding]:
    """More padding, the same lengths: in evaluation mode, then with norms as in training. A model that takes no more
    frames gets less padding instead, by cutting its longest utterances."""
    probe, model = case.probe, case.probe.model
    if case.random:
        return []  # an output of another size gets other random numbers
    try:
        moved = moves(probe, case.before, look(probe, probe.padded()))
    except Exception as error:  # whatever somebody's model raises
        return _check_less_padding(case, error)
    words = "half as much padding again moves its output at real frames by {:.2g} standard deviations"
    layer = _reached(case, moved)
    if layer is not None:
        return [_padded(case, layer, words.format(moved[layer]))]
    if model is None or not any(is_norm(m) for m in model.modules()):
        return []
    with untouched(model):
        evaluation(model, norms_training=True)
        moved = moves(probe, look(probe), look(probe, probe.padded()))
    layer = _reached(case, moved)
    if layer is None:
        return check_unpacked(probe, model)
    words = f"as in training, {words.format(moved[layer])}"
    return [_blame(case, "padding_in_statistics", words, layer)]


def _reached(case: Case, moved: dict[str, float]) -> str | None:
    """The first layer that has moved, if any of it gets to the output: inside, a model may keep its frames or its
    utterances in another order, or clean up behind a layer. An output that nothing at all gets to says nothing."""
    layer = first(case, moved)
    if layer is None or moved.get("", 1.0) > UNMOVED:
        return layer
    content = moves(case.probe, look(case.probe), look(case.probe, case.probe.other()))
    return None if content.get("", 0.0) > MOVED else layer


def _padded(case: Case, layer: str, words: str) -> Finding:
    """In evaluation mode; a norm over time, or over the batch, counts the padding in."""
    module = case.probe.model.get_submodule(layer) if case.probe.model is not None and layer else None
    norm = module is not None and is_norm(module) and not isinstance(module, CHANNELS_LAST)
    return _blame(case, "padding_in_statistics" if norm else "padding_first", words, layer)


def _check_less_padding(case: Case, error: Exception) -> list[Finding]:
    probe = case.probe
    frames = probe.features.shape[1]
    middle = int(probe.lengths.sort().values[(len(probe.lengths) - 1) // 2])
    fewer = frames - 16 * max((frames - middle) // 16, 1)  # whole multiples of 16 for strides
    rows = [i for i, n in enumerate(probe.lengths.tolist()) if n <= fewer]
    why = f"with more frames than {frames} the model raises {_said(error)}"
    try:
        moved = moves(probe, case.before, look(probe.cut(fewer)), rows)
    except Exception as second:  # as above
        rows, why = [], f"{why}, with fewer {_said(second)}"
    if not rows:
        return [finding("not_checked", "note", f"padding: {why}")]
    layer = _reached(case, moved)
    if layer is not None:
        words = f"less padding moves its output at real frames by {moved[layer]:.2g} standard deviations"
        return [_padded(case, layer, words)]
    if probe.model is not None and any(is_norm(m) and any(True for _ in m.buffers()) for m in probe.model.modules()):
        return [finding("not_checked", "note", f"padding in statistics during training: {why}")]
    return []
