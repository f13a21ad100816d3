"""`asrkit data prepare RECIPE`: everything that training does before its first update, so that it starts at once."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrkit.cli.train import add_recipe_arguments, read_recipe

if TYPE_CHECKING:
    from asrkit.preparation import Prepared

HELP = "decode, check and extract features once, as `asrkit train` with the same options would (resumable)"
EXAMPLES = """examples:
  asrkit data prepare recipes/demo.yaml --data.root=work/synthetic_es
  asrkit data prepare recipes/common_voice_es/model2.yaml --data.root=/cv/es --splits train,dev
  asrkit data prepare recipes/demo.yaml --data.max_bad=1 --report excluded.jsonl"""
SPLITS = ("train", "dev", "test")


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "prepare", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_arguments(parser)
    parser.add_argument("--splits", default=",".join(SPLITS), metavar="A,B", help="default train,dev,test")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write one JSON line per excluded utterance")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prepare the splits and say what came of it."""
    from asrkit.cli.common import print_json, quiet_libraries

    wanted = _splits(args.splits)
    recipe = read_recipe(args)
    quiet_libraries()
    from asrkit.corpus.selection import DataReport
    from asrkit.experiment import check_recipe
    from asrkit.preparation import prepare

    check_recipe(recipe)
    report = DataReport()
    silent = args.quiet or args.json
    try:
        with _notes(logging.WARNING if silent else logging.INFO):
            prepared = prepare(recipe, wanted, report=report, progress=sys.stderr.isatty() and not silent)
    finally:
        if args.report is not None:
            report.write(args.report)
    figures = _figures(prepared)
    if args.json:
        print_json(figures)
    elif not args.quiet:
        print(_text(figures, prepared.report.summary(), prepared.leakage.summary()))
    return 0


@contextlib.contextmanager
def _notes(level: int) -> Iterator[None]:
    """What asrkit logs goes to stderr: the disk that is needed, shards and noise that are damaged."""
    logger, handler = logging.getLogger("asrkit"), logging.StreamHandler(sys.stderr)
    before = logger.level
    handler.setFormatter(logging.Formatter("asrkit: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _splits(text: str) -> list[str]:
    from asrkit.errors import RecipeError, nearest

    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SPLITS:
            raise RecipeError(f"--splits {name!r}", possible=nearest(name, SPLITS), reason="usage")
    return names


def _figures(prepared: Prepared) -> dict[str, Any]:
    """JSON data. x_real_time is seconds of usable audio for each second that computing took, None where all was there
    before; other_caches are those of the same split that this recipe does not read."""
    from asrkit.preparation.feature_cache import siblings

    extractor = prepared.model.features
    splits: dict[str, Any] = {}
    for name, split in prepared.splits.items():
        origin = split.table.origin
        computed = origin.items - origin.ready
        seconds = sum(split.frames) * extractor.frame_seconds
        splits[name] = {
            "clips": len(split),
            "hours": seconds / 3600,
            "computed": computed,
            "seconds_taken": origin.seconds,
            "x_real_time": seconds * computed / origin.items / origin.seconds if computed else None,
            "cache": str(origin.folder),
            "other_caches": {str(folder): size for folder, size in siblings(origin.folder)},
            "hash": split.hash,
        }
    return {"splits": splits, "excluded": dict(prepared.report.counts)}


def _text(figures: dict[str, Any], excluded: str, shared: str) -> str:
    from asrkit.cli.common import format_table

    rows = []
    for name, split in figures["splits"].items():
        speed = split["x_real_time"]
        how = f"{split['seconds_taken']:.1f} s, {speed:,.0f} x real time" if speed is not None else "was there"
        rows.append((name, split["clips"], round(split["hours"], 2), how, split["cache"]))
    table = format_table(("split", "clips", "hours", "prepared", "cache"), rows)
    others = {folder: size for split in figures["splits"].values() for folder, size in split["other_caches"].items()}
    lines = [f"  {size / 1e6:,.1f} MB  {folder}" for folder, size in others.items()]
    if lines:
        lines.insert(0, "not read by this recipe, from before something changed or of another recipe; yours to remove:")
    return "\n".join([table, excluded, shared, *lines])
