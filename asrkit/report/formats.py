"""How a report writes names, numbers and tables: the page, the Markdown and the terminal write the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NONE = "–"


@dataclass(frozen=True)
class Table:
    """A heading, what must be known to read it, column names, and rows of text; folded: shown on request."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    folded: bool = False


def context_name(context: str) -> str:
    """`model1--depth-3` -> `model1, depth-3`."""
    return context.replace("--", ", ")


def amount(count: int, noun: str, more: str = "") -> str:
    """`1 seed`, `3 seeds`; more: of several, where that is not the noun with an s."""
    return f"{count} {noun if count == 1 else more or noun + 's'}"


def of(count: int, total: int, noun: str) -> str:
    """`2 of 3 seeds`, `0 of 1 seed`."""
    return f"{count} of {amount(total, noun)}"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def percent(value: float | None, digits: int = 1) -> str:
    """0.1234 -> `12.3`; a dash for what is not known."""
    return number(None if value is None else 100 * value, f".{digits}f")


def number(value: float | None, form: str = ".3g") -> str:
    """A number, or a dash for None, NaN and infinity."""
    return NONE if value is None or not math.isfinite(value) else format(value, form)


def interval(low: float, high: float) -> str:
    """Of two rates, in points: `-1.20 to 3.40`; a dash where one is not known."""
    return f"{percent(low, 2)} to {percent(high, 2)}" if math.isfinite(low) and math.isfinite(high) else NONE
