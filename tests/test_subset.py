"""Nested subsets: properties on generated corpora, the rule rebuilt independently, and real clips without lengths."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import make_corpus, toy_recipe

from asrkit import experiment
from asrkit.cli import main
from asrkit.corpus import Utterance, open_corpus, split_hash
from asrkit.corpus.selection import compare_hashes
from asrkit.corpus.subset import clip_seconds, sequence, subset
from asrkit.errors import DataError, RecipeError
from asrkit.preparation import prepare


def clip(name: str, speaker: str, seconds: float | None = 5.0) -> Utterance:
    return Utterance(name, Path(f"/clips/{name}.mp3"), "hola", speaker, "train", seconds=seconds)


@st.composite
def corpora(draw: st.DrawFn) -> list[Utterance]:
    """Up to 60 clips of a few heavy and many light speakers; some speakers unknown."""
    speakers = draw(st.lists(st.sampled_from(["", "a", "b", "ñ", "speaker 4", "e"]), min_size=1, max_size=60))
    lengths = draw(st.lists(st.floats(0.5, 20), min_size=len(speakers), max_size=len(speakers)))
    return [clip(f"c{n}", speaker, length) for n, (speaker, length) in enumerate(zip(speakers, lengths, strict=True))]


@settings(max_examples=60, deadline=None)
@given(corpora(), st.lists(st.floats(0.01, 0.999), min_size=2, max_size=4), st.integers(0, 3), st.randoms())
def test_subsets_are_nested_deterministic_stratified_and_full(
    corpus: list[Utterance], shares: list[float], seed: int, rng: random.Random
) -> None:
    hours = sum(u.seconds or 0 for u in corpus) / 3600
    shuffled = rng.sample(corpus, len(corpus))
    parts = [subset(corpus, share * hours, seed) for share in sorted(shares)]
    available = Counter(u.speaker for u in corpus)
    for share, part in zip(sorted(shares), parts, strict=True):
        assert part == [u for u in corpus if u in part], "file order"
        again = subset(shuffled, share * hours, seed)
        assert sorted(u.id for u in again) == sorted(u.id for u in part), "order of rows"
        lengths = [u.seconds or 0 for u in part]
        assert sum(lengths) >= share * hours * 3600 - 1e-6
        assert sum(lengths) - max(lengths) < share * hours * 3600, "no more than one clip over"
        taken = Counter(u.speaker for u in part)
        known = {name: taken[name] for name in available if name}
        most = max(known.values(), default=0)
        assert all(count >= most - 1 or count == available[name] for name, count in known.items()), "round-robin"
    for small, large in pairwise(parts):
        assert {u.id for u in small} <= {u.id for u in large}
    assert split_hash(parts[0]) != split_hash(corpus) or len(parts[0]) == len(corpus)


def test_the_rule_as_written() -> None:
    """Rebuilt without the module: JSON text by hand, rounds by a loop."""
    corpus = [clip(f"c{n}", "abc"[n % 3] if n % 7 else "") for n in range(40)]

    def digest(kind: str, name: str) -> bytes:
        return hashlib.sha256(f'[5, "{kind}", "{name}"]'.encode()).digest()

    piles: dict[bytes, list[Utterance]] = {}
    for u in corpus:
        piles.setdefault(digest("speaker", u.speaker) if u.speaker else digest("clip", u.id), []).append(u)
    for pile in piles.values():
        pile.sort(key=lambda u: digest("clip", u.id), reverse=True)
    expected = []
    while any(piles.values()):
        for owner in sorted(piles):
            if piles[owner]:
                expected.append(piles[owner].pop().id)
    assert [corpus[i].id for i in sequence(corpus, 5)] == expected
    twelve = {u.id for u in subset(corpus, 60 / 3600, 5)}
    assert twelve == set(expected[:12])
    assert twelve != {u.id for u in subset(corpus, 60 / 3600, 6)}, "the seed chooses"


def test_hash_seed_of_python_changes_nothing() -> None:
    code = (
        "from pathlib import Path; from asrkit.corpus import Utterance; from asrkit.corpus.subset import subset\n"
        "u = [Utterance(f'c{n}', Path('x'), 'hola', f's{n % 9}', 'train', seconds=4.0) for n in range(200)]\n"
        "print([x.id for x in subset(u, 0.05)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1


def test_all_and_impossible_hours() -> None:
    corpus = [clip(f"c{n}", "s", 3600.0) for n in range(3)]
    assert subset(corpus, None) == corpus
    assert subset(corpus, 3) == corpus
    with pytest.raises(DataError, match=r"data\.hours is 4, but these 3 clips hold 3\.000 hours") as error:
        subset(corpus, 4)
    assert error.value.reason == "too_few_hours"
    for hours in (0, -1, float("nan"), float("inf"), True, "10"):
        with pytest.raises(RecipeError):
            subset(corpus, hours)  # type: ignore[arg-type]


def test_lengths_are_asked_only_until_the_hours_are_full() -> None:
    corpus = [clip(f"c{n}", f"s{n}", None) for n in range(100)]
    asked: list[str] = []

    def seconds(u: Utterance) -> float:
        asked.append(u.id)
        return 36.0

    assert len(subset(corpus, 0.1, seconds=seconds)) == 10
    assert len(asked) == 10


def test_clips_of_an_archive_are_fetched_before_they_are_measured_and_hardly_more() -> None:
    corpus = [clip(f"c{n}", f"s{n % 50}", None) for n in range(5000)]
    there: list[str] = []
    calls = []

    def fetch(part: list[Utterance]) -> None:
        calls.append(len(part))
        there.extend(u.id for u in part)

    def seconds(u: Utterance) -> float:
        assert u.id in there, "measured before it was there"
        return 2.0 + int(u.id[1:]) % 3

    part = subset(corpus, 2, seconds=seconds, fetch=fetch)
    assert part == subset(corpus, 2, seconds=lambda u: 2.0 + int(u.id[1:]) % 3)
    assert {u.id for u in part} <= set(there)
    assert len(there) < 1.05 * len(part)
    assert len(calls) < 10


def test_real_clips_without_claimed_lengths(shared_data: Path) -> None:
    corpus = open_corpus(shared_data / "cv-corpus-6.1-2020-12-11" / "es").read("train")
    assert all(u.seconds is None for u in corpus)
    for u in corpus[:10]:
        samples, rate = soundfile.read(u.audio)
        assert clip_seconds(u) == pytest.approx(len(samples) / rate, abs=0.05)
    minute, two = subset(corpus, 1 / 60), subset(corpus, 2 / 60)
    assert {u.id for u in minute} < {u.id for u in two} < {u.id for u in corpus}
    assert 60 <= sum(map(clip_seconds, minute)) < 75


def test_pieces_and_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, [0.0] * 16000, 8000)
    assert clip_seconds(Utterance("a", path, "", "", "train")) == 2.0
    assert clip_seconds(Utterance("a", path, "", "", "train", start=0.5)) == 1.5
    assert clip_seconds(Utterance("a", path, "", "", "train", start=0.5, end=9.0)) == 1.5
    assert clip_seconds(Utterance("a", path, "", "", "train", seconds=7.0)) == 7.0
    (tmp_path / "b.mp3").write_bytes(b"<html>")
    for name in ("b.mp3", "none.wav"):
        assert clip_seconds(Utterance("b", tmp_path / name, "", "", "train")) == 0.0


# --- in a recipe, and in scores -------------------------------------------------------------------------------------


def test_a_recipe_trains_on_the_subset_whatever_its_seed(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    table = open_corpus(corpus).read("train")

    def prepared(**data: float) -> tuple[list[str], str]:
        recipe = toy_recipe(tmp_path, corpus, *((f"data.{key}", value) for key, value in data.items()))
        split = prepare(recipe | {"seed": 1 + len(data)}, ("train",)).splits["train"]
        return [u.id for u in split.utterances], split.hash

    everything, hash_of_all = prepared()
    small, hash_of_small = prepared(hours=0.0006)
    larger, hash_of_larger = prepared(hours=0.001)
    assert small == [u.id for u in subset(table, 0.0006)]
    assert set(small) < set(larger) < set(everything)
    assert len({hash_of_all, hash_of_small, hash_of_larger}) == 3
    assert prepared(hours=0.0006, subset_seed=3)[0] != small


def test_scores_of_different_data_are_told_apart() -> None:
    a = {"split": "test", "split_hash": "a" * 64, "utterances": 10, "text_rules": "spanish", "cer": 0.1}
    assert compare_hashes(a, {**a, "cer": 0.2, "split": "dev"}) is None
    other = compare_hashes(a, {**a, "split_hash": "b" * 64, "utterances": 9})
    assert other is not None
    assert "test aaaaaaaaaaaa (10 utterances) and test bbbbbbbbbbbb (9 utterances)" in other
    assert "rules: spanish and verbatim" in str(compare_hashes(a, {**a, "text_rules": "verbatim"}))
    assert "no split_hash" in str(compare_hashes(a, {"cer": 0.1}))


def test_evaluate_flags_scores_of_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    recipe = toy_recipe(tmp_path, corpus, ("training.epochs", 1))
    experiment.train(recipe, "", tmp_path / "run", say=lambda _: None)
    words = ["evaluate", str(tmp_path / "run"), "--json"]
    for _ in range(2):
        assert main(words) == 0
        captured = capsys.readouterr()
        assert "warning" not in captured.err
        assert "comparable" not in json.loads(captured.out)
    table = (corpus / "test.tsv").read_text(encoding="utf-8").splitlines()
    (corpus / "test.tsv").write_text("\n".join(table[:-1]) + "\n", encoding="utf-8")
    assert main(words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["comparable"] is False
    assert "asrkit: warning[split_hash]: the two scores are of different data: test " in captured.err
    assert json.loads((tmp_path / "run" / "evaluation-test.json").read_text())["comparable"] is False
