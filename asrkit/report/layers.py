"""Layer by layer: gradient norms and how much of a layer's output still depends on the input, as the runs recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from asrkit.report.collect import CellResult

GRADIENT, DEPENDENCE = "gradient", "dependence"


def of_epoch(epoch: dict[str, Any], kind: str) -> dict[str, float]:
    """Layer -> finite value, from input to output.

    gradient: mean norm over the epoch's updates, before clipping. dependence: RMS change of a layer's output for other
    audio of the same length over sqrt 2 times its RMS, after the epoch; 0: it does not hear the input, about 1: all of
    it depends on the input (asrkit.diagnostics.probes.dependence).
    """
    place, key = {GRADIENT: ("train", "grad_norm_by_layer"), DEPENDENCE: ("diagnosis", "dependence")}[kind]
    values = (epoch.get(place) or {}).get(key) or {}
    return {
        name.removeprefix("layers."): float(value) for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }  # fmt: skip


def at_end(cell: CellResult, kind: str) -> dict[str, float]:
    """Of the last epoch that has any; empty where nothing is recorded."""
    return next((values for epoch in reversed(cell.epochs) if (values := of_epoch(epoch, kind))), {})


def order(lists: Iterable[Sequence[str]]) -> list[str]:
    """One order, input to output, of layers of which not every arm has all (`none` has no norms)."""
    merged: list[str] = []
    for names in lists:
        place = 0
        for name in names:
            if name in merged:
                place = merged.index(name) + 1
            else:
                merged.insert(place, name)
                place += 1
    return merged


def weakest(cell: CellResult) -> list[tuple[int, float, float]]:
    """(updates, seconds, least dependence of any layer) of every epoch that has it."""
    return _over_time(cell, lambda epoch: min(of_epoch(epoch, DEPENDENCE).values(), default=None))


def gradient_ratio(cell: CellResult) -> list[tuple[int, float, float]]:
    """(updates, seconds, gradient norm of the first layer / that of the last) of every epoch that has both."""

    def ratio(epoch: dict[str, Any]) -> float | None:
        norms = list(of_epoch(epoch, GRADIENT).values())
        return norms[0] / norms[-1] if len(norms) > 1 and norms[0] and norms[-1] else None

    return _over_time(cell, ratio)


def _over_time(cell: CellResult, value: Any) -> list[tuple[int, float, float]]:
    points, seconds = [], 0.0
    for epoch in cell.epochs:
        seconds += float(epoch.get("seconds") or 0.0)
        found = value(epoch)
        if found is not None:
            points.append((int(epoch.get("step", 0)), seconds, found))
    return points


def end_gradients(cell: CellResult) -> tuple[str, float, str, float] | None:
    """(first layer, its gradient norm, last layer, its norm) at the end, where there are two."""
    norms = list(at_end(cell, GRADIENT).items())
    return (*norms[0], *norms[-1]) if len(norms) > 1 else None


def end_dependence(cell: CellResult) -> tuple[str, float] | None:
    """(layer that hears least, its dependence) at the end."""
    values = at_end(cell, DEPENDENCE)
    return min(values.items(), key=lambda one: one[1]) if values else None
