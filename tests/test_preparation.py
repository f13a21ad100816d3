"""Preparation: one reason code per fault, shards that survive a kill, keys that notice every change, training from
the cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from toy import RATE, make_corpus, tones, toy_recipe

from asrkit.batching import collate
from asrkit.cli import main
from asrkit.corpus import Utterance
from asrkit.corpus.selection import REASONS, DataReport
from asrkit.errors import DataError, RecipeError, StorageError, TrustError
from asrkit.experiment import train
from asrkit.features import MFCC, Fbank
from asrkit.preparation import clips, feature_cache, prepare, shards
from asrkit.preparation.clips import Limits
from asrkit.preparation.feature_cache import FeatureTable, cached_features


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 3)


def utterances(folder: Path, count: int = 8) -> list[Utterance]:
    """Tones of different lengths, one file each."""
    folder.mkdir(exist_ok=True)
    result = []
    for i in range(count):
        path = folder / f"{i}.wav"
        if not path.exists():
            soundfile.write(path, tones("abe" + "i" * i, i), RATE, subtype="PCM_16")
        result.append(Utterance(str(i), path, "abe", "", "train"))
    return result


def extractor() -> Fbank:
    return Fbank(16, RATE, high_hz=0.0)


def build(folder: Path, items: list[Utterance], report: DataReport | None = None, **options: Any) -> FeatureTable:
    limits = options.pop("limits", Limits(20.0))
    features = options.pop("features", None) or extractor()
    report = DataReport() if report is None else report
    return cached_features(items, features, options, folder, report, limits=limits, label="train")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Shards.


@pytest.mark.usefixtures("small_shards")
def test_rows_are_the_features_of_the_clips_in_order(tmp_path: Path) -> None:
    items = utterances(tmp_path / "clips")
    table = build(tmp_path / "cache", items)
    assert sorted(path.name for path in table.origin.folder.glob("*.arrow")) == [
        f"shard-0000{i}.arrow" for i in range(3)
    ]
    assert table.ids == [item.id for item in items]
    for row, item in enumerate(items):
        samples, _ = soundfile.read(item.audio, dtype="float32")
        expected = extractor()(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))[0][0]
        assert table.frames[row] == len(expected)
        np.testing.assert_array_equal(table.features(row), expected.half().numpy())
    assert (table.origin.items, table.origin.ready) == (8, 0)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.usefixtures("small_shards")
def test_an_open_table_holds_no_file_open(tmp_path: Path) -> None:
    """A corpus has hundreds of shards, a process often no more than 1,024 files."""
    items = utterances(tmp_path / "clips")
    before = len(os.listdir("/proc/self/fd"))
    table = build(tmp_path / "cache", items)
    assert len(os.listdir("/proc/self/fd")) == before
    assert table.features(7).shape == (table.frames[7], 16)


def test_memory_follows_the_threads_and_not_the_corpus() -> None:
    started: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        for done, value in enumerate(shards._in_order(pool, lambda i: started.append(i) or i, range(200), 5)):
            assert value == done
            assert len(started) <= done + 6
    assert len(started) == 200


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("fails_at", [0, 1, 4, 7])
def test_an_interrupted_preparation_ends_with_the_same_bytes(
    tmp_path: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = utterances(tmp_path / "clips")
    build(tmp_path / "whole", items)
    read: list[str] = []
    read_audio = clips.read_audio

    def failing(source: Path, *args: Any, **options: Any) -> Any:
        read.append(source.stem)
        if source.stem == str(fails_at):
            raise MemoryError
        return read_audio(source, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(clips, "read_audio", failing)
        with pytest.raises(MemoryError):
            build(tmp_path / "stopped", items)
    [folder] = (tmp_path / "stopped").iterdir()
    assert len(list(folder.glob("*.arrow"))) == fails_at // 3
    assert not (folder / "manifest.json").exists()
    read.clear()
    fails_at = -1
    monkeypatch.setattr(clips, "read_audio", failing)
    table = build(tmp_path / "stopped", items)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert sorted(read) == [str(i) for i in range(table.origin.ready, 8)]


KILLED = """
import os, signal, sys
from pathlib import Path
from asrkit.preparation import clips, shards
shards.CLIPS_PER_SHARD = 3
read_audio, seen = clips.read_audio, []
def killing(source, *args, **options):
    if source.stem == "5":
        while len(list(Path(sys.argv[2]).rglob("*.json"))) < 1:
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return read_audio(source, *args, **options)
clips.read_audio = killing
from test_preparation import build, utterances
build(Path(sys.argv[2]), utterances(Path(sys.argv[1])))
"""


@pytest.mark.usefixtures("small_shards")
def test_a_killed_preparation_ends_with_the_same_bytes(tmp_path: Path) -> None:
    items = utterances(tmp_path / "clips")
    build(tmp_path / "whole", items)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "clips"), str(tmp_path / "killed")]
    done = subprocess.run(command, cwd=Path(__file__).parent, timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = contents(tmp_path / "killed")
    assert any("/.tmp-" in name for name in left), "the kill came while a shard was being written"
    table = build(tmp_path / "killed", items)
    assert table.origin.ready == 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_two_processes_at_once_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process fills the whole folder while this one is inside its second shard."""
    items = utterances(tmp_path / "clips")
    build(tmp_path / "whole", items)
    read_audio, inside = clips.read_audio, []

    def meanwhile(source: Path, *args: Any, **options: Any) -> Any:
        if source.stem == "4" and not inside:
            inside.append(os.getpid())
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: os.getppid())
                build(tmp_path / "shared", items)
        return read_audio(source, *args, **options)

    monkeypatch.setattr(clips, "read_audio", meanwhile)
    build(tmp_path / "shared", items)
    assert inside
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_shard_that_lost_bytes_is_made_again(tmp_path: Path) -> None:
    items = utterances(tmp_path / "clips")
    folder = build(tmp_path / "cache", items).origin.folder
    whole = contents(folder)
    (folder / "shard-00001.arrow").write_bytes(whole["shard-00001.arrow"][:-100])
    assert build(tmp_path / "cache", items).origin.ready == 5
    assert contents(folder) == whole
    (folder / "shard-00002.json").write_text("{")
    (folder / "manifest.json").unlink()
    assert build(tmp_path / "cache", items).origin.ready == 6
    assert contents(folder) == whole


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError) as error:
        build(tmp_path / "cache", utterances(tmp_path / "clips"))
    assert error.value.exit_code == 5


