"""Is one arm better than another? Tests over paired seeds, speakers and utterances, as numbers.

Errors of an arm are counts (K, U): K seeds, U utterances of one test set, the same utterances and seeds in both arms.
What is drawn anew with every seed (initial weights, order of the data) moves all utterances of a run together, so a
test over utterances or speakers of single runs calls equal systems different far too often. The verdict therefore
rests on the seeds; the other two tests are shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from asrkit.errors import DataError
from asrkit.scoring import clusters_of

FEWEST_SEEDS = 3  # below, a variance over seeds is no evidence
ALPHA = 0.05  # of a whole report on equal systems: how often it may call any two of them different
LEVEL = ALPHA / 2  # two questions are asked of arms, which is better and which is faster; of axes two more
ROUNDING = 1e-12  # of rates: below, differences are the same in all seeds
NO_SPREAD = "no verdict: the difference is the same, to the last error, in every seed, so its spread is not known"
UNPAIRED = "no verdict: they were not scored on the same utterances"
CELLS = 1 << 20  # of the bootstrap at a time: seeds x speakers x replications


@dataclass(frozen=True)
class Arm:
    """One arm's outcome on one split: errors (K, U), reference lengths (U,), speakers (U,), seeds (K,)."""

    name: str
    errors: np.ndarray
    lengths: np.ndarray
    speakers: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def rates(self) -> np.ndarray:
        """Corpus error rate of each seed (K,)."""
        return self.errors.sum(1) / max(float(self.lengths.sum()), 1.0)


