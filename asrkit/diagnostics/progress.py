"""Where a run stands, from the figures of its epochs alone: collapse, plateau, learning rate, gradients, refused
batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from asrkit.diagnostics.findings import Finding, finding
from asrkit.diagnostics.scales import EXPLODING, MODULES_FOR_ORDER
from asrkit.hearing import hears, phase

EMPTY = 0.99  # share of outputs without a label (reliability C08)
# Healthy models give blanks only until update 100 to 150 (C08); nobody is called collapsed before twice that.
PATIENCE = 300
# A loss above the floor after so many updates: the label frequencies alone take Adam some 100 (C08: 4.36 of 2.98 at
# update 150 with a rate ten times too small).
LEARNED_FREQUENCIES = 150
# Of the best epoch before: dropout and order move an epoch's loss by 1 to 2 %.
GROWN = 1.2
SMALL_BATCH = 4  # utterances per update (N02)
# Norm of an epoch's gradient in the first two layers (the first may be a norm, with few parameters) over the largest of
# any layer but the output's. Of 112 runs of docs/studies all 14 that were once below this ended at a CER of 88 % and
# more; the lowest that learned was at 7e-4.
FAINT = 1e-4


def judge_epochs(
    epochs: Sequence[dict[str, Any]],
    floor: float | None,
    batch_statistics: bool = False,
    dependence: Mapping[str, float] | None = None,
) -> list[Finding]:
    """What the records of type epoch say at the last of them. floor: nats per label, None where it is not known.

    `batch_statistics`: whether the encoder's norms take them. dependence: of every layer on the input, where known.
    """
    if not epochs:
        return []
    found = _refused(epochs)
    last = epochs[-1]
    train, updates = last["train"], last["step"]
    per_update = train["utterances"] / max(train.get("updates", 0), 1)
    if batch_statistics and per_update < SMALL_BATCH and train.get("updates"):
        words = f"{per_update:.1f} utterances per update"
        found.append(finding("batch_too_small_for_bn", "warning", words))
    found += _gradients(train)
    if floor:
        found += _against_floor(epochs, floor, updates, dependence or {})
    return found


def _refused(epochs: Sequence[dict[str, Any]]) -> list[Finding]:
    refused = sum(e["train"].get("refused_batches", 0) for e in epochs)
    if not refused:
        return []
    batches = refused + sum(e["train"].get("updates", 0) for e in epochs)
    return [finding("nan", "error", f"{refused} of about {batches} batches were refused because they were not finite")]


def _gradients(train: Mapping[str, Any]) -> list[Finding]:
    """Norms before clipping, means over the updates of the epoch."""
    found, total = [], train.get("grad_norm") or 0.0
    if total > EXPLODING:
        words = f"the norm of the gradient before clipping is {total:.3g}, mean of an epoch"
        found.append(finding("exploding_gradients", "warning", words))
    layers = list((train.get("grad_norm_by_layer") or {}).items())[:-1]  # the output layer's is of another size
    if len(layers) >= MODULES_FOR_ORDER:
        first, largest = max(layers[:2], key=lambda one: one[1]), max(layers, key=lambda one: one[1])
        if first[1] < FAINT * largest[1]:
            words = f"in the last epoch the norm of its gradient is {first[1] / largest[1]:.1e} of that of {largest[0]}"
            found.append(finding("vanishing_gradients", "warning", words, f"layers.{first[0]}"))
    return found


def _against_floor(
    epochs: Sequence[dict[str, Any]], floor: float, updates: int, dependence: Mapping[str, float]
) -> list[Finding]:
    losses = [e["train"]["loss"] for e in epochs]
    loss, empty = losses[-1], min(e["empty"] for e in (epochs[-1]["train"], epochs[-1].get("dev", {"empty": 1.0})))
    where = (
        f"train loss {loss:.3f} per label, input-blind floor {floor:.3f}, {empty:.1%} empty outputs, update {updates}"
    )
    best, found, now = min(losses), [], phase(loss, floor)
    if loss > GROWN * best and loss > floor:
        found.append(finding("lr_too_high", "error", f"the loss grew from {best:.3f} to {loss:.3f}; {where}"))
    elif now == "above_floor" and updates >= LEARNED_FREQUENCIES:
        falling = all(b <= a for a, b in pairwise(losses))
        code, words = ("lr_too_low", ", and falling") if falling else ("lr_too_high", "")
        found.append(finding(code, "warning", f"still above the floor{words}; {where}"))
    deaf = not hears(loss, floor, dependence)
    if deaf and dependence:
        layer = min(dependence, key=lambda name: dependence[name])
        where += f", other audio changes {layer} by {dependence[layer]:.2g}"
    if empty >= EMPTY and deaf and updates >= PATIENCE:
        found.append(finding("collapse", "error", where))
    elif deaf and now == "below_floor" and updates >= PATIENCE:
        found.append(finding("hears_nothing", "warning", where))
    elif empty >= EMPTY and now == "on_floor":
        found.append(finding("on_blank_plateau", "note", where))
    return found
