"""Does a CTC model hear its input? From its loss, and from how much its layers depend on the audio. No torch.

The floor (asrkit.diagnostics.floor) is the loss of the best model with the same probabilities at every frame. A
recurrent model that hears nothing gets below it all the same: it knows how far every frame is from both ends, and what
sentences begin and end with. Eleven BiGRUs without a norm came to 0.92 of the floor, with one text for all utterances
and outputs that other audio moved by 3e-6 (docs/log.md, 2026-11-29). So the loss alone tells nothing between
0.85 and 0.98 of the floor, and how much the layers depend on the audio decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Below 0.98 of the floor something is known (reliability row C08; a healthy BiGRU is at 0.64 of it by update 200, where
# a collapsed one stays between 1.00 and 1.01). Above 1.05 the label frequencies are not learned (there: 1.46 with a
# learning rate ten times too small); the band between allows for an epoch's mean and for the sampled clips.
BELOW, ABOVE = 0.98, 1.05
# Of the floor: no model was seen below this that did not hear (0.92 to 0.94 where other audio changed nothing).
SURE = 0.85
# Dependence on the input of a model's weakest layer. Up to 0.05 the right audio lowered the loss by less than 1 %
# beside other audio of the same length, and dev outputs were one to four texts; from 0.3 on it did by 2 % and more.
DEAF = 0.1


def phase(loss: float, floor: float) -> str:
    """`above_floor`, `on_floor` or `below_floor`; both in nats per label."""
    if loss < BELOW * floor:
        return "below_floor"
    return "on_floor" if loss <= ABOVE * floor else "above_floor"


def hears(loss: float, floor: float, dependence: Mapping[str, float] | None = None) -> bool:
    """Whether a model hears its input: below the floor, and not by knowing its place in the utterance alone.

    loss: on train, and floor, in nats per label. dependence: of every layer on the input (0 to about 1), where known.
    """
    if phase(loss, floor) != "below_floor":
        return False
    return loss < SURE * floor or not dependence or min(dependence.values()) >= DEAF


def epoch_hears(epoch: Mapping[str, Any]) -> bool | None:
    """The same of an epoch's record in metrics.jsonl; None where the diagnosis is not in it."""
    found = epoch.get("diagnosis") or {}
    if found.get("phase") != "below_floor":
        return None if found.get("phase") is None else False
    loss, floor = (epoch.get("train") or {}).get("loss"), found.get("floor")
    if loss is None or floor is None:
        return True
    return hears(loss, floor, found.get("dependence"))


def model_hears(epochs: Sequence[Mapping[str, Any]], best_epoch: int | None) -> bool | None:
    """The same of a run's best model, which is the one that is scored; of any epoch where that one's is not known.

    epochs: the records of type epoch in metrics.jsonl.
    """
    known = {epoch.get("epoch"): epoch_hears(epoch) for epoch in epochs}
    if known.get(best_epoch) is not None:
        return known[best_epoch]
    found = [one for one in known.values() if one is not None]
    return any(found) if found else None