@dataclass(frozen=True)
class Difference:
    """Second arm less first, in error rate: mean over paired seeds, 95 % interval (Student), p of "no difference"."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """All tests of one pair of arms on one split. `p_holm`: p corrected for all pairs that were compared (Holm).

    differences: of every paired seed. undecided: why no verdict is given in spite of p, in words. level: what p_holm
    must be below. deaf: the arm with more errors, where none of its models hears its input: how many more says nothing.
    """

    first: str
    second: str
    seeds: Difference
    bootstrap: tuple[float, float]
    matched_pairs: tuple[float, ...]
    p_holm: float
    seeds_needed: int | None
    differences: tuple[float, ...] = ()
    undecided: str | None = None
    level: float = LEVEL
    deaf: str | None = None

    @property
    def difference(self) -> Difference:
        """Over seeds: what is judged."""
        return self.seeds

    @property
    def different(self) -> bool:
        """Whether the difference over seeds stands, at its level over all pairs together."""
        return self.undecided is None and self.p_holm < self.level


def paired(first: Arm, second: Arm) -> tuple[np.ndarray, np.ndarray]:
    """Errors (K, U) of the seeds that both arms have. Raises DataError unless they scored the same utterances."""
    if first.speakers != second.speakers or not np.array_equal(first.lengths, second.lengths):
        raise DataError(
            f"{first.name} and {second.name} were not scored on the same utterances",
            fix="score both on one split with one hash",
            reason="not_paired",
        )
    common = [seed for seed in first.seeds if seed in second.seeds]
    rows = [[arm.seeds.index(seed) for seed in common] for arm in (first, second)]
    return first.errors[rows[0]], second.errors[rows[1]]


def over_seeds(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> Difference:
    """Student's paired t test (Student 1908) of rates (K,) and (K,); NaN where there are fewer than two seeds.

    p is NaN as well where all seeds have the same difference, and it is not 0: errors are counts, and three small ones
    are easily alike, which is no proof.
    """
    from scipy import special  # its statistics take a second to import, and each call a tenth of a millisecond

    differences = np.asarray(second, float) - np.asarray(first, float)
    count = len(differences)
    if count < 2:
        mean = float(differences.mean()) if count else math.nan
        return Difference(mean, math.nan, math.nan, math.nan, count)
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(count)
    if error < ROUNDING:
        return Difference(mean, mean, mean, 1.0 if abs(mean) < ROUNDING else math.nan, count)
    reach = float(special.stdtrit(count - 1, (1 + level) / 2)) * error
    return Difference(mean, mean - reach, mean + reach, float(2 * special.stdtr(count - 1, -abs(mean) / error)), count)


def crossed_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    lengths: np.ndarray,
    speakers: Sequence[str],
    replications: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the difference in error rate when seeds and speakers are drawn anew with replacement.

    errors (K, U) of both arms, lengths (U,) and speakers (U,) of the references. All seeds are tested on the same
    speakers, so these are crossed with the seeds, and one draw of them serves all seeds of a replication (Owen 2007,
    doi 10.1214/07-AOAS122: the pigeonhole bootstrap). Speakers drawn for each seed by itself would average out over
    seeds what an arm does to a speaker in every seed. With fewer than two known speakers utterances are drawn.
    """
    clusters = clusters_of(speakers)
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    member = np.array([names[name] for name in clusters])
    difference = np.zeros((len(first), len(names)))
    for k, row in enumerate(np.asarray(second, float) - np.asarray(first, float)):
        difference[k] = np.bincount(member, row, len(names))
    size = np.bincount(member, lengths, len(names))
    rng = np.random.default_rng(seed)
    found = np.empty(replications)
    at_once = max(1, CELLS // max(difference.size, 1))
    for start in range(0, replications, at_once):
        count = min(at_once, replications - start)
        rows = rng.integers(len(difference), size=(count, len(difference)))
        columns = rng.integers(len(names), size=(count, len(names)))
        drawn = difference[rows[:, :, None], columns[:, None, :]].sum(2)  # (count, K)
        found[start : start + count] = drawn.mean(1) / np.maximum(size[columns].sum(1), 1)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def matched_pairs(first: np.ndarray, second: np.ndarray) -> float:
    """p of "no difference" between two runs: errors (U,) and (U,) utterance by utterance, normal approximation.

    Gillick & Cox 1989, with utterances as segments. NaN, as in `over_seeds`, of a single utterance and where all have
    the same difference: their spread is not known.
    """
    differences = np.asarray(second, float) - np.asarray(first, float)
    if len(differences) < 2:
        return math.nan
    spread = differences.std(ddof=1)
    if spread < ROUNDING:
        return math.nan if differences.any() else 1.0
    return math.erfc(abs(differences.mean()) / (spread / math.sqrt(len(differences))) / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, each at least as large as before (Holm 1979); NaN stays and counts."""
    order = sorted(range(len(p_values)), key=lambda i: (math.isnan(p_values[i]), p_values[i]))
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        if not math.isnan(p_values[i]):
            highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
            corrected[i] = highest
    return corrected


class Judged(Protocol):
    """What is judged by a difference over paired seeds: a dataclass."""

    @property
    def difference(self) -> Difference: ...
    @property
    def differences(self) -> tuple[float, ...]: ...
    @property
    def undecided(self) -> str | None: ...
    @property
    def seeds_needed(self) -> int | None: ...
    @property
    def level(self) -> float: ...
    @property
    def p_holm(self) -> float: ...
    @property
    def different(self) -> bool: ...


One = TypeVar("One", bound=Judged)


def too_few(one: Judged) -> bool:
    """Whether it rests on fewer than FEWEST_SEEDS paired seeds, and nothing else keeps a verdict back."""
    return one.undecided is None and one.difference.seeds < FEWEST_SEEDS


def unpaired(first: str, second: str) -> Comparison:
    """What is left of a comparison of two arms that were not scored on the same utterances: no number, no verdict."""
    none = Difference(math.nan, math.nan, math.nan, math.nan, 0)
    return Comparison(first, second, none, (math.nan, math.nan), (), math.nan, None, (), UNPAIRED)


def corrected(tests: Sequence[One], level: float = LEVEL) -> list[One]:
    """The same with Holm's correction over all of them together, and the seeds that each would take at this level.

    Those without a verdict, undecided or of fewer than FEWEST_SEEDS seeds, are counted too; one without a spread over
    seeds is undecided, and what is undecided gets no number of seeds.
    """
    usable = [
        one.difference.p if one.difference.seeds >= FEWEST_SEEDS and one.undecided is None else math.nan
        for one in tests
    ]
    made = []
    for one, p in zip(tests, holm(usable), strict=True):
        still = one.difference.seeds >= FEWEST_SEEDS and math.isnan(one.difference.p)
        why = one.undecided or (NO_SPREAD if still else None)
        needed = seeds_for(np.array(one.differences), alpha=level, tests=len(tests)) if why is None else None
        made.append(replace(one, p_holm=p, seeds_needed=needed, level=level, undecided=why))  # type: ignore[type-var]
    return made


def seeds_for(
    differences: np.ndarray, alpha: float = LEVEL, power: float = 0.8, most: int = 1000, tests: int = 1
) -> int | None:
    """How many paired seeds, FEWEST_SEEDS at least, would show the mean of differences (K,) with this power; None if no
    number up to `most` would.

    Noncentral t with the standard deviation seen so far, so a rough figure; at level alpha / tests, since Holm's
    correction asks no more than that of a single one of so many tests.
    """
    from scipy import special

    if len(differences) < 2:
        return None
    mean, spread = abs(float(np.mean(differences))), float(np.std(differences, ddof=1))
    if mean == 0 or spread < ROUNDING:
        return None

    def enough(count: int) -> bool:
        edge = special.stdtrit(count - 1, 1 - alpha / tests / 2)
        return bool(1 - special.nctdtr(count - 1, mean / spread * math.sqrt(count), edge) >= power)

    low, high = FEWEST_SEEDS - 1, FEWEST_SEEDS  # power grows with the number: double, then halve
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def compare(arms: Sequence[Arm], baseline: str | None = None) -> list[Comparison]:
    """Every pair of arms, or every arm with the baseline; corrected together."""
    pairs = [(a, b) for i, a in enumerate(arms) for b in arms[i + 1 :]]
    if baseline is not None:
        base = next((arm for arm in arms if arm.name == baseline), None)
        if base is None:
            raise DataError(
                f"no arm {baseline!r}", possible=", ".join(arm.name for arm in arms), reason="unknown_baseline"
            )
        pairs = [(base, arm) for arm in arms if arm is not base]
    errors = [paired(a, b) for a, b in pairs]
    total = [max(float(a.lengths.sum()), 1.0) for a, _ in pairs]
    differences = [over_seeds(x.sum(1) / n, y.sum(1) / n) for (x, y), n in zip(errors, total, strict=True)]
    found = []
    for (a, b), (x, y), n, d in zip(pairs, errors, total, differences, strict=True):
        interval = crossed_bootstrap(x, y, a.lengths, a.speakers) if len(x) else (math.nan, math.nan)
        runs = tuple(matched_pairs(one, other) for one, other in zip(x, y, strict=True))
        by_seed = tuple(((y.sum(1) - x.sum(1)) / n).tolist())
        found.append(Comparison(a.name, b.name, d, interval, runs, math.nan, None, by_seed))
    return corrected(found)
