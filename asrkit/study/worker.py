"""The process of one cell: `python -m asrkit.study.worker FOLDER [--test]`, started by asrkit.study.runner.

Trains (or goes on with) the run in FOLDER, scores its best model on dev and, with `--test`, on test, and leaves
cell.json. Returns 0 when that is written, whatever came of the cell; 75 when it was stopped with a checkpoint; 5 and 6
when the disk or the folder cannot be used, which says nothing about the cell.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asrkit.errors import AsrkitError, InUseError, StoppedError, StorageError
from asrkit.hearing import epoch_hears
from asrkit.study import cells

SOURCES = "sources.txt"  # a line for every process that trained the cell: asrkit.source_code.version_hash
PATIENCE = 60.0  # seconds that the processes of a study that was killed are given to save and leave


def main(argv: Sequence[str] | None = None) -> int:
    """Do the cell in the folder that is given."""
    words = list(sys.argv[1:] if argv is None else argv)
    folder = Path(words[0])
    _end_with_parent()
    task = cells.read_task(folder)
    try:
        _set_up(task)
        do_cell(folder, task, "--test" in words)
    except (StorageError, InUseError, StoppedError) as error:
        print(f"asrkit: error[{error.reason}]: {error}", flush=True)
        return error.exit_code
    return 0


def _end_with_parent() -> None:
    """Stop as on SIGTERM, with a checkpoint, when the study is gone: its end of our standard input closes."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(75)

    threading.Thread(target=wait, daemon=True).start()


def _set_up(task: Mapping[str, Any]) -> None:
    from asrkit import registry
    from asrkit.cli.common import quiet_libraries

    quiet_libraries()
    import torch

    from asrkit.source_code import version_hash

    version_hash()  # now: the sources may have changed when the cell is done
    torch.set_num_threads(task["threads"])
    for file in task["plugins"]:
        registry.load_plugin_file(file)


def do_cell(folder: Path, task: Mapping[str, Any], test: bool) -> dict[str, Any]:
    """What is missing of this cell; returns the outcome, which is in cell.json."""
    outcome = cells.read_outcome(folder)
    if outcome is None:
        outcome = _trained(folder, task)
        cells.write_outcome(folder, outcome)
    elif cells.awaits_its_score(outcome):
        outcome = _outcome(folder, task, outcome["error"], None)
        cells.write_outcome(folder, outcome)
    if test and outcome["dev"] is not None and outcome["test"] is None:
        finished = outcome["status"] != cells.FAILED
        found, error = _attempt(lambda: _scored(folder, task["settings"], "test", finished))
        outcome = {**outcome, "test": found, "test_error": error}
        if found is not None and outcome["proof"]:
            outcome["proof"] = {**outcome["proof"], "test": found["split_hash"]}
        cells.write_outcome(folder, outcome)
    if not task["keep_checkpoints"] and outcome["status"] != cells.FAILED:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the model has the best weights
    return outcome


def _attempt(work: Callable[[], Any]) -> tuple[Any, dict[str, Any] | None]:
    """(what it gives, None), or (None, the error as data); what says nothing about the cell is raised."""
    try:
        return work(), None
    except (StorageError, InUseError, StoppedError):
        raise
    except AsrkitError as error:
        return None, {"code": error.reason or type(error).__name__, "message": str(error), "exit_code": error.exit_code}
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split())
        return None, {"code": type(error).__name__, "message": message, "exit_code": 1}


