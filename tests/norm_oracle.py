"""An oracle: every normalization strategy in plain NumPy float64 (recurrent_oracle.py puts them into GRU and LSTM).

Written from the definitions, in loops that can be compared with the formulas line by line, and sharing nothing with the
product: running statistics are not merged here but computed anew from all frames ever seen and their weights. Axes: B
utterances, T frames, C features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray
TAIL = 8  # frame-wise BN: the pooled tail rests on this many times `min_count` frames


@dataclass
class Window:
    """All frames seen so far, each batch of them fading by (1 - momentum) with every later batch."""

    size: int
    momentum: float
    parts: list[tuple[float, Array]] = field(default_factory=list)  # (weight of each frame, frames (n, C))

    def fade(self) -> None:
        self.parts = [(weight * (1 - self.momentum), frames) for weight, frames in self.parts]

    def add(self, frames: Array) -> None:
        if len(frames):
            self.parts.append((1.0, np.array(frames)))

    @property
    def count(self) -> float:
        return float(sum(weight * len(frames) for weight, frames in self.parts))

    @property
    def mean(self) -> Array:
        if not self.count:
            return np.zeros(self.size)
        return sum(weight * frames.sum(0) for weight, frames in self.parts) / self.count

    @property
    def var(self) -> Array:
        if not self.count:
            return np.ones(self.size)
        return sum(weight * ((frames - self.mean) ** 2).sum(0) for weight, frames in self.parts) / self.count


class Norm:
    """y = gain * xhat + bias on real frames, 0 elsewhere; the subclasses say what xhat is."""

    in_recurrence = True

    def __init__(self, size: int, gain: Array | None = None, bias: Array | None = None, **options: Any) -> None:
        self.size, self.training = size, False
        self.gain = np.ones(size) if gain is None else gain
        self.bias = np.zeros(size) if bias is None else bias
        self.options = {
            "eps": 1e-5, "momentum": 0.1, "min_count": 16, "max_steps": 1024, "masked": True, "groups": 8,
            "renorm_r": 3.0, "renorm_d": 5.0, "renorm_warmup": 1000, **options,
        }  # fmt: skip
        self.eps = self.options["eps"]
        self.tape: list[Any] = []
        self.replayed: int | None = None

    def constant(self, value: Any) -> Any:
        """What the gradient takes as a constant although it comes from x: kept on a tape, or taken from there."""
        if self.replayed is None:
            self.tape.append(value)
            return value
        self.replayed += 1
        return self.tape[self.replayed - 1]

    def replay(self) -> None:
        """From now on the constants are those of the tape: what finite differences need."""
        self.replayed = 0

    def forward(self, x: Array, lengths: list[int]) -> Array:
        """x (B, T, C) -> (B, T, C)."""
        x = x.copy()
        for b, length in enumerate(lengths):
            x[b, length:] = 0
        y = np.zeros_like(x)
        xhat = self.whiten(x, lengths)
        for b, length in enumerate(lengths):
            y[b, :length] = self.gain * xhat[b, :length] + self.bias
        return y

    def step(self, x: Array, t: int, live: Array) -> Array:
        """x (B, C), which utterances have a frame t -> (B, C)."""
        y = np.zeros_like(x)
        xhat = self.whiten_step(np.where(live[:, None], x, 0.0), t, live)
        y[live] = self.gain * xhat[live] + self.bias
        return y

    def whiten(self, x: Array, lengths: list[int]) -> Array:
        raise NotImplementedError

    def whiten_step(self, x: Array, t: int, live: Array) -> Array:
        """Unless a strategy says otherwise: every utterance's frame as a sequence of one."""
        return self.whiten(x[:, None], [int(alive) for alive in live])[:, 0]

    def standard(self, x: Array, mean: Array, var: Array) -> Array:
        return (x - mean) / np.sqrt(var + self.eps)


class Identity(Norm):
    """`none`, and `weight_norm`, which acts on weights."""

    def forward(self, x: Array, lengths: list[int]) -> Array:
        return x

    def step(self, x: Array, t: int, live: Array) -> Array:
        return x


