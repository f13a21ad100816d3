"""asrkit tune-decoder RUN --lm FILE: the weight of a language model and the word bonus that are best on dev."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from asrkit.cli.decoding_options import add_decoding_options, decoder_settings, write_settings
from asrkit.errors import DataError, RecipeError

HELP = "find the weight of a language model and the word bonus on dev"
EXAMPLES = """examples:
  asrkit tune-decoder runs/demo/sequence_batch_norm/seed1 --lm lm.arpa
  asrkit evaluate runs/demo/sequence_batch_norm/seed1 --decoder-options lm.decoder.json
  asrkit tune-decoder some/model --lm lm.arpa --data.root=/cv/es --utterances 500 --output best.json"""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "tune-decoder",
        help=HELP,
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder, or a model folder with --data.root=...")
    parser.add_argument("--split", default="dev", choices=("train", "dev", "test"), help="default dev")
    parser.add_argument(
        "--utterances", type=int, default=1000, metavar="N", help="so many of them, drawn by chance (default 1000)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: beside the language model, .decoder.json")
    parser.add_argument("--device", default="auto", help="cpu, cuda, auto")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    parser.add_argument("--json", action="store_true", help="all that was tried, as JSON")
    add_decoding_options(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Try weights, print them, and write the best ones."""
    from tqdm import tqdm

    from asrkit.cli.common import print_json, quiet_libraries

    settings = _checked(args)
    quiet_libraries()
    from asrkit import registry
    from asrkit.beam import BeamDecoder
    from asrkit.decoders import GreedyDecoder, build_decoder
    from asrkit.transcribe import load
    from asrkit.tuning import LIMIT, Trial, try_greedy, tune

    for plugin in args.plugin:
        registry.load_plugin_file(plugin)
    transcriber = load(args.folder, args.device, GreedyDecoder())
    decoder = build_decoder(settings, transcriber.tokenizer)
    assert isinstance(decoder, BeamDecoder)
    clips = _clips(args, transcriber)
    greedy = try_greedy(clips, transcriber.tokenizer)
    hidden = args.json or not sys.stderr.isatty()
    with tqdm(total=LIMIT, desc="decode", unit="trial", disable=hidden, leave=False) as bar:
        trials = tune(clips, decoder, transcriber.tokenizer, lambda trial: bar.update())
    best = trials[0]
    weights = {"lm_weight": best.lm_weight} | ({"word_bonus": best.word_bonus} if decoder.uses_lexicon else {})
    settings = {"name": "beam", "options": settings["options"] | weights}
    output = args.output or Path(args.lm).with_suffix(".decoder.json")
    write_settings(output, settings)
    rows: list[tuple[str, Trial]] = [("greedy", greedy), *(("beam", trial) for trial in trials)]
    if args.json:
        print_json(
            {"split": args.split, "utterances": len(clips), "output": output, "trials": [_figures(*r) for r in rows]}
        )
    else:
        print(_table(rows))
        print(f"{output}: the best on {len(clips)} utterances of {args.split}, of {len(trials)} tried")
        print(f"next: asrkit evaluate {args.folder} --decoder-options {output}")
    return 0


def _checked(args: argparse.Namespace) -> dict[str, Any]:
    settings = decoder_settings(args) or {"name": "beam", "options": {}}
    if settings["name"] != "beam" or not settings["options"].get("lm"):
        raise RecipeError("nothing to tune", fix="give a language model: --lm FILE", reason="usage")
    if args.lm is None:
        args.lm = settings["options"]["lm"]
    if args.utterances < 1:
        raise RecipeError(f"--utterances {args.utterances}", possible="a number from 1", reason="usage")
    return settings


def _clips(args: argparse.Namespace, transcriber: Any) -> list[Any]:
    """Outputs of the model on the split, with references."""
    from asrkit.cli.evaluate import run_recipe
    from asrkit.preparation import prepare
    from asrkit.tuning import dev_clips

    recipe = run_recipe(transcriber.bundle, args.overrides)
    if not recipe["data"][args.split]:
        raise DataError(
            f"this run has no {args.split} split", fix=f"name one: --data.{args.split}=...", reason="unknown_split"
        )
    progress = sys.stderr.isatty() and not args.json
    split = prepare(recipe, (args.split,), tokenizer=transcriber.tokenizer, progress=progress).splits[args.split]
    return dev_clips(transcriber.model, split, args.utterances, str(transcriber.device), progress)


def _figures(decoder: str, trial: Any) -> dict[str, Any]:
    return {
        "decoder": decoder,
        "lm_weight": trial.lm_weight,
        "word_bonus": trial.word_bonus,
        "wer": trial.words.rate,
        "cer": trial.characters.rate,
    }


def _table(rows: list[tuple[str, Any]], shown: int = 12) -> str:
    """Greedy, the best trials and the worst one."""
    from asrkit.cli.common import format_table

    kept = rows if len(rows) <= shown else [*rows[: shown - 1], rows[-1]]
    cells = [
        (
            decoder,
            f"{trial.lm_weight:g}" if decoder == "beam" else "",
            f"{trial.word_bonus:g}" if decoder == "beam" else "",
            f"{trial.words.rate:.2%}",
            f"{trial.characters.rate:.2%}",
        )
        for decoder, trial in kept
    ]
    return format_table(("decoder", "LM weight", "word bonus", "WER", "CER"), cells)
