"""An epoch of Model 2 and of Model 3 behind two convolutions: ours after preparation, and SpeechBrain's own parts.

    python benchmarks/epoch.py FOLDER [--clips 500] [--epochs 3] [--repeats 3] [--models model2,model3_conv]
        [--encoder NAME] [--width N] [--lr 1e-3] [--batch-frames 16000] [--workers 0] [--threads 2]

FOLDER holds Common Voice releases at any depth (a `validated.tsv` beside its `clips/`). Both sides train on the CPU on
the same mp3 clips, in the same batches and the same order, from the same initial weights, with the same layers, number
of parameters, objective (nats over labels of the batch), AdamW without decay at a constant rate, and clip at 5; that a
clip gets the same log-probabilities on both sides before training is checked. Ours (`epoch_ours.py`) is the recipe in
`CTCBrain`, as `asrkit train` runs it, reading the features that `asrkit data prepare` has cached; SpeechBrain's
(`epoch_peer.py`) is a Brain over a DynamicItemDataset that decodes and resamples in its pipeline, PaddedBatch, Fbank
and sentence normalization in compute_forward, its packed GRU and its ctc_loss. Each run is a process of its own, the
sides take turns, and every figure but those of preparation is the median of `--repeats` runs (smallest to largest). An
epoch is the time from on_stage_start to on_stage_end of training, without imports, dev and checkpoints, averaged over
the epochs of a run. Losses are nats per label, the CER is that of the greedy output after the last epoch, counted by
one scorer, the ratio is SpeechBrain / asrkit. A few updates leave both sides at blanks alone, CER near 100 %: for a CER
that says something, give `--batch-frames 4000 --epochs 30 --repeats 1`.

Where other work runs on the machine, OpenMP's threads spin against it, and either side may take ten times as long:
set OMP_WAIT_POLICY=passive (both sides inherit it), or give `--threads 1` and read the CPU time. Printed per model:

    model2, width 128, none: 1,666,794 parameters, 88 clips of 7.5 min in 4 batches, 4 updates, 2 threads
    | | asrkit | SpeechBrain | ratio |
    |---|---|---|---|
    | epoch [s] | median (smallest to largest) | median (smallest to largest) | 2.50 |
    | epoch, CPU [s] | ...
    | peak memory [MiB] | ...
    | of it above the start [MiB] | ... (above the peak when the first epoch begins)
    | train loss, last epoch | ...
    | dev loss | ...
    | dev CER [%] | ...
    | preparation, once [s] | wall (CPU) | - | - |
    | whole training with it [s] | preparation + epochs | epochs | ...
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WIDTHS = {"model2": 128, "model3_conv": 96}
DEV_SHARE = 0.12


class Clock:
    """Wall and CPU seconds of every epoch, and the memory at the start of the first one, in MiB."""

    def __init__(self) -> None:
        self.epochs: list[tuple[float, float]] = []
        self.memory_at_start = 0.0

    def start(self) -> None:
        self.memory_at_start = self.memory_at_start or peak_memory()
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        wall, cpu = self._started
        self.epochs.append((time.perf_counter() - wall, time.process_time() - cpu))

    def figures(self) -> dict[str, float]:
        """Means over the epochs; memory now."""
        wall, cpu = (statistics.mean(values) for values in zip(*self.epochs, strict=True))
        peak = peak_memory()
        return {"wall": wall, "cpu": cpu, "peak": peak, "above": peak - self.memory_at_start}


def peak_memory() -> float:
    """Most memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows_of(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Every validated clip below `folder`: the folder of its file, its row."""
    for table in sorted(folder.rglob("validated.tsv")):
        if (table.parent / "clips").is_dir():
            with table.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                    yield table.parent / "clips", row


def write_manifest(source: Path, clips: int, root: Path) -> None:
    """`root`/manifest.tsv over links to the folders of clips: a mixture of all releases, dev speakers apart."""

    def key(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    chosen = sorted(rows_of(source), key=lambda pair: key(pair[1]["path"]))[:clips]
    if not chosen:
        sys.exit(f"{source}: no validated.tsv beside a folder clips/")
    places = {place: f"clips{i}" for i, place in enumerate(sorted({place for place, _ in chosen}))}
    for place, name in places.items():
        (root / name).symlink_to(place.resolve(), target_is_directory=True)
    dev, count = set(), 0
    for speaker in sorted({row["client_id"] for _, row in chosen}, key=key):
        if count < DEV_SHARE * len(chosen):
            dev.add(speaker)
            count += sum(row["client_id"] == speaker for _, row in chosen)
    lines = ["path\tsentence\tspeaker\tsplit"]
    for place, row in chosen:
        cells = (f"{places[place]}/{row['path']}", row["sentence"], row["client_id"])
        lines.append("\t".join((*cells, "dev" if row["client_id"] in dev else "train")))
    (root / "manifest.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def child(script: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Run a script of this folder in a process of its own; its last line is JSON."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        sys.exit(f"{script} {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(runs: list[dict[str, float]], key: str, digits: int, factor: float = 1.0) -> str:
    """Median (smallest to largest)."""
    values = [factor * run[key] for run in runs]
    middle, low, high = (f"{v:,.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def table(plan: dict[str, Any], ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> str:
    """The model's rows; see the docstring of the file."""

    def median(runs: list[dict[str, float]], key: str) -> float:
        return statistics.median(run[key] for run in runs)

    def row(name: str, key: str, digits: int, factor: float = 1.0) -> str:
        ratio = f"{median(theirs, key) / median(ours, key):.2f}" if median(ours, key) else "-"
        return f"| {name} | {spread(ours, key, digits, factor)} | {spread(theirs, key, digits, factor)} | {ratio} |"

    once, epochs = plan["preparation"], plan["epochs"]
    whole = once["wall"] + epochs * median(ours, "wall"), epochs * median(theirs, "wall")
    return "\n".join(
        (
            f"{plan['model']}, width {plan['width']}, {plan['encoder']}: {plan['parameters']:,} parameters, "
            f"{plan['clips']} clips of {plan['minutes']:.1f} min in {len(plan['train'][0])} batches, "
            f"{plan['updates']} updates, {plan['threads']} threads",
            "| | asrkit | SpeechBrain | ratio |\n|---|---|---|---|",
            row("epoch [s]", "wall", 2),
            row("epoch, CPU [s]", "cpu", 2),
            row("peak memory [MiB]", "peak", 0),
            row("of it above the start [MiB]", "above", 0),
            row("train loss, last epoch", "train_loss", 4),
            row("dev loss", "dev_loss", 4),
            row("dev CER [%]", "dev_cer", 1, 100.0),
            f"| preparation, once [s] | {once['wall']:.2f} (CPU {once['cpu']:.2f}) | - | - |",
            f"| whole training with it [s] | {whole[0]:.1f} | {whole[1]:.1f} | {whole[1] / whole[0]:.2f} |",
        )
    )


def measure(model: str, args: argparse.Namespace, root: Path, say: Callable[[str], None]) -> None:
    """One model: prepare once, train both sides in turns, print."""
    settings = {
        "model": model,
        "width": args.width or WIDTHS[model],
        "encoder": args.encoder or "",
        "root": str(root),
        "epochs": args.epochs,
        "lr": args.lr,
        "batch_frames": args.batch_frames,
        "workers": args.workers,
        "threads": args.threads,
    }
    path = root / f"{model}.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    child("epoch_ours.py", "prepare", str(path), threads=args.threads)
    runs: dict[str, list[dict[str, float]]] = {"epoch_ours.py": [], "epoch_peer.py": []}
    for repeat in range(args.repeats):
        for script, figures in list(runs.items())[:: 1 if repeat % 2 == 0 else -1]:
            figures.append(child(script, "train", str(path), threads=args.threads))
            print(f"{model} {script} {figures[-1]}", file=sys.stderr)
    plan = json.loads(path.read_text(encoding="utf-8"))
    for run in runs["epoch_ours.py"] + runs["epoch_peer.py"]:
        assert (run["updates"], run["parameters"]) == (plan["updates"], plan["parameters"]), run
    say(table(plan, runs["epoch_ours.py"], runs["epoch_peer.py"]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", default=",".join(WIDTHS))
    parser.add_argument("--encoder", choices=("none", "layer_norm"), help="default: the recipe's own")
    parser.add_argument("--width", type=int, help="default: 128 for model2, 96 for model3_conv")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-frames", type=int, default=16000)
    parser.add_argument("--workers", type=int, default=0, help="processes of SpeechBrain's data loader")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for model in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            write_manifest(args.folder, args.clips, Path(folder))
            measure(model, args, Path(folder), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
