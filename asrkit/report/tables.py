"""The tables of a report on what came out, as text: the page and the Markdown show the same ones (how a study was made:
proof.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from asrkit.comparison import Comparison
from asrkit.report.axes import Family
from asrkit.report.collect import CellResult, StudyResult
from asrkit.report.formats import NONE, Table, context_name, interval, number, of, percent
from asrkit.report.interactions import Interaction
from asrkit.report.layers import DEPENDENCE, GRADIENT, at_end, end_dependence, end_gradients, order
from asrkit.report.learning import THRESHOLDS, Pace, heard_from, hears, listening, model_hears, reached, series
from asrkit.report.measures import Final, Spread, cost, end_gap, spread

Members = Sequence[CellResult]


def _spread(one: Spread | None, show: Callable[[float], str]) -> str:
    """`12.3 (11.0 to 14.1)`, and `12.3` where all seeds agree in these digits."""
    if one is None:
        return NONE
    mean, least, most = show(one.mean), show(one.least), show(one.most)
    return mean if least == most else f"{mean} ({least} to {most})"


FINAL: tuple[str, ...] = (
    "arm",
    "seeds",
    "hear",
    "CER",
    "CER, range",
    "CER, interval",
    "WER",
    "WER, range",
    "WER, interval",
    "",
)


def final_table(found: StudyResult, split: str, characters: dict[str, Final], words: dict[str, Final]) -> Table:
    """CER and WER per arm."""
    rows = [_final(found, arm["arm"], characters.get(arm["arm"]), words.get(arm["arm"])) for arm in found.arms]
    note = (
        f"In %, on {split}, the best model of each cell with the arm's learning rate: mean over seeds, least to most, "
        "and Student's 95 % interval of the mean (from three seeds on, cut off at 0). Hear: models that hear their "
        "input; the error rate of others says nothing but that. (Their train loss is 2 % below that of the best model "
        "with the same output at every frame; where it is less than 15 % below, other audio must change the output of "
        "every layer by 0.1 as well, as a recurrent model gets that far by knowing its place in the utterance.)"
    )
    head = FINAL
    if not any(row[-1] for row in rows):  # nothing to remark
        head, rows = head[:-1], [row[:-1] for row in rows]
    return Table(f"Error rates on {split}", note, head, rows)


def _final(found: StudyResult, arm: str, characters: Final | None, words: Final | None) -> tuple[str, ...]:
    if characters is None or words is None:
        return (context_name(arm), "0", *[NONE] * (len(FINAL) - 3), "")
    columns = []
    for one in (characters, words):
        s = spread(one.arm.rates.tolist())
        assert s is not None  # a Final has a seed
        whole = f"{percent(max(s.low, 0))} to {percent(s.high)}" if math.isfinite(s.low) else NONE
        columns += [percent(s.mean), f"{percent(s.least)} to {percent(s.most)}", whole]
    without = characters.without_model
    failed = f"seed{'s' * (len(without) > 1)} {', '.join(map(str, without))} failed without a model: counts as 100 %"
    over = [cell for cell in found.of_arm(arm) if cell.over]
    remarks = [failed] if without else []
    remarks += [
        f"seed {cell.row['seed']}: best epoch {(cell.outcome or {}).get('best_epoch')}, from before it heard"
        for cell in over if model_hears(cell) is False and hears(cell)
    ]  # fmt: skip
    heard = [model_hears(cell) for cell in over]
    hearing = NONE if None in heard else f"{heard.count(True)}"
    return (context_name(arm), str(len(characters.arm.seeds)), hearing, *columns, "; ".join(remarks))


def comparison_table(pairs: Sequence[tuple[str, Comparison]], split: str, rate: str) -> Table:
    """All tests of all pairs."""
    rows = [_tests(context_name(context), one) for context, one in pairs]
    note = (
        f"{rate} on {split}, second less first, in points. The verdict is Student's t over paired seeds, corrected for "
        "all pairs of this table (Holm); the intervals are 95 % of each pair alone, without a correction. Beside it: "
        "bootstrap over seeds and speakers (drawn once for all seeds; utterances where fewer than two speakers are "
        "known), and the matched-pairs test of each seed's two runs, which alone would call equal systems different "
        "too often. "
        "Seeds needed: how many, planned ahead, would show this difference (power 80 %) after the correction, as far "
        "as the spread seen so far can tell; a dash where there is no verdict."
    )
    return Table("All tests", note, ("of", *TESTS), rows)


TESTS = ("first", "second", "paired seeds", "difference", "interval", "p", "p, Holm", "seeds needed", "bootstrap",
         "p per seed, matched pairs")  # fmt: skip
TINY = 1e-4  # a p of one seed's two runs: below it no digit means anything


def _tests(of: str, one: Comparison) -> tuple[str, ...]:
    d = one.seeds
    low, high = one.bootstrap
    return (
        of, one.first, one.second, str(d.seeds), percent(d.mean, 2), interval(d.low, d.high), number(d.p),
        number(one.p_holm), NONE if one.seeds_needed is None else str(one.seeds_needed), interval(low, high),
        ", ".join(f"<{TINY}" if p < TINY else number(p, ".2g") for p in one.matched_pairs) or NONE,
    )  # fmt: skip


def axis_table(pairs: Sequence[tuple[Family, Comparison]], split: str, rate: str) -> Table:
    """All tests across the axes."""
    rows = [_tests(f"{context_name(family.context)}, {family.encoder}", one) for family, one in pairs]
    note = (
        f"{rate} on {split}, second less first, in points, of arms that differ in this axis and in nothing else: every "
        "value with the axis' first (the least). Tests as above; Holm over all rows of this table."
    )
    return Table("Across the axes", note, ("of", *TESTS), rows)


def interaction_table(changes: Sequence[Interaction], split: str, rate: str) -> Table:
    """Differences of differences."""
    rows = []
    for one in changes:
        d, values = one.difference, f"{one.axis} {one.start} to {one.to}"
        rows.append((
            context_name(one.context), values + (f", per {one.per}" if one.per else ""), one.first, one.second,
            ", ".join(f"{percent(gap)} ({value})" for value, gap in one.gaps), str(d.seeds), percent(d.mean, 2),
            interval(d.low, d.high), number(d.p), number(one.p_holm),
            NONE if one.seeds_needed is None else str(one.seeds_needed),
        ))  # fmt: skip
    note = (
        f"{rate} on {split}, in points: second less first at the axis' values (means over seeds), and how much that "
        "changes: from the one value to the other, or along three and more numbers, by least squares; below 0: the "
        "second gains on the first. Student's t over seeds that all of these arms have, Holm over all rows."
    )
    head = ("of", "axis", "first", "second", "second less first", "paired seeds", "change", "interval", "p", "p, Holm",
            "seeds needed")  # fmt: skip
    return Table("Differences of differences", note, head, rows)


def threshold_table(found: StudyResult) -> Table:
    """Updates to reach a CER on dev; thresholds that no cell has reached are left out."""
    every = [cell for arm in found.arms for cell in found.of_arm(arm["arm"]) if cell.over]
    thresholds = [t for t in THRESHOLDS if any(reached(cell, t) is not None for cell in every)]
    rows = []
    for arm in found.arms:
        members = [cell for cell in found.of_arm(arm["arm"]) if cell.over]
        shown = []
        for threshold in thresholds:
            steps = [step for cell in members if (step := reached(cell, threshold)) is not None]
            whole = bool(steps) and len(steps) == len(members)
            shown.append(_spread(spread(list(map(float, steps))), lambda v: f"{v:.0f}") if whole
                         else of(len(steps), len(members), "seed") if members else NONE)  # fmt: skip
        rows.append((context_name(arm["arm"]), _hearing(members), *shown))
    note = (
        "Hears: updates until the model first hears its input (as in the table of error rates). The others: updates "
        "until the CER on dev of a cell that hears is first seen at or below a threshold, to the next look. Mean over "
        "seeds (least to most) where all seeds come there, else how many do. Thresholds that no cell reaches are left "
        "out."
    )
    return Table("Updates to reach a CER", note, ("arm", "hears", *(f"{100 * t:g} %" for t in thresholds)), rows)


def _hearing(members: Members) -> str:
    known = [heard_from(cell) for cell in members if listening(cell)]
    steps = [step for step in known if step is not None]
    if not known or len(steps) < len(members):
        return of(len(steps), len(members), "seed") if known else NONE
    return _spread(spread(list(map(float, steps))), lambda v: f"{v:.0f}")


def pace_table(speeds: Sequence[Pace]) -> Table:
    """The numbers behind "learns faster"."""
    rows = []
    for one in speeds:
        d, ratio = one.difference, NONE
        if one.goal is not None and one.ratio is not None:
            middle, low, high = (number(value, ".2f") for value in one.ratio)
            reach = f" ({low} to {high})" if one.ratio[1] < one.ratio[2] else ""
            ratio = f"{middle}{reach}, to {100 * one.goal[0]:g} %"
        rows.append((
            context_name(one.context), one.first, one.second, str(d.seeds), percent(d.mean, 2),
            interval(d.low, d.high), number(d.p), number(one.p_holm),
            NONE if one.seeds_needed is None else str(one.seeds_needed), ratio,
        ))  # fmt: skip
    note = (
        "Dev CER averaged over all looks at dev (the area under the learning curve against updates), second less "
        "first, in points; Student's t over paired seeds, Holm over all pairs of this table. A CER counts as 100 % "
        "where it is above, and as long as the cell does not hear its input; a cell that failed keeps the CER it had. "
        "Beside it, without a test: updates of the second over those of the first to the lowest CER that all seeds of "
        "both reach, geometric mean with its 95 % interval."
    )
    head = ("of", "first", "second", "paired seeds", "difference", "interval", "p", "p, Holm", "seeds needed",
            "updates, second / first")  # fmt: skip
    return Table("How fast they learn", note, head, rows)


def end_table(found: StudyResult) -> Table:
    """The end of training: gap, blanks, empties, gradients."""
    rows = []
    for arm in found.arms:
        members = [cell for cell in found.of_arm(arm["arm"]) if cell.over]
        gaps = [gap for cell in members if (gap := end_gap(cell)) is not None]
        ends = [[points[-1][2] for c in members if (points := series(c, "dev", key))] for key in ("blank", "empty")]
        gradients = [g for cell in members if (g := end_gradients(cell)) is not None]
        names = f"{gradients[0][0]} / {gradients[0][2]}" if gradients else NONE
        rows.append((
            context_name(arm["arm"]), _spread(spread([t for t, _ in gaps]), percent),
            _spread(spread([d for _, d in gaps]), percent), _spread(spread([d - t for t, d in gaps]), percent),
            *(_spread(spread(values), percent) for values in ends),
            names, *(_spread(spread([float(g[i]) for g in gradients]), number) for i in (1, 3)),
            _weakest([one for cell in members if (one := end_dependence(cell)) is not None]),
        ))  # fmt: skip
    note = (
        "After the last epoch, mean over seeds (least to most), in %. The gap is CER on dev less CER on train; train's "
        "is that of training itself (dropout and augmentation on, weights in motion), so the gap can be negative. "
        "Gradient norms are those of the last epoch, before clipping; blank: frames, empty: outputs, on dev. "
        "Dependence: how much other audio of the same length changes a layer's output (0 not at all, about 1 wholly), "
        "of the layer where that is least."
    )
    head = ("arm", "train CER", "dev CER", "gap", "blank", "empty", "layers: first / last", "gradient of first",
            "of last", "weakest dependence")  # fmt: skip
    return Table("At the end of training", note, head, rows)


def _weakest(ends: Sequence[tuple[str, float]]) -> str:
    names = "/".join(dict.fromkeys(name for name, _ in ends))
    return f"{_spread(spread([value for _, value in ends]), number)} in {names}" if ends else NONE


def layer_tables(found: StudyResult) -> list[Table]:
    """Gradient norm and dependence on the input of every layer at the end, a table per context."""
    tables = []
    for context, arms in found.contexts().items():
        members = {arm["encoder"]: [c for c in found.of_arm(arm["arm"]) if c.over] for arm in arms}
        ends = {name: [(at_end(c, GRADIENT), at_end(c, DEPENDENCE)) for c in group] for name, group in members.items()}
        names = order([list(one) for group in ends.values() for pair in group for one in reversed(pair)])
        rows = []
        for layer in names:
            cells = []
            for group in ends.values():
                both = [spread([pair[i].get(layer) for pair in group]) for i in (0, 1)]
                cells.append(" / ".join(NONE if one is None else number(one.mean) for one in both))
            rows.append((layer, *cells))
        note = "Mean over seeds after the last epoch: gradient norm / dependence on the input, from input to output."
        tables.append(Table(f"Layer by layer: {context_name(context)}", note, ("layer", *members), rows, folded=True))
    return [table for table in tables if table.rows]


def cost_table(found: StudyResult) -> Table:
    """What an update takes."""
    rows = []
    for arm in found.arms:
        costs = [cost(cell) for cell in found.of_arm(arm["arm"]) if cell.over]
        columns = [spread([one[key] for one in costs]) for key in ("seconds_per_update", "cpu_per_update", "memory_mb")]
        times = [_spread(one, lambda v: f"{1000 * v:.3g}") for one in columns[:2]]
        rows.append((context_name(arm["arm"]), *times, _spread(columns[2], lambda v: f"{v:.0f}")))
    note = (
        "Mean over seeds (least to most): time of training without looks at dev, as measured while other cells may "
        "have run beside it; memory is the peak of the whole process (on a GPU: of its memory)."
    )
    head: tuple[str, ...] = ("arm", "ms per update", "CPU ms per update", "memory, MB")
    if all(row[2] == NONE for row in rows):  # not recorded
        head, rows = (*head[:2], head[3]), [(*row[:2], row[3]) for row in rows]
    return Table("Per update", note, head, rows)
