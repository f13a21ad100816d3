"""`asrkit transcribe` on hundreds of files, good and bad, from folders, tables and standard input; and going on."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import srt
import textgrids
from test_av_reader import encode
from toy import RATE, tones, trained_bundle

import asrkit
from asrkit.cli import main
from asrkit.cli.transcribe_inputs import StandardInput
from asrkit.transcribe import Transcriber
from asrkit.transcribe.memory import batches

ODD = ["a b.wav", "-x.wav", "new\nline.wav", "quote\"'.wav", "ñandú 日本.wav", "%20.wav", "$(id).wav", "caf\udce9.wav"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it hears the tones."""
    return trained_bundle(tmp_path_factory.mktemp("trained"))


def audio(form: str, seed: int) -> bytes:
    """A clip of 0.2 to 0.9 s."""
    random = np.random.default_rng(seed)
    x = tones("".join(random.choice(list("abeiou "), random.integers(4, 15))), seed)
    if form == "m4a":
        return encode(x[:, None], "ipod", "aac", RATE)
    file = io.BytesIO()
    soundfile.write(file, x, RATE, format=form)
    return file.getvalue()


def mixed(folder: Path, count: int = 500) -> dict[str, str]:
    """That many files in a tree; name below the folder -> the status that each must get."""
    wav = audio("WAV", 0)
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(RATE, np.int16), RATE, format="WAV")
    tiny = io.BytesIO()
    soundfile.write(tiny, np.ones(30) * 0.1, RATE, format="WAV")
    bad = [
        ("empty.mp3", b"", "empty_file"), ("page.mp3", b"<!DOCTYPE html><html>404", "not_audio"),
        ("cut.wav", wav[: len(wav) // 2], "truncated"), ("zip.ogg", b"PK\3\4" + bytes(300), "not_audio"),
        ("quiet.wav", silence.getvalue(), "ok"), ("tiny.wav", tiny.getvalue(), "too_short"),
        ("film.mp4", b"\0\0\0\x20ftypisom" + bytes(400), "not_audio"), ("text.flac", b"hola\n", "not_audio"),
    ]  # fmt: skip
    expected = {}
    for number in range(count):
        place = folder / f"{number % 7}" / ("deep" if number % 3 else ".")
        place.mkdir(parents=True, exist_ok=True)
        if number % 5 == 4:
            name, data, status = bad[number // 5 % len(bad)]
        else:
            form = ("WAV", "FLAC", "OGG", "MP3", "m4a")[number % 11 % 5]
            name, data, status = f"clip.{form.lower()}", audio(form, number), "ok"
            if number < 40:
                name = ODD[number % len(ODD)]
        path = place / f"{number:03d}{name}"
        path.write_bytes(data)
        expected[os.path.relpath(path, folder)] = status
    return expected


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_five_hundred_mixed_files(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the folder, each with its status; nothing changes with workers or the size of batches."""
    expected = mixed(tmp_path / "in")
    assert len(expected) == 500
    assert sum(status != "ok" for status in expected.values()) > 80
    command = ["transcribe", "--model", str(bundle), str(tmp_path / "in"), "--format", "jsonl", "--output-dir"]
    assert main([*command, str(tmp_path / "one"), "--jobs", "1"]) == 3
    said = capsys.readouterr().err
    assert main([*command, str(tmp_path / "four"), "--jobs", "4", "--batch-seconds", "3"]) == 3
    found = records(tmp_path / "one" / "transcripts.jsonl")
    order = sorted((tmp_path / "in").rglob("*"))
    assert [os.fsencode(record["source"]) for record in found] == [os.fsencode(p) for p in order if p.is_file()]
    statuses = {os.path.relpath(record["source"], tmp_path / "in"): record["status"] for record in found}
    assert statuses == expected
    heard = [record for record in found if record["status"] == "ok" and "quiet" not in record["source"]]
    assert np.mean([bool(record["text"]) for record in heard]) > 0.95
    for one, four in zip(found, records(tmp_path / "four" / "transcripts.jsonl"), strict=True):
        assert (one["source"], one["text"], one["status"]) == (four["source"], four["text"], four["status"])
    wrong = sum(status != "ok" for status in expected.values())
    assert sum(line.startswith("asrkit: ") for line in said.splitlines()) == wrong + 1
    assert f"asrkit: {wrong} of 500 inputs were not transcribed: " in said


def test_the_text_of_a_recording_is_its_own(bundle: Path, shared_data: Path) -> None:
    """Real recordings of three kinds, alone, together, backwards, in small batches, with workers, from threads."""
    clips = [
        *sorted((shared_data / "cv-corpus-6.1-2020-12-11" / "es" / "clips").glob("*.mp3"))[:8],
        *sorted((shared_data / "tuxpaint_stamps_es" / "clips").rglob("*.ogg"))[:6],
        *sorted((shared_data / "asterisk_core_es" / "clips").rglob("*.wav"))[:10],
    ]
    model = asrkit.load(bundle, device="cpu")
    alone = [model.transcribe(clip).text for clip in clips]
    assert sum(map(bool, alone)) > 15, "a model that says nothing of anything proves nothing"
    assert [t.text for t in model.transcribe(clips)] == alone
    assert [t.text for t in model.transcribe(clips[::-1])][::-1] == alone
    assert [t.text for t in model.stream(clips, jobs=3)] == alone
    assert [t.text for t in model.transcribe(clip for clip in clips)] == alone
    answers: dict[int, list[str]] = {}

    def work(number: int) -> None:
        answers[number] = [t.text for t in model.transcribe(clips[number::4])]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i % 4][i // 4] for i in range(len(clips))] == alone
    model.batch_seconds = 7.0
    assert [t.text for t in model.transcribe(clips)] == alone


def test_a_generator_is_asked_as_results_are_taken(bundle: Path) -> None:
    model: Transcriber = asrkit.load(bundle, device="cpu")
    asked = 0

    def clips() -> Any:
        nonlocal asked
        for seed in range(1000):
            asked += 1
            yield (tones("abe", seed), RATE)

    results = model.transcribe(clips())
    assert next(results).status == "ok"
    assert asked < 200
    results.close()


def test_batches_hold_what_they_may() -> None:
    random = np.random.default_rng(0)
    for limit in (1.0, 30.0, 82.0, 1e6):
        seconds = list(random.uniform(0.1, 25, 64))
        found = batches(seconds, limit)
        assert sorted(place for batch in found for place in batch) == list(range(64))
        for batch in found:
            padded = max(seconds[place] for place in batch) * len(batch)
            assert len(batch) == 1 or padded <= limit
            assert len(batch) <= 4 or sum(seconds[place] for place in batch) >= 0.799 * padded
        for one, two in pairwise(found):  # similar lengths together
            assert max(seconds[place] for place in one) <= min(seconds[place] for place in two)
    assert [len(batch) for batch in batches([3.0] * 16, 41.0)] == [13, 3]


def test_without_pyav_the_install_line_is_said(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.m4a").write_bytes(audio("m4a", 1))
    monkeypatch.setattr("asrkit.registry.loadable", lambda kind: {})
    assert main(["transcribe", "--model", str(bundle), str(tmp_path / "a.m4a")]) == 3
    said = capsys.readouterr().err
    assert f"asrkit: needs_pyav: {tmp_path / 'a.m4a'} is m4a, mp4, webm or alike, which needs PyAV; fix: pip " in said
    assert "pip install 'asrkit[audio]'" in said


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(("a.wav", "b.wav", "deep/a.wav", "deep/c.wav", "z.wav")):
        (folder / name).write_bytes(audio("WAV", seed))
    (folder / "b2.mp3").write_text("<html>")
    return folder


def test_several_formats_at_once(bundle: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["transcribe", "--model", str(bundle), str(clips), "--format", "srt,TextGrid,jsonl,txt", "--output-dir"]
    assert main([*command, str(out)]) == 3
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    stems = ("a", "b", "deep/a", "deep/c", "z")
    assert names == {f"{stem}.{form}" for stem in stems for form in ("srt", "TextGrid", "txt")} | {"transcripts.jsonl"}
    for record in records(out / "transcripts.jsonl"):
        stem = out / Path(record["source"]).relative_to(clips).with_suffix("")
        if record["status"] == "ok":
            assert stem.with_suffix(".txt").read_text(encoding="utf-8") == record["text"] + "\n"
            cues = srt.parse(stem.with_suffix(".srt").read_text(encoding="utf-8"))
            assert " ".join(" ".join(cue.content.split()) for cue in cues) == record["text"]
            grid = textgrids.TextGrid(str(stem.with_suffix(".TextGrid")))
            assert " ".join(str(i.text) for i in grid["words"] if i.text) == record["text"]


def test_resume_gives_what_one_run_gives(
    bundle: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed anywhere, a run leaves a beginning of its file, perhaps a torn line; nothing is there twice afterwards."""
    command = ["transcribe", "--model", str(bundle), str(clips), str(clips / "a.wav"), "--format", "jsonl,txt"]
    assert main([*command, "--output-dir", str(tmp_path / "whole")]) == 3
    whole = (tmp_path / "whole" / "transcripts.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    random = np.random.default_rng(0)
    for place in (0, 1, ends[0], ends[0] + 1, ends[3] - 1, *random.integers(0, len(whole), 5), len(whole)):
        out = tmp_path / f"cut{place}"
        out.mkdir(exist_ok=True)
        (out / "transcripts.jsonl").write_bytes(whole[:place])
        capsys.readouterr()
        assert main([*command, "--output-dir", str(out), "--resume"]) == 3
        assert (out / "transcripts.jsonl").read_bytes() == whole
        done = sum(end <= place for end in ends)
        said = capsys.readouterr().err
        assert (f"{done} of {len(ends)} inputs are there already" in said) == (done > 0)
        assert f"1 of {len(ends)} inputs were not transcribed: 1 not_audio" in said
    for name in ("a.wav.txt", "deep/a.txt"):
        (out / name).unlink()
    later = [*command[:-1], "jsonl,txt,srt", "--output-dir", str(out), "--resume"]
    assert main(later) == 3  # files that are missing, or of a format that came later, are made from the lines
    for place in (tmp_path / "whole").rglob("*.txt"):
        made = out / place.relative_to(tmp_path / "whole")
        assert made.read_text() == place.read_text()
        assert made.with_suffix(".srt").is_file()
    assert main([*command, "--output-dir", str(out)]) == 3  # without --resume it begins anew
    assert (out / "transcripts.jsonl").read_bytes() == whole


def test_skip_existing_does_the_missing_ones(bundle: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["transcribe", "--model", str(bundle), str(clips), "--format", "txt,srt", "--output-dir", str(out)]
    assert main(command) == 3
    (out / "a.txt").write_text("mine")
    (out / "deep" / "c.srt").unlink()
    (out / "deep" / "c.txt").write_text("stale")
    assert main([*command, "--skip-existing"]) == 3
    assert (out / "a.txt").read_text() == "mine"
    assert (out / "deep" / "c.txt").read_text() != "stale"
    assert (out / "deep" / "c.srt").is_file()
    assert main([*command, "--resume"]) == 3
    assert (out / "a.txt").read_text() == "mine"


def test_an_input_without_audio_is_a_line_beside_the_rest(
    bundle: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips)
    (clips / "none").mkdir()
    inputs = ["*.nothing", "a.wav", "gone[1].wav", "none"]
    command = ["transcribe", "--model", str(bundle), *inputs, "--format", "jsonl,txt"]
    assert main([*command, "--output-dir", str(tmp_path / "out")]) == 3
    found = records(tmp_path / "out" / "transcripts.jsonl")
    assert [(record["source"], record["status"]) for record in found] == [
        ("*.nothing", "missing"), ("a.wav", "ok"), ("gone[1].wav", "missing"), ("none", "not_audio"),
    ]  # fmt: skip
    assert "3 of 4 inputs were not transcribed: 2 missing, 1 not_audio" in capsys.readouterr().err


def given(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "m4a"])
def test_audio_from_standard_input(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    data = audio(form, 3)
    given(monkeypatch, data)
    assert main(["transcribe", "--model", str(bundle), "-", "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["source"], record["text"]) == ("stdin", asrkit.load(bundle, device="cpu").transcribe(data).text)


def test_paths_from_standard_input(
    bundle: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "ID3 caf\udce9.wav").write_bytes(audio("WAV", 9))
    names = [clips / "ID3 caf\udce9.wav", clips / "a.wav", clips / "nowhere.wav", clips / "b2.mp3", clips / "z.wav"]
    monkeypatch.chdir(clips)
    lines = [os.fsencode(path.name) for path in names]
    given(monkeypatch, b"\n".join([lines[0], b"", *lines[1:]]) + b"\r\n")
    assert main(["transcribe", "--model", str(bundle), "-"]) == 3
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert [os.fsencode(record["source"]) for record in found] == lines
    assert [record["status"] for record in found] == ["ok", "ok", "missing", "not_audio", "ok"]
    given(monkeypatch, b"a.wav")
    assert main(["transcribe", "--model", str(bundle), "-", "--format", "txt"]) == 0
    assert capsys.readouterr().out == f"a.wav: {found[1]['text']}\n"


def test_nothing_on_standard_input_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, b"")
    assert main(["transcribe", "--model", str(tmp_path), "-"]) == 3
    assert "error[no_audio]: standard input is empty" in capsys.readouterr().err


def test_a_line_is_answered_before_the_next_one_comes() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        pipe.write(b"a.wav\n")
        groups = StandardInput(stream).groups()
        assert next(groups) == [Path("a.wav")]
        pipe.write("ñ b.wav\n".encode())
        assert next(groups) == [Path("ñ b.wav")]
        pipe.close()
        assert list(groups) == []


def test_tables(bundle: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clips / "list.tsv").write_text("path\tsentence\nz.wav\tabe\ndeep/c.wav\tiou\nz.wav\tabe\n")
    command = ["transcribe", "--model", str(bundle), "--format", "jsonl"]
    assert main([*command, str(clips / "list.tsv"), str(clips / "a.wav")]) == 0
    said = capsys.readouterr()
    found = [json.loads(line)["source"] for line in said.out.splitlines()]
    assert [os.path.relpath(name, clips) for name in found] == ["z.wav", "deep/c.wav", "z.wav", "a.wav"]
    assert "real-time factor" in said.err
    assert main([*command, "--reference", str(clips / "list.tsv")]) == 0
    assert "WER" in capsys.readouterr().err


def test_pieces_of_files(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows with start and end have the text of the piece as a file of its own, and outputs and references too."""
    words = ["abe", "iou", "eba"]
    soundfile.write(tmp_path / "talk.wav", np.concatenate([tones(word, 1) for word in words]), RATE, "FLOAT")
    ends = np.cumsum([len(tones(word, 1)) for word in words]) / RATE
    rows = [("", ends[0], "abe"), (ends[0], ends[1], "iou"), (ends[1], "", "eba"), ("", "", "abe"), (9, 10, "a")]
    lines = [f"talk.wav\t{start}\t{end}\t{text}\n" for start, end, text in rows]
    (tmp_path / "parts.tsv").write_text("path\tstart\tend\tsentence\n" + "".join(lines))
    out = tmp_path / "out"
    command = ["transcribe", "--model", str(bundle), "--reference", str(tmp_path / "parts.tsv")]
    assert main([*command, "--format", "jsonl,txt", "--output-dir", str(out)]) == 3
    assert "over 4 references" in capsys.readouterr().err
    first, second = (f"{end:.3f}" for end in ends[:2])
    names = [f"talk#0.000-{first}", f"talk#{first}-{second}", f"talk#{second}", "talk", "talk#9.000-10.000"]
    found = records(out / "transcripts.jsonl")
    assert [Path(record["source"]).name for record in found] == [f"{name}.wav" for name in names]
    assert [record["status"] for record in found] == ["ok"] * 4 + ["no_samples"]
    model = asrkit.load(bundle, device="cpu")
    alone = [model.transcribe((tones(word, 1), RATE)) for word in words]
    assert all(one.text for one in alone)
    assert [record["text"] for record in found[:3]] == [one.text for one in alone]
    assert [record["seconds"] for record in found[:3]] == [one.seconds for one in alone]
    assert {path.name for path in out.glob("*.txt")} == {f"{name}.txt" for name in names[:4]}
    (tmp_path / "wrong.tsv").write_text("path\tstart\tend\ntalk.wav\t2\t1\n")
    assert main(["transcribe", "--model", str(bundle), str(tmp_path / "wrong.tsv")]) == 3
    assert "error[bad_number]: wrong.tsv:2: end 1 is not after start 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["a.wav", "--format", "doc"], "error[format]"),
        (["a.wav", "b.wav", "--format", "srt"], "give --output-dir"),
        (["a.wav", "--format", "txt,srt"], "give --output-dir"),
        (["a.wav", ""], "an input without a name"),
        (["-", "a.wav"], "`-` beside other inputs"),
        (["a.wav", "--resume"], "--resume without --output-dir"),
        (["a.wav", "--skip-existing"], "--skip-existing without --output-dir"),
        (["a.wav", "--skip-existing", "--output-dir", "out", "--format", "jsonl"], "use --resume"),
        (["a.wav", "--first", "0"], "--first: '0'; possible: a whole number from 1"),
        (["a.wav", "--first", "-2"], "--first: '-2'; possible: a whole number from 1"),
        (["a.wav", "--jobs", "0"], "--jobs 0"),
        (["a.wav", "--batch-seconds", "-1"], "--batch-seconds -1"),
    ],
)
def test_usage(bundle: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "--model", str(bundle), *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_one_subtitle_on_the_terminal(bundle: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "--model", str(bundle), str(clips / "a.wav"), "--format", "vtt"]) == 0
    assert capsys.readouterr().out.startswith("WEBVTT\n\n00:00:0")
