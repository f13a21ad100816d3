"""The diagnosis of a run folder: what its logs say, and all checks on its own model and data, untrained and trained.

The run is only read: no lock is taken, no checkpoint is moved, and a training that goes on beside it is not disturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from asrkit.bundle import load_bundle
from asrkit.checkpoints.files import Checkpoint
from asrkit.checkpoints.reading import newest_intact
from asrkit.defects import FaultyLoss
from asrkit.diagnostics.batch import check_ctc_batch, check_loss
from asrkit.diagnostics.clips import some_clips
from asrkit.diagnostics.findings import Finding, finding, gather
from asrkit.diagnostics.floor import input_blind_floor
from asrkit.diagnostics.logs import Logs
from asrkit.diagnostics.model import check_model
from asrkit.diagnostics.progress import PATIENCE, judge_epochs
from asrkit.errors import AsrkitError, DataError, RecipeError, StorageError
from asrkit.hearing import phase
from asrkit.model import AcousticModel
from asrkit.objective import has_label_prior
from asrkit.preparation import Prepared, prepare
from asrkit.recipe import load_recipe
from asrkit.runs import started_in

CLIPS = 8  # enough for batch statistics that are not all noise, and for eight lengths
MOVABLE = ("data.root", "data.cache")  # what may lie elsewhere without being another run
LONGEST = 500  # characters of an error that is quoted
SETTLED = 30  # updates after which running averages with momentum 0.1 have forgotten where they began (0.9^30 = 4 %)


@dataclass(frozen=True)
class Diagnosis:
    """findings: the gravest first. figures: epoch, update, loss, floor, phase, empty and blank shares (JSON data).

    without_data: why the model and the data were not looked at, None where they were. untrained: why no trained weights
    were. damaged: what could not be read, with the reason. ended: the error that the run's log ends with.
    """

    folder: Path
    findings: list[Finding]
    figures: dict[str, Any]
    without_data: str | None = None
    damaged: list[str] = field(default_factory=list)
    ended: str | None = None
    untrained: str | None = None

    def text(self) -> str:
        """For people: where the run stands, then a paragraph for each finding."""
        lines = [f"{self.folder}: {_standing(self.figures)}"]
        if self.ended:
            lines.append(f"its log ends with {self.ended}")
        lines += [f"damaged: {one}" for one in self.damaged]
        if self.without_data:
            lines.append(f"only its logs were read: {self.without_data}")
        if self.untrained:
            lines.append(f"no trained weights were looked at: {self.untrained}")
        for one in self.findings:
            place = f" in {one.layer}" if one.layer else ""
            lines += ["", f"{one.severity}[{one.code}]{place}"]
            lines += [f"  measured  {one.measured}", f"  why       {one.why}", f"  fix       {one.fix}"]
        nothing = _nothing(self.figures, bool(self.damaged or self.ended))
        return "\n".join(lines if self.findings else [*lines, nothing])


def diagnose_run(folder: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> Diagnosis:
    """All checks on a run folder, finished, running or failed. Features come from its cache or are computed again.

    overrides: where the data lie now, as (`data.root` or `data.cache`, path). Raises StorageError (exit 5) for a folder
    that is no run, RecipeError (exit 2) for other overrides.
    """
    path = Path(folder)
    if not (path / "resolved.yaml").is_file():
        raise StorageError(
            f"{path} is not a run folder: there is no resolved.yaml" if path.is_dir() else f"no folder {path}",
            possible="the folder that `asrkit train` names",
            fix="give e.g. runs/demo/sequence_batch_norm/seed1",
            reason="not_a_run",
        )
    recipe, logs = _recipe(path, overrides), Logs.read(path)
    newest, broken = newest_intact(path / "checkpoints")
    damaged = [f"checkpoint {name} ({why})" for name, why in broken.items()] + _unlogged(path, newest)
    floor, statistics, without_data, untrained = logs.floor, False, None, None
    shares: list[Finding] = []
    examined: list[Finding] = []
    try:
        prepared = prepare(recipe, ("train",))
    except (DataError, StorageError) as error:
        without_data = _why_not(error, recipe["data"]["root"], path)
    else:
        loss = FaultyLoss(recipe, prepared.model.features.size)
        floor = _floor(prepared, loss) if floor is None else floor
        statistics = bool(getattr(prepared.model.acoustic.encoder, "batch_statistics", False))
        shares = _check_shares(prepared, loss)
        examined, unreadable, untrained = _examine(prepared, loss, path, newest, logs.update)
        damaged += unreadable
    judged = judge_epochs(
        logs.epochs,
        floor,
        statistics,
        logs.heard,
        recent=logs.recent,
        refused=logs.refused,
        prior=has_label_prior(recipe),
        accumulation=int(recipe["training"]["accumulation"]),
    )
    found = gather(shares + logs.found + judged + examined)  # shares of all targets before those of the first batch
    return Diagnosis(path, found, _figures(logs, floor), without_data, damaged, logs.ended, untrained)


def _recipe(run: Path, overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The run's recipe. What was relative to where it was started is found from elsewhere, too."""
    given = dict(overrides)
    if wrong := [key for key in given if key not in MOVABLE]:
        raise RecipeError(
            f"--{wrong[0]} would be another run than the one in {run}", possible=" and ".join(MOVABLE),
            reason="diagnose_override",
        )  # fmt: skip
    recipe, base = load_recipe(run / "resolved.yaml", list(overrides)), started_in(run)
    data, noise = recipe["data"], (recipe.get("augment") or {}).get("noise") or {}
    for section, name in ((data, "root"), (data, "cache"), (noise, "folder")):
        value = section.get(name)
        given_now = section is data and f"data.{name}" in given
        if base is not None and value is not None and not given_now and (base / value).exists():
            section[name] = str(base / value)  # an absolute path is what it was
    return recipe


