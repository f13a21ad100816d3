"""asrkit report FOLDER: a study in words, tables and pictures, as one page that needs nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "a study in words, tables and pictures: report.html, report.md, cells.csv, report.json"
EXAMPLES = """examples:
  asrkit report studies/demo_study
  asrkit report studies/demo_study --unit words --split dev
  asrkit report studies/demo_study --baseline none
  asrkit report studies/demo_study --json"""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "report", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a study, finished or not (studies/NAME)")
    parser.add_argument(
        "--unit", choices=("characters", "words"), default="characters",
        help="what arms are compared in: CER (default) or WER",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("dev", "test"), help="default: test where a cell was scored on it, else dev"
    )
    parser.add_argument(
        "--baseline",
        metavar="ENCODER",
        help="compare every other encoder with this one alone (default: the study's `baseline`, else all pairs)",
    )
    parser.add_argument("--json", action="store_true", help="what report.json holds, without cells and proof")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and say what it says."""
    from asrkit.cli.common import print_json
    from asrkit.report.export import write_report
    from asrkit.report.formats import amount

    data = write_report(args.folder, args.unit, args.split, args.baseline)
    if args.json:
        print_json({"folder": args.folder} | {k: v for k, v in data.items() if k not in ("cells", "proof")})
        return 0
    troubles = [f"! {one['id']}: {one['status']} ({one['reason']})" for one in data["troubles"][:8]]
    if more := len(data["troubles"]) - len(troubles):
        troubles.append(f"! and {amount(more, 'more cell is', 'more cells are')} not simply done, see the report")
    axes = [(data["across"], data["axes"]), (data["changes"], data["interactions"])]
    found = [line for said, made in axes for line, one in zip(said, made, strict=True) if one["different"]]
    pairs = [(data["verdicts"], data["comparisons"]), (data["pace"], data["paces"])]
    said = [line for lines, made in pairs for line, one in zip(lines, made, strict=True) if not one["too_few"]]
    few = sum(one["too_few"] for _, made in [*pairs, *axes] for one in made)
    said += [f"({amount(few, 'comparison has', 'comparisons have')} too few paired seeds)"] if few else []
    said = list(dict.fromkeys(said))  # where nobody hears, both questions have the same answer
    print("\n".join([*data["headlines"], "", *said, *found, *troubles]))
    print(f"\nreport  {args.folder / 'report.html'} (and report.md, cells.csv, report.json)")
    return 0
