"""Every format of a transcript, read back by somebody else's reader."""

from __future__ import annotations

import csv
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import srt
import textgrids
import webvtt

from asrkit.cli.transcribe_outputs import ALL_FORMATS
from asrkit.errors import RecipeError
from asrkit.transcribe.formats import CUE_LETTERS, CUE_SECONDS, FORMATS, cues
from asrkit.transcribe.transcript import Transcript, Word


def spoken(count: int, seed: int = 0) -> Transcript:
    """A transcript of random words and pauses; times in whole milliseconds."""
    random = np.random.default_rng(seed)
    words, at = [], 0.0
    for _ in range(count):
        at += float(random.choice([0.01, 0.06, 0.3, 1.2]))
        word = "".join(random.choice(list("aeiouñbcdé'"), random.integers(1, 12)))
        end = at + float(random.integers(40, 900)) / 1000
        words.append(Word(word, round(at, 3), round(end, 3), round(float(random.uniform(0, 1)), 4)))
        at = end
    return Transcript(f"dir/clip {seed}.mp3", " ".join(w.word for w in words), tuple(words), round(at + 0.5, 3))


LONG = [spoken(count, seed) for seed, count in enumerate((1, 2, 40, 3000))]


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def test_the_command_line_knows_all_formats() -> None:
    assert tuple(FORMATS) == ALL_FORMATS


@pytest.mark.parametrize("transcript", LONG, ids=lambda t: f"{len(t.words)} words")
def test_cues_can_be_read(transcript: Transcript) -> None:
    found = cues(transcript.words)
    assert [word for cue in found for word in cue] == list(transcript.words)
    for cue in found:
        assert len(" ".join(word.word for word in cue)) <= CUE_LETTERS
        assert len(cue) == 1 or cue[-1].end - cue[0].start <= CUE_SECONDS


@pytest.mark.parametrize("transcript", LONG, ids=lambda t: f"{len(t.words)} words")
def test_srt(transcript: Transcript) -> None:
    parsed = list(srt.parse(transcript.to("srt"), ignore_errors=False))
    wanted = cues(transcript.words)
    assert [cue.index for cue in parsed] == list(range(1, len(wanted) + 1))
    assert " ".join(" ".join(cue.content.split()) for cue in parsed) == transcript.text
    for cue, words in zip(parsed, wanted, strict=True):
        assert cue.start.total_seconds() == pytest.approx(words[0].start, abs=5e-4)
        assert cue.end.total_seconds() == pytest.approx(words[-1].end, abs=5e-4)
        assert all(len(line) <= 60 for line in cue.content.splitlines())


@pytest.mark.parametrize("transcript", LONG, ids=lambda t: f"{len(t.words)} words")
def test_vtt(transcript: Transcript) -> None:
    parsed = list(webvtt.from_string(transcript.to("vtt")))
    wanted = cues(transcript.words)
    assert " ".join(" ".join(cue.text.split()) for cue in parsed) == transcript.text
    for cue, words in zip(parsed, wanted, strict=True):
        assert seconds(cue.start) == pytest.approx(words[0].start, abs=5e-4)
        assert seconds(cue.end) == pytest.approx(words[-1].end, abs=5e-4)


def test_vtt_escapes_what_would_be_markup() -> None:
    word = Word("a<b>&c", 0.0, 1.0, 1.0)
    assert "\na&lt;b&gt;&amp;c\n" in Transcript("x", word.word, (word,), 1.0).to("vtt")


