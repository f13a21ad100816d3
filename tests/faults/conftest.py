"""Fixtures of the fault tests: a trial, and nothing that is paid for in every one of them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
from trials import Trial

from asrkit import registry


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points are read once (installed packages do not change here: a second per run), and no test waits for the
    disk: killing a process loses nothing that was written, synced or not. That all is synced, in the right order, is
    a test of its own (test_checkpoints)."""
    monkeypatch.setattr(registry, "_entries", _entries)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


_entries = functools.cache(registry._entries)


@pytest.fixture
def trial(tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None) -> Trial:
    return Trial(tmp_path, capfd)
