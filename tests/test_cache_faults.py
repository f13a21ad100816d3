"""What goes wrong between audio files and the cache: disks that fail, bytes that change, clips that are too long for
memory, noise that does not decode, what killed runs leave, disks that are too small."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from test_preparation import build, contents, extractor, utterances
from toy import RATE, make_corpus, tones, toy_recipe

from asrkit import disk, preparation
from asrkit.audio import perturb, read_audio
from asrkit.audio.perturb import build_perturbation
from asrkit.audio.soundfile_reader import BLOCK, PIECE, quiet_decoders
from asrkit.cli import main
from asrkit.corpus import Utterance
from asrkit.corpus.extraction import ClipWriter, new_draft
from asrkit.corpus.same_audio import same_audio
from asrkit.corpus.selection import DataReport
from asrkit.errors import AudioError, RecipeError, StorageError
from asrkit.experiment import train
from asrkit.preparation import clips, feature_cache, prepare, shards
from asrkit.preparation.feature_cache import cached_waveforms
from asrkit.preparation.shards import Outcome
from asrkit.survey import audio as survey_audio
from asrkit.survey import survey

pytestmark = pytest.mark.fault


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


class FailingDisk:
    """Opening `name` raises an OSError with this number while `number` is not 0; unbuffered: only reading it through
    does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, number: int, unbuffered: bool = False) -> None:
        self.name, self.number, self.unbuffered = name, number, unbuffered
        real = Path.open

        def opening(path: Path, mode: str = "r", buffering: int = -1, **options: Any) -> Any:
            if path.name == self.name and self.number and (buffering == 0 or not self.unbuffered):
                raise OSError(self.number, os.strerror(self.number), str(path))
            return real(path, mode, buffering, **options)

        monkeypatch.setattr(Path, "open", opening)


# A file that cannot be read is no clip that cannot be used.


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.EACCES])
@pytest.mark.usefixtures("small_shards")
def test_a_disk_error_that_passes_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    items = utterances(tmp_path / "clips")
    failing = FailingDisk(monkeypatch, "4.wav", number)
    with pytest.raises(StorageError, match=r"4\.wav cannot be read") as error:
        build(tmp_path / "cache", items)
    assert (error.value.reason, error.value.exit_code) == ("unreadable", 5)
    assert ("right to read" in str(error.value)) == (number == errno.EACCES)
    failing.number = 0
    report = DataReport()
    table = build(tmp_path / "cache", items, report)
    assert (table.ids, report.lines) == ([item.id for item in items], [])
    assert table.origin.ready == 3, "the shard before it was kept"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP])
def test_only_a_file_that_is_not_there_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    items = utterances(tmp_path / "clips")
    FailingDisk(monkeypatch, "4.wav", number)
    report = DataReport()
    build(tmp_path / "cache", items, report)
    assert [(line["id"], line["excluded"]) for line in report.lines] == [("4", "missing")]


