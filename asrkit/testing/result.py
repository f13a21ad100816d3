"""What a check says: the three ways to end other than well, the result of one check, and a declared deviation."""

from __future__ import annotations

from dataclasses import dataclass

OK, FAILED, DEVIATION, SKIPPED = "ok", "failed", "deviation", "skipped"


class CheckFailed(AssertionError):
    """The encoder does not do what the check asks for; the text says what was measured and what is allowed."""


class DeclaredDeviation(CheckFailed):
    """It does not, and its plugin has said so, with a reason."""


class NotApplicable(Exception):
    """The check has nothing to look at in this encoder; the text says why. This is no pass."""


@dataclass(frozen=True)
class Deviation:
    """Why a plugin does not meet a check, and in which stacks (default: all it is tried in).

    `deviations = {"export": "the loop over time is Python"}` of an encoder class is short for
    `{"export": Deviation("the loop over time is Python")}`.
    """

    reason: str
    stacks: tuple[str, ...] = ()

    def covers(self, stack: str) -> bool:
        return not self.stacks or stack in self.stacks


@dataclass(frozen=True)
class Result:
    """One check of one encoder: `status` ok, failed, deviation (declared, with its reason) or skipped.

    `text` says it in words; `measured` and `allowed` are the numbers nearest to (or furthest beyond) what is allowed,
    where the check compares numbers, and `stack` the stack of layers in which they were found.
    """

    check: str
    status: str
    text: str = ""
    stack: str = ""
    measured: float | None = None
    allowed: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.status}" + (f": {self.text}" if self.text else "")
