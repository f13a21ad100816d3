"""What a report says of a whole study, in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from asrkit.comparison import FEWEST_SEEDS, NO_SPREAD, Comparison, Judged, too_few
from asrkit.report.collect import StudyResult
from asrkit.report.formats import amount, context_name, listed, of
from asrkit.report.learning import Pace, deaf, model_hears
from asrkit.report.measures import Final
from asrkit.report.sentences import seeds_to_come
from asrkit.study.proof import shortened

NAMED = 8  # arms in a sentence
AHEAD = (
    "where more seeds are said to be needed, take a new study with fresh seeds, or one extension that is planned "
    "ahead: with a look before and one after it equal arms are called different twice as often as the level says, with "
    "a look after every seed up to four times as often (docs/study.md)"
)
WHY = {"rate not chosen now": "with a rate that is not chosen now"}  # as study.json has it -> in a sentence


def headlines(
    found: StudyResult,
    result: dict[str, Final],
    pairs: Sequence[tuple[str, Comparison]],
    speeds: Sequence[Pace],
    split: str,
    rate: str,
    baseline: str | None = None,
    others: Sequence[Judged] = (),
) -> list[str]:
    """The report in a few lines: how far the study is, which means are lowest, how many differences stand.

    baseline: what was compared with, if not all pairs were compared. others: what else was judged, across axes.
    """
    lines = [*_progress(found), *_orders(found, result, split, rate)]
    if baseline is not None and (pairs or speeds):
        chosen = "named in the study" if baseline == found.baseline else "given to this report, after the results"
        lines.append(f"compared with {baseline} ({chosen})")
    if pairs:
        lines.append(_stands(f"in {rate} on {split}", [one for _, one in pairs]))
    if speeds:
        lines.append(_stands("in how fast they learn", speeds))
    judged: list[Judged] = [*(one for _, one in pairs), *speeds, *others]
    if any(seeds_to_come(one) for one in judged):
        lines.append(AHEAD)
    lines += rates_in_words(found) + versions_in_words(found)
    if before := found.study.get("tested_before") or {}:
        arms = _some([f"{context_name(arm)} ({' and '.join(map(str, rates))})" for arm, rates in before.items()])
        lines.append(f"test was decoded before with a learning rate that is not the arm's now: {arms}; the choice is "
                     "dev's, and test no longer untouched")  # fmt: skip
    over = [model_hears(cell) for cell in found.cells if cell.over and cell.row.get("chosen")]
    if silent := over.count(False):
        lines.append(f"{of(silent, len(over), 'model')} {'does' if silent == 1 else 'do'} not hear the input, so that "
                     "the error rate says nothing but that")  # fmt: skip
    return lines


def rates_in_words(found: StudyResult) -> list[str]:
    """What the learning rates leave open: one for all arms, an arm whose best is the last one of its grid, or one that
    hears with none of them, whose choice says nothing."""
    arms = [arm for arm in found.arms if arm.get("lr") is not None and arm.get("tuning")]
    grid = found.learning_rates
    if len(grid) == 1 and len(arms) > 1:
        return [
            f"one learning rate for all arms, {grid[0]:g}: an arm may be behind only because another would suit it "
            "better; --lr='[...]' tries more on the same study"
        ]
    hearing = [arm for arm in arms if not all(map(found.tried_in_vain, arm["tuning"]))]
    silent = [context_name(arm["arm"]) for arm in arms if arm not in hearing]
    lines = []
    for name, last, beyond in (("lowest", grid[0], 0.5), ("highest", grid[-1], 2.0)) if len(grid) > 1 else ():
        at = [context_name(arm["arm"]) for arm in hearing if arm["lr"] == last]
        wider = ", ".join(map(_exactly, sorted({*grid, last * beyond})))
        if at:
            lines.append(
                f"the best learning rate of {of(len(at), len(hearing), 'arm')} is the {name} one tried, {last:g}; a "
                f"better one may lie beyond (--lr='[{wider}]'): {_some(at)}"
            )
    if silent and len(grid) > 1:
        lines.append(f"no learning rate of these was chosen by a model that hears its input: {_some(silent)}")
    return lines


def _some(names: Sequence[str]) -> str:
    """All of a few; of many the first ones, as the tables have them all."""
    more = len(names) - NAMED
    return "; ".join(names[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def versions_in_words(found: StudyResult) -> list[str]:
    """What is compared was not trained with the same sources: rounding may be among what arms differ in.

    A cell without a proof, whose process was ended before it could write one, says nothing of its sources.
    """
    sources = {row.get("cell"): row.get("code") for row in found.study.get("proof") or []}
    compared = [cell.row["id"] for cell in found.cells if cell.over and cell.row.get("chosen")]
    counts = Counter(sources[one] for one in compared if one in sources)
    if len(counts) < 2:
        return []
    unknown = counts.pop(None, 0)
    parts = [f"{amount(count, 'cell')} with {shortened(code)}" for code, count in counts.items() if code]
    parts += [f"{unknown} with unrecorded ones"] if unknown else []
    return [
        f"the cells compared were trained with different sources of asrkit or another torch ({', '.join(parts)}): "
        "rounding alone can move a model on the edge of learning by points"
    ]


def _exactly(rate: float) -> str:
    """As YAML reads it back (a mantissa with a point): another number would be another cell."""
    short = f"{rate:.1e}"
    return short if float(short) == rate else repr(rate)


def _orders(found: StudyResult, result: dict[str, Final], split: str, rate: str) -> list[str]:
    """A line per context with the order of its arms; where every context has one encoder, a line per recipe with the
    order of the axes' values."""
    contexts = found.contexts()
    if any(len(arms) > 1 for arms in contexts.values()):
        groups = {context_name(context): {arm["encoder"]: arm for arm in arms} for context, arms in contexts.items()}
    else:
        groups = {}
        for (arm,) in contexts.values():
            values = arm.get("axes") or {}
            name = ", ".join(f"{axis} {value}" for axis, value in values.items()) or str(arm.get("recipe"))
            group = f"{arm['recipe']}, {arm['encoder']}" if values else arm["encoder"]
            groups.setdefault(group, {})[name] = arm
    lines = [text for name, group in groups.items() if (text := _order(found, result, name, group))]
    if lines:
        lines.insert(0, f"mean {rate} on {split}, the lowest first (an order of means is no evidence by itself):")
    if len({arm.get("recipe") for arm in found.arms}) > 1 and all(len(arms) == 1 for arms in contexts.values()):
        lines.append("recipes are not compared with each other: make what differs between them an axis of one recipe")
    return lines


