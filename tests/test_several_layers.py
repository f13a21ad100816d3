"""Recurrent layers with their norms, and whole stacks, on two processes equal one process with the joint batch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_normalization import NAMES
from torch import Tensor, distributed, multiprocessing

from asrkit import registry
from asrkit.encoders import NormOptions

SIZE, BATCHES = 6, 2
SHARES = ((9, 3), (4, 6, 2))  # frames of each process's utterances: other numbers, other longest
JOINT = ["sequence_batch_norm", "frame_batch_norm", "batch_renorm"]
# A context and a convolution after which nothing is left of one or two frames.
LOSING: list[Any] = [
    {"context": {"right": 1, "stride": 2}},
    "norm",
    {"conv": {"channels": 2, "kernel": 3, "padding": [0, 1]}},
    "norm",
    {"bigru": {"size": 4, "norm": "gates"}},
]


class Setting(NamedTuple):
    name: str
    cell: str  # a recurrent layer; empty: LOSING
    place: str
    masked: bool = True
    shares: tuple[tuple[int, ...], tuple[int, ...]] = SHARES
    options: tuple[tuple[str, Any], ...] = ()  # of the recurrent layer


def settings() -> list[Setting]:
    """One frame inside a recurrence has no variance over time: instance norm has no place there."""
    layers = [
        Setting(name, cell, place, masked=cell == "bigru")
        for name in NAMES
        for cell in ("bigru", "bilstm")
        for place in ("input", "gates", "recurrent", "hidden", "joined")
        if place in ("input", "gates") or name != "instance_norm"
    ]
    variants = [
        Setting(name, cell, place, options=options)
        for name in NAMES
        if name != "instance_norm"
        for cell, place, options in (
            ("bigru", "recurrent", (("per_gate", True),)),
            ("bilstm", "joined", (("per_gate", True), ("cell_norm", "stored"))),
        )
    ]
    nothing = [
        Setting(name, *layer, masked, shares)
        for name in JOINT
        for masked in (True, False)
        for layer, shares in (
            (("bigru", "gates"), (SHARES[0], (0, 0))),
            (("bilstm", "recurrent"), (SHARES[0], (0, 0))),
            (("gru", "joined"), ((0,), SHARES[1])),
            (("", ""), (SHARES[0], (0, 0))),
            (("", ""), ((2, 1), SHARES[1])),
        )
    ]
    return layers + variants + nothing


def data(seed: int, lengths: tuple[int, ...], size: int) -> Tensor:
    x = torch.zeros(len(lengths), max(lengths), size, dtype=torch.float64)
    for i, n in enumerate(lengths):
        x[i, :n] = torch.randn(n, size, generator=torch.Generator().manual_seed(seed + i), dtype=torch.float64)
    return x


def run(setting: Setting, lengths: tuple[int, ...], first: int) -> dict[tuple[Any, ...], Tensor]:
    """Training batches of utterances `first` and on: outputs, gradients and buffers that a process sees."""
    torch.manual_seed(3)
    layers = (
        LOSING if not setting.cell else [{setting.cell: {"size": 4, "norm": setting.place, **dict(setting.options)}}]
    )
    options = NormOptions(min_count=2, max_steps=64, groups=2, renorm_warmup=1, masked=setting.masked)
    encoder = registry.load("encoders", setting.name)(SIZE, layers, options).double().train()
    found: dict[tuple[Any, ...], Tensor] = {}
    for number in range(BATCHES):
        x = (2 * data(100 * number + first, lengths, SIZE)).requires_grad_()
        y, frames = encoder(x, torch.tensor(lengths))
        weights = torch.zeros_like(y)
        for i, n in enumerate(frames.tolist()):
            weights[i, :n] = data(1000 + 100 * number + first + i, (n,), y.shape[2])[0]
        (y * weights).sum().backward()
        assert x.grad is not None
        found[number, "y"], found[number, "dx"] = y.detach(), x.grad
    for key, parameter in encoder.named_parameters():
        found["gradient", key] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    found.update({("buffer", key): buffer for key, buffer in encoder.named_buffers()})
    return found


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    torch.save(
        {setting: run(setting, setting.shares[rank], rank * len(setting.shares[0])) for setting in settings()},
        Path(folder) / f"{rank}.pt",
    )
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Setting, dict[Any, Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def close(a: Tensor, b: Tensor, what: object) -> None:
    exact = 1e-9 * max(1.0, float(b.abs().max()) if b.numel() else 1.0)
    torch.testing.assert_close(a, b, atol=exact, rtol=0, msg=lambda message: f"{what}: {message}")


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name: str, results: list[dict[Setting, dict[Any, Tensor]]]) -> None:
    found = [setting for setting in settings() if setting.name == name]
    assert len(found) == (4 if name == "instance_norm" else 22 if name in JOINT else 12)
    for setting in found:
        ours = [result[setting] for result in results]
        for key, expected in run(setting, setting.shares[0] + setting.shares[1], 0).items():
            what = (setting, key)
            if key[0] == "gradient":
                close(ours[0][key] + ours[1][key], expected, what)
            elif key[0] == "buffer":
                close(ours[0][key], expected, what)
                close(ours[1][key], expected, what)
            else:
                start = 0
                for one, lengths in zip(ours, setting.shares, strict=True):
                    frames = one[key].shape[1]
                    close(one[key], expected[start : start + len(lengths), :frames], what)
                    start += len(lengths)


@pytest.mark.parametrize("name", JOINT)
def test_a_process_alone_would_not_do(name: str) -> None:
    """The comparison can fail: each half by itself gives something else."""
    setting = Setting(name, "bigru", "recurrent")
    joint, alone = run(setting, SHARES[0] + SHARES[1], 0), run(setting, SHARES[0], 0)
    assert (alone[0, "y"] - joint[0, "y"][:2]).abs().max() > 0.01
