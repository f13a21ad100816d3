"""What a report says of one comparison: one sentence, whatever was compared."""

from __future__ import annotations

from asrkit.comparison import FEWEST_SEEDS, Comparison, Difference, Judged, too_few
from asrkit.report.axes import Family
from asrkit.report.formats import amount, context_name
from asrkit.report.interactions import Interaction
from asrkit.report.learning import Pace


def comparison_in_words(one: Comparison, rate: str = "CER") -> str:
    """Which arm is better, by how much, how sure; or "no evidence", and what it would take."""
    d = one.seeds
    better, worse = (one.second, one.first) if d.mean < 0 else (one.first, one.second)
    return _sentence(
        one,
        f"{one.first} and {one.second}",
        f"{better} is better than {worse} by {_points(d)} of {rate}",
        f"no evidence of a difference at this budget: {one.second}'s {rate} is {_beside(d)}",
        after="" if one.deaf is None else f"; {one.deaf} hears nothing, so that by how much says nothing but that",
    )


def across_in_words(family: Family, one: Comparison, rate: str) -> str:
    """What the axis does to one encoder: `model3, none: depth 3 is better than depth 1 by ...`."""
    return f"{context_name(family.context)}, {family.encoder}: {comparison_in_words(one, rate)}"


def pace_in_words(one: Pace) -> str:
    """Which arm learns faster, by how much, how sure; or "no evidence", and what it would take."""
    d = one.difference
    faster, slower = (one.second, one.first) if d.mean < 0 else (one.first, one.second)
    averaged = f"dev CER averaged over training{' (100 % until a model hears)' * one.raised} is"
    return _sentence(
        one,
        f"{one.first} and {one.second}",
        f"{faster} learns faster than {slower}: its {averaged} {_points(d)} lower",
        f"no evidence at this budget that one learns faster: {one.second}'s {averaged} {_beside(d)}",
        what="tell which learns faster",
        after=_goal(one) + _crossing(one),
    )


def interaction_in_words(one: Interaction, rate: str) -> str:
    """What the axis does to the difference of two encoders, or "no evidence", and what it would take."""
    d, each = one.difference, f" with each {one.per}" if one.per else ""
    begin = f"{context_name(one.context)}: {one.second} beside {one.first}, from {one.axis} {one.start} to {one.to}"
    said = _gaps(one, rate) if one.per else ""
    moved = f"it {'gains' if d.mean < 0 else 'loses'} {_points(d)} of {rate}{each}"
    if _still(d):
        moved = f"it gains and loses nothing in {rate}{each}"
    return _sentence(
        one, begin, f"{begin}: {said}{moved}", f"{said}no evidence that the difference changes: {moved}", sign=False
    )


def _sentence(
    one: Judged, pair: str, stands: str, unclear: str, *, what: str = "tell", after: str = "", sign: bool = True
) -> str:
    """pair: what was compared. stands: said of a difference that does; unclear: of one that does not, after the pair.

    what: that too few seeds cannot. after: what follows the numbers. sign: of the interval where nothing stands.
    """
    d = one.difference
    if one.undecided is not None:
        return f"{pair}: {one.undecided}"
    if too_few(one):
        return f"{pair}: {amount(d.seeds, 'paired seed')}, too few to {what} (at least {FEWEST_SEEDS})"
    if one.different:
        return f"{stands} ({_span(d, one.p_holm, sign=False)}){after}"
    return f"{pair}: {unclear} ({_span(d, one.p_holm, sign)}){_more_seeds(one)}{after}"


def _gaps(one: Interaction, rate: str) -> str:
    shown = ", ".join(f"{100 * gap:+.1f} ({value})" for value, gap in one.gaps)
    text = f"its {rate} is {shown} points beside it; "
    text += f"at {', '.join(one.left_out)} the better one hears nothing; " if one.left_out else ""
    other = ", ".join(one.unpaired)
    return text + (f"{other} was not scored on the same utterances as {one.start}; " if other else "")


def _crossing(one: Pace) -> str:
    if not one.crossing:
        return ""
    (early, *begin), (late, *end) = one.crossing
    return (
        f"; the curves cross: {early} is ahead in every seed from {begin[0]} to {begin[1]} updates, {late} from "
        f"{end[0]} to {end[1]}"
    )


def _goal(one: Pace) -> str:
    if one.goal is None:
        return ""
    threshold, a, b = one.goal
    text = f"; dev CER {100 * threshold:g} % after {a:.0f} updates ({one.first}) and {b:.0f} ({one.second})"
    if one.ratio is None:
        return text
    middle, low, high = one.ratio
    if low == high:  # the same in every seed: no spread to say more of
        return text if middle == 1 else f"{text}, {middle:.2f} times as many in every seed"
    return f"{text}, {middle:.2f} times as many ({low:.2f} to {high:.2f})"


def _still(d: Difference) -> bool:
    """Whether there is no difference in any seed."""
    return d.low == d.high


def _points(d: Difference) -> str:
    """`7.67 points`, without a sign."""
    return "less than 0.01 points" if 100 * abs(d.mean) < 0.005 else f"{100 * abs(d.mean):.2f} points"


def _beside(d: Difference) -> str:
    """`7.67 points higher`: the second's mean beside the first's."""
    return "the same" if _still(d) else f"{_points(d)} {'lower' if d.mean < 0 else 'higher'}"


def _span(d: Difference, p_holm: float, sign: bool = True) -> str:
    """`95 % interval +4.52 to +10.83 over 3 paired seeds; p = 0.009, 0.09 after Holm's correction`.

    sign: of second less first; else the interval of how far they are apart, in the direction of the mean.
    """
    if _still(d):
        return f"in each of {amount(d.seeds, 'paired seed')}"
    low, high = (-d.high, -d.low) if d.mean < 0 and not sign else (d.low, d.high)
    form = "+.2f" if sign else ".2f"
    p = f"{d.p:.3g}" if p_holm == d.p else f"{d.p:.3g}, {p_holm:.3g} after Holm's correction"
    return f"95 % interval {100 * low:{form}} to {100 * high:{form}} over {amount(d.seeds, 'paired seed')}; p = {p}"


def _more_seeds(one: Judged) -> str:
    """`; about 5 more seeds would be needed to show 1.20 points`, or nothing where no number is known.

    Where p alone is small, it was the correction for many tests that the difference did not outlive.
    """
    d, more = one.difference, seeds_to_come(one)
    alone = "; alone it would stand, among all pairs it does not (Holm)" if d.p < one.level else ""
    return f"{alone}; about {amount(more, 'more seed')} would be needed to show {_points(d)}" if more else alone


def seeds_to_come(one: Judged) -> int:
    """How many more seeds would be needed, as far as a sentence says so; 0 where none does."""
    if one.undecided is not None or too_few(one) or one.different or one.seeds_needed is None:
        return 0
    return max(one.seeds_needed - one.difference.seeds, 0)
