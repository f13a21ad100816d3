"""From log-probabilities to label sequences. A decoder is a plugin; greedy is the built-in one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asrkit.ctc import BLANK


@dataclass(frozen=True)
class Hypothesis:
    """One decoded label sequence.

    labels: ids without blanks. score: log-probability of the path, in nats. starts, ends: first frame and the frame
    after the last of each label, in encoder frames. confidences: per label, the highest posterior among its frames.
    """

    labels: tuple[int, ...]
    score: float
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    confidences: tuple[float, ...]


class Decoder:
    """Contract: `decoder(log_probs (B, T', V), lengths (B,)) -> one n-best list of hypotheses per utterance`."""

    asrkit_api = 1

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        raise NotImplementedError


class GreedyDecoder(Decoder):
    """The best label of every frame, repeats merged, blanks removed (best-path decoding, Graves et al. 2006, section
    3.2)."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        best, path = log_probs.max(-1)
        best, path, lengths = best.cpu(), path.cpu(), lengths.cpu()
        return [[_collapse(path[i, :length], best[i, :length])] for i, length in enumerate(lengths.tolist())]


def _collapse(path: Tensor, best: Tensor) -> Hypothesis:
    """One path (T',) and its log-probabilities (T',) -> labels with their frames."""
    if path.numel() == 0:
        return Hypothesis((), 0.0, (), (), ())
    labels, counts = torch.unique_consecutive(path, return_counts=True)
    ends = counts.cumsum(0)
    starts = ends - counts
    kept = [
        (label, start, end)
        for label, start, end in zip(labels.tolist(), starts.tolist(), ends.tolist(), strict=True)
        if label != BLANK
    ]
    confidences = tuple(float(best[start:end].max().exp()) for _, start, end in kept)
    return Hypothesis(
        labels=tuple(label for label, _, _ in kept),
        score=float(best.sum()),
        starts=tuple(start for _, start, _ in kept),
        ends=tuple(end for _, _, end in kept),
        confidences=confidences,
    )


def best_paths(log_probs: Tensor, lengths: Tensor) -> tuple[list[list[int]], int]:
    """Greedy labels of a batch, and how many of its real frames are blank: the cheap half of GreedyDecoder for
    training."""
    path = log_probs.argmax(-1).cpu()
    lengths = lengths.cpu()
    sequences, blanks = [], 0
    for i, length in enumerate(lengths.tolist()):
        frames = path[i, :length]
        blanks += int((frames == BLANK).sum())
        sequences.append([label for label in torch.unique_consecutive(frames).tolist() if label != BLANK])
    return sequences, blanks
