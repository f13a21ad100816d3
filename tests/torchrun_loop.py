"""A training loop of one's own, as a user writes it: every strategy in DistributedDataParallel, on gloo.

    torchrun --standalone --nproc-per-node 2 tests/torchrun_loop.py FOLDER

Each process takes its share of the utterances and leaves its weights and buffers in FOLDER/RANK.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from asrkit import registry
from asrkit.encoders import NormOptions
from asrkit.masking import frame_mask

SIZE, UPDATES = 6, 3
SHARES = ([7, 3, 5], [4, 6])  # frames of each process's utterances
NAMES = sorted(plugin.name for plugin in registry.list_plugins("encoders") if plugin.package == "asrkit")


def layers_for(name: str) -> list[object]:
    """A norm as a layer, on a GRU's gates, and, where one frame is enough for it, inside an LSTM's recurrence."""
    place = "gates" if name == "instance_norm" else "recurrent"
    return [{"linear": 8}, "norm", {"bigru": {"size": 4, "norm": "gates"}}, {"bilstm": {"size": 4, "norm": place}}]


def batch(update: int, first: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """x (B, T, SIZE) of the utterances `first` and on of an update, lengths (B,)."""
    x = torch.zeros(len(lengths), max(lengths), SIZE, dtype=torch.float64)
    for i, n in enumerate(lengths):
        generator = torch.Generator().manual_seed(100 * update + first + i)
        x[i, :n] = torch.randn(n, SIZE, generator=generator, dtype=torch.float64) + update
    return x, torch.tensor(lengths)


def train(name: str, lengths: list[int], first: int = 0, processes: int = 1) -> dict[str, Tensor]:
    """Weights and buffers after UPDATES updates on the mean square of all processes' real frames."""
    torch.manual_seed(1)
    options = NormOptions(min_count=2, groups=2, renorm_warmup=1, momentum=0.3)
    encoder = registry.load("encoders", name)(SIZE, layers_for(name), options).double().train()
    model: nn.Module = DistributedDataParallel(encoder) if processes > 1 else encoder
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5)
    frames = sum(map(sum, SHARES))
    for update in range(UPDATES):
        y, lengths_out = model(*batch(update, first, lengths))
        real = frame_mask(lengths_out, y.shape[1])
        loss = (y[real] - 0.3).square().sum() / frames * processes  # DDP takes the mean of the processes' gradients
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return dict(encoder.state_dict())


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    first = sum(map(len, SHARES[:rank]))
    found = {name: train(name, SHARES[rank], first, distributed.get_world_size()) for name in NAMES}
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    distributed.barrier()  # nobody leaves while another one still needs the store
    distributed.destroy_process_group()
    # Once in many runs a rank ended with "terminate called without an active exception", most likely of torch's own
    # threads while Python unloads it; all is learned and saved by now.
    os._exit(0)


if __name__ == "__main__":
    main()
