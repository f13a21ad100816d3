"""Rows D01 to D17 of the fault matrix: one injected fault each, through the command line, with its promised answer.

Each asserts exit code, reason code, what is on disk (the report's lines; the release itself is never changed, by
sha256 before and after), and, in the fixture, that the mended release is prepared in full afterwards.

Details are tested where they are made (test_audio, test_corpus, test_sources, test_preparation, test_text); here a
whole `asrkit data prepare`, `train`, `evaluate` or `transcribe` meets the fault. D11, a very long file, is here as
training meets it; transcribing one in flat memory is for the tests of transcribing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from toy import RATE, RECIPE, make_corpus, tones, toy_recipe

from asrkit import registry
from asrkit.cli import main
from asrkit.corpus import same_audio
from asrkit.experiment import train
from asrkit.preparation import prepare

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("quick")]

ROWS = [f"d{number:02d}" for number in range(1, 18)]
SPEECH = tones("abeiou" * 14, 1)  # 5.04 s
LENIENT = "--data.max_bad=0.9"


def test_every_row_is_here() -> None:
    names = [name for name, value in globals().items() if name.startswith("test_d") and callable(value)]
    assert sorted({name.split("_")[1] for name in names}) == ROWS


@dataclass
class Answer:
    """What `asrkit data prepare` did: exit code, JSON figures, lines of the report, what it said on stderr."""

    code: int
    figures: dict[str, Any]
    lines: list[dict[str, Any]]
    error: str

    @property
    def excluded(self) -> dict[str, str]:
        """id -> reason."""
        return {line["id"]: line["excluded"] for line in self.lines if "excluded" in line}

    @property
    def notes(self) -> list[tuple[str, str]]:
        """(id, what)."""
        return [(line["id"], line["note"]) for line in self.lines if "note" in line]

    def clips(self, split: str = "train") -> int:
        return int(self.figures["splits"][split]["clips"])


class Release:
    """A toy release of 12, 4 and 4 clips whose clip number 0 (in train) is free for a fault."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capfd = folder, capfd
        self.root = make_corpus(folder / "cv")
        self.first = self.clip(0)
        (folder / "toy.yaml").write_text(RECIPE, encoding="utf-8")

    def clip(self, number: int) -> Path:
        return self.root / "clips" / f"common_voice_es_{number}.wav"

    def write(self, samples: np.ndarray, number: int = 0, rate: int = RATE, **form: str) -> None:
        soundfile.write(self.clip(number), samples, rate, **({"format": "WAV", "subtype": "FLOAT"} | form))

    def lines(self, split: str = "train") -> list[str]:
        return (self.root / f"{split}.tsv").read_text(encoding="utf-8").splitlines()

    def table(self, lines: list[str], split: str = "train") -> None:
        (self.root / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")

    def sentence(self, text: str, number: int = 0) -> None:
        lines = self.lines()
        cells = lines[number + 1].split("\t")
        lines[number + 1] = "\t".join([*cells[:3], text, *cells[4:]])
        self.table(lines)

    def files(self) -> dict[str, str]:
        """All files of the release by their sha256."""
        paths = sorted(path for path in self.root.rglob("*") if path.is_file())
        found = {}
        for path in paths:
            with path.open("rb") as file:
                found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def mend(self) -> None:
        """As if nothing had been wrong with it."""
        shutil.rmtree(self.root)
        make_corpus(self.root)

    def options(self) -> list[str]:
        return [
            str(self.folder / "toy.yaml"),
            f"--data.root={self.root}",
            f"--data.cache={self.folder / 'cache'}",
        ]

    def prepare(self, *options: str) -> Answer:
        report = self.folder / "report.jsonl"
        self.capfd.readouterr()
        before = self.files()
        code = main(["data", "prepare", *self.options(), "--json", "--report", str(report), *options])
        said = self.capfd.readouterr()
        assert self.files() == before, "a release is only read"
        lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
        assert code == 0 or said.err.count("\n") == 1, "an error is one line"
        return Answer(code, json.loads(said.out or "{}"), lines, said.err)


@pytest.fixture
def release(tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None) -> Iterator[Release]:
    release = Release(tmp_path, capfd)
    yield release
    release.mend()
    healthy = release.prepare()
    assert (healthy.code, healthy.excluded, healthy.clips()) == (0, {}, 12)


FIRST = "common_voice_es_0"


# --- clips -----------------------------------------------------------------------------------------------------------


def test_d01_missing_clip_is_one_line_and_counts_are_right(release: Release) -> None:
    release.first.unlink()
    answer = release.prepare(LENIENT)
    assert (answer.code, answer.excluded, answer.clips()) == (0, {FIRST: "missing"}, 11)
    assert answer.figures["excluded"] == {"missing": 1}
    assert (answer.lines[0]["split"], answer.lines[0]["audio"]) == ("train", str(release.first))
    strict = release.prepare()
    assert (strict.code, strict.excluded) == (3, {FIRST: "missing"})
    assert "error[too_many_excluded]: 1 of 12 utterances are unusable" in strict.error
    assert "up to 5.00% (max_bad)" in strict.error


def test_d02_zero_bytes_do_not_stop_the_others(release: Release) -> None:
    release.first.write_bytes(b"")
    release.clip(12).write_bytes(b"")  # in dev
    answer = release.prepare(LENIENT)
    assert answer.code == 0
    assert answer.excluded == {FIRST: "empty_file", "common_voice_es_12": "empty_file"}
    assert (answer.clips(), answer.clips("dev"), answer.clips("test")) == (11, 3, 4)


def encoded(samples: np.ndarray, container: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=container)
    return file.getvalue()


NOISY = SPEECH + np.random.default_rng(0).normal(0, 0.01, len(SPEECH)).astype(np.float32)
CUT = [
    ("MP3", 0.01, "not_audio"),  # not one whole frame
    *[("MP3", share, "truncated") for share in (0.1, 0.5, 0.9)],
    *[("WAV", share, "truncated") for share in (0.01, 0.1, 0.5, 0.9)],
    ("OGG", 0.5, "truncated"),  # only the release's table of durations knows
]


@pytest.mark.parametrize(("container", "share", "expected"), CUT)
def test_d03_truncated_clip(release: Release, container: str, share: float, expected: str) -> None:
    data = encoded(NOISY, container)
    by = "header"
    if container == "OGG":
        by = "corpus"
        (release.root / "clip_durations.tsv").write_text(f"clip\tduration[ms]\n{FIRST}.wav\t5040\n")
    release.first.write_bytes(data)
    assert release.prepare(LENIENT).excluded == {}
    release.first.write_bytes(data[: int(share * len(data))])
    answer = release.prepare(LENIENT)
    assert (answer.code, answer.excluded, answer.clips()) == (0, {FIRST: expected}, 11)
    if expected == "truncated":
        line = answer.lines[0]
        assert (line["by"], line["claimed_seconds"]) == (by, pytest.approx(5.04, abs=0.15))
        assert 0 < line["seconds"] < 5.04 * share + 0.01
        kept = release.prepare(LENIENT, "--data.on_truncated=keep")
        assert (FIRST, "truncated") in kept.notes
        assert kept.excluded == ({FIRST: "too_short_for_ctc"} if share == 0.01 else {})


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, None])
def test_d03_truncated_in_the_first_block(release: Release, share: float | None) -> None:
    """A FLAC that is cut, and an MP3 with a hole in the middle."""
    data = encoded(NOISY, "FLAC" if share else "MP3")
    middle = len(data) // 2
    release.first.write_bytes(
        data[: int(share * len(data))] if share else data[:middle] + bytes(2000) + data[middle + 2000 :]
    )
    answer = release.prepare(LENIENT)
    assert (answer.code, answer.excluded) == (0, {FIRST: "truncated"})


