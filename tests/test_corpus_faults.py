"""Corpora as people have them: ids that restart, two languages in one folder, joined archives, half of the splits."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from toy import make_corpus, toy_recipe

from asrkit.cli import main
from asrkit.corpus import DataReport, Utterance, fetch, leakage, open_corpus, open_data, split_hash
from asrkit.corpus.common_voice import CommonVoice
from asrkit.errors import DataError, RecipeError, TrustError
from asrkit.preparation import prepare
from asrkit.survey import survey
from asrkit.survey.text import check_text

pytestmark = pytest.mark.fault
RATE = 8000
SPLITS = {"train": 6, "dev": 2, "test": 2}


def sound(seed: int, seconds: float = 1.0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)


def put(path: Path, seed: int, seconds: float = 1.0, text: str | None = None) -> Path:
    """A clip of noise, with a text file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(seed, seconds), RATE)
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return path


def words(split: str, number: int) -> str:
    return f"{split} {'abcdefghijklmnopqrstuvwxyz'[number % 26] * 3}"


def folder_of(root: Path, **counts: int) -> Path:
    """`root`/<split>/<number>.wav with texts."""
    for place, (split, count) in enumerate(counts.items()):
        for number in range(count):
            put(root / split / f"{number}.wav", 100 * place + number, text=words("hola", number))
    return root


def recipe_of(folder: Path, root: Path | str, **data: Any) -> dict[str, Any]:
    options = {"allow_shared_speakers": True, **data}
    values = {key: json.dumps(value) if not isinstance(value, str) else value for key, value in options.items()}
    recipe = toy_recipe(folder, root, *((f"data.{key}", value) for key, value in values.items()))  # type: ignore[arg-type]
    recipe["features"]["options"] = {"size": 16}
    return recipe


