"""One `data.root` for all sources: the same clips through each; archives that are hostile, cut, or read in two goes."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
import tarfile
import types
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

import asrkit.corpus.extraction
from asrkit import registry
from asrkit.cli import data_get, main
from asrkit.corpus import Cells, Corpus, Utterance, fetch, open_corpus, open_data, split_hash
from asrkit.corpus.archive import Archive
from asrkit.corpus.common_voice import CommonVoice
from asrkit.corpus.folder import AudioFolder
from asrkit.corpus.hub import Parquet
from asrkit.corpus.selection import DataReport
from asrkit.errors import DataError, RecipeError, StorageError, TrustError
from asrkit.preparation.clips import Limits
from asrkit.preparation.feature_cache import cached_features

HEADER = "client_id\tpath\tsentence\tsegment"


def tar_of(path: Path, members: list[tuple[str, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def small(where: str = "cv-corpus-9/es/", clips: int = 6) -> list[tuple[str, bytes]]:
    """A release with clips that are no audio, tables last."""
    rows = [f"s{i % 3}\tc{i}.mp3\thola {i}\t" for i in range(clips)]
    members = [(f"{where}clips/c{i}.mp3", bytes([i]) * (100 + i)) for i in range(clips)]
    members += [(f"{where}clips/unwanted{i}.mp3", b"x" * 5000) for i in range(3)]
    members += [(f"{where}train.tsv", "\n".join([HEADER, *rows[:4], ""]).encode())]
    return [*members, (f"{where}test.tsv", "\n".join([HEADER, *rows[4:], ""]).encode())]


def taken(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.mp3"))


def contents(corpus: Corpus, split: str, only: set[str] | None = None) -> dict[str, tuple[str, bytes]]:
    """id -> (text, bytes of the audio)."""
    utterances = [u for u in corpus.read(split) if only is None or u.id in only]
    fetch(corpus, utterances)
    return {u.id: (u.text, u.audio.read_bytes()) for u in utterances}


# --- the same twenty real clips through every source -----------------------------------------------------------------


@pytest.fixture(scope="module")
def twenty(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release folder with the first twenty training clips of Common Voice 6.1 Spanish and the tables of all."""
    source = shared_data / "cv-corpus-6.1-2020-12-11" / "es"
    root = tmp_path_factory.mktemp("sources") / "cv-corpus-6.1" / "es"
    (root / "clips").mkdir(parents=True)
    lines = (source / "train.tsv").read_text(encoding="utf-8").split("\n")[:21]
    (root / "train.tsv").write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")
    for line in lines[1:]:
        shutil.copyfile(source / "clips" / line.split("\t")[1], root / "clips" / line.split("\t")[1])
    return root


def make_tables_first(release: Path, to: Path) -> Path:
    paths = [release / "train.tsv", *sorted((release / "clips").iterdir())]
    base = release.parent.parent
    return tar_of(to / "first.tar.gz", [(str(p.relative_to(base)), p.read_bytes()) for p in paths])


def make_tables_last(release: Path, to: Path) -> Path:
    paths = [*sorted((release / "clips").iterdir()), release / "train.tsv"]
    return tar_of(to / "last.tgz", [(f"./{p.relative_to(release.parent)}", p.read_bytes()) for p in paths])


def make_plain_tar(release: Path, to: Path) -> Path:
    paths = [*sorted((release / "clips").iterdir()), release / "train.tsv"]
    return tar_of(to / "plain.tar", [(str(p.relative_to(release)), p.read_bytes()) for p in paths], "w")


def make_manifest(release: Path, to: Path) -> Path:
    rows = [json.dumps({"path": f"clips/{u.audio.name}", "text": u.text, "id": u.id, "speaker": u.speaker})
            for u in CommonVoice(release).read("train")]  # fmt: skip
    shutil.copytree(release / "clips", to / "clips")
    (to / "mine.jsonl").write_text("\n".join([*rows, ""]), encoding="utf-8")
    return to / "mine.jsonl"


