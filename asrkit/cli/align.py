"""asrkit align --model DIR AUDIO TEXT: when each word of a known text is said."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrkit.cli.common import count

if TYPE_CHECKING:
    from asrkit.audio.sources import Piece
    from asrkit.transcribe.alignment import Alignment

HELP = "find when each word and character of a known text is said, by CTC forced alignment"
EXAMPLES = """examples:
  asrkit align --model runs/demo/sequence_batch_norm/seed1/model clip.mp3 "qué tal"
  asrkit align --model MODEL clip.mp3 clip.txt --format json
  asrkit align --model MODEL --table /cv/es/test.tsv --first 10 --format json --output-dir times"""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "align", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("audio", nargs="?", metavar="AUDIO", help="one recording")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what is said in it, or a text file that holds it")
    parser.add_argument(
        "--model", required=True, type=Path, metavar="DIR", help="a run's `model` folder, or the run folder"
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="TABLE",
        help="instead of AUDIO TEXT: a table with path and sentence (start, end in seconds: pieces)",
    )
    parser.add_argument("--first", type=count, metavar="N", help="only the first N rows of the table")
    parser.add_argument(
        "--unit", default="word", choices=("word", "character"), help="what the formats list (default word)"
    )
    parser.add_argument(
        "--format",
        default="words",
        help="words: start, end, confidence and word on a line (default); or a format of `asrkit transcribe`; json "
        "holds words and characters",
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="one file per clip there, instead of the terminal"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, auto")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Align everything; one bad pair stops nothing and makes the exit code 3."""
    from asrkit.cli.common import quiet_libraries, status_line
    from asrkit.cli.transcribe_outputs import write_file

    quiet_libraries()
    from tqdm import tqdm

    from asrkit import registry
    from asrkit.errors import DataError
    from asrkit.transcribe import load
    from asrkit.transcribe.alignment import Aligner, Alignment

    for plugin in args.plugin:
        registry.load_plugin_file(plugin)
    if args.format != "words":
        Alignment("", "").to(args.format)  # an unknown format is refused before the work
    pairs = _pairs(args)
    clips = [clip if isinstance(clip, Path) else clip.place for clip, _ in pairs]
    targets = _targets(clips, args.table, args.format) if args.output_dir is not None else clips
    aligner = Aligner(load(args.model, args.device))
    bad: Counter[str] = Counter()
    quiet = args.output_dir is None or not sys.stderr.isatty()
    for target, result in zip(targets, tqdm(aligner.stream(pairs), total=len(pairs), disable=quiet), strict=True):
        if result.status != "ok":
            bad[result.status] += 1
            print(status_line(result), file=sys.stderr)
        elif args.output_dir is not None:
            write_file(args.output_dir / target, _formatted(result, args))
        else:
            if args.format == "words" and len(pairs) > 1:
                print(f"# {result.source}")
            print(_formatted(result, args), end="", flush=True)
    if bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
        print(f"asrkit: {sum(bad.values())} of {len(pairs)} clips were not aligned: {reasons}", file=sys.stderr)
        return DataError.exit_code
    return 0


def _pairs(args: argparse.Namespace) -> list[tuple[Path | Piece, str]]:
    from asrkit.audio.sources import read_clips
    from asrkit.errors import DataError, RecipeError
    from asrkit.transcribe.alignment import read_text

    if (args.table is None) == (args.audio is None) or (args.audio is None) != (args.text is None):
        raise RecipeError(
            "what to align is not clear", possible="AUDIO TEXT, or --table TABLE", fix="give one", reason="usage"
        )
    if args.table is None:
        return [(Path(args.audio), read_text(args.text))]
    pairs = read_clips(args.table, ("path", "sentence"))[: args.first]
    if not pairs:
        raise DataError(f"{args.table} has no rows", reason="no_audio")
    return pairs


def _targets(clips: list[Path], table: Path | None, form: str) -> list[Path]:
    """One output per clip, at the clip's place beside the table: clips/a.mp3 -> clips/a.mp3.json."""
    from asrkit.errors import DataError

    suffix = "txt" if form == "words" else form
    beside = [clip.relative_to(table.parent) if table and clip.is_relative_to(table.parent) else clip for clip in clips]
    names = [Path(clip.name) if clip.is_absolute() or ".." in clip.parts else clip for clip in beside]
    targets = [name.with_name(f"{name.name}.{suffix}") for name in names]
    again = [target for target, count in Counter(targets).items() if count > 1]
    if again:
        raise DataError(
            f"{len(again)} outputs would have the name of another one, such as {again[0]}",
            fix="give each clip one row, and a name of its own",
            reason="same_output",
        )
    return targets


def _formatted(result: Alignment, args: argparse.Namespace) -> str:
    shown = result.by_character() if args.unit == "character" else result
    if args.format != "words":
        return shown.to(args.format)
    return "".join(f"{w.start:9.3f} {w.end:9.3f} {w.confidence:6.4f} {w.word}\n" for w in shown.words)