def shard(path: Path, numbers: range, names: list[str | None], **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = []
    for number, name in zip(numbers, names, strict=True):
        file = io.BytesIO()
        soundfile.write(file, sound(number), RATE, format="WAV")
        audio.append({"bytes": file.getvalue(), "path": name})
    table = {"audio": audio, "sentence": [words("hola", n) for n in numbers], "speaker": [f"s{n}" for n in numbers]}
    pq.write_table(pa.table(table | columns), path)
    return path


def release(folder: Path, *rows: str, header: str = "client_id\tpath\tsentence", split: str = "train") -> Path:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.tsv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return folder


def noted(report: DataReport) -> list[tuple[str, Any, Any]]:
    """(what, how many, the first) of the notes."""
    return [(x["note"], x.get("lines", x.get("clips")), x.get("first")) for x in report.lines if "note" in x]


# --- ids are names within a split ------------------------------------------------------------------------------------


def test_a_manifest_whose_ids_restart_in_every_split(tmp_path: Path) -> None:
    for place, (split, count) in enumerate(SPLITS.items()):
        rows = []
        for number in range(count):
            put(tmp_path / split / f"{number}.wav", 100 * place + number)
            rows.append({"id": number, "path": f"{split}/{number}.wav", "sentence": words("hola", number)})
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = survey(tmp_path, decode=None)
    assert found.problems == []
    prepared = prepare(recipe_of(tmp_path / "work", tmp_path), ("train", "dev", "test"))
    assert {key: split.hash for key, split in prepared.splits.items()} == {
        key: figures.split_hash for key, figures in found.splits.items()
    }


@pytest.mark.parametrize("kind", ["one name", "no name", "an id column"])
def test_parquet_whose_names_restart_in_every_split(tmp_path: Path, kind: str) -> None:
    for place, (split, count) in enumerate({"train": 6, "validation": 2, "test": 2}.items()):
        numbers = range(100 * place, 100 * place + count)
        columns = {"id": list(range(count))} if kind == "an id column" else {}
        names = ["audio.wav" if kind == "one name" else None] * count
        shard(tmp_path / "pq" / "data" / f"{split}-00000-of-00001.parquet", numbers, names, **columns)
    found = survey(tmp_path / "pq", cache=tmp_path / "work" / "cache", decode=None)
    assert found.problems == []
    prepared = prepare(recipe_of(tmp_path / "work", tmp_path / "pq"), ("train", "dev", "test"))
    assert len(prepared.splits["dev"]) == 2
    for name, key in (("train", "train"), ("validation", "dev"), ("test", "test")):
        assert prepared.splits[key].hash == found.splits[name].split_hash
    if kind == "an id column":
        assert [u.id for u in prepared.splits["dev"].utterances] == ["0", "1"]


def test_parquet_ids_do_not_depend_on_the_name_that_was_asked_for(tmp_path: Path) -> None:
    shard(tmp_path / "validation.parquet", range(3), [None] * 3)
    corpus = open_corpus(tmp_path, cache=tmp_path / "cache")
    one, two = corpus.read("dev"), corpus.read("validation")
    assert [u.id for u in one] == ["validation-1", "validation-2", "validation-3"]
    assert ([u.split for u in one], split_hash(one)) == (["dev"] * 3, split_hash(two))


def test_the_same_bytes_and_the_same_file_are_still_found(tmp_path: Path) -> None:
    for place, split in enumerate(("train", "validation", "test")):
        start = 0 if split == "test" else 100 * place  # the clips of train
        shard(tmp_path / "pq" / f"{split}.parquet", range(start, start + 2), ["a.wav", "b.wav"])
    recipe = recipe_of(tmp_path / "work", tmp_path / "pq")
    with pytest.raises(DataError, match=r"audio in more than one split: train/test: 2") as caught:
        prepare(recipe, ("train", "dev", "test"))
    assert caught.value.reason == "shared_audio"
    checked = survey(tmp_path / "pq", cache=tmp_path / "c", decode=None, allow_shared_speakers=True)
    assert [p.reason for p in checked.problems] == ["shared_audio"]
    a = Utterance("x", Path("/clips/1.wav"), "a", "", "train")
    assert leakage({"train": [a], "test": [Utterance("y", a.audio, "b", "", "test")]}).audio == {"train/test": ["y"]}
    assert leakage({"train": [a], "test": [Utterance("x", Path("/2.wav"), "b", "", "test")]}).audio == {}


# --- the Hub is asked for by name ------------------------------------------------------------------------------------


def test_a_relative_path_that_is_not_there_does_not_ask_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"data/es does not exist.*the extracted folder.*correct the path, or say hf://data/es"
    ) as e:
        open_corpus("data/es")
    assert (e.value.exit_code, e.value.reason) == (3, "missing_corpus")
    assert main(["data", "check", "data/es"]) == 3
    assert "hf://data/es" in capsys.readouterr().err
    for root in ("hf://es", "hf:///etc/passwd", "hf://a/b/c", "hf://"):
        with pytest.raises(DataError, match=r"names no Hub dataset; possible: hf://OWNER/NAME"):
            open_corpus(root)
    with pytest.raises(RecipeError, match=r"data\.format is 'manifest', but hf://o/n is a Hub dataset"):
        open_corpus("hf://o/n", "manifest")


def test_the_hub_is_asked_for_what_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def builder(path: str, name: str | None, cache_dir: str) -> None:
        asked.append(path)
        raise ConnectionError("no network in tests")

    import datasets

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.chdir(tmp_path)
    for root, options in (("hf://o/n", {}), ("o/n", {"format": "parquet"})):
        with pytest.raises(Exception, match="cannot be reached"):
            open_data({"root": root, "cache": str(tmp_path), **options}).splits()
    (tmp_path / "o" / "n").mkdir(parents=True)  # hf:// means the Hub even where such a folder lies
    with pytest.raises(Exception, match="cannot be reached"):
        open_corpus("hf://o/n").splits()
    assert asked == ["o/n"] * 3


