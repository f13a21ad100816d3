"""The order of a scan against what it says of itself, worked out frame by frame."""

from __future__ import annotations

import pytest
import torch

from asrkit.recurrent.scan_order import ScanOrder, from_scan, incoming, scan_order, to_scan

LENGTHS = [[7, 12, 1, 12, 5], [3], [0, 4, 0, 2], [6, 6, 6, 6, 6, 6, 6], [9, 1, 1, 1, 1, 1, 2, 9, 3]]


def places(order: ScanOrder) -> list[tuple[int, int]]:
    """Step and place in it of each row."""
    return [(t, place) for t, rows in enumerate(order.blocks) for place in range(rows)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("directions", [1, 2])
def test_every_frame_is_read_once_in_each_direction_in_its_own_order(lengths: list[int], directions: int) -> None:
    frames = max(lengths) + 2
    order = scan_order(torch.tensor(lengths), frames, directions)
    assert order.alive == [sum(n > t for n in lengths) for t in range(max(lengths))]
    by_length = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    for d in range(directions):
        seen = []
        for row, (t, place) in enumerate(places(order)):
            b, t_read = divmod(int(order.inputs[d, row]), frames)
            assert b == by_length[place]
            assert t_read < max(1, lengths[b])  # never padding
            if t < len(order.alive) and place < order.alive[t]:
                assert t_read == (lengths[b] - 1 - t if d else t)
                assert int(order.frames[d, b * frames + t_read]) == d * order.rows + row
                seen.append((b, t_read))
        assert sorted(seen) == [(b, t) for b, n in enumerate(lengths) for t in range(n)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_there_and_back(lengths: list[int]) -> None:
    """A scan whose state is its input gives the input back, and the gradient only reaches what was read."""
    frames = max(lengths) + 2
    order = scan_order(torch.tensor(lengths), frames, 2)
    x = torch.randn(len(lengths), frames, 6, requires_grad=True)
    real = torch.arange(frames) < torch.tensor(lengths)[:, None]
    sums = to_scan(x, order, natural=True)
    states = torch.zeros(2, order.rows, 3)
    for state, total in zip(states.split(order.blocks, 1)[1:], order.steps(sums.detach()), strict=True):
        state.copy_(total)
    torch.testing.assert_close(from_scan(states, order), x.detach().masked_fill(~real[..., None], 0), rtol=0, atol=0)
    # The gradient of a state goes to the sums of the step before.
    grad = torch.randn_like(x)
    grad_states, grad_sums = incoming(grad, order), torch.zeros_like(sums)
    for state, total in zip(grad_states.split(order.blocks, 1)[1:], order.steps(grad_sums), strict=True):
        total.copy_(state)
    assert not grad_sums[:, order.unused].any()
    sums.backward(grad_sums)
    torch.testing.assert_close(x.grad, grad.masked_fill(~real[..., None], 0), rtol=0, atol=0)


@pytest.mark.parametrize("numbers", [1, 9, 1000])
def test_chunks_and_stretches_cover_all_steps(numbers: int) -> None:
    order = scan_order(torch.tensor(LENGTHS[0]), 12, 2)
    chunks = order.chunks(numbers)[::-1]
    assert [t for start, end, _ in chunks for t in range(start, end)] == list(range(12))
    assert [r for *_, rows in chunks for r in range(rows.start, rows.stop)] == list(
        range(order.rows - order.blocks[-1])
    )
    stretches = order.stretches(numbers)
    assert [t for steps, *_ in stretches for t in range(steps.start, steps.stop)] == list(range(12))
    assert [r for _, rows, *_ in stretches for r in range(rows.start, rows.stop)] == list(
        range(order.rows - order.blocks[-1])
    )
    for steps, rows, block, alive in stretches:
        assert rows.stop - rows.start == block * (steps.stop - steps.start)
        assert all((order.blocks[t], order.alive[t]) == (block, alive) for t in range(steps.start, steps.stop))
