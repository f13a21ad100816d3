"""Every benchmark still runs, at sizes that say nothing: what they call must not change behind their backs.

Those of seconds are part of every run of the tests, the others are `slow`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from toy import make_corpus

HELPERS = {"epoch_ours", "epoch_peer", "fault_rows"}  # run by others
# What each is given, `{release}` being a corpus of twenty clips, and something that it must print.
FAST = {
    "recurrent": (["--shapes", "3,12,8,8", "--stack", "0", "--repeats", "1", "--threads", "1"], "gru, (B, T, C, H)"),
    "features": (["--repeats", "1"], "60 s: MelSpectrogram+log"),
    "cures": (["--width", "8", "--batch", "2", "--frames", "60", "--repeats", "1"], "residual_no_relu"),
    "seeds": (["--studies", "3", "--most", "4"], "one extension"),
    "index": (["--rows", "2000"], "of 2000 rows"),
    "preparation": (["{release}", "--clips", "8", "--repeats", "1", "--width", "8"], "x real time"),
    "epoch": (
        ["{release}", "--clips", "16", "--epochs", "1", "--repeats", "1", "--models", "model3_conv", "--width", "4",
         "--batch-frames", "400", "--threads", "1"],
        "dev CER [%]",
    ),
}  # fmt: skip
SLOW = {
    "beam": (["--seconds", "0.3", "--repeats", "1"], "flat"),
    "diagnosis": (["--root", "{release}", "--epochs", "1", "--threads", "1"], "worst"),
    "synth": (["--hours", "0.005"], "flac"),
    "transcribe": (
        ["{release}/clips", "--clips", "4", "--width", "16", "--threads", "1", "--repeats", "1"],
        "EncoderASR",
    ),
    "peer": (["{shared}/speechbrain_asr_ctc", "--seeds", "1"], "`sequence_batch_norm` |"),
    "faults_peer": (["C01"], "C01"),
}
BY_HAND = {"reliability", "hostile_peer"}
"""Not run here: `reliability` reads whole test runs, `hostile_peer` writes files that are harmless to asrkit alone."""


def test_every_benchmark_is_run_or_named(root: Path) -> None:
    found = {path.stem for path in (root / "benchmarks").glob("*.py")}
    assert found == HELPERS | FAST.keys() | SLOW.keys() | BY_HAND


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty clips in Common Voice layout, as mp3, with the table of all of them."""
    folder = make_corpus(tmp_path_factory.mktemp("release") / "es")
    tables = [(folder / f"{split}.tsv").read_text().splitlines() for split in ("train", "dev", "test")]
    rows = [tables[0][0], *(row for table in tables for row in table[1:])]
    (folder / "validated.tsv").write_text("\n".join(rows).replace(".wav", ".mp3") + "\n")
    for path in sorted((folder / "clips").glob("*.wav")):
        samples, rate = soundfile.read(path, dtype="float32")
        soundfile.write(path.with_suffix(".mp3"), np.tile(samples, 2), rate)
        path.unlink()
    for split in ("train", "dev", "test"):
        path = folder / f"{split}.tsv"
        path.write_text(path.read_text().replace(".wav", ".mp3"))
    return folder


def ran(root: Path, name: str, arguments: list[str], **places: Any) -> str:
    command = [sys.executable, str(root / "benchmarks" / f"{name}.py"), *(text.format(**places) for text in arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=600)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: a goal was missed, as it may be at such a size
    assert done.stdout, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", FAST)
def test_it_runs(root: Path, corpus: Path, name: str) -> None:
    arguments, line = FAST[name]
    assert line in ran(root, name, arguments, release=corpus)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_it_runs_slowly(root: Path, corpus: Path, shared_data: Path, name: str) -> None:
    arguments, line = SLOW[name]
    assert line in ran(root, name, arguments, release=corpus, shared=shared_data)
