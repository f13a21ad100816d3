"""The proof that the arms of a study differ in their encoder and learning rate only.

Every cell has a fingerprint: hashes of its settings, of the splits, of the order of the data, of the initial weights
outside the norms, and its number of updates. Within a group (recipe, axes, seed) they must be equal. They are computed
before the first update; order, updates and the hash of the sources, which is no part of it (a study may go on after an
upgrade, and its report says so), are recorded again by every cell of what it really did, and all else computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asrkit.errors import RecipeError
from asrkit.recipe import difference, recipe_hash
from asrkit.study.plan import Cell, Study, common

if TYPE_CHECKING:
    from torch import Tensor, nn

    from asrkit.preparation import Prepared
    from asrkit.preparation.splits import Split

COMPARED = ("settings", "train", "dev", "test", "tokenizer", "frames", "order", "updates", "weights")


def shortened(value: str) -> str:
    """The first 8 digits of a hash, or of each where a cell was trained with several sources one after the other."""
    return "+".join(part[:8] for part in value.split("+"))


# --- what is fingerprinted


def fingerprint(settings: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    """What can be known of a cell without training it; order and updates are None, see `planned` and `recorded`."""
    from asrkit.model import build_model, parameter_count
    from asrkit.source_code import version_hash

    model = build_model(settings, prepared.tokenizer.size)
    weights = shared_weights(model.acoustic)
    total = parameter_count(model.acoustic)
    hashes = {name: _hash(value) for name, value in sorted(weights.items())}
    return {
        "settings": recipe_hash(common(settings)),
        **{name: split.hash for name, split in prepared.splits.items()},
        "tokenizer": prepared.tokenizer.fingerprint,
        "frames": _frames_hash(model, [prepared.splits[name] for name in ("train", "dev")]),
        "order": None,
        "updates": None,
        "weights": hashlib.sha256("".join(f"{k} {v}\n" for k, v in hashes.items()).encode()).hexdigest(),
        "weights_by_name": {name: value[:12] for name, value in hashes.items()},
        "code": version_hash(),
        "parameters": total,
        "norm_parameters": total - sum(value.numel() for value in weights.values()),
    }


def shared_weights(acoustic: nn.Module) -> dict[str, Tensor]:
    """The parameters outside all norms, by name.

    A weight that an encoder has taken apart (weight norm: a direction and a length) counts as what it was made of,
    where that is one of its parts; what is left of the parts counts as the norm's.
    """
    import torch
    from torch.nn.utils import parametrize

    found = {}
    for place, module in acoustic.named_modules():
        if any(part == "norm" or part.endswith(("_norm", "norms")) or part == "parametrizations"
               for part in place.split(".")):  # fmt: skip
            continue
        for name, value in module.named_parameters(place, recurse=False):
            found[name] = value.detach()
        if not parametrize.is_parametrized(module):
            continue
        for name, parts in module.parametrizations.items():  # type: ignore[union-attr, operator]
            value = getattr(module, name).detach()
            for part in parts.parameters(recurse=False):
                if part.shape == value.shape and torch.allclose(part, value, rtol=1e-4, atol=1e-7):
                    found[f"{place}.{name}"] = part.detach()
    return found


def _hash(value: Tensor) -> str:
    data = value.cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
    digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def _frames_hash(model: Any, splits: Sequence[Split]) -> str:
    """Of how many output frames the encoder makes of every number of input frames that occurs: arms that differ here do
    not have the same feasible utterances, nor the same task."""
    counts = sorted({count for split in splits for count in split.frames})
    return hashlib.sha256(repr([int(model.acoustic.encoder.num_frames(n)) for n in counts]).encode()).hexdigest()


def planned(settings: dict[str, Any], train: Split) -> dict[str, Any]:
    """Order and number of updates of a whole run over this split: what `recorded` reads from a run that was done."""
    from asrkit.batching import BatchSampler, chain_hash

    options = settings["training"]
    sampler = BatchSampler(
        train.frames, options["batch_frames"], options["batch_size"], options["order"], settings["seed"],
        options.get("first_epoch"),
    )  # fmt: skip
    order, updates = "", 0
    names = [utterance.id for utterance in train.utterances]
    for epoch in range(1, options["epochs"] + 1):
        train.set_epoch(epoch)
        sampler.frames = train.frames
        sampler.set_epoch(epoch)
        batches = sampler.batches()
        updates += -(-len(batches) // options["accumulation"])
        for batch in batches:
            order = chain_hash(order, [names[row] for row in batch])
    return {"order": order, "updates": updates}


def recorded(metrics: Sequence[Mapping[str, Any]], epochs: int) -> dict[str, Any]:
    """Order and number of updates of a run, from its metrics.jsonl; {} where it did not come to its end.

    A batch that was refused (not finite) and a step that fp16 skipped count: the data were the same.
    """
    done = [line for line in metrics if line["type"] == "epoch"]
    if not done or done[-1]["epoch"] != epochs:
        return {}
    counts = [
        line["train"].get("updates", 0) + line["train"].get("refused_batches", 0)
        + line["train"].get("skipped_updates", 0)
        for line in done
    ]  # fmt: skip
    return {"order": done[-1].get("order"), "updates": sum(counts)}


# --- what is compared

Fingerprints = Mapping[str, Mapping[str, Any]]
"""By cell id."""


def groups(study: Study, fingerprints: Fingerprints) -> dict[str, list[Cell]]:
    """Group -> its cells that have a fingerprint."""
    found: dict[str, list[Cell]] = {}
    for cell in study.cells:
        if fingerprints.get(cell.id):
            found.setdefault(cell.group, []).append(cell)
    return found


def check(study: Study, fingerprints: Fingerprints) -> None:
    """Raise RecipeError (`not_only_the_axis`) with every difference, unless each group agrees in all of COMPARED."""
    found = [
        line for group in groups(study, fingerprints).values() for other in group[1:]
        for line in _differences(group[0], other, fingerprints)
    ]  # fmt: skip
    if found:
        shown = found[:8] + ([f"and {len(found) - 8} more"] if len(found) > 8 else [])
        raise RecipeError(
            f"the arms differ in more than their encoder and learning rate: {'; '.join(shown)}",
            fix="make what differs an axis of the study, or mend the encoder (asrkit plugins check NAME)",
            reason="not_only_the_axis",
        )


def _differences(first: Cell, second: Cell, fingerprints: Fingerprints) -> Iterator[str]:
    a, b = fingerprints[first.id], fingerprints[second.id]
    who = f"{first.group}: {_label(first, second)}"
    for key in COMPARED:
        if a.get(key) is None or b.get(key) is None or a[key] == b[key]:
            continue
        if key == "settings":
            yield f"{who}: {'; '.join(difference(common(first.settings), common(second.settings))) or 'settings'}"
        elif key == "weights":
            yield f"{who}: initial weights: {_unequal(a['weights_by_name'], b['weights_by_name'])}"
        else:
            yield f"{who}: {key}: {str(a[key])[:12]} and {str(b[key])[:12]}"


def _label(first: Cell, second: Cell) -> str:
    names = [f"{cell.encoder} at {cell.lr:g}" for cell in (first, second)]
    return " and ".join([first.encoder, second.encoder] if first.encoder != second.encoder else names)


def _unequal(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def table(study: Study, fingerprints: Fingerprints) -> list[dict[str, Any]]:
    """One row for every cell with a fingerprint, group by group: what a report prints. Hashes in full."""
    rows = []
    for group, cells in groups(study, fingerprints).items():
        for cell in cells:
            values = {key: value for key, value in fingerprints[cell.id].items() if key != "weights_by_name"}
            rows.append({"group": group, "cell": cell.id, "encoder": cell.encoder, "lr": cell.lr, **values})
    return rows
