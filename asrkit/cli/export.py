"""asrkit export onnx MODEL --output FILE: a trained model for onnxruntime and sherpa-onnx, checked before it is
written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrkit.cli.common import count

if TYPE_CHECKING:
    from asrkit.audio.sources import Piece
    from asrkit.bundle import Bundle
    from asrkit.onnx import Exported

HELP = "write a trained model as an ONNX file, for onnxruntime and sherpa-onnx"
EXAMPLES = """examples:
  asrkit export onnx runs/demo/sequence_batch_norm/seed1 --output demo.onnx
  asrkit export onnx MODEL --output demo.onnx --reference /cv/es/dev.tsv --first 100
  asrkit export onnx MODEL --output demo.onnx --int8 --reference /cv/es/dev.tsv"""
TARGETS = ("zipformer_ctc", "wenet_ctc")


def add_parser(subparsers: Any) -> None:
    """Add `export` and its verb `onnx` to the command line."""
    parser = subparsers.add_parser("export", help=HELP, description=HELP)
    verbs = parser.add_subparsers(dest="export_verb", metavar="VERB", required=True)
    onnx = verbs.add_parser(
        "onnx", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    onnx.add_argument("model", type=Path, metavar="MODEL", help="a model folder, or the run folder around it")
    onnx.add_argument("--output", required=True, type=Path, metavar="FILE.onnx", help="labels go to FILE.tokens.txt")
    onnx.add_argument(
        "--target",
        default="zipformer_ctc",
        metavar="|".join(TARGETS),
        help="slot of sherpa-onnx: zipformer_ctc (default), or wenet_ctc, whose label times are right",
    )
    onnx.add_argument("--int8", action="store_true", help="also FILE.int8.onnx, and what it costs on --reference")
    onnx.add_argument(
        "--reference", type=Path, metavar="TABLE", help="a table with path and sentence: compare texts on its clips"
    )
    onnx.add_argument("--first", type=count, metavar="N", help="only the first N rows of the table")
    onnx.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    onnx.add_argument("--json", action="store_true", help="the figures as JSON")
    onnx.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, write, and compare on the reference. Nothing is written that differs from the model."""
    from asrkit.cli.common import print_json, quiet_libraries
    from asrkit.errors import RecipeError

    if args.int8 and args.reference is None:
        raise RecipeError(
            "--int8 without --reference: what rounding costs has to be measured",
            possible="a table with path and sentence, such as the dev split",
            fix="add --reference TABLE, and --first N for a part of it",
            reason="int8_reference",
        )
    quiet_libraries()
    from asrkit import registry
    from asrkit.onnx import export_onnx
    from asrkit.onnx.check import compare, sherpa_installed
    from asrkit.onnx.int8 import to_int8
    from asrkit.transcribe import load

    for plugin in args.plugin:
        registry.load_plugin_file(plugin)
    bundle = load(args.model, "cpu").bundle
    exported = export_onnx(bundle, args.target)
    files = {"float32": args.output}
    tokens = args.output.with_suffix(".tokens.txt")
    pairs = _pairs(bundle, args.reference, args.first) if args.reference is not None else []
    _write(args.output, exported.model)
    _write(tokens, exported.tokens)
    if args.int8:
        files["int8"] = args.output.with_suffix(".int8.onnx")
        _write(files["int8"], to_int8(exported.model))
    sherpa = sherpa_installed() and not exported.obstacles
    figures = compare(bundle, files, tokens, args.target, pairs, sherpa) if pairs else []
    sizes = {str(path): path.stat().st_size for path in files.values()}
    if args.json:
        facts = {"files": sizes, "tokens": tokens, "difference": exported.difference, "clips": len(pairs)}
        print_json({**facts, "sherpa_obstacles": exported.obstacles, "programs": figures})
    else:
        print(_text(bundle, exported, sizes, tokens, figures, len(pairs)))
    return 0


def _pairs(bundle: Bundle, table: Path, first: int | None) -> list[tuple[Path | Piece, str]]:
    """Clips and their sentences after the model's text rules."""
    from asrkit import registry
    from asrkit.audio.sources import read_clips
    from asrkit.corpus.selection import normalized

    text = bundle.config["recipe"]["text"]
    rules, mapping = registry.load("text", text["rules"])(), text.get("map") or {}
    clips = read_clips(table, ("path", "sentence"))[:first]
    return [(clip, normalized(sentence, rules, mapping)) for clip, sentence in clips]


def _write(path: Path, data: bytes) -> None:
    from asrkit.disk import atomic_write, storage_error

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path.parent) from error
    atomic_write(path, data)


def _text(
    bundle: Bundle,
    exported: Exported,
    sizes: dict[str, int],
    tokens: Path,
    figures: list[dict[str, Any]],
    clips: int,
) -> str:
    from asrkit.cli.common import format_table

    first, features = next(iter(sizes)), bundle.model.features
    lines = [f"{path}: {size / 1e6:.2f} MB" for path, size in sizes.items()]
    lines.append(f"at other lengths than it was traced at within {exported.difference:.1e} of the model's log-probs")
    if exported.obstacles:
        lines.append(f"sherpa-onnx cannot run it: {'; '.join(exported.obstacles)}")
    else:
        lines.append(
            f"sherpa_onnx.OfflineRecognizer.from_{exported.target}(model={first!r}, tokens={str(tokens)!r}, "
            f"sample_rate={features.sample_rate}, feature_dim={features.size})"
        )
        if exported.target == "zipformer_ctc" and exported.subsampling != 4:
            lines.append(
                "sherpa-onnx takes this slot's models to have a frame every 40 ms: multiply its times by "
                f"{exported.subsampling / 4:g}, or export with --target wenet_ctc"
            )
    if figures:
        rows = [[f["program"], f"{f['same_text']} of {clips}", f"{f['cer']:.2%}", f"{f['wer']:.2%}"] for f in figures]
        lines += ["", format_table(["program", "the model's text", "CER", "WER"], rows)]
    return "\n".join(lines)