def _why_not(error: AsrkitError, root: str | None, run: Path) -> str:
    """Why the data cannot be looked at; of a relative path that is not here, where it would be."""
    if error.reason != "missing_corpus" or root is None or "://" in root or Path(root).expanduser().is_absolute():
        return str(error)
    base = started_in(run)
    where = "where the run was started" if base is None else f"{base}, where the run was started, and is not there"
    return (
        f"data.root: {root} does not exist in {Path.cwd()}; it is relative to {where}: run this from "
        f"{'there' if base is None else 'where it is now'}, or give --data.root=..."
    )


def _lengths(prepared: Prepared, loss: FaultyLoss) -> torch.Tensor:
    """What the run gives its loss for every utterance (N,)."""
    frames = torch.tensor(prepared.splits["train"].frames)
    lengths: torch.Tensor = prepared.model.acoustic.encoder.num_frames(frames)
    return loss.lengths(lengths, int(lengths.max()))


def _floor(prepared: Prepared, loss: FaultyLoss) -> float | None:
    lengths, labels = _lengths(prepared, loss).tolist(), prepared.splits["train"].labels
    floor = input_blind_floor(labels, lengths, prepared.tokenizer.size)
    return None if floor is None else floor.loss


def _examine(
    prepared: Prepared, loss: FaultyLoss, path: Path, newest: Checkpoint | None, updates: int
) -> tuple[list[Finding], list[str], str | None]:
    """The untrained model, which its seed gives again, then the newest weights, on the same real batch; which weights
    cannot be read, and why; why none were looked at."""
    acoustic, batch = prepared.model.acoustic, some_clips(prepared.splits["train"], CLIPS)
    objective, acoustic.objective = acoustic.objective, None  # layers that no output comes from are no finding
    found = check_loss(loss, max(prepared.tokenizer.size, 3))
    arguments = (batch.features, batch.lengths, batch.targets, batch.target_lengths)
    with torch.no_grad():
        outputs, lengths = acoustic.eval()(batch.features, batch.lengths)
    given = loss.lengths(lengths, outputs.shape[1])
    labels = (batch.targets, batch.target_lengths)
    losses = loss(outputs, lengths, *labels, batch.ids) if loss.zero_infinity else None
    found += check_ctc_batch(outputs, given, *labels, input_lengths=batch.lengths, losses=losses)
    found += check_model(acoustic, *arguments)
    acoustic.objective = objective  # a checkpoint has it
    trained, unreadable, why = _trained(acoustic, path, newest, updates)
    if trained is not None:
        trained.objective = None
        found += check_model(trained, *arguments, trained=True)
    return found, unreadable, why


