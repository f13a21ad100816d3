"""The CTC loss against the sum over all alignments, and the rules for what may enter it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from asrkit.ctc import CTCHead, check_targets, ctc_loss, required_frames
from asrkit.errors import NumericError


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    merged = [label for label, _ in itertools.groupby(path)]
    return tuple(label for label in merged if label)


def brute_force(log_probs: np.ndarray, target: tuple[int, ...]) -> float:
    """-log of the summed probability of every path (V^T of them) that collapses to the target."""
    frames, labels = log_probs.shape
    total = 0.0
    for path in itertools.product(range(labels), repeat=frames):
        if collapse(path) == target:
            total += np.exp(sum(log_probs[t, label] for t, label in enumerate(path)))
    return -np.log(total)


def test_loss_is_the_sum_over_alignments_on_a_ragged_batch() -> None:
    log_probs = torch.randn(3, 6, 4, dtype=torch.float64).log_softmax(-1)
    lengths = torch.tensor([6, 4, 5])
    targets = torch.tensor([[1, 1, 2], [3, 0, 0], [2, 3, 1]])
    target_lengths = torch.tensor([3, 1, 3])
    nll = ctc_loss(log_probs, lengths, targets, target_lengths)
    for i in range(3):
        target = tuple(targets[i, : target_lengths[i]].tolist())
        expected = brute_force(log_probs[i, : lengths[i]].numpy(), target)
        assert nll[i].item() == pytest.approx(expected, abs=1e-9)


def test_gradient_through_the_head() -> None:
    """The whole way from encoder output to loss against finite differences (torch's CTC backward assumes a
    log-softmax)."""
    torch.manual_seed(1)
    weight = torch.randn(4, 3, dtype=torch.float64)

    def run(x: torch.Tensor) -> torch.Tensor:
        log_probs = (x @ weight.T).log_softmax(-1)
        return ctc_loss(log_probs, torch.tensor([5, 4]), torch.tensor([[1, 2], [3, 3]]), torch.tensor([2, 2]))

    assert torch.autograd.gradcheck(run, (torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize(
    ("labels", "frames"), [([], 0), ([1], 1), ([1, 2], 2), ([1, 1], 3), ([1, 1, 1, 1], 7), ([1, 2, 2, 1], 5)]
)
def test_required_frames(labels: list[int], frames: int) -> None:
    assert required_frames(labels) == frames
    if frames:
        # The loss is finite with so many frames and infinite with one less: the rule is exact.
        for given, finite in ((frames, True), (frames - 1, False)):
            log_probs = torch.zeros(max(given, 1), 1, 3).log_softmax(-1)[:given]
            if given:
                loss = torch.nn.functional.ctc_loss(
                    log_probs,
                    torch.tensor([labels]),
                    torch.tensor([given]),
                    torch.tensor([len(labels)]),
                    reduction="none",
                )
                assert bool(torch.isfinite(loss).all()) is finite


@pytest.mark.parametrize("label", [0, -1, 4, 9, 10**9])
def test_labels_outside_the_range_are_named(label: int) -> None:
    targets = torch.tensor([[1, 2], [label, 1]])
    with pytest.raises(NumericError, match=rf"clip7: target label {label}; possible: 1 to 3") as error:
        check_targets(targets, torch.tensor([2, 2]), torch.tensor([9, 9]), 4, ["clip3", "clip7"])
    assert error.value.exit_code == 4


def test_padding_of_targets_is_not_looked_at() -> None:
    check_targets(torch.tensor([[1, -1], [2, 1]]), torch.tensor([1, 2]), torch.tensor([2, 2]), 3)


def test_too_few_frames_are_named_with_numbers() -> None:
    with pytest.raises(NumericError, match="b: 3 labels with 1 repeats need 4 frames, the encoder gives 3"):
        ctc_loss(
            torch.zeros(2, 4, 3).log_softmax(-1),
            torch.tensor([4, 3]),
            torch.tensor([[1, 2, 0], [2, 2, 1]]),
            torch.tensor([2, 3]),
            ["a", "b"],
        )


def test_head_gives_log_probabilities_in_single_precision() -> None:
    log_probs = CTCHead(8, 5).to(torch.bfloat16)(torch.randn(2, 3, 8, dtype=torch.bfloat16))
    assert log_probs.dtype == torch.float32
    assert log_probs.logsumexp(-1).abs().max() < 1e-5
