"""The diagnosis of a run folder: what its logs say, and all checks on its own model and data, untrained and trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asrkit.batching import Batch, collate
from asrkit.bundle import load_bundle
from asrkit.checkpoints import Checkpoints
from asrkit.defects import FaultyLoss
from asrkit.diagnostics.batch import check_ctc_batch, check_loss
from asrkit.diagnostics.findings import Finding, finding, gather
from asrkit.diagnostics.floor import evenly, input_blind_floor
from asrkit.diagnostics.model import check_model
from asrkit.diagnostics.progress import PATIENCE, judge_epochs
from asrkit.errors import DataError, StorageError
from asrkit.hearing import phase
from asrkit.preparation import Prepared, prepare
from asrkit.preparation.splits import Split
from asrkit.recipe import load_recipe
from asrkit.runs import MetricsLog

CLIPS = 8  # enough for batch statistics that are not all noise, and for eight lengths
SETTLED = 30  # updates after which running averages with momentum 0.1 have forgotten where they began (0.9^30 = 4 %)


@dataclass(frozen=True)
class Diagnosis:
    """findings: the gravest first. figures: epoch, update, loss, floor, phase, empty and blank shares (JSON data).

    without_data: why the model and the data were not looked at, None where they were.
    """

    folder: Path
    findings: list[Finding]
    figures: dict[str, Any]
    without_data: str | None = None

    def text(self) -> str:
        """For people: where the run stands, then a paragraph for each finding."""
        lines = [f"{self.folder}: {_standing(self.figures)}"]
        if self.without_data:
            lines.append(f"only its logs were read: {self.without_data}")
        for one in self.findings:
            place = f" in {one.layer}" if one.layer else ""
            lines += ["", f"{one.severity}[{one.code}]{place}"]
            lines += [f"  measured  {one.measured}", f"  why       {one.why}", f"  fix       {one.fix}"]
        return "\n".join(lines if self.findings else [*lines, _nothing(self.figures)])


def diagnose_run(folder: str | Path) -> Diagnosis:
    """All checks on a run folder, finished, running or failed. Features come from its cache or are computed again.

    Raises StorageError (exit 5) for a folder that is no run.
    """
    path = Path(folder)
    if not (path / "resolved.yaml").is_file():
        raise StorageError(
            f"{path} is not a run folder: there is no resolved.yaml" if path.is_dir() else f"no folder {path}",
            possible="the folder that `asrkit train` names",
            fix="give e.g. runs/demo/sequence_batch_norm/seed1",
            reason="not_a_run",
        )
    recipe = load_recipe(path / "resolved.yaml")
    records = MetricsLog.read(path / "metrics.jsonl")
    epochs = [line for line in records if line["type"] == "epoch"]
    found = [Finding(**one) for line in records if line["type"] == "diagnosis" for one in line["findings"]]
    if epochs:
        found += [Finding(**one) for one in epochs[-1].get("diagnosis", {}).get("findings", [])]
    floor = next((e["diagnosis"]["floor"] for e in reversed(epochs) if "diagnosis" in e), None)
    heard = epochs[-1].get("diagnosis", {}).get("dependence") if epochs else None
    without_data = None
    try:
        prepared = prepare(recipe, ("train",))
    except (DataError, StorageError) as error:
        without_data = str(error)
        found += judge_epochs(epochs, floor, dependence=heard)
    else:
        loss = FaultyLoss(recipe, prepared.model.features.size)
        floor = _floor(prepared, loss) if floor is None else floor
        statistics = bool(getattr(prepared.model.acoustic.encoder, "batch_statistics", False))
        updates = int(epochs[-1]["step"]) if epochs else 0
        found += judge_epochs(epochs, floor, statistics, heard) + _examine(prepared, loss, path, updates)
    return Diagnosis(path, gather(found), _figures(epochs, floor), without_data)


def _lengths(prepared: Prepared, loss: FaultyLoss) -> torch.Tensor:
    """What the run gives its loss for every utterance (N,)."""
    frames = torch.tensor(prepared.splits["train"].frames)
    lengths: torch.Tensor = prepared.model.acoustic.encoder.num_frames(frames)
    return loss.lengths(lengths, int(lengths.max()))


def _floor(prepared: Prepared, loss: FaultyLoss) -> float | None:
    lengths, labels = _lengths(prepared, loss).tolist(), prepared.splits["train"].labels
    floor = input_blind_floor(labels, lengths, prepared.tokenizer.size)
    return None if floor is None else floor.loss


def _examine(prepared: Prepared, loss: FaultyLoss, path: Path, updates: int) -> list[Finding]:
    """The untrained model, which its seed gives again, then the newest weights, on the same real batch.

    Where no checkpoint is left (a cell of a study that is done), those of the model folder, which are the best ones.
    """
    acoustic, batch = prepared.model.acoustic, some_batch(prepared.splits["train"], CLIPS)
    objective, acoustic.objective = acoustic.objective, None  # layers that no output comes from are no finding
    found = _check_shares(prepared, loss)
    found += check_loss(loss, max(prepared.tokenizer.size, 3))
    arguments = (batch.features, batch.lengths, batch.targets, batch.target_lengths)
    with torch.no_grad():
        outputs, lengths = acoustic.eval()(batch.features, batch.lengths)
    given = loss.lengths(lengths, outputs.shape[1])
    labels = (batch.targets, batch.target_lengths)
    losses = loss(outputs, lengths, *labels, batch.ids) if loss.zero_infinity else None
    found += check_ctc_batch(outputs, given, *labels, input_lengths=batch.lengths, losses=losses)
    found += check_model(acoustic, *arguments)
    newest = Checkpoints(path / "checkpoints").latest() if (path / "checkpoints").is_dir() else None
    if newest is not None and newest.step >= SETTLED:
        acoustic.objective = objective  # the checkpoint has it
        acoustic.load_state_dict(newest.model())
        acoustic.objective = None
        found += check_model(acoustic, *arguments, trained=True)
    elif newest is None and updates >= SETTLED and (path / "model" / "config.json").is_file():
        found += check_model(load_bundle(path / "model").model.acoustic, *arguments, trained=True)
    return found


def some_batch(split: Split, clips: int) -> Batch:
    """So many clips, evenly from the shortest to the longest."""
    frames = split.frames
    return collate([split[row] for row in evenly(sorted(range(len(split)), key=frames.__getitem__), clips)])


def _check_shares(prepared: Prepared, loss: FaultyLoss) -> list[Finding]:
    """Impossible targets among all that the run trains on."""
    labels = prepared.splits["train"].labels
    possible = loss.feasible(_lengths(prepared, loss), labels)
    if all(possible):
        return []
    words = f"{possible.count(False)} of all {len(labels)} utterances ({possible.count(False) / len(labels):.1%})"
    return [finding("impossible_targets", "error", f"{words} have fewer frames than their labels need")]


def _figures(epochs: list[dict[str, Any]], floor: float | None) -> dict[str, Any]:
    if not epochs:
        return {"epoch": 0, "update": 0, "floor": floor}
    last, train = epochs[-1], epochs[-1]["train"]
    figures = {key: train[key] for key in ("loss", "cer", "blank", "empty")}
    if "dev" in last:
        figures["dev_cer"] = last["dev"]["cer"]
    where = None if floor is None else phase(train["loss"], floor)
    return {"epoch": last["epoch"], "update": last["step"], **figures, "floor": floor, "phase": where}


def _nothing(figures: dict[str, Any]) -> str:
    """Of a run that has hardly begun only what is wrong before training can be known."""
    updates = figures["update"]
    early = f" so far: {updates} update{'s' * (updates != 1)} tell nothing of how it learns (from {PATIENCE} on)"
    return "nothing found" + early * (updates < PATIENCE)


def _standing(figures: dict[str, Any]) -> str:
    if not figures["epoch"]:
        return "no epoch has been finished"
    floor = (
        "" if figures["floor"] is None else f" ({figures['phase']}, the input-blind floor is {figures['floor']:.3f})"
    )
    return (
        f"epoch {figures['epoch']}, update {figures['update']}: train loss {figures['loss']:.3f} per label{floor}, "
        f"{figures['blank']:.0%} blanks, {figures['empty']:.0%} empty outputs"
    )