# Keys.


def touch(items: list[Utterance]) -> list[Utterance]:
    stat = items[3].audio.stat()
    os.utime(items[3].audio, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    return items


def remove(items: list[Utterance]) -> list[Utterance]:
    items[3].audio.unlink()
    return items


def with_claim(items: list[Utterance]) -> list[Utterance]:
    first = items[0]
    return [Utterance(first.id, first.audio, first.text, "", "train", seconds=0.18), *items[1:]]


def reversed_order(items: list[Utterance]) -> list[Utterance]:
    return items[::-1]


@pytest.mark.parametrize("change", [touch, remove, with_claim, reversed_order])
def test_another_clip_another_key(tmp_path: Path, change: Callable[[list[Utterance]], list[Utterance]]) -> None:
    items = utterances(tmp_path / "clips")
    before = build(tmp_path / "cache", items)
    after = build(tmp_path / "cache", change(items))
    assert after.origin.folder != before.origin.folder
    assert after.origin.ready == 0


@pytest.mark.parametrize(
    "options", [{"size": 17}, {"limits": Limits(19.0)}, {"limits": Limits(20.0, "keep")}, {"features": MFCC(13, RATE)}]
)
def test_other_options_another_key(tmp_path: Path, options: dict[str, Any]) -> None:
    items = utterances(tmp_path / "clips")
    assert build(tmp_path / "cache", items, **options).origin.folder != build(tmp_path / "cache", items).origin.folder


class Louder(Fbank):
    """A plugin of somebody's."""


def test_other_code_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = utterances(tmp_path / "clips")
    folders = {build(tmp_path / "cache", items).origin.folder}
    assert build(tmp_path / "cache", items).origin.folder in folders
    monkeypatch.setattr(feature_cache, "VERSION", feature_cache.VERSION + 1)
    folders.add(build(tmp_path / "cache", items).origin.folder)
    folders.add(build(tmp_path / "cache", items, features=Louder(16, RATE, high_hz=0.0)).origin.folder)
    getsource = feature_cache.inspect.getsource
    monkeypatch.setattr(
        feature_cache.inspect, "getsource", lambda what: getsource(what) + "# edited" * ("asrkit.audio" in repr(what))
    )
    folders.add(build(tmp_path / "cache", items).origin.folder)
    assert len(folders) == 4


# Faults.

TOLERANT: list[tuple[str, Any]] = [("data.max_bad", 1.0), ("data.max_seconds", 4.0)]


def damage(corpus: Path) -> dict[str, str]:
    """Give the first clips of train one fault each: clip -> expected reason code."""
    lines = (corpus / "train.tsv").read_text().splitlines()
    names = [line.split("\t")[1] for line in lines[1:]]
    clip = {name: corpus / "clips" / name for name in names}
    speech = tones("abeiou" * 3, 1)
    durations = ["clip\tduration[ms]"]
    expected = {}

    def fault(reason: str) -> Path:
        name = names[len(expected)]
        expected[name.removesuffix(".wav")] = reason
        return clip[name]

    def write(reason: str, samples: np.ndarray, format: str = "WAV", subtype: str = "FLOAT") -> Path:
        path = fault(reason)
        soundfile.write(path, samples, RATE, format=format, subtype=subtype)
        return path

    fault("missing").unlink()
    fault("empty_file").write_bytes(b"")
    fault("not_audio").write_text("<html>Moved</html>")
    path = write("truncated", speech, "MP3", "MPEG_LAYER_III")  # against its header
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    durations.append(f"{write('truncated', speech).name}\t{1000 * len(speech) / RATE + 150:.0f}")
    write("nonfinite", np.where(np.arange(len(speech)) == 99, np.nan, speech))
    write("bad_scale", speech * 1000)
    write("silent", speech * 0.003)  # peaks at 0.3, so at -61 dB
    write("no_samples", speech[:0])
    soundfile.write(fault("codec"), speech, RATE, format="WAV", subtype="GSM610")
    write("too_short", speech[:20])
    write("too_long", np.tile(speech, 4))
    for reason, text in (("too_short_for_ctc", "a" * 60), ("empty_text", "¡…!"), ("unknown_character", "Sí, 日本 &.")):
        place = len(expected) + 1
        fault(reason)
        lines[place] = lines[place].replace(lines[place].split("\t")[3], text)
    expected[names[len(expected)].removesuffix(".wav")] = "duplicate"  # of a good clip, which stays
    lines.append(lines[len(expected)])
    durations.append(f"{names[-1]}\t{1000 * soundfile.info(clip[names[-1]]).duration + 90:.0f}")  # 90 ms are no fault
    soundfile.write(clip[names[-2]], np.clip(speech * 20, -1, 1), RATE, subtype="FLOAT")
    soundfile.write(clip[names[-3]], speech[::2], RATE // 2, subtype="FLOAT")
    soundfile.write(clip[names[-4]], np.stack([speech, -speech], 1), RATE, subtype="FLOAT")
    (corpus / "train.tsv").write_text("\n".join(lines) + "\n")
    (corpus / "clip_durations.tsv").write_text("\n".join(durations) + "\n")
    return expected


STANDS = {"duplicate"}  # codes of rows too many: the clip itself is used
# Of options, sources and other decoders; the last two in tests/faults/test_x.py, X11.
OTHERS = {"reported", "benchmark", "no_text", "outside_splits", "needs_pyav", "too_large", "decoder_died"}


def excluded(report: DataReport) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in report.lines if "excluded" in line}


def test_one_clip_per_fault_gives_exactly_the_expected_codes(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "cv", train=20)
    expected = damage(corpus)
    assert set(expected.values()) | OTHERS == set(REASONS), "a new reason code needs its clip here"
    recipe = toy_recipe(tmp_path, corpus, *TOLERANT, ("text.unknown", "drop"))
    for _ in range(2):  # computed, and read again
        prepared = prepare(recipe)
        found = excluded(prepared.report)
        assert {name: line["excluded"] for name, line in found.items()} == expected
        assert prepared.report.counts["truncated"] == 2
        assert prepared.report.counts == Counter(expected.values())
        kept = {u.id for u in prepared.splits["train"].utterances}
        unusable = {name for name, reason in expected.items() if reason not in STANDS}
        assert kept == {f"common_voice_es_{number}" for number in range(20)} - unusable
        notes = {(line["note"], line["id"]) for line in prepared.report.lines if "note" in line}
        numbers = [int(name.rsplit("_", 1)[1]) for _, name in sorted(notes)]
        assert [note for note, _ in sorted(notes)] == ["anti_phase", "clipped", "low_rate"]
        assert numbers == [16, 18, 17]
    by_reason = {line["excluded"]: line for line in found.values() if line.get("by") != "header"}
    assert by_reason["truncated"]["by"] == "corpus"
    assert by_reason["truncated"]["claimed_seconds"] - by_reason["truncated"]["seconds"] == pytest.approx(
        0.15, abs=0.01
    )
    assert by_reason["silent"]["peak_db"] == pytest.approx(-61, abs=1)
    assert by_reason["too_long"]["max_seconds"] == 4.0
    assert by_reason["too_short"]["seconds"] == pytest.approx(0.0025)
    assert by_reason["too_short_for_ctc"]["needed"] == 119
    assert by_reason["empty_text"]["sentence"] == "¡…!"
    assert by_reason["unknown_character"]["characters"] == ["&", "日", "本"]
    assert (by_reason["duplicate"]["first_line"], by_reason["duplicate"]["line"]) == (len(expected) + 1, 22)


def test_foreign_characters_are_an_error_or_mapped_beside_all_other_faults(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "cv", train=20)
    expected = damage(corpus)
    foreign = next(name for name, reason in expected.items() if reason == "unknown_character")
    with pytest.raises(DataError, match=rf"'&' \(U\+0026\) once, '日' .*for example {foreign}") as error:
        prepare(toy_recipe(tmp_path, corpus, *TOLERANT))
    assert (error.value.reason, error.value.exit_code) == ("unknown_character", 3)
    mapping = ("text.map", "{'日本': ea, '&': y}")
    prepared = prepare(toy_recipe(tmp_path, corpus, *TOLERANT, ("text.unknown", "map"), mapping))
    del expected[foreign]
    assert {name: line["excluded"] for name, line in excluded(prepared.report).items()} == expected
    texts = dict(zip([u.id for u in prepared.splits["train"].utterances], prepared.splits["train"].texts, strict=True))
    assert texts[foreign] == "sí ea y"
    mapped = {line["symbol"]: line["count"] for line in prepared.report.lines if line.get("note") == "mapped"}
    assert mapped == {"日本": 1, "&": 1}


@pytest.mark.parametrize("path", ["../train.wav", "/etc/shadow.wav", "a/../../b.wav"])
def test_a_path_that_leaves_the_clips_folder_stops_everything(tmp_path: Path, path: str) -> None:
    """Beside all other faults, and before any clip is opened."""
    corpus = make_corpus(tmp_path / "cv", train=20)
    damage(corpus)
    table = corpus / "train.tsv"
    lines = table.read_text().splitlines()
    lines[15] = lines[15].replace(lines[15].split("\t")[1], path)
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(TrustError, match=r"train\.tsv:16: the path .* leaves clips/") as error:
        prepare(toy_recipe(tmp_path, corpus, *TOLERANT, ("text.unknown", "drop")))
    assert (error.value.reason, error.value.exit_code) == ("path", 7)
    assert not (tmp_path / "cache").exists()


def test_truncated_clips_can_be_kept(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "cv", train=20)
    expected = damage(corpus)
    options = [*TOLERANT, ("text.unknown", "drop"), ("data.on_truncated", "keep")]
    prepared = prepare(toy_recipe(tmp_path, corpus, *options))
    kept = {name for name, reason in expected.items() if reason == "truncated"}
    assert {name: line["excluded"] for name, line in excluded(prepared.report).items()} == {
        name: reason for name, reason in expected.items() if name not in kept
    }
    notes = {line["id"]: line for line in prepared.report.lines if line.get("note") == "truncated"}
    assert notes.keys() == kept
    assert sorted(line["by"] for line in notes.values()) == ["corpus", "header"]
    with pytest.raises(RecipeError, match="drop, keep"):
        prepare(toy_recipe(tmp_path, corpus, *options[:-1], ("data.on_truncated", "keeep")))


# The command.


def test_prepare_then_train_uses_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "cv")
    toy_recipe(tmp_path, corpus)
    options = [str(tmp_path / "toy.yaml"), f"--data.root={corpus}", f"--data.cache={tmp_path / 'cache'}"]
    command = ["data", "prepare", *options, "--json", "--report", str(tmp_path / "report.jsonl")]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert [(name, split["clips"], split["computed"]) for name, split in first["splits"].items()] == [
        ("train", 12, 12),
        ("dev", 4, 4),
        ("test", 4, 4),
    ]
    assert first["splits"]["train"]["x_real_time"] > 0
    assert (tmp_path / "report.jsonl").read_text() == ""
    monkeypatch.setattr(clips, "read_audio", None)
    train(toy_recipe(tmp_path, corpus, ("training.epochs", 1)), "", tmp_path / "run", say=lambda _: None)
    assert main(["data", "prepare", *options]) == 0
    shown = capsys.readouterr().out
    assert shown.count("was there") == 3
    assert "nothing excluded" in shown
    assert main(["data", "prepare", *options, "--splits=train,tset"]) == 2
    assert "did you mean 'test'" in capsys.readouterr().err
    assert main(["data", "prepare", *options, "--features.options={size: 17}"]) == 1, "another option, read_audio again"


