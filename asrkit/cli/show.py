"""asrkit show RECIPE: the resolved recipe, and the model as a tree with shapes and parameter counts."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "print the resolved recipe and the model with shapes for a ten-second clip"
SECONDS = 10


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    from asrkit.cli.train import add_recipe_arguments

    parser = subparsers.add_parser("show", help=HELP, description=HELP)
    add_recipe_arguments(parser)
    parser.add_argument(
        "--labels", type=int, metavar="V", help="number of labels, blank included (default: the alphabet's)"
    )
    parser.add_argument("--json", action="store_true", help="recipe, layers and counts as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the model without data and describe it."""
    from asrkit.cli.common import print_json, quiet_libraries
    from asrkit.cli.train import read_recipe
    from asrkit.recipe import dump_recipe

    recipe = read_recipe(args)
    quiet_libraries()
    from asrkit.inspection import describe_model

    rows, total = describe_model(recipe, args.labels, SECONDS)
    if args.json:
        print_json({"recipe": recipe, "layers": rows, "parameters": total})
        return 0
    print(dump_recipe(recipe))
    width = max(len(row["layer"]) for row in rows)
    print(f"{'layer':<{width}}  {'output for ' + str(SECONDS) + ' s':>22}  {'parameters':>12}")
    for row in rows:
        print(f"{row['layer']:<{width}}  {row['shape']:>22}  {row['parameters']:>12,}")
    print(f"{'sum':<{width}}  {'':>22}  {total:>12,}")
    return 0
