"""`asrkit plugins new NAME`: a package with a normalization of one's own, which installs and trains as it is."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from asrkit import scaffold
from asrkit.cli.common import print_json

HELP = "write a package with a norm of your own: module, test, README, entry point"
EXAMPLES = """
examples:
  asrkit plugins new my_norm
  asrkit plugins new my_norm --output ~/norms/my-norm
"""
ABOUT = (
    "Writes a small package that installs, passes `asrkit plugins check` and trains as it is; then put your formula "
    "where its module says so. Nothing that is already there is overwritten. docs/writing-a-plugin.md says more."
)


def add_parser(subparsers: Any) -> None:
    """Add `new` to `asrkit plugins`."""
    parser = subparsers.add_parser("new", help=HELP, description=ABOUT, epilog=EXAMPLES)
    parser.add_argument("name", metavar="NAME", help=f"what recipes will call it: {scaffold.RULE}")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="the package's folder (default: asrkit-NAME)")
    parser.add_argument("--json", action="store_true", help="name, package, folder, files and next steps as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the files and say what comes next."""
    folder = args.output or Path(scaffold.package_name(args.name))
    files = scaffold.write_plugin(args.name, folder)
    steps = [
        f"pip install -e {_pip_path(folder)}",
        f"asrkit plugins check {args.name}",
        f"asrkit train RECIPE --encoder={args.name}",
    ]
    if args.json:
        package = scaffold.package_name(args.name)
        print_json({"name": args.name, "package": package, "folder": folder, "files": files, "next": steps})
        return 0
    print("\n".join(str(path) for path in files))
    print(f"your formula goes into {folder / (args.name + '.py')}, between >>> and <<<; then")
    print("\n".join(f"  {step}" for step in steps))
    return 0


def _pip_path(folder: Path) -> str:
    """As pip takes it: a bare name would be looked up on an index."""
    text = str(folder) if folder.is_absolute() else f"./{folder}"
    return shlex.quote(text)
