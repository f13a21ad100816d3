"""Checks of one batch as it goes into the CTC loss, and of the loss itself, for any PyTorch code.

for finding in check_ctc_batch(log_probs, lengths, targets, target_lengths):
    print(finding)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from asrkit.diagnostics.findings import Finding, finding, sort
from asrkit.errors import DataError

# Probabilities add up to 1 within float32's and bfloat16's rounding over some thousand labels (reliability C06: 1e-3
# in float32); raw logits miss by whole nats.
NORMALIZED = 1e-3
NORMALIZED_HALF = 5e-2
# Convolutions without padding lose a few frames at the edges, and clips are padded to a multiple of 8 here and there;
# a stride that is forgotten, or taken twice, is a factor of 2.
FACTOR, EDGE_FRAMES = 1.25, 4
# A softmax's spread in nats below which a flat output may as well be an untrained one.
FLAT = 0.05


Lengths = Tensor | Sequence[int]
"""(B,): torch's CTC loss takes both."""


def check_ctc_batch(
    log_probs: Tensor,
    lengths: Lengths,
    targets: Tensor,
    target_lengths: Lengths,
    *,
    blank: int = 0,
    input_lengths: Lengths | None = None,
    losses: Tensor | None = None,
    batch_first: bool = True,
) -> list[Finding]:
    """What is wrong with the arguments of a CTC loss; an empty list where nothing is.

    log_probs: (B, T', V), or (T', B, V) with `batch_first=False`, as torch's loss wants them. lengths (B,): output
    frames. targets: (B, L) padded with anything, or all labels one after the other (sum of target_lengths,).
    input_lengths (B,): frames or samples that went into the model, from which it is seen whether `lengths` follow them.
    losses (B,): what the loss gave, before any mean. Codes: asrkit.diagnostics.CATALOG. Nothing is changed.

    Raises DataError (`shapes`) where these are not one batch: what it says would then be of something else.
    """
    _check_shapes(log_probs, lengths, targets, target_lengths, input_lengths, batch_first)
    log_probs = log_probs.detach() if batch_first else log_probs.detach().transpose(0, 1)
    frames, sizes = _whole(lengths), _whole(target_lengths)
    rows = rows_of(targets.detach().cpu(), sizes)
    found = _check_numbers(log_probs) or _check_normalized(log_probs)
    found += check_lengths(frames, log_probs.shape[1], None if input_lengths is None else _whole(input_lengths))
    found += _check_targets(rows, sizes, log_probs.shape[2], blank)
    found += _check_possible(rows, frames, None if losses is None else losses.detach().cpu())
    return sort(found)


def _check_shapes(
    log_probs: Tensor, lengths: Lengths, targets: Tensor, target_lengths: Lengths, inputs: Lengths | None,
    batch_first: bool,
) -> None:  # fmt: skip
    """The axes of log_probs may be exchanged, which is a finding; B is taken from the lengths."""
    layout = "(B, T', V)" if batch_first else "(T', B, V)"
    shape, batch = tuple(log_probs.shape), len(lengths)
    counts = [len(target_lengths)] + ([] if inputs is None else [len(inputs)])
    rows = targets.shape[0] if targets.dim() == 2 else batch
    if len(shape) != 3 or targets.dim() not in (1, 2) or any(count != batch for count in [*counts, rows]):
        given = f"log_probs {shape}, {batch} lengths, targets {tuple(targets.shape)}, {counts[0]} target lengths"
        given += "" if inputs is None else f", {counts[1]} input lengths"
        raise DataError(
            f"not one batch: {given}", reason="shapes",
            possible=f"log_probs {layout}, targets (B, L) or (sum of target lengths,), all lengths (B,)",
        )  # fmt: skip


def _whole(lengths: Lengths) -> Tensor:
    return torch.as_tensor(lengths).detach().cpu().reshape(-1).to(torch.float64)


