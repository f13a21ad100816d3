"""Two processes with half a batch each equal one process with the whole: outputs, gradients, running statistics."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from test_norm_strategies import steps
from test_normalization import NAMES, make
from torch import Tensor, distributed, multiprocessing, nn

from asrkit.masking import frame_mask
from asrkit.processes import largest, several

SIZE = 6
SHARES = ([4, 3, 2, 1], [6, 2, 3])  # frames of each process's utterances: other numbers, other longest
WAYS = ("forward", "step")
BATCHES = 2
Result = dict[tuple[Any, ...], Tensor]


def cases() -> list[tuple[str, bool, str, torch.dtype]]:
    """Strategy, masked, way, precision. One frame inside a recurrence has no variance over time."""
    return [
        (name, masked, way, dtype)
        for name in NAMES
        for masked in (True, False)
        for way in WAYS
        for dtype in (torch.float32, torch.float64)
        if not (way == "step" and name == "instance_norm")
    ]


def data(number: int, lengths: list[int], first: int, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, the weights of its outputs in the loss, and the mask, of the utterances from `first` on of a batch."""
    frames = max(lengths)
    x, weights = torch.zeros(2, len(lengths), frames, SIZE, dtype=kind).unbind(0)
    for i, n in enumerate(lengths):
        generator = torch.Generator().manual_seed(100 * number + first + i)
        both = torch.randn(2, n, SIZE, generator=generator, dtype=torch.float64)
        x[i, :n], weights[i, :n] = 2 * both[0] + number, both[1]
    return x, weights, frame_mask(torch.tensor(lengths), frames)


def run(case: tuple[str, bool, str, torch.dtype], lengths: list[int], first: int) -> Result:
    """Three training batches of a norm: all that a process sees of it afterwards."""
    name, masked, way, kind = case
    norm = make(name, SIZE, masked=masked, min_count=2, renorm_warmup=2, momentum=0.3).to(kind)
    for parameter in norm.parameters():
        parameter.data.copy_(torch.linspace(0.5, 2.0, SIZE))
    found: Result = {}
    for number in range(BATCHES):
        x, weights, mask = data(number, lengths, first, kind)
        x.requires_grad_()
        y = norm(x, mask) if way == "forward" else by_steps(norm, x, mask)
        (y * weights).sum().backward()
        assert x.grad is not None
        found[number, "y"], found[number, "dx"] = y.detach(), x.grad
    for key, parameter in norm.named_parameters():
        assert parameter.grad is not None
        found["gradient", key] = parameter.grad
    found.update({("buffer", key): buffer for key, buffer in norm.named_buffers()})
    return found


def by_steps(norm: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """As a recurrence does it: as many steps on every process as the longest utterance of all has frames."""
    frames, more = x.shape[1], largest(x.shape[1], x.device) - x.shape[1]
    x, mask = nn.functional.pad(x, (0, 0, 0, more)), nn.functional.pad(mask, (0, more))
    return steps(norm, x, mask)[:, :frames]


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    assert several()
    first = sum(len(share) for share in SHARES[:rank])
    results = {case: run(case, SHARES[rank], first) for case in cases()}
    if rank == 0:  # alone: a test waits for nobody
        results.update({(name, "eval"): {("y",): evaluate(name)} for name in NAMES})
    torch.save(results, Path(folder) / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def evaluate(name: str) -> Tensor:
    x, _, mask = data(9, SHARES[0], 0, torch.float32)
    return make(name, SIZE, masked=False).eval()(x, mask).detach()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Result]]:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def close(a: Tensor, b: Tensor, what: object) -> None:
    """To 1e-9, or in float32 to 1e-6, of the largest number in there."""
    exact = (1e-9 if a.dtype == torch.float64 else 1e-6) * max(1.0, float(b.abs().max()))
    torch.testing.assert_close(a, b, atol=exact, rtol=0, msg=lambda message: f"{what}: {message}")


@pytest.mark.fault
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_n07_two_processes_equal_one(name: str, way: str, masked: bool, results: list[dict[Any, Result]]) -> None:
    found = [case for case in cases() if case[:3] == (name, masked, way)]
    assert len(found) == (0 if (name, way) == ("instance_norm", "step") else 2)
    for case in found:
        joint = run(case, [*SHARES[0], *SHARES[1]], 0)
        ours = [result[case] for result in results]
        for key, expected in joint.items():
            if key[0] == "gradient":
                close(ours[0][key] + ours[1][key], expected, (case, key))
            elif key[0] == "buffer":
                for one in ours:
                    close(one[key], expected, (case, key))
            else:
                start = 0
                for one, lengths in zip(ours, SHARES, strict=True):
                    close(one[key], expected[start : start + len(lengths), : max(lengths)], (case, key))
                    start += len(lengths)


@pytest.mark.parametrize("name", ["sequence_batch_norm", "frame_batch_norm", "batch_renorm"])
def test_a_process_alone_would_not_do(name: str) -> None:
    """The comparison can fail: each half by itself gives something else."""
    case = (name, True, "forward", torch.float64)
    joint, alone = run(case, [*SHARES[0], *SHARES[1]], 0), run(case, SHARES[0], 0)
    assert (alone[0, "y"] - joint[0, "y"][:4, :4]).abs().max() > 0.1
    assert (alone["buffer", "running.mean"] - joint["buffer", "running.mean"]).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_each_process_by_itself(name: str, results: list[dict[Any, Result]]) -> None:
    assert torch.equal(results[0][name, "eval"]["y",], evaluate(name))


def test_one_process_asks_nobody() -> None:
    assert not several()
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            assert not several()
        finally:
            distributed.destroy_process_group()