# --- two languages in one folder of Parquet --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["{}/{}-00000.parquet", "{}/{}/0.parquet", "data/{}/{}-00000.parquet"])
def test_two_languages_in_one_folder_of_parquet(tmp_path: Path, layout: str) -> None:
    for place, (language, split) in enumerate((a, b) for a in ("es", "ca") for b in ("train", "validation", "test")):
        numbers = range(10 * place, 10 * place + 2)
        shard(tmp_path / "pq" / layout.format(language, split), numbers, [f"{language}{n}.wav" for n in numbers])
    options = {"cache": tmp_path / "cache"}
    with pytest.raises(DataError, match=r"several folders; possible: ca, es.*--data\.language=NAME") as caught:
        open_corpus(tmp_path / "pq", **options).splits()
    assert caught.value.reason == "unknown_corpus"
    for language in ("es", "ca"):
        corpus = open_corpus(tmp_path / "pq", language=language, **options)
        assert corpus.splits() == ["train", "validation", "test"]
        assert {u.id[:2] for split in ("train", "dev", "test") for u in corpus.read(split)} == {language}
    with pytest.raises(DataError, match=r"no folder 'ess' in it; possible: ca, es \(did you mean 'es'\?\)"):
        open_corpus(tmp_path / "pq", language="ess", **options).splits()
    assert len(open_corpus(tmp_path / "pq", language="all", **options).read("train")) == 4


def test_one_folder_of_parquet_needs_no_language(tmp_path: Path) -> None:
    shard(tmp_path / "data" / "train-0.parquet", range(2), ["a.wav", "b.wav"])
    shard(tmp_path / "data" / "train-1.parquet", range(2, 3), ["c.wav"])
    shard(tmp_path / "more" / "test-0.parquet", range(3, 4), ["d.wav"])
    corpus = open_corpus(tmp_path, cache=tmp_path / "cache")
    assert [len(corpus.read(split)) for split in corpus.splits()] == [3, 1]


# --- max_utterances, max_bad, hours ----------------------------------------------------------------------------------


def foreign(corpus: Path, rows: range) -> None:
    """Digits in these rows of train."""
    lines = (corpus / "train.tsv").read_text().split("\n")
    for row in rows:
        cells = lines[1 + row].split("\t")
        cells[3] += " 80"
        lines[1 + row] = "\t".join(cells)
    (corpus / "train.tsv").write_text("\n".join(lines))


def test_max_utterances_looks_no_further_than_the_last_of_them(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "cv", train=60)
    foreign(corpus, range(1, 60, 10))  # 6 of 60, but 1 of the first 11
    options = [("data.max_utterances", 10), ("text.unknown", "drop"), ("data.max_bad", 0.1)]
    prepared = prepare(toy_recipe(tmp_path, corpus, *options), ("train", "dev"))
    assert len(prepared.splits["train"]) == 10
    assert prepared.report.counts == {"unknown_character": 1}
    with pytest.raises(DataError, match=r"1 of 11 utterances are unusable"):
        prepare(toy_recipe(tmp_path, corpus, *options[:2], ("data.max_bad", 0.05)), ("train", "dev"))
    foreign(corpus, range(30, 31))
    clean = [("data.max_utterances", 1), ("text.unknown", "error")]
    prepare(toy_recipe(tmp_path, corpus, *clean), ("train",))  # nothing later is an error
    with pytest.raises(DataError, match="outside the alphabet"):
        prepare(toy_recipe(tmp_path, corpus, ("data.max_utterances", 2), ("text.unknown", "error")), ("train",))
    many = [("data.max_utterances", 999), ("text.unknown", "drop"), ("data.max_bad", 0.2)]
    assert len(prepare(toy_recipe(tmp_path, corpus, *many), ("train",)).splits["train"]) == 53


