"""Recurrent layers on ragged batches: forward + backward of asrkit's, torch's, SpeechBrain's and a plain loop's.

    python benchmarks/recurrent.py [--threads 2] [--repeats 5] [--shapes 16,250,512,256 ...] [--stack 11] [--cell gru]

Each block is one shape (B, T, C, H), both directions, lengths uniform in [T/2, T]; the last one is `--stack` layers of
512 on (16, 250, 512). Ways take turns within one run; medians on the wall with the smallest and the largest, each
divided by asrkit's `none`, and the memory that one pass adds at its peak. `products` are the matrix products of the
layer alone, forward and backward, on the padded batch: the floor. `plain` does not pack, so padding enters its
backward direction: fast, and wrong for ragged batches; `packed` is right, and what everyone uses. `loop` is layer norm
in the recurrence (Ba et al. 2016) as one would write it: a loop over time, torch operations, autograd. `step by step`
is asrkit's way for norms that it does not know. `--cell lstm` prints the same of LSTM layers.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asrkit import registry
from asrkit.recurrent import Recurrent

SHAPES = ["16,250,512,256", "16,250,256,128", "16,250,1024,512", "8,1000,128,512"]
STACK = "16,250,512,512"
Way = Callable[[], Tensor]


def lengths_of(batch: int, frames: int) -> Tensor:
    """Uniform in [T/2, T], the longest T."""
    lengths = torch.randint(frames // 2, frames + 1, (batch,), generator=torch.Generator().manual_seed(0))
    lengths[0] = frames
    return lengths


def ours(cell: str, channels: int, size: int, layers: int, strategy: str, place: str) -> Recurrent:
    """A layer, or several, with the norms of an encoder plugin, as a recipe makes them."""
    options = {"size": size, "layers": layers, "norm": place}
    encoder = registry.load("encoders", strategy)(channels, [{f"bi{cell}": options}])
    return encoder.stack.layers[0].recurrent  # type: ignore[no-any-return]


class LoopGRU(nn.Module):
    """One bidirectional GRU with layer norm on W_x x and W_h h, step by step; padded steps keep the state."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.inputs = nn.ModuleList(nn.Linear(channels, 3 * size) for _ in range(2))
        self.states = nn.ModuleList(nn.Linear(size, 3 * size) for _ in range(2))
        self.norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(n * size) for n in (2, 1, 2, 1)) for _ in range(2))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, 2H)."""
        alive = torch.arange(x.shape[1]) < lengths[:, None]
        outputs = []
        for d in range(2):
            gates, size = self.inputs[d](x), self.size
            norm_x, norm_xc, norm_h, norm_hc = self.norms[d]
            state, found = x.new_zeros(len(x), size), [x.new_zeros(len(x), size)] * x.shape[1]
            for t in range(x.shape[1]) if d == 0 else reversed(range(x.shape[1])):
                g, h = gates[:, t], self.states[d](state)
                both = torch.sigmoid(norm_x(g[:, : 2 * size]) + norm_h(h[:, : 2 * size]))
                reset, update = both.chunk(2, 1)
                candidate = torch.tanh(norm_xc(g[:, 2 * size :]) + reset * norm_hc(h[:, 2 * size :]))
                state = torch.where(alive[:, t, None], update * state + (1 - update) * candidate, state)
                found[t] = state
            outputs.append(torch.stack(found, 1))
        return torch.cat(outputs, 2).masked_fill(~alive[..., None], 0)


def speechbrain_ways(size: int, x: Tensor, lengths: Tensor, layers: int) -> dict[str, Way]:
    """SpeechBrain's own recurrent layers; nothing where it is not installed."""
    try:
        from speechbrain.nnet import RNN
    except ImportError:
        return {}
    shape, relative = list(x.shape), lengths / x.shape[1]
    found: dict[str, Way] = {}
    for name, cls in (("GRU", RNN.GRU), ("LiGRU", RNN.LiGRU), ("SLiGRU", RNN.SLiGRU)):
        module = cls(hidden_size=size, input_shape=shape, bidirectional=True, num_layers=layers)
        if name == "GRU":
            found[f"SpeechBrain {name}"] = lambda module=module: module(x, lengths=relative)[0]
        else:
            found[f"SpeechBrain {name}"] = lambda module=module: module(x)[0]
    return found


def haste_way(channels: int, size: int, x: Tensor, lengths: Tensor) -> dict[str, Way]:
    """haste's layer-norm GRU, where it installs (it needs CUDA)."""
    try:
        import haste_pytorch
    except ImportError:
        return {}
    sides = [haste_pytorch.LayerNormGRU(channels, size, batch_first=True) for _ in range(2)]
    return {"haste LayerNormGRU": lambda: torch.cat([side(x, lengths=lengths)[0] for side in sides], 2)}


