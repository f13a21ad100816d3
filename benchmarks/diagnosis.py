"""What the diagnosis that is always on costs: its share of an epoch's CPU time, both taken within one run.

    python benchmarks/diagnosis.py [--root CORPUS] [--epochs 3] [--threads 2]

Trains recipes/demo.yaml as it is, and the 11 blocks of model 3 at width 96, on half an hour of synthetic Spanish (made
first, unless --root names a corpus), with clocks around every call of asrkit.diagnostics. CPU time of the process, as
the wall's is that of other work on the machine too. Once per run: the floor, the first batch and reading two clips;
then once per epoch. Exit code 1 where an epoch spends more than 2 % on it, the first included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from asrkit.diagnostics.monitor import Monitor
from asrkit.experiment import train
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA
from asrkit.runs import MetricsLog

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 0.02
CASES: list[tuple[str, dict[str, Any]]] = [
    ("recipes/demo.yaml", {}),
    ("recipes/common_voice_es/model3.yaml", {"width": 96}),
]


class Clock:
    """CPU seconds spent in some methods."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, cls: type, name: str) -> None:
        method: Callable[..., Any] = getattr(cls, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds += time.process_time() - start

        setattr(cls, name, timed)

    def read(self) -> float:
        """Seconds since it was last read."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def main() -> int:
    """Print a table of shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--hours", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    diagnosis, worst = Clock(), 0.0
    for name in ("__init__", "first_batch", "epoch"):
        diagnosis.around(Monitor, name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = args.root
        if root is None:
            root = folder / "corpus"
            command = ["data", "synth", "--output", str(root), "--hours", str(args.hours), "--speakers", "28"]
            subprocess.run([sys.executable, "-m", "asrkit", *command], check=True, stdout=subprocess.DEVNULL)
        for case, (path, changes) in enumerate(CASES):
            options = {
                "data.root": root, "data.test": "null", "data.cache": folder / "cache", "training.epochs": args.epochs,
                "training.tensorboard": "false", "training.curves": "false", **changes,
            }  # fmt: skip
            recipe = load_recipe(ROOT / path, [(key, str(value)) for key, value in options.items()], known=SCHEMA)
            spent: list[float] = []

            def line(text: str, spent: list[float] = spent) -> None:
                if text.startswith("epoch "):
                    spent.append(diagnosis.read())

            diagnosis.read()
            run = train(recipe, "", folder / f"run{case}", say=line).folder
            seconds = [e["cpu_seconds"] for e in MetricsLog.read(run / "metrics.jsonl") if e["type"] == "epoch"]
            print(f"{path} {changes or ''}: {[f'{s:.2f}' for s in seconds]} CPU s of training per epoch")
            for number, (cost, whole) in enumerate(zip(spent, seconds, strict=True), 1):
                worst = max(worst, cost / whole)
                print(f"  epoch {number}: diagnosis {cost * 1000:.0f} ms, {cost / whole:.2%}")
    print(f"worst {worst:.2%}, allowed {LIMIT:.0%}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
