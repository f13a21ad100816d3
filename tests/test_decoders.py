"""Greedy decoding against a written-out example and a plain loop."""

from __future__ import annotations

import itertools

import pytest
import torch

from asrkit.decoders import GreedyDecoder, best_paths


def from_path(paths: list[list[int]], labels: int = 4) -> torch.Tensor:
    """Log-probabilities (B, T, V) whose best path is given."""
    frames = max(map(len, paths))
    logits = torch.zeros(len(paths), frames, labels)
    for i, path in enumerate(paths):
        for t, label in enumerate(path):
            logits[i, t, label] = 2.0 + t
    return logits.log_softmax(-1)


def test_repeats_merge_and_blanks_part() -> None:
    path = [0, 1, 1, 0, 1, 2, 2, 0, 3]
    log_probs = from_path([path, [3, 3, 0]])
    [first], [second] = GreedyDecoder()(log_probs, torch.tensor([9, 3]))
    assert first.labels == (1, 1, 2, 3)
    assert first.starts == (1, 4, 5, 8)
    assert first.ends == (3, 5, 7, 9)
    assert first.score == pytest.approx(sum(float(log_probs[0, t, label]) for t, label in enumerate(path)), abs=1e-5)
    assert first.confidences[0] == pytest.approx(float(log_probs[0, 2, 1].exp()))  # the surer of its two frames
    assert second.labels == (3,)


def test_frames_beyond_the_length_say_nothing() -> None:
    log_probs = from_path([[1, 2, 3, 3]])
    assert GreedyDecoder()(log_probs, torch.tensor([2]))[0][0].labels == (1, 2)
    assert GreedyDecoder()(log_probs, torch.tensor([0]))[0][0].labels == ()
    assert best_paths(log_probs, torch.tensor([2])) == ([[1, 2]], 0)


def test_random_paths_against_groupby() -> None:
    paths = torch.randint(0, 4, (20, 50)).tolist()
    lengths = torch.randint(1, 51, (20,))
    log_probs = from_path(paths)
    decoded, blanks = best_paths(log_probs, lengths)
    expected = [
        [label for label, _ in itertools.groupby(path[:length]) if label]
        for path, length in zip(paths, lengths.tolist(), strict=True)
    ]
    assert decoded == expected
    assert [list(best.labels) for [best] in GreedyDecoder()(log_probs, lengths)] == expected
    assert blanks == sum(path[:length].count(0) for path, length in zip(paths, lengths.tolist(), strict=True))
