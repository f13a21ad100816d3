"""Out of memory in words: which batch, how large, and a size that fits."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from asrkit.batching import Batch
from asrkit.errors import NumericError

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's or Python's way of saying so. Only CUDA's allocator has a class of its own for it: not
    the CPU, not Apple's GPU, not CUDA itself (`CUDA error: out of memory`), not its libraries (`..._ALLOC_FAILED`)."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc",
             "_ALLOC_FAILED", "_ALLOCATION_FAILED")  # fmt: skip
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def out_of_memory(batch: Batch, said: str, attempt: Callable[[Batch], object]) -> NumericError:
    """The error for a batch that did not fit; what does is found by trying halves of it.

    Args:
        batch: what was being trained on.
        said: the first line of the library's words, with the bytes that were asked for.
        attempt: forward and backward; what it leaves in gradients and statistics is of no use, the run ends here.
    """
    count, frames = len(batch.ids), batch.features.shape[1]
    fits = 0
    while count > 1 and not fits:
        count //= 2
        _give_back()
        with contextlib.suppress(MemoryError, RuntimeError):
            attempt(first_of(batch, count))
            fits = count
    names = ", ".join(batch.ids[:4]) + (", ..." if len(batch.ids) > 4 else "")
    what = f"out of memory in a batch of {len(batch.ids)} x {frames} frames ({names}): {said}"
    if not fits:
        return NumericError(
            what,
            possible="not even one of these clips fits",
            fix="lower data.max_seconds or width",
            reason="out_of_memory",
        )
    return NumericError(
        what,
        possible=f"{fits} of them fit (tried)",
        fix=f"--training.batch_frames={fits * frames} in another run folder: batches and with them results change",
        reason="out_of_memory",
    )


def in_parts(batch: Batch, look: Callable[[Batch], Result]) -> Iterator[tuple[Batch, Result]]:
    """What `look` makes of a batch, or of its halves where the whole does not fit into memory, and so on.

    For evaluation alone: there, no utterance's result depends on its batch mates. A single utterance that does not fit
    raises what `look` raised.
    """
    parts = [batch]
    while parts:
        part = parts.pop(0)
        count = len(part.ids)
        try:
            found = [look(part)]
        except (RuntimeError, MemoryError) as error:
            if count < 2 or not is_out_of_memory(error):
                raise
            found = []
        if not found:  # outside the handler, whose traceback would keep the activations alive
            _give_back()
            parts[:0] = [_slice(part, slice(0, count // 2)), _slice(part, slice(count // 2, count))]
        else:
            yield part, found[0]


def _give_back() -> None:
    """What the attempt before has left, so that the next one finds room."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def first_of(batch: Batch, count: int) -> Batch:
    """The first utterances of a batch, padded as it is."""
    return _slice(batch, slice(0, count))


def _slice(batch: Batch, part: slice) -> Batch:
    return Batch(
        batch.features[part],
        batch.lengths[part],
        batch.targets[part],
        batch.target_lengths[part],
        batch.ids[part],
        batch.rows[part],
    )