@pytest.mark.parametrize("transcript", LONG, ids=lambda t: f"{len(t.words)} words")
def test_tsv(transcript: Transcript) -> None:
    rows = list(csv.DictReader(io.StringIO(transcript.to("tsv")), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert " ".join(row["text"] for row in rows) == transcript.text
    for row, words in zip(rows, cues(transcript.words), strict=True):
        assert (int(row["start"]), int(row["end"])) == (round(1000 * words[0].start), round(1000 * words[-1].end))


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json(form: str) -> None:
    (line,) = LONG[2].to(form).splitlines()
    data = json.loads(line)
    assert data == {
        "source": LONG[2].source,
        "text": LONG[2].text,
        "words": [vars(word) for word in LONG[2].words],
        "seconds": LONG[2].seconds,
        "status": "ok",
        "message": "",
    }
    assert "ñ" in line  # letters, not escapes


def test_json_of_a_name_that_is_not_utf8() -> None:
    name = "caf\udce9.mp3"
    text = Transcript(name, "ñ").to("jsonl")
    assert json.loads(text.encode())["source"] == name


@pytest.mark.parametrize("transcript", LONG, ids=lambda t: f"{len(t.words)} words")
def test_ctm(transcript: Transcript) -> None:
    rows = [line.split() for line in transcript.to("ctm").splitlines()]
    assert {(row[0], row[1]) for row in rows} == {(transcript.source.replace(" ", "%20"), "1")}
    for row, word in zip(rows, transcript.words, strict=True):
        assert row[4] == word.word
        assert [float(row[2]), float(row[2]) + float(row[3]), float(row[5])] == pytest.approx(
            [word.start, word.end, word.confidence], abs=1.1e-3
        )


@pytest.mark.parametrize("transcript", LONG, ids=lambda t: f"{len(t.words)} words")
def test_textgrid(transcript: Transcript, tmp_path: Path) -> None:
    path = tmp_path / "x.TextGrid"
    path.write_text(transcript.to("TextGrid"), encoding="utf-8")
    grid = textgrids.TextGrid(str(path))
    assert (grid.xmin, grid.xmax) == (0, transcript.seconds)
    assert list(grid) == ["words", "cues"]
    for name in grid:
        tier = grid[name]
        assert (tier[0].xmin, tier[-1].xmax) == (0, transcript.seconds)
        assert all(one.xmax == two.xmin for one, two in pairwise(tier))  # no gap, no overlap
        assert all(interval.xmin < interval.xmax for interval in tier)
    spoken_words = [interval for interval in grid["words"] if interval.text]
    assert [(i.xmin, i.xmax, str(i.text)) for i in spoken_words] == [(w.start, w.end, w.word) for w in transcript.words]


def test_textgrid_of_touching_and_quoted_words(tmp_path: Path) -> None:
    words = (Word('a"b', 0.0, 0.5, 1.0), Word("c", 0.4, 0.4, 1.0), Word("d", 0.5, 0.9, 1.0), Word("e", 0.8, 2.0, 1.0))
    path = tmp_path / "x.TextGrid"
    path.write_text(Transcript("x", 'a"b c d e', words, 1.5).to("TextGrid"), encoding="utf-8")
    tier = textgrids.TextGrid(str(path))["words"]
    assert [(i.xmin, i.xmax) for i in tier] == [(0.0, 0.5), (0.5, 0.9), (0.9, 2.0)]
    assert 'a""b' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ALL_FORMATS)
def test_nothing_heard(form: str, tmp_path: Path) -> None:
    """Silence is a valid document of every format."""
    text = Transcript("quiet.wav", "", (), 3.0).to(form)
    if form == "srt":
        assert list(srt.parse(text)) == []
    elif form == "vtt":
        assert list(webvtt.from_string(text)) == []
    elif form == "TextGrid":
        (tmp_path / "x").write_text(text)
        assert [i.text for i in textgrids.TextGrid(str(tmp_path / "x"))["words"]] == [""]
    else:
        assert text.strip() == {"tsv": "start\tend\ttext"}.get(form, text.strip())
        assert form not in ("txt", "ctm") or not text.strip()


def test_unknown_format() -> None:
    with pytest.raises(RecipeError, match=r"TextGrid.*did you mean 'srt'") as error:
        LONG[0].to("str")
    assert error.value.reason == "format"