class LayerNorm(Norm):
    """Each frame by its own mean and variance (Ba et al. 2016)."""

    def whiten(self, x: Array, lengths: list[int]) -> Array:
        y = np.zeros_like(x)
        for b, length in enumerate(lengths):
            for t in range(length):
                y[b, t] = self.standard(x[b, t], x[b, t].mean(), x[b, t].var())
        return y


class RMSNorm(Norm):
    """Each frame by its root mean square (Zhang & Sennrich 2019)."""

    def whiten(self, x: Array, lengths: list[int]) -> Array:
        y = np.zeros_like(x)
        for b, length in enumerate(lengths):
            for t in range(length):
                y[b, t] = x[b, t] / np.sqrt((x[b, t] ** 2).mean() + self.eps)
        return y


class GroupNorm(Norm):
    """Each utterance and group of consecutive features by one mean and variance (Wu & He 2018)."""

    def whiten(self, x: Array, lengths: list[int]) -> Array:
        y = np.zeros_like(x)
        width = self.size // self.options["groups"]
        for b, length in enumerate(lengths):
            counted = length if self.options["masked"] else x.shape[1]
            if not length:
                continue
            for start in range(0, self.size, width):
                group = x[b, :counted, start : start + width]
                y[b, :, start : start + width] = self.standard(
                    x[b, :, start : start + width], group.mean(), group.var()
                )
        return y


class InstanceNorm(Norm):
    """Each utterance and feature by its mean and variance over time (Ulyanov et al. 2016)."""

    in_recurrence = False

    def whiten(self, x: Array, lengths: list[int]) -> Array:
        y = np.zeros_like(x)
        for b, length in enumerate(lengths):
            counted = length if self.options["masked"] else x.shape[1]
            if length:
                y[b] = self.standard(x[b], x[b, :counted].mean(0), x[b, :counted].var(0))
        return y


class FrameBatchNorm(Norm):
    """Each step and feature over the utterances alive at that step (Laurent et al. 2015; Cooijmans et al. 2016)."""

    def __init__(self, size: int, *affine: Array | None, **options: Any) -> None:
        super().__init__(size, *affine, **options)
        self.rows = [Window(size, self.options["momentum"]) for _ in range(self.options["max_steps"])]

    def whiten(self, x: Array, lengths: list[int]) -> Array:
        lives = [np.array([length > t for length in lengths]) for t in range(x.shape[1])]
        if self.training:
            for t, live in enumerate(lives):
                self.take_in(x[:, t], t, live)
        return np.stack([self.normalized(x[:, t], t, live) for t, live in enumerate(lives)], 1)

    def whiten_step(self, x: Array, t: int, live: Array) -> Array:
        if self.training:
            self.take_in(x, t, live)
        return self.normalized(x, t, live)

    def counted(self, live: Array) -> Array:
        return live if self.options["masked"] else np.ones_like(live)

    def take_in(self, x: Array, t: int, live: Array) -> None:
        last = self.options["max_steps"] - 1
        row = self.rows[min(t, last)]
        frames = x[self.counted(live)]
        if t <= last and len(frames):  # later steps of the same batch join the last row as part of one update
            row.fade()
        row.add(frames)

    def normalized(self, x: Array, t: int, live: Array) -> Array:
        frames = x[self.counted(live)]
        if self.training and len(frames) >= 2:
            return self.standard(x, frames.mean(0), frames.var(0))
        return self.standard(x, *self.constant(self.statistics(t)))

    def statistics(self, t: int) -> tuple[Array, Array]:
        """Running moments of step t; of the pooled tail where too few frames are behind them."""
        least = self.options["min_count"]
        row = self.rows[min(t, len(self.rows) - 1)]
        if row.count >= least:
            return row.mean, row.var
        tail, later = Window(self.size, 0.0), 0.0
        for row in reversed(self.rows):
            if later < TAIL * least:
                tail.parts += row.parts
            later += row.count
        return tail.mean, tail.var


