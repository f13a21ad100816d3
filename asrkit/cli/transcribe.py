"""asrkit transcribe --model DIR INPUT...: audio files to text. Uses the model folder alone."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from asrkit.cli.decoding_options import add_decoding_options, decoder_settings

HELP = "turn audio files into text with a trained model"
EXAMPLES = """examples:
  asrkit transcribe --model runs/demo/sequence_batch_norm/seed1/model clip.mp3
  asrkit transcribe --model MODEL recordings/ '*.wav' --format json --output-dir texts
  asrkit transcribe --model MODEL --reference /cv/es/test.tsv --first 10"""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "transcribe", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="audio files, folders, glob patterns")
    parser.add_argument(
        "--model", required=True, type=Path, metavar="DIR", help="a run's `model` folder, or the run folder"
    )
    parser.add_argument(
        "--format", default="txt", choices=("txt", "json"), help="txt: the words; json: with times (default txt)"
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="one file per input there, instead of the terminal"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="TABLE",
        help="a table with path and sentence: show each beside the text; without INPUT, its clips are the input",
    )
    parser.add_argument("--first", type=int, metavar="N", help="only the first N inputs")
    parser.add_argument("--device", default="auto", help="cpu, cuda, auto")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    add_decoding_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Transcribe everything; one bad file stops nothing and makes the exit code 3."""
    from asrkit.cli.common import quiet_libraries

    quiet_libraries()
    from tqdm import tqdm

    from asrkit import registry
    from asrkit.errors import DataError
    from asrkit.scoring import cer, score, wer
    from asrkit.transcribe import load

    for plugin in args.plugin:
        registry.load_plugin_file(plugin)
    references = _references(args.reference) if args.reference is not None else {}
    found = _find(args.inputs) if args.inputs else [(path, Path(path.name)) for path, _ in references.values()]
    found = found[: args.first]
    files = [file for file, _ in found]
    if not files:
        raise DataError(
            f"no audio in {', '.join(args.inputs) or 'the command'}",
            possible="files, folders or patterns of wav, flac, ogg, opus, mp3, aiff, au; or --reference TABLE",
            reason="no_audio",
        )
    targets: list[Path] = []
    if args.output_dir is not None:
        targets = [args.output_dir / target for target in _targets([place for _, place in found], args.format)]
        _make_folder(args.output_dir)
    model = load(args.model, args.device, decoder_settings(args))
    rules = registry.load("text", model.bundle.config["recipe"]["text"]["rules"])()
    pairs: list[tuple[str, str, str, str]] = []
    bad: Counter[str] = Counter()
    bar = tqdm(total=len(files), unit="file", disable=not (sys.stderr.isatty() and args.output_dir is not None))
    with bar:
        for index, (file, result) in enumerate(zip(files, model.stream(files), strict=True)):
            bar.update()
            if result.status != "ok":
                bad[result.status] += 1
                print(f"asrkit: {result.status}: {result.source}: {result.message}", file=sys.stderr)
            if args.output_dir is not None:
                if args.format == "json" or result.status == "ok":  # an empty text would say that nobody spoke
                    _write(targets[index], result.to(args.format))
            elif args.format == "json":
                print(result.to("json"), end="", flush=True)
            elif result.status == "ok":
                print(f"{file.name}: {result.text}" if len(files) > 1 else result.text, flush=True)
            if file.name in references and result.status == "ok":
                pairs.append((file.name, "", rules(references[file.name][1]), result.text))
                if args.output_dir is None and args.format == "txt":
                    print(f"{'reference':>{len(file.name)}}: {pairs[-1][2]}", flush=True)
    if pairs:
        scores = score(pairs, symbols=model.tokenizer.name == "symbols")
        print(f"CER {cer(scores):.2%}, WER {wer(scores):.2%} over {len(scores)} references", file=sys.stderr)
    if bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
        print(f"asrkit: {sum(bad.values())} of {len(files)} inputs were not transcribed: {reasons}", file=sys.stderr)
        return DataError.exit_code
    return 0


def _references(table: Path) -> dict[str, tuple[Path, str]]:
    """File name -> (clip, sentence) of a table; the clips lie beside it, or in clips/ as in Common Voice."""
    from asrkit.errors import DataError
    from asrkit.tables import read_rows

    if not table.is_file():
        raise DataError(
            f"--reference {table}: no such file", fix="give a .tsv, .csv or .jsonl table", reason="missing_table"
        )
    found = {}
    for row in read_rows(table, ("path", "sentence")):
        clip = table.parent / row.cells["path"]
        if not clip.is_file():
            clip = table.parent / "clips" / row.cells["path"]
        found[clip.name] = (clip, row.cells["sentence"])
    return found


def _find(inputs: list[str]) -> list[tuple[Path, Path]]:
    """Every audio file of the inputs, and its place below the input: its path in a given folder, or its name."""
    from asrkit.transcribe import find_audio

    return [
        (file, file.relative_to(given) if Path(given).is_dir() else Path(file.name))
        for given in inputs
        for file in find_audio([given])
    ]


def _targets(places: list[Path], form: str) -> list[Path]:
    """One output per input, all different: clip.mp3 -> clip.txt; of those that would share it clip.mp3.txt; of those
    that still do (clips of one name in several inputs) clip.mp3.2.txt."""

    def key(path: Path) -> str:
        return str(path).casefold()  # some file systems do not tell A from a

    stems = Counter(key(place.with_suffix("")) for place in places)
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    targets = []
    for place in places:
        alone = stems[key(place.with_suffix(""))] == 1
        name = place.stem if alone else place.name
        target = place.with_name(f"{name}.{form}")
        first = key(target)
        while key(target) in taken:
            numbers[first] += 1
            target = place.with_name(f"{place.name}.{numbers[first] + 1}.{form}")
        taken.add(key(target))
        targets.append(target)
    return targets


def _make_folder(folder: Path) -> None:
    from asrkit.disk import storage_error

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error


def _write(target: Path, text: str) -> None:
    from asrkit.disk import storage_error

    _make_folder(target.parent)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, target) from error
