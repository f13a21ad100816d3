"""Corpora: real Common Voice rows of several releases, manifests, and one injected fault after the other."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from asrkit.corpus import (
    CommonVoice,
    DataReport,
    Manifest,
    Utterance,
    leakage,
    normalized,
    open_corpus,
    open_data,
    select_texts,
    split_hash,
)
from asrkit.corpus.tables import read_header, read_rows
from asrkit.errors import AsrkitError, DataError, RecipeError, StorageError, TrustError
from asrkit.text import CharacterTokenizer, Spanish, SymbolTokenizer, Verbatim

HEADER = "client_id\tpath\tsentence\tup_votes"


def release(
    folder: Path, *rows: str, header: str = HEADER, end: str = "\n", raw: bytes = b"", split: str = "train"
) -> Path:
    """A Common Voice folder with one table; `raw` is added as it is."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.tsv").write_bytes(end.join([header, *rows, ""]).encode() + raw)
    return folder


def row(n: int, sentence: str = "hola", speaker: str = "s") -> str:
    return f"{speaker}\tc{n}.mp3\t{sentence}\t2"


def utterance(name: str, text: str = "hola", speaker: str = "s", split: str = "train", **more: float) -> Utterance:
    return Utterance(name, Path(f"/clips/{name}.mp3"), text, speaker, split, **more)  # type: ignore[arg-type]


# --- real files --------------------------------------------------------------------------------------------------


def test_real_release_every_row_of_every_split(shared_data: Path) -> None:
    root = shared_data / "cv-corpus-6.1-2020-12-11" / "es"
    corpus = open_corpus(root)
    assert isinstance(corpus, CommonVoice)
    assert corpus.splits() == ["train", "dev", "test", "validated"]
    tables = {}
    for split in corpus.splits():
        lines = (root / f"{split}.tsv").read_bytes().decode().split("\n")[1:-1]
        cells = [line.split("\t") for line in lines]
        tables[split] = corpus.read(split)
        assert [(u.speaker, u.audio.name, u.text) for u in tables[split]] == [
            (c[0], c[1], unicodedata.normalize("NFC", c[2])) for c in cells
        ]
        assert all(u.audio.is_file() and u.id == u.audio.stem and u.split == split for u in tables[split])
        assert len({u.id for u in tables[split]}) == len(lines)
    assert 'Paciencia lo es todo".' in [u.text for u in tables["validated"]]
    assert corpus.report.lines == []
    del tables["validated"]
    assert leakage(tables).sentences == {"train/dev": 0, "train/test": 0, "dev/test": 0}


def test_csv_written_copy_equals_the_release(shared_data: Path) -> None:
    """`validated.sampled.tsv` went through a csv writer (CRLF, doubled quotes); the texts must come out the same."""
    root = shared_data / "cv-corpus-6.1-2020-12-11"
    for language in ("es", "ca", "fr", "it", "pt"):
        corpus = CommonVoice(root / language)
        copy, original = corpus.read("validated.sampled"), corpus.read("validated")
        assert [(u.id, u.text, u.speaker) for u in copy] == [(u.id, u.text, u.speaker) for u in original]
        assert len(original) == 100


@pytest.mark.parametrize("name", ["real_rows_17plus.tsv", "real_singleword_es_5.1_test.tsv"])
def test_real_rows_of_other_releases(shared_data: Path, tmp_path: Path, name: str) -> None:
    content = (shared_data / "common_voice_metadata" / name).read_bytes()
    (tmp_path / "clips").mkdir()
    (tmp_path / "test.tsv").write_bytes(content)
    utterances = open_corpus(tmp_path).read("test")
    assert len(utterances) == content.count(b"\n") - 1
    if "17plus" in name:
        assert '"Badając może o drogę i losy."' in [u.text for u in utterances]
    else:
        assert Counter(u.text for u in utterances).most_common(1)[0][1] > 100


