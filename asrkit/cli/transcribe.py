"""asrkit transcribe --model DIR INPUT...: audio files to text. Uses the model folder alone."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from asrkit.cli.transcribe_inputs import Clip
    from asrkit.cli.transcribe_outputs import Folder
    from asrkit.cli.transcribe_session import Session

from asrkit.cli.common import count
from asrkit.cli.decoding_options import add_decoding_options, decoder_settings

HELP = "turn audio files into text with a trained model"
EXAMPLES = """examples:
  asrkit transcribe --model runs/demo/sequence_batch_norm/seed1/model clip.mp3
  asrkit transcribe --model MODEL recordings/ '*.wav' --format srt,json --output-dir texts --skip-existing
  asrkit transcribe --model MODEL clips.tsv --format jsonl --output-dir texts     (goes on with --resume)
  ffmpeg -i talk.mkv -f wav - | asrkit transcribe --model MODEL -
  find . -name '*.mp3' | asrkit transcribe --model MODEL -       (a path per line in, JSON lines out)
  asrkit transcribe --model MODEL --reference /cv/es/test.tsv --first 10"""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser(
        "transcribe", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="audio files, folders, glob patterns, tables with a column `path` (start, end in seconds: pieces); "
        "`-`: standard input (audio, or paths)",
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a run's `model` folder, the run folder, or hf://OWNER/NAME"
    )
    parser.add_argument(
        "--format",
        metavar="NAME[,NAME]",
        help="txt, srt, vtt, tsv, json, jsonl, ctm, TextGrid; several with --output-dir (default txt; jsonl for paths "
        "from standard input)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="a file per input and format there (jsonl: transcripts.jsonl for all), instead of the terminal",
    )
    parser.add_argument("--skip-existing", action="store_true", help="leave out inputs whose output files are there")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run: only what its --output-dir lacks; a file that failed has its line there",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="TABLE",
        help="a table with path and sentence: show each beside the text; without INPUT, its clips are the input",
    )
    parser.add_argument("--first", type=count, metavar="N", help="only the first N inputs")
    parser.add_argument(
        "--isolate",
        action="store_true",
        help="decode audio in a child process without rights: for files of strangers",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, auto")
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="threads that decode audio beside the model (default 2)"
    )
    parser.add_argument(
        "--batch-seconds",
        type=float,
        metavar="S",
        help="audio in one forward pass (default: what the memory is good for); changes no text",
    )
    parser.add_argument(
        "--vad",
        action="store_true",
        help="cut audio of more than 25 s where nobody speaks (asrkit[longform]) instead of into overlapping windows",
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers plugins"
    )
    add_decoding_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Transcribe everything; one bad file stops nothing and makes the exit code 3."""
    from asrkit.audio.isolation import isolated

    with isolated() if args.isolate else contextlib.nullcontext():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from asrkit.cli.common import quiet_libraries

    quiet_libraries()
    from asrkit import registry
    from asrkit.cli.transcribe_inputs import Clip, StandardInput
    from asrkit.cli.transcribe_outputs import formats_of

    formats = formats_of(args.format) if args.format else []
    _check_options(args, formats)
    for plugin in args.plugin:
        registry.load_plugin_file(plugin)
    if args.inputs != ["-"]:
        clips = _clips_of(args)
        _check_terminal(args, formats or ["txt"], len(clips))
        return _transcribe(args, formats or ["txt"], clips)
    given = StandardInput()
    if given.is_audio:
        _check_terminal(args, formats or ["txt"], 1)
        file = given.to_file()
        try:
            return _transcribe(args, formats or ["txt"], [Clip(file, "stdin", Path("stdin.audio"))])
        finally:
            file.unlink(missing_ok=True)
    if not given.head:  # of a program that failed before the pipe
        raise DataError("standard input is empty", possible="audio, or a path per line", reason="no_audio")
    _check_terminal(args, formats or ["jsonl"], 2)
    if args.output_dir is not None:
        raise RecipeError(
            "--output-dir with paths from standard input",
            fix="redirect the JSON lines into a file, or give the paths in a table with a column `path`",
            reason="usage",
        )
    return _transcribe_lines(args, formats or ["jsonl"], given.groups())


def _check_options(args: argparse.Namespace, formats: list[str]) -> None:
    if "-" in args.inputs and len(args.inputs) > 1:
        raise RecipeError("`-` beside other inputs", possible="`-` alone, or no `-`", reason="usage")
    if args.output_dir is None and (args.skip_existing or args.resume):
        option = "--resume" if args.resume else "--skip-existing"
        raise RecipeError(f"{option} without --output-dir", fix="name the folder with the outputs", reason="usage")
    if args.skip_existing and "jsonl" in formats:
        raise RecipeError(
            "--skip-existing with --format jsonl, which is one file for all inputs", fix="use --resume", reason="usage"
        )
    if args.jobs < 1 or (args.batch_seconds is not None and args.batch_seconds <= 0):
        what = f"--jobs {args.jobs}" if args.jobs < 1 else f"--batch-seconds {args.batch_seconds:g}"
        raise RecipeError(what, possible="numbers above 0", reason="usage")


