"""Comparisons of arms against scipy, worked examples, and two equal systems that must not be called different."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from asrkit.comparison import (
    LEVEL,
    Arm,
    compare,
    crossed_bootstrap,
    holm,
    matched_pairs,
    over_seeds,
    paired,
    seeds_for,
)
from asrkit.errors import DataError
from asrkit.report.sentences import comparison_in_words

UTTERANCES, SPEAKERS = 600, 40


def arm(name: str, rate: float, seeds: int, rng: np.random.Generator, seed_sd: float = 0.004) -> Arm:
    """A system of one error rate: runs move together by seed, speakers by speaker and run, utterances by chance."""
    lengths = np.full(UTTERANCES, 40)
    speaker = np.arange(UTTERANCES) % SPEAKERS
    errors = np.empty((seeds, UTTERANCES))
    for k in range(seeds):
        of_run = rate + rng.normal(0, seed_sd)
        of_speakers = rng.normal(0, 0.05, SPEAKERS)
        errors[k] = rng.binomial(40, np.clip(of_run + of_speakers[speaker] - of_speakers.mean(), 0.01, 0.99))
    return Arm(name, errors, lengths, tuple(f"s{i}" for i in speaker), tuple(range(1, seeds + 1)))


def test_over_seeds_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 0.01, 6), rng.normal(0.19, 0.01, 6)
    ours, theirs = over_seeds(a, b), stats.ttest_rel(b, a)
    interval = theirs.confidence_interval(0.95)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert ours.mean == pytest.approx((b - a).mean())
    assert math.isnan(over_seeds(a[:1], b[:1]).p)
    assert over_seeds(a, a).p == 1.0


def test_holm_on_a_worked_example() -> None:
    """0.01, 0.04, 0.03, 0.005: times 4, 3, 2, 1 in increasing order, never decreasing."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with_nan = holm([math.nan, 0.02])
    assert math.isnan(with_nan[0])
    assert with_nan[1] == pytest.approx(0.04)  # what was not decided was still looked at


def test_matched_pairs_equals_the_normal_test_by_hand() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.poisson(3, 200), rng.poisson(3.4, 200)
    d = b - a
    z = d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))
    assert matched_pairs(a, b) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
    assert matched_pairs(a, a) == 1.0
    assert math.isnan(matched_pairs(a, a + 1))  # as over seeds: their spread is not known
    assert math.isnan(matched_pairs(a[:1], b[:1]))
    assert math.isnan(matched_pairs(a[:0], b[:0]))


def test_the_bootstrap_has_the_width_of_both_factors() -> None:
    """Seeds, and speakers that are the same ones in all seeds: its spread is that of a sum of two variances."""
    rng = np.random.default_rng(2)
    seeds, speakers, each = 30, 50, 10
    of_seed, of_speaker = rng.normal(0, 2.0, (seeds, 1)), rng.normal(0, 3.0, (1, speakers))
    difference = np.repeat(of_seed + of_speaker, each, axis=1)
    names = [f"s{i}" for i in np.repeat(np.arange(speakers), each)]
    low, high = crossed_bootstrap(
        np.zeros_like(difference), difference, np.ones(speakers * each), names, replications=4000
    )
    expected = math.sqrt(of_seed.var() / seeds + of_speaker.var() / speakers)
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.06)
    assert (high + low) / 2 == pytest.approx(difference.mean(), abs=3 * expected / 10)


def test_the_bootstrap_covers_what_other_speakers_would_give() -> None:
    """Three seeds, seven speakers: nominally 95 %, in few units less; drawn seed by seed it would be 73 %."""
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(200):
        effects = 0.3 * rng.normal(size=(3, 1)) + 2 * rng.normal(size=(1, 7)) + 0.5 * rng.normal(size=(3, 7))
        low, high = crossed_bootstrap(np.zeros((3, 7)), effects, np.ones(7), list("abcdefg"), 400, seed=trial)
        covered += low <= 0 <= high
    assert covered / 200 > 0.84


def test_without_speakers_the_bootstrap_draws_utterances() -> None:
    """One speaker, or none known, is no reason to take the test set for all that could be said."""
    rng = np.random.default_rng(8)
    first, second = rng.poisson(3, (3, 200)), rng.poisson(3, (3, 200))
    lengths = np.full(200, 20)
    ways = {"one": ["a"] * 200, "unknown": [""] * 200, "each": [f"s{i}" for i in range(200)]}
    found = {way: crossed_bootstrap(first, second, lengths, speakers) for way, speakers in ways.items()}
    assert found["one"] == found["unknown"] == found["each"]
    some = crossed_bootstrap(first, second, lengths, ["a"] * 100 + [""] * 100)  # one known speaker
    assert some == found["each"]


def test_equal_systems_are_called_different_in_at_most_8_percent_of_400_trials() -> None:
    """While a test over the utterances of single runs does so far more often."""
    rng = np.random.default_rng(3)
    seeds = called = single = 0
    for trial in range(400):
        seeds = 3 + trial % 3
        a, b = arm("a", 0.2, seeds, rng), arm("b", 0.2, seeds, rng)
        x, y = paired(a, b)
        difference = over_seeds(a.rates, b.rates)
        called += holm([difference.p])[0] < 0.05
        single += matched_pairs(x[0], y[0]) < 0.05
    assert called / 400 <= 0.08
    assert single / 400 > 0.12


def test_a_real_difference_is_found_and_said() -> None:
    rng = np.random.default_rng(4)
    arms = [arm("none", 0.22, 5, rng), arm("layer_norm", 0.15, 5, rng), arm("other", 0.221, 5, rng)]
    found = {(c.first, c.second): c for c in compare(arms)}
    clear, unclear = found["none", "layer_norm"], found["none", "other"]
    assert clear.different
    assert clear.bootstrap[1] < 0
    assert len(clear.matched_pairs) == 5
    assert comparison_in_words(clear).startswith("layer_norm is better than none by")
    assert not unclear.different
    assert "no evidence of a difference" in comparison_in_words(unclear)
    assert len(compare(arms, baseline="none")) == 2
    # Three pairs were looked at, so each must stand at a smaller level.
    assert clear.p_holm >= clear.seeds.p
    with pytest.raises(DataError, match="no arm"):
        compare(arms, baseline="nobody")


def test_too_few_seeds_and_other_utterances() -> None:
    rng = np.random.default_rng(5)
    a, b = arm("a", 0.3, 2, rng), arm("b", 0.1, 2, rng)
    (one,) = compare([a, b])
    assert not one.different
    assert "too few to tell" in comparison_in_words(one)
    other = Arm("c", b.errors, b.lengths + 1, b.speakers, b.seeds)
    with pytest.raises(DataError, match="same utterances"):
        compare([a, other])
    part = Arm("d", b.errors[1:], b.lengths, b.speakers, b.seeds[1:])
    x, _ = paired(a, part)
    assert np.array_equal(x[0], a.errors[1])  # seed 2 with seed 2


def test_seeds_needed_gives_the_power_it_promises() -> None:
    rng = np.random.default_rng(6)
    sample = np.array([0.4, 1.6, -0.2, 1.0, 2.2])  # mean 1, deviation 0.95
    count = seeds_for(sample)
    assert count is not None
    draws = rng.normal(sample.mean(), sample.std(ddof=1), (4000, count))
    power = (stats.ttest_1samp(draws, 0, axis=1).pvalue < LEVEL).mean()
    assert 0.78 < power < 0.9
    assert seeds_for(np.array([1.0, -1.0])) is None
    assert seeds_for(np.array([1.0])) is None
