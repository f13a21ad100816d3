"""Fixtures of the fault tests: a trial, and nothing that is paid for in every one of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trials import Trial


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the disk: killing a process loses nothing that was written, synced or not. That all is synced,
    in the right order, is a test of its own (test_checkpoints)."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def trial(tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None) -> Trial:
    return Trial(tmp_path, capfd)
