"""asrkit's recurrent layers against torch's own, on a CPU: CPU time of forward + backward and of inference.

    python benchmarks/recurrent.py [--cells gru lstm] [--threads 1] [--repeats 9]

Each line is one shape (B, T, C, H), both directions, one layer. Columns: CPU seconds of asrkit (`auto`), then the
time of every other way divided by it, so above 1 means asrkit is faster: `scan` (asrkit's loop), `fused` (asrkit over
torch's kernels), `plain` (nn.GRU or nn.LSTM on the padded batch: fast, but padding enters the backward direction, so
its answer is wrong for ragged batches) and `packed` (the same on a packed sequence: right, and what everyone uses).
`full` lines have equal lengths, `ragged` ones are uniform in [T/2, T]. Ways alternate within one run; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asrkit.recurrent import Recurrent

SHAPES = [(16, 250, 512, 256), (16, 250, 256, 128), (16, 200, 128, 64), (1, 150, 256, 128)]


def ways(
    cell: str, shape: tuple[int, int, int, int], ragged: bool
) -> tuple[dict[str, Callable[[Tensor], Tensor]], Tensor]:
    """The competitors on one batch, all with the same weights, and the batch (B, T, C)."""
    batch, frames, channels, size = shape
    generator = torch.Generator().manual_seed(0)
    lengths = torch.full((batch,), frames)
    if ragged:
        lengths = torch.randint(frames // 2, frames + 1, (batch,), generator=generator)
        lengths[0] = frames
    torch_cell = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
    reference = torch_cell(channels, size, batch_first=True, bidirectional=True)
    ours = {name: Recurrent(channels, size, cell, backend=name) for name in ("auto", "scan", "fused")}
    for module in ours.values():
        module.load_from_torch(reference)

    def packed(x: Tensor) -> Tensor:
        sequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(reference(sequence)[0], batch_first=True)[0]

    found: dict[str, Callable[[Tensor], Tensor]] = {
        name: lambda x, module=module: module(x, lengths) for name, module in ours.items()
    }
    found |= {"plain": lambda x: reference(x)[0], "packed": packed}
    x = torch.randn(batch, frames, channels, generator=generator, requires_grad=True)
    torch.testing.assert_close(found["scan"](x), packed(x), rtol=1e-4, atol=1e-5)
    return found, x


def seconds(way: Callable[[Tensor], Tensor], x: Tensor, train: bool) -> float:
    """CPU seconds of one pass, over all threads of the process."""
    start = time.process_time()
    if train:
        way(x).square().mean().backward()
    else:
        with torch.inference_mode():
            way(x)
    return time.process_time() - start


def main() -> None:
    """Print one line per shape, cell, raggedness and mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=["gru", "lstm"], choices=["gru", "lstm"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'cell':5}{'B, T, C, H':20}{'lengths':8}{'mode':10}{'auto s':>9}", end="")
    print("".join(f"{name:>8}" for name in ("scan", "fused", "plain", "packed")))
    for cell in options.cells:
        for shape in SHAPES:
            for ragged in (False, True) if shape[0] > 1 else (False,):
                found, x = ways(cell, shape, ragged)
                for train in (True, False):
                    times: dict[str, list[float]] = {name: [] for name in found}
                    for turn in range(options.repeats + 2):
                        for name, way in found.items():
                            spent = seconds(way, x, train)
                            if turn > 1:  # the first two warm up caches and the allocator
                                times[name].append(spent)
                    medians = {name: statistics.median(values) for name, values in times.items()}
                    mode, kind = "train" if train else "inference", "ragged" if ragged else "full"
                    print(f"{cell:5}{str(shape)[1:-1]:20}{kind:8}{mode:10}{medians['auto']:9.4f}", end="")
                    others = ("scan", "fused", "plain", "packed")
                    print("".join(f"{medians[name] / medians['auto']:8.2f}" for name in others), flush=True)


if __name__ == "__main__":
    main()