class SequenceBatchNorm(Norm):
    """Each feature over all real frames of the batch (Laurent et al. 2015)."""

    def __init__(self, size: int, *affine: Array | None, **options: Any) -> None:
        super().__init__(size, *affine, **options)
        self.window = Window(size, self.options["momentum"])

    def whiten(self, x: Array, lengths: list[int]) -> Array:
        if not self.training:
            return self.standard(x, self.window.mean, self.window.var)
        counted = lengths if self.options["masked"] else [x.shape[1]] * len(lengths)
        frames = np.concatenate([x[b, :length] for b, length in enumerate(counted)])
        self.window.fade()
        self.window.add(frames)
        return self.standard(x, frames.mean(0), frames.var(0))

    def whiten_step(self, x: Array, t: int, live: Array) -> Array:
        if not self.training:
            return self.standard(x, self.window.mean, self.window.var)
        frames = x if not self.options["masked"] else x[live]
        if t == 0:  # all steps of one forward are one update
            self.window.fade()
        self.window.add(frames)
        if len(frames) >= 2:
            return self.standard(x, frames.mean(0), frames.var(0))
        return self.standard(x, *self.constant((self.window.mean, self.window.var)))


class BatchRenorm(Norm):
    """Sequence-wise BN, corrected towards the running statistics by r and d (Ioffe 2017)."""

    def __init__(self, size: int, *affine: Array | None, **options: Any) -> None:
        super().__init__(size, *affine, **options)
        self.window = Window(size, self.options["momentum"])
        self.updates = 0
        self.before: tuple[Array, Array, float, float, float] = self.snapshot()

    def snapshot(self) -> tuple[Array, Array, float, float, float]:
        """What r and d are made of: running mean, variance and count, r_max and d_max."""
        warmup = self.options["renorm_warmup"]
        share = min(1.0, self.updates / warmup) if warmup else 1.0
        r_max, d_max = 1 + share * (self.options["renorm_r"] - 1), share * self.options["renorm_d"]
        return self.window.mean, self.window.var, self.window.count, r_max, d_max

    def corrected(self, x: Array, frames: Array) -> Array:
        mean, var, count, r_max, d_max = self.before
        r, d = np.ones(self.size), np.zeros(self.size)
        if count:
            sigma, own = np.sqrt(var + self.eps), np.sqrt(frames.var(0) + self.eps)
            r = np.clip(own / sigma, 1 / r_max, r_max)
            d = np.clip((frames.mean(0) - mean) / sigma, -d_max, d_max)
        r, d = self.constant((r, d))
        return self.standard(x, frames.mean(0), frames.var(0)) * r + d

    def whiten(self, x: Array, lengths: list[int]) -> Array:
        if not self.training:
            return self.standard(x, self.window.mean, self.window.var)
        counted = lengths if self.options["masked"] else [x.shape[1]] * len(lengths)
        frames = np.concatenate([x[b, :length] for b, length in enumerate(counted)])
        self.begin()
        self.window.add(frames)
        return self.corrected(x, frames)

    def begin(self) -> None:
        self.before = self.snapshot()
        self.updates += 1
        self.window.fade()

    def whiten_step(self, x: Array, t: int, live: Array) -> Array:
        if not self.training:
            return self.standard(x, self.window.mean, self.window.var)
        frames = x if not self.options["masked"] else x[live]
        if t == 0:
            self.begin()
        self.window.add(frames)
        if len(frames) >= 2:
            return self.corrected(x, frames)
        return self.standard(x, *self.constant((self.window.mean, self.window.var)))


ORACLES: dict[str, type[Norm]] = {
    "none": Identity,
    "weight_norm": Identity,
    "layer_norm": LayerNorm,
    "rms_norm": RMSNorm,
    "group_norm": GroupNorm,
    "instance_norm": InstanceNorm,
    "frame_batch_norm": FrameBatchNorm,
    "sequence_batch_norm": SequenceBatchNorm,
    "batch_renorm": BatchRenorm,
}


def weight_norm(g: Array, v: Array) -> Array:
    """w = g v / ||v|| for every row (the last axis) of v; g without that axis."""
    w = np.zeros_like(v)
    for row in np.ndindex(v.shape[:-1]):
        w[row] = g[row] * v[row] / np.sqrt((v[row] ** 2).sum())
    return w