def test_d03_truncated_is_over_2_percent_and_over_a_tenth_of_a_second(release: Release) -> None:
    claims = {0: (5.04, 0.12), 1: (5.04, -0.12), 2: (5.04, 0.09), 3: (6.3, 0.12), 4: (1.2, 0.08)}
    rows = []
    for number, (seconds, off) in claims.items():
        release.write(np.resize(SPEECH, round(seconds * RATE)), number)
        rows.append(f"common_voice_es_{number}.wav\t{1000 * (seconds + off):.0f}")
    (release.root / "clip_durations.tsv").write_text("\n".join(["clip\tduration[ms]", *rows, ""]))
    assert release.prepare(LENIENT).excluded == {FIRST: "truncated", "common_voice_es_1": "truncated"}


def test_d03_truncated_by_bytes_that_are_damaged(release: Release) -> None:
    samples = np.resize(NOISY, 15 * RATE)
    data = encoded(samples, "MP3")
    place = len(data) * 3 // 4
    release.first.write_bytes(data[:place] + bytes(2000) + data[place + 2000 :])
    answer = release.prepare(LENIENT)
    assert (answer.code, answer.excluded) == (0, {FIRST: "truncated"})
    assert answer.error == "", "the decoder's own lines are not ours"


def test_d04_content_decides_and_not_the_name(release: Release) -> None:
    for number, container in enumerate(("FLAC", "OGG", "MP3", "AIFF")):
        release.clip(number).write_bytes(encoded(SPEECH, container))  # all are named .wav
    release.clip(5).write_text("<!DOCTYPE html><html>404</html>")
    answer = release.prepare(LENIENT)
    assert (answer.code, answer.excluded, answer.clips()) == (0, {"common_voice_es_5": "not_audio"}, 11)
    assert "starts with b'<!DOCTYPE html>" in answer.lines[0]["detail"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.nan, "nonfinite"), (np.inf, "nonfinite"), (-np.inf, "nonfinite"), (1e30, "bad_scale"), (8.1, "bad_scale")],
)
def test_d05_samples_that_are_no_sound(release: Release, value: float, expected: str) -> None:
    samples = SPEECH.copy()
    samples[999] = value
    release.write(samples)
    answer = release.prepare(LENIENT)
    assert (answer.code, answer.excluded, answer.clips()) == (0, {FIRST: expected}, 11)