def make_parquet(release: Path, to: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    utterances = CommonVoice(release).read("train")
    (to / "data").mkdir()
    for shard in (0, 1):
        rows = utterances[shard * 12 : shard * 12 + 12]
        audio = [{"bytes": u.audio.read_bytes(), "path": f"/their/machine/{u.audio.name}"} for u in rows]
        ages = [u.extra["age"] or None for u in rows]
        columns = {"client_id": [u.speaker for u in rows], "sentence": [u.text for u in rows], "age": ages}
        table = pa.table(columns | {"audio": audio})
        pq.write_table(table, to / "data" / f"train-{shard:05d}-of-00002.parquet", row_group_size=5)
    return to


def make_parquet_bytes(release: Path, to: Path) -> Path:
    """One file, plain bytes instead of {bytes, path}."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    utterances = CommonVoice(release).read("train")
    table = pa.table({"speaker": [u.speaker for u in utterances], "path": [u.audio.name for u in utterances],
                      "audio": pa.array([u.audio.read_bytes() for u in utterances], pa.large_binary()),
                      "text": [u.text for u in utterances]})  # fmt: skip
    pq.write_table(table, to / "train.parquet")
    return to / "train.parquet"


def make_audio_folder(release: Path, to: Path) -> Path:
    for utterance in CommonVoice(release).read("train"):
        folder = to / "train" / utterance.speaker
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(utterance.audio, folder / utterance.audio.name)
        (folder / f"{utterance.id}.txt").write_text(utterance.text + "\n", encoding="utf-8")
    return to


MAKERS = [make_tables_first, make_tables_last, make_plain_tar, make_manifest, make_parquet, make_parquet_bytes]


@pytest.mark.parametrize("make", [*MAKERS, make_audio_folder])
def test_every_source_gives_the_same_twenty_clips(twenty: Path, tmp_path: Path, make: object) -> None:
    original = CommonVoice(twenty).read("train")
    (tmp_path / "made").mkdir()
    root = make(twenty, tmp_path / "made")  # type: ignore[operator]
    data = {"root": str(root), "format": None, "train": "train", "cache": str(tmp_path / "cache"), "column": None}
    corpus = open_data(data)
    assert corpus.splits() == ["train"]
    utterances = corpus.read("train")
    fetch(corpus, utterances)
    expected = {(u.text, u.speaker, u.audio.read_bytes()) for u in original}
    assert {(u.text, u.speaker, u.audio.read_bytes()) for u in utterances} == expected
    assert len(utterances) == len(original) == 20
    if make is not make_audio_folder:  # there the speaker's folder is part of the id
        assert split_hash(utterances) == split_hash(original)
    if "parquet" in make.__name__ or "tar" in str(root):  # type: ignore[attr-defined]
        assert all(tmp_path / "cache" in u.audio.parents for u in utterances)
    if make in (make_tables_first, make_tables_last, make_plain_tar):
        assert [(u, u.extra["accents"]) for u in corpus.read("train")] == [
            (Utterance(u.id, v.audio, u.text, u.speaker, u.split), u.extra["accents"])
            for u, v in zip(original, utterances, strict=True)
        ]


@pytest.fixture(scope="module")
def mixed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release folder with twenty real clips of three kinds: 48 kHz mp3, 44.1 kHz stereo ogg, 8 kHz wav."""
    root = tmp_path_factory.mktemp("mixed") / "cv-corpus-0" / "es"
    (root / "clips").mkdir(parents=True)
    counts = {"cv-corpus-6.1-2020-12-11/es": 8, "tuxpaint_stamps_es": 6, "asterisk_core_es": 6}
    rows = ["client_id\tpath\tsentence\tage\taccents"]
    for name, count in counts.items():
        clips = [u for u in open_corpus(shared_data / name).read("train") if u.audio.stat().st_size < 200_000][:count]
        for u in clips:
            shutil.copyfile(u.audio, root / "clips" / u.audio.name)
            rows.append(f"{u.speaker}\t{u.audio.name}\t{u.text}\t\t")
    (root / "train.tsv").write_text("\n".join([*rows, ""]), encoding="utf-8", newline="\n")
    return root


def features_by_text(corpus: Corpus, cache: Path, name: str = "fbank") -> dict[tuple[str, str], np.ndarray]:
    """(text, speaker) -> cached features (T, F) of the clips of train."""
    utterances = corpus.read("train")
    fetch(corpus, utterances)
    report = DataReport()
    extractor = registry.load("features", name)(sample_rate=16000).eval()
    table = cached_features(utterances, extractor, {}, cache, report, limits=Limits(20.0), label="train")
    assert report.counts == {}
    by_id = {u.id: u for u in utterances}
    assert len(by_id) == len(table) == 20
    return {(by_id[i].text, by_id[i].speaker): table.features(row) for row, i in enumerate(table.ids)}


@pytest.mark.parametrize("clips", ["twenty", "mixed"])
@pytest.mark.parametrize("make", [*MAKERS, make_audio_folder])
def test_every_source_gives_the_same_features(
    tmp_path: Path, request: pytest.FixtureRequest, clips: str, make: object
) -> None:
    """Bit for bit, computed anew for each source."""
    release = request.getfixturevalue(clips)
    features = "mfcc" if make is make_manifest else "fbank"
    expected = features_by_text(CommonVoice(release), tmp_path / "expected", features)
    (tmp_path / "made").mkdir()
    root = make(release, tmp_path / "made")  # type: ignore[operator]
    found = features_by_text(open_data({"root": str(root), "cache": str(tmp_path / "clips")}), tmp_path / "c", features)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert (values.dtype, found[key].dtype) == (np.float16, np.float16)
        assert found[key].tobytes() == values.tobytes()
        assert found[key].shape == values.shape
    assert len({values.tobytes() for values in found.values()}) == 20


def test_the_features_of_real_clips_are_those_of_the_plain_way(mixed: Path, tmp_path: Path) -> None:
    """soundfile, mean of the channels, torchaudio's resampling, the extractor: to the last bits of float16."""
    found = features_by_text(CommonVoice(mixed), tmp_path)
    extractor = registry.load("features", "fbank")(sample_rate=16000).eval()
    for utterance in CommonVoice(mixed).read("train"):
        samples, rate = soundfile.read(utterance.audio, dtype="float64", always_2d=True)
        wave = torchaudio.functional.resample(torch.from_numpy(samples.mean(axis=1)), rate, 16000).float()[None]
        with torch.inference_mode():
            expected = extractor(wave, torch.tensor([wave.shape[1]]))[0][0].numpy()
        values = found[utterance.text, utterance.speaker].astype(np.float32)
        assert values.shape == expected.shape
        audible = expected > expected.max() - 12  # nepers; far below, float32 filters leave noise of their own
        assert np.abs(values - expected)[audible].max() < 0.03
        assert audible.mean() > 0.3


def test_training_on_an_archive_takes_only_the_clips_it_needs(twenty: Path, tmp_path: Path, root: Path) -> None:
    from asrkit.preparation import prepare
    from asrkit.recipe import load_recipe
    from asrkit.recipe.schema import SCHEMA

    archive = make_tables_last(twenty, tmp_path)
    overrides = {"root": str(archive), "dev": None, "test": None, "max_utterances": 3, "cache": str(tmp_path / "c")}
    options = [(f"data.{key}", json.dumps(value)) for key, value in overrides.items()]
    recipe = load_recipe(root / "recipes" / "demo.yaml", options, known=SCHEMA)
    prepared = prepare(recipe, ("train",))
    assert len(prepared.splits["train"]) == len(taken(tmp_path / "c")) == 3


# --- archives --------------------------------------------------------------------------------------------------------


def test_only_wanted_clips_are_taken_and_the_need_is_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = Archive(tar_of(tmp_path / "a.tar.gz", small()), tmp_path / "cache")
    test = corpus.read("test")
    assert capsys.readouterr().err == ""
    corpus.fetch(test)
    assert "a.tar.gz: taking 2 clips into" in (said := capsys.readouterr().err)
    assert "needs 0.0 MB of disk" in said
    assert taken(tmp_path / "cache") == ["c4.mp3", "c5.mp3"]
    both = [*corpus.read("train"), *test]
    corpus.fetch(both)
    assert "taking 4 clips (2 are there already)" in capsys.readouterr().err
    assert [u.audio.read_bytes() for u in both] == [bytes([i]) * (100 + i) for i in range(6)]
    corpus.fetch(both)
    assert capsys.readouterr().err == ""


def test_an_archive_is_read_once_for_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", small())
    first = Archive(archive, tmp_path / "cache").read("train")
    monkeypatch.setattr("asrkit.corpus.archive.members_of", lambda *a, **k: pytest.fail("read again"))
    moved = archive.rename(tmp_path / "b.tar.gz")
    assert Archive(moved, tmp_path / "cache").read("train") == first
    tar_of(moved, small(clips=5))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        Archive(moved, tmp_path / "cache").read("train")


@pytest.mark.fault
def test_too_little_disk_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Archive(tar_of(tmp_path / "a.tar.gz", small()), tmp_path / "cache")
    train = corpus.read("train")
    monkeypatch.setattr(asrkit.corpus.extraction, "free_bytes", lambda path: 4 * 4096 - 1)
    with pytest.raises(StorageError, match=r"needs 0\.0 MB, ") as caught:
        corpus.fetch(train)
    assert (caught.value.exit_code, caught.value.reason, taken(tmp_path / "cache")) == (5, "disk_full", [])
    monkeypatch.setattr(asrkit.corpus.extraction, "free_bytes", lambda path: 4 * 4096)
    corpus.fetch(train)
    assert len(taken(tmp_path / "cache")) == 4


class Killed(BaseException):
    """What no `except Exception` stops."""


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["archive", "parquet"])
def test_interrupted_extraction_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twenty: Path, kind: str
) -> None:
    if kind == "archive":
        corpus: Corpus = Archive(make_tables_last(twenty, tmp_path), tmp_path / "cache")
    else:
        (tmp_path / "pq").mkdir()
        corpus = Parquet(make_parquet(twenty, tmp_path / "pq"), tmp_path / "cache")
    replace, calls = os.replace, []

    def dying(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 8:
            raise Killed
        replace(source, target)

    utterances = corpus.read("train")
    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(Killed):
        fetch(corpus, utterances)
    monkeypatch.undo()
    there = [u for u in utterances if u.audio.exists()]
    assert len(there) == 7
    there[0].audio.write_bytes(b"cut")  # as a power cut may leave it
    before = {u.audio: u.audio.stat().st_ino for u in there[1:]}
    fetch(corpus, utterances)
    originals = {u.id: u.audio.read_bytes() for u in CommonVoice(twenty).read("train")}
    assert {u.id: u.audio.read_bytes() for u in utterances} == originals
    assert all(audio.stat().st_ino == inode for audio, inode in before.items())  # kept, not written again
    assert not list((tmp_path / "cache").rglob(".tmp*"))


@pytest.mark.fault
def test_interrupted_first_pass_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", small())
    monkeypatch.setattr("asrkit.corpus.archive._save", lambda *a: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        Archive(archive, tmp_path / "cache").read("train")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert len(Archive(archive, tmp_path / "cache").read("train")) == 4


@pytest.mark.fault
@pytest.mark.parametrize(
    ("name", "kind", "link", "message"),
    [
        ("../evil.tsv", tarfile.REGTYPE, "", "leaves its folder"),
        ("es/clips/../../../evil.mp3", tarfile.REGTYPE, "", "leaves its folder"),
        ("/etc/evil.tsv", tarfile.REGTYPE, "", "leaves its folder"),
        ("es/clips/c0.mp3", tarfile.SYMTYPE, "/etc/passwd", "is a link to '/etc/passwd'"),
        ("es/clips", tarfile.SYMTYPE, "/tmp", "is a link"),
        ("es/clips/c0.mp3", tarfile.LNKTYPE, "../../secret", "is a link"),
        ("es/clips/c0.mp3", tarfile.FIFOTYPE, "", "neither a plain file nor a folder"),
        ("es/clips/c0.mp3", tarfile.CHRTYPE, "", "neither a plain file nor a folder"),
        ("es/clips/a\nb.mp3", tarfile.REGTYPE, "", "strange name"),
        ("es\\..\\..\\evil.tsv", tarfile.REGTYPE, "", "strange name"),
    ],
)
def test_hostile_members_refuse_the_archive(tmp_path: Path, name: str, kind: bytes, link: str, message: str) -> None:
    path = tmp_path / "in" / "evil.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info, io.BytesIO())
        for good, content in small("es/"):
            info = tarfile.TarInfo(good)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(TrustError, match=message) as caught:
        Archive(path, tmp_path / "in" / "cache").read("train")
    assert caught.value.exit_code == 7
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["in", "cache", "evil.tar.gz"]


@pytest.mark.fault
def test_cut_changed_and_mistaken_archives(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "whole.tar.gz", small()).read_bytes()
    raw = bytearray(gzip.decompress(whole))
    raw[600] ^= 1  # in the bytes of the first clip
    faults = {
        "cut": whole[: len(whole) // 2],
        "end": whole[:-4],
        "changed": gzip.compress(raw, mtime=0)[:-8] + whole[-8:],
        "empty": b"",
        "html": b"<html>sign in</html>",
    }
    for name, content in faults.items():
        path = tmp_path / f"{name}.tar.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"no whole tar archive.*download") as caught:
            open_corpus(path, cache=tmp_path / "cache").read("train")
        assert caught.value.reason == "not_archive", name


def test_archives_of_several_languages_and_of_none(tmp_path: Path) -> None:
    both = tar_of(tmp_path / "cv.tar.gz", small("cv/es/") + small("cv/ca/", clips=5))
    with pytest.raises(DataError, match=r"several corpora: cv/ca, cv/es; fix: .*--data\.language="):
        Archive(both, tmp_path / "cache").read("train")
    assert len(Archive(both, tmp_path / "cache", language="ca").read("test")) == 1
    with pytest.raises(DataError, match="no corpus named 'pt'"):
        Archive(both, tmp_path / "cache", language="pt").read("test")
    with pytest.raises(DataError, match="holds no corpus"):
        Archive(tar_of(tmp_path / "x.tar", [("a/b.txt", b"")], "w"), tmp_path / "cache").splits()
    twice = tar_of(tmp_path / "twice.tar.gz", small() + small()[-1:])
    with pytest.raises(DataError, match=r"has cv-corpus-9/es/test\.tsv twice"):
        Archive(twice, tmp_path / "cache").splits()


def test_options_reach_the_reader_inside_and_missing_clips_stay_missing(tmp_path: Path) -> None:
    members = [m for m in small() if not m[0].endswith("c1.mp3")]
    path = tar_of(tmp_path / "a.tar.gz", members)
    report = DataReport()
    with pytest.raises(DataError, match=r"no reported\.tsv"):
        Archive(path, tmp_path / "cache", reported="drop").read("train")
    with pytest.raises(RecipeError, match="has no option 'column'"):
        Archive(path, tmp_path / "cache", column="x").read("train")
    corpus = Archive(path, tmp_path / "cache", segments="no_benchmark", report=report)
    train = corpus.read("train")
    corpus.fetch(train)
    assert [u.audio.exists() for u in train] == [True, False, True, True]


# --- Parquet and the Hub ---------------------------------------------------------------------------------------------


def parquet(path: Path, /, **columns: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def clips_of(*names: str | None) -> list[dict[str, object]]:
    return [{"bytes": (name or "?").encode(), "path": name} for name in names]


def test_parquet_names_speakers_and_splits(tmp_path: Path) -> None:
    audio = clips_of("../../a.wav", "audio.wav", "audio.wav", None, "C:\\x\\..", "/etc/passwd")
    for split in ("train", "validation"):
        parquet(
            tmp_path / f"{split}-00000-of-00001.parquet",
            audio=audio,
            transcription=list("abcdef"),
            speaker_id=[1, 1, 2, 2, 3, None],
            accent=["x"] * 5 + [None],
            duration=[1.5, 2, 3, 4, 5, -1],
        )
    corpus = open_corpus(tmp_path, cache=tmp_path / "cache")
    assert isinstance(corpus, Parquet)
    assert corpus.splits() == ["train", "validation"]
    found = corpus.read("dev")
    assert [u.id for u in found] == ["a", "audio", "audio#3", "validation-4", "validation-5", "passwd"]
    assert [u.speaker for u in found] == ["1", "1", "2", "2", "3", ""]
    assert [u.seconds for u in found] == [1.5, 2, 3, 4, 5, None]
    assert {u.split for u in found} == {"dev"}
    assert [u.extra["accents"] for u in found] == ["x"] * 5 + [""]
    fetch(corpus, found)
    assert [u.audio.read_bytes() for u in found] == [str(a["bytes"], "utf-8").encode() for a in audio]  # type: ignore[call-overload]
    assert all(tmp_path / "cache" in u.audio.resolve().parents for u in found)
    with pytest.raises(DataError, match=r"no split 'tets'"):
        corpus.read("tets")


def test_parquet_without_bytes_or_text(tmp_path: Path) -> None:
    null = parquet(
        tmp_path / "n" / "test.parquet", sentence=["a", "b"], audio=[{"bytes": None, "path": "a.wav"}, *clips_of("b")]
    )
    corpus = open_corpus(null, cache=tmp_path / "cache")
    assert corpus.splits() == ["test"]
    found = corpus.read("test")
    fetch(corpus, found)
    assert [u.audio.exists() for u in found] == [False, True]
    with pytest.raises(DataError, match=r"no column with audio.*there is sentence, path"):
        open_corpus(parquet(tmp_path / "p.parquet", sentence=["a"], path=["a.wav"])).read("train")
    with pytest.raises(DataError, match=r"no column 'sentence'.*words.*--data\.column"):
        open_corpus(parquet(tmp_path / "w.parquet", words=["a"], audio=clips_of("a"))).read("train")
    assert open_corpus(tmp_path / "w.parquet", column="words").read("train")[0].text == "a"
    (tmp_path / "w.parquet").write_bytes((tmp_path / "w.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="no whole Parquet file"):
        open_corpus(tmp_path / "w.parquet").read("train")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """A Hub with one dataset of one shard; `error` is what asking for it raises."""
    import datasets
    import huggingface_hub

    shard = parquet(tmp_path / "remote" / "train.parquet", audio=clips_of("a.mp3"), sentence=["hola"], client_id=["s"])
    seen = types.SimpleNamespace(error=None, downloads=[], asked=[], cached=False)
    place = namedtuple("place", "repo_id path_in_repo repo_type revision")

    def builder(path: str, name: str | None, cache_dir: str) -> types.SimpleNamespace:
        seen.asked.append((path, name))
        if seen.error:
            raise seen.error
        files = {"train": ["hf://datasets/o/n@abc/es/train.parquet", "hf://datasets/o/n@abc/README.md"]}
        return types.SimpleNamespace(config=types.SimpleNamespace(data_files=files))

    class System:
        def resolve_path(self, file: str) -> object:
            return place("o/n", "es/train.parquet", "dataset", "abc")

        def info(self, file: str) -> dict[str, int]:
            return {"size": 5_000_000}

    def download(**what: object) -> str:
        seen.downloads.append(what)
        return str(shard)

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", System)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **what: str(shard) if seen.cached else None)
    return seen


def test_hub_dataset(tmp_path: Path, hub: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = open_corpus("hf://o/n", cache=tmp_path / "cache", language="es")
    assert contents(corpus, "train") == {"a": ("hola", b"a.mp3")}
    assert hub.asked == [("o/n", "es")]
    assert hub.downloads == [
        {"repo_id": "o/n", "filename": "es/train.parquet", "repo_type": "dataset", "revision": "abc"}
    ]
    assert "o/n: downloading 1 Parquet files into" in (said := capsys.readouterr().err)
    assert "needs 5.0 MB of disk" in said


@pytest.mark.fault
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found n.py"), DataError, "a stranger's code"),
        (
            FileNotFoundError("Dataset 'o/n' doesn't exist on the Hub or cannot be accessed."),
            DataError,
            "doesn't exist",
        ),
        (ValueError("Config name is missing. Please pick one among: ['es', 'ca']"), DataError, r"'es', 'ca'.*language"),
        (ConnectionError("Couldn't reach 'o/n' on the Hub"), StorageError, "cannot be reached"),
    ],
)
def test_hub_answers_say_what_works(
    tmp_path: Path, hub: types.SimpleNamespace, error: Exception, kind: type, message: str
) -> None:
    hub.error = error
    with pytest.raises(kind, match=message) as caught:
        open_corpus("hf://o/n", cache=tmp_path).read("train")
    if caught.value.reason == "hub_dataset":
        assert "Mozilla Data Collective" in str(caught.value)
        assert "the folder or the .tar.gz" in str(caught.value)


def test_removed_common_voice_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"has left the Hub.*Mozilla Data Collective.*asrkit data get"):
        open_corpus("mozilla-foundation/common_voice_17_0", cache=tmp_path).read("train")


def test_a_mistyped_path_does_not_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for root in ("data/es", "./o/n", "/o/n", "es", "a/b/c"):
        with pytest.raises(DataError, match="does not exist") as caught:
            open_corpus(root)
        assert caught.value.reason == "missing_corpus"


# --- audio with text files -------------------------------------------------------------------------------------------


def put(root: Path, *names: str, text: str = "hola", suffix: str = ".txt") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.wav").write_bytes(name.encode())
        (root / f"{name}{suffix}").write_text(text, encoding="utf-8")
    return root


def test_audio_folder_splits_speakers_texts(tmp_path: Path) -> None:
    put(tmp_path, "train/ana/a", "train/ana/deep/b", "validation/eva/c", text="\ufeffnin\u0303o\n y  ya\r\n")
    put(tmp_path, "test/leo/d", suffix=".lab")
    put(tmp_path, "loose")
    (tmp_path / "train" / "ana" / "mute.flac").write_bytes(b"")
    corpus = open_corpus(tmp_path)
    assert isinstance(corpus, AudioFolder)
    assert corpus.splits() == ["train", "dev", "test"]
    train = corpus.read("train")
    assert [(u.id, u.speaker, u.text) for u in train] == [
        (os.path.join("train", "ana", "a"), "ana", "niño y ya"),
        (os.path.join("train", "ana", "deep", "b"), "ana", "niño y ya"),
    ]
    assert [u.speaker for split in ("dev", "test") for u in corpus.read(split)] == ["eva", "leo"]
    assert corpus.report.counts == {"no_text": 1, "outside_splits": 1}
    assert [(x["split"], x["id"]) for x in corpus.report.lines if x["excluded"] == "outside_splits"] == [("", "loose")]


def test_audio_folder_without_splits_splits_by_speaker(tmp_path: Path) -> None:
    names = [f"speaker{s}/{c}" for s in range(60) for c in range(2)]
    corpus = AudioFolder(put(tmp_path, *names))
    splits = {split: corpus.read(split) for split in corpus.splits()}
    assert list(splits) == ["train", "dev", "test"]
    speakers = {split: {u.speaker for u in utterances} for split, utterances in splits.items()}
    assert sum(map(len, speakers.values())) == 60
    assert sum(map(len, splits.values())) == 120
    assert corpus.report.lines[0]["note"] == "split_by_hash"
    assert corpus.report.lines[0]["of"] == "speaker"
    put(tmp_path, "new/1", "speaker1/9")
    again = AudioFolder(tmp_path)
    for split, known in speakers.items():
        assert {u.speaker for u in again.read(split)} - {"new"} == known


@pytest.mark.parametrize(("clips", "sizes"), [(2, [2, 0, 0]), (3, [1, 1, 1]), (10, [8, 1, 1])])
def test_small_folders_have_something_in_every_split(tmp_path: Path, clips: int, sizes: list[int]) -> None:
    corpus = AudioFolder(put(tmp_path, *[f"clip{i}" for i in range(clips)]))
    found = [len(corpus.read(split)) if split in corpus.splits() else 0 for split in ("train", "dev", "test")]
    assert sum(found) == clips
    assert (found == sizes) if clips < 10 else min(found) >= 1


@pytest.mark.fault
def test_audio_folder_faults(tmp_path: Path) -> None:
    put(tmp_path / "a", "x", suffix=".lab", text="uno")
    put(tmp_path / "a", "x", suffix=".txt", text="dos")
    with pytest.raises(DataError, match=r"x\.txt and x\.lab differ"):
        AudioFolder(tmp_path / "a").read("train")
    put(tmp_path / "b", "y")
    (tmp_path / "b" / "y.mp3").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 clips are there in several formats.*'y'"):
        AudioFolder(tmp_path / "b").splits()
    put(tmp_path / "c", "z")
    (tmp_path / "c" / "z.txt").write_bytes(b"ni\xf1o")
    with pytest.raises(DataError, match=r"z\.txt: not UTF-8"):
        AudioFolder(tmp_path / "c").read("train")
    with pytest.raises(DataError, match="no split 'tran'"):
        AudioFolder(tmp_path / "c").read("tran")


# --- asrkit data get -------------------------------------------------------------------------------------------------


class Client(types.SimpleNamespace):
    """Stands for the module `datacollective`: the calls of its 0.7 that asrkit makes."""

    def __init__(self) -> None:
        names = ("Spanish 9.0", "Spanish 25.0", "Spanish 26.0 delta")
        items = [self.item(f"Common Voice Scripted Speech - {name}", f"id-{name}") for name in names]
        items.append(self.item("Common Voice Spontaneous Speech 99.0", "spontaneous"))
        super().__init__(items=items, error=None, got=[], content=b"archive")

    @staticmethod
    def item(name: str, identity: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(name=name, id=identity, sizeBytes=7, filename="cv.tar.gz")

    def list_datasets(self, query: str, **options: object) -> types.SimpleNamespace:
        assert options["locale"] in ("es", "xx")
        return types.SimpleNamespace(items=self.items if options["locale"] == "es" else self.items[-1:])

    def get_dataset_details(self, identity: str) -> types.SimpleNamespace:
        return next(item for item in self.items if item.id == identity)

    def download_dataset(self, identity: str, download_directory: str, show_progress: bool) -> Path:
        self.got.append(identity)
        if self.error:
            raise self.error
        path = Path(download_directory) / "cv.tar.gz"
        path.write_bytes(self.content)
        return path


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    found = Client()
    monkeypatch.setitem(sys.modules, "datacollective", found)  # type: ignore[arg-type]
    monkeypatch.setenv("MDC_API_KEY", "key")
    return found


@pytest.mark.parametrize("installed", [True, False])
def test_get_prints_the_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], client: Client, installed: bool
) -> None:
    monkeypatch.delenv("MDC_API_KEY")
    if not installed:
        monkeypatch.setitem(sys.modules, "datacollective", None)
    assert main(["data", "get", "common-voice-es"]) == 0
    out = capsys.readouterr().out
    for part in (
        "datacollective.mozillafoundation.org",
        "accept its terms",
        "export MDC_API_KEY=",
        "--data.root=",
        "(es)",
    ):
        assert part in out
    assert ("asrkit[commonvoice]" in out) is not installed
    assert client.got == []
    assert main(["data", "get", "common-voice-es", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["steps"]) == len(out.splitlines())


def test_get_downloads_the_newest_release(tmp_path: Path, capsys: pytest.CaptureFixture[str], client: Client) -> None:
    assert main(["data", "get", "common-voice-es", "--output", str(tmp_path / "new"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["downloaded"] == str(tmp_path / "new" / "cv.tar.gz")
    assert "GB free" in captured.err
    assert client.got == ["id-Spanish 25.0"]
    assert main(["data", "get", "common-voice-es", "--output", str(tmp_path), "--id", "spontaneous"]) == 0
    assert client.got[-1] == "spontaneous"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (type("AuthenticationError", (RuntimeError,), {})("bad key"), 3, "MDC_API_KEY is refused"),
        (PermissionError("terms not agreed"), 3, "accept its terms"),
        (FileNotFoundError("no such dataset"), 3, "--id="),
        (ConnectionError("reset"), 5, "goes on where it stopped"),
    ],
)
def test_get_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], client: Client, error: Exception, code: int, message: str
) -> None:
    client.error = error
    assert main(["data", "get", "common-voice-es", "--output", str(tmp_path)]) == code
    assert message in capsys.readouterr().err


@pytest.mark.fault
def test_get_checks_names_disk_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], client: Client
) -> None:
    assert main(["data", "get", "librispeech"]) == 2
    assert main(["data", "get", "common-voice-xx"]) == 3
    assert "Spontaneous" in capsys.readouterr().err
    client.content = b"short"
    with pytest.raises(DataError, match="has 5 bytes, the release 7"):
        data_get.download(client, "es", tmp_path / "a")
    monkeypatch.setattr("asrkit.disk.free_bytes", lambda path: 6)
    with pytest.raises(StorageError, match="no space left"):
        data_get.download(client, "es", tmp_path / "b")
    assert len(client.got) == 1
    (tmp_path / "b" / "cv.tar.gz.part").write_bytes(b"123")  # an interrupted download needs only the rest
    client.content = b"archive"
    assert data_get.download(client, "es", tmp_path / "b").read_bytes() == b"archive"


# --- cells -----------------------------------------------------------------------------------------------------------


def test_cells_are_a_small_mapping() -> None:
    import pickle

    names = ("age", "gender")
    cells = Cells(names, ["twenties", ""])
    assert dict(cells) == {"age": "twenties", "gender": ""}
    assert cells.get("accents", "?") == "?"
    assert pickle.loads(pickle.dumps(cells)) == cells == {"age": "twenties", "gender": ""}
    assert hash(cells) == hash(Cells(names, ["twenties", ""]))
    with pytest.raises(KeyError):
        cells["accents"]
    with pytest.raises(ValueError, match="2 names for 1 values"):
        Cells(names, ["x"])
