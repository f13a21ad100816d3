"""Batches: every utterance once an epoch, within the budget, reproducible, different each epoch, little padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.batching import BatchSampler, collate
from asrkit.errors import RecipeError

FRAMES = np.random.default_rng(5).integers(50, 1200, 400).tolist()


@given(
    frames=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    budget=st.one_of(st.none(), st.integers(1, 2000)),
    size=st.one_of(st.none(), st.integers(1, 8)),
    order=st.sampled_from(["bucketed", "ascending", "random", "file"]),
    epoch=st.integers(1, 4),
)
@settings(max_examples=80, deadline=None)
def test_every_utterance_once_and_within_the_budget(
    frames: list[int], budget: int | None, size: int | None, order: str, epoch: int
) -> None:
    if budget is None and size is None:
        size = 3
    sampler = BatchSampler(frames, budget, size, order)
    sampler.set_epoch(epoch)
    batches = sampler.batches()
    assert sorted(row for batch in batches for row in batch) == list(range(len(frames)))
    for batch in batches:
        padded = max(frames[row] for row in batch) * len(batch)
        assert size is None or len(batch) <= size
        assert budget is None or padded <= budget or len(batch) == 1


def test_epochs_differ_and_repeat() -> None:
    first, again = BatchSampler(FRAMES, 8000, None, seed=3), BatchSampler(FRAMES, 8000, None, seed=3)
    assert first.batches() == again.batches()
    one = first.batches()
    first.set_epoch(2)
    two = first.batches()
    assert {frozenset(b) for b in one} != {frozenset(b) for b in two}  # the batches, not only their order
    assert BatchSampler(FRAMES, 8000, None, seed=4).batches() != one


def test_skipping_gives_the_rest_of_the_epoch() -> None:
    sampler = BatchSampler(FRAMES, 8000, None)
    whole = sampler.batches()
    sampler.set_epoch(1, skip=5)
    assert list(sampler) == whole[5:]
    assert len(sampler) == len(whole) - 5


def test_buckets_waste_little() -> None:
    def waste(order: str) -> float:
        batches = BatchSampler(FRAMES, 12000, None, order).batches()
        padded = sum(max(FRAMES[r] for r in b) * len(b) for b in batches)
        return 1 - sum(FRAMES) / padded

    assert waste("bucketed") < 0.12 < 0.3 < waste("random")


def test_longest_batch_first_in_epoch_one() -> None:
    batches = BatchSampler(FRAMES, 8000, None).batches()
    padded = [max(FRAMES[r] for r in b) * len(b) for b in batches]
    assert padded[0] == max(padded)


def test_file_order_is_the_file() -> None:
    assert BatchSampler([5, 4, 9], None, 1, "file").batches() == [[0], [1], [2]]


def test_bad_options_are_named() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'bucketed'"):
        BatchSampler([1], 10, None, "bucket")
    with pytest.raises(RecipeError, match="batch_frames"):
        BatchSampler([1], None, None)


def test_collate_pads_and_keeps_integer_lengths() -> None:
    items = [(3, "a", np.ones((4, 2), np.float16), [1, 2]), (7, "b", np.full((2, 2), 2, np.float16), [3])]
    batch = collate(items)
    assert batch.features.shape == (2, 4, 2)
    assert batch.features.dtype == torch.float32
    assert batch.features[1, 2:].abs().sum() == 0
    assert batch.lengths.tolist() == [4, 2]
    assert batch.targets.tolist() == [[1, 2], [3, 0]]
    assert batch.target_lengths.tolist() == [2, 1]
    assert batch.ids == ("a", "b")
    assert batch.rows == (3, 7)


def test_the_first_epoch_may_have_an_order_of_its_own() -> None:
    """SortaGrad: by the longest clip of each batch in epoch 1; all later epochs are as without."""
    sampler = BatchSampler(FRAMES, 8000, None, seed=3, first_epoch="ascending")
    longest = [max(FRAMES[row] for row in batch) for batch in sampler.batches()]
    assert longest == sorted(longest)
    plain = BatchSampler(FRAMES, 8000, None, seed=3)
    assert sampler.batches() != plain.batches()
    for epoch in (2, 3):
        sampler.set_epoch(epoch)
        plain.set_epoch(epoch)
        assert sampler.batches() == plain.batches()
    with pytest.raises(RecipeError, match=r"training\.first_epoch = 'sorted'"):
        BatchSampler(FRAMES, 8000, None, first_epoch="sorted")