def test_d06_channels_that_cancel_are_not_averaged(release: Release) -> None:
    release.write(SPEECH, 0)
    release.write(np.stack([SPEECH, -0.99 * SPEECH], 1), 1)
    release.write(np.stack([SPEECH, SPEECH], 1), 2)
    answer = release.prepare()
    assert (answer.code, answer.notes) == (0, [("common_voice_es_1", "anti_phase")])
    split = prepare(toy_recipe(release.folder, release.root)).splits["train"]
    one, opposed, equal = (split[row][2] for row in range(3))
    np.testing.assert_array_equal(opposed, one)
    np.testing.assert_array_equal(equal, one)


def test_d07_other_rates_are_resampled_noted_and_on_the_model_card(release: Release) -> None:
    time = np.arange(4 * 48000) / 48000
    wave = 0.3 * np.sin(2 * np.pi * 1000 * time)
    release.write(wave, 0, 48000)
    release.write(wave[::3], 1, 16000)
    options = ("--data.sample_rate=16000", "--training.epochs=1")
    answer = release.prepare(*options)
    low = [line for line in answer.lines if line.get("note") == "low_rate" and line["split"] == "train"]
    assert {line["source_rate"] for line in low} == {8000}
    assert [line["id"] for line in low] == [f"common_voice_es_{number}" for number in range(2, 12)]
    assert main(["train", *release.options(), *options, "--quiet", "--output", str(release.folder / "run")]) == 0
    card = (release.folder / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "12 training clips that were looked at): 10 at 8000 Hz, 1 at 48000 Hz, 1 at 16000 Hz; 10 of them" in card
    recipe = toy_recipe(release.folder, release.root, ("data.sample_rate", 16000))
    split = prepare(recipe).splits["train"]
    at_48, at_16 = (split[row][2].astype(np.float32) for row in range(2))
    assert at_48.shape == at_16.shape
    loud = at_16 > at_16.max() - 10  # the tone's bands, in nepers; far from it there is only what filters leave
    assert np.abs(at_48 - at_16)[5:-5][loud[5:-5]].max() < 0.02


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it hears the tones."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = toy_recipe(folder, make_corpus(folder / "cv"), ("training.epochs", 30), ("training.evaluate_every", 30))
    return train(recipe, "", folder / "run", say=lambda _: None).bundle


def test_d08_silence_is_finite_left_out_and_transcribed_to_nothing(release: Release, model: Path) -> None:
    for features in ("fbank", "mfcc"):
        extractor = registry.load("features", features)(sample_rate=RATE)
        values, _ = extractor(torch.zeros(1, RATE), torch.tensor([RATE]))
        assert values.isfinite().all()
        assert values.shape[1] > 90
    release.write(np.zeros(RATE, np.float32), 0)
    release.write(SPEECH * 1e-3, 1)
    answer = release.prepare(LENIENT)
    assert answer.excluded == {FIRST: "silent", "common_voice_es_1": "silent"}
    assert answer.lines[0]["peak_db"] is None
    assert answer.lines[1]["peak_db"] < -60
    release.write(tones("abe iou", 3), 2)
    clips = [str(release.clip(number)) for number in (0, 2)]
    release.capfd.readouterr()
    out = release.folder / "out"
    assert main(["transcribe", "--model", str(model), "--format", "json", "--output-dir", str(out), *clips]) == 0
    silence, speech = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.iterdir()))
    assert (silence["status"], silence["text"], silence["words"]) == ("ok", "", [])
    assert silence["message"] == "silence: it peaks nowhere"
    assert len(speech["text"]) > 2, "a model that says nothing of anything proves nothing"


