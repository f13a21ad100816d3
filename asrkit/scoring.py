"""Error rates: counted over a corpus, with confidence intervals over speakers, and shown as alignments.

Words are what stands between white space. Characters are those of the normalized text, spaces included: a missing space
is one character error. Rates are corpus totals (sum of errors / sum of reference lengths), never means of rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import kaldialign
import numpy as np

from asrkit.errors import DataError, RecipeError, nearest

Unit = Literal["words", "characters"]


@dataclass(frozen=True, slots=True)
class Errors:
    """Counts of a minimal edit distance; `reference` is the number of reference units. Two of them can be added."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0

    @property
    def total(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference unit. An empty reference has rate 0 without errors and infinity with insertions."""
        if self.reference:
            return self.total / self.reference
        return math.inf if self.total else 0.0

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference + other.reference,
        )


@dataclass(frozen=True, slots=True)
class Score:
    """One utterance: what was said, what was recognized, and the errors in words and characters."""

    id: str
    speaker: str
    reference: str
    hypothesis: str
    words: Errors
    characters: Errors


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """The fewest substitutions, deletions and insertions (cost 1 each) that turn `reference` into `hypothesis`."""
    found = kaldialign.edit_distance(list(reference), list(hypothesis))
    return Errors(int(found["sub"]), int(found["del"]), int(found["ins"]), len(reference))


def score(pairs: Iterable[tuple[str, str, str, str]], symbols: bool = False) -> list[Score]:
    """Score (id, speaker, reference, hypothesis), both texts normalized by the same rules.

    With `symbols` (phones between white space) a symbol is both word and character.
    """
    scores = []
    for name, speaker, reference, hypothesis in pairs:
        words = count_errors(reference.split(), hypothesis.split())
        characters = words if symbols else count_errors(reference, hypothesis)
        scores.append(Score(name, speaker, reference, hypothesis, words, characters))
    return scores


def totals(scores: Iterable[Score], unit: Unit = "words") -> Errors:
    """The errors of all utterances together."""
    return sum((_errors(s, unit) for s in scores), Errors())


def wer(scores: Iterable[Score]) -> float:
    """Word error rate of the corpus, as a fraction."""
    return totals(scores, "words").rate


def cer(scores: Iterable[Score]) -> float:
    """Character error rate of the corpus, spaces included, as a fraction."""
    return totals(scores, "characters").rate


def worst(scores: Iterable[Score], n: int = 10, unit: Unit = "words") -> list[Score]:
    """The n utterances with the highest rate, then the most errors, then by id; never those without errors."""
    wrong = [s for s in scores if _errors(s, unit).total]
    return sorted(wrong, key=lambda s: (-_errors(s, unit).rate, -_errors(s, unit).total, s.id))[:n]


def _errors(one: Score, unit: str) -> Errors:
    if unit not in ("words", "characters"):
        raise RecipeError(f"unit {unit!r}", possible=nearest(unit, ("words", "characters")), reason="unit")
    return one.words if unit == "words" else one.characters


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval of a rate; unpacks as `low, high`. `by` is what was resampled, `clusters` how many."""

    low: float
    high: float
    level: float
    by: str
    clusters: int

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.high))

    def __str__(self) -> str:
        what = f"{self.level:.0%} bootstrap over {self.clusters} {self.by}s"
        return f"[{self.low:.2%}, {self.high:.2%}] ({what})" if self.clusters > 1 else "no interval: one utterance"


def clusters_of(speakers: Sequence[str]) -> list[str | int]:
    """What a bootstrap draws, utterance by utterance: its speaker, or the utterance itself (its place) where that is
    unknown (""), or where there are fewer than two known speakers."""
    several = len(set(speakers) - {""}) > 1
    return [name if several and name else place for place, name in enumerate(speakers)]


def bootstrap_interval(
    scores: Sequence[Score],
    unit: Unit = "words",
    by: Literal["speaker", "utterance"] = "speaker",
    replications: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a corpus error rate (Bisani and Ney, ICASSP 2004), resampling whole speakers.

    Utterances of one speaker rise and fall together, so resampling utterances gives intervals that are too narrow.
    With fewer than two known speakers the utterances are resampled, and the result's `by` says so; an utterance of
    unknown speaker ("") is a cluster of its own. One single utterance has no interval: both ends are NaN. Raises
    DataError for no scores.
    """
    if not scores:
        raise DataError("no utterances to score", reason="no_scores")
    if by not in ("speaker", "utterance") or not 0 < level < 1 or replications < 1:
        raise RecipeError(
            f"bootstrap by {by!r}, level {level}, replications {replications}",
            possible="by 'speaker' or 'utterance', a level between 0 and 1, at least 1 replication",
            reason="bootstrap",
        )
    if len({s.speaker for s in scores} - {""}) < 2:
        by = "utterance"
    clusters: dict[object, list[int]] = {}
    for one, key in zip(scores, clusters_of([s.speaker if by == "speaker" else "" for s in scores]), strict=True):
        errors = _errors(one, unit)
        sums = clusters.setdefault(key, [0, 0])
        sums[0] += errors.total
        sums[1] += errors.reference
    if len(clusters) < 2:
        return Interval(math.nan, math.nan, level, by, len(clusters))
    rates = _resampled_rates(np.array(list(clusters.values()), dtype=np.float64), replications, seed)
    # No interpolation: it would make NaN of two infinite rates (references without words).
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(float(low), float(high), level, by, len(clusters))


def _resampled_rates(sums: np.ndarray, replications: int, seed: int) -> np.ndarray:
    """Rates (R,) of R corpora, each of G clusters drawn with replacement from sums (G, 2) of errors and lengths."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    rows = max(1, 2_000_000 // size)  # replications at a time: bounded memory for any corpus
    drawn = []
    for first in range(0, replications, rows):
        indices = rng.integers(size, size=(min(rows, replications - first), size))
        drawn.append(np.stack([sums[:, column][indices].sum(1) for column in (0, 1)], axis=1))
    errors, lengths = np.concatenate(drawn).T
    empty = np.where(errors > 0, np.inf, 0.0)
    return np.divide(errors, lengths, out=empty, where=lengths > 0)


def alignment_text(reference: Sequence[str], hypothesis: Sequence[str]) -> str:
    """Three lines with the words in columns: reference, hypothesis, and S, D or I below every error.

    A missing word is shown as asterisks. The marks are as many as `count_errors` counts.
    """
    numbers: dict[str, int] = {}
    sides = [[numbers.setdefault(word, len(numbers)) for word in side] for side in (reference, hypothesis)]
    words = list(numbers)
    lines = ["ref:", "hyp:", "err:"]
    for left, right in kaldialign.align(*sides, eps_symbol=-1):
        mark = "I" if left < 0 else "D" if right < 0 else "S" if left != right else ""
        cells = [words[i] if i >= 0 else "" for i in (left, right)]
        width = max(map(len, cells))
        cells = [cell or "*" * width for cell in cells]
        lines = [f"{line} {cell:<{width}}" for line, cell in zip(lines, [*cells, mark], strict=True)]
    return "\n".join(line.rstrip() for line in lines)