@pytest.mark.parametrize("kind", ["cut", "foreign"])
def test_a_disk_that_fails_inside_a_file_is_no_broken_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """libsndfile calls it truncated, or no audio; reading the file to its end tells."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tones("abeiou" * 5, 1), RATE)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if kind == "cut" else data[:12] + bytes(100))
    with pytest.raises(AudioError) as broken:
        read_audio(path, RATE)
    assert broken.value.reason == {"cut": "truncated", "foreign": "not_audio"}[kind]
    failing = FailingDisk(monkeypatch, "a.wav", errno.EIO, unbuffered=True)
    for keep in (False, True):
        with pytest.raises(StorageError, match=r"a\.wav cannot be read"):
            read_audio(path, RATE, keep_truncated=keep)
    failing.number = 0
    with pytest.raises(AudioError):
        read_audio(path, RATE)


def test_prepare_names_the_file_and_check_does_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path / "cv")
    toy_recipe(tmp_path, corpus)
    FailingDisk(monkeypatch, "common_voice_es_3.wav", errno.EIO)
    options = [str(tmp_path / "toy.yaml"), f"--data.root={corpus}", f"--data.cache={tmp_path / 'cache'}"]
    for command in (["data", "prepare", *options, "--json"], ["data", "check", str(corpus), "--decode", "all"]):
        assert main(command) == 5
        said = capsys.readouterr().err
        assert re.fullmatch(
            r"asrkit: error\[unreadable\]: .*common_voice_es_3\.wav cannot be read: Input/output error; fix: .*\n", said
        )


def test_transcribing_goes_on_after_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path / "cv")
    model = train(toy_recipe(tmp_path, corpus, ("training.epochs", 1)), "", tmp_path / "run", say=lambda _: None).bundle
    files = [str(corpus / "clips" / f"common_voice_es_{i}.wav") for i in range(3)]
    FailingDisk(monkeypatch, "common_voice_es_1.wav", errno.EIO)
    capsys.readouterr()
    assert main(["transcribe", "--model", str(model), "--format", "json", *files]) == 3
    said = capsys.readouterr()
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [record["status"] for record in records] == ["ok", "unreadable", "ok"]
    assert said.err.splitlines()[0].startswith(
        f"asrkit: unreadable: {files[1]} cannot be read: Input/output error; fix: "
    )


def test_equal_files_are_not_judged_by_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 40)
    splits = {name: [Utterance(name, tmp_path / f"{name}.wav", "", "", name)] for name in ("a", "b")}
    failing = FailingDisk(monkeypatch, "b.wav", errno.EIO)
    with pytest.raises(StorageError, match=r"b\.wav cannot be read"):
        same_audio(splits, tmp_path / "cache", lambda _: True)
    failing.number = 0
    assert same_audio(splits, tmp_path / "cache", lambda _: True) == {"a/b": ["b"]}


# Where decoding fails, what was good stays.


class Unsought(soundfile.SoundFile):
    """Seeks after no read: a seek decodes again."""

    def seekable(self) -> bool:
        return False


def good_samples(data: bytes) -> np.ndarray:
    blocks = []
    with quiet_decoders(), Unsought(io.BytesIO(data)) as file:
        while True:
            try:
                blocks.append(file.read(32, "float32"))
            except soundfile.LibsndfileError:
                return np.concatenate(blocks)


@pytest.mark.parametrize("container", ["FLAC", "MP3"])
@pytest.mark.parametrize("place", [0.1, 0.55, 0.95])
def test_all_samples_before_the_damage_are_kept(container: str, place: float) -> None:
    """The oracle reads 32 samples at a time."""
    random = np.random.default_rng(1)
    speech = (0.1 * random.standard_normal(300_000)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, speech, 16000, format=container)
    data = bytearray(file.getvalue())
    middle = int(place * len(data))
    data[middle : middle + 3000] = bytes(3000)
    wanted = good_samples(bytes(data))
    assert len(wanted) % BLOCK > 2 * PIECE, "nothing would be lost anyway"
    audio = read_audio(bytes(data), 16000, keep_truncated=True)
    assert audio.notes == ("truncated",)
    assert 0 <= len(wanted) - len(audio.samples) < PIECE
    np.testing.assert_array_equal(audio.samples, wanted[: len(audio.samples)])
    part = read_audio(bytes(data), 16000, start=1.0, keep_truncated=True)
    if container == "FLAC":  # a seek in an MP3 is not exact to the bit
        assert 0 <= len(wanted) - 16000 - len(part.samples) < PIECE
        np.testing.assert_array_equal(part.samples, wanted[16000 : 16000 + len(part.samples)])


def test_a_decoder_that_fails_once_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.flac", 0.1 * np.random.default_rng(1).standard_normal(200_000), 16000)
    wanted = read_audio(tmp_path / "a.flac")
    read, calls = soundfile.SoundFile.read, 0

    def failing(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise soundfile.LibsndfileError(2, "System error.")
        return read(self, *args, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", failing)
    audio = read_audio(tmp_path / "a.flac")
    assert calls > 3
    assert audio.notes == ()
    np.testing.assert_array_equal(audio.samples, wanted.samples)


# Long clips.


def with_long_clips(folder: Path, seconds: float) -> Path:
    """A toy corpus whose first clips of train and test have this length."""
    corpus = make_corpus(folder)
    for number in (0, 16):
        samples = np.resize(tones("abeiou" * 14, number), int(seconds * RATE))
        soundfile.write(corpus / "clips" / f"common_voice_es_{number}.wav", samples, RATE, subtype="PCM_16")
    return corpus


def decoded_seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Clip -> seconds that were asked for, of every call from now on."""
    asked: dict[str, list[float]] = {}
    real = clips.read_audio

    def reading(source: Path, *args: Any, **options: Any) -> Any:
        asked.setdefault(source.stem, []).append(options["max_seconds"])
        return real(source, *args, **options)

    monkeypatch.setattr(clips, "read_audio", reading)
    return asked


