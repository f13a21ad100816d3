"""The synthetic corpus: grammar, voices, determinism, layout, refusals; espeak-ng is the oracle for number words."""

from __future__ import annotations

import argparse
import csv
import ctypes
import hashlib
import itertools
import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrkit.cli import data as data_verb
from asrkit.errors import DataError, RecipeError
from asrkit.synthetic import make_corpus
from asrkit.synthetic.grammar import TEMPLATES, agree, make_sentence, sentence_key, sentences
from asrkit.synthetic.layout import COLUMNS
from asrkit.synthetic.vocabulary import NOUNS, number_words, plural
from asrkit.synthetic.voices import FEMALE, LANGUAGES, MALE, Speaker, espeak, make_speakers, private_library, speak

LETTERS = set("abcdefghijklmnopqrstuvwxyz" + "áéíóúüñ")


@pytest.fixture
def needs_espeak() -> None:
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra 'synth')")


@pytest.fixture
def library(needs_espeak: None) -> Iterator[str]:
    with private_library() as path:
        yield path


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


# --- words and sentences -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "gender", "words"),
    [
        (0, "", "cero"),
        (1, "f", "una"),
        (16, "", "dieciséis"),
        (21, "", "veintiuno"),
        (21, "m", "veintiún"),
        (21, "f", "veintiuna"),
        (31, "m", "treinta y un"),
        (100, "f", "cien"),
        (101, "f", "ciento una"),
        (555, "m", "quinientos cincuenta y cinco"),
        (700, "f", "setecientas"),
        (1000, "", "mil"),
        (1992, "", "mil novecientos noventa y dos"),
        (21_001, "m", "veintiún mil un"),
        (200_000, "fa", "doscientas mil"),
    ],
)
def test_number_words(number: int, gender: str, words: str) -> None:
    assert number_words(number, gender) == words


@pytest.mark.parametrize("number", [-1, 1_000_000])
def test_number_words_range(number: int) -> None:
    with pytest.raises(ValueError, match="999,999"):
        number_words(number)


def test_number_words_sound_like_the_digits(needs_espeak: None) -> None:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    assert library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0) == 22_050
    assert library.espeak_SetVoiceByName(b"es") == 0
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def phonemes(text: str) -> str:
        pointer = ctypes.c_char_p(text.encode())
        spoken = library.espeak_TextToPhonemes(ctypes.byref(pointer), 1, 2).decode()
        # stress and sounds that depend on it: espeak reads the digits of 31 as one word, treintaiuno
        return spoken.translate(str.maketrans("ɛɪðβjw", "eidbiu", "ˈˌ _"))

    numbers = [*range(1001), *range(1001, 1_000_000, 1973)]
    numbers = [
        n for n in numbers if n < 20_000 or n // 1000 % 10 != 1
    ]  # espeak says veintiuno mil, Spanish veintiún mil
    different = [n for n in numbers if phonemes(number_words(n)) != phonemes(str(n))]
    assert not different
    assert phonemes(number_words(21)) != phonemes("22")  # the comparison can fail


@pytest.mark.parametrize(
    ("word", "many"),
    [("casa", "casas"), ("pez", "peces"), ("ratón", "ratones"), ("autobús", "autobuses"), ("café", "cafés")],
)
def test_plural(word: str, many: str) -> None:
    assert plural(word) == many


def test_agreement() -> None:
    assert [agree("rojo", "f", True), agree("azul", "f", True), agree("feliz", "m", True)] == [
        "rojas",
        "azules",
        "felices",
    ]
    assert agree("negro", "fa", False) == "negra"


def test_no_article_disagrees_with_its_noun() -> None:
    gender = {}
    for noun in itertools.chain(*NOUNS.values()):
        assert gender.setdefault(noun.word, noun.gender) == noun.gender
        gender[noun.plural] = noun.gender
    wrong = {"m": {"la", "una", "las", "unas", "esta"}, "f": {"el", "un", "los", "unos", "este", "del", "al"}}
    wrong["fa"] = {"la", "una", "los", "unos", "este"}
    checked = 0
    for sentence in itertools.islice(sentences(3), 4000):
        words = sentence_key(sentence).split()
        for article, noun in itertools.pairwise(words):
            if noun in gender and article in set().union(*wrong.values()):
                checked += 1
                assert article not in wrong[gender[noun]], sentence
    assert checked > 1000


