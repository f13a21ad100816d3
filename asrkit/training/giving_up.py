"""Why training gives up: the errors, with what was seen and what helps."""

from __future__ import annotations

from collections.abc import Sequence

from asrkit.errors import DataError, NumericError


def unreadable(lost: int, clips: int, last: str, why: str, most: float) -> DataError:
    """More than `most` of the clips could not be read while training."""
    return DataError(
        f"{lost} of {clips} clips could not be read while training, the last was {last} ({why})",
        possible=f"up to {most:.2%} (data.max_bad)",
        fix="look at these clips (metrics.jsonl names them), or raise data.max_bad",
        reason="quarantined",
    )


def nonfinite_in_a_row(batches: int, what: str, clips: Sequence[str]) -> NumericError:
    """So many batches, one after the other, had to be refused; clips: of the last."""
    return NumericError(
        f"{batches} batches in a row had non-finite {what}; the last held {', '.join(clips[:4])}",
        fix="lower training.lr, look at these clips, or use precision bf16 instead of fp16; the weights are those from "
        "before these batches",
        reason="nonfinite",
    )


def scale_fell(scale: float, clips: Sequence[str]) -> NumericError:
    """A few skipped steps are how fp16 finds its scale; a scale below 1 means that the gradients themselves are bad."""
    return NumericError(
        f"the fp16 loss scale fell to {scale:g}; the last batch held {', '.join(clips[:4])}",
        fix="use training.precision=bf16 or fp32, or lower training.lr",
        reason="nonfinite",
    )