def rows_of(targets: Tensor, target_lengths: Tensor) -> list[Tensor]:
    """The labels of each utterance, of targets (B, L) or (sum of target_lengths,)."""
    sizes = target_lengths.long().tolist()
    if targets.dim() == 1:
        ends = target_lengths.long().cumsum(0).tolist()
        return [targets[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return [row[:size] for row, size in zip(targets, sizes, strict=True)]


def _check_numbers(log_probs: Tensor) -> list[Finding]:
    bad = log_probs.isnan() | (log_probs == float("inf"))
    if not bool(bad.any()):
        return []
    rows = bad.flatten(1).any(1).nonzero().flatten().tolist()
    return [
        finding(
            "nan", "error", f"{float(bad.float().mean()):.1%} of the outputs are NaN or infinite, in utterances {rows}"
        )
    ]


def _check_normalized(log_probs: Tensor) -> list[Finding]:
    if log_probs.numel() == 0:
        return []
    x = log_probs.float()
    tolerance = NORMALIZED if log_probs.dtype in (torch.float32, torch.float64) else NORMALIZED_HALF
    off = float(x.logsumexp(2).abs().max())
    if off <= tolerance:
        return _check_flat(x)
    if bool((x >= 0).all()) and float((x.sum(2) - 1).abs().max()) <= tolerance:
        words = "the outputs are probabilities: they add up to 1, and their logarithm is missing"
    elif any(float(x.logsumexp(axis).abs().max()) <= tolerance for axis in (0, 1)):
        words = "log_softmax was taken over another axis than the labels"
    else:
        words = f"probabilities add up to e^{off:.3g} at some frame, not to 1: these are raw scores"
    return [finding("log_softmax_missing", "error", words)]


def _check_flat(x: Tensor) -> list[Finding]:
    """log_softmax(softmax(z)) = p - const with p >= 0 and sum p = 1, so p = y + (1 - sum y) / V can be read off.

    Any log-probabilities can be written so; only those of a softmax have no negative p. Log-probabilities within 1 / V
    of their mean on the lower side and not flat altogether come from nothing else in practice.
    """
    p = x + (1 - x.sum(2, keepdim=True)) / x.shape[2]
    spread = float((x.amax(2) - x.amin(2)).max())
    if float(p.min()) < -1e-4 or not FLAT < spread <= 1 + 1e-3:
        return []
    words = (
        f"the most and the least probable label are never more than {spread:.2f} nats apart (1 at most, by softmax), "
        f"and the outputs are exactly a softmax's, up to a constant"
    )
    return [finding("log_softmax_twice", "error", words)]


def check_lengths(lengths: Tensor, frames: int, input_lengths: Tensor | None = None) -> list[Finding]:
    """Lengths (B,) of outputs padded to `frames` = T', which is the longest one's, against those of the inputs."""
    if len(lengths) == 0:
        return []
    longest, equal = float(lengths.max()), bool((lengths == lengths[0]).all())
    differ = input_lengths is not None and float(input_lengths.max()) > FACTOR * float(input_lengths.min())
    if longest > frames:
        words = f"the largest length is {longest:g}, the model gives {frames} frames ({longest / frames:.2f} times)"
        return [finding("lengths_off_by_factor", "error", words)]
    if longest * FACTOR + EDGE_FRAMES < frames:
        words = f"the largest length is {longest:g} of {frames} output frames ({frames / max(longest, 1e-9):.2f} times)"
        words += ", as relative lengths have it" if 0 < longest <= 1 else ""
        if equal and (differ or len(lengths) > 1):
            return [finding("lengths_wrong_axis", "error", f"all {len(lengths)} lengths are {longest:g}; {words}")]
        return [finding("lengths_off_by_factor", "error", words)]
    if equal and differ and input_lengths is not None:
        words = (
            f"all {len(lengths)} lengths are {longest:g} while the inputs have {float(input_lengths.min()):g} to "
            f"{float(input_lengths.max()):g}: padding counts as speech"
        )
        return [finding("lengths_wrong_axis", "warning", words)]
    if differ and input_lengths is not None:
        expected = input_lengths * (longest / float(input_lengths.max()))
        far = (lengths - expected).abs() > EDGE_FRAMES + (FACTOR - 1) * expected
        if bool(far.any()):
            i = int(far.nonzero()[0])
            words = (
                f"lengths do not follow the inputs in {int(far.sum())} of {len(far)} utterances: {float(lengths[i]):g} "
                f"for an input of {float(input_lengths[i]):g}, where {float(expected[i]):.0f} is in proportion"
            )
            return [finding("lengths_wrong_axis", "error", words)]
    return []


def _check_targets(rows: list[Tensor], target_lengths: Tensor, labels: int, blank: int) -> list[Finding]:
    for i, row in enumerate(rows):
        if len(row) < int(target_lengths[i]):
            words = f"utterance {i} has {len(row)} targets, its target length is {int(target_lengths[i])}"
            return [finding("targets_out_of_range", "error", words)]
    bad = [(row < 0) | (row >= labels) | (row == blank) for row in rows]
    wrong = [i for i, one in enumerate(bad) if bool(one.any())]
    if not wrong:
        return []
    seen = sorted({int(label) for i in wrong for label in rows[i][bad[i]].tolist()})
    words = (
        f"{len(wrong)} of {len(rows)} utterances have labels {', '.join(map(str, seen[:5]))}; the model has 0 to "
        f"{labels - 1}, and {blank} is the blank"
    )
    return [finding("targets_out_of_range", "error", words)]


def _check_possible(rows: list[Tensor], lengths: Tensor, losses: Tensor | None) -> list[Finding]:
    """Frames needed: one per label and one between equal neighbours (Graves et al. 2006)."""
    needed = [len(row) + int((row[1:] == row[:-1]).sum()) for row in rows]
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
    """
    blank, call = 0, loss
    if isinstance(loss, nn.CTCLoss):
        blank, call = loss.blank, lambda x, n, y, sizes: loss(x.transpose(0, 1), y, n, sizes)
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
