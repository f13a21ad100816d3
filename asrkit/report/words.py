"""What a report says in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from asrkit.comparison import FEWEST_SEEDS, Comparison
from asrkit.report.collect import StudyResult
from asrkit.report.measures import Final, Pace


def context_name(context: str) -> str:
    """`model1--depth-3` -> `model1, depth-3`."""
    return context.replace("--", ", ")


def pace_in_words(one: Pace) -> str:
    """Which arm learns faster, by how much, how sure; or "no evidence"."""
    d = one.difference
    if d.seeds < FEWEST_SEEDS:
        return (
            f"{one.first} and {one.second}: {d.seeds} paired seed{'s' * (d.seeds != 1)}, too few to tell which learns "
            f"faster (at least {FEWEST_SEEDS})"
        )
    span = f"{100 * d.low:+.2f} to {100 * d.high:+.2f} points over {d.seeds} paired seeds; p = {one.p_holm:.3g}"
    goal = ""
    if one.goal is not None:
        threshold, a, b = one.goal
        goal = f"; dev CER {100 * threshold:g} % after {a:.0f} updates ({one.first}) and {b:.0f} ({one.second})"
    if not one.different:
        return f"{one.first} and {one.second}: no evidence that one learns faster ({span}){goal}"
    faster, slower = (one.second, one.first) if d.mean < 0 else (one.first, one.second)
    return (
        f"{faster} learns faster than {slower}: its dev CER averaged over training is {100 * abs(d.mean):.2f} points "
        f"lower ({span}){goal}"
    )


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
    for context, arms in found.contexts().items():
        means = {a["encoder"]: float(result[a["arm"]].arm.rates.mean()) for a in arms if a["arm"] in result}
        if len(means) > 1:
            best = min(means, key=lambda name: means[name])
            lines.append(
                f"{context_name(context)}: lowest mean {rate} on {split}: {best}, {100 * means[best]:.1f} % "
                "(an order of means is no evidence by itself)"
            )
    if pairs:
        lines.append(_stands(f"differ in {rate} on {split}", [(c.different, c.seeds.seeds) for _, c in pairs]))
    if speeds:
        lines.append(_stands("differ in how fast they learn", [(s.different, s.difference.seeds) for s in speeds]))
    return lines


def _progress(found: StudyResult) -> str:
    status = Counter(cell.status for cell in found.cells)
    total = max(int(found.study.get("total_cells", 0)), len(found.cells))
    if total > len(found.cells):
        status["not planned yet"] += total - len(found.cells)
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in status.items())
    return f"{total} cells: {counts or 'none'}"


def _stands(what: str, verdicts: Sequence[tuple[bool, int]]) -> str:
    usable = [different for different, seeds in verdicts if seeds >= FEWEST_SEEDS]
    few = len(verdicts) - len(usable)
    text = f"{sum(usable)} of {len(usable)} pairs of arms {what} (p < 0.05 after Holm's correction)"
    return text + (f"; {few} more have fewer than {FEWEST_SEEDS} paired seeds" if few else "")
