"""asrkit average RUN --last N --output DIR: several checkpoints of a run as one model."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrkit.cli.common import count

if TYPE_CHECKING:
    from asrkit.checkpoints.files import Checkpoint

HELP = "average checkpoints of a run into a model of its own"
EXAMPLES = """examples:
  asrkit train RECIPE --training.keep_last=5
  asrkit average runs/demo/sequence_batch_norm/seed1 --last 5 --output runs/demo/sequence_batch_norm/seed1/average
  asrkit average RUN --best 3 --recompute --output DIR
  asrkit evaluate DIR --data.root=/cv/es"""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "average", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder that has a model")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=count, metavar="N", help="the newest N checkpoints")
    which.add_argument("--best", type=count, metavar="N", help="the N checkpoints that are best on dev")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="new folder for the model")
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="statistics of norms over the train split, instead of the average of the checkpoints' (needs the data)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, auto: where --recompute computes")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Average, and write the bundle. Overrides of `data:` say where the data are now."""
    from asrkit.cli.common import quiet_libraries

    quiet_libraries()
    import torch

    from asrkit import registry
    from asrkit.bundle import load_bundle, save_bundle
    from asrkit.checkpoints.averaging import average_into, recompute
    from asrkit.model import build_model
    from asrkit.preparation import prepare
    from asrkit.recipe import load_recipe
    from asrkit.recipe.schema import ANY, SCHEMA

    for plugin in args.plugin:
        registry.load_plugin_file(plugin)
    chosen = _chosen(args)
    bundle = load_bundle(args.folder / "model")
    resolved = args.folder / "resolved.yaml"
    own = dict.fromkeys(load_recipe(resolved), ANY)  # runs of before kept constants such as `width`
    recipe = load_recipe(resolved, args.overrides, known=own | SCHEMA)
    model = build_model(recipe, bundle.tokenizer.size)
    average_into(model.acoustic, [checkpoint.model() for checkpoint in chosen])
    steps = [checkpoint.step for checkpoint in chosen]
    kept = ("splits", "excluded", "leakage", "source_rates", "data", "licence", "longest_seconds")
    facts = {key: bundle.config[key] for key in kept if key in bundle.config}
    facts |= {"metrics": {}, "average": {"steps": steps, "recomputed": args.recompute}}
    if args.recompute:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
        progress = sys.stderr.isatty()
        split = prepare(recipe, ("train",), tokenizer=bundle.tokenizer, progress=progress).splits["train"]
        recompute(model.acoustic, split, device, progress)
    save_bundle(args.output, model, bundle.tokenizer, recipe, facts)
    print(f"{args.output}: the average of {len(steps)} checkpoints, steps {', '.join(map(str, steps))}")
    plugins = "".join(f" --plugin {shlex.quote(plugin)}" for plugin in args.plugin)
    print(f"next: asrkit evaluate {args.output}{plugins} --data.root={recipe['data']['root']}")
    return 0


def _chosen(args: argparse.Namespace) -> list[Checkpoint]:
    from asrkit.checkpoints import Checkpoints
    from asrkit.errors import StorageError

    for path in (args.folder / "checkpoints", args.folder / "model" / "config.json", args.folder / "resolved.yaml"):
        if not path.exists():
            raise StorageError(
                f"{args.folder} has no {path.relative_to(args.folder)}",
                possible="the folder of a run that has ended, or was stopped once",
                fix="give e.g. runs/demo/sequence_batch_norm/seed1",
                reason="no_run",
            )
    if (args.output / "config.json").exists():
        raise StorageError(f"{args.output} holds a model already", fix="give a new folder", reason="exists")
    store = Checkpoints(args.folder / "checkpoints", key="selection")
    return store.choose(args.last, "last") if args.last is not None else store.choose(args.best, "best")
