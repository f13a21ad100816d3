"""`asrkit plugins check NAME`: whether an encoder keeps the promises that recipes rely on; exit 2 if it does not."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from asrkit import registry
from asrkit.cli.common import format_table, print_json
from asrkit.errors import RecipeError

if TYPE_CHECKING:
    from asrkit.testing import Result

HELP = "put an encoder through the conformance checks (exit 2 if one fails)"
EXAMPLES = """
examples:
  asrkit plugins check sequence_batch_norm
  asrkit plugins check my_norm --plugin my_norm.py
  asrkit plugins check my_norm --only padding_train --only nan --json
  asrkit plugins check sequence_batch_norm --norm.masked=false
"""
ABOUT = """\
Builds the encoder in small stacks of layers and measures: lengths, padding, batch mates, state, gradients, seeds, save
and load, small inputs, NaN, bfloat16, export, and over what its norm really takes its statistics. A check ends as
ok; failed; deviation (the plugin declares it, with a reason); or skipped (nothing to look at, which is no pass)."""


def add_parser(subparsers: Any) -> None:
    """Add `check` to `asrkit plugins`."""
    parser = subparsers.add_parser("check", help=HELP, description=textwrap.dedent(ABOUT), epilog=EXAMPLES)
    parser.add_argument("name", metavar="NAME", help="an encoder that `asrkit plugins --kind encoders` lists")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    parser.add_argument("--only", action="append", default=[], metavar="CHECK", help="only this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="all results as JSON")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Print the table of checks; 2 if one failed."""
    from asrkit.cli.common import quiet_libraries

    for file in args.plugin:
        registry.load_plugin_file(file)
    registry.describe("encoders", args.name)  # a misspelled name is answered before torch is imported
    quiet_libraries()
    from asrkit.testing import CHECKS, iterate_checks

    norm = _norm(args.overrides)
    names, bar = args.only or list(CHECKS), sys.stderr.isatty() and not args.json
    results: list[Result] = []
    for result in iterate_checks(args.name, checks=names, **norm):
        results.append(result)
        if bar:
            print(f"\r{len(results)}/{len(names)} {result.check:<20}", end="", file=sys.stderr, flush=True)
    if bar:
        print("\r" + " " * 30 + "\r", end="", file=sys.stderr, flush=True)
    failed = [result.check for result in results if result.status == "failed"]
    if args.json:
        print_json({"encoder": args.name, "ok": not failed, "results": results})
    else:
        print(_table(args.name, results))
    return 2 if failed else 0


def _norm(overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """`--norm.masked=false` to {"masked": False}; nothing but the `norm:` section can be set."""
    from asrkit.recipe.overrides import parse_option

    found = {}
    for key, text in overrides:
        section, _, name = key.partition(".")
        if section != "norm" or not name:
            raise RecipeError(
                f"unknown option --{key}",
                possible="--plugin, --only, --json, --norm.KEY=VALUE",
                fix="see `asrkit plugins check --help`",
                reason="unknown_option",
            )
        found[name] = parse_option(key, text).value
    return found


def _table(name: str, results: Sequence[Result]) -> str:
    rows = []
    first: dict[str, str] = {}  # what a check said -> its name: an encoder that cannot run fails in all for one reason
    for result in results:
        text = f"{result.reason} [{result.text}]" if result.status == "deviation" else result.text
        if result.status == "failed" and first.setdefault(text, result.check) != result.check:
            text = f"as {first[text]}"
        rows.append([result.check, result.status.upper() if result.status == "failed" else result.status, text])
    counts: dict[str, int] = {}
    for result in results:
        counts[result.status] = counts.get(result.status, 0) + 1
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{format_table(['check', 'result', 'measured'], rows)}\n{name}: {summary}"
