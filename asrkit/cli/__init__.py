"""The command line: one small file per verb, and only the file of the verb that was typed is imported.

A verb module offers `HELP`, `add_parser(subparsers)` and `run(args) -> int`; imports of torch and the like stay inside
`run`, so that `asrkit --help` answers at once. `set_defaults(takes_overrides=True)` on its parser makes every
`--any.key=value` that is no option of its own arrive in `args.overrides` as (dotted path, text) pairs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence

import asrkit
from asrkit.cli.common import (
    Parser,
    careful_terminal,
    default_environment,
    encode_any_name,
    known_options,
    nearest_hint,
    one_line,
    reader_gone,
    split_overrides,
    take_overrides,
)
from asrkit.errors import AsrkitError, NumericError, RecipeError, nearest, printable

__all__ = ["VERBS", "main"]

# Verb -> what `asrkit --help` says about it (the HELP of its module, asrkit.cli.<verb>, which is not imported for it).
VERBS = {
    "train": "train a recipe (rerun the same command to go on after an interruption)",
    "evaluate": "score a trained model: WER, CER, 95 % intervals over speakers, worst utterances aligned",
    "transcribe": "turn audio files into text with a trained model",
    "align": "find when each word and character of a known text is said, by CTC forced alignment",
    "average": "average checkpoints of a run into a model of its own",
    "export": "write a trained model as an ONNX file, for onnxruntime and sherpa-onnx",
    "diagnose": "say what is wrong with a training run: what was measured, why it matters, the likely fix",
    "show": "print the resolved recipe and the model with shapes for a ten-second clip",
    "study": "train all arms of a comparison: recipes x encoders x learning rates x seeds (the same command goes on)",
    "report": "a study in words, tables and pictures: report.html, report.md, cells.csv, report.json",
    "lm": "make a language model for the beam decoder",
    "tune-decoder": "find the weight of a language model and the word bonus on dev",
    "data": "make or inspect training data",
    "plugins": "names that recipes can use, and the packages that offer them",
    "doctor": "check this installation and this machine; says what to do about what it finds",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: `sys.argv[1:]`) and return its exit code; nothing is raised.

    0 ok; 1 failed; 2 usage or recipe; 3 data; 4 numeric failure; 5 storage; 6 run folder in use; 7 untrusted content
    refused; 75 stopped with a checkpoint saved; 130 Ctrl-C; 141 whoever read the output has closed it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug, words = _take_debug(words)
    default_environment()
    encode_any_name()
    try:
        try:
            code = _dispatch(words)
        except SystemExit as done:  # argparse after --help and --version
            code = done.code if isinstance(done.code, int) else int(done.code is not None)
        if sys.stdout is not None:
            sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last breath
        return code
    except KeyboardInterrupt:
        return _report("asrkit: interrupted", 130, debug)
    except AsrkitError as error:
        reason = f"[{error.reason}]" if error.reason else ""
        return _report(f"asrkit: error{reason}: {error}", error.exit_code, debug)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_gone():
            return 141  # what the shell reports for other programs whose reader has left
        return _report(*_unexpected(error), debug)


def _take_debug(words: list[str]) -> tuple[bool, list[str]]:
    """`--debug` counts wherever it stands (after `--` it is a file name)."""
    end = words.index("--") if "--" in words else len(words)
    options = [word for word in words[:end] if word != "--debug"]
    asked = len(options) < end or os.environ.get("ASRKIT_DEBUG", "") not in ("", "0")
    return asked, options + words[end:]


def _dispatch(words: list[str]) -> int:
    place = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    help_of_all = any(word in ("-h", "--help") for word in words[:place])
    verb = None if help_of_all or place == len(words) else words[place]
    parser, verb_parser = _build(verb)
    after = words[place + 1 :]
    overrides: list[tuple[str, str]] = []
    inner = None if verb_parser is None else _innermost(verb_parser, after)
    if inner is not None and inner.get_default("takes_overrides"):
        known = known_options(inner)
        after, rest = take_overrides(after, known)
        overrides = split_overrides(rest, known)
    args, unknown = parser.parse_known_args([*words[: place + 1], *after])
    if verb_parser is None:
        if not unknown:
            parser.print_help(sys.stderr)
            return 2
        verb_parser = parser
    if unknown:
        raise _unknown_argument(unknown[0], inner or verb_parser)
    args.overrides, args.words = overrides, words
    with careful_terminal():
        return int(args.run(args))


def _build(verb: str | None) -> tuple[Parser, argparse.ArgumentParser | None]:
    """The whole parser, and the part of the verb that was typed; all other verbs are a name and a line of help."""
    verbs = [name for name in VERBS if importlib.util.find_spec(_module(name))]
    if verb is not None and verb not in verbs:
        raise RecipeError(
            f"unknown verb {verb!r}", possible=nearest(verb, verbs), fix="see `asrkit --help`", reason="unknown_verb"
        )
    parser = Parser(
        prog="asrkit",
        description="Train, compare and use recurrent CTC speech recognizers with honest normalization.",
        epilog="`asrkit VERB --help` says more, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"asrkit {asrkit.__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from (or ASRKIT_DEBUG=1)")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name in verbs:
        if name == verb:
            importlib.import_module(_module(name)).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=VERBS[name].replace("%", "%%"))
    return parser, subparsers.choices[verb] if verb is not None else None


def _module(verb: str) -> str:
    return f"asrkit.cli.{verb.replace('-', '_')}"


def _innermost(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `prepare` in `asrkit data prepare ...`, or the verb's own."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return next((action.choices[word] for word in words if word in action.choices), parser)
    return parser


def _unknown_argument(word: str, parser: argparse.ArgumentParser) -> RecipeError:
    if not word.startswith("-"):
        return RecipeError(f"unexpected argument {word!r}", fix=f"see `{parser.prog} --help`", reason="usage")
    options = known_options(parser)
    return RecipeError(
        f"unknown option {word}{nearest_hint(word.split('=')[0], options)}",
        possible=", ".join(option for option in options if option.startswith("--")),
        fix=f"see `{parser.prog} --help`",
        reason="unknown_option",
    )


def _memory_is_full(error: Exception) -> bool:
    from asrkit.exhaustion import is_out_of_memory

    return is_out_of_memory(error)


def _unexpected(error: Exception) -> tuple[str, int]:
    """One line and an exit code for what asrkit did not foresee: a full memory is nobody's fault, a failing import the
    installation's, an error in a plugin the plugin's, and the rest a bug of ours."""
    if "torch" in sys.modules and _memory_is_full(error):
        fix = "close what else needs memory, or give smaller batches, shorter clips or a smaller model"
        said = one_line(error) or "out of memory"
        return f"asrkit: error[out_of_memory]: {said}; fix: {fix}", NumericError.exit_code
    what = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
    modules = [
        frame.f_globals.get("__name__", "?")
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"  # below main(), a module's own code runs only while it is imported
    ]
    if modules or isinstance(error, ImportError):
        where = f" (while importing {modules[-1]})" if modules else ""
        return f"asrkit: error[import]: {what}{where}; fix: run `asrkit doctor`; with --debug you see the traceback", 1
    from asrkit import registry

    place = registry.guest_line(error)
    if place is not None:
        fix = "mend the plugin; `asrkit plugins check` measures an encoder; with --debug you see the traceback"
        return f"asrkit: error[broken_plugin]: {place}: {what}; fix: {fix}", RecipeError.exit_code
    return f"asrkit: error[bug]: {what}; this is a bug; run again with --debug and report what it shows", 1


def _report(line: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(printable(line), file=sys.stderr)
    return code
