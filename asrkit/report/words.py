"""What a report says in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from asrkit.comparison import FEWEST_SEEDS, NO_SPREAD, Comparison, higher, in_words, more_seeds, span
from asrkit.report.axes import Family
from asrkit.report.collect import StudyResult
from asrkit.report.learning import Pace, model_hears
from asrkit.report.measures import Final

NAMED = 8  # arms in a sentence


def context_name(context: str) -> str:
    """`model1--depth-3` -> `model1, depth-3`."""
    return context.replace("--", ", ")


def pace_in_words(one: Pace) -> str:
    """Which arm learns faster, by how much, how sure; or "no evidence", and what it would take."""
    d = one.difference
    if one.undecided is not None:
        return f"{one.first} and {one.second}: {one.undecided}"
    if d.seeds < FEWEST_SEEDS:
        return (
            f"{one.first} and {one.second}: {d.seeds} paired seed{'s' * (d.seeds != 1)}, too few to tell which learns "
            f"faster (at least {FEWEST_SEEDS})"
        )
    averaged = "dev CER averaged over training is"
    if not one.different:
        text = (
            f"{one.first} and {one.second}: no evidence at this budget that one learns faster: {one.second}'s "
            f"{averaged} {higher(d)} ({span(d, one.p_holm)})"
        )
        return text + more_seeds(one) + _goal(one) + _crossing(one)
    faster, slower = (one.second, one.first) if d.mean < 0 else (one.first, one.second)
    return (
        f"{faster} learns faster than {slower}: its {averaged} {100 * abs(d.mean):.2f} points lower "
        f"({span(d, one.p_holm, sign=False)}){_goal(one)}{_crossing(one)}"
    )


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
    return f"{text}, {middle:.2f} times as many ({low:.2f} to {high:.2f})"


def headlines(
    found: StudyResult,
    result: dict[str, Final],
    pairs: Sequence[tuple[str, Comparison]],
    speeds: Sequence[Pace],
    split: str,
    rate: str,
) -> list[str]:
    """The report in a few lines: how far the study is, which means are lowest, how many differences stand."""
    lines = [_progress(found)]
    orders = [text for context in found.contexts() if (text := _order(found, result, context))]
    if orders:
        lines.append(f"mean {rate} on {split}, the lowest first (an order of means is no evidence by itself):")
        lines += orders
    if pairs:
        lines.append(_stands(f"differ in {rate} on {split}", [one for _, one in pairs]))
    if speeds:
        lines.append(_stands("differ in how fast they learn", speeds))
    lines += rates_in_words(found) + versions_in_words(found)
    if before := found.study.get("tested_before") or {}:
        arms = _some([f"{context_name(arm)} ({' and '.join(map(str, rates))})" for arm, rates in before.items()])
        lines.append(f"test was decoded before with a learning rate that is not the arm's now: {arms}; the choice is "
                     "dev's, and test no longer untouched")  # fmt: skip
    over = [model_hears(cell) for cell in found.cells if cell.over and cell.row.get("chosen")]
    if deaf := over.count(False):
        lines.append(f"{deaf} of {len(over)} models do{'es' * (deaf == 1)} not hear the input, so that the error rate "
                     "says nothing but that")  # fmt: skip
    return lines


def rates_in_words(found: StudyResult) -> list[str]:
    """What the learning rates leave open: one for all arms, or an arm whose best is the last one of its grid."""
    arms = [arm for arm in found.arms if arm.get("lr") is not None and arm.get("tuning")]
    grid = sorted({entry["lr"] for arm in arms for entry in arm["tuning"]})
    if len(grid) == 1 and len(arms) > 1:
        return [
            f"one learning rate for all arms, {grid[0]:g}: an arm may be behind only because another would suit it "
            "better; --lr='[...]' tries more on the same study"
        ]
    lines = []
    for name, last, beyond in (("lowest", grid[0], 0.5), ("highest", grid[-1], 2.0)) if len(grid) > 1 else ():
        at = [context_name(arm["arm"]) for arm in arms if arm["lr"] == last]
        wider = ", ".join(map(_exactly, sorted({*grid, last * beyond})))
        if at:
            lines.append(
                f"the best learning rate of {len(at)} of {len(arms)} arms is the {name} one tried, {last:g}; a better "
                f"one may lie beyond (--lr='[{wider}]'): {_some(at)}"
            )
    return lines


def _some(names: Sequence[str]) -> str:
    """All of a few; of many the first ones, as the tables have them all."""
    more = len(names) - NAMED
    return "; ".join(names[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def versions_in_words(found: StudyResult) -> list[str]:
    """What is compared was not trained with the same sources: rounding may be among what arms differ in."""
    sources = {row.get("cell"): row.get("code") for row in found.study.get("proof") or []}
    counts = Counter(sources.get(cell.row["id"]) for cell in found.cells if cell.over and cell.row.get("chosen"))
    if len(counts) < 2:
        return []
    unknown = counts.pop(None, 0)
    parts = [f"{count} cells with {code[:8]}" for code, count in counts.items() if code]
    parts += [f"{unknown} with unrecorded ones"] if unknown else []
    return [
        f"the cells compared were trained with different sources of asrkit or another torch ({', '.join(parts)}): "
        "rounding alone can move a model on the edge of learning by points"
    ]


def _exactly(rate: float) -> str:
    """As YAML reads it back (a mantissa with a point): another number would be another cell."""
    short = f"{rate:.1e}"
    return short if float(short) == rate else repr(rate)


def _order(found: StudyResult, result: dict[str, Final], context: str) -> str:
    """`model1: none 38.1 %, layer_norm 45.8 % (1 of 3 seeds)`; arms of which no model hears come last."""
    hearing, deaf = [], []
    arms = [arm for arm in found.contexts()[context] if arm["arm"] in result]
    most = max((len(result[arm["arm"]].arm.seeds) for arm in arms), default=0)
    for arm in arms:
        final = result[arm["arm"]].arm
        if any(model_hears(cell) is not False for cell in found.of_arm(arm["arm"]) if cell.over):
            few = f" ({len(final.seeds)} of {most} seeds)" if len(final.seeds) < most else ""
            hearing.append((float(final.rates.mean()), arm["encoder"], few))
        else:
            deaf.append(arm["encoder"])
    if len(hearing) + len(deaf) < 2:
        return ""
    parts = [f"{name} {100 * mean:.1f} %{few}" for mean, name, few in sorted(hearing)]
    if deaf:
        parts.append(f"no model of {' and '.join(deaf)} hears its input")
    return f"{context_name(context)}: {', '.join(parts)}"


def across_in_words(family: Family, one: Comparison, rate: str) -> str:
    """What the axis does to one encoder: `model3, none: depth 3 is better than depth 1 by ...`."""
    return f"{context_name(family.context)}, {family.encoder}: {in_words(one, rate)}"


def _progress(found: StudyResult) -> str:
    status = Counter(cell.status for cell in found.cells)
    total = max(int(found.study.get("total_cells", 0)), len(found.cells))
    if total > len(found.cells):
        status["not planned yet"] += total - len(found.cells)
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in status.items())
    return f"{total} cells: {counts or 'none'}"


def _stands(what: str, tests: Sequence[Comparison | Pace]) -> str:
    usable = [one for one in tests if one.undecided is None and one.difference.seeds >= FEWEST_SEEDS]
    still = sum(one.undecided == NO_SPREAD for one in tests)
    deaf = sum(one.undecided is not None for one in tests) - still
    few = len(tests) - len(usable) - deaf - still
    if few == len(tests):
        return f"no pair of arms has {FEWEST_SEEDS} paired seeds yet, so none can be said to {what}"
    stand = sum(one.different for one in usable)
    text = f"{stand} of {len(usable)} pairs of arms {what} (p < {tests[0].level:g} after Holm's correction)"
    text += f"; {few} more have fewer than {FEWEST_SEEDS} paired seeds" if few else ""
    text += f"; {still} more without a verdict, as the difference is the same in every seed" if still else ""
    return text + (f"; {deaf} more without a verdict, as models do not hear their input" if deaf else "")