@pytest.mark.parametrize(("name", "count"), [("tuxpaint_stamps_es", 753), ("asterisk_core_es", 480)])
def test_real_manifests(shared_data: Path, name: str, count: int) -> None:
    corpus = open_corpus(shared_data / name)
    splits = {split: corpus.read(split) for split in corpus.splits()}
    assert sum(map(len, splits.values())) == count
    assert sorted(splits) == ["dev", "extra", "test", "train"]
    assert all(u.audio.is_file() for utterances in splits.values() for u in utterances)
    tokenizer = CharacterTokenizer(Spanish.alphabet or "")
    for split in ("train", "dev", "test"):  # `extra` has digits, as its README says
        assert len(select_texts(splits[split], Spanish(), tokenizer, "error", {}, corpus.report)) == len(splits[split])
    with pytest.raises(DataError, match=r"'0' \(U\+0030\)|'2' \(U\+0032\)"):
        select_texts(splits["extra"], Spanish(), tokenizer, "error", {}, corpus.report)
    with pytest.raises(DataError, match="allow_shared_speakers"):
        leakage(splits).check()
    assert leakage(splits).speakers["train/dev"]
    leakage(splits).check(allow_shared_speakers=True)


def test_one_table_per_split_with_phones(shared_data: Path) -> None:
    corpus = open_corpus(shared_data / "speechbrain_asr_ctc", column="phn")
    train, dev = corpus.read("asr_train.tsv"), corpus.read("asr_dev")
    assert (len(train), len(dev)) == (8, 2)
    assert sum(u.seconds or 0 for u in train) == pytest.approx(18.96, abs=0.005)
    texts = [u.text for u in [*train, *dev]]
    assert sum(len(text.split()) for text in texts) == 195 + 55
    assert SymbolTokenizer.fit(texts).size == 44
    named = open_corpus(shared_data / "speechbrain_asr_ctc", column="phn", train="asr_train.tsv", dev="asr_dev.tsv")
    assert named.splits() == ["train", "dev"]
    assert [(u.id, u.split) for u in named.read("train")] == [(u.id, "train") for u in train]
    with pytest.raises(DataError, match=r"no column 'sentence'.*phn.*data\.column"):
        open_corpus(shared_data / "speechbrain_asr_ctc").read("asr_dev")


# --- tables ------------------------------------------------------------------------------------------------------


def test_random_quotes_lose_no_row(tmp_path: Path) -> None:
    rng = random.Random(0)
    sentences = ["".join(rng.choices("ab \"',;\u2028\x85\x0b", k=12)) for _ in range(300)]
    root = release(tmp_path, *[row(i, s) for i, s in enumerate(sentences)])
    assert [u.text for u in CommonVoice(root).read("train")] == sentences


def test_only_a_csv_writers_quotes_are_undone(tmp_path: Path) -> None:
    cells = ['"dice ""no"" y va"', '"entero"', '"a" y "b"', '""', '"""', 'x ""y""', '"abre', '"a ""b" c"']
    found = [u.text for u in CommonVoice(release(tmp_path, *[row(i, c) for i, c in enumerate(cells)])).read("train")]
    assert found == ['dice "no" y va', *cells[1:]]