def test_a_scored_clip_may_have_ten_minutes_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert preparation.LONGEST_TEST == survey_audio.LONGEST == 600.0
    monkeypatch.setattr(preparation, "LONGEST_TEST", 40.0)
    monkeypatch.setattr(survey_audio, "LONGEST", 40.0)
    corpus = with_long_clips(tmp_path / "cv", 50.0)
    asked = decoded_seconds(monkeypatch)
    recipe = toy_recipe(tmp_path, corpus, ("data.max_bad", 0.9))
    report = prepare(recipe, ("train", "dev", "test")).report
    numbers = {line["id"]: line["max_seconds"] for line in report.lines}
    assert report.counts == {"too_long": 2}
    assert numbers == {"common_voice_es_0": 20.0, "common_voice_es_16": 40.0}
    assert max(seconds for calls in asked.values() for seconds in calls) < 41
    assert asked["common_voice_es_0"] == [20.001]
    asked.clear()
    found = survey(corpus, decode=None, max_seconds=20.0)
    assert [found.splits[name].excluded for name in ("train", "test")] == [{"too_long": 1}] * 2
    lines = {line["id"]: line for line in found.report.lines}
    assert lines["common_voice_es_0"]["max_seconds"] == 20.0
    assert lines["common_voice_es_16"]["max_seconds"] == 40.0
    assert lines["common_voice_es_0"]["seconds"] == 50.0, "so says its header"
    assert asked["common_voice_es_0"] == [20.001]


def test_a_clip_in_two_tables_is_judged_by_each(tmp_path: Path) -> None:
    corpus = with_long_clips(tmp_path / "cv", 40.0)
    rows = (corpus / "test.tsv").read_text().splitlines()
    train = (corpus / "train.tsv").read_text().splitlines()
    (corpus / "train.tsv").write_text("\n".join([*train, rows[1]]) + "\n")
    found = survey(corpus, decode=None, max_seconds=30.0)
    assert found.splits["train"].excluded == {"too_long": 2}
    assert found.splits["test"].excluded == {}


def test_long_clips_are_worked_on_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = utterances(tmp_path / "clips")
    wanted = build(tmp_path / "together", items)
    monkeypatch.setattr(clips, "TOGETHER", 0.2)
    real, lock, now, most, long = clips.read_audio, threading.Lock(), 0, 0, 0

    def reading(*args: Any, **options: Any) -> Any:
        nonlocal now, most, long
        if options["max_seconds"] < 1:
            return real(*args, **options)
        with lock:
            now, long = now + 1, long + 1
            most = max(most, now)
        time.sleep(0.01)
        try:
            return real(*args, **options)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(clips, "read_audio", reading)
    monkeypatch.setattr(feature_cache.os, "sched_getaffinity", lambda _: range(4), raising=False)
    table = build(tmp_path / "alone", items)
    assert (most, long) == (1, sum(soundfile.info(item.audio).duration >= 0.2 for item in items))
    assert 1 < long < len(items)
    for row in range(len(items)):
        np.testing.assert_array_equal(table.features(row), wanted.features(row))


