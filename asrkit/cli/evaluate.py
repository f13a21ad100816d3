"""asrkit evaluate RUN: a trained model on a split that it has not seen, with intervals and the worst utterances."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from asrkit.cli.common import count_or_zero
from asrkit.cli.decoding_options import add_decoding_options, decoder_settings

HELP = "score a trained model: WER, CER, 95 % intervals over speakers, worst utterances aligned"
EXAMPLES = """examples:
  asrkit evaluate runs/demo/sequence_batch_norm/seed1
  asrkit evaluate runs/demo/sequence_batch_norm/seed1 --split dev --worst 20
  asrkit evaluate runs/demo/sequence_batch_norm/seed1 --lm lm.arpa --lm-weight 0.8 --word-bonus 1
  asrkit evaluate some/model --data.root=/cv/es --text.unknown=drop"""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "evaluate",
        help=HELP.replace("%", "%%"),
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder, or a model folder with --data.root=...")
    parser.add_argument("--split", default="test", choices=("train", "dev", "test"), help="default test")
    parser.add_argument(
        "--worst", type=count_or_zero, default=5, metavar="N", help="how many of the worst utterances (default 5)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, auto")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    add_decoding_options(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Evaluate and leave evaluation-SPLIT.json in the run folder."""
    from asrkit.cli.common import print_json, quiet_libraries

    quiet_libraries()
    from asrkit import registry
    from asrkit.bundle.card import add_scores
    from asrkit.corpus.selection import DataReport
    from asrkit.decoders import build_decoder
    from asrkit.evaluation import evaluate
    from asrkit.preparation import prepare
    from asrkit.runs import atomic_write
    from asrkit.transcribe import load

    for plugin in args.plugin:
        registry.load_plugin_file(plugin)
    settings = decoder_settings(args)
    transcriber = load(args.folder, args.device, settings)
    bundle = transcriber.bundle
    recipe = run_recipe(bundle, args.overrides)
    if settings is None and any(key.startswith("decoder.") for key, _ in args.overrides):
        settings = recipe["decoder"]
        transcriber.decoder = build_decoder(recipe["decoder"], bundle.tokenizer)
    if not recipe["data"][args.split]:
        from asrkit.errors import DataError

        raise DataError(
            f"this run has no {args.split} split", fix=f"name one: --data.{args.split}=...", reason="unknown_split"
        )
    progress = sys.stderr.isatty() and not args.json
    folder = bundle.path.parent if (bundle.path.parent / "resolved.yaml").is_file() else bundle.path
    report = DataReport()
    try:
        prepared = prepare(recipe, (args.split,), tokenizer=bundle.tokenizer, report=report, progress=progress)
    finally:
        if folder != bundle.path:
            report.write(folder / f"data_report-{args.split}.jsonl")
    result = evaluate(
        bundle.model,
        bundle.tokenizer,
        prepared.splits[args.split],
        decoder=transcriber.decoder,
        device=str(transcriber.device),
        progress=progress,
    )
    figures = result.figures() | {"excluded": dict(prepared.report.counts), "text_rules": recipe["text"]["rules"]}
    figures["decoder"] = settings or bundle.config["recipe"].get("decoder", {"name": "greedy"})
    trained_on = bundle.config.get("splits", {}).get("train")
    figures["train_split_hash"] = trained_on
    figures["shared_sentences"] = prepared.leakage.sentences
    if folder != bundle.path:
        of = "" if bundle.path.name == "model" else f"-{bundle.path.name}"  # a run may hold averages too
        by = f"-{settings['name']}" if settings else ""  # beside the scores of the model's own decoder, not over them
        path = folder / f"evaluation-{args.split}{of}{by}.json"
        if warning := _other_data(path, figures):
            figures["comparable"] = False
            print(f"asrkit: warning[split_hash]: {warning}; do not compare these scores", file=sys.stderr)
        atomic_write(path, json.dumps(figures, indent=1) + "\n")
        if not (args.overrides or settings):  # other data, other text or another decoder are not what the card is about
            add_scores(bundle.path, args.split, figures)
    if args.json:
        print_json(figures)
    else:
        print(result.text(prepared.leakage.summary(), prepared.report.summary(), args.worst))
    return 0


def _other_data(path: Path, figures: dict[str, Any]) -> str | None:
    """Why these figures do not compare with the ones that this run had before; None where they do or it had none."""
    from asrkit.corpus.selection import compare_hashes

    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return compare_hashes(before, figures) if isinstance(before, dict) else None


def run_recipe(bundle: Any, overrides: list[tuple[str, str]]) -> dict[str, Any]:
    """Data and text of the run where there is one, the model's own sections always."""
    import tempfile

    from asrkit.recipe import dump_recipe, load_recipe
    from asrkit.recipe.schema import SCHEMA
    from asrkit.recipe.validation import validate

    recipe = {**bundle.config["recipe"], "name": bundle.config.get("name") or "model"}
    resolved = bundle.path.parent / "resolved.yaml"
    if resolved.is_file():
        of_run = load_recipe(resolved)
        recipe |= {"data": of_run["data"], "text": of_run["text"], "training": of_run["training"]}
    recipe |= {"encoder": bundle.config["encoder"]["name"], "seed": bundle.config["seed"]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        recipe = load_recipe(path, overrides, known=SCHEMA)
    validate(recipe)
    return recipe