def test_what_the_reader_lost_counts_in_every_verb(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "own", train=20, dev=2, test=2)
    for number in range(0, 20, 2):
        (root / "train" / f"{number}.txt").unlink()
    assert [p.reason for p in survey(root).problems] == ["too_many_excluded"]
    with pytest.raises(DataError, match=r"10 of 20 utterances are unusable \(10 excluded: 10 no_text") as caught:
        prepare(recipe_of(tmp_path, root), ("train", "dev"))
    assert caught.value.reason == "too_many_excluded"
    part = {"max_utterances": 4, "max_bad": 0.5}  # half of any part too
    assert len(prepare(recipe_of(tmp_path, root, **part), ("train", "dev")).splits["train"]) == 4
    with pytest.raises(DataError, match=r"4 of 8 utterances"):
        prepare(recipe_of(tmp_path, root, **part | {"max_bad": 0.49}), ("train", "dev"))


def test_rows_left_out_by_choice_count_nowhere(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "cv", train=20)
    lines = (corpus / "train.tsv").read_text().split("\n")
    lines[1:11] = [line + "Benchmark" for line in lines[1:11]]
    (corpus / "train.tsv").write_text("\n".join([*lines[:-1], lines[12], ""]))
    (corpus / "clips" / lines[12].split("\t")[1]).unlink()
    options = {"segments": "no_benchmark"}
    found = survey(corpus, **options)  # type: ignore[arg-type]
    assert found.splits["train"].excluded == {"benchmark": 10, "duplicate": 1, "missing": 1}
    assert [p.message.split(";")[0] for p in found.problems] == [
        "10.0% of the 10 rows of 'train' cannot be used (1 missing)"
    ]
    with pytest.raises(DataError, match="1 of 10 utterances"):
        prepare(toy_recipe(tmp_path, corpus, ("data.segments", "no_benchmark")), ("train",))
    assert survey(corpus, max_bad=0.1, **options).exit_code == 0  # type: ignore[arg-type]
    prepare(toy_recipe(tmp_path, corpus, ("data.segments", "no_benchmark"), ("data.max_bad", 0.1)), ("train",))


def test_hours_that_were_really_used_stand_beside_those_asked_for(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "cv", train=40)
    clips = sorted((corpus / "clips").iterdir())
    (corpus / "clip_durations.tsv").write_text(
        "clip\tduration[ms]\n" + "".join(f"{p.name}\t{1000 * soundfile.info(p).duration}\n" for p in clips)
    )
    total = sum(soundfile.info(p).duration for p in clips[:40])
    for path in clips[:40:2]:
        path.unlink()
    recipe = toy_recipe(tmp_path, corpus, ("data.hours", 0.99 * total / 3600), ("data.max_bad", 1.0))
    prepared = prepare(recipe, ("train",))
    (note,) = [line for line in prepared.report.lines if line.get("note") == "hours"]
    left = sum(soundfile.info(u.audio).duration for u in prepared.splits["train"].utterances)
    assert note["used"] * 3600 == pytest.approx(left, rel=0.05)
    assert note["used"] < 0.7 * note["asked"]
    assert f"hours (asked {note['asked']}, used {note['used']}" in prepared.report.summary()


# --- folders of audio ------------------------------------------------------------------------------------------------


def test_audio_beside_the_folders_of_splits_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of(tmp_path / "own", train=4, dev=2, test=2, train2=3)
    found = survey(root, decode=0)
    assert found.outside == {"outside_splits": 3}
    assert [line["id"] for line in found.report.lines] == [f"train2/{n}" for n in range(3)]
    text = check_text(found)
    assert "in no split: 3 outside_splits (audio beside the folders of the splits" in text
    assert "excluded: nothing" not in text
    report = prepare(recipe_of(tmp_path, root), ("train", "dev")).report
    assert report.counts == {"outside_splits": 3}
    assert "3 excluded: 3 outside_splits" in report.summary()
    assert main(["data", "stats", str(root), "--html", str(tmp_path / "page.html")]) == 0
    assert "in no split: 3" in capsys.readouterr().out
    assert "in no split: 3 audio beside" in (tmp_path / "page.html").read_text()