def test_bom_crlf_missing_last_newline_and_blank_end(tmp_path: Path) -> None:
    plain = CommonVoice(release(tmp_path / "a", row(1), row(2, "niño"))).read("train")
    dos = release(tmp_path / "b", row(1), row(2, "nin\u0303o"), end="\r\n", raw=b"\r\n\r\n")
    table = dos / "train.tsv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    bare = release(tmp_path / "c", row(1), row(2, "niño"))
    (bare / "train.tsv").write_bytes((bare / "train.tsv").read_bytes().rstrip())
    for root in (dos, bare):
        assert [(u.id, u.text) for u in CommonVoice(root).read("train")] == [(u.id, u.text) for u in plain]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("rows", "raw", "message", "reason"),
    [
        ([row(1), "s\tc2.mp3\thola"], b"", r"train\.tsv:3: 3 cells, the header has 4", "bad_row"),
        ([row(1), row(2) + "\tx"], b"", r"train\.tsv:3: 5 cells", "bad_row"),
        ([row(1), "", row(2)], b"", r"train\.tsv:3: empty line", "bad_row"),
        ([row(1), row(2, "a\0b")], b"", r"train\.tsv:3: a NUL", "bad_row"),
        ([row(1)], b"s\tc2.mp3\tni\xf1o\t2\n", r"train\.tsv:3: not UTF-8 \(byte 0xf1", "not_utf8"),
        ([row(1), "s\t\thola\t2"], b"", r"train\.tsv:3: no path", "bad_row"),
        ([row(1), row(1, "adiós")], b"", r"train\.tsv:3 and line 2 disagree about 'c1'", "conflicting_rows"),
        ([], b"", r"train\.tsv: no rows", "empty_table"),
    ],
)
def test_faulty_tables_are_named_with_their_line(
    tmp_path: Path, rows: list[str], raw: bytes, message: str, reason: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        CommonVoice(release(tmp_path, *rows, raw=raw)).read("train")
    assert (caught.value.reason, caught.value.exit_code) == (reason, 3)


@pytest.mark.fault
def test_headers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.tsv:1: no column 'sentence'.*did you mean 'sentense'"):
        CommonVoice(release(tmp_path, header="client_id\tpath\tsentense")).read("train")
    with pytest.raises(DataError, match=r"column 'path' twice"):
        CommonVoice(release(tmp_path, header="client_id\tpath\tsentence\tpath")).read("train")
    shuffled = release(tmp_path, "hola\t\tc1.mp3\ts", header="sentence\tlocale\tpath\tclient_id")
    assert CommonVoice(shuffled).read("train") == [Utterance("c1", tmp_path / "clips" / "c1.mp3", "hola", "s", "train")]


@pytest.mark.fault
@pytest.mark.parametrize("path", ["../c.mp3", "/etc/passwd", "a/../../c.mp3", "../clips2/c.mp3", "..", "../es.mp3"])
def test_paths_must_stay_inside(tmp_path: Path, path: str) -> None:
    root = release(tmp_path / "es", row(1), f"s\t{path}\thola\t2")
    with pytest.raises(TrustError, match=r"train\.tsv:3: the path .* leaves clips/") as caught:
        CommonVoice(root).read("train")
    assert caught.value.exit_code == 7
    manifest = tmp_path / "m" / "manifest.tsv"
    manifest.parent.mkdir()
    manifest.write_text(f"path\tsentence\n{path}\thola\n")
    with pytest.raises(TrustError, match=r"manifest\.tsv:2"):
        open_corpus(manifest).read("train")


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    root = release(tmp_path, "s\tc3.mp3;touch PWN;.mp3\thola\t2")
    assert CommonVoice(root).read("train")[0].audio == tmp_path / "clips" / "c3.mp3;touch PWN;.mp3"


def test_identical_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    report = DataReport()
    root = release(tmp_path, row(1), row(2), row(1), "s\tc1.mp3\thola\t9")
    assert [u.id for u in open_corpus(root, report=report).read("train")] == ["c1", "c2"]
    assert report.counts == {"duplicate": 2}
    assert [(line["line"], line["first_line"]) for line in report.lines] == [(4, 2), (5, 2)]


def test_durations_and_names_of_old_releases(tmp_path: Path) -> None:
    root = release(tmp_path, row(1), row(2), "s\t0a1b\thola\t2")
    (root / "clip_durations.tsv").write_text("clip\tduration[ms]\nc1.mp3\t4608\nother.mp3\t1\n0a1b.mp3\t500\n")
    found = CommonVoice(root).read("train")
    assert [u.seconds for u in found] == [4.608, None, 0.5]
    assert found[2].audio.name == "0a1b.mp3"
    (root / "clip_durations.tsv").write_text("clip\tduration[ms]\nc1.mp3\tlong\n")
    with pytest.raises(DataError, match=r"clip_durations\.tsv:2: duration\[ms\] is 'long'"):
        CommonVoice(root).read("train")


@pytest.mark.parametrize(("name", "count"), [("real_rows_17plus.tsv", 13), ("real_singleword_es_5.1_test.tsv", 10)])
def test_other_columns_of_real_rows_are_kept(shared_data: Path, tmp_path: Path, name: str, count: int) -> None:
    content = (shared_data / "common_voice_metadata" / name).read_bytes()
    root = release(tmp_path)
    (root / "test.tsv").write_bytes(content)
    lines = content.decode().split("\n")[:-1]
    header = lines[0].split("\t")
    assert len(header) == count
    for utterance, line in zip(CommonVoice(root).read("test"), lines[1:], strict=True):
        cells = dict(zip(header, line.split("\t"), strict=True))
        accents = cells.pop("accents", None) or cells.pop("accent", "")
        expected = {key: cell for key, cell in cells.items() if key not in CommonVoice.COLUMNS} | {"accents": accents}
        assert dict(utterance.extra) == expected


def test_six_rows_with_an_unbalanced_quote(tmp_path: Path) -> None:
    sentences = ["uno", '"abre y no cierra', "tres", 'cierra" sin abrir', "cinco", "seis"]
    root = release(tmp_path, *[row(i, sentence) for i, sentence in enumerate(sentences)])
    assert [u.text for u in open_corpus(root).read("train")] == sentences


def test_benchmark_segments_are_left_out_by_choice(shared_data: Path, tmp_path: Path) -> None:
    rows = ["s\tc1.mp3\tsí\tBenchmark", "s\tc2.mp3\thola\t", "s\tc3.mp3\tuno\tSingleword Benchmark"]
    root = release(tmp_path, *rows, header="client_id\tpath\tsentence\tsegment")
    assert len(open_corpus(root).read("train")) == 3
    report = DataReport()
    assert [u.id for u in open_corpus(root, segments="no_benchmark", report=report).read("train")] == ["c2"]
    assert report.counts == {"benchmark": 2}
    assert [(line["line"], line["segment"]) for line in report.lines] == [(2, "Benchmark"), (4, "Singleword Benchmark")]
    with pytest.raises(RecipeError, match=r"data\.segments is 'none'.*all, no_benchmark"):
        open_corpus(root, segments="none")
    only = (shared_data / "common_voice_metadata" / "real_singleword_es_5.1_test.tsv").read_bytes()
    (root / "test.tsv").write_bytes(only)
    with pytest.raises(DataError, match=r"all 6200 rows are left out.*6200 benchmark|all \d+ rows are left out"):
        open_corpus(root, segments="no_benchmark").read("test")


def test_reported_sentences_are_joined_on_request(tmp_path: Path) -> None:
    header = "client_id\tpath\tsentence_id\tsentence"
    rows = ["s\tc1.mp3\tA\tuno", "s\tc2.mp3\tB\tdos", "s\tc3.mp3\t\tnin\u0303o", "s\tc4.mp3\t\tcuatro"]
    root = release(tmp_path, *rows, header=header)
    with pytest.raises(DataError, match=r"no reported\.tsv.*data\.reported=keep"):
        open_corpus(root, reported="drop").read("train")
    table = "sentence\tsentence_id\tlocale\treason\notro\tB\tes\toffensive\nniño\t\tes\t\nnada\t\tes\tx\n"
    (root / "reported.tsv").write_text(table, encoding="utf-8")
    assert len(open_corpus(root).read("train")) == 4
    report = DataReport()
    assert [u.id for u in open_corpus(root, reported="drop", report=report).read("train")] == ["c1", "c4"]
    assert [(line["excluded"], line["id"], line["complaint"]) for line in report.lines] == [
        ("reported", "c2", "offensive"),
        ("reported", "c3", "no reason given"),
    ]


@pytest.mark.fault
def test_delta_releases_say_how_to_use_them(tmp_path: Path) -> None:
    release(tmp_path, row(1), split="validated")
    root = release(tmp_path, row(2), split="other")
    corpus = open_corpus(root)
    with pytest.raises(DataError, match=r"delta release.*validated, other.*--data\.train=validated.*=other") as caught:
        corpus.read("train")
    assert caught.value.reason == "no_splits"
    assert [u.id for u in corpus.read("validated")] == ["c1"]
    release(tmp_path, row(3), split="train")
    with pytest.raises(DataError) as caught:
        corpus.read("dev")
    assert caught.value.reason == "unknown_split"


@pytest.mark.parametrize("header", ["", "clip\tduration[ms]\n"])
def test_times_of_older_releases(tmp_path: Path, header: str) -> None:
    root = release(tmp_path, row(1), row(2), row(3))
    (root / "times.txt").write_text(f"{header}c1.mp3\t1500\nc9.mp3\t1\nc2.mp3 2000\n")
    report = DataReport()
    assert [u.seconds for u in CommonVoice(root, report=report).read("train")] == [1.5, 2, None]
    assert report.lines == []
    (root / "times.txt").write_text("c1.mp3\t1500\n\nc2.mp3\tlong\n")
    assert [u.seconds for u in CommonVoice(root, report=report).read("train")] == [1.5, None, None]
    assert [(line["note"], line["lines"], line["first"]) for line in report.lines] == [("times_not_read", 2, 2)]
    (root / "clip_durations.tsv").write_text("clip\tduration[ms]\nc3.mp3\t700\n")
    assert [u.seconds for u in CommonVoice(root).read("train")] == [None, None, 0.7]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("clip\tduration[ms]\nc1.mp3\t-5\n", r"clip_durations\.tsv:2: duration\[ms\] is '-5'"),
        ("clip\tduration[ms]\nc1.mp3\tnan\n", r"clip_durations\.tsv:2: duration\[ms\] is 'nan'"),
        ("clip\tduration[ms]\nc1.mp3\t5\nc2.mp3\n", r"clip_durations\.tsv:3: 1 cells"),
        ("clip\tduration\nc1.mp3\t5\n", r"clip_durations\.tsv:1: no column 'duration\[ms\]'"),
    ],
)
def test_faulty_durations_are_named_with_their_line(tmp_path: Path, content: str, message: str) -> None:
    root = release(tmp_path, row(1))
    (root / "clip_durations.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        CommonVoice(root).read("train")


def test_durations_of_clips_with_quotes(tmp_path: Path) -> None:
    names = ['"a.mp3', 'b".mp3', "c.mp3"]
    root = release(tmp_path, *[f"s\t{name}\thola\t2" for name in names])
    (root / "clip_durations.tsv").write_text(
        "clip\tduration[ms]\n" + "".join(f"{n}\t{i}000\n" for i, n in enumerate(names))
    )
    assert [u.seconds for u in CommonVoice(root).read("train")] == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_manifest_formats_agree(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"path": "a/x.wav", "sentence": 'dijo "no", y ya', "speaker": "ana", "split": "train", "duration": "2.5"},
        {"path": "y.wav", "sentence": "niño", "speaker": "", "split": "dev", "duration": ""},
    ]
    table = tmp_path / f"manifest{suffix}"
    if suffix == ".jsonl":
        table.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif suffix == ".csv":
        import csv

        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        table.write_text("\n".join("\t".join(r) for r in (rows[0].keys(), *(r.values() for r in rows))) + "\n")
    for root in (tmp_path, table):
        corpus = open_corpus(root)
        assert isinstance(corpus, Manifest)
        assert corpus.splits() == ["train", "dev"]
        assert corpus.read("train") == [
            Utterance("a/x", tmp_path / "a" / "x.wav", 'dijo "no", y ya', "ana", "train", seconds=2.5)
        ]
        assert corpus.read("dev")[0].seconds is None
        with pytest.raises(DataError, match="no split 'tets'"):
            corpus.read("tets")


