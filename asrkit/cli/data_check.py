"""`asrkit data check ROOT`: rows, exclusions, leakage, texts and audio of a corpus, before training meets them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrkit.errors import RecipeError

if TYPE_CHECKING:
    from asrkit.survey import Survey

HELP = "find what is wrong with a corpus: rows, texts, audio, leakage (exit 3 if training would stop)"
EXAMPLES = """examples:
  asrkit data check /cv/es
  asrkit data check /cv/es --decode all --html check.html --report excluded.jsonl
  asrkit data check recordings --train lists/train.tsv --dev lists/dev.tsv --rules verbatim --json"""
OPTIONS = ("format", "column", "language", "reported", "segments", "cache", "max_bad", "max_seconds")  # as in a recipe


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = survey_parser(subparsers, "check", HELP, EXAMPLES)
    decode_option(parser, "200", "default 200: the same sample everywhere; 0: only look at file sizes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the survey; the exit code is that of its worst problem."""
    survey = make_survey(args, only_unknown=False)
    if not args.json:
        from asrkit.survey.text import check_text

        print(check_text(survey))
    return survey.exit_code


def survey_parser(subparsers: Any, name: str, help: str, examples: str) -> argparse.ArgumentParser:
    """The options that `check` and `stats` share."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", metavar="ROOT", help="what data.root would be")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write one page with pictures")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write one JSON line per excluded utterance")
    parser.add_argument("--split", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--rules", default="spanish", metavar="NAME", help="text rules (default: spanish)")
    parser.add_argument("--format", metavar="NAME", help="the corpus reader, where it is not recognized")
    parser.add_argument("--column", metavar="NAME", help="the text's column in a manifest")
    parser.add_argument("--language", metavar="NAME", help="the language to take where there are several")
    for split in ("train", "dev", "test"):
        parser.add_argument(f"--{split}", metavar="NAME", help=f"what data.{split} would be: a split or a table")
    parser.add_argument("--reported", metavar="keep|drop", help="drop: without sentences that readers have reported")
    parser.add_argument("--segments", metavar="all|no_benchmark", help="no_benchmark: without one-word prompts")
    parser.add_argument("--cache", metavar="DIR", help="where clips of archives and Parquet go (as data.cache)")
    parser.add_argument(
        "--max-bad", type=float, metavar="SHARE", help="unusable share that is a problem (data.max_bad)"
    )
    parser.add_argument("--max-seconds", type=float, metavar="S", help="longer clips are not trained on")
    parser.add_argument("--allow-shared-speakers", action="store_true", help="for a corpus of one speaker")
    return parser


def decode_option(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """Add --decode N|all."""
    parser.add_argument("--decode", default=default, metavar="N|all", help=f"clips of each split to decode; {what}")


def make_survey(args: argparse.Namespace, only_unknown: bool) -> Survey:
    """The survey that the options ask for, its files written, its JSON printed."""
    from asrkit.cli.common import print_json, quiet_libraries

    quiet_libraries()
    from asrkit.recipe.schema import SCHEMA
    from asrkit.recipe.validation import RULES
    from asrkit.survey import survey

    data = {key: SCHEMA["data"][key] if getattr(args, key) is None else getattr(args, key) for key in OPTIONS}
    for key, value in data.items():
        RULES[f"data.{key}"].check(f"--{key.replace('_', '-')}", value)
    named = {key: getattr(args, key) for key in ("train", "dev", "test")}
    result = survey(
        args.root,
        **data,
        **named,
        rules=args.rules,
        splits=args.split,
        decode=_count(args.decode),
        only_unknown=only_unknown,
        allow_shared_speakers=args.allow_shared_speakers,
        progress=sys.stderr.isatty() and not args.json,
    )
    if args.html:
        from asrkit.survey.page import write_page

        write_page(result, args.html)
    if args.report:
        result.report.write(args.report)
    if args.json:
        print_json(result.to_dict())
    return result


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise RecipeError(f"--decode {text!r}", possible="a number of clips, or all", reason="usage")
    return int(text)
