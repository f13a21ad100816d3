"""CTC: the output layer, the loss, and the rule that says which targets are possible at all.

Graves et al. 2006, "Connectionist Temporal Classification". The blank is id 0. `zero_infinity` is never used: a target
that cannot be aligned is an error with a name, not a zero that flatters the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq

import torch
from torch import Tensor, nn

from asrkit.errors import NumericError

BLANK = 0


class CTCHead(nn.Module):
    """Encoder output (B, T', D) -> log-probabilities (B, T', V), in float32 whatever the precision of the encoder.

    `decode_prior`: in evaluation they are those of p / q^decode_prior, q (V,) the mean posterior in training, so frames
    where blank is likely, but less than usual, speak. 0: p, and nothing is kept.
    """

    def __init__(self, input_size: int, num_labels: int, decode_prior: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, num_labels)
        self.decode_prior = decode_prior
        if decode_prior:
            self.register_buffer("log_prior", torch.zeros(num_labels))

    log_prior: Tensor

    def forward(self, x: Tensor) -> Tensor:
        log_probs = self.linear(x).float().log_softmax(-1)
        if self.decode_prior and not self.training:
            return renormalized(log_probs, self.log_prior, self.decode_prior)[0]
        return log_probs


def renormalized(log_probs: Tensor, log_prior: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Scores s = log_probs (B, T', V) - scale log_prior (V,) as log-probabilities s - c, and c (B, T') = log sum exp s.

    Every path through the frames has one score a frame, so the CTC loss of s is that of s - c, minus the sum of c. In
    this form torch's gradient is right: given s itself its backward would take exp(s) for probabilities.
    """
    scores = log_probs - scale * log_prior
    constants = scores.logsumexp(-1)
    return scores.log_softmax(-1), constants


def required_frames(labels: Sequence[int]) -> int:
    """The fewest frames that can carry these labels: one each, and a blank between two equal neighbours."""
    return len(labels) + sum(map(eq, labels, labels[1:]))


def check_targets(
    targets: Tensor, target_lengths: Tensor, lengths: Tensor, num_labels: int, ids: Sequence[str] | None = None
) -> None:
    """Refuse what the loss would silently turn into nonsense.

    targets (B, L) padded with anything, target_lengths (B,), lengths (B,) frames. Raises NumericError (exit 4) naming
    the utterance when a label lies outside 1 ... V - 1 (torch's loss reads out of bounds there), or when T' < labels +
    repeats (the loss is infinite there).
    """
    targets, target_lengths, lengths = targets.cpu(), target_lengths.cpu(), lengths.cpu()
    real = torch.arange(targets.shape[1]) < target_lengths.unsqueeze(1)
    bad = real & ((targets <= BLANK) | (targets >= num_labels))
    repeats = ((targets[:, 1:] == targets[:, :-1]) & real[:, 1:]).sum(1)
    short = lengths < target_lengths + repeats
    for row in torch.nonzero(bad.any(1) | short).flatten().tolist():
        name = ids[row] if ids is not None else f"utterance {row} of the batch"
        if bad[row].any():
            label = int(targets[row][bad[row]][0])
            raise NumericError(
                f"{name}: target label {label}",
                possible=f"1 to {num_labels - 1} (0 is the blank)",
                fix="build the labels with the model's own tokenizer",
                reason="target_out_of_range",
            )
        raise NumericError(
            f"{name}: {int(target_lengths[row])} labels with {int(repeats[row])} repeats need "
            f"{int(target_lengths[row] + repeats[row])} frames, the encoder gives {int(lengths[row])}",
            fix="exclude the utterance, use fewer strides, or longer units",
            reason="too_short_for_ctc",
        )


def ctc_loss(
    log_probs: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    ids: Sequence[str] | None = None,
) -> Tensor:
    """Negative log-likelihood (B,) in nats of targets (B, L) under log_probs (B, T', V), frames `lengths` (B,).

    Targets are checked first (check_targets). Divide the sum by the sum of `target_lengths` for nats per label. The
    gradient is right only if `log_probs` come from a log-softmax in the same graph (torch's backward assumes it).
    """
    check_targets(targets, target_lengths, lengths, log_probs.shape[-1], ids)
    return nn.functional.ctc_loss(
        log_probs.transpose(0, 1), targets, lengths, target_lengths, blank=BLANK, reduction="none", zero_infinity=False
    )
