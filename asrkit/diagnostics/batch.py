"""Checks of one batch as it goes into the CTC loss, and of the loss itself, for any PyTorch code.

for finding in check_ctc_batch(log_probs, lengths, targets, target_lengths):
    print(finding)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from asrkit.diagnostics.findings import Finding, finding, sort
from asrkit.diagnostics.shapes import Lengths, Targets, as_targets, as_tensor, check_shapes, refuse, rows_of, whole
from asrkit.masking import frame_mask

# Probabilities add up to 1 within float32's and bfloat16's rounding over some thousand labels (reliability C06: 1e-3
# in float32); raw logits miss by whole nats.
NORMALIZED = 1e-3
NORMALIZED_HALF = 5e-2
# Convolutions without padding lose a few frames at the edges, and clips are padded to a multiple of 8 here and there;
# a stride that is forgotten, or taken twice, is a factor of 2.
FACTOR, EDGE_FRAMES = 1.25, 4
# Spread in nats, times the labels. Below FLAT the output is that of a head that is all zeros; a softmax taken twice
# leaves 0.3 and more of an untrained recurrent model (0.01 nats of 29 labels; healthy models have 0.28 nats and more).
# Below SURE small scores look the same: those of a head that was made small, or of few labels, so it is only a warning.
FLAT, SURE = 0.1, 4.0
SMALL = "; or scores that are as small without one"


def check_ctc_batch(
    log_probs: Tensor,
    lengths: Lengths,
    targets: Targets,
    target_lengths: Lengths,
    *,
    blank: int = 0,
    input_lengths: Lengths | None = None,
    input_frames: int | None = None,
    losses: Tensor | None = None,
    batch_first: bool = True,
) -> list[Finding]:
    """What is wrong with the arguments of a CTC loss; an empty list where nothing is.

    log_probs: (B, T', V), or (T', B, V) with `batch_first=False`, as torch's loss wants them. lengths (B,): output
    frames. targets: (B, L) padded with anything, or all labels one after the other (sum of target_lengths,).
    input_lengths (B,): frames or samples that went into the model, from which it is seen whether `lengths` follow them.
    input_frames: T of what went in, where it was padded beyond the longest. losses (B,): what the loss gave, before any
    mean. What is beyond `lengths` is not looked at. Codes: asrkit.diagnostics.CATALOG. Nothing is changed.

    Raises DataError (`shapes`) where these are not one batch: what it says would then be of something else.
    """
    log_probs, targets = as_tensor(log_probs, "log_probs", "a tensor (B, T', V)"), as_targets(targets)
    check_shapes(log_probs, lengths, targets, target_lengths, input_lengths, blank, batch_first)
    log_probs = log_probs.detach() if batch_first else log_probs.detach().transpose(0, 1)
    frames, sizes = whole(lengths), whole(target_lengths)
    targets = targets.detach().cpu()
    rows = rows_of(targets, sizes)
    found = _check_outputs(log_probs, frames)
    inputs = None if input_lengths is None else whole(input_lengths)
    found += check_lengths(frames, log_probs.shape[1], inputs, input_frames)
    found += _check_targets(targets, rows, sizes, log_probs.shape[2], blank)
    found += _check_possible(rows, frames, None if losses is None else losses.detach().cpu())
    return sort(found)


def _check_outputs(log_probs: Tensor, lengths: Tensor) -> list[Finding]:
    """Of the frames that the loss reads; of all where the lengths cannot be theirs."""
    frames = log_probs.shape[1]
    known = bool(((lengths >= 0) & (lengths <= frames)).all()) and bool((lengths >= 1).any())
    real = frame_mask(lengths.long() if known else torch.full_like(lengths, frames).long(), frames)
    return _check_numbers(log_probs, real) or _check_normalized(log_probs, real.to(log_probs.device))


def _check_numbers(log_probs: Tensor, real: Tensor) -> list[Finding]:
    bad = (log_probs.isnan() | (log_probs == float("inf"))) & real.to(log_probs.device)[:, :, None]
    if not bool(bad.any()):
        return []
    rows = bad.flatten(1).any(1).nonzero().flatten().tolist()
    share = float(bad.sum()) / max(int(real.sum()) * log_probs.shape[2], 1)
    return [finding("nan", "error", f"{share:.1%} of the outputs are NaN or infinite, in utterances {rows}")]


def _check_normalized(log_probs: Tensor, real: Tensor) -> list[Finding]:
    x = log_probs[real].float()  # (N, V)
    if x.numel() == 0:
        return []
    tolerance = NORMALIZED if log_probs.dtype in (torch.float32, torch.float64) else NORMALIZED_HALF
    off = float(x.logsumexp(1).abs().max())
    if off <= tolerance:
        return _check_flat(x, log_probs.dtype)
    if bool((x >= 0).all()) and float((x.sum(1) - 1).abs().max()) <= tolerance:
        words = "the outputs are probabilities: they add up to 1, and their logarithm is missing"
    elif any(float(log_probs.float().logsumexp(axis).abs().max()) <= tolerance for axis in (0, 1)):
        words = "log_softmax was taken over another axis than the labels"
    else:
        words = f"probabilities add up to e^{off:.3g} at some frame, not to 1: raw scores, or changed after log_softmax"
    return [finding("log_softmax_missing", "error", words)]


def _check_flat(x: Tensor, kind: torch.dtype) -> list[Finding]:
    """log_softmax(softmax(z)) = p - const with p >= 0 and sum p = 1, so p = y + (1 - sum y) / V can be read off.

    Any log-probabilities can be written so; only those of a softmax have no negative p. Log-probabilities within 1 / V
    of their mean on the lower side and not flat altogether come from nothing else in practice. x (N, V) in float32,
    rounded to `kind` before.
    """
    labels = x.shape[1]
    p = x + (1 - x.sum(1, keepdim=True)) / labels
    spread = float((x.amax(1) - x.amin(1)).max())
    rounding = min(torch.finfo(kind).eps * float(x.abs().max()), NORMALIZED_HALF)  # its own, and that of the mean
    if float(p.min()) < -max(1e-4, rounding) or not FLAT / labels < spread <= 1 + max(1e-3, rounding):
        return []
    words = (
        f"the most and the least probable label are never more than {spread:.2g} nats apart (1 at most, by softmax), "
        f"and the outputs are exactly a softmax's, up to a constant"
    )
    if spread > SURE / labels:
        return [finding("log_softmax_twice", "error", words)]
    return [finding("log_softmax_twice", "warning", f"{words}{SMALL}")]


def check_lengths(
    lengths: Tensor, frames: int, input_lengths: Tensor | None = None, input_frames: int | None = None
) -> list[Finding]:
    """Lengths (B,) of outputs padded to `frames` = T', against those of the inputs.

    T' is the longest one's, or as much more as `input_frames` = T is of the longest input, where that is known.
    """
    if len(lengths) == 0:
        return []
    if not bool((lengths.isfinite() & (lengths >= 0)).all()):
        wrong = (~(lengths.isfinite() & (lengths >= 0))).nonzero().flatten().tolist()
        words = f"lengths are {', '.join(f'{float(lengths[i]):g}' for i in wrong[:5])} in utterances {wrong}"
        return [finding("lengths_off_by_factor", "error", words)]
    longest, equal = float(lengths.max()), bool((lengths == lengths[0]).all())
    differ = input_lengths is not None and float(input_lengths.max()) > FACTOR * float(input_lengths.min())
    if longest > frames:
        words = f"the largest length is {longest:g}, the model gives {frames} frames ({longest / frames:.2f} times)"
        return [finding("lengths_off_by_factor", "error", words)]
    expected = float(frames)
    if input_lengths is not None and input_frames is not None:
        expected *= min(float(input_lengths.max()) / input_frames, 1.0)
    if not _fits(longest, frames) and not _fits(longest, expected):
        words = _far(longest, frames, expected)
        unequal = differ or input_lengths is None  # inputs of which the lengths should not be equal
        if equal and unequal and len(lengths) > 1 and longest > 0:
            return [finding("lengths_wrong_axis", "error", f"all {len(lengths)} lengths are {longest:g}; {words}")]
        return [finding("lengths_off_by_factor", "error", words)]
    return _check_proportions(lengths, input_lengths, equal) if input_lengths is not None and differ else []


def _fits(longest: float, expected: float) -> bool:
    return longest * FACTOR + EDGE_FRAMES >= expected and expected * FACTOR + EDGE_FRAMES >= longest


def _far(longest: float, frames: int, expected: float) -> str:
    if longest == 0:
        return f"all lengths are 0, of {frames} output frames"
    times = f"{expected / longest:.2f} times" if expected >= longest else f"{longest / expected:.2f} times too many"
    words = f"the largest length is {longest:g} of {frames} output frames"
    words += f", where {expected:.0f} are of real input ({times})" if expected < frames else f" ({times})"
    return words + (", as relative lengths have it" if longest <= 1 else "")


def _check_proportions(lengths: Tensor, input_lengths: Tensor, equal: bool) -> list[Finding]:
    """Of inputs that differ in length, each against the longest."""
    longest = float(lengths.max())
    if equal:
        words = (
            f"all {len(lengths)} lengths are {longest:g} while the inputs have {float(input_lengths.min()):g} to "
            f"{float(input_lengths.max()):g}: padding counts as speech"
        )
        return [finding("lengths_wrong_axis", "warning", words)]
    expected = input_lengths * (longest / float(input_lengths.max()))
    far = (lengths - expected).abs() > EDGE_FRAMES + (FACTOR - 1) * expected
    if not bool(far.any()):
        return []
    i = int(far.nonzero()[0])
    words = (
        f"lengths do not follow the inputs in {int(far.sum())} of {len(far)} utterances: {float(lengths[i]):g} "
        f"for an input of {float(input_lengths[i]):g}, where {float(expected[i]):.0f} is in proportion"
    )
    return [finding("lengths_wrong_axis", "error", words)]


def _check_targets(
    targets: Tensor, rows: list[Tensor], target_lengths: Tensor, labels: int, blank: int
) -> list[Finding]:
    words = _counts(targets, rows, target_lengths)
    if words is not None:
        return [finding("targets_out_of_range", "error", words)]
    if len(rows) and not any(len(row) for row in rows):
        return [finding("empty_targets", "error", f"none of the {len(rows)} utterances has a label")]
    bad = [(row < 0) | (row >= labels) | (row == blank) | (row != row.floor()) for row in map(Tensor.double, rows)]
    wrong = [i for i, one in enumerate(bad) if bool(one.any())]
    if not wrong:
        return []
    seen = sorted({float(label) for i in wrong for label in rows[i][bad[i]].tolist()})
    words = (
        f"{len(wrong)} of {len(rows)} utterances have labels {', '.join(f'{label:g}' for label in seen[:5])}; the "
        f"model has 0 to {labels - 1}, and {blank} is the blank"
    )
    return [finding("targets_out_of_range", "error", words)]


def _counts(targets: Tensor, rows: list[Tensor], target_lengths: Tensor) -> str | None:
    """What is wrong with the target lengths themselves."""
    for i, n in enumerate(target_lengths.tolist()):
        if not n >= 0 or n != round(n):
            return f"the target length of utterance {i} is {n:g}"
        if len(rows[i]) < int(n):
            return f"utterance {i} has {len(rows[i])} targets, its target length is {int(n)}"
    total = int(target_lengths.sum())
    if targets.dim() == 1 and len(targets) > total:
        return f"{len(targets)} targets one after the other, and target lengths that add up to {total}"
    return None


def needed_frames(row: Tensor) -> int:
    """One for each label and one between equal neighbours (Graves et al. 2006)."""
    return len(row) + int((row[1:] == row[:-1]).sum())


def _check_possible(rows: list[Tensor], lengths: Tensor, losses: Tensor | None) -> list[Finding]:
    needed = [needed_frames(row) for row in rows]
    short = [i for i, n in enumerate(needed) if n > float(lengths[i])]
    if not short:
        return []
    worst = max(short, key=lambda i: needed[i] - float(lengths[i]))
    share = len(short) / len(rows)
    words = (
        f"{len(short)} of {len(rows)} utterances ({share:.0%}) have fewer frames than their labels need; utterance "
        f"{worst} needs {needed[worst]} and has {float(lengths[worst]):g}"
    )
    found = [finding("impossible_targets", "error", words)]
    if losses is not None and losses.numel() == len(rows):
        hidden = [i for i in short if float(losses[i]) == 0.0]
        if hidden:
            found.append(finding("zero_infinity", "error", f"the loss of {len(hidden)} of them is exactly 0"))
    return found


def check_loss(loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], num_labels: int = 4) -> list[Finding]:
    """Ask a CTC loss for two labels in one frame, which is impossible: does it say so, or answer 0?

    `loss(log_probs (1, T', V), lengths (1,), targets (1, 2), target_lengths (1,))` -> a number or (1,), or torch's
    nn.CTCLoss, which wants its arguments in another order. To the impossible question an exception is an answer too;
    before, the same labels are asked for in four frames, and what is raised there is a mistake in the call.
    num_labels: V; enlarged for torch's loss with a later blank.
    """
    blank, call = 0, loss
    if isinstance(loss, nn.CTCLoss):
        blank, call = loss.blank, lambda x, n, y, sizes: loss(x.transpose(0, 1), y, n, sizes)
        num_labels = max(num_labels, blank + 1)
    if blank < 0 or num_labels < 3:
        raise refuse(f"blank {blank} of {num_labels} labels", "a blank from 0 on, and two labels beside it")
    labels = torch.tensor([[label for label in range(num_labels) if label != blank][:2]])
    log_probs = torch.full((1, 4, num_labels), 1.0 / num_labels).log()
    call(log_probs, torch.tensor([4]), labels, torch.tensor([2]))
    try:
        answer = call(log_probs[:, :1], torch.tensor([1]), labels, torch.tensor([2]))
    except Exception:  # whatever it raises: the impossible target did not pass
        return []
    if bool((torch.as_tensor(answer) == 0).all()):
        return [finding("zero_infinity", "warning", "the loss of 2 labels in 1 frame is 0, where it is infinite")]
    return []
