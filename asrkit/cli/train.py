"""asrkit train RECIPE: from a recipe to a run folder with a model that transcribes."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

HELP = "train a recipe (rerun the same command to go on after an interruption)"
EXAMPLES = """examples:
  asrkit train recipes/demo.yaml --data.root=work/synthetic_es
  asrkit train recipes/common_voice_es/model2.yaml --data.root=/cv/es --encoder=sequence_batch_norm --width=128
  asrkit train recipes/common_voice_es/model3.yaml --data.root=/cv/es --training.lr=1e-3 --seed=2"""


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """What train and show have in common."""
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="a YAML file; any key can be set by --its.path=value"
    )
    parser.add_argument(
        "--encoder", metavar="NAME", help="the arm: a name that `asrkit plugins --kind encoders` prints"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    parser.add_argument(
        "--trust-recipe",
        action="store_true",
        help="let the recipe run code, as HyperPyYAML does: only for your own files",
    )
    parser.set_defaults(takes_overrides=True)


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "train", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder (default runs/NAME/ENCODER/seedN)")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="go on bit by bit or not at all: refuse a damaged newest checkpoint and changed code of the model",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no line per epoch")
    parser.add_argument("--json", action="store_true", help="print the last epoch's figures as JSON")
    parser.set_defaults(run=run)


def read_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """The resolved recipe of the command line: file, schema, overrides; its name defaults to the file's."""
    from asrkit import registry
    from asrkit.errors import RecipeError
    from asrkit.recipe import load_recipe
    from asrkit.recipe.schema import SCHEMA
    from asrkit.recipe.validation import validate

    for file in args.plugin:
        registry.load_plugin_file(file)
    overrides = list(args.overrides)
    if args.encoder is not None:
        overrides.append(("encoder", args.encoder))
    try:
        recipe = load_recipe(args.recipe, overrides, known=SCHEMA, trust=args.trust_recipe)
    except RecipeError as error:
        if error.reason != "unknown_key" or "'recipes'" not in error.what:
            raise
        fix = f"with `recipes:` it is a study: asrkit study {args.recipe}"
        raise RecipeError(error.what, fix=fix, reason="study") from error
    recipe["name"] = recipe["name"] or args.recipe.stem
    validate(recipe)  # before torch is loaded, which takes seconds
    return recipe


def run(args: argparse.Namespace) -> int:
    """Train and say where everything is."""
    from asrkit.cli.common import print_json, quiet_libraries

    recipe = read_recipe(args)
    quiet_libraries()
    from asrkit.experiment import train

    progress = sys.stderr.isatty() and not args.quiet and not args.json
    say = (lambda _: None) if args.quiet or args.json else (lambda line: print(line, flush=True))
    source = args.recipe.read_text(encoding="utf-8")
    result = train(recipe, source, args.output, progress=progress, exact=args.exact, say=say)
    if args.json:
        print_json(
            {"folder": str(result.folder), "model": str(result.bundle), "last": result.last, "best": result.best}
        )
    elif not args.quiet:
        plugins = "".join(f" --plugin {shlex.quote(file)}" for file in args.plugin)
        print(
            f"\nbest epoch {result.best.get('epoch', '-')}\n"
            f"curves     {result.folder / ('curves.png' if recipe['training']['curves'] else 'metrics.jsonl')}\n"
            f"model      {result.bundle}\n"
            f"next       asrkit evaluate {result.folder}{plugins}\n"
            f"           asrkit transcribe --model {result.bundle}{plugins} CLIP..."
        )
    return 0
