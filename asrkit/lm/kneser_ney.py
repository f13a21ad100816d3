"""Interpolated modified Kneser-Ney smoothing (Chen and Goodman, "An Empirical Study of Smoothing Techniques for
Language Modeling", TR-10-98, Harvard 1998, section 3).

    p(w | h) = (a(h w) - D(a(h w))) / sum_x a(h x)  +  b(h) p(w | h')          h' = h without its first word
    b(h)     = sum_x D(a(h x)) / sum_x a(h x)

`a` is the count of the highest order, and below it the number of different words seen before the n-gram; n-grams that
begin with <s> keep their counts, since nothing stands before them. D(0) = 0 and, from the numbers t_i of n-grams of
that order with a = i (equation 26):

    Y = t_1 / (t_1 + 2 t_2),   D(i) = i - (i + 1) Y t_{i+1} / t_i   for i = 1, 2 and 3 (for all a >= 3)

The lowest order is interpolated with the uniform distribution over all words, </s> and <unk> but not <s>, as KenLM does
it (Heafield et al., "Scalable Modified Kneser-Ney Language Model Estimation", ACL 2013). That is all the probability
that <unk> has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asrkit.errors import RecipeError
from asrkit.lm.counts import Level, Text, count_ngrams

FALLBACK = (0.5, 1.0, 1.5)  # KenLM's --discount_fallback, where equation 26 has no answer
MAX_ORDER = 20


@dataclass(frozen=True)
class NgramModel:
    """A back-off model: by order, log10 p (K,) and log10 b (K,) of the rows of `levels`.

    log_backoff is 0 for n-grams that no other one continues. discounts: D(1), D(2), D(3+) by order; fallbacks: the
    orders whose text was too small for equation 26, which have 0.5, 1, 1.5 instead.
    """

    words: list[str]
    levels: list[Level]
    log_probs: list[np.ndarray]
    log_backoffs: list[np.ndarray]
    discounts: list[tuple[float, float, float]]
    fallbacks: tuple[int, ...]

    @property
    def order(self) -> int:
        """The number of words of the longest n-grams."""
        return len(self.levels)


def estimate(text: Text, order: int, told: object = None) -> NgramModel:
    """The model of a text; `told(n)` is called when the n-grams of order n are counted.

    Raises RecipeError (`lm_order`) for an order outside 1..20.
    """
    if not 1 <= order <= MAX_ORDER:
        raise RecipeError(f"order {order}", possible=f"1 to {MAX_ORDER}", reason="lm_order")
    levels = count_ngrams(text, order, told) if callable(told) else count_ngrams(text, order)
    while len(levels) > 1 and not len(levels[-1]):  # no sentence is that long
        levels.pop()
    below = np.array([1.0 / (len(levels[0]) - 1)])
    log_probs, log_backoffs, discounts, fallbacks = [], [], [], []
    for n, level in enumerate(levels, start=1):
        counts = adjusted_counts(levels, n)
        amounts = discounts_of(counts)
        if amounts is None:
            fallbacks.append(n)
        discounts.append(amounts or FALLBACK)
        discount = np.array([0.0, *discounts[-1]])[np.minimum(counts, 3)]
        size = len(levels[n - 2]) if n > 1 else 1
        total = np.bincount(level.context, counts, size)
        freed = np.bincount(level.context, discount, size)
        continued = total > 0
        backoff = np.divide(freed, total, out=np.ones(size), where=continued)
        probs = (counts - discount) / total[level.context] + backoff[level.context] * below[level.suffix]
        if n > 1:
            log_backoffs.append(np.log10(np.maximum(backoff, 1e-99)))
        else:
            probs[1] = 1.0  # <s> is given, never predicted; KenLM writes 0 too
        log_probs.append(np.log10(probs))
        below = probs
    return NgramModel(text.words, levels, log_probs, log_backoffs, discounts, tuple(fallbacks))


def adjusted_counts(levels: list[Level], n: int) -> np.ndarray:
    """a (K,) of the n-grams of order n: counts of the highest order, else how many words were seen before it."""
    level = levels[n - 1]
    if n == len(levels):
        counts = level.count.copy()
    else:
        before = np.bincount(levels[n].suffix, minlength=len(level))
        counts = np.where(level.at_start, level.count, before)
    if n == 1:
        counts[:2] = 0  # <unk> is not in the text, <s> is never predicted
    return counts


def discounts_of(counts: np.ndarray) -> tuple[float, float, float] | None:
    """D(1), D(2), D(3+) of one order by equation 26; None where it has no answer or one outside 0..i."""
    t = [int((counts == i).sum()) for i in range(5)]
    if 0 in t[1:4]:
        return None
    y = t[1] / (t[1] + 2 * t[2])
    amounts = tuple(i - (i + 1) * y * t[i + 1] / t[i] for i in (1, 2, 3))
    if any(not 0 <= amount <= i for i, amount in enumerate(amounts, start=1)):
        return None
    return amounts[0], amounts[1], amounts[2]
