"""Memory that is freed is used again: counted in page faults, in a process of its own as it cannot be undone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
import torch
from asrkit.malloc import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else "left")
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):  # 40 MiB: over glibc's own limit of 32, so each is mapped anew
    torch.empty(10 << 20).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has these thresholds")


def faults(keep: str, **environment: str) -> tuple[str, int]:
    """What the call returned, and the page faults of a hundred tensors, one after the other."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, keep]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=kept | environment)
    answer, count = done.stdout.split()
    return answer, int(count)


@glibc
def test_what_was_freed_is_used_again() -> None:
    answer, kept = faults("keep")
    _, given_back = faults("leave")
    assert answer == "True"
    assert 5 * kept < given_back  # the pages of a few of the hundred


@glibc
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_users_own_setting_stays(name: str) -> None:
    assert faults("keep", **{name: "" if name.startswith("GLIBC") else "131072"})[0] == "False"


def test_nothing_is_done_where_there_is_no_such_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    from asrkit import malloc

    class Other:
        def __getattr__(self, name: str) -> None:
            raise AttributeError(name)

    for name in malloc.SET_BY_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda _: Other())
    assert malloc.keep_freed_memory() is False