def test_notes_of_the_reader_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        put(tmp_path / "own" / f"{number}.wav", number, text=words("hola", number))
    assert main(["data", "check", str(tmp_path / "own"), "--decode", "0"]) == 0
    assert "noted\n  split_by_hash (of clip, rule " in capsys.readouterr().out
    summary = prepare(recipe_of(tmp_path, tmp_path / "own"), ("train", "dev")).report.summary()
    assert "nothing excluded; noted: split_by_hash (of clip, rule " in summary
    root = release(tmp_path / "cv", "s\tc1.mp3\thola")
    (root / "times.txt").write_text("c1.mp3\t1500\n\n")
    assert main(["data", "check", str(root), "--decode", "0", "--max-bad", "1"]) == 0
    assert "times_not_read (" in capsys.readouterr().out
    report = DataReport()
    for name in ("a", "b"):
        report.note("truncated", Utterance(name, Path(name), "", "", "train"), seconds=1.0)
    assert report.summary() == "nothing excluded; noted: 2 truncated"


def test_some_folders_of_splits_are_splits(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "own", dev=12, test=12)
    corpus = open_corpus(root)
    assert corpus.splits() == ["dev", "test"]
    assert [len(corpus.read(split)) for split in corpus.splits()] == [12, 12]
    assert survey(root, decode=0).compared == ["dev", "test"]
    with pytest.raises(DataError, match=r"no split 'train'.*possible: dev, test") as caught:
        prepare(recipe_of(tmp_path, root), ("train", "dev"))
    assert caught.value.reason == "unknown_split"
    full = folder_of(tmp_path / "full", train=6, dev=2)
    tokenizer = prepare(recipe_of(tmp_path, full, test=None), ("train",)).tokenizer
    prepared = prepare(recipe_of(tmp_path, root), ("test",), tokenizer=tokenizer)
    assert len(prepared.splits["test"]) == 12
    assert [line["split"] for line in prepared.report.lines if line.get("note") == "split_not_there"] == ["train"]


# --- what will be trained on can be surveyed ------------------------------------------------------------------------


