"""asrkit.testing.faults: each fault is the one that was asked for, once, and leaves nothing patched."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from toy import toy_recipe

from asrkit.errors import RecipeError, StorageError
from asrkit.preparation import prepare
from asrkit.testing import faults


def _write(path: Path, data: bytes = b"12345678") -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, data)
    os.close(descriptor)


def test_every_fault_of_the_corpus_is_excluded_under_its_own_name(tmp_path: Path) -> None:
    corpus = faults.tiny_corpus(tmp_path / "cv", list(faults.FAULTS), train=16)
    prepared = prepare(toy_recipe(tmp_path, corpus, ("data.max_bad", 0.9)))
    found = {line["id"]: line["excluded"] for line in prepared.report.lines if "excluded" in line}
    assert found == {f"common_voice_es_{i}": name for i, name in enumerate(faults.FAULTS)}
    assert len(prepared.splits["train"]) == 16 - len(faults.FAULTS)
    with pytest.raises(RecipeError, match="did you mean 'truncated'"):
        faults.tiny_corpus(tmp_path / "other", ["truncate"])
    with pytest.raises(RecipeError, match="3 faults for 2 clips"):
        faults.tiny_corpus(tmp_path / "other", ["missing"] * 3, train=2)


def test_the_nth_call_fails_and_no_other(tmp_path: Path) -> None:
    real = os.write
    with faults.count_calls() as calls:
        _write(tmp_path / "a")
    assert calls.names == ["open", "write"]
    with faults.fail_nth(2, errno.EIO), pytest.raises(OSError, match="Input/output") as caught:
        _write(tmp_path / "b")
    assert caught.value.errno == errno.EIO
    assert (tmp_path / "b").read_bytes() == b"1234", "half of a write is done"
    with faults.fail_nth(3) as calls:
        _write(tmp_path / "c")
    assert (calls.count, os.write) == (2, real)


def test_death_and_children(tmp_path: Path) -> None:
    with faults.die_nth(2):
        assert faults.in_child(lambda: _write(tmp_path / "a")) == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"1234"
    with faults.die_nth(1, signal.SIGTERM):
        assert faults.in_child(lambda: _write(tmp_path / "b")) == -signal.SIGTERM
    assert not (tmp_path / "b").exists()
    assert faults.in_child(lambda: None) == 0

    def full() -> None:
        raise StorageError("full")

    assert faults.in_child(full) == 5


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    faults.flip_bit(path, 8 * 3 + 1)
    assert path.read_bytes() == bytes([0, 1, 2, 1, *range(4, 100)])
    faults.flip_bit(path, 8 * 3 + 1)
    faults.zero_block(path, 90, 50)
    assert path.read_bytes() == bytes(range(90)) + bytes(10)
    faults.cut(path, 0.25)
    assert path.read_bytes() == bytes(range(25))
    with pytest.raises(RecipeError, match="0 to 199"):
        faults.flip_bit(path, 200)
    for share in (-0.1, 1.5, float("nan")):  # 1.5 would make the file longer, with zeros
        with pytest.raises(RecipeError, match="0 to 1"):
            faults.cut(path, share)
    assert path.read_bytes() == bytes(range(25))


def test_the_clock() -> None:
    real = time.time
    with faults.shifted_clock(-3600):
        assert time.time() == pytest.approx(real() - 3600, abs=5)
        assert time.time_ns() == pytest.approx((real() - 3600) * 1e9, abs=5e9)
    assert time.time is real
