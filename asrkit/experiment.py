"""One run from a resolved recipe to a run folder: prepare, train, keep the best model as a bundle, draw the curves."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from asrkit.batching import BatchSampler, collate
from asrkit.bundle import save_bundle
from asrkit.bundle.card import FIGURES, source_rates, split_facts
from asrkit.checkpoints import Checkpoints
from asrkit.corpus.selection import DataReport
from asrkit.curves import draw_curves
from asrkit.decoders import check_options
from asrkit.defects import defects_of, warn
from asrkit.diagnostics.norms import SMALL_BATCH
from asrkit.errors import RecipeError, StoppedError
from asrkit.evaluation import evaluate
from asrkit.model import encoder_class, parameter_count
from asrkit.preparation import Prepared, prepare
from asrkit.recipe.schema import NEUTRAL, SCHEMA
from asrkit.recipe.validation import validate
from asrkit.runs import MetricsLog, RunFolder
from asrkit.training import CTCBrain

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a finished run leaves: its folder, the bundle in it, and the figures of the last and of the best epoch."""

    folder: Path
    bundle: Path
    last: dict[str, Any]
    best: dict[str, Any]


def run_folder(recipe: dict[str, Any], output: str | Path | None = None) -> Path:
    """The run's folder: the given one, or runs/<name>/<encoder>/seed<k>."""
    if output is not None:
        return Path(output)
    return Path("runs") / str(recipe["name"]) / str(recipe["encoder"]) / f"seed{recipe['seed']}"


def check_recipe(recipe: dict[str, Any]) -> None:
    """Values and combinations that cannot work, refused once and before any work."""
    validate(recipe)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "several processes (torchrun) cannot train one model yet",
            possible="one process, with one GPU or none",
            fix="start it without torchrun",
            reason="several_processes",
        )
    check_options(recipe["decoder"])
    training = recipe["training"]
    _check_cures(recipe)
    encoder = encoder_class(recipe["encoder"])
    if encoder.batch_statistics and training["accumulation"] > 1 and recipe["norm"]["batch"] != "micro":
        raise RecipeError(
            f"training.accumulation = {training['accumulation']} with {recipe['encoder']}: its statistics see one "
            "micro-batch, not the whole update",
            possible="accumulation 1, or norm.batch=micro if that is what you want",
            reason="accumulation_with_batch_norm",
        )
    if (
        recipe["encoder"] == "frame_batch_norm"
        and training["batch_size"] == 1
        and not recipe["norm"]["allow_batch_of_one"]
    ):
        raise RecipeError(
            "frame_batch_norm with training.batch_size = 1: there are no statistics over one utterance",
            possible="batches of at least 2 utterances (better 8), or another encoder",
            fix="raise training.batch_size, or set norm.allow_batch_of_one=true to train on running statistics alone",
            reason="batch_of_one",
        )


def _check_cures(recipe: dict[str, Any]) -> None:
    """Cures of the loss beside defects of the loss: there would be no telling what a figure means."""
    section = recipe.get("ctc") or {}
    changed = section.get("label_prior") or (section.get("intermediate") or {}).get("weight")
    faulty = {"mel_axis_lengths", "zero_infinity"} & set(defects_of(recipe))
    if changed and faulty:
        raise RecipeError(
            f"ctc.label_prior or ctc.intermediate with the defect {min(faulty)}",
            fix="take out one of them",
            reason="cure_with_defect",
        )


def train(
    recipe: dict[str, Any],
    source: str,
    output: str | Path | None = None,
    *,
    progress: bool = False,
    exact: bool = False,
    say: Say = print,
) -> Result:
    """Train a resolved recipe; the same call after an interruption goes on where it stopped. `source`: the recipe's
    text. `exact`: go on bit by bit or raise StorageError (exit 5), where the newest checkpoint is damaged or code has
    changed."""
    check_recipe(recipe)
    folder = RunFolder(run_folder(recipe, output))
    claim = partial(folder.claim, source=source, neutral=NEUTRAL, constants=recipe.keys() - SCHEMA.keys())
    with folder.lock(), _log_file(folder.path, say) as tell:
        if (folder.path / "resolved.yaml").exists():  # before hours of preparation; a first attempt claims after it
            _tell_changes(claim(recipe), recipe, tell)
        report = DataReport()
        try:
            prepared = prepare(recipe, report=report, progress=progress)
        finally:
            report.write(folder.path / "data_report.jsonl")
        claim(recipe)
        tell(_opening(recipe, prepared, folder.path))
        warn(defects_of(recipe), recipe["name"])
        _tell_small_batches(recipe, prepared, tell)
        _fit_cmvn(prepared)
        brain = _brain(recipe, prepared, folder, progress, exact, tell)
        try:
            brain.run()
            if not brain.epochs_trained:
                tell(
                    f"already trained, to epoch {brain.position.epoch}; training.epochs={recipe['training']['epochs']}"
                )
        except StoppedError:
            _finish(recipe, prepared, brain, folder, scored=False)
            raise
        return _finish(recipe, prepared, brain, folder)


@contextlib.contextmanager
def _log_file(folder: Path, say: Say) -> Iterator[Say]:
    """log.txt: what is said, and what asrkit's loggers note, with the time."""
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("asrkit")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    def tell(line: str) -> None:
        say(line)
        logger.info(line)

    try:
        yield tell
    except Exception as error:
        logger.info("%s: %s", type(error).__name__, error)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def _tell_changes(changes: list[str], recipe: dict[str, Any], tell: Say) -> None:
    for line in changes:
        tell(f"goes on with another setting: {line}")
    if any(line.startswith("training.epochs:") for line in changes) and recipe["training"]["schedule"] != "constant":
        tell("another number of epochs bends the learning-rate schedule: the result is not that of one long run")