def test_check_takes_the_options_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = "client_id\tpath\tsentence\tsegment"
    root = release(tmp_path / "cv", "a\t1.wav\thola\t", "b\t2.wav\tsí\tBenchmark", "c\t3.wav\tmal\t", header=header)
    for number in (1, 2, 3):
        put(root / "clips" / f"{number}.wav", number)
    (root / "reported.tsv").write_text("sentence\treason\nmal\tx\n")

    def check(*options: str) -> dict[str, Any]:
        code = main(["data", "check", *options, "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        figures: dict[str, Any] = json.loads(captured.out)["splits"]
        return figures

    assert check(str(root))["train"]["kept"] == 3
    options = ("--segments", "no_benchmark", "--reported", "drop")
    assert check(str(root), *options)["train"]["excluded"] == {"benchmark": 1, "reported": 1}
    data = {"root": str(root), "segments": "no_benchmark", "reported": "drop"}
    assert check(str(root), *options)["train"]["split_hash"] == split_hash(open_data(data).read("train"))
    for wrong in (("--reported", "no"), ("--segments", "none"), ("--cache", "")):
        assert main(["data", "check", str(root), *wrong]) == 2
        assert "error[value]" in capsys.readouterr().err
    shard(tmp_path / "pq" / "train.parquet", range(2), ["a.wav", "b.wav"])
    monkeypatch.chdir(tmp_path)
    for words_, place in (((), "runs/.cache"), (("--cache", "mine"), "mine")):
        check("pq", *words_)
        assert len(list((tmp_path / place).rglob("*.wav"))) == 2


def test_check_takes_the_tables_of_training(tmp_path: Path) -> None:
    for split in ("asr_train", "asr_dev", "rest"):
        put(tmp_path / f"{split}.wav", len(split))
        (tmp_path / f"{split}.tsv").write_text(f"path\tsentence\n{split}.wav\thola\n")
    assert survey(tmp_path, decode=0).compared == ["asr_dev", "asr_train", "rest"]
    found = survey(tmp_path, decode=0, train="asr_train.tsv", dev="asr_dev.tsv")
    assert (list(found.splits), found.compared) == (["train", "dev"], ["train", "dev"])
    by_name = survey(tmp_path, decode=0, train="asr_train", test="rest")
    assert (list(by_name.splits), by_name.compared) == (["asr_train", "rest"], ["asr_train", "rest"])
    assert by_name.splits["asr_train"].split_hash == found.splits["train"].split_hash
    long = survey(tmp_path, decode=None, train="asr_train", test="rest", max_seconds=0.5, max_bad=1).splits
    assert (long["asr_train"].kept, long["rest"].kept) == (0, 1)  # test keeps what is too long, whatever its name


# --- manifests -------------------------------------------------------------------------------------------------------


def test_paths_begin_at_the_folder_of_their_table_or_at_the_root(tmp_path: Path) -> None:
    root = tmp_path / "own"
    (root / "lists").mkdir(parents=True)
    beside, below = put(root / "lists" / "train" / "0.wav", 1), put(root / "audio" / "1.wav", 2)
    put(root / "train" / "0.wav", 3)  # of the same name below the root: the table's folder comes first
    (root / "lists" / "train.tsv").write_text("path\tsentence\ntrain/0.wav\tuno\naudio/1.wav\tdos\n../audio/1.wav\tx\n")
    (root / "lists" / "dev.tsv").write_text("path\tsentence\nnowhere/2.wav\tuno\n")
    data = {"root": str(root), "train": "lists/train.tsv", "dev": "lists/dev.tsv"}
    corpus = open_data(data)  # which no reader recognizes by itself
    assert [u.audio for u in corpus.read("train")] == [beside, below, below]
    assert [u.audio for u in corpus.read("dev")] == [root / "lists" / "nowhere" / "2.wav"]
    with pytest.raises(DataError, match="no corpus that asrkit knows"):
        open_data({"root": str(root), "train": "lists/train.tsv", "dev": "lists/dve.tsv"})
    (root / "lists" / "dev.tsv").write_text("path\tsentence\n../../secret.wav\tuno\n")
    with pytest.raises(TrustError, match=r"dev\.tsv:2: the path '\.\./\.\./secret\.wav' leaves own/"):
        open_data(data).read("dev")


def test_tables_in_a_folder_of_an_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "own.tar.gz", "w:gz") as tar:
        for name, content in (("own/audio/1.wav", b"x"), ("own/lists/2.wav", b"y"),
                              ("own/lists/train.tsv", b"path\tsentence\naudio/1.wav\tuno\n2.wav\tdos\n")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    corpus = open_corpus(tmp_path / "own.tar.gz", cache=tmp_path / "cache", train="lists/train.tsv")
    for _ in range(2):  # before and after the clips are there
        found = corpus.read("train")
        fetch(corpus, found)
        assert [u.audio.read_bytes() for u in found] == [b"x", b"y"]


# --- Common Voice ----------------------------------------------------------------------------------------------------


def test_a_complaint_with_a_line_break_is_a_note(tmp_path: Path) -> None:
    root = release(tmp_path, "s\tc1.mp3\tuno", "s\tc2.mp3\tdos", "s\tc3.mp3\ttres")
    release(tmp_path, "s\tc4.mp3\tuno", "s\tc5.mp3\tcinco", split="dev")
    table = b"sentence\tsentence_id\tlocale\treason\nuno\t\tes\tone\nand\n\ntwo\ndos\t\tes\tb\xe1d\ntres\t\tes\tx\n"
    (root / "reported.tsv").write_bytes(table)
    report = DataReport()
    corpus = CommonVoice(root, reported="drop", report=report)
    assert [u.id for u in corpus.read("train")] == ["c2"]
    assert [u.id for u in corpus.read("dev")] == ["c5"]
    assert noted(report) == [("reported_not_read", 3, 3)]
    (root / "reported.tsv").write_text("sentance\treason\nuno\tx\n")
    with pytest.raises(DataError, match="no column 'sentence'"):
        CommonVoice(root, reported="drop").read("train")


def test_one_clip_has_one_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.tsv:3 and line 2 disagree about '0'") as caught:
        CommonVoice(release(tmp_path, "a\t./0.wav\thola", "b\t0.wav\thola")).read("train")
    assert caught.value.reason == "conflicting_rows"
    rows = ["a\t./0.wav\thola", "a\tx/../y//1.wav\thola", "a\t0a1b\thola", "a\ty/2\thola"]
    found = CommonVoice(release(tmp_path, *rows)).read("train")
    assert [u.id for u in found] == ["0", "y/1", "0a1b", "y/2"]
    assert [str(u.audio.relative_to(tmp_path / "clips")) for u in found] == ["0.wav", "y/1.wav", "0a1b.mp3", "y/2.mp3"]
    manifest = tmp_path / "own.csv"
    manifest.write_text("path,sentence\n./0.wav,hola\n0.wav,adiós\n")
    with pytest.raises(DataError, match="disagree about '0'"):
        open_corpus(manifest).read("train")


@pytest.mark.parametrize("turned", [False, True])
def test_rows_that_differ_in_other_cells_are_one_row_in_any_order(tmp_path: Path, turned: bool) -> None:
    rows = ["s\tc1.mp3\tsí\t2\tBenchmark", "s\tc1.mp3\tsí\t9\t", "s\tc2.mp3\tno\t3\t", "s\tc2.mp3\tno\t2\t"]
    root = release(tmp_path, *(rows[::-1] if turned else rows), header="client_id\tpath\tsentence\tup_votes\tsegment")
    found = {u.id: (u.extra["up_votes"], u.extra["segment"]) for u in CommonVoice(root).read("train")}
    assert found == {"c1": ("2", "Benchmark"), "c2": ("2", "")}
    report = DataReport()
    assert [u.id for u in CommonVoice(root, segments="no_benchmark", report=report).read("train")] == ["c2"]
    assert report.counts == {"duplicate": 2, "benchmark": 1}


def test_a_path_is_shown_as_the_table_has_it(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"the path '/etc/passwd' leaves clips/"):
        CommonVoice(release(tmp_path, "s\t/etc/passwd\thola")).read("train")


def test_durations_that_are_no_use_are_noted(tmp_path: Path) -> None:
    root = release(tmp_path, "s\tc1.mp3\tuno", "s\tc2.mp3\tdos")
    release(tmp_path, "s\tc1.mp3\tuno", split="validated")
    for content in ("", "clip\tduration[ms]\n"):
        (root / "clip_durations.tsv").write_text(content)
        report = DataReport()
        assert [u.seconds for u in CommonVoice(root, report=report).read("train")] == [None, None]
        assert noted(report) == [("no_durations", None, None)]
    (root / "clip_durations.tsv").write_text(
        "clip\tduration[ms]\nc1.mp3\t1000\nc2.mp3\t500\nc1.mp3\t2000\nc2.mp3\t500\n"
    )
    report = DataReport()
    corpus = CommonVoice(root, report=report)
    assert [[u.seconds for u in corpus.read(split)] for split in ("train", "validated")] == [[2, 0.5], [2]]
    assert noted(report) == [("durations_differ", 1, "c1.mp3")]


def test_durations_are_read_once_for_all_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = release(tmp_path, "s\tc1.mp3\tuno")
    release(tmp_path, "s\tc2.mp3\tuno", split="dev")
    (root / "clip_durations.tsv").write_text("clip\tduration[ms]\nc1.mp3\t1000\nc2.mp3\t500\n")
    corpus = CommonVoice(root)
    assert corpus.read("train")[0].seconds == 1
    (root / "clip_durations.tsv").unlink()
    assert corpus.read("dev")[0].seconds == 0.5


# --- archives --------------------------------------------------------------------------------------------------------


def tar_of(path: Path, members: list[tuple[str, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


TRAIN = b"client_id\tpath\tsentence\ns\tc0.mp3\tuno\ns\tc1.mp3\tdos\n"
MEMBERS = [("es/clips/c0.mp3", b"old"), ("es/clips/c1.mp3", b"one"), ("es/train.tsv", TRAIN)]


def test_zeros_after_the_stream_are_no_damage(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar.gz", MEMBERS)
    whole = path.read_bytes()
    for zeros in (1 << 18, 1_000_000):
        path.write_bytes(whole + bytes(zeros))
        assert len(open_corpus(path, cache=tmp_path / str(zeros)).read("train")) == 2
    path.write_bytes(whole + bytes(1_000_000) + b"more")
    with pytest.raises(DataError, match="no whole tar archive"):
        open_corpus(path, cache=tmp_path / "more").read("train")


@pytest.mark.parametrize("later", [b"a longer one", b"new"])
def test_of_a_clip_that_is_there_twice_the_last_counts(tmp_path: Path, later: bytes) -> None:
    path = tar_of(tmp_path / "a.tar.gz", [*MEMBERS, ("es/clips/c0.mp3", later)])
    report = DataReport()
    corpus = open_corpus(path, cache=tmp_path / "cache", report=report)
    found = corpus.read("train")
    fetch(corpus, found)
    assert [u.audio.read_bytes() for u in found] == [later, b"one"]
    assert noted(report) == [("twice_in_archive", 1, None)]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_joined_archives_are_not_read_in_half(tmp_path: Path, ending: str) -> None:
    path = tar_of(tmp_path / f"a.{ending}", MEMBERS, "w:gz" if ending == "tar.gz" else "w")
    other = tar_of(tmp_path / f"b.{ending}", [("es/dev.tsv", TRAIN)], "w:gz" if ending == "tar.gz" else "w")
    path.write_bytes(path.read_bytes() + other.read_bytes())
    with pytest.raises(DataError, match="more after the end of the archive") as caught:
        open_corpus(path, cache=tmp_path / "cache").read("train")
    assert caught.value.reason == "not_archive"
    if ending == "tar":  # zeros to fill a record, or more of them, are no data
        path.write_bytes(other.read_bytes() + bytes(3_000_000))
        path.write_bytes(tar_of(tmp_path / "c.tar", MEMBERS, "w").read_bytes() + bytes(3_000_000))
        assert len(open_corpus(path, cache=tmp_path / "cache").read("train")) == 2
    else:
        assert gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("gone", ["es/train.tsv", "es/clips", "cut"])
def test_what_is_gone_from_the_cache_is_made_again(tmp_path: Path, gone: str) -> None:
    path = tar_of(tmp_path / "a.tar.gz", MEMBERS)
    corpus = open_corpus(path, cache=tmp_path / "cache")
    first = corpus.read("train")
    fetch(corpus, first)
    (folder,) = (tmp_path / "cache").iterdir()
    if gone == "cut":
        (folder / "es" / "train.tsv").write_bytes(TRAIN[:40])
    elif gone == "es/clips":
        shutil.rmtree(folder / gone)
    else:
        (folder / gone).unlink()
    again = open_corpus(path, cache=tmp_path / "cache")
    assert again.read("train") == first
    fetch(again, first)
    assert [u.audio.read_bytes() for u in first] == [b"old", b"one"]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name]