def test_other_tables_in_the_folder_are_no_splits(tmp_path: Path) -> None:
    for split in ("train", "eval"):
        (tmp_path / f"{split}.tsv").write_text("path\tsentence\na.wav\thola\n")
    (tmp_path / "dev.tsv").write_text("file\tsentence\na.wav\thola\n")  # its name says that it should be one
    (tmp_path / "speakers.csv").write_text("speaker,age\nana,30\n")
    (tmp_path / "broken.csv").write_bytes(b"pa\xffth\n")
    assert open_corpus(tmp_path).splits() == ["broken", "dev", "eval", "train"]


@pytest.mark.fault
def test_half_a_surrogate_pair_names_its_line(tmp_path: Path) -> None:
    table = tmp_path / "all.jsonl"
    good = '{"path": "a.wav", "sentence": "\\ud83d\\ude00 hola"}\n'
    table.write_text(good)
    assert open_corpus(table).read("train")[0].text == "\U0001f600 hola"
    table.write_text(good + '{"path": "b.wav", "sentence": "hola \\uD800"}\n')
    with pytest.raises(DataError, match=r"all\.jsonl:2: .*surrogates") as caught:
        open_corpus(table).read("train")
    assert caught.value.reason == "bad_row"


def test_manifest_segments_ids_and_split_of_rows(tmp_path: Path) -> None:
    table = tmp_path / "long.tsv"
    table.write_text("path\ttext\tstart\tend\na.wav\tuno\t0\t1.5\na.wav\tdos\t1.5\t3\n")
    found = open_corpus(table).read("train")
    assert [(u.id, u.start, u.end, u.seconds) for u in found] == [("a#0.000", 0, 1.5, 1.5), ("a#1.500", 1.5, 3, 1.5)]
    table.write_text("path\ttext\tid\nb.wav\tuno\tmy\n")
    assert open_corpus(table).read("train")[0].id == "my"
    table.write_text("path\ttext\tstart\tend\na.wav\tuno\t2\t1.5\n")
    with pytest.raises(DataError, match=r"long\.tsv:2: end 1\.5 is not after start 2"):
        open_corpus(table).read("train")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", 'path,text\na.wav,"abre\nb.wav,dos\n', r"m\.csv:2: .*"),
        ("m.csv", "path,text\na.wav,uno, dos\n", r"m\.csv:2: 3 cells"),
        ("m.jsonl", '{"path": "a.wav", "text": "x"}\n{"path": \n', r"m\.jsonl:2"),
        ("m.jsonl", '{"path": "a.wav", "text": "x"}\n["a"]\n', r"m\.jsonl:2: not a flat object"),
        ("m.jsonl", '{"path": "a.wav", "text": "x"}\n{"path": "b.wav"}\n', r"m\.jsonl:2: no key 'text'"),
        ("m.jsonl", '{"path": "a.wav", "path": "b.wav", "text": "x"}\n', r"m\.jsonl:1: a key stands twice"),
        ("m.tsv", "path\ttext\tstart\na.wav\tx\tnan\n", r"m\.tsv:2: start is 'nan'"),
        ("m.tsv", "path\ttext\tstart\na.wav\tx\t-1\n", r"m\.tsv:2: start is '-1'"),
        ("m.tsv", "path\tnote\na.wav\tx\n", r"m\.tsv:1: no column 'sentence'"),
    ],
)
def test_faulty_manifests(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        open_corpus(tmp_path / name).read("train")


def test_read_header_and_unknown_tables(tmp_path: Path) -> None:
    (tmp_path / "e.tsv").write_text("")
    assert read_header(tmp_path / "e.tsv") == []
    assert list(read_rows(tmp_path / "e.tsv")) == []
    with pytest.raises(DataError, match=r"possible: \.tsv, \.csv, \.jsonl"):
        read_header(tmp_path / "e.xlsx")
    with pytest.raises(DataError, match="no such file"):
        read_header(tmp_path / "no.tsv")
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(StorageError):
        read_header(tmp_path / "folder.tsv")


# --- opening -----------------------------------------------------------------------------------------------------


def test_missing_and_mistaken_roots_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere.* does not exist.*extracted.*asrkit data get.*asrkit data synth"
    ) as e:
        open_corpus(tmp_path / "nowhere")
    assert (e.value.reason, e.value.exit_code) == ("missing_corpus", 3)
    with pytest.raises(DataError, match=r"no corpus that asrkit knows.*common_voice, manifest"):
        open_corpus(tmp_path)
    (tmp_path / "es.zip").write_bytes(b"")
    with pytest.raises(DataError, match="extract it"):
        open_corpus(tmp_path / "es.zip")
    release(tmp_path / "cv" / "es", row(1))
    with pytest.raises(DataError, match=r"holds languages.*cv/es"):
        open_corpus(tmp_path / "cv")
    with pytest.raises(DataError, match=r"no split 'tran'.*did you mean 'train'"):
        open_corpus(tmp_path / "cv" / "es").read("tran")
    with pytest.raises(DataError, match="no split"):
        open_corpus(tmp_path / "cv" / "es").read("../es/train")


