"""`asrkit data check` and `stats`: numbers against independent counts of real releases, and one clip for each fault."""

from __future__ import annotations

import csv
import html.parser
import json
import re
import shutil
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asrkit.cli import main
from asrkit.corpus import Utterance, split_hash
from asrkit.corpus.selection import DataReport
from asrkit.survey import Survey, survey
from asrkit.survey.audio import Listener, sample
from asrkit.survey.charts import histogram, letters, ranked
from asrkit.survey.figures import Histogram
from asrkit.survey.page import page
from asrkit.survey.text import bars, check_text, stats_text

HEADER = "client_id\tpath\tsentence\tage\tgender\taccents"
SPANISH = " abcdefghijklmnopqrstuvwxyzáéíñóúü"


def tone(path: Path, seconds: float = 1.0, level: float = 0.3, rate: int = 16000, pitch: float = 200.0) -> None:
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, (level * np.sin(2 * np.pi * pitch * time)).astype(np.float32), rate)


def release(folder: Path, durations: str = "", **tables: list[tuple[str, ...]]) -> Path:
    """Tables of (speaker, clip, sentence, age, gender, accents); a clip that is named and not there gets a tone."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for number, (split, rows) in enumerate(tables.items()):
        lines = ["\t".join((*row, "", "", "")[:6]) for row in rows]
        (folder / f"{split}.tsv").write_text("\n".join([HEADER, *lines, ""]), encoding="utf-8")
        for place, row in enumerate(rows):
            if not (folder / "clips" / row[1]).exists() and not row[1].startswith("gone"):
                tone(folder / "clips" / row[1], pitch=200 + 10 * place + 200 * number)
    if durations:
        (folder / "clip_durations.tsv").write_text("clip\tduration[ms]\n" + durations, encoding="utf-8")
    return folder


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """One clip for each fault in train."""
    clips = tmp_path / "es" / "clips"
    clips.mkdir(parents=True)
    (clips / "empty.wav").touch()
    (clips / "web.mp3").write_text("<html>not found</html>")
    tone(clips / "long.wav", 21.0)
    tone(clips / "short.wav", 1.0)
    tone(clips / "quiet.wav", level=1e-5)
    tone(clips / "loud.wav", level=40.0)
    soundfile.write(clips / "loud.wav", np.full(16000, 9.0, np.float32), 16000, subtype="FLOAT")
    soundfile.write(clips / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    soundfile.write(clips / "clipped.wav", np.sign(np.sin(np.arange(16000))), 16000)
    tone(clips / "telephone.wav", rate=8000)
    names = ["good", "gone", "empty", "web", "long", "short", "quiet", "loud", "nan", "clipped", "telephone"]
    rows = [("a", f"{n}.mp3" if n == "web" else f"{n}.wav", f"frase {n}") for n in names]
    rows += [("a", "silent.wav", "..."), ("a", "digits.wav", "son 25"), ("a", "good.wav", "frase good")]
    return release(tmp_path / "es", "short.wav\t3000\ngood.wav\t1000\n", train=rows, dev=[("b", "dev.wav", "otra")])


EXPECTED = {
    "bad_scale": 1,
    "duplicate": 1,
    "empty_file": 1,
    "empty_text": 1,
    "missing": 1,
    "nonfinite": 1,
    "not_audio": 1,
    "silent": 1,
    "too_long": 1,
    "truncated": 1,
    "unknown_character": 1,
}


# --- real releases against independent counts ----------------------------------------------------------------------


@pytest.mark.parametrize("language", ["es", "ca", "fr", "it", "pt"])
def test_real_release_against_csv_and_soundfile(shared_data: Path, language: str) -> None:
    root = shared_data / "cv-corpus-6.1-2020-12-11" / language
    found = survey(root, rules="verbatim", decode=None)
    assert found.problems == []
    assert list(found.splits) == ["train", "dev", "test", "validated"]
    for split, figures in found.splits.items():
        with (root / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        headers = [soundfile.info(str(root / "clips" / row["path"])) for row in rows]
        lengths = [header.duration for header in headers]
        texts = [" ".join(unicodedata.normalize("NFC", row["sentence"]).split()) for row in rows]
        assert (figures.rows, figures.kept, figures.excluded) == (len(rows), len(rows), {})
        assert figures.hours == pytest.approx(sum(lengths) / 3600, rel=2e-3)
        assert figures.speakers == len({row["client_id"] for row in rows})
        assert figures.sentences == len(set(texts))
        assert figures.alphabet == Counter("".join(texts))
        assert figures.seconds.counts == np.histogram(lengths, [*range(21), 1e9])[0].tolist()
        assert figures.audio.sample_rates == Counter(str(header.samplerate) for header in headers)
        for column, groups in (("accent", figures.accents), ("gender", figures.gender), ("age", figures.age)):
            assert {value: group.clips for value, group in groups.items()} == Counter(row[column] for row in rows)
            for value, group in groups.items():
                mine = [(row["client_id"], s) for row, s in zip(rows, lengths, strict=True) if row[column] == value]
                assert group.speakers == len({speaker for speaker, _ in mine})
                assert group.hours == pytest.approx(sum(s for _, s in mine) / 3600, rel=5e-3)
        per_second = [len(text) / seconds for text, seconds in zip(texts, lengths, strict=True)]
        assert figures.characters_per_second.median == pytest.approx(float(np.median(per_second)), rel=0.02)
        assert figures.fastest[0]["characters_per_second"] == pytest.approx(max(per_second), rel=0.02)


def test_the_strange_character_of_the_spanish_release(shared_data: Path) -> None:
    found = survey(shared_data / "cv-corpus-6.1-2020-12-11" / "es", decode=0)
    character = {"character": "ː", "code": "U+02D0", "name": "MODIFIER LETTER TRIANGULAR COLON", "count": 1}
    assert found.splits["dev"].outside == [character]
    assert found.splits["dev"].excluded == {"unknown_character": 1}
    assert found.splits["train"].outside == []
    assert found.splits["train"].hours is None
    assert "'ː' U+02D0 MODIFIER LETTER TRIANGULAR COLON" in check_text(found)


def test_a_release_in_its_archive_gives_the_same_figures(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = shared_data / "cv-corpus-6.1-2020-12-11" / "es"
    with tarfile.open("es.tar.gz", "w:gz") as tar:
        tar.add(root, "cv-corpus-6.1-2020-12-11/es")
    folder, archive = survey(root, decode=5), survey("es.tar.gz", decode=5)
    assert archive.format == "archive"
    assert archive.splits == folder.splits
    assert 5 <= len(list(tmp_path.rglob("*.mp3"))) <= 20, "no clip was taken that is not looked at"


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.fault
def test_each_fault_has_its_reason(faults: Path, tmp_path: Path) -> None:
    found = survey(faults, decode=None)
    train = found.splits["train"]
    assert train.excluded == EXPECTED
    assert (train.rows, train.kept) == (14, 3)
    assert train.audio.notes == {"clipped": 1, "low_rate": 1}
    assert train.hours == pytest.approx(3 / 3600)
    assert [problem.reason for problem in found.problems] == ["too_many_excluded"]
    assert found.exit_code == 3
    by_reason = {line["excluded"]: line for line in found.report.lines}
    assert by_reason["truncated"] | {"seconds": 1.0, "claimed_seconds": 3.0, "id": "short"} == by_reason["truncated"]
    assert by_reason["too_long"]["seconds"] == pytest.approx(21.0)
    assert survey(faults, decode=None, max_bad=0.9).exit_code == 0
    text = check_text(found)
    assert "1 not_audio (not an audio file, whatever its name says)" in text
    assert "[too_many_excluded] 76.9% of the 13 rows of 'train' cannot be used" in text


@pytest.mark.fault
def test_broken_tables_are_told_and_the_others_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = release(tmp_path, train=[("a", "c1.wav", "hola")], dev=[("b", "c2.wav", "adiós")])
    (root / "test.tsv").write_bytes((HEADER + "\na\tc3.wav\n").encode())
    (root / "validated.tsv").write_bytes(HEADER.encode() + b"\na\tc3.wav\t\xff\t\t\t\n")
    assert main(["data", "check", str(root), "--json"]) == 3
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["splits"]) == ["train", "dev"]
    assert [(p["split"], p["reason"]) for p in figures["problems"]] == [("test", "bad_row"), ("validated", "not_utf8")]
    assert figures["ok"] is False
    assert main(["data", "stats", str(root)]) == 3
    assert "test.tsv:2: 2 cells, the header has 6" in capsys.readouterr().out


@pytest.mark.fault
def test_a_path_that_leaves_the_folder_is_exit_7(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = release(tmp_path, train=[("a", "c1.wav", "hola")])
    (root / "test.tsv").write_text(f"{HEADER}\nb\t../../secret.wav\thola\t\t\t\n")
    (root / "dev.tsv").write_text(f"{HEADER}\nb\tc2.wav\n")  # exit 3 alone
    assert main(["data", "check", str(root)]) == 7
    assert "[path]" in capsys.readouterr().out


@pytest.mark.fault
def test_an_unbalanced_quote_keeps_six_rows(tmp_path: Path) -> None:
    sentences = ['"Hola', "uno", "dos", 'tres"', "cuatro", "cinco"]
    root = release(tmp_path, train=[("a", f"c{n}.wav", text) for n, text in enumerate(sentences)])
    assert survey(root).splits["train"].kept == 6


@pytest.mark.fault
def test_leakage_of_speakers_audio_and_sentences(tmp_path: Path) -> None:
    train = [("a", "c1.wav", "Hola."), ("a", "c2.wav", "adiós")]
    clean = release(tmp_path / "clean", train=train, test=[("b", "t1.wav", "¡hola!")])
    found = survey(clean)
    assert found.problems == []
    assert found.leakage.sentences == {"train/test": 1}
    speaker = release(tmp_path / "speaker", train=train, test=[("a", "t1.wav", "otra")])
    assert [p.reason for p in survey(speaker).problems] == ["shared_speakers"]
    assert survey(speaker, allow_shared_speakers=True).exit_code == 0
    copied = release(tmp_path / "copied", train=train, test=[("b", "t1.wav", "otra")])
    shutil.copy(copied / "clips" / "c2.wav", copied / "clips" / "t1.wav")
    found = survey(copied, allow_shared_speakers=True)
    assert [p.reason for p in found.problems] == ["shared_audio"]
    assert found.leakage.audio == {"train/test": ["t1"]}
    assert survey(copied, decode=0).problems == [], "without reading the files nobody can know"


def test_validated_holds_the_same_clips_and_is_no_leak(tmp_path: Path) -> None:
    rows = [("a", "c1.wav", "hola"), ("b", "c2.wav", "adiós")]
    found = survey(release(tmp_path, train=rows[:1], test=rows[1:], validated=rows))
    assert found.compared == ["train", "test"]
    assert found.problems == []
    assert found.splits["validated"].kept == 2


@pytest.mark.parametrize("dev", ["valid", "validation", "val"])
def test_dev_by_another_name_is_compared_too(tmp_path: Path, dev: str) -> None:
    """Parquet calls it validation, and manifests what they like."""
    for split, speaker in (("train", "a"), (dev, "a"), ("test", "b")):
        rows = "".join(f"{split}{i}.wav\thola {split}\t{speaker}\n" for i in range(2))
        (tmp_path / f"{split}.tsv").write_text("path\tsentence\tspeaker\n" + rows)
        for i in range(2):
            tone(tmp_path / f"{split}{i}.wav")
    found = survey(tmp_path, decode=0)
    assert set(found.compared) == {"train", dev, "test"}
    assert [p.reason for p in found.problems] == ["shared_speakers"]


# --- samples, lengths, groups --------------------------------------------------------------------------------------


def test_a_sample_is_the_same_in_any_order() -> None:
    clips = [Utterance(f"c{n}", Path(f"c{n}"), "", "", "train") for n in range(500)]
    picked = sample(clips, 20)
    assert len(picked) == 20
    assert {u.id for u in sample(clips[::-1], 20)} == {u.id for u in picked}
    assert {u.id for u in sample(clips, 10)} < {u.id for u in picked}
    assert [clips.index(u) for u in picked] == sorted(clips.index(u) for u in picked)
    assert sample(clips, None) == sample(clips, 500) == clips


def test_hours_of_a_sample_are_estimates_and_claims_are_not(tmp_path: Path) -> None:
    rows = [("a", f"c{n}.wav", "hola") for n in range(8)]
    root = release(tmp_path, train=rows)
    sampled, every = survey(root, decode=2).splits["train"], survey(root, decode=None).splits["train"]
    assert (sampled.hours_estimated, sampled.lengths_known) == (True, 2)
    assert (every.hours_estimated, every.lengths_known) == (False, 8)
    assert sampled.hours == pytest.approx(8 / 3600)
    assert every.hours == pytest.approx(8 / 3600)
    (root / "clip_durations.tsv").write_text(
        "clip\tduration[ms]\n" + "".join(f"c{n}.wav\t2000\n" for n in range(8)), encoding="utf-8"
    )
    claimed = survey(root, only_unknown=True).splits["train"]
    assert (claimed.audio.decoded, claimed.hours_estimated) == (0, False)
    assert claimed.hours == pytest.approx(16 / 3600)
    assert survey(root, decode=0, max_seconds=1.5).splits["train"].excluded == {"too_long": 8}


def test_a_long_clip_is_scored_but_not_trained_on(tmp_path: Path) -> None:
    root = release(tmp_path, train=[("a", "c1.wav", "hola")], test=[("b", "t1.wav", "hola")])
    found = survey(root, decode=None, max_seconds=0.5).splits
    assert found["train"].excluded == {"too_long": 1}
    assert (found["test"].excluded, found["test"].kept) == ({}, 1)


def test_what_a_sample_finds_counts_for_the_split(tmp_path: Path) -> None:
    rows = [("a", f"c{n}.wav", "hola") for n in range(40)]
    root = release(tmp_path, train=rows)
    for n in range(20):
        (root / "clips" / f"c{n}.wav").write_text("<html>")
    found = survey(root, decode=20)
    bad = found.splits["train"].audio.unusable["not_audio"]
    assert 4 <= bad <= 16
    assert [p.reason for p in found.problems] == ["too_many_excluded"]
    assert found.problems[0].message.startswith(f"about {bad / 20:.1%} of the 40 rows")


def test_groups_split_accents_and_keep_who_did_not_say(tmp_path: Path) -> None:
    rows = [
        ("a", "c1.wav", "hola", "teens", "female_feminine", "México|canario"),
        ("a", "c2.wav", "uno", "teens", "female_feminine", "México"),
        ("b", "c3.wav", "hola", "", "", ""),
    ]
    figures = survey(release(tmp_path, train=rows), decode=None).splits["train"]
    assert {k: (g.clips, g.speakers) for k, g in figures.accents.items()} == {
        "México": (2, 1),
        "": (1, 1),
        "canario": (1, 1),
    }
    assert {k: g.hours for k, g in figures.age.items()} == pytest.approx({"teens": 2 / 3600, "": 1 / 3600})
    assert figures.repeated == [{"text": "hola", "clips": 2}]
    assert figures.clips_per_speaker.counts[:3] == [1, 1, 0]


def test_histogram_bins_and_quantiles() -> None:
    h = Histogram.of([0.0, 0.5, 1.0, 1.999, 2.0, 7.0], [0.0, 1.0, 2.0])
    assert h.counts == [2, 2, 2]
    assert h.median == pytest.approx(1.4995)
    assert Histogram.of([], [0.0, 1.0]).median is None
    assert bars([0, 1, 500, 1000]) == "  ▁▁▄▄██"
    assert bars([0, 1, 1000], unicode=False) == "  ..@@"


def test_split_hash_is_that_of_the_kept(tmp_path: Path) -> None:
    root = release(tmp_path, train=[("a", "c1.wav", "hola"), ("a", "c2.wav", "son 25")])
    kept = [Utterance("c1", Path("x"), "hola", "a", "train")]
    assert survey(root).splits["train"].split_hash == split_hash(kept)


def test_decoded_once_for_all_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", f"c{n}.wav", "hola") for n in range(5)]
    calls: list[str] = []
    import asrkit.survey.audio as module

    real = module.inspect
    monkeypatch.setattr(module, "inspect", lambda u, limit: calls.append(u.id) or real(u, limit))
    found = survey(release(tmp_path, train=rows, validated=rows), decode=None)
    assert sorted(calls) == [f"c{n}" for n in range(5)]
    assert found.splits["validated"].audio.decoded == 5


def test_listener_without_decoding_knows_only_sizes(faults: Path) -> None:
    excluded = survey(faults, decode=0).splits["train"].excluded
    assert excluded == {"duplicate": 1, "empty_file": 1, "empty_text": 1, "missing": 1, "unknown_character": 1}
    listener = Listener(0, False, 20.0, False)
    clip = Utterance("web", faults / "clips" / "web.mp3", "hola", "a", "train")
    assert listener.listen([clip], "train", DataReport(), set())[0] == [clip]


# --- JSON, terminal, page ------------------------------------------------------------------------------------------

NUMBER = (int, float)
GROUP: dict[str, Any] = {"clips": int, "speakers": int, "hours": (*NUMBER, type(None))}
HISTOGRAM: dict[str, Any] = {"edges": [NUMBER], "counts": [int]} | dict.fromkeys(
    ("low", "median", "high"), (*NUMBER, type(None))
)
ODD: dict[str, Any] = {"id": str, "characters_per_second": NUMBER, "seconds": NUMBER, "text": str}
SPLIT: dict[str, Any] = {
    "rows": int,
    "kept": int,
    "excluded": {str: int},
    "split_hash": str,
    "speakers": int,
    "unknown_speaker": int,
    "hours": (*NUMBER, type(None)),
    "hours_estimated": bool,
    "lengths_known": int,
    "seconds": HISTOGRAM,
    "characters_per_second": HISTOGRAM,
    "clips_per_speaker": HISTOGRAM,
    "sentences": int,
    "repeated": [{"text": str, "clips": int}],
    "alphabet": {str: int},
    "outside": [{"character": str, "code": str, "name": str, "count": int}],
    "accents": {str: GROUP},
    "gender": {str: GROUP},
    "age": {str: GROUP},
    "fastest": [ODD],
    "slowest": [ODD],
    "audio": {
        "decoded": int,
        "unusable": {str: int},
        "notes": {str: int},
        "sample_rates": {str: int},
        "same_audio": int,
    },
}
FORM: dict[str, Any] = {
    "survey": int,
    "ok": bool,
    "root": str,
    "format": str,
    "rules": str,
    "alphabet": (str, type(None)),
    "limits": {"max_bad": NUMBER, "max_seconds": NUMBER},
    "splits": {str: SPLIT},
    "compared": [str],
    "leakage": {"speakers": {str: [str]}, "audio": {str: [str]}, "sentences": {str: int}},
    "problems": [{"reason": str, "message": str, "exit_code": int, "split": str}],
    "outside": {str: int},
    "notes": [{str: object}],
}


def assert_form(value: Any, form: Any, where: str = "") -> None:
    """`value` has exactly the keys and types of `form`; {str: x} is any mapping, [x] any list."""
    if isinstance(form, dict) and list(form) == [str]:
        assert isinstance(value, dict), where
        for key, item in value.items():
            assert_form(item, form[str], f"{where}.{key}")
    elif isinstance(form, dict):
        assert set(value) == set(form), where
        for key, item in value.items():
            assert_form(item, form[key], f"{where}.{key}")
    elif isinstance(form, list):
        assert isinstance(value, list), where
        for item in value:
            assert_form(item, form[0], f"{where}[]")
    else:
        assert isinstance(value, form), f"{where}: {value!r} is no {form}"
        assert form is bool or not isinstance(value, bool), where


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["data", *words, "--json"])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, json.loads(captured.out)


def test_json_form_and_exit_code(faults: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.jsonl"
    code, figures = run_json(capsys, "check", str(faults), "--decode", "all", "--report", str(report))
    assert code == 3
    assert_form(figures, FORM)
    assert figures["survey"] == 1
    assert figures["splits"]["train"]["excluded"] == EXPECTED
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert Counter(line["excluded"] for line in lines) == EXPECTED
    code, stats = run_json(capsys, "stats", str(faults), "--decode", "all", "--max-bad", "0.9")
    assert code == 0
    assert_form(stats, FORM)


def test_options_reach_the_survey(faults: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, figures = run_json(capsys, "check", str(faults), "--split", "dev", "--rules", "verbatim", "--decode", "0")
    assert code == 0
    assert list(figures["splits"]) == ["dev"]
    assert figures["alphabet"] is None
    assert figures["splits"]["dev"]["audio"]["decoded"] == 0
    for words, reason, exit_code in (
        (["--split", "trian"], "unknown_split", 3),
        (["--decode", "some"], "usage", 2),
        (["--rules", "spansh"], "unknown_text", 2),
        (["--max-bad", "5"], "value", 2),  # a share, not per cent
        (["--max-seconds", "nan"], "value", 2),
    ):
        assert main(["data", "check", str(faults), *words]) == exit_code
        assert f"error[{reason}]" in capsys.readouterr().err
    assert main(["data", "check", str(faults / "clips" / "nothing")]) == 3


def test_no_cell_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    cell = "\x1b]0;mine\x07\x1b[2J\u202e"
    found = survey(release(tmp_path, train=[("a", "c1.wav", f"hola {cell}", "", "", cell), ("b", "c2.wav", "adiós")]))
    for text in (check_text(found), stats_text(found)):
        assert all(c == "\n" or c.isprintable() for c in text)
    assert "text hola \\x1b 0 mine\\x07\\x1b 2j\\u202e" in check_text(found)
    assert "adiós" in stats_text(survey(release(tmp_path / "b", train=[("a", "c.wav", "adiós", "", "", "adiós")])))


def test_stats_on_the_terminal(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(shared_data / "cv-corpus-6.1-2020-12-11" / "es")]) == 0
    text = capsys.readouterr().out
    for part in (
        "split      rows  kept  excluded  hours  speakers  sentences  decoded  hash of kept",
        "length (s), from 0 to ",
        "characters per second, from 0 to ",
        "gender (clips)",
        "surpeninsular",
        "space ",
        "in both     speakers  clips  utterances with a shared sentence",
        "no problem found",
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) < 125


class _Page(html.parser.HTMLParser):
    """Collects text, and fails on anything that a browser would have to fetch or run, and on unclosed elements."""

    VOID = ("meta", "input", "br", "line", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "object", "a", "form"), tag
        for name, value in attrs:
            assert name not in ("src", "href", "srcset", "onclick", "onload"), name
            assert "url(" not in (value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "rect"), tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def read_page(content: str) -> str:
    parser = _Page()
    parser.feed(content)
    parser.close()
    assert parser.open == []
    return " ".join(" ".join(parser.text).split())


def test_page_is_whole_and_fetches_nothing(faults: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    assert main(["data", "stats", str(faults), "--decode", "all", "--html", str(target)]) == 3
    content = target.read_text(encoding="utf-8")
    text = read_page(content)
    assert "http" not in re.sub(r"http-equiv", "", content)
    assert "url(" not in content
    assert "@import" not in content
    assert "prefers-color-scheme:dark" in content
    assert 'name="viewport"' in content
    for part in ("1 problem that would stop training", "too_many_excluded", "frase", "U+0032", "digit two", "low rate"):
        assert part in text, part
    found = survey(faults, decode=None)
    assert page(found) == page(found)
    assert main(["data", "stats", str(faults), "--html", str(tmp_path / "no" / "page.html")]) == 5


def test_page_escapes_what_tables_say(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = [
        (evil, f"c{n}.wav", f'{evil} "a" \u202e & \u0301', f'"><b onclick="x">{evil}', f"{evil}&", evil) for n in (1, 2)
    ]
    found = survey(release(tmp_path / "<b>es", train=rows), rules="verbatim", decode=None)
    text = read_page(page(found))
    assert "<script>alert(1)</script>" in text, "as text, not as an element"
    assert check_text(found)
    assert stats_text(found)


def test_page_of_nothing_known(tmp_path: Path) -> None:
    root = release(tmp_path, train=[("", "gone.wav", "hola")], dev=[("b", "c.wav", "...")])
    found = survey(root, decode=0)
    assert found.splits["train"].kept == 0
    text = read_page(page(found))
    assert "no length is known" in text
    assert "not given in these tables" in text
    assert "length: no length is known" in stats_text(found)


def test_chart_heights_and_labels() -> None:
    chart = Histogram.of([0.5] * 4 + [1.5] * 2 + [3.5], [0.0, 1.0, 2.0, 3.0, 4.0])
    drawn = histogram(chart, "s", "clips", "length")
    heights = [float(x) for x in re.findall(r'class="bar"[^>]* height="([\d.]+)"', drawn)]
    assert heights[1] == pytest.approx(heights[0] / 2, abs=0.1)
    assert heights[2] == 0
    assert heights[3] == pytest.approx(heights[0] / 4, abs=0.1)
    assert "0 to 1 s: 4 clips" in drawn
    assert "10 more" in ranked([(f"n{i}", 1.0, "", "") for i in range(22)], 22.0)
    assert "U+0025" in letters({"a": 3, "%": 1}, ["%"])


def test_survey_is_plain_data(faults: Path) -> None:
    found = survey(faults)
    assert isinstance(found, Survey)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