def test_only_some_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "cv")
    toy_recipe(tmp_path, corpus)
    options = [str(tmp_path / "toy.yaml"), f"--data.root={corpus}", f"--data.cache={tmp_path / 'cache'}"]
    assert main(["data", "prepare", *options, "--splits", "dev", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert [path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()] == ["dev"]


@pytest.mark.parametrize("encoder", ["none", "layer_norm", "frame_batch_norm", "sequence_batch_norm", "instance_norm"])
def test_audio_goes_through_the_model_as_cached_features_do(tmp_path: Path, encoder: str) -> None:
    """What is trained and evaluated on the cache (float16) and what is transcribed must be one model, with bands that
    no frequency falls into and a norm in front, which divides by the deviation that it has seen of them."""
    options = (("encoder", encoder), ("features.options.size", 128), ("layers", "[norm, {bigru: 8}]"), ("width", 8))
    prepared = prepare(toy_recipe(tmp_path, make_corpus(tmp_path / "cv"), *options))
    model, split = prepared.model, prepared.splits["train"]
    batch = collate([split[row] for row in range(len(split))])
    for _ in range(100):  # until running averages have forgotten where they began
        model.acoustic.train()(batch.features, batch.lengths)
    model.eval()
    empty = model.features(torch.randn(1, 8000), torch.tensor([8000]))[0].std(1).eq(0).sum()
    assert empty > 2
    with torch.inference_mode():
        cached, lengths = model.acoustic(batch.features, batch.lengths)
        for row, identity in enumerate(batch.ids):
            samples, _ = soundfile.read(tmp_path / "cv" / "clips" / f"{identity}.wav", dtype="float32")
            heard, count = model(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
            assert int(count) == int(lengths[row])
            torch.testing.assert_close(heard[0], cached[row, : int(count)], atol=0.02, rtol=0)