def test_options_and_names_are_checked(tmp_path: Path) -> None:
    root = release(tmp_path, row(1))
    assert open_corpus(root, "common_voice", column=None).read("train")
    with pytest.raises(RecipeError, match="has no option 'column'"):
        open_corpus(root, column="text")
    for wrong in ({"train": "train.tsv"}, {"dev": "lists/train.csv"}):  # by the way to a file, which manifests take
        with pytest.raises(RecipeError, match=r"have names, not files; fix: --data\.(train|dev)=train$"):
            open_data({"root": str(root), "train": "train", **wrong})
    with pytest.raises(RecipeError, match="did you mean 'manifest'"):
        open_corpus(root, "manifst")


# --- hashes, leakage, texts, report --------------------------------------------------------------------------------


def test_split_hash() -> None:
    rows = [utterance("a", "uno"), utterance("b", "dos", "t")]
    expected = hashlib.sha256(b'["a", "uno", "s"]\n["b", "dos", "t"]').hexdigest()
    assert split_hash(rows) == split_hash(rows[::-1]) == expected
    changed = [utterance("a", "uno"), utterance("b", "dos", "s")]
    assert split_hash(changed) != expected
    assert split_hash([utterance("a", "unos")]) != split_hash([utterance("auno", "s")])


@pytest.mark.fault
def test_leakage_of_speakers_and_audio_is_an_error() -> None:
    train = [utterance("a", speaker="ana"), utterance("b", speaker="eva")]
    shared = leakage({"train": train, "test": [utterance("c", speaker="eva")]})
    assert shared.speakers == {"train/test": ["eva"]}
    with pytest.raises(DataError, match=r"speakers in more than one split: train/test: 1 \(eva\)") as caught:
        shared.check()
    assert (caught.value.exit_code, caught.value.reason) == (3, "shared_speakers")
    shared.check(allow_shared_speakers=True)
    twice = leakage({"dev": train, "test": [utterance("a", speaker="leo")]})
    with pytest.raises(DataError, match=r"audio in more than one split: dev/test: 1 \(a\)"):
        twice.check(allow_shared_speakers=True)  # no excuse for shared audio