def _trained(
    acoustic: AcousticModel, run: Path, newest: Checkpoint | None, updates: int
) -> tuple[AcousticModel | None, list[str], str | None]:
    """The model with the newest weights of SETTLED updates; what is unreadable, and why; why there are no weights.

    Where no checkpoint is left (a cell of a study that is done), the weights of the model folder: the best ones. It is
    read in any case, as it is what is passed on.
    """
    broken, bundle, found, none = (
        [],
        None,
        None,
        f"neither a checkpoint nor a model folder is left of {updates} updates",
    )
    try:
        bundle = load_bundle(run / "model").model.acoustic if (run / "model" / "config.json").is_file() else None
    except (AsrkitError, RuntimeError) as error:
        broken.append(f"model/ ({_quoted(error)})")
    if newest is not None:
        none = f"the newest checkpoint is of update {newest.step}; before {SETTLED} averages say where they began"
        if newest.step >= SETTLED:
            try:
                acoustic.load_state_dict(newest.model())
                found = acoustic
            except (AsrkitError, RuntimeError) as error:  # RuntimeError: not the tensors that the recipe's model has
                broken.append(f"checkpoint {newest.path.name} ({_quoted(error)})")
    elif bundle is not None:
        none = f"the run has had {updates} updates; before {SETTLED} averages say where they began"
        found = bundle if updates >= SETTLED else None
    return found, broken, None if found is not None or broken or not updates else none


def _quoted(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST]


def _unlogged(run: Path, newest: Checkpoint | None) -> list[str]:
    """What metrics.jsonl should say and does not."""
    path = run / "metrics.jsonl"
    if newest is None or (path.is_file() and path.stat().st_size):
        return []
    state = "empty" if path.is_file() else "missing"
    return [f"metrics.jsonl ({state}, and there is a checkpoint of update {newest.step})"]


def _check_shares(prepared: Prepared, loss: FaultyLoss) -> list[Finding]:
    """Impossible targets among all that the run trains on."""
    labels = prepared.splits["train"].labels
    possible = loss.feasible(_lengths(prepared, loss), labels)
    if all(possible):
        return []
    words = f"{possible.count(False)} of all {len(labels)} utterances ({possible.count(False) / len(labels):.1%})"
    return [finding("impossible_targets", "error", f"{words} have fewer frames than their labels need")]


def _figures(logs: Logs, floor: float | None) -> dict[str, Any]:
    """update: the last one; all others are of the last epoch that was finished."""
    if not logs.epochs:
        return {"epoch": 0, "update": logs.update, "floor": floor}
    last, train = logs.epochs[-1], logs.epochs[-1]["train"]
    figures = {key: train[key] for key in ("loss", "cer", "blank", "empty")}
    if "dev" in last:
        figures["dev_cer"] = last["dev"]["cer"]
    where = None if floor is None else phase(train["loss"], floor)
    return {"epoch": last["epoch"], "update": logs.update, **figures, "floor": floor, "phase": where}


def _nothing(figures: dict[str, Any], besides: bool) -> str:
    """Of a run that has hardly begun only what is wrong before training can be known."""
    updates = figures["update"]
    some = f"{updates} update tells" if updates == 1 else f"{updates} updates tell"
    early = f" so far: {some} nothing of how it learns (from {PATIENCE} on)"
    return f"nothing {'else ' * besides}found" + early * (updates < PATIENCE)


def _standing(figures: dict[str, Any]) -> str:
    if not figures["epoch"]:
        return f"no epoch has been finished, update {figures['update']}"
    floor = (
        "" if figures["floor"] is None else f" ({figures['phase']}, the input-blind floor is {figures['floor']:.3f})"
    )
    return (
        f"epoch {figures['epoch']}, update {figures['update']}: train loss {figures['loss']:.3f} per label{floor}, "
        f"{figures['blank']:.0%} blanks, {figures['empty']:.0%} empty outputs"
    )