def test_d09_clipped_is_a_note(release: Release) -> None:
    release.write(np.clip(20 * SPEECH, -1, 1), 0)
    peaks = SPEECH.copy()
    peaks[: len(peaks) // 200] = 1.0  # half a percent
    release.write(peaks, 1)
    answer = release.prepare()
    assert (answer.code, answer.excluded, answer.clips()) == (0, {}, 12)
    assert answer.notes == [(FIRST, "clipped")]


LIMITED = """
import resource, sys
from pathlib import Path
import asrkit.experiment, asrkit.preparation
from asrkit.cli import main
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc and RLIMIT_AS")
def test_d10_a_header_that_lies_costs_no_memory(release: Release) -> None:
    """Promised are 2,386 hours, 275 GB as float32; 1 GB is there."""
    for number, seconds in ((0, 15), (1, 30)):
        data = bytearray(encoded(np.resize(SPEECH, seconds * RATE), "FLAC"))
        data[21:26] = bytes([data[21] | 0x0F]) + b"\xff" * 4  # 36 bits, the number of samples
        release.clip(number).write_bytes(data)
    report = release.folder / "report.jsonl"
    command = [*release.options(), "--json", "--report", str(report), LENIENT]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "data", "prepare", *command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    cut, long = (json.loads(line) for line in report.read_text(encoding="utf-8").splitlines())
    assert (cut["excluded"], cut["id"]) == ("truncated", FIRST)
    assert cut["claimed_seconds"] <= 20.01, "only as much as may be read is compared"
    assert (long["excluded"], long["max_seconds"]) == ("too_long", 20.0)


def test_d11_a_long_file_is_left_out_after_its_first_seconds(release: Release) -> None:
    """Half an hour is 57 MB as float32, an hour twice that: only `max_seconds` of it are ever decoded."""
    release.prepare()
    with soundfile.SoundFile(release.first, "w", RATE, 1, format="FLAC") as file:
        for _ in range(360):
            file.write(SPEECH[: 5 * RATE])
    assert soundfile.info(str(release.first)).duration == 1800
    tracemalloc.start()
    try:
        answer = release.prepare(LENIENT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (answer.code, answer.excluded, answer.clips()) == (0, {FIRST: "too_long"}, 11)
    assert (answer.lines[0]["max_seconds"], answer.lines[0]["seconds"]) == (20.0, pytest.approx(20.0, abs=0.01))
    assert peak < 20e6


# --- tables ----------------------------------------------------------------------------------------------------------


def test_d12_unbalanced_quote_keeps_every_row(release: Release) -> None:
    plain = release.prepare()
    texts = prepare(toy_recipe(release.folder, release.root)).splits["train"].texts
    for number, form in ((1, '"{}'), (4, '{}"'), (7, '"{}" {}')):
        sentence = release.lines()[number + 1].split("\t")[3]
        release.sentence(
            form.format(*sentence.split(maxsplit=1)) if form.count("{}") > 1 else form.format(sentence), number
        )
    quoted = release.prepare()
    assert (quoted.code, quoted.clips(), quoted.excluded) == (0, 12, {})
    assert prepare(toy_recipe(release.folder, release.root)).splits["train"].texts == texts
    assert quoted.figures["splits"]["train"]["hash"] != plain.figures["splits"]["train"]["hash"], "sentences as written"
    lines = release.lines()
    release.table([*lines[:5], lines[5] + "\n" + lines[6].replace("\t", " "), *lines[7:]])
    broken = release.prepare()
    assert (broken.code, "error[bad_row]: train.tsv:7: 1 cells, the header has 13" in broken.error) == (3, True)


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        (lambda data: data.replace(b".\t\t2\t0", b"\xf1.\t\t2\t0", 1), "not_utf8", "train.tsv:2: not UTF-8 (byte 0xf1"),
        (lambda data: data.replace(b"\tes\t\n", b"\t\0es\t\n", 1), "bad_row", "train.tsv:2: a NUL character"),
        (lambda data: data.replace(b"sentence\t", b"sentense\t", 1), "missing_column", "no column 'sentence'"),
        (lambda data: data[: data.index(b"\n") + 1], "empty_table", "train.tsv: no rows"),
    ],
)
def test_d13_faulty_table_names_file_and_line(release: Release, change: Any, reason: str, message: str) -> None:
    table = release.root / "train.tsv"
    table.write_bytes(change(table.read_bytes()))
    answer = release.prepare()
    assert answer.code == 3
    assert f"error[{reason}]: " in answer.error
    assert message in answer.error


def test_d13_faulty_only_to_others_are_bom_and_crlf(release: Release) -> None:
    plain = release.prepare()
    table = release.root / "train.tsv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    windows = release.prepare()
    assert (windows.code, windows.figures["splits"]["train"]["hash"]) == (0, plain.figures["splits"]["train"]["hash"])
    assert windows.figures["splits"]["train"]["computed"] == 0


def test_d14_duplicated_rows(release: Release) -> None:
    plain, lines = release.prepare(), release.lines()
    release.table([*lines, lines[1], lines[1], lines[3]])
    answer = release.prepare("--data.max_bad=0")
    assert (answer.code, answer.clips(), answer.figures["excluded"]) == (0, 12, {"duplicate": 3})
    assert answer.figures["splits"]["train"]["hash"] == plain.figures["splits"]["train"]["hash"]
    assert [(line["line"], line["first_line"]) for line in answer.lines] == [(14, 2), (15, 2), (16, 4)]
    release.table([*lines, lines[1].replace(lines[1].split("\t")[3], "Otra.")])
    answer = release.prepare()
    assert (answer.code, "[conflicting_rows]: train.tsv:14 and line 2 disagree" in answer.error) == (3, True)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_d15_foreign_characters_are_an_error_dropped_or_mapped(release: Release) -> None:
    release.sentence("El 80% ŷ", 0)
    release.sentence("nin\u0303o bebe", 1)  # NFD: two characters for one letter
    release.sentence("…", 2)
    error = release.prepare()
    assert error.code == 3
    for part in ("error[unknown_character]: 1 of 11 sentences", "'8' (U+0038)", "'%'", "'ŷ' (U+0177) once", "'drop'"):
        assert part in error.error
    drop = release.prepare("--text.unknown=drop", LENIENT)
    assert drop.excluded == {FIRST: "unknown_character", "common_voice_es_2": "empty_text"}
    assert (drop.lines[1]["characters"], drop.lines[1]["text"]) == (["%", "0", "8", "ŷ"], "el 80% ŷ")
    mapped = "--text.map={'80': ochenta, '%': ' por ciento', 'ŷ': y}"
    answer = release.prepare("--text.unknown=map", mapped, LENIENT)
    assert answer.code == 0
    assert {line["symbol"]: line["count"] for line in answer.lines if line.get("note") == "mapped"} == {
        "80": 1, "%": 1, "ŷ": 1,
    }  # fmt: skip
    assert answer.excluded == {"common_voice_es_2": "empty_text", FIRST: "too_short_for_ctc"}  # it was counted as text
    half = release.prepare("--text.unknown=map", "--text.map={'%': ' por ciento'}", LENIENT)
    assert (half.code, "add a replacement for each" in half.error) == (3, True)


HASHING = """
import json, sys
from asrkit.corpus.selection import DataReport, select_texts
from asrkit.text import Spanish, fit_tokenizer
from asrkit.corpus.utterances import Utterance
from pathlib import Path
texts = json.loads(sys.argv[1])
report, rules = DataReport(), Spanish()
for alphabet in (Spanish.alphabet, None):
    tokenizer = fit_tokenizer("characters", texts, {"alphabet": alphabet}, rules)
    rows = [Utterance(str(i), Path(str(i)), text, "", "train") for i, text in enumerate(texts)]
    chosen = select_texts(rows, rules, tokenizer, "drop", {"%": " por ciento", "&": " y "}, report)
    print(tokenizer.fingerprint, [(u.id, text, tokenizer.encode(text)) for u, text in chosen])
print(report.lines)
"""


def test_d15_foreign_characters_do_not_depend_on_the_hash_seed() -> None:
    texts = [f"{chr(0xE0 + i)}{'%&$€'[i % 4]} ¡Sí! {'日ŷño'[i % 4]}" for i in range(20)]
    outputs = set()
    for seed in ("0", "1", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONUTF8": "1"}
        command = [sys.executable, "-c", HASHING, json.dumps(texts)]
        outputs.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(outputs) == 1
    assert "unknown_character" in next(iter(outputs))


def test_d15_foreign_alphabet_is_refused_by_the_checkpoints(release: Release) -> None:
    run = release.folder / "run"
    command = ["train", *release.options(), "--quiet", "--output", str(run)]
    assert main([*command, "--training.epochs=1"]) == 0
    states = [path.read_text(encoding="utf-8") for path in (run / "checkpoints").rglob("state.json")]
    fingerprint = prepare(toy_recipe(release.folder, release.root)).tokenizer.fingerprint
    assert states
    assert all(fingerprint in state for state in states)
    release.capfd.readouterr()
    assert main([*command, "--training.epochs=2", "--text.options={alphabet: 'abeiou xyz'}"]) == 2
    assert release.capfd.readouterr().err.count("\n") == 1


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_d16_leakage_of_speakers_and_of_audio(release: Release) -> None:
    lines, train_lines = release.lines("test"), release.lines()
    speaker = train_lines[1].split("\t")[0]
    release.table([lines[0], lines[1].replace(lines[1].split("\t")[0], speaker), *lines[2:]], "test")
    answer = release.prepare()
    assert answer.code == 3
    assert f"[shared_speakers]: speakers in more than one split: train/test: 1 ({speaker})" in answer.error
    assert release.prepare("--data.allow_shared_speakers=true").code == 0
    release.table([*lines, train_lines[1].replace(speaker, "new")], "test")
    answer = release.prepare("--data.allow_shared_speakers=true")
    assert (answer.code, f"[shared_audio]: audio in more than one split: train/test: 1 ({FIRST})" in answer.error) == (
        3, True,
    )  # fmt: skip


def test_d16_leakage_of_audio_under_another_name(release: Release) -> None:
    assert release.prepare().code == 0
    shutil.copyfile(release.first, release.clip(17))  # a test clip
    for options in (("--splits=train,dev",), ("--data.allow_shared_speakers=true",)):
        answer = release.prepare(*options)
        assert answer.code == 3
        assert "[shared_audio]: audio in more than one split: train/test: 1 (common_voice_es_17)" in answer.error
    assert main(["train", *release.options(), "--quiet", "--output", str(release.folder / "run")]) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(same_audio, "_equal_files", lambda sizes: pytest.fail("it was known"))
        assert release.prepare().code == 3, "found again, without reading a file"


def test_d16_leakage_is_not_what_broken_files_have_in_common(release: Release) -> None:
    page = "<html>Moved</html>" * 400
    for number in (0, 13, 17):
        release.clip(number).write_text(page)
    release.write(np.zeros(RATE, np.float32), 1)
    release.write(np.zeros(RATE, np.float32), 14)
    for number in (2, 18):
        release.clip(number).write_bytes(b"")
    answer = release.prepare(LENIENT)
    assert answer.code == 0
    assert sorted(answer.excluded.values()) == ["empty_file"] * 2 + ["not_audio"] * 3 + ["silent"] * 2


def test_d16_leakage_by_files_of_one_size(tmp_path: Path) -> None:
    """Equal sizes and equal middles are not equal files."""
    contents = {"a": b"x" * 9000, "b": b"y" + b"x" * 8999, "c": b"x" * 9000, "d": b"x" * 9001, "e": b"", "f": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = same_audio._equal_files({tmp_path / name: len(content) for name, content in contents.items() if content})
    assert sorted(path.name for path in found) == ["a", "c"]
    assert len(set(found.values())) == 1


def test_d16_leakage_of_sentences_is_a_number_beside_every_score(release: Release, model: Path) -> None:
    lines = release.lines("test")
    shared = release.lines()[1].split("\t")[3]
    for row in (1, 2):
        lines[row] = lines[row].replace(lines[row].split("\t")[3], shared.upper())
    release.table(lines, "test")
    release.capfd.readouterr()
    command = ["evaluate", str(model), "--device=cpu", *release.options()[1:]]
    assert main(command) == 0
    said = release.capfd.readouterr().out
    assert "CER" in said
    assert "train/test: 2 utterances with shared sentences" in said
    assert main([*command, "--json"]) == 0
    figures = json.loads(release.capfd.readouterr().out)
    assert figures["shared_sentences"] == {"train/dev": 0, "train/test": 2, "dev/test": 0}
    assert 0 <= figures["cer"] <= 2


# --- trust -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../secret.wav", "/etc/shadow.wav", "x/../../secret.wav", "../clips2/a.wav"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_d17_path_that_leaves_the_clips_folder(release: Release, path: str, split: str) -> None:
    shutil.copyfile(release.first, release.root / "secret.wav")
    lines = release.lines(split)
    cells = lines[2].split("\t")
    release.table([*lines[:2], "\t".join([cells[0], path, *cells[2:]]), *lines[3:]], split)
    for options in ((), ("--splits=train",)):
        answer = release.prepare(*options)
        assert answer.code == 7
        assert f"error[path]: {split}.tsv:3: the path {path!r} leaves clips/" in answer.error
    assert not (release.folder / "cache").exists(), "nothing was read"