def test_leakage_by_hash_and_overlap_of_segments() -> None:
    a, b = utterance("a", speaker="ana"), utterance("b", speaker="eva")
    assert not leakage({"x": [a], "y": [b]}).audio
    assert leakage({"x": [a], "y": [b]}, hashes={a.audio: "h", b.audio: "h"}).audio == {"x/y": ["b"]}

    def piece(name: str, start: float, end: float | None) -> Utterance:
        return Utterance(name, Path("/long.wav"), name, "", "s", start, end)

    first = piece("1", 0, 2)
    assert not leakage({"x": [first], "y": [piece("2", 2, 4)]}).audio
    assert leakage({"x": [first], "y": [piece("2", 1.9, 4)]}).audio == {"x/y": ["2"]}
    assert leakage({"x": [piece("3", 3, None)], "y": [piece("2", 2, 4)]}).audio == {"x/y": ["2"]}


def test_shared_sentences_are_counted_and_unknown_speakers_are_not_shared() -> None:
    train = [utterance("a", "¡Hola!", ""), utterance("b", "Adiós", "")]
    test = [utterance("c", "hola", ""), utterance("d", "hola.", ""), utterance("e", "ya", "")]
    assert leakage({"train": train, "test": test}).sentences == {"train/test": 0}
    assert leakage({"train": train, "test": test}, Spanish()).sentences == {"train/test": 2}
    assert "train/test: 2" in leakage({"train": train, "test": test}, Spanish()).summary()


