"""Checks of the contract itself: what is declared, shapes and lengths, frame counts, the smallest inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asrkit.testing.case import LENGTHS, Case, Output

FRAMES = (1, 2, 3, 4, 5, 7, 8, 11, 12, 16, 17, 23)


def check_shapes(case: Case) -> None:
    """(B, T, F) -> (B, T', output_size) and integer lengths (B,) within 0 to T'; finite numbers of finite ones."""
    size = getattr(case.build(), "output_size", None)
    good = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    case.require(good, f"output_size is {size!r} instead of a whole number from 1")
    for training in (True, False):
        encoder = case.build().train(training)
        x, lengths = case.batch()
        with torch.no_grad():
            y, frames = encoder(x, lengths)
        case.require(y.dim() == 3, f"the output has shape {tuple(y.shape)} instead of (B, T', D)")
        case.require(y.shape[0] == len(LENGTHS), f"{y.shape[0]} utterances come out of {len(LENGTHS)}")
        case.require(y.shape[2] == size, f"output_size is {size}, but {y.shape[2]} features come out")
        case.require(y.dtype == x.dtype, f"{x.dtype} goes in, {y.dtype} comes out")
        whole = isinstance(frames, Tensor) and not (frames.is_floating_point() or frames.is_complex())
        case.require(whole and frames.dtype != torch.bool, f"lengths are {_kind(frames)} instead of an integer tensor")
        case.require(frames.shape == lengths.shape, f"lengths have shape {tuple(frames.shape)} instead of (B,)")
        inside = 0 <= int(frames.min()) <= int(frames.max()) <= y.shape[1]
        case.require(inside, f"lengths {frames.tolist()} do not lie within 0 and T' = {y.shape[1]}")
        case.finite(Output(y, frames.tolist()).real, "the output for finite frames")


def check_num_frames(case: Case) -> None:
    """num_frames(T) is the real T', for integers and for integer tensors, alone and in a batch."""
    encoder = case.trained()
    for count in FRAMES:
        expected = encoder.num_frames(count)
        kind = type(expected).__name__
        case.require(isinstance(expected, int), f"num_frames({count}) is a {kind} instead of an int")
        with case.refusable(f"an utterance of {count} frames"):
            out = case.evaluate(*case.batch((count, count)))  # two, for a batch of one has a check of its own
            shape = f"num_frames({count}) is {expected}, but {out.y.shape[1]} frames come out"
            case.require(out.y.shape[1] == expected, shape)
            told = f"num_frames({count}) is {expected}, but the lengths say {out.lengths[0]}"
            case.require(out.lengths == [expected] * 2, told)
    longest = torch.tensor([n for n in FRAMES if n > 3])
    counts = encoder.num_frames(longest)
    whole = isinstance(counts, Tensor) and counts.shape == longest.shape and not counts.is_floating_point()
    case.require(whole, f"num_frames of an integer tensor is {_kind(counts)} instead of one")
    single = [encoder.num_frames(n) for n in longest.tolist()]
    case.require(counts.tolist() == single, f"num_frames({longest.tolist()}): {counts.tolist()}, singly {single}")
    out = case.evaluate(*case.batch(longest.tolist()))
    case.require(out.lengths == single, f"num_frames({longest.tolist()}): {single}, the lengths say {out.lengths}")


def check_batch_of_one(case: Case) -> None:
    """A batch of one works, in eval as within a batch, or is refused with a reason."""
    for frames in (13, 5):
        with case.refusable("in eval, a batch of one utterance"):
            alone = case.evaluate(*case.batch((frames,)))
            x, lengths = case.batch((frames,))
            twice = case.evaluate(x.repeat(2, 1, 1), lengths.repeat(2))
            case.close(alone.real, twice.rows([0]), 1e-5, "alone and beside a copy of itself, its frames differ by")
        for encoder in (case.build(), case.trained().train()):
            with case.refusable("in training, a batch of one utterance"):
                out = case.run(encoder, *case.batch((frames,)))
                case.finite(out.real, "in training, the output of a batch of one")


def check_shortest(case: Case) -> None:
    """Few frames or none work, or are refused with a reason, and never harm their batch mates."""
    for training in (False, True):
        mode = "in training" if training else "in eval"
        for lengths in ((1, 1), (2, 1), (3, 2), (0, 0), (9, 9, 0)):
            with case.refusable(f"{mode}, utterances of {list(lengths)} frames"):
                encoder = case.trained().train(training)
                out = case.run(encoder, *case.batch(lengths))
                case.require(min(out.lengths) >= 0, f"{mode}, {list(lengths)} frames become {out.lengths}")
                case.finite(out.y, f"{mode}, the output for {list(lengths)} frames")
                if not training and lengths == (9, 9, 0):
                    mates = case.evaluate(*case.batch((9, 9)))
                    case.close(out.rows([0, 1]), mates.real, 1e-5, "an empty utterance changes its mates by")


def _kind(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
