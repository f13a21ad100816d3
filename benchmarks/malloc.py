"""What it brings that training keeps the memory it frees (asrkit/malloc.py): time, page faults and peak, both ways.

    python benchmarks/malloc.py RECIPE [--repeats 3] [--threads 1] [--key=value ...]

Trains the recipe with and without, in turns, each a process of its own with a run folder of its own; `--key=value` are
the recipe's, e.g. `--data.root=work/synthetic_es --width=96 --training.epochs=3`. The features are cached before the
first that counts. Printed: medians (smallest to largest) over the repeats of what a whole `asrkit train` takes, start
included, and the ratio without / with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUN = """
import json, resource, sys
from asrkit.cli import main
code = main(["train", *sys.argv[1:], "--quiet"])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"code": code, "cpu": used.ru_utime + used.ru_stime, "system": used.ru_stime,
                  "faults": used.ru_minflt / 1e6, "peak": used.ru_maxrss / 1024}))
"""
ROWS = {"cpu": "CPU [s]", "system": "of it in the system [s]", "faults": "page faults [millions]", "peak": "peak [MiB]"}


def run(recipe: Path, overrides: list[str], threads: int, keeps: bool) -> dict[str, float]:
    """Figures of one `asrkit train` into a folder that is gone afterwards."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if not keeps:
        environment["GLIBC_TUNABLES"] = ""  # says nothing to malloc, and to asrkit that the user has decided
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", RUN, str(recipe), *overrides, "--output", folder]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    figures = json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else {"code": done.returncode}
    if figures.pop("code"):
        sys.exit(f"asrkit train {recipe} {' '.join(overrides)}\n{done.stdout}{done.stderr}")
    return figures


def cell(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args, overrides = parser.parse_known_args()
    run(args.recipe, [*overrides, "--training.epochs=1"], args.threads, keeps=True)  # caches features
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for repeat in range(args.repeats):
        for keeps in (True, False) if repeat % 2 else (False, True):
            runs[keeps].append(run(args.recipe, overrides, args.threads, keeps))
    print("| | without | with | ratio |\n|---|---|---|---|")
    for key, name in ROWS.items():
        before, after = ([figures[key] for figures in runs[keeps]] for keeps in (False, True))
        ratio = statistics.median(before) / statistics.median(after)
        print(f"| {name} | {cell(before)} | {cell(after)} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