ALPHABET = CharacterTokenizer(Spanish.alphabet or "")
FOREIGN = [
    utterance("ok", "¡Sí, señor!"),
    utterance("pct", "El 80% À la"),
    utterance("nfd", "nin\u0303o"),
    utterance("empty", "…"),
    utterance("jp", "日本 80"),
]


def test_unknown_characters_error_names_counts_example_and_fix() -> None:
    with pytest.raises(DataError) as caught:
        select_texts(FOREIGN, Spanish(), ALPHABET, "error", {}, DataReport())
    message = str(caught.value)
    for part in ("2 of 4 sentences", "'8' (U+0038) 2 times", "'à' (U+00E0) once", "'日' (U+65E5) once", "jp", "'drop'"):
        assert part in message
    assert caught.value.exit_code == 3


def test_drop_excludes_and_lists() -> None:
    report = DataReport()
    chosen = select_texts(FOREIGN, Spanish(), ALPHABET, "drop", {}, report)
    assert [(u.id, text) for u, text in chosen] == [("ok", "sí señor"), ("nfd", "niño")]
    assert report.counts == {"unknown_character": 2, "empty_text": 1}
    dropped = {line["id"]: line for line in report.lines}
    assert dropped["pct"]["characters"] == ["%", "0", "8", "à"]
    assert dropped["jp"]["text"] == "日本 80"


