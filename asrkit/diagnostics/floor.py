"""The input-blind floor: the CTC loss of the best model that hears nothing, and on which side of it a run is.

Such a model gives the same probabilities p (V,) at every frame. Whoever reads anything from the audio gets below its
loss, and so does a recurrent model that knows where in the utterance it is (asrkit.hearing); whoever is far above it
has not even learned how often each label occurs. All-blank output tells neither: healthy models pass through it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from asrkit.ctc import required_frames

# Clips that the blank's share is fitted on, that the loss is taken of, and that the labels' shares among each other are
# counted in: those were fitted on 24 clips once, and the floor came out 1 % too high (three corpora, beside a fit on
# all clips; now 0.4 % at most).
FITTED, MEASURED, COUNTED = 8, 128, 2000
STEPS = 2  # of expectation maximization: the start is close, and a third changes the loss by less than 1e-5
MAX_CELLS = 4_000_000  # frames times label states of a batch of the loss: bounds memory and time for long clips


class Floor(NamedTuple):
    """loss: nats per label. probabilities: p (V,) float64, the blank's included."""

    loss: float
    probabilities: Tensor


def input_blind_floor(
    labels: Sequence[Sequence[int]], frames: Sequence[int], num_labels: int, blank: int = 0
) -> Floor | None:
    """labels: ids of each utterance; frames: output frames of each (N,); num_labels: V. None without a feasible one.

    Utterances that CTC cannot align count as they do in a mean under zero_infinity: labels, but no loss. Of more than
    128 utterances as many are taken, evenly from those sorted by frames per label.
    """
    rows = [i for i in range(len(labels)) if len(labels[i])]
    rows.sort(key=lambda i: frames[i] / len(labels[i]))
    chosen = evenly(rows, MEASURED)
    total = sum(len(labels[i]) for i in chosen)
    possible = [i for i in chosen if required_frames(labels[i]) <= frames[i]]
    if not possible:
        return None
    known = [i for i in evenly(rows, COUNTED) if required_frames(labels[i]) <= frames[i]] or possible
    p = _start([labels[i] for i in known], [frames[i] for i in known], num_labels, blank)
    fitted = evenly(possible, FITTED)
    for _ in range(STEPS):
        p = _step(p, [labels[i] for i in fitted], [frames[i] for i in fitted], blank)
    nll = sum(
        float(_losses(p.log(), [labels[i] for i in part], [frames[i] for i in part], blank).sum())
        for part in _parts(possible, labels, frames)
    )
    return Floor(nll / total, p)


def evenly(rows: list[int], count: int) -> list[int]:
    """So many of the rows (at least 2), at equal distances from the first to the last; all where there are fewer."""
    if len(rows) <= count:
        return rows
    return [rows[i * (len(rows) - 1) // (count - 1)] for i in range(count)]


def _parts(rows: list[int], labels: Sequence[Sequence[int]], frames: Sequence[int]) -> list[list[int]]:
    """Batches of bounded size, similar lengths together."""
    parts: list[list[int]] = []
    longest = 0
    for i in sorted(rows, key=lambda i: frames[i]):
        longest = max(longest, len(labels[i]))
        if not parts or (len(parts[-1]) + 1) * frames[i] * (2 * longest + 1) > MAX_CELLS:
            parts.append([])
            longest = len(labels[i])
        parts[-1].append(i)
    return parts


def _start(labels: list[Sequence[int]], frames: list[int], num_labels: int, blank: int) -> Tensor:
    """Each label once per occurrence, the rest blank; nothing impossible."""
    counts = torch.full((num_labels,), 0.01, dtype=torch.float64)
    counts += torch.bincount(torch.tensor(list(chain.from_iterable(labels))), minlength=num_labels)
    counts[blank] += max(sum(frames) - counts.sum().item(), 1.0)
    return counts / counts.sum()


def _step(p: Tensor, labels: list[Sequence[int]], frames: list[int], blank: int) -> Tensor:
    """Expectation maximization: the expected share of the blank among all frames; the others keep their proportions.

    The gradient of the loss by the logits of a frame is p minus the label's posterior there (Graves et al. 2006,
    equation 16), so the posteriors add up to T p minus the gradient.
    """
    logits = p.log().requires_grad_()
    (gradient,) = torch.autograd.grad(_losses(logits.log_softmax(0), labels, frames, blank).sum(), logits)
    share = float((sum(frames) * p - gradient)[blank].clamp(min=1e-9) / sum(frames))
    others = p.detach().clone()
    others[blank] = 0.0
    others *= (1 - share) / others.sum()
    others[blank] = share
    return others


def _losses(log_p: Tensor, labels: list[Sequence[int]], frames: list[int], blank: int) -> Tensor:
    """CTC losses (N,) with log_p (V,) at every frame."""
    targets = torch.tensor(list(chain.from_iterable(labels)))
    sizes = torch.tensor([len(ids) for ids in labels])
    log_probs = log_p.expand(max(frames), len(frames), -1)
    return F.ctc_loss(log_probs, targets, torch.tensor(frames), sizes, blank=blank, reduction="none")
