"""What training minimizes: the CTC loss, with the cures of a recipe's `ctc:` section that change it.

Without any of them there is no such object, and the loss is that of asrkit.ctc to the last bit. What lives here, output
layers of inner layers and sums for the prior, is trained and saved in checkpoints; a model that is saved leaves it out.

Letters: B utterances, T' output frames, V labels, D features of a layer. docs/cures.md says when which cure helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from asrkit.ctc import CTCHead, renormalized
from asrkit.encoders import Encoder, StackEncoder
from asrkit.entries import RecurrentLayer
from asrkit.errors import RecipeError
from asrkit.layers import Chain, Layer, Residual
from asrkit.masking import frame_mask

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Sequence[str] | None], Tensor]
"""As asrkit.ctc.ctc_loss: log_probs (B, T', V), lengths (B,), targets (B, L), their lengths (B,), ids -> (B,) nats."""

RAREST = -12.0
"""Smallest log prior: a label that was never expected would otherwise have an infinite score."""

Kept = list[tuple[Tensor, Tensor]]
"""What inner layers gave: outputs (B, T', D) and lengths (B,)."""


class Objective(nn.Module):
    """(1 - w) L + (w / K) sum_k L_k: a CTC loss with a label prior, and losses on K inner layers.

    Label prior (Zeyer, Schlüter & Ney 2021, arXiv 2105.14849; in the form of Huang et al. 2024, arXiv 2406.02560): L is
    the CTC loss of the scores log p - alpha log q, where q (V,) is the mean posterior over all real frames of the last
    epoch, a constant for the gradient; in the first epoch alpha is 0.

    Intermediate CTC (Lee & Watanabe 2021, arXiv 2102.03216): L_k is the plain CTC loss of an output layer of its own on
    the k-th inner layer. Theirs shares the output layer; here layers differ in size.
    """

    def __init__(self, num_labels: int, prior: float, gather: bool, weight: float, sizes: Sequence[int]) -> None:
        super().__init__()
        self.prior, self.gather, self.weight = prior, gather, weight
        self.heads = nn.ModuleList(CTCHead(size, num_labels) for size in sizes)
        self.watched: list[nn.Module] = []  # not modules of this one: they are the encoder's
        self.register_buffer("log_prior", torch.zeros(num_labels))
        self.register_buffer("has_prior", torch.zeros((), dtype=torch.bool))
        self.register_buffer("posteriors", torch.zeros(num_labels, dtype=torch.float64))
        self.register_buffer("frames", torch.zeros((), dtype=torch.float64))

    log_prior: Tensor
    has_prior: Tensor
    posteriors: Tensor
    frames: Tensor

    def forward(
        self, loss: Loss, log_probs: Tensor, lengths: Tensor, inner: Kept, targets: Tensor, target_lengths: Tensor,
        ids: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What is minimized (B,), and the plain CTC loss of the output layer (B,), both in nats."""
        labels = (targets, target_lengths, ids)
        with_prior = self.prior > 0 and bool(self.has_prior)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not with_prior):
            total = plain = loss(log_probs, lengths, *labels)
        if self.gather:
            self._count(log_probs.detach(), lengths)
        if with_prior:
            scores, constants = renormalized(log_probs, self.log_prior, self.prior)
            real = frame_mask(lengths.to(constants.device), constants.shape[1])
            total = loss(scores, lengths, *labels) - (constants * real).sum(1)
        if self.weight:
            others = [
                loss(head(x.float()), n.cpu(), *labels) for head, (x, n) in zip(self.heads, inner, strict=True)
            ]  # fmt: skip
            total = (1 - self.weight) * total + self.weight / len(others) * torch.stack(others).sum(0)
        return total, plain.detach()

    def _count(self, log_probs: Tensor, lengths: Tensor) -> None:
        real = frame_mask(lengths.to(log_probs.device), log_probs.shape[1])
        self.posteriors += (log_probs.double().exp() * real.unsqueeze(-1)).sum((0, 1))
        self.frames += lengths.sum().to(self.frames)

    def end_epoch(self, head: CTCHead) -> None:
        """The mean posterior of the epoch becomes the prior of the next, and that of decoding where there is one."""
        if not self.gather or not bool(self.frames > 0):
            return
        self.log_prior.copy_((self.posteriors / self.frames).log().clamp(min=RAREST))
        self.has_prior.fill_(True)
        if head.decode_prior:
            head.log_prior.copy_(self.log_prior)
        self.posteriors.zero_()
        self.frames.zero_()


def has_label_prior(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe trains with a label prior: from the second epoch on the plain loss is not what is minimized."""
    return float((recipe.get("ctc") or {}).get("label_prior") or 0.0) > 0


@contextmanager
def listening(objective: Objective | None) -> Iterator[Kept]:
    """While a batch goes through the model: what the watched layers of its objective give, in their order."""
    watched = [] if objective is None else objective.watched
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def hook(place: int) -> Callable[..., None]:
        return lambda _module, _inputs, output: kept.__setitem__(place, output)

    handles = [layer.register_forward_hook(hook(place)) for place, layer in enumerate(watched)]
    found: Kept = []
    try:
        yield found
        found += [kept[place] for place in range(len(watched))]
    finally:
        for handle in handles:
            handle.remove()


def make_objective(section: Mapping[str, Any], encoder: Encoder, num_labels: int) -> Objective | None:
    """The objective of a recipe's `ctc:` section, its weights drawn from torch's generator; None: the CTC loss alone.

    Raises RecipeError (reason `intermediate`) for inner layers that the encoder does not have.
    """
    inner = section.get("intermediate") or {}
    weight, prior = float(inner.get("weight") or 0.0), float(section.get("label_prior") or 0.0)
    gather = prior > 0 or float(section.get("decode_prior") or 0.0) > 0
    watched = _watched(encoder, inner.get("after")) if weight else []
    if not (watched or gather):
        return None
    objective = Objective(num_labels, prior, gather, weight, [layer.output_size for layer in watched])
    objective.watched = list(watched)
    return objective


def _watched(encoder: Encoder, after: Sequence[int] | None) -> list[Layer]:
    """The recurrent layers of these numbers, from 1; None: the middle one, as in the paper."""
    found = list(_recurrent(encoder.stack)) if isinstance(encoder, StackEncoder) else []
    if len(found) < 2:
        raise RecipeError(
            f"ctc.intermediate with {len(found)} recurrent entries in layers:",
            possible="at least 2; `bigru: {layers: 5}` is one, `repeat: {times: 5, layers: [{bigru: 512}]}` five",
            reason="intermediate",
        )
    numbers = [len(found) // 2] if after is None else list(after)
    if wrong := [number for number in numbers if number >= len(found)]:
        raise RecipeError(
            f"ctc.intermediate.after = {numbers}: {wrong[0]}", possible=f"1 to {len(found) - 1}, an inner layer",
            reason="intermediate",
        )  # fmt: skip
    return [found[number - 1] for number in numbers]


def _recurrent(layer: Layer) -> Iterator[Layer]:
    """Recurrent layers in the order of the data; of a residual block, its sum."""
    if isinstance(layer, RecurrentLayer):
        yield layer
    elif isinstance(layer, Residual):
        if any(True for _ in _recurrent(layer.chain)):
            yield layer
    elif isinstance(layer, Chain):
        for inner in layer.layers:
            yield from _recurrent(cast(Layer, inner))
