"""Known faults, switched on by name in a recipe's `defects:`, to show what each of them does.

They are what was found in the notebooks behind the question and in their ancestor; schema.DEFECTS lists them. A model
with faults of its own (in its layers or features) keeps them in its bundle, and says so when it is loaded. What a model
carries from batch to batch is not in a checkpoint: a resumed run begins with zero states.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.ctc import BLANK, ctc_loss, required_frames
from asrkit.errors import RecipeError
from asrkit.recurrent import Recurrent
from asrkit.recurrent.layer import RecurrentLayer

logger = logging.getLogger(__name__)


def defects_of(recipe: dict[str, Any]) -> tuple[str, ...]:
    """The names that are switched on; none in a recipe without the section."""
    return tuple(recipe.get("defects") or ())


def features_section(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe's `features:`; with linear_power_mel, its filter bank without the logarithm."""
    section: dict[str, Any] = recipe["features"]
    if "linear_power_mel" not in defects_of(recipe):
        return section
    if section["name"] != "fbank":
        raise RecipeError(
            f"defects: linear_power_mel with features {section['name']}", possible="features fbank", reason="defects"
        )
    return {**section, "options": {**(section.get("options") or {}), "log": False}}


class FaultyLoss:
    """The recipe's way to the CTC loss: the right one without defects.

    mel_axis_lengths: every utterance has (features // 2) frames, as if the transposed input's first axis were time.
    zero_infinity: utterances that cannot be aligned get loss 0.
    """

    def __init__(self, recipe: dict[str, Any], features: int) -> None:
        names = defects_of(recipe)
        self.frames = features // 2 if "mel_axis_lengths" in names else None
        self.zero_infinity = "zero_infinity" in names

    def lengths(self, lengths: Tensor, frames: int) -> Tensor:
        """Lengths (B,) that the loss is given, of outputs padded to `frames`."""
        return lengths if self.frames is None else torch.full_like(lengths, min(self.frames, frames))

    def __call__(
        self,
        log_probs: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        ids: Sequence[str] | None = None,
    ) -> Tensor:
        """As asrkit.ctc.ctc_loss: (B,) nats."""
        lengths = self.lengths(lengths, log_probs.shape[1])
        if not self.zero_infinity:
            return ctc_loss(log_probs, lengths, targets, target_lengths, ids)
        return F.ctc_loss(
            log_probs.transpose(0, 1), targets, lengths, target_lengths, BLANK, reduction="none", zero_infinity=True
        )

    def feasible(self, lengths: Tensor, labels: Sequence[Sequence[int]]) -> list[bool]:
        """Which utterances can be aligned within lengths (B,)."""
        return [required_frames(row) <= n for row, n in zip(labels, lengths.tolist(), strict=True)]


class Recurrence:
    """padding_first and batch_axis_recurrence, in place of a recurrent stack's own way through a batch."""

    def __init__(self, over_batch: bool) -> None:
        self.over_batch = over_batch

    def __call__(self, stack: Recurrent, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, D), every frame taken as real."""
        if not self.over_batch:
            return stack.run(x, torch.full_like(lengths, x.shape[1]))
        steps = torch.full((x.shape[1],), x.shape[0], dtype=torch.int64, device=lengths.device)
        return stack.run(x.transpose(0, 1).contiguous(), steps).transpose(0, 1)


class Memory:
    """carried_state: the last states of one batch are the first of the next, whoever speaks there."""

    def __init__(self) -> None:
        self.last: dict[int, Tensor] = {}

    def start(self, direction: int, zeros: Tensor) -> Tensor:
        """(1, B, H) for a batch of B: states of before by place in the batch, and zeros where there are none."""
        last = self.last.get(direction)
        if last is None or last.device != zeros.device:
            return zeros
        last = last[:, : zeros.shape[1]].to(zeros.dtype).clone()  # one from inference mode could not be trained with
        return F.pad(last, (0, 0, 0, zeros.shape[1] - last.shape[1]))

    def keep(self, direction: int, last: Tensor) -> None:
        """Remember (1, B, H), unless it would poison everything that comes later."""
        if bool(last.isfinite().all()):
            self.last[direction] = last.detach()


def forget(model: nn.Module) -> None:
    """Back to zero states."""
    for module in model.modules():
        memory = getattr(module, "memory", None)
        if isinstance(memory, Memory):
            memory.last.clear()


def install(acoustic: nn.Module, names: Collection[str], seed: int) -> None:
    """Put the faults into a built model. Biases come from a generator of their own: other weights stay as they are.

    batch_axis_recurrence spares the first of several recurrent layers of `layers:`, as the notebooks' ancestor does.
    """
    stacks = [module for module in acoustic.modules() if isinstance(module, Recurrent)]
    if "normal_biases" in names:
        _draw_biases(acoustic, seed)
    for place, stack in enumerate(stacks):
        over_batch = "batch_axis_recurrence" in names and (place > 0 or len(stacks) == 1)
        if over_batch or "padding_first" in names:
            stack.fault = Recurrence(over_batch)
    if "carried_state" in names:
        for module in acoustic.modules():
            if isinstance(module, RecurrentLayer):
                _give_memory(module)


def _give_memory(layer: RecurrentLayer) -> None:
    if layer.in_recurrence:
        raise RecipeError(
            "defects: carried_state with a norm inside the recurrence",
            possible="norm: none, input or gates in the recurrent layers",
            reason="defects",
        )
    layer.memory = Memory()


def _draw_biases(model: nn.Module, seed: int) -> None:
    """N(0, 1) for every bias but those of norms."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if any(p.dim() >= 2 and "bias" not in name for name, p in own.items()):
            for name, parameter in own.items():
                if "bias" in name:
                    with torch.no_grad():
                        parameter.copy_(torch.randn(parameter.shape, generator=generator))


def warn(names: Collection[str], where: object) -> None:
    """Say that a model has known defects."""
    if names:
        logger.warning("%s has known defects, switched on by its recipe: %s", where, ", ".join(names))
