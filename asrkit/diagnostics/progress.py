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
RECENT = 50  # updates whose losses say where an epoch has come to
# A loss above the floor after so many updates: the label frequencies alone take Adam some 100 (C08: 4.36 of 2.98 at
# update 150 with a rate ten times too small).
LEARNED_FREQUENCIES = 150
# Of the best epoch before: dropout and order move an epoch's loss by 1 to 2 %. The mean over the last batches, where
# short utterances count as much as long ones, was at most 1.10 of the floor in healthy runs whose epoch was on it.
GROWN = 1.2
SMALL_BATCH = 4  # utterances that statistics are taken of (N02)
NAMED = 4  # utterances of a refused batch
# Norm of an epoch's gradient in the first two layers (the first may be a norm, with few parameters) over the largest of
# any layer but the output's. Of 112 runs of docs/studies all 14 that were once below this ended at a CER of 88 % and
# more; the lowest that learned was at 7e-4.
FAINT = 1e-4
# What is decided here from the records alone, so that a finding that training has recorded is decided again.
JUDGED = frozenset(
    {"nan", "exploding_gradients", "vanishing_gradients", "lr_too_high", "lr_too_low", "collapse", "hears_nothing",
     "on_blank_plateau"}
)  # fmt: skip


def judge_epochs(
    epochs: Sequence[dict[str, Any]],
    floor: float | None,
    batch_statistics: bool = False,
    dependence: Mapping[str, float] | None = None,
    *,
    recent: Sequence[float] = (),
    refused: Sequence[Mapping[str, Any]] = (),
    prior: bool = False,
    accumulation: int = 1,
) -> list[Finding]:
    """What the records of type epoch say at the last of them. floor: nats per label, None where it is not known.

    `batch_statistics`: whether the encoder's norms take them. dependence: of every layer on the input, where known.
    recent: losses of the last RECENT updates before the last of these records. refused: all records of this type,
    where known; those of an epoch that is not finished are in no epoch's figures. prior: whether a label prior is
    trained with; the loss is then not what is minimized, and nothing is said of the learning rate. accumulation:
    batches of an update, each of which has statistics of its own.
    """
    found = _refused(epochs, refused)
    if not epochs:
        return found
    last = epochs[-1]
    train, updates = last["train"], last["step"]
    in_batch = train["utterances"] / max(train.get("updates", 0), 1) / accumulation
    if batch_statistics and in_batch < SMALL_BATCH and train.get("updates"):
        each = "per update" if accumulation == 1 else f"in each of the {accumulation} batches of an update"
        found.append(finding("batch_too_small_for_bn", "warning", f"{in_batch:.1f} utterances {each}"))
    found += _gradients(train)
    if floor:
        found += [] if prior else _learning_rate(epochs, floor, recent)
        found += _against_floor(epochs, floor, updates, dependence or {})
    return found


def _refused(epochs: Sequence[dict[str, Any]], records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    last = epochs[-1].get("epoch", 0) if epochs else 0
    # By place: a run that began again without a checkpoint has written those of its first attempt, too.
    later = {(one["epoch"], one["batch"]): one["step"] for one in records if one["epoch"] > last}
    count = len(later) + sum(e["train"].get("refused_batches", 0) for e in epochs)
    if not count:
        return []
    made = sum(e["train"].get("updates", 0) for e in epochs)
    begun = epochs[-1]["step"] if epochs else 0
    made += max(later.values(), default=begun) - begun
    words = f"{count} of about {count + made} batches were refused because they were not finite"
    if records:
        newest = records[-1]
        words += f"; the last one for its {newest['what']}, in epoch {newest['epoch']} after update {newest['step']}, "
        words += f"with {_named(newest['ids'])}"
    return [finding("nan", "error", words)]


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + f" and {len(ids) - NAMED} more" * (len(ids) > NAMED)


def _gradients(train: Mapping[str, Any]) -> list[Finding]:
    """Norms before clipping, means over the updates of the epoch."""
    found, total = [], train.get("grad_norm") or 0.0
    if total > EXPLODING:
        words = f"the norm of the gradient before clipping is {total:.3g}, mean of an epoch"
        found.append(finding("exploding_gradients", "warning", words))
    norms = (train.get("grad_norm_by_layer") or {}).items()
    layers = [(name, norm) for name, norm in norms if not _is_output(name)]
    if len(layers) >= MODULES_FOR_ORDER:
        first, largest = max(layers[:2], key=lambda one: one[1]), max(layers, key=lambda one: one[1])
        if first[1] < FAINT * largest[1]:
            words = f"in the last epoch the norm of its gradient is {first[1] / largest[1]:.1e} of that of {largest[0]}"
            found.append(finding("vanishing_gradients", "warning", words, f"layers.{first[0]}"))
    return found


def _is_output(layer: str) -> bool:
    """The output layer, and those that only training has (ctc.intermediate): their gradients are of another size."""
    return layer == "ctc" or layer.startswith("acoustic.objective")


def _learning_rate(epochs: Sequence[dict[str, Any]], floor: float, recent: Sequence[float]) -> list[Finding]:
    losses = [e["train"]["loss"] for e in epochs]
    loss, best, words = losses[-1], min(losses), _where(epochs, floor)
    if loss > GROWN * best and loss > floor:
        return [finding("lr_too_high", "error", f"the loss grew from {best:.3f} to {loss:.3f}; {words}")]
    now = sum(recent[-RECENT:]) / RECENT if len(recent) >= RECENT else None
    if now is not None:
        words += f", the last {RECENT} updates at {now:.3f}"
    if (epochs[-2]["step"] if len(epochs) > 1 else 0) >= LEARNED_FREQUENCIES:
        above = phase(loss if now is None else min(loss, now), floor) == "above_floor"
        falling = all(b <= a for a, b in pairwise(losses))
    else:  # the mean of an epoch holds its start, when no model has learned anything: only its end tells
        late = epochs[-1]["step"] >= LEARNED_FREQUENCIES + RECENT
        above = late and now is not None and min(loss, now) > GROWN * floor
        falling = now is not None and now <= loss
    if not above:
        return []
    code, how = ("lr_too_low", ", and falling") if falling else ("lr_too_high", "")
    return [finding(code, "warning", f"still above the floor{how}; {words}")]


def _empty(epoch: Mapping[str, Any]) -> float:
    return float(min(part["empty"] for part in (epoch["train"], epoch.get("dev", {"empty": 1.0}))))


def _where(epochs: Sequence[dict[str, Any]], floor: float) -> str:
    last = epochs[-1]
    return (
        f"train loss {last['train']['loss']:.3f} per label, input-blind floor {floor:.3f}, {_empty(last):.1%} empty "
        f"outputs, update {last['step']}"
    )


def _against_floor(
    epochs: Sequence[dict[str, Any]], floor: float, updates: int, dependence: Mapping[str, float]
) -> list[Finding]:
    loss, empty, where = epochs[-1]["train"]["loss"], _empty(epochs[-1]), _where(epochs, floor)
    found, now = [], phase(loss, floor)
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