def test_map_replaces_first_and_counts() -> None:
    mapping = {"%": " por ciento", "80": "ochenta", "à": "a", "8": "x", "日本": "japón"}
    report = DataReport()
    chosen = select_texts(FOREIGN, Spanish(), ALPHABET, "map", mapping, report)
    assert [text for _, text in chosen] == ["sí señor", "el ochenta por ciento a la", "niño", "japón ochenta"]
    notes = {line["symbol"]: line["count"] for line in report.lines if "note" in line}
    assert notes == {"%": 1, "80": 2, "à": 1, "日本": 1}
    assert report.counts == {"empty_text": 1}
    with pytest.raises(DataError, match="add a replacement for each"):
        select_texts(FOREIGN, Spanish(), ALPHABET, "map", {"%": " por ciento"}, DataReport())
    assert normalized("À 80 %", Spanish(), mapping) == "a ochenta por ciento"  # no double space


def test_policies_are_checked() -> None:
    with pytest.raises(RecipeError, match="possible: drop, error, map"):
        select_texts([], Spanish(), ALPHABET, "ignore", {}, DataReport())
    with pytest.raises(RecipeError, match="without replacements"):
        select_texts([], Spanish(), ALPHABET, "map", {}, DataReport())


def test_symbols_outside_are_named() -> None:
    phones = SymbolTokenizer(["aa", "cl"])
    with pytest.raises(DataError, match="'zz' 2 times"):
        select_texts([utterance("a", "aa zz zz")], Verbatim(), phones, "error", {}, DataReport())


def test_report_writes_one_json_line_per_event(tmp_path: Path) -> None:
    report = DataReport()
    report.exclude(utterance("a", split="dev"), "too_short_for_ctc", frames=3, needed=5)
    report.exclude(utterance("b"), "nonfinite", peak=float("nan"))
    report.note("low_rate", utterance("c"), rate=8000)
    report.write(tmp_path / "report.jsonl")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "excluded": "too_short_for_ctc",
        "split": "dev",
        "id": "a",
        "audio": "/clips/a.mp3",
        "frames": 3,
        "needed": 5,
    }
    assert (lines[1]["peak"], lines[2]["note"], len(lines)) == ("nan", "low_rate", 3)
    assert report.summary().startswith("2 excluded: 1 nonfinite (NaN or infinite samples), 1 too_short_for_ctc")
    assert DataReport().summary() == "nothing excluded"
    with pytest.raises(StorageError):
        report.write(tmp_path / "no" / "report.jsonl")


def test_limit_of_bad_utterances() -> None:
    report = DataReport()
    for name in ("a", "b"):
        report.exclude(utterance(name), "missing")
    report.exclude(utterance("c"), "duplicate")
    report.check_limit(0.02, 100)
    with pytest.raises(DataError, match=r"2 of 99 utterances are unusable.*2 missing.*up to 2\.00%") as caught:
        report.check_limit(0.02, 99)
    assert (caught.value.exit_code, caught.value.reason) == (3, "too_many_excluded")
    report.check_limit(0.02, 99, excluded=1)
    assert isinstance(caught.value, AsrkitError)
