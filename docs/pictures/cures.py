"""The evidence table of docs/cures.md, from a study of cures (recipes/common_voice_es/cures_study.yaml).

    python docs/pictures/cures.py studies/cures

Writes the table between the marks of docs/cures.md and docs/studies/NAME/{cells.csv, report.md}; run `asrkit report`
first.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from asrkit.comparison import FEWEST_SEEDS, Comparison
from asrkit.report.collect import StudyResult, collect
from asrkit.report.export import RATES, Judgement, judge
from asrkit.report.learning import model_hears
from asrkit.report.measures import default_split

AXIS = "cure"
MARKS = ("<!-- evidence -->", "<!-- /evidence -->")
DOCS = Path(__file__).resolve().parent.parent


def table(folder: Path) -> str:
    """A row per cure, a column per encoder: mean error rate (least to most), the learning rate where several were
    tried, and the difference to the first cure.

    Bold: the difference stands after Holm's correction over all of the report's comparisons across axes.
    """
    found = collect(folder)
    j = judge(found, "characters", default_split(found))
    encoders = list(dict.fromkeys(arm["encoder"] for arm in found.arms))
    cures = list(dict.fromkeys(arm["axes"][AXIS] for arm in found.arms))
    tests = {(f.encoder, c.second.removeprefix(f"{AXIS} ")): c for f, c in j.axes if f.axis == AXIS}
    arms = {(arm["encoder"], arm["axes"][AXIS]): arm["arm"] for arm in found.arms}
    rows = [
        [f"`{cure}`", *(_cell(found, j, arms.get((encoder, cure)), tests.get((encoder, cure))) for encoder in encoders)]
        for cure in cures
    ]
    head = ["cure", *(f"`{encoder}`" for encoder in encoders)]
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    seeds, rate = len(found.study.get("seeds", [])), RATES[j.unit]
    place, grid = f"studies/{folder.resolve().name}/report.md", found.learning_rates
    tried = f", with the best on dev of the rates {', '.join(f'{lr:g}' for lr in grid)}" if len(grid) > 1 else ""
    note = (
        f"{rate} on {j.split} in %, mean (least to most) over {seeds} seed{'s' * (seeds != 1)}{tried}; then the "
        f"difference to `{cures[0]}` in points with its 95 % interval and p after Holm's correction over {len(j.axes)} "
        f"comparisons; bold: it stands. *Deaf*: no model of the arm hears its input. All figures: [report]({place})."
    )
    return "\n".join([note, "", *lines])


def _cell(found: StudyResult, j: Judgement, arm: str | None, test: Comparison | None) -> str:
    final = j.finals[j.unit].get(arm or "")
    if final is None:
        return "not done"
    rates = 100 * final.arm.rates
    text = f"{rates.mean():.1f} ({rates.min():.1f} to {rates.max():.1f})" if len(rates) > 1 else f"{rates[0]:.1f}"
    over = [cell for cell in found.of_arm(arm or "") if cell.over]
    if len(found.learning_rates) > 1 and over:
        text += f" at {over[0].row['lr']:g}"
    if over and all(model_hears(cell) is False for cell in over):
        text += " *deaf*"
    if test is None:
        return text
    d = test.seeds
    if test.undecided is not None or d.seeds < FEWEST_SEEDS:
        return f"{text}; {100 * d.mean:+.1f}"
    text += f"; {100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}], p = {test.p_holm:.2g}"
    return f"**{text}**" if test.different else text


def main(folder: Path, docs: Path = DOCS) -> None:
    """Write the table into the page."""
    page = docs / "cures.md"
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(f"{MARKS[0]}\n")
    _, end, after = rest.partition(f"{MARKS[1]}\n")
    if not mark or not end:
        raise SystemExit(f"{page} has not both of {MARKS[0]} and {MARKS[1]}")
    page.write_text(f"{before}{mark}{table(folder)}\n{end}{after}", encoding="utf-8")
    out = docs / "studies" / folder.resolve().name
    out.mkdir(parents=True, exist_ok=True)
    for name in ("cells.csv", "report.md"):
        shutil.copyfile(folder / name, out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
