"""An oracle: GRU and LSTM layers with a normalization in every placement, in plain NumPy float64 and loops over time.

Axes: B utterances, T frames, C features, H hidden, D directions, G sums of the gates (3H or 4H, in torch's order).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from norm_oracle import Array, Norm

PLACEMENTS = ("none", "input", "gates", "recurrent", "hidden", "joined")


def gate_groups(cell: str, size: int, per_gate: bool) -> list[slice]:
    """Which of the G sums share a norm: GRU (reset and update), (candidate); LSTM all four; or each gate by itself."""
    widths = [size] * (3 if cell == "gru" else 4) if per_gate else [2 * size, size] if cell == "gru" else [4 * size]
    ends = np.cumsum(widths)
    return [slice(int(end) - width, int(end)) for end, width in zip(ends, widths, strict=True)]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@dataclass
class Layer:
    """One GRU or LSTM layer with its norms; `weights` as the product names them, norms[kind][direction][group].

    Kinds: input (one norm, for all directions), gates, recurrent, joined, cell. Kinds that the placement does not have
    are left out.
    """

    cell: str
    placement: str
    weights: dict[str, Array]
    norms: dict[str, Any] = field(default_factory=dict)
    per_gate: bool = False
    cell_norm: str = "none"

    @property
    def directions(self) -> int:
        return int(self.weights["weight_recurrent"].shape[0])

    @property
    def size(self) -> int:
        return int(self.weights["weight_recurrent"].shape[2])

    def all_norms(self) -> list[Norm]:
        found = [self.norms["input"]] if "input" in self.norms else []
        for kind in ("gates", "recurrent", "joined", "cell"):
            for direction in self.norms.get(kind, []):
                found += direction
        return found

    def train(self, training: bool = True) -> None:
        for norm in self.all_norms():
            norm.training = training

    def forward(self, x: Array, lengths: list[int]) -> Array:
        """x (B, T, C) -> (B, T, D H), 0 past each end."""
        x = x.copy()
        for b, length in enumerate(lengths):
            x[b, length:] = 0
        if self.placement == "input":
            x = self.norms["input"].forward(x, lengths)
        return np.concatenate([self.direction(x, lengths, d) for d in range(self.directions)], 2)

    def direction(self, x: Array, lengths: list[int], d: int) -> Array:
        x = in_order(x, lengths, d)
        sums = x @ self.weights["weight_input"][d].T
        groups = gate_groups(self.cell, self.size, self.per_gate)
        if self.placement in ("gates", "recurrent"):
            for norm, group in zip(self.norms["gates"][d], groups, strict=True):
                sums[:, :, group] = norm.forward(sums[:, :, group], lengths)
        h = c = np.zeros((x.shape[0], self.size))
        y = np.zeros((x.shape[0], x.shape[1], self.size))
        for t in range(x.shape[1]):
            live = np.array([length > t for length in lengths])
            moved, c = (self.gru if self.cell == "gru" else self.lstm)(sums[:, t], h, c, t, live, d)
            h = np.where(live[:, None], moved, 0.0)
            y[:, t] = h
        return in_order(y, lengths, d)

    def normed(self, kind: str, sums: Array, groups: list[slice], t: int, live: Array, d: int) -> Array:
        parts = [norm.step(sums[:, group], t, live) for norm, group in zip(self.norms[kind][d], groups, strict=True)]
        return np.concatenate(parts, 1)

    def gru(self, x: Array, h: Array, c: Array, t: int, live: Array, d: int) -> tuple[Array, Array]:
        size, groups = self.size, gate_groups("gru", self.size, self.per_gate)
        b_i, b_h = self.weights["bias_input"][d], self.weights["bias_recurrent"][d]
        u = h @ self.weights["weight_recurrent"][d].T
        if self.placement in ("recurrent", "hidden"):
            u = self.normed("recurrent", u, groups, t, live, d)
        rz, n = slice(0, 2 * size), slice(2 * size, 3 * size)
        both = x[:, rz] + u[:, rz]
        if self.placement == "joined":
            norms, candidate = self.norms["joined"][d][:-1], self.norms["joined"][d][-1]
            pairs = zip(norms, groups[:-1], strict=True)
            both = np.concatenate([norm.step(both[:, group], t, live) for norm, group in pairs], 1)
        both = sigmoid(both + b_i[rz] + b_h[rz])
        reset, update = both[:, :size], both[:, size:]
        if self.placement == "joined":
            new = np.tanh(candidate.step(x[:, n] + reset * u[:, n], t, live) + b_i[n] + reset * b_h[n])
        else:
            new = np.tanh(x[:, n] + b_i[n] + reset * (u[:, n] + b_h[n]))
        return (1 - update) * new + update * h, c

    def lstm(self, x: Array, h: Array, c: Array, t: int, live: Array, d: int) -> tuple[Array, Array]:
        groups = gate_groups("lstm", self.size, self.per_gate)
        u = h @ self.weights["weight_recurrent"][d].T
        if self.placement in ("recurrent", "hidden"):
            u = self.normed("recurrent", u, groups, t, live, d)
        sums = x + u
        if self.placement == "joined":
            sums = self.normed("joined", sums, groups, t, live, d)
        i, f, g, o = np.split(sums + self.weights["bias_input"][d] + self.weights["bias_recurrent"][d], 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        shown = c
        if self.cell_norm != "none":
            shown = self.norms["cell"][d][0].step(c, t, live)
        if self.cell_norm == "stored":
            c = shown
        return sigmoid(o) * np.tanh(shown), c


def in_order(x: Array, lengths: list[int], direction: int) -> Array:
    """The real part of every utterance in this direction's order of time; its own inverse."""
    x = x.copy()
    if direction:
        for b, length in enumerate(lengths):
            x[b, :length] = x[b, :length][::-1]
    return x


def directional_derivative(f: Callable[[float], float], step: float = 1e-5) -> float:
    """df/ds at 0, by central differences of fourth order."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)