def test_results_that_wait_hold_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "HELD_BYTES", 300)
    first, started = threading.Event(), []

    def work(item: int) -> int:
        started.append(item)
        if item == 0:
            first.wait(5)
        return item

    with ThreadPoolExecutor(2) as pool:
        results = shards._in_order(pool, work, range(50), 20, lambda _: 100)
        threading.Timer(0.3, first.set).start()
        assert next(results) == 0
        assert len(started) <= 21
        assert list(results) == list(range(1, 50))


def test_a_batch_of_rows_holds_a_bounded_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH_BYTES", 1000)

    def work(item: int) -> Outcome:
        return Outcome(str(item), np.full((200, 1), item, "<i2"))

    layout = shards.Layout("waveform", "samples", 1, "<i2")
    with ThreadPoolExecutor(1) as pool:
        shards.write_shards(tmp_path, range(20), work, layout, pool, {})
    with pa.OSFile(str(tmp_path / "shard-00000.arrow")) as file:
        assert [batch.num_rows for batch in pa.ipc.open_stream(file)] == [3, 3, 3, 3, 3, 3, 2]


# Bytes of the cache that change.


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def forge(path: Path) -> None:
    side = path.with_suffix(".json")
    side.write_text(side.read_text().replace('"rows": 3', '"rows": 2'))


def garble(path: Path) -> None:
    path.with_suffix(".json").write_text("[]")


