"""Faults on purpose: a call of the operating system that fails, death at it, a kill at a step, a flipped bit, a shifted
clock, a small corpus with chosen faults.

For tests of anything that trains, saves or reads: faults come from outside (patches and signals), so the code under
test needs no hooks. The method is that of "How SQLite Is Tested" (sqlite.org/testing.html): not a random moment but
every one, N = 1, 2, 3, ... until nothing fails any more.

>>> from asrkit.testing import faults
>>> with faults.count_calls() as calls:                                       # doctest: +SKIP
...     save()
>>> for n in range(1, calls.count + 1):                                       # doctest: +SKIP
...     with faults.fail_nth(n, errno.ENOSPC), contextlib.suppress(StorageError):
...         save()
...     assert load() in (old, new)
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asrkit.errors import AsrkitError, RecipeError
from asrkit.testing.fault_corpus import FAULTS, tiny_corpus

__all__ = [
    "CALLS",
    "FAULTS",
    "Calls",
    "count_calls",
    "cut",
    "die_nth",
    "fail_nth",
    "flip_bit",
    "in_child",
    "kill_at_step",
    "shifted_clock",
    "tiny_corpus",
    "zero_block",
]

# What counts as a call. Files opened by `open()` are not seen, nor what C and Rust code writes: asrkit writes through
# these wherever a crash must lose nothing.
CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")


class Calls:
    """Counts calls of os.open, os.write, ...; `names` lists them, in order."""

    def __init__(self, at: int = 0, fault: Callable[[], None] | None = None) -> None:
        self.at, self.fault = at, fault
        self.names: list[str] = []

    @property
    def count(self) -> int:
        """Calls so far."""
        return len(self.names)

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """`real`, counted; call number `at` meets the fault, a write after half of its bytes."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            if self.count == self.at and self.fault is not None:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                self.fault()
            return real(*args, **kwargs)

        return call


@contextlib.contextmanager
def _watched(calls: Calls) -> Iterator[Calls]:
    before = {name: getattr(os, name) for name in CALLS}
    try:
        for name, real in before.items():
            setattr(os, name, calls.wrap(name, real))
        yield calls
    finally:
        for name, real in before.items():
            setattr(os, name, real)


def count_calls() -> contextlib.AbstractContextManager[Calls]:
    """No fault: how many calls the block makes, and which."""
    return _watched(Calls())


def fail_nth(n: int, error: int = errno.ENOSPC) -> contextlib.AbstractContextManager[Calls]:
    """Call number n (from 1) raises OSError(error), such as errno.ENOSPC or errno.EIO; the others work."""

    def fail() -> None:
        raise OSError(error, os.strerror(error))

    return _watched(Calls(n, fail))


def die_nth(n: int, number: int = signal.SIGKILL) -> contextlib.AbstractContextManager[Calls]:
    """The process kills itself at call number n (from 1). For use inside `in_child`."""
    return _watched(Calls(n, lambda: os.kill(os.getpid(), number)))


def in_child(function: Callable[[], object]) -> int:
    """Call it in a forked child and return how that ended: an exit code, or minus the signal that killed it.

    0 where the function returns; the exit code of an AsrkitError that it raises; 1 for any other exception, whose
    traceback goes to stderr. A fork of a process that has loaded everything costs milliseconds, a new one seconds.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except AsrkitError as error:
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def kill_at_step(step: int, number: int = signal.SIGKILL) -> Iterator[None]:
    """Training in this process gets the signal right after optimizer step number `step`, before that step is saved.

    SIGKILL ends the process (use `in_child`); SIGTERM and SIGUSR1 are what asrkit answers.
    """
    from asrkit.training import CTCBrain  # imports torch

    update = CTCBrain._update

    def update_then_signal(brain: Any, batch: Any) -> bool:
        done = update(brain, batch)
        if brain.position.update == step:
            os.kill(os.getpid(), number)
        return done

    CTCBrain._update = update_then_signal  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        CTCBrain._update = update  # type: ignore[method-assign]


@contextlib.contextmanager
def shifted_clock(seconds: float) -> Iterator[None]:
    """The wall clock (time.time, time.time_ns) is off by so many seconds; time.monotonic never is."""
    real, real_ns = time.time, time.time_ns
    time.time, time.time_ns = lambda: real() + seconds, lambda: real_ns() + int(seconds * 1e9)
    try:
        yield
    finally:
        time.time, time.time_ns = real, real_ns


def flip_bit(path: str | Path, bit: int) -> None:
    """Flip bit number `bit` (from 0, eight a byte) of a file where it lies. Raises RecipeError beyond its end."""
    with Path(path).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if not 0 <= bit < 8 * size:
            raise RecipeError(f"bit {bit} of {path}", possible=f"0 to {8 * size - 1}", reason="fault")
        file.seek(bit // 8)
        [byte] = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def zero_block(path: str | Path, start: int = 0, size: int = 4096) -> None:
    """Overwrite a block of a file with zeros, as a disk does that lost it; the file keeps its length."""
    with Path(path).open("r+b") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(start)
        file.write(bytes(max(0, min(size, length - start))))


def cut(path: str | Path, share: float) -> None:
    """Leave only the first `share` (0 to 1) of a file's bytes. Raises RecipeError for any other share."""
    if not 0 <= share <= 1:
        raise RecipeError(f"a share of {share} of {path}", possible="0 to 1", reason="fault")
    os.truncate(path, int(os.path.getsize(path) * share))