def _check_terminal(args: argparse.Namespace, formats: list[str], inputs: int) -> None:
    """What cannot be told apart on one stream needs files."""
    from asrkit.cli.transcribe_outputs import CONCATENATE

    if args.output_dir is None and (len(formats) > 1 or (inputs > 1 and formats[0] not in CONCATENATE)):
        raise RecipeError(
            f"--format {','.join(formats)} of {inputs} inputs on the terminal",
            possible=f"one of {', '.join(CONCATENATE)}; any of one input",
            fix="give --output-dir",
            reason="usage",
        )


def _clips_of(args: argparse.Namespace) -> list[Clip]:
    from asrkit.cli.transcribe_inputs import Clip, find_clips, references_of

    if args.inputs or args.reference is None:
        clips = find_clips(args.inputs)
    else:
        clips = [Clip(path, str(path), Path(path.name)) for path, _ in references_of(args.reference).values()]
    if not clips:
        raise DataError(
            f"no audio in {', '.join(args.inputs) or 'the command'}",
            possible="files, folders or patterns of wav, flac, ogg, opus, mp3, aiff, au, m4a, mp4, webm; tables with a "
            "column `path`; `-`; or --reference TABLE",
            reason="no_audio",
        )
    return clips[: args.first]


def _transcribe(args: argparse.Namespace, formats: list[str], clips: list[Clip]) -> int:
    """All inputs are known."""
    from asrkit.cli.transcribe_outputs import Folder
    from asrkit.disk import folder_lock

    with contextlib.ExitStack() as stack:
        folder = None
        if args.output_dir is not None:
            folder = Folder(args.output_dir, [clip.place for clip in clips], formats)
            stack.enter_context(folder_lock(args.output_dir))
        session = _session(args, formats, folder, len(clips))
        todo = list(range(len(clips))) if folder is None else _todo(args, clips, folder, session)
        results = session.model.stream([clips[index].path for index in todo], min(args.jobs, len(todo)), session.heard)
        for index, result in zip(todo, results, strict=True):
            session.add(index, dataclasses.replace(result, source=clips[index].name), clips[index].path)
        return DataError.exit_code if session.close() else 0


def _transcribe_lines(args: argparse.Namespace, formats: list[str], groups: Iterator[list[Path]]) -> int:
    """Inputs come one by one, and each is answered when it is done."""
    session = _session(args, formats, None, None)
    for group in groups:
        paths = group if args.first is None else group[: args.first - session.count]
        for path, result in zip(paths, session.model.stream(paths, args.jobs, session.heard), strict=True):
            session.add(session.count, result, path)
        if args.first is not None and session.count >= args.first:
            break
    return DataError.exit_code if session.close() else 0


def _session(args: argparse.Namespace, formats: list[str], folder: Folder | None, total: int | None) -> Session:
    """Load the model."""
    from asrkit.cli.transcribe_inputs import references_of
    from asrkit.cli.transcribe_session import Session
    from asrkit.transcribe import load

    references = references_of(args.reference) if args.reference is not None else {}
    model = load(args.model, args.device, decoder_settings(args), vad=args.vad)
    if args.batch_seconds is not None:
        model.batch_seconds = args.batch_seconds
    sentences = {name: sentence for name, (_, sentence) in references.items()}
    return Session(model, sentences, formats[0], folder, total)


def _todo(args: argparse.Namespace, clips: list[Clip], folder: Folder, session: Session) -> list[int]:
    """The inputs that are still to be transcribed."""
    todo = list(range(len(clips)))
    if args.resume and folder.lines is not None:
        recorded: dict[str, list[dict[str, Any]]] = {}
        for record in folder.recorded():
            recorded.setdefault(record["source"], []).append(record)
        todo = []
        for index, clip in enumerate(clips):
            if recorded.get(clip.name):
                record = recorded[clip.name].pop(0)
                folder.complete(index, record)
                session.recorded(record, clip.path.name)
            else:
                todo.append(index)
    elif args.resume or args.skip_existing:
        todo = [index for index in todo if not folder.existing(index)]
    if not args.resume:
        folder.begin()
    if len(todo) < len(clips):
        print(f"asrkit: {len(clips) - len(todo)} of {len(clips)} inputs are there already", file=sys.stderr)
    return todo
