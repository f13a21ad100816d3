"""Rows I of the reference: thousands of files, threads, bad files among good ones, kills, odd names, two writers.

Each test asserts exit code, reason code, the state on disk by hash, and that a healthy run afterwards succeeds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hostile import Toy, command, hashes, shared_toy
from toy import RATE, tones

import asrkit
from asrkit.cli import main
from asrkit.disk import folder_lock

pytestmark = pytest.mark.fault

Capture = pytest.CaptureFixture[str]
FORK = multiprocessing.get_context("fork")
PROGRAM = "import sys; from asrkit.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return shared_toy(tmp_path_factory)


def start(*words: str | Path | bytes, **options: Any) -> subprocess.Popen[bytes]:
    """A command in a process of its own."""
    program: list[str | bytes | Path] = [sys.executable, "-c", PROGRAM]
    return subprocess.Popen([*program, *words], **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def make_clips(folder: Path, count: int) -> list[Path]:
    """Clips of 0.3 to 0.9 seconds, no two of one length."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        path = folder / f"{number:04d}.wav"
        wave = tones("abe iou abe iou"[: 5 + number % 10], number)
        soundfile.write(path, wave[: len(wave) - number % 37], RATE)
        paths.append(path)
    return paths


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(model: Any, count: int) -> list[float]:
    """MB that five parts of `count` arrays, each of its own length, add."""
    rng = np.random.default_rng(0)
    found = []
    for part in range(5):
        before = resident()
        for number in range(count // 5):
            wave = rng.normal(0, 0.1, 2400 + 16 * (part * count // 5 + number)).astype(np.float32)
            assert model.transcribe((wave, RATE)).status == "ok"
        found.append((resident() - before) / 1e6)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_i01_memory_of_many_files(toy: Toy) -> None:
    """400 files of 400 lengths: under 100 MB after the first fifth, and the last fifth adds next to nothing."""
    assert os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64") == "64"  # what the command line sets
    before = hashes(toy.model)
    parts = growth(asrkit.load(toy.model), 400)
    assert sum(parts[1:]) < 100, parts
    assert parts[-1] < 5, parts  # 80 files
    assert hashes(toy.model) == before


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_i01_memory_of_three_thousand_files(toy: Toy) -> None:
    """Under 100 MB after the first fifth, and under 5 MB per 1,000 files in the last."""
    parts = growth(asrkit.load(toy.model), 3000)
    assert sum(parts[1:]) < 100, parts
    assert parts[-1] / 0.6 < 5, parts


def test_i02_threads_share_a_model(toy: Toy) -> None:
    """Four threads, forty calls each over the same clips: what one thread hears."""
    model = asrkit.load(toy.model)
    waves = [tones("abe iou bebe"[: 4 + number % 8], number) for number in range(10)]
    alone = [model.transcribe((wave, RATE)) for wave in waves]

    def work(first: int) -> list[Any]:
        return [model.transcribe((waves[(first + number) % 10], RATE)) for number in range(40)]

    before = hashes(toy.model)
    with ThreadPoolExecutor(4) as pool:
        for first, results in enumerate(pool.map(work, range(4))):
            for number, result in enumerate(results):
                assert result == alone[(first + number) % 10]
    assert hashes(toy.model) == before
    assert model.transcribe((waves[0], RATE)) == alone[0]


def test_i03_bad_files_among_good_ones(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """One line for each input in the order of the inputs, each with its status; exit 3 and counts at the end."""
    good = make_clips(tmp_path / "clips", 3)
    bad = {"empty.wav": b"", "page.mp3": b"<html>", "cut.wav": good[0].read_bytes()[:900], "noise.flac": b"fLaC" * 99}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    nowhere, folder = tmp_path / "nowhere.wav", tmp_path / "folder.wav"
    folder.mkdir()
    inputs = [good[0], tmp_path / "empty.wav", tmp_path / "page.mp3", good[1], tmp_path / "cut.wav", nowhere, good[2],
              tmp_path / "noise.flac"]  # fmt: skip
    before = hashes(tmp_path)
    answer = command(capsys, "transcribe", "--model", toy.model, "--format", "json", *inputs)
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert answer.code == 3
    assert [line["source"] for line in lines] == [str(path) for path in inputs]
    statuses = ["ok", "empty_file", "not_audio", "ok", "truncated", "missing", "ok", "not_audio"]
    assert [line["status"] for line in lines] == statuses
    assert "5 of 8 inputs were not transcribed: 2 not_audio" in answer.err
    assert hashes(tmp_path) == before
    healthy = command(capsys, "transcribe", "--model", toy.model, "--format", "json", *good)
    assert healthy.code == 0
    texts = {json.loads(line)["source"]: json.loads(line)["text"] for line in healthy.out.splitlines()}
    assert texts == {line["source"]: line["text"] for line in lines if line["status"] == "ok"}


def has_resume(capsys: Capture) -> bool:
    return "--resume" in command(capsys, "transcribe", "--help").out


def test_i04_killed_in_the_middle_of_a_list(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """Killed again and again, `--resume` does what is missing: no line twice, none torn, nothing done again."""
    if not has_resume(capsys):
        pytest.skip("this command line has no --resume yet")
    clips = make_clips(tmp_path / "clips", 150)
    out = tmp_path / "out"
    words = ["transcribe", "--model", toy.model, *clips, "--format", "jsonl,txt", "--output-dir", out, "--resume"]
    kept: list[bytes] = []
    killed = 0
    for kill in range(4):
        process = FORK.Process(target=main, args=([str(word) for word in words],))  # which has imported everything
        process.start()
        file, enough = out / "transcripts.jsonl", 10 * (kill + 1)
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if file.is_file() and file.read_bytes().count(b"\n") >= enough + len(kept):
                process.kill()
            time.sleep(0.002)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        lines = file.read_bytes().split(b"\n")[:-1]
        assert lines[: len(kept)] == kept  # what was acknowledged is still there
        kept = lines
    assert killed, "it was always done before it could be killed: this tests nothing"
    assert command(capsys, *words).code == 0
    records = [json.loads(line) for line in (out / "transcripts.jsonl").read_bytes().splitlines()]
    assert [record["source"] for record in records] == [str(clip) for clip in clips]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    whole = tmp_path / "whole"
    assert command(capsys, *words[:-2], whole).code == 0
    named = {path.removeprefix(str(out)): digest for path, digest in hashes(out).items()}
    assert named == {path.removeprefix(str(whole)): digest for path, digest in hashes(whole).items()}


ODD = [b"line\nbreak.wav", b"-rf.wav", b"--model=x.wav", b"ni\xf1o.wav", b"esc\x1b[31m.wav", b"tab\t.wav", b" .wav",
       "cr\r\u202e\u2028.wav".encode(), b"'quote\".wav", b"%s{0}.wav"]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes")
def test_i05_odd_names_round_trip(toy: Toy, tmp_path: Path) -> None:
    """Names that are no UTF-8, look like options, or hold controls: each one's bytes come back out of the JSON."""
    folder = tmp_path / "clips"
    folder.mkdir()
    data = make_clips(tmp_path / "made", 1)[0].read_bytes()
    for name in ODD:
        (folder / os.fsdecode(name)).write_bytes(data)
    before = hashes(folder)
    words = ["transcribe", "--model", str(toy.model), "--format", "json"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = start(*words, "--", *ODD, b"gone\x1b\n.wav", cwd=folder, env=environment)
    out, err = done.communicate(timeout=100)
    assert done.returncode == 3, err
    lines = [json.loads(line) for line in out.split(b"\n")[:-1]]
    assert [os.fsencode(line["source"]) for line in lines] == [*ODD, b"gone\x1b\n.wav"]
    assert [line["status"] for line in lines] == ["ok"] * len(ODD) + ["missing"]
    assert b"\x1b" not in err
    assert sum(b"gone\\u001b" in line for line in err.splitlines()) == 1  # one line, whatever the name holds
    assert hashes(folder) == before


def test_i05_a_terminal_is_not_obeyed(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """On a terminal the control characters of names are shown; in a pipe the bytes are what they are."""
    import pty

    folder = tmp_path / "clips"
    folder.mkdir()
    data = make_clips(tmp_path / "made", 1)[0].read_bytes()
    for name in (b"a\x1b[2J.wav", b"b\xc2\x9b31m\xe2\x80\xae.wav"):
        (folder / os.fsdecode(name)).write_bytes(data)
    words = ["transcribe", "--model", str(toy.model), str(folder)]
    terminal, shown = pty.openpty()
    process = start(*words, stdout=shown, env={**os.environ, "PYTHONUTF8": "1"})
    os.close(shown)
    seen = b""
    try:
        while piece := os.read(terminal, 4096):
            seen += piece
    except OSError:  # the other side has ended
        pass
    os.close(terminal)
    assert process.wait() == 0, process.stderr.read() if process.stderr else b""
    process.communicate()
    assert b"a\\u001b[2J.wav: " in seen
    assert b"b\\u009b31m\\u202e.wav: " in seen
    assert b"\x1b" not in seen
    answer = command(capsys, *words)
    assert answer.code == 0
    assert answer.out.count("\n") == 2
    assert "a\x1b[2J.wav: " in answer.out


def test_i05_a_closed_pipe_ends_quietly(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """`asrkit transcribe ... | head -1`: no traceback, the exit code that a shell knows, and nothing written."""
    clips = make_clips(tmp_path / "clips", 80)
    before = hashes(tmp_path)
    process = start("transcribe", "--model", toy.model, "--format", "json", *clips)
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["status"] == "ok"
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (141, b"")
    assert hashes(tmp_path) == before
    assert command(capsys, "transcribe", "--model", toy.model, clips[0]).code == 0


def test_i06_two_writers_of_one_folder(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """The second is refused while the first lives, and the dead hold nothing."""
    clips, out = make_clips(tmp_path / "clips", 3), tmp_path / "out"
    words = ["transcribe", "--model", toy.model, *clips, "--output-dir", out]
    assert command(capsys, *words).code == 0
    before = hashes(out)
    assert len(before) == 3
    holder = "import sys, time; from pathlib import Path; from asrkit.disk import folder_lock\n"
    holder += "with folder_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(out)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    answer = command(capsys, *words)
    assert (answer.code, answer.reason) == (6, "in_use"), answer.err
    assert hashes(out) == before
    process.kill()
    process.wait()
    process.stdout.close()
    assert command(capsys, *words).code == 0
    assert hashes(out) == before
    with folder_lock(out):
        assert command(capsys, *words).code == 6
