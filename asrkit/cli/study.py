"""asrkit study FILE: every arm of a comparison, trained one by one, proven to differ in the named axes only."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

HELP = "train all arms of a comparison: recipes x encoders x learning rates x seeds (the same command goes on)"
EXAMPLES = """examples:
  asrkit study recipes/demo_study.yaml --dry-run
  asrkit study recipes/demo_study.yaml --budget.processes=2
  asrkit study recipes/common_voice_es/study.yaml --data.root=/cv/es --width=256 --seeds=[1,2,3,4,5]
  asrkit study recipes/common_voice_es/study.yaml --budget.minutes=480
  asrkit study recipes/common_voice_es/depth_study.yaml --lr='[2.0e-3, 4.0e-3, 8.0e-3, 1.6e-2]'

Called with more learning rates or seeds, a study keeps what is done."""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "study", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "study", type=Path, metavar="FILE",
        help="a study; its keys and any key of its recipes can be set by --its.path=value",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the study (default studies/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and how long it may take, do nothing")
    parser.add_argument("--retry-failed", action="store_true", help="also do cells again that have crashed")
    parser.add_argument(
        "--test-again", action="store_true",
        help="with a wider --lr, decode test again for arms whose learning rate changes; the report says it",
    )  # fmt: skip
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no line per cell")
    parser.add_argument("--json", action="store_true", help="what study.json holds, without definition and proof")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Run the study, or print its plan."""
    from asrkit import registry
    from asrkit.cli.common import print_json, quiet_libraries
    from asrkit.study.plan import load_study

    for file in args.plugin:
        registry.load_plugin_file(file)
    study = load_study(args.study, args.overrides)
    folder = args.output or Path("studies") / study.name
    if args.dry_run:
        return _plan(study, folder, args.json)
    quiet_libraries()
    from asrkit.study.runner import run_study

    silent = args.quiet or args.json
    progress = sys.stderr.isatty() and not silent
    summary = run_study(
        study,
        folder,
        plugins=args.plugin,
        retry_failed=args.retry_failed,
        test_again=args.test_again,
        progress=progress,
        say=_sayer(silent, progress),
        command_line=shlex.join(["asrkit", *args.words]),
    )
    if args.json:
        print_json({"folder": folder} | {k: v for k, v in summary.items() if k not in ("definition", "proof")})
    elif not args.quiet:
        print(f"\n{_table(summary)}\n{_counts(summary)}\nstudy  {folder}\nnext   asrkit report {folder}")
    return 0


def _sayer(silent: bool, progress: bool) -> Any:
    def say(line: str) -> None:
        if progress:
            from tqdm import tqdm

            tqdm.write(line)
        elif not silent:
            print(line, flush=True)

    return say


def _plan(study: Any, folder: Path, as_json: bool) -> int:
    """The plan, and how long it may take where a cell of it is done."""
    from asrkit.cli.common import print_json
    from asrkit.study import cells
    from asrkit.study.record import duration, summary
    from asrkit.study.schedule import chosen_rates, seconds_left

    cells.refuse_other_cells(study, folder)
    outcomes = cells.read_outcomes(study, folder)
    plan = summary(study, outcomes, chosen_rates(study, outcomes), others=cells.other_outcomes(study, folder))
    budget = study.definition["budget"]
    left = seconds_left(study, outcomes, budget["processes"])
    if as_json:
        print_json({"folder": folder, "seconds_left": left} | plan)
        return 0
    tuned, seeds = len(study.tuning_seeds), len(study.definition["seeds"])
    arms, rates = len(plan["arms"]), len(study.definition["lr"])
    lines = [_table(plan), ""]
    if rates > 1:
        lines.append(f"stage 1  {arms} arms x {rates} learning rates x {tuned} seeds = {arms * rates * tuned} cells")
        lines.append(f"stage 2  {arms} arms x {seeds - tuned} more seeds = {arms * (seeds - tuned)} cells")
    lines.append(f"total    {plan['total_cells']} cells, {_counts(plan)}")
    minutes = "no limit" if budget["minutes"] is None else f"{budget['minutes']:g} minutes"
    lines.append(f"budget   processes: {budget['processes']}, threads of each: {budget['threads']}, {minutes}")
    estimate = "known when the first cell is done" if left is None else f"about {duration(left)}"
    lines += [f"time     {estimate}", f"study    {folder}"]
    for root in dict.fromkeys(str(cell.settings["data"]["root"]) for cell in study.cells):
        if not root.startswith("hf://") and not Path(root).exists():
            lines.append(f"! data.root = {root}: there is no such file or folder here")
    print("\n".join(lines))
    return 0


def _counts(summary: dict[str, Any]) -> str:
    return ", ".join(f"{count} {status}" for status, count in summary["counts"].items())


def _table(summary: dict[str, Any]) -> str:
    """One line per arm: learning rate, and CER over its seeds."""
    from asrkit.cli.common import format_table

    rows = []
    for arm in summary["arms"]:
        members = [cell for cell in summary["cells"] if cell["arm"] == arm["arm"] and cell["chosen"]]
        wrong = [cell["status"] for cell in members if cell["status"] in ("failed", "collapsed")]
        wrong += ["deaf (CER says nothing)" for cell in members if cell["status"] == "done" and cell["hears"] is False]
        rows.append(
            (
                arm["arm"],
                "open" if arm["lr"] is None else f"{arm['lr']:g}",
                sum(cell["over"] for cell in members),
                _range([cell["counted_cer"] for cell in members]),
                _range([cell["test_cer"] for cell in members]),
                ", ".join(f"{wrong.count(status)} {status}" for status in dict.fromkeys(wrong)),
            )
        )
    return format_table(("arm", "lr", "seeds", "dev CER", "test CER", ""), rows)


def _range(values: list[float | None]) -> str:
    """Mean (least to most) of what is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{sum(known) / len(known):.1%} ({min(known):.1%} to {max(known):.1%})"
