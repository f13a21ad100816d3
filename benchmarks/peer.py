"""SpeechBrain's CTC integration test with every encoder, several seeds, whole commands: the table of docs/results.md.

    python benchmarks/peer.py DATA [--seeds 3]

DATA is the folder with asr_train.tsv, asr_dev.tsv and the ten clips. It prints one Markdown row per encoder: loss per
label of epoch 15 and phone error rate on dev as median (min to max) over seeds, wall time of the whole command as
median (min to max). frame_batch_norm is refused with batches of one utterance, as it should be; its row trains on
running statistics alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "peer_speechbrain_ctc.yaml"
ARMS = {
    "none": [],
    "layer_norm": [],
    "frame_batch_norm": ["--norm.allow_batch_of_one=true"],
    "sequence_batch_norm": [],
}


def spread(values: list[float], digits: int) -> str:
    """Median (min to max)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Run all arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print("| encoder | train loss, epoch 15 | dev PER [%] | whole command [s] |\n|---|---|---|---|")
    for encoder, options in ARMS.items():
        losses, rates, seconds = [], [], []
        for seed in range(1234, 1234 + args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "asrkit", "train", str(RECIPE), f"--data.root={args.data}", "--json",
                           f"--encoder={encoder}", f"--seed={seed}", "--output", f"{folder}/run",
                           f"--data.cache={folder}/cache", *options]  # fmt: skip
                start = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds.append(time.perf_counter() - start)
            last = json.loads(done.stdout)["last"]
            losses.append(last["train"]["loss"])
            rates.append(100 * last["dev"]["cer"])
        print(f"| `{encoder}` | {spread(losses, 2)} | {spread(rates, 1)} | {spread(seconds, 1)} |", flush=True)


if __name__ == "__main__":
    main()
