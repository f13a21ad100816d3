"""Error rates against a NumPy edit distance; intervals against closed forms and a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrkit.errors import DataError, RecipeError
from asrkit.scoring import (
    Errors,
    Interval,
    Score,
    alignment_text,
    bootstrap_interval,
    cer,
    count_errors,
    score,
    totals,
    wer,
    worst,
)


def edit_distance(a: list[str], b: list[str]) -> int:
    """The textbook table (Wagner and Fischer, 1974), all costs 1."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, x in enumerate(a, start=1):
        for j, y in enumerate(b, start=1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return int(table[-1, -1])


words = st.lists(st.sampled_from(["el", "la", "no", "ñu", "*", "***"]), max_size=8)


@given(words, words)
def test_count_errors_is_the_edit_distance(reference: list[str], hypothesis: list[str]) -> None:
    errors = count_errors(reference, hypothesis)
    assert errors.total == edit_distance(reference, hypothesis)
    assert errors.deletions - errors.insertions == len(reference) - len(hypothesis)
    assert errors.reference == len(reference)
    assert errors.substitutions + errors.deletions <= len(reference)
    assert min(errors.substitutions, errors.deletions, errors.insertions) >= 0


@given(words, words)
def test_alignment_shows_both_sides_and_every_error(reference: list[str], hypothesis: list[str]) -> None:
    lines = alignment_text(reference, hypothesis).split("\n")
    assert [line[:4] for line in lines] == ["ref:", "hyp:", "err:"]
    errors = count_errors(reference, hypothesis)
    marks = lines[2][4:].split()
    assert (marks.count("S"), marks.count("D"), marks.count("I")) == (
        errors.substitutions,
        errors.deletions,
        errors.insertions,
    )
    assert len(lines[0][4:].split()) == len(lines[1][4:].split()) == len(reference) + errors.insertions


def test_alignment_worked_example() -> None:
    text = alignment_text(["el", "perro", "come", "ya"], ["el", "pero", "grande", "come"])
    assert text.split("\n") == [
        "ref: el perro ****** come ya",
        "hyp: el pero  grande come **",
        "err:    S     I           D",
    ]


def test_all_blank_output_is_deletions_only() -> None:
    assert count_errors(list("hola"), []) == Errors(0, 4, 0, 4)
    assert count_errors(list("hola"), []).rate == 1.0


def test_empty_reference() -> None:
    assert count_errors([], []).rate == 0.0
    assert count_errors([], ["a"]) == Errors(0, 0, 1, 0)
    assert count_errors([], ["a"]).rate == math.inf
    assert wer(score([("1", "s", "", "a b"), ("2", "s", "c d e f", "c d e f")])) == 0.5


def test_rates_are_corpus_totals_with_spaces_as_characters() -> None:
    scores = score([("1", "s", "a b", "ab"), ("2", "t", "cosa", "casa")])
    assert scores[0].words == Errors(1, 1, 0, 2)
    assert scores[0].characters == Errors(0, 1, 0, 3)
    assert wer(scores) == 3 / 3
    assert cer(scores) == 2 / 7
    assert totals(scores, "characters") == Errors(1, 1, 0, 7)
    assert totals([], "words") == Errors()


def test_symbols_are_words_and_characters() -> None:
    one = score([("1", "s", "aa cl p", "aa p")], symbols=True)[0]
    assert one.words == one.characters == Errors(0, 1, 0, 3)


def test_worst_first_and_none_without_errors() -> None:
    scores = score(
        [("good", "s", "a b", "a b"), ("half", "s", "a b", "a c"), ("b", "s", "a b c", ""), ("a", "s", "a b", "")]
    )
    assert [s.id for s in worst(scores, 9)] == ["b", "a", "half"]
    assert [s.id for s in worst(scores, 1)] == ["b"]
    with pytest.raises(RecipeError, match="did you mean 'words'"):
        worst(scores, 1, "word")  # type: ignore[arg-type]


def _scores(errors: np.ndarray, lengths: np.ndarray, speakers: list[str]) -> list[Score]:
    counts = [Errors(int(e), 0, 0, int(n)) for e, n in zip(errors, lengths, strict=True)]
    return [Score(str(i), speakers[i], "", "", c, c) for i, c in enumerate(counts)]


def test_bootstrap_over_speakers_matches_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    speakers = [f"s{i % 12}" for i in range(120)]
    lengths = rng.integers(3, 12, 120)
    errors = rng.binomial(lengths, [0.1 + 0.05 * (i % 12) for i in range(120)])
    scores = _scores(errors, lengths, speakers)
    groups = [[i for i in range(120) if speakers[i] == s] for s in sorted(set(speakers))]
    rates = []
    for _ in range(4000):
        rows = [i for g in rng.integers(12, size=12) for i in groups[g]]
        rates.append(errors[rows].sum() / lengths[rows].sum())
    expected = np.quantile(rates, [0.025, 0.975])
    found = bootstrap_interval(scores, replications=4000, seed=1)
    assert (found.by, found.clusters) == ("speaker", 12)
    # The standard error of such a quantile over 4000 replications is about 0.004 here.
    assert np.allclose(list(found), expected, atol=0.015)
    assert found.low < wer(scores) < found.high
    by_utterance = bootstrap_interval(scores, by="utterance")
    assert (by_utterance.by, by_utterance.clusters) == ("utterance", 120)
    # Speakers differ a lot: ignoring that must give a much narrower interval.
    assert by_utterance.high - by_utterance.low < 0.6 * (found.high - found.low)


def test_bootstrap_of_equal_weights_is_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    errors = rng.integers(0, 10, 400)
    scores = _scores(errors, np.full(400, 10), [f"s{i}" for i in range(400)])
    low, high = bootstrap_interval(scores)
    half = 1.96 * errors.std() / 10 / math.sqrt(400)
    assert (low, high) == pytest.approx((errors.mean() / 10 - half, errors.mean() / 10 + half), abs=0.15 * half)


def test_bootstrap_is_seeded_and_widens_with_the_level() -> None:
    scores = _scores(np.arange(20) % 4, np.full(20, 5), [f"s{i}" for i in range(20)])
    assert bootstrap_interval(scores, seed=5) == bootstrap_interval(scores, seed=5)
    assert bootstrap_interval(scores, seed=5) != bootstrap_interval(scores, seed=6)
    wide, narrow = bootstrap_interval(scores, level=0.99), bootstrap_interval(scores, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_speaker_is_said() -> None:
    scores = _scores(np.arange(30) % 5, np.full(30, 9), ["ana"] * 30)
    found = bootstrap_interval(scores)
    assert (found.by, found.clusters) == ("utterance", 30)
    assert "over 30 utterances" in str(found)
    unknown = _scores(np.arange(30) % 5, np.full(30, 9), [""] * 30)
    assert bootstrap_interval(unknown) == found
    mixed = _scores(np.arange(30) % 5, np.full(30, 9), ["ana"] * 10 + ["eva"] * 10 + [""] * 10)
    assert (bootstrap_interval(mixed).by, bootstrap_interval(mixed).clusters) == ("speaker", 12)


def test_degenerate_intervals() -> None:
    one = bootstrap_interval(_scores(np.array([1]), np.array([4]), ["ana"]))
    assert math.isnan(one.low)
    assert str(one) == "no interval: one utterance"
    empty = _scores(np.array([1, 0]), np.array([0, 0]), ["ana", "eva"])
    assert tuple(bootstrap_interval(empty)) == (0.0, math.inf)
    assert isinstance(bootstrap_interval(empty), Interval)
    with pytest.raises(DataError, match="no utterances"):
        bootstrap_interval([])
    for wrong in ({"by": "speakers"}, {"level": 95}, {"replications": 0}):
        with pytest.raises(RecipeError, match="possible"):
            bootstrap_interval(empty, **wrong)  # type: ignore[arg-type]
