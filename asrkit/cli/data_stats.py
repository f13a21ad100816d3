"""`asrkit data stats ROOT`: what a corpus holds, on the terminal and as one page with pictures."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from asrkit.cli.data_check import decode_option, make_survey, survey_parser

HELP = "what a corpus holds: hours, speakers, accents, lengths, alphabet; with --html a page of pictures"
EXAMPLES = """examples:
  asrkit data stats /cv/es --html es.html
  asrkit data stats /cv/es --split train --json
  asrkit data stats recordings/manifest.tsv --rules verbatim"""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = survey_parser(subparsers, "stats", HELP, EXAMPLES)
    decode_option(parser, "200", "only where the corpus does not say how long its clips are (default 200)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the figures; the exit code is that of the worst problem, as of `asrkit data check`."""
    survey = make_survey(args, only_unknown=True)
    if not args.json:
        from asrkit.survey.text import stats_text

        print(stats_text(survey, unicode=(sys.stdout.encoding or "").lower().startswith("utf")))
    return survey.exit_code
