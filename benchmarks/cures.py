"""What each cure of docs/cures.md costs: one update of an arm of its study, divided by that of the plain arm.

    python benchmarks/cures.py [--width 64] [--batch 8] [--frames 400] [--repeats 9] [--encoder none] [--threads 1]

Forward, loss, backward and clipping on one batch of noise, CPU time of the process; arms take turns, medians with the
smallest and the largest. The label prior is measured in its second epoch, when it has one. A minute on a free core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from asrkit.ctc import ctc_loss
from asrkit.model import build_model, parameter_count
from asrkit.objective import listening
from asrkit.study.plan import load_study
from asrkit.training.schedules import clip_gradients

STUDY = Path(__file__).parents[1] / "recipes" / "common_voice_es" / "cures_study.yaml"
LABELS = 35


def update_of(settings: dict, frames: int, batch: int) -> tuple[Callable[[], None], int]:
    """One update without the optimizer, and the number of parameters."""
    model = build_model(settings, LABELS)
    acoustic = model.acoustic.train()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, frames, model.features.size, generator=generator)
    lengths = torch.randint(frames // 2, frames + 1, (batch,), generator=generator)
    count = frames // 16  # labels: about 6 a second
    targets = torch.randint(1, LABELS, (batch, count), generator=generator)
    target_lengths = torch.full((batch,), count // 2)

    def update() -> None:
        with listening(acoustic.objective) as inner:
            log_probs, out = acoustic(features, lengths)
        given = (log_probs, out, targets, target_lengths)
        if acoustic.objective is None:
            total = ctc_loss(*given)
        else:
            total = acoustic.objective(ctc_loss, log_probs, out, inner, targets, target_lengths)[0]
        acoustic.zero_grad(set_to_none=True)
        total.sum().backward()
        clip_gradients(acoustic, settings["training"]["clip"])

    update()  # buffers, kernels
    if acoustic.objective is not None:
        acoustic.objective.end_epoch(acoustic.head)
        update()
    return update, parameter_count(acoustic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 64), ("batch", 8), ("frames", 400), ("repeats", 9), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--encoder", default="layer_norm")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study = load_study(STUDY, [("width", str(args.width)), ("encoders", f"[{args.encoder}]"), ("seeds", "[1]")])
    arms = {cell.axes["cure"]: update_of(cell.settings, args.frames, args.batch) for cell in study.cells}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(args.repeats):
        for name, (update, _) in arms.items():
            start = time.process_time()
            update()
            times[name].append(time.process_time() - start)
    plain = statistics.median(times["plain"])
    print(f"{args.encoder}, width {args.width}, ({args.batch}, {args.frames}): plain {1000 * plain:.0f} ms an update")
    for name, (_, parameters) in arms.items():
        ratios = [one / plain for one in times[name]]
        middle = statistics.median(ratios)
        print(f"{name:18s} {middle:5.2f} [{min(ratios):.2f}, {max(ratios):.2f}]  {parameters:11,d} parameters")


if __name__ == "__main__":
    main()
