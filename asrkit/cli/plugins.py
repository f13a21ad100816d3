"""`asrkit plugins`: what recipes can name, read from package metadata alone; no plugin is imported.

`asrkit plugins check` and the like have files of their own.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from asrkit import registry
from asrkit.cli.common import format_table, print_json
from asrkit.errors import RecipeError, nearest

HELP = "names that recipes can use, and the packages that offer them"

_EXAMPLES = """
examples:
  asrkit plugins
  asrkit plugins --kind encoders --long
  asrkit plugins --json
  asrkit plugins check my_norm --plugin my_norm.py
  asrkit plugins new my_norm
"""
VERBS = ("check", "new")


def add_parser(subparsers: Any) -> None:
    """Add `plugins` to the command line."""
    parser = subparsers.add_parser(
        "plugins",
        help=HELP,
        description="Lists encoders, features, decoders and whatever else installed packages offer. Nothing is "
        "imported: a broken plugin is listed too, and `asrkit doctor` says what is wrong with it.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--kind", metavar="KIND", help=f"only one of: {', '.join(registry.KINDS)}")
    parser.add_argument("--long", action="store_true", help="also module:class of each")
    parser.add_argument("--json", action="store_true", help="a JSON list")
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(dest="plugins_verb", metavar="VERB")
    for name in VERBS:
        importlib.import_module(f"asrkit.cli.plugins_{name}").add_parser(verbs)


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises RecipeError (`unknown_kind`) for a kind that does not exist."""
    if args.kind is not None and args.kind not in registry.KINDS:
        possible = nearest(args.kind, registry.KINDS)
        raise RecipeError(
            f"unknown kind {args.kind!r}", possible=possible, fix="take one of these", reason="unknown_kind"
        )
    plugins = registry.list_plugins(args.kind)
    if args.json:
        print_json(plugins)
        return 0
    header = ["name", "kind", "package", "version"] + ["target"] * args.long
    rows = [[p.name, p.kind, p.package, p.version] + [p.target] * args.long for p in plugins]
    print(format_table(header, rows))
    if not rows:
        print(f"no {args.kind or 'plugins'}: is asrkit installed? `asrkit doctor` says more")
    offers: dict[tuple[str, str], list[str]] = {}
    for p in plugins:
        offers.setdefault((p.kind, p.name), []).append(f"{p.package} {p.version}")
    for (kind, name), packages in offers.items():
        if len(packages) > 1:
            both = " and ".join(packages)
            print(f"{name!r} ({kind}) is offered by {both}: recipes cannot use it until one is uninstalled")
    return 0