def _tell_small_batches(recipe: dict[str, Any], prepared: Prepared, tell: Say) -> None:
    """Statistics over so few utterances are noise: a step of frame_batch_norm with one of them has none at all."""
    most = recipe["training"]["batch_size"]
    if prepared.model.acoustic.encoder.batch_statistics and most is not None and most < SMALL_BATCH:
        tell(
            f"training.batch_size = {most}: {recipe['encoder']} learns its statistics from {most} utterances at a time"
        )


def _fit_cmvn(prepared: Prepared) -> None:
    """Global mean and variance come from the train split alone, before the first update."""
    cmvn, train = prepared.model.acoustic.cmvn, prepared.splits["train"]
    if cmvn.mode == "global":
        sampler = BatchSampler(train.frames, 40_000, None, "ascending")
        loader = DataLoader(train, batch_sampler=sampler, collate_fn=collate)
        cmvn.fit((batch.features, batch.lengths) for batch in loader)


def _brain(
    recipe: dict[str, Any], prepared: Prepared, folder: RunFolder, progress: bool, exact: bool, say: Say
) -> CTCBrain:
    log = MetricsLog(folder.path / "metrics.jsonl")
    kept = {key: recipe["training"][key] for key in ("keep_last", "keep_best")}
    checkpoints = Checkpoints(folder.path / "checkpoints", key="selection", **kept)
    board: Any = _tensorboard(folder.path) if recipe["training"]["tensorboard"] else None
    drawn = time.monotonic()

    def on_epoch(figures: dict[str, Any]) -> None:
        nonlocal drawn
        say(_epoch_line(figures, recipe["training"]["epochs"]))
        for stage in ("train", "dev"):
            for key, value in figures.get(stage, {}).items() if board is not None else ():
                if not isinstance(value, dict):
                    board.add_scalar(f"{stage}/{key}", value, figures["step"])
        if time.monotonic() - drawn > 30:  # while it runs, twice a minute; the last picture is drawn at the end
            _draw(recipe, folder.path)
            drawn = time.monotonic()

    return CTCBrain(
        recipe,
        prepared.model,
        prepared.tokenizer,
        prepared.splits["train"],
        prepared.splits.get("dev"),
        log,
        checkpoints,
        progress=progress,
        exact=exact,
        on_epoch=on_epoch,
        on_finding=lambda finding: say(f"diagnosis: {finding}"),
    )


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


def _finish(
    recipe: dict[str, Any], prepared: Prepared, brain: CTCBrain, folder: RunFolder, scored: bool = True
) -> Result:
    """Write the bundle from the best checkpoint, with its scores on dev unless there is no time, and the picture."""
    epochs = _draw(recipe, folder.path)
    best = brain.store.best() or brain.store.latest()
    if best is not None:
        prepared.model.cpu().acoustic.load_state_dict(best.model())
    prepared.model.acoustic.objective = None  # what only training needs is no part of the model from here on
    figures = next((e for e in epochs if best is not None and e["step"] == best.step), epochs[-1] if epochs else {})
    facts = {
        "splits": {name: split.hash for name, split in prepared.splits.items()},
        "excluded": dict(prepared.report.counts),
        "leakage": prepared.leakage.summary(),
        "data": split_facts(prepared.splits, prepared.model.features.frame_seconds),
        "licence": recipe["data"]["licence"],
        "longest_seconds": recipe["data"]["max_seconds"],
        "source_rates": source_rates(prepared.splits["train"].utterances),
        "metrics": {
            k: v for k, v in figures.items() if k not in ("seconds", "cpu_seconds", "frames_per_second", "memory_mb")
        },
    }
    if scored and "dev" in prepared.splits:
        device = str(brain.device)
        found = evaluate(prepared.model, prepared.tokenizer, prepared.splits["dev"], device=device).figures()
        prepared.model.cpu()
        facts["scores"] = {"dev": {key: found[key] for key in FIGURES}}
    bundle = folder.path / "model"
    save_bundle(bundle, prepared.model, prepared.tokenizer, recipe, facts)
    return Result(folder.path, bundle, epochs[-1] if epochs else {}, figures)


def _draw(recipe: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    epochs = [line for line in MetricsLog.read(folder / "metrics.jsonl") if line["type"] == "epoch"]
    if recipe["training"]["curves"]:
        draw_curves(epochs, folder / "curves.png", f"{recipe['name']}, {recipe['encoder']}, seed {recipe['seed']}")
    return epochs


def _opening(recipe: dict[str, Any], prepared: Prepared, folder: Path) -> str:
    seconds = prepared.model.features.frame_seconds
    parts = [
        f"{name} {len(split)} clips, {sum(split.frames) * seconds / 60:.1f} min"
        for name, split in prepared.splits.items()
    ]
    return (
        f"{recipe['name']}, {recipe['encoder']}: {parameter_count(prepared.model.acoustic):,} parameters, "
        f"{prepared.tokenizer.size} labels; {'; '.join(parts)}; {prepared.report.summary()}; "
        f"{prepared.leakage.summary()}\nrun folder {folder}"
    )


def _epoch_line(figures: dict[str, Any], epochs: int) -> str:
    """One line per epoch, the same on a terminal and in a log."""
    text = f"epoch {figures['epoch']:3d}/{epochs}"
    for stage in ("train", "dev"):
        if stage in figures:
            m = figures[stage]
            text += (
                f" | {stage} loss {m['loss']:.3f} CER {m['cer']:.1%} WER {m['wer']:.1%} "
                f"blank {m['blank']:.0%} empty {m['empty']:.0%}"
            )
    return f"{text} | grad {figures['train'].get('grad_norm', 0.0):.2f} | {figures['frames_per_second']:,.0f} frames/s"
