"""asrkit diagnose RUN: what is wrong with a training run, what was measured, and the likely fix."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "say what is wrong with a training run: what was measured, why it matters, the likely fix"
EXAMPLES = """examples:
  asrkit diagnose runs/demo/sequence_batch_norm/seed1
  asrkit diagnose runs/model3/layer_norm/seed1 --json
  asrkit diagnose runs/model3/layer_norm/seed1 --data.root=/cv/es    # the data have moved

The run may be finished, running, or have failed; it is only read. Exit code 4 where a finding is an error, else 5 where
a checkpoint or the model is damaged. docs/diagnosis.md explains every finding."""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "diagnose", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    parser.add_argument("--json", action="store_true", help="findings and figures as JSON")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Print the findings, the gravest first."""
    from asrkit.cli.common import print_json, quiet_libraries

    quiet_libraries()
    from asrkit import registry
    from asrkit.diagnostics.run import diagnose_run

    for plugin in args.plugin:
        registry.load_plugin_file(plugin)
    diagnosis = diagnose_run(args.folder, args.overrides)
    if args.json:
        print_json(
            {
                "folder": diagnosis.folder,
                "figures": diagnosis.figures,
                "findings": [one.as_dict() for one in diagnosis.findings],
                "without_data": diagnosis.without_data,
                "untrained": diagnosis.untrained,
                "damaged": diagnosis.damaged,
                "ended": diagnosis.ended,
            }
        )
    else:
        print(diagnosis.text())
    if any(one.severity == "error" for one in diagnosis.findings):
        return 4
    return 5 if diagnosis.damaged else 0