def test_sentences_are_distinct_short_words_without_digits() -> None:
    made = list(itertools.islice(sentences(1), 20_000))
    keys = [sentence_key(sentence) for sentence in made]
    assert len(set(keys)) == 20_000
    lengths = [len(key.split()) for key in keys]
    assert min(lengths) >= 2
    assert max(lengths) <= 12
    assert not any("{" in sentence or letter.isdigit() for sentence in made for letter in sentence)
    assert not any(pair in f" {key} " for key in keys for pair in (" a el ", " de el ", " y i", " o o"))
    assert all(unicodedata.is_normalized("NFC", sentence) for sentence in made)


def test_all_33_letters_even_in_a_small_corpus() -> None:
    assert len(LETTERS) == 33
    made = "".join(itertools.islice(sentences(1), 300)).lower()
    assert {letter for letter in made if letter.isalpha()} == LETTERS


def test_sentences_follow_the_seed() -> None:
    first, again, other = (list(itertools.islice(sentences(seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_template_can_be_filled() -> None:
    class Chosen:  # a random source that always draws the template wanted
        def __init__(self, template: str) -> None:
            import random

            self.rng, self.template = random.Random(0), template

        def choice(self, options: tuple[str, ...]) -> str:
            return self.template if options is TEMPLATES else self.rng.choice(options)

        def __getattr__(self, name: str) -> object:
            return getattr(self.rng, name)

    for template in TEMPLATES:
        assert "{" not in make_sentence(Chosen(template))  # type: ignore[arg-type]


# --- voices ------------------------------------------------------------------------------------------------------


def _say(library: str, variant: str, text: str = "El pingüino bebe agua.") -> bytes:
    return espeak(text, f"es+{variant}", speed=170, pitch=50, pitch_range=50, seed=1, library=library).tobytes()


def test_every_variant_sounds_different(library: str) -> None:
    voices = {_say(library, variant) for variant in FEMALE + MALE}
    assert len(voices) == len(FEMALE + MALE) >= 30


def test_audio_does_not_depend_on_what_was_said_before(library: str) -> None:
    alone = [_say(library, variant) for variant in FEMALE + MALE]
    _say(library, "grandma", "Otra frase, mucho más larga que la primera.")
    assert [_say(library, variant) for variant in (FEMALE + MALE)[::-1]] == alone[::-1]


def test_audio_is_the_same_in_another_process(library: str) -> None:
    code = (
        "import hashlib\nfrom asrkit.synthetic.voices import espeak, private_library\n"
        "with private_library() as library:\n"
        "    a = espeak('Vamos al mercado.', 'es+f2', speed=170, pitch=50, pitch_range=50, seed=1, library=library)\n"
        "print(hashlib.sha256(a.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(_say(library, "f2", "Vamos al mercado.")).hexdigest()


def test_another_user_of_the_library_in_this_process_changes_nothing(library: str) -> None:
    import espeakng_loader

    before = [_say(library, "f2"), _say(library, "m3")]
    held = ctypes.CDLL(espeakng_loader.get_library_path())  # as a phonemizer does; never closed
    assert held.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0) == 22_050
    assert [_say(library, "f2"), _say(library, "m3")] == before


def test_speakers_are_distinct_and_follow_the_seed() -> None:
    speakers = make_speakers(59, 1)
    assert len({speaker.client_id for speaker in speakers}) == 59
    assert len({speaker.variant for speaker in speakers}) == len(FEMALE + MALE)
    assert speakers == make_speakers(59, 1) != make_speakers(59, 2)
    assert {speaker.language for speaker in speakers} == set(LANGUAGES)
    assert speakers[:30] == make_speakers(30, 1)
    many = make_speakers(100, 1)
    assert len({(speaker.language, speaker.variant) for speaker in many}) == 100


def _speaker(**changes: object) -> Speaker:
    values = make_speakers(1, 1)[0].__dict__ | {"variant": "m3", "noise": "white"} | changes
    return Speaker(**values)


@pytest.mark.parametrize("snr", [20.0, 35.0])
def test_noise_has_the_wanted_ratio(library: str, snr: float) -> None:
    """The first 0.1 s hold noise only: their power against the speech's gives the ratio back."""
    speaker = _speaker(snr=snr, level=-26.0)
    clip = speak("Mi hermana vive en Madrid.", speaker, np.random.default_rng(0), library).astype(float)
    assert clip.shape[0] % 320 == 0
    noise = np.mean(clip[:1600] ** 2)
    speech = np.mean(clip[np.abs(clip) > 0.05 * np.abs(clip).max()] ** 2)
    assert abs(10 * np.log10(speech / noise) - snr) < 5
    assert -31 < 10 * np.log10(speech) < -21


def test_resampling_keeps_a_tone_where_it_is() -> None:
    from asrkit.synthetic.voices import _record

    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(22_050) / 22_050) * np.hanning(22_050)
    clip = _record(tone, _speaker(snr=40.0), np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(clip))
    assert abs(np.argmax(spectrum) * 16_000 / len(clip) - 1000) < 2
    assert 1.2 * 16_000 <= len(clip) < 1.8 * 16_000


# --- the corpus --------------------------------------------------------------------------------------------------


def test_layout_splits_and_durations(needs_espeak: None, tmp_path: Path) -> None:
    report = make_corpus(tmp_path / "es", clips=30, speakers=10, jobs=1, progress=False)
    rows = {name: _rows(tmp_path / "es" / f"{name}.tsv") for name in ("train", "dev", "test", "validated")}
    assert {name: len(split) for name, split in rows.items()} == {"train": 24, "dev": 3, "test": 3, "validated": 30}
    assert {name: split.clips for name, split in report.splits.items()} == {"train": 24, "dev": 3, "test": 3}
    for key in ("client_id", "sentence", "path"):
        sets = [{row[key] for row in rows[name]} for name in ("train", "dev", "test")]
        assert sum(map(len, sets)) == len(set().union(*sets)), f"{key} in two splits"
    raw = (tmp_path / "es" / "train.tsv").read_bytes()
    assert raw.split(b"\n")[0].decode().split("\t") == list(COLUMNS)
    assert b"\r" not in raw
    assert all(len(row) == len(COLUMNS) and row["locale"] == "es" for row in rows["validated"])
    durations = {row["clip"]: int(row["duration[ms]"]) for row in _rows(tmp_path / "es" / "clip_durations.tsv")}
    clips = sorted((tmp_path / "es" / "clips").iterdir())
    assert [clip.name for clip in clips] == sorted(durations) == sorted(row["path"] for row in rows["validated"])
    for clip in clips[:5]:
        audio, rate = soundfile.read(clip)
        assert rate == 16_000
        assert audio.ndim == 1
        assert round(len(audio) / 16) == durations[clip.name]
        assert np.abs(audio).max() > 0.02
    assert report.hours == pytest.approx(sum(durations.values()) / 3.6e6, rel=1e-4)


def test_same_bytes_twice_and_with_two_processes(needs_espeak: None, tmp_path: Path) -> None:
    for name, jobs in (("one", 1), ("again", 1), ("two", 2)):
        make_corpus(tmp_path / name, hours=0.008, speakers=8, jobs=jobs, progress=False)
    first = _digests(tmp_path / "one")
    assert len(first) > 12
    assert first == _digests(tmp_path / "again") == _digests(tmp_path / "two")
    make_corpus(tmp_path / "other", hours=0.008, speakers=8, jobs=1, seed=2, progress=False)
    other = _digests(tmp_path / "other")
    assert not set(first.values()) & set(other.values())


def test_hours_are_reached_by_the_last_clip(needs_espeak: None, tmp_path: Path) -> None:
    report = make_corpus(tmp_path / "es", hours=0.01, format="flac", jobs=1, progress=False)
    last_ms = int(_rows(tmp_path / "es" / "clip_durations.tsv")[-1]["duration[ms]"])
    assert report.hours >= 0.01 > report.hours - last_ms / 3.6e6
    assert len(list((tmp_path / "es" / "clips").glob("*.flac"))) == report.clips


def test_given_sentences(needs_espeak: None, tmp_path: Path) -> None:
    text = tmp_path / "frases.txt"
    given = ["¿Qué hora es?", 'Dijo "hola" y se fue.', "El niño come piña.", "Llueve otra vez."]
    text.write_text("\ufeff" + "\n\n".join(given) + "\n  que hora\tes \n¡Llueve, otra vez!\n", encoding="utf-8")
    report = make_corpus(tmp_path / "es", text=text, speakers=6, jobs=1, progress=False)
    assert {row["sentence"] for row in _rows(tmp_path / "es" / "validated.tsv")} == {*given, "que hora es"}
    assert (report.clips, report.repeated_lines) == (5, 1)
    assert all(split.clips for split in report.splits.values())
    more = make_corpus(tmp_path / "more", text=text, clips=12, speakers=6, jobs=1, progress=False)
    rows = _rows(tmp_path / "more" / "validated.tsv")
    assert (more.clips, more.sentences) == (12, 5)
    assert len({(row["client_id"], row["sentence"]) for row in _rows(tmp_path / "more" / "train.tsv")}) == len(
        _rows(tmp_path / "more" / "train.tsv")
    )
    of_split = {n: {r["sentence"] for r in _rows(tmp_path / "more" / f"{n}.tsv")} for n in ("train", "dev", "test")}
    assert sum(map(len, of_split.values())) == len({row["sentence"] for row in rows})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Tengo 3 gatos.\nUno\nDos\n", "text_not_words"),
        (b"Hola.\nHola\n", "text_too_short"),
        (b"\xff\xfe\x00", "text_unreadable"),
    ],
)
def test_unusable_text_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    text = tmp_path / "t.txt"
    text.write_bytes(content)
    with pytest.raises(DataError) as caught:
        make_corpus(tmp_path / "es", text=text)
    assert caught.value.reason == reason
    assert not (tmp_path / "es").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"hours": 1, "clips": 9},
        {"hours": 0},
        {"hours": float("nan")},
        {"clips": 2},
        {"speakers": 2},
        {"seed": -1},
        {"jobs": 0},
        {"format": "ogg"},
    ],
)
def test_impossible_parameters_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        make_corpus(tmp_path / "es", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "es").exists()