def _order(found: StudyResult, result: dict[str, Final], context: str, group: dict[str, dict[str, Any]]) -> str:
    """`model1: none 38.1 %, layer_norm 45.8 % (1 of 3 seeds)`; arms of which no model hears come last.

    group: what an arm is called -> the arm.
    """
    hearing, silent = [], []
    there = {name: (arm["arm"], result[arm["arm"]].arm) for name, arm in group.items() if arm["arm"] in result}
    most = max((len(outcome.seeds) for _, outcome in there.values()), default=0)
    for name, (arm, outcome) in there.items():
        if deaf(found.of_arm(arm)):
            silent.append(name)
        else:
            few = f" ({of(len(outcome.seeds), most, 'seed')})" if len(outcome.seeds) < most else ""
            hearing.append((float(outcome.rates.mean()), name, few))
    if len(hearing) + len(silent) < 2:
        return ""
    parts = [f"{name} {100 * mean:.1f} %{few}" for mean, name, few in sorted(hearing)]
    if silent:
        names = listed([f'"{name}"' for name in silent])  # or "no model of none" would be a riddle
        parts.append(f"no model of {names} hears its input")
    return f"{context}: {', '.join(parts)}"


def _progress(found: StudyResult) -> list[str]:
    status = Counter(cell.status for cell in found.cells)
    if found.unplanned:
        status["not planned yet"] += found.unplanned
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in status.items())
    lines = [f"{amount(len(found.cells) + found.unplanned, 'cell')}: {counts or 'none'}"]
    if found.left_out:
        why = Counter(str(one.get("why")) for one in found.left_out)
        parts = ", ".join(f"{count} {WHY.get(name, name)}" for name, count in why.items())
        are = amount(len(found.left_out), "cell was", "cells were")
        lines.append(f"{are} trained and {'is' if len(found.left_out) == 1 else 'are'} not compared: {parts}")
    return lines


def _stands(what: str, tests: Sequence[Comparison | Pace]) -> str:
    """`2 of 3 pairs of arms differ in CER on test (p < 0.025 ...); 1 more without a verdict: ...`."""
    few, still = sum(map(too_few, tests)), sum(one.undecided == NO_SPREAD for one in tests)
    silent = sum(one.undecided is not None for one in tests) - still
    usable = len(tests) - few - still - silent
    if few == len(tests):
        return f"no pair of arms has {FEWEST_SEEDS} paired seeds yet, so none can be said to differ {what}"
    without = [f"{few} with fewer than {FEWEST_SEEDS} paired seeds"] if few else []
    without += [f"{still} whose difference is the same in every seed"] if still else []
    without += [f"{silent} whose models do not hear their input"] if silent else []
    why = f"without a verdict: {', '.join(without)}"
    if not usable:
        return f"of no pair of arms it can be said whether they differ {what}; {why}"
    stand = sum(one.different for one in tests)
    text = f"{stand} of {amount(usable, 'pair')} of arms {'differs' if stand == 1 else 'differ'} {what} "
    return text + f"(p < {tests[0].level:g} after Holm's correction)" + (f"; {why}" if without else "")