def _trained(folder: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """Train, then score the best model on dev. A cell that crashes is scored by the best model it has left."""
    started = time.monotonic()
    resumed = (folder / "metrics.jsonl").exists()
    _, error = _attempt(lambda: _train_patiently(task["settings"], task["source"], folder))
    outcome = _outcome(folder, task, error, started)
    return {**outcome, "resumed": resumed}


def _outcome(
    folder: Path, task: Mapping[str, Any], error: dict[str, Any] | None, started: float | None
) -> dict[str, Any]:
    """What came of a run that is over. error: what ended it before its time. started: `time.monotonic()` then, where
    this process trained it."""
    from asrkit.runs import MetricsLog

    settings = task["settings"]
    proof, proof_error = _attempt(lambda: _proof(folder, settings))
    dev, dev_error = _attempt(lambda: _scored(folder, settings, "dev", finished=error is None))
    error = error or proof_error or dev_error
    metrics = MetricsLog.read(folder / "metrics.jsonl")
    epochs = [line for line in metrics if line["type"] == "epoch"]
    status = cells.FAILED if error else cells.COLLAPSED if collapsed(epochs, dev) else cells.DONE
    cost = _cost(epochs)
    return {
        **task["cell"],
        "status": status,
        "error": error,
        **cost,
        "hears": cells.best_model_hears(status, epochs, cost["best_epoch"]),
        "wall_seconds": None if started is None else time.monotonic() - started,
        "device": _device(settings),
        "threads": task["threads"],
        "proof": proof,
        "dev": dev,
        "dev_error": dev_error,
        "test": None,
        "test_error": None,
    }


def _train_patiently(settings: dict[str, Any], source: str, folder: Path) -> None:
    """Train; a process of a study that was killed may still be saving in the folder."""
    from asrkit.experiment import train
    from asrkit.runs import MetricsLog
    from asrkit.source_code import version_hash
    from asrkit.study.proof import recorded

    if not recorded(MetricsLog.read(folder / "metrics.jsonl"), settings["training"]["epochs"]):
        with (folder / SOURCES).open("a", encoding="utf-8") as file:
            file.write(f"{version_hash()}\n")  # before the first update: a process that is killed has trained as well
    until = time.monotonic() + PATIENCE
    while True:
        try:
            train(settings, source, folder, say=lambda line: print(line, flush=True))
            return
        except InUseError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _proof(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from asrkit.preparation import prepare
    from asrkit.runs import MetricsLog
    from asrkit.study.proof import fingerprint, recorded

    metrics = MetricsLog.read(folder / "metrics.jsonl")
    prepared = prepare(settings, ("train", "dev"))
    found = fingerprint(settings, prepared) | recorded(metrics, settings["training"]["epochs"])
    with contextlib.suppress(FileNotFoundError):  # of a cell that was begun before this was noted
        found["code"] = "+".join(dict.fromkeys((folder / SOURCES).read_text(encoding="utf-8").split()))
    return found


def _scored(folder: Path, settings: dict[str, Any], name: str, finished: bool) -> dict[str, Any] | None:
    """What the best model of the run makes of a split, utterance by utterance; None where there is no model."""
    from asrkit.decoders import build_decoder
    from asrkit.evaluation import evaluate
    from asrkit.preparation import prepare

    model, tokenizer = _best_model(folder, settings, finished)
    if model is None:
        return None
    split = prepare(settings, (name,), tokenizer=tokenizer).splits[name]
    decoder = build_decoder(settings["decoder"], tokenizer)
    result = evaluate(model, tokenizer, split, decoder=decoder, device=_device(settings))
    figures = result.figures()
    kept = ("split_hash", "cer", "cer_interval", "wer", "wer_interval", "interval_by", "audio_seconds")
    return {
        **{key: figures[key] for key in kept},
        "blank": result.blank,
        "empty": result.empty,
        "ids": [score.id for score in result.scores],
        "speakers": [score.speaker for score in result.scores],
        "characters": {
            "errors": [score.characters.total for score in result.scores],
            "lengths": [score.characters.reference for score in result.scores],
        },
        "words": {
            "errors": [score.words.total for score in result.scores],
            "lengths": [score.words.reference for score in result.scores],
        },
    }


def _best_model(folder: Path, settings: dict[str, Any], finished: bool) -> tuple[Any, Any]:
    """Model and tokenizer: of the bundle that a finished run leaves, else of the best checkpoint; (None, None) without
    one. (A run that crashed may have a bundle too, from an earlier stop.)"""
    from asrkit.bundle import load_bundle
    from asrkit.checkpoints import Checkpoints
    from asrkit.preparation import prepare

    if finished:
        bundle = load_bundle(folder / "model")
        return bundle.model, bundle.tokenizer
    store = Checkpoints(folder / "checkpoints", key="selection")
    best = store.best() or store.latest()
    if best is None:
        return None, None
    prepared = prepare(settings, ("train",))
    prepared.model.acoustic.load_state_dict(best.model())
    return prepared.model, prepared.tokenizer


def _device(settings: dict[str, Any]) -> str:
    import torch

    asked = settings["training"]["device"]
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def _cost(epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the run has taken: its epochs and updates, and, as measured in the last process that worked on it, time and
    memory."""
    from asrkit.position import selection

    best = min((e for e in epochs if "dev" in e), key=lambda e: selection(e["dev"]), default=None)
    cpu = [e.get("cpu_seconds") for e in epochs]
    return {
        "epochs": epochs[-1]["epoch"] if epochs else 0,
        "updates": epochs[-1]["step"] if epochs else 0,
        "refused_batches": sum(e["train"].get("refused_batches", 0) for e in epochs),
        "best_epoch": best["epoch"] if best else None,
        "best_dev_loss": best["dev"]["loss"] if best else None,
        "train_seconds": sum(e["seconds"] for e in epochs),
        "cpu_seconds": None if None in cpu else sum(cpu),
        "memory_mb": max((e["memory_mb"] for e in epochs), default=None),
    }


def collapsed(epochs: Sequence[Mapping[str, Any]], dev: Mapping[str, Any] | None) -> bool:
    """Whether the run has learned nothing: at least 99 % empty outputs on dev, and in the last epoch a model that does
    not hear (asrkit.hearing), as against the plateau that a run leaves."""
    if dev is None or dev["empty"] < 0.99:
        return False
    return not epochs or not epoch_hears(epochs[-1])


if __name__ == "__main__":
    sys.exit(main())