def test_a_finished_corpus_is_found_and_an_unfinished_one_made_again(needs_espeak: None, tmp_path: Path) -> None:
    output = tmp_path / "es"

    def make():  # type: ignore[no-untyped-def]
        return make_corpus(output, clips=6, speakers=4, jobs=1, format="flac", progress=False)

    made = make()
    before = _digests(output)
    stamp = (output / "train.tsv").stat().st_mtime_ns
    found = make()
    assert found.already_there
    assert not made.already_there
    assert found.splits == made.splits
    assert (output / "train.tsv").stat().st_mtime_ns == stamp
    next((output / "clips").iterdir()).unlink()
    (output / "clips" / "common_voice_es_1.flac").write_bytes(b"")
    record = json.loads((output / "synth.json").read_text())
    (output / "synth.json").write_text(json.dumps(record | {"complete": False}))
    assert not make().already_there
    assert _digests(output) == before
    next((output / "clips").iterdir()).unlink()  # complete, but a clip was lost
    assert not make().already_there
    assert _digests(output) == before


def test_a_folder_with_something_else_is_refused(needs_espeak: None, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty") as caught:
        make_corpus(tmp_path / "full", clips=3)
    assert caught.value.reason == "output_not_empty"
    make_corpus(tmp_path / "es", clips=3, speakers=3, format="flac", progress=False)
    before = _digests(tmp_path / "es")
    with pytest.raises(DataError, match=r"clips 3 \(now 4\)") as caught:
        make_corpus(tmp_path / "es", clips=4, speakers=3, format="flac", progress=False)
    assert caught.value.reason == "other_corpus"
    assert _digests(tmp_path / "es") == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError):
        make_corpus(tmp_path / "file", clips=3)


def test_without_the_extra_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(RecipeError, match=r"pip install 'asrkit\[synth\]'"):
        make_corpus(tmp_path / "es", clips=3)
    assert not (tmp_path / "es").exists()


def _run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    data_verb.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", "synth", *words])
    return args.run(args)


def test_command_line(needs_espeak: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--output", str(tmp_path / "es"), "--clips", "5", "--speakers", "3", "--format", "flac"]
    assert _run(*options) == 0
    printed = capsys.readouterr().out
    assert "train" in printed
    assert f"next: asrkit train recipes/demo.yaml --data.root={tmp_path / 'es'}" in printed
    assert _run(*options, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["clips"], summary["already_there"], summary["splits"]["test"]["clips"]) == (5, True, 1)


def test_synth_needs_no_torch() -> None:
    code = "import sys, asrkit.cli.data, asrkit.synthetic.corpus; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
