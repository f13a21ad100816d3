"""Beam search of width 100 against SpeechBrain's CTCBeamSearcher, on the same log-probabilities, in one run.

    python benchmarks/beam.py [--run runs/demo/sequence_batch_norm/seed1] [--seconds 4] [--repeats 3]

Prints CPU milliseconds per second of audio on one thread (the least of alternated repeats), and ln p of each best
labelling by CTC's forward recursion (torch's, float64), which neither search computes. Flat posteriors: 32 labels, 50
frames a second, softmax of normal noise of deviation 0.5; medium: 2; real ones (with --run): clips of its test split.
Both search freely, without a language model, at their own default thresholds. Exit code 1 where ours is less than 20
times as fast on flat posteriors, or worse in score in the sum over all clips of a kind.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit.beam import BeamDecoder
from asrkit.tokenizers import CharacterTokenizer

WIDTH, LABELS, RATE = 100, 32, 50
LETTERS = [chr(0x4E00 + i) for i in range(400)]  # one character for each label: SpeechBrain returns text


def forward(log_probs: Tensor, labels: list[int]) -> float:
    """ln p of a labelling (L,) given log-probabilities (T', V)."""
    frames, length = torch.tensor([len(log_probs)]), torch.tensor([len(labels)])
    loss = torch.nn.functional.ctc_loss(
        log_probs.double()[:, None], torch.tensor([labels]), frames, length, reduction="sum"
    )
    return -float(loss)


def least(jobs: list[Callable[[], Any]], repeats: int) -> tuple[list[float], list[Any]]:
    """The least CPU seconds of each job, which take turns, and what they returned last."""
    times: list[list[float]] = [[] for _ in jobs]
    results: list[Any] = [None] * len(jobs)
    for _ in range(repeats):
        for i, job in enumerate(jobs):
            start = time.process_time()
            results[i] = job()
            times[i].append(time.process_time() - start)
    return [min(taken) for taken in times], results


def compare(name: str, clips: list[Tensor], rate: float, repeats: int) -> tuple[float, float]:
    """One line of figures; how many times faster ours is, and how much better its score in all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from speechbrain.decoders.ctc import CTCBeamSearcher

    size = clips[0].shape[1]
    seconds = sum(map(len, clips)) / rate
    ours = BeamDecoder(CharacterTokenizer(LETTERS[1:size]), beam=WIDTH)
    theirs = CTCBeamSearcher(blank_index=0, vocab_list=["", *LETTERS[1:size]], beam_size=WIDTH, topk=1)
    jobs: list[Callable[[], Any]] = [
        lambda: [list(ours(clip[None], torch.tensor([len(clip)]))[0][0].labels) for clip in clips],
        lambda: [[LETTERS.index(c) for c in theirs(clip[None], torch.ones(1))[0][0].text] for clip in clips],
    ]
    (fast, slow), found = least(jobs, repeats)
    scores = [sum(forward(clip, labels) for clip, labels in zip(clips, one, strict=True)) for one in found]
    print(
        f"{name:8} {seconds:6.1f} s, {size} labels: asrkit {1000 * fast / seconds:7.2f} ms per second of audio, "
        f"SpeechBrain {1000 * slow / seconds:8.1f} ({slow / fast:.1f} times); ln p {scores[0]:.3f} and {scores[1]:.3f}"
    )
    return slow / fast, scores[0] - scores[1]


def real(run: Path, count: int) -> tuple[list[Tensor], float]:
    """Outputs of a trained model on clips of its test split, and their frames per second."""
    from asrkit.cli.evaluate import run_recipe
    from asrkit.preparation import prepare
    from asrkit.transcribe import load
    from asrkit.tuning import dev_clips

    model = load(run, "cpu", "greedy")
    split = prepare(run_recipe(model.bundle, []), ("test",), tokenizer=model.tokenizer).splits["test"]
    return [clip.log_probs for clip in dev_clips(model.model, split, count)], 1 / model.model.frame_seconds


def main() -> int:
    """Three lines of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained run, for real posteriors")
    parser.add_argument("--clips", type=int, default=10, help="of the run (default 10)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of flat and medium posteriors, in 2 clips each")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frames = int(args.seconds * RATE / 2)
    failed = False
    for name, deviation, goal in (("flat", 0.5, 20.0), ("medium", 2.0, 0.0)):
        clips = [(torch.randn(frames, LABELS) * deviation).log_softmax(-1) for _ in range(2)]
        times, better = compare(name, clips, RATE, args.repeats)
        failed |= times < goal or better < -1e-6
    if args.run is not None:
        clips, rate = real(args.run, args.clips)
        times, better = compare("real", clips, rate, args.repeats)
        failed |= better < -1e-6
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