def ways(cell: str, shape: tuple[int, ...], layers: int) -> dict[str, Way]:
    """The competitors on one batch."""
    batch, frames, channels, size = shape
    torch.manual_seed(0)
    lengths = lengths_of(batch, frames)
    x = torch.randn(batch, frames, channels, requires_grad=True)
    reference = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](channels, size, layers, batch_first=True, bidirectional=True)
    none = ours(cell, channels, size, layers, "none", "none")
    none.load_from_torch(reference)

    def packed() -> Tensor:
        sequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(reference(sequence)[0], batch_first=True)[0]

    found: dict[str, Way] = {"asrkit none": lambda: none(x, lengths)}
    torch.testing.assert_close(found["asrkit none"](), packed(), rtol=1e-4, atol=1e-5)
    for strategy, place in (
        ("sequence_batch_norm", "gates"),
        ("frame_batch_norm", "gates"),
        ("layer_norm", "gates"),
        ("layer_norm", "recurrent"),
    ):
        module = ours(cell, channels, size, layers, strategy, place)
        found[f"asrkit {strategy} {place}"] = lambda module=module: module(x, lengths)
    if layers == 1:
        stepwise = copy.deepcopy(module)  # the last one
        stepwise.backend = "steps"
        found["the same, step by step"] = lambda: stepwise(x, lengths)
    found |= {"torch packed": packed, "torch plain": lambda: reference(x)[0]}
    found |= speechbrain_ways(size, x, lengths, layers) if cell == "gru" else {}
    if layers == 1 and cell == "gru":
        loop = LoopGRU(channels, size)
        found |= {"loop with layer norm": lambda: loop(x, lengths)} | haste_way(channels, size, x, lengths)
    return found


def products(cell: str, shape: tuple[int, ...], layers: int) -> Callable[[], None]:
    """The matrix products of forward and backward, and nothing else."""
    batch, frames, channels, size = shape
    sums = {"gru": 3, "lstm": 4}[cell] * size
    state, gates = torch.randn(2, batch, size), torch.randn(2, batch, sums)
    weight = torch.randn(2, size, sums)
    back, many = weight.transpose(1, 2).contiguous(), torch.randn(2, batch * frames, sums)
    states = torch.randn(2, batch * frames, size)
    steps = torch.empty(2, batch, sums), torch.empty(2, batch, size)

    def run() -> None:
        for layer in range(layers):
            width = 2 * size if layer else channels
            x, w = torch.randn(batch * frames, width), torch.randn(2 * sums, width)
            flat = F.linear(x, w)
            for _ in range(frames):
                torch.bmm(state, weight, out=steps[0])
            for _ in range(frames):
                torch.bmm(gates, back, out=steps[1])
            _ = many.transpose(1, 2) @ states, flat @ w, flat.t() @ x

    return run


def trim() -> None:
    """Give freed memory back, so that the next peak is the next way's own."""
    gc.collect()
    with_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if with_trim is not None:
        with_trim(0)


def status(key: str) -> int:
    """A line of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) // 1024


def peak(job: Callable[[], None]) -> int:
    """MiB that a job adds at its peak; -1 where the system cannot tell."""
    trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        job()
        return status("VmHWM") - before
    except OSError:
        return -1


def pass_of(way: Way) -> Callable[[], None]:
    """One forward and backward."""
    return lambda: way().square().mean().backward()


def measure(cell: str, shape: tuple[int, ...], layers: int, repeats: int) -> None:
    """One block of the table."""
    jobs = {name: pass_of(way) for name, way in ways(cell, shape, layers).items()}
    jobs["products"] = products(cell, shape, layers)
    memory = {name: peak(job) for name, job in jobs.items()}  # warms up as well
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["asrkit none"])
    print(f"\n{cell}, (B, T, C, H) = {shape}, {layers} layer{'s' * (layers > 1)}: asrkit none {base:.3f} s")
    print(f"  {'':32}{'/ none':>8}{'least':>8}{'most':>8}{'MiB':>8}")
    for name, values in times.items():
        middle, low, high = (f(values) / base for f in (statistics.median, min, max))
        print(f"  {name:32}{middle:8.2f}{low:8.2f}{high:8.2f}{memory[name]:8}", flush=True)


def main() -> None:
    """Print the blocks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cell", default="gru", choices=["gru", "lstm"])
    parser.add_argument("--shapes", nargs="*", default=SHAPES, metavar="B,T,C,H")
    parser.add_argument("--stack", type=int, default=11, help="layers of the last block; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, medians of {options.repeats}")
    for text in options.shapes:
        measure(options.cell, tuple(int(n) for n in text.split(",")), 1, options.repeats)
    if options.stack:
        measure(options.cell, tuple(int(n) for n in STACK.split(",")), options.stack, max(2, options.repeats // 2))


if __name__ == "__main__":
    main()