@pytest.mark.parametrize("damage", [zero, overwrite, forge, garble])
@pytest.mark.usefixtures("small_shards")
def test_a_damaged_shard_is_made_again(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = utterances(tmp_path / "clips")
    table = build(tmp_path / "cache", items)
    wanted, folder = [table.features(row).copy() for row in range(8)], table.origin.folder
    del table
    whole = contents(folder)
    path = folder / "shard-00001.arrow"
    stat = path.stat()
    damage(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    monkeypatch.setattr(shards, "_verified", set())  # as another process
    table = build(tmp_path / "cache", items)
    assert (table.origin.ready, contents(folder)) == (5, whole)
    for row in range(8):
        np.testing.assert_array_equal(table.features(row), wanted[row])
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "shard-00001.arrow is damaged" in record.getMessage()
    assert build(tmp_path / "cache", items).origin.ready == 8


@pytest.mark.usefixtures("small_shards")
def test_a_shard_that_cannot_be_read_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    items = utterances(tmp_path / "clips")
    folder = build(tmp_path / "cache", items).origin.folder
    whole = contents(folder)
    monkeypatch.setattr(shards, "_verified", set())
    failing = FailingDisk(monkeypatch, "shard-00000.arrow", errno.EIO)
    table = build(tmp_path / "cache", items)
    failing.number = 0
    assert (table.origin.ready, contents(folder)) == (5, whole)
    assert "shard-00000.arrow is damaged (Input/output error)" in caplog.text


@pytest.mark.usefixtures("small_shards")
def test_the_bytes_of_a_shard_are_compared_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = utterances(tmp_path / "clips")
    folder = build(tmp_path / "cache", items).origin.folder
    monkeypatch.setattr(shards, "_verified", set())
    hashed: list[str] = []
    digest = shards.hashlib.file_digest
    monkeypatch.setattr(
        shards.hashlib, "file_digest", lambda file, name: hashed.append(Path(file.name).name) or digest(file, name)
    )
    for _ in range(3):
        assert build(tmp_path / "cache", items).origin.ready == 8
    assert sorted(hashed) == [f"shard-0000{i}.arrow" for i in range(3)]
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        data = (folder / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), shards.hashlib.sha256(data).hexdigest())


# Noise.


def noise_folder(folder: Path) -> Path:
    """Three good files and five bad ones."""
    (folder / "deep").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.wav", "b.flac", "deep/c.wav"):
        soundfile.write(folder / name, 0.1 * random.standard_normal(2 * RATE), RATE)
    (folder / "empty.wav").touch()
    (folder / "page.mp3").write_text("<html>")
    (folder / "folder.wav").mkdir()
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    return folder


def with_noise(folder: Path, *extra: tuple[str, Any]) -> list[tuple[str, Any]]:
    return [("augment.noise.share", 1.0), ("augment.noise.folder", str(folder)), *extra]


def test_bad_noise_is_left_out_by_name_and_stops_nothing(
    tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = noise_folder(tmp_path / "noise")
    recipe = toy_recipe(tmp_path, corpus, *with_noise(folder), ("training.epochs", 3))
    result = train(recipe, "", tmp_path / "run", say=lambda _: None)
    assert result.last["epoch"] == 3
    left_out = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(left_out) == 5, "each once, however often the recipe is read"
    for name, reason in (
        ("empty.wav", "empty_file"),
        ("page.mp3", "not_audio"),
        ("folder.wav", "not_audio"),
        ("gone.wav", "missing"),
        ("nan.wav", "nonfinite"),
    ):
        assert any(name in line and reason in line for line in left_out)
    assert "page.mp3" in (tmp_path / "run" / "log.txt").read_text()
    built = build_perturbation(recipe)
    assert built is not None
    assert built.noise is not None
    assert [path.name for path in built.noise.files] == ["a.wav", "b.flac", "c.wav"]


def test_prepare_says_it_too_and_no_good_noise_is_an_error(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = noise_folder(tmp_path / "noise")
    toy_recipe(tmp_path, corpus)
    options = [str(tmp_path / "toy.yaml"), f"--data.root={corpus}", f"--data.cache={tmp_path / 'cache'}"]
    command = ["data", "prepare", *options, "--augment.noise.share=0.5", f"--augment.noise.folder={folder}", "--json"]
    assert main(command) == 0
    assert capsys.readouterr().err.count("augment.noise.folder: left out: ") == 5
    for name in ("a.wav", "b.flac", "deep/c.wav"):
        (folder / name).unlink()
    assert main(command) == 3
    assert "holds no audio that can be used, 5 files that cannot" in capsys.readouterr().err


def test_noise_that_goes_wrong_later_than_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturb, "CHECKED_SECONDS", 1.0)
    samples = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE)
    samples[2 * RATE] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_allclose(perturb._recorded(tmp_path / "a.wav", RATE), samples[:RATE].astype(np.float32))


def test_noise_without_a_share_is_refused(tmp_path: Path, corpus: Path) -> None:
    recipe = toy_recipe(tmp_path, corpus, ("augment.noise.folder", str(noise_folder(tmp_path / "noise"))))
    with pytest.raises(RecipeError, match=r"no noise would be added.*noise\.share=0\.5") as error:
        build_perturbation(recipe)
    assert error.value.reason == "augment"


def test_a_noise_file_that_cannot_be_read_stops_before_training(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(tmp_path, corpus, *with_noise(noise_folder(tmp_path / "noise")))
    FailingDisk(monkeypatch, "b.flac", errno.EIO)
    with pytest.raises(StorageError, match=r"b\.flac cannot be read"):
        build_perturbation(recipe)


def test_a_run_does_not_go_on_with_other_noise(tmp_path: Path, corpus: Path) -> None:
    folder = noise_folder(tmp_path / "noise")

    def run(epochs: int) -> None:
        recipe = toy_recipe(tmp_path, corpus, *with_noise(folder, ("training.epochs", epochs)))
        train(recipe, "", tmp_path / "run", say=lambda _: None)

    run(1)
    (folder / "another page.mp3").write_text("<html>")
    run(2)  # what is not used does not count
    soundfile.write(folder / "a.wav", 0.1 * np.random.default_rng(1).standard_normal(RATE), RATE)
    with pytest.raises(RecipeError, match="noise differ") as error:
        run(3)
    assert error.value.reason == "other_data"


# What killed runs leave, and the disk.


def test_leftovers_of_the_dead_go_and_those_of_others_stay(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host = socket.gethostname()
    cache = tmp_path / "cache"
    inside = cache / "clips-abc"
    inside.mkdir(parents=True)
    dead = [cache / f".tmp-{host}-{child.pid}-clips-def", inside / f".tmp-{host}-{child.pid}-clip"]
    others = [
        cache / f".tmp-{host}-{os.getppid()}-clips-def",
        inside / f".tmp-elsewhere-{child.pid}-clip",
        inside / ".tmp-notes",
    ]
    for path in (dead[0], others[0]):
        (path / "clips").mkdir(parents=True)
        (path / "train.tsv").touch()
    for path in (dead[1], *others[1:]):
        path.touch()
    draft = new_draft(cache / "clips-abc")
    ClipWriter(inside).write(inside / "a.wav", b"a")
    assert [path.exists() for path in dead] == [False, False]
    assert all(path.exists() for path in others)
    assert draft.parent == cache
    draft.mkdir()
    disk.remove_leftovers(cache)
    assert draft.is_dir(), "this process lives"


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("build_table", ["features", "waveforms"])
def test_the_disk_is_looked_at_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    claimed: bool,
    build_table: str,
) -> None:
    items = utterances(tmp_path / "clips")
    if claimed:
        items = [Utterance(u.id, u.audio, u.text, "", "train", seconds=soundfile.info(u.audio).duration) for u in items]

    def make() -> Path:
        if build_table == "features":
            return build(tmp_path / "cache", items).origin.folder
        limits, cache, report = clips.Limits(20.0), tmp_path / "cache", DataReport()
        return cached_waveforms(items, extractor(), cache, report, limits=limits, label="train").origin.folder

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "free_bytes", lambda _: 1000)
        with pytest.raises(StorageError, match="no space left: needs") as error:
            make()
    assert (error.value.reason, error.value.exit_code) == ("disk_full", 5)
    assert not (tmp_path / "cache").exists()
    caplog.set_level(logging.INFO, logger="asrkit")
    folder = make()
    [record] = [record for record in caplog.records if "of disk" in record.getMessage()]
    assert isinstance(record.args, tuple)
    estimate = 1e6 * float(record.args[2])  # type: ignore[arg-type]
    written = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    assert record.getMessage().startswith("8 clips into ")
    assert estimate == pytest.approx(written, rel=0.25)
    caplog.clear()
    make()
    assert "of disk" not in caplog.text, "nothing is missing"


def test_other_caches_are_named_and_stay(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_recipe(tmp_path, corpus)
    options = [str(tmp_path / "toy.yaml"), f"--data.root={corpus}", f"--data.cache={tmp_path / 'cache'}"]
    command = ["data", "prepare", *options, "--splits", "train,dev"]
    assert main([*command, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)["splits"]
    assert all(split["other_caches"] == {} for split in before.values())
    changed = [*command, "--features.options={size: 17, high_hz: 0.0}"]
    assert main([*changed, "--json"]) == 0
    after = json.loads(capsys.readouterr().out)["splits"]
    for name in ("train", "dev"):
        old = Path(before[name]["cache"])
        size = sum(path.stat().st_size for path in old.iterdir())
        assert after[name]["other_caches"] == {str(old): size}
    assert main(changed) == 0
    shown = capsys.readouterr()
    assert f"  {before['train']['cache']}" in shown.out
    assert "yours to remove" in shown.out
    assert Path(before["train"]["cache"]).is_dir()
    assert "of disk" not in shown.err
    assert main([*command, "--features.options={size: 18, high_hz: 0.0}"]) == 0
    assert capsys.readouterr().err.count(" MB of disk, ") == 2
