"""How to decode, from the command line: the options that `evaluate`, `transcribe` and `tune-decoder` share."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from asrkit.errors import DataError, RecipeError

# Option of the command line -> option of the decoder.
_OPTIONS = {"lm": "lm", "lexicon": "lexicon", "lm_weight": "lm_weight", "word_bonus": "word_bonus", "beam": "beam"}
_FILES = ("lm", "lexicon")
_HOT_WEIGHT = 5.0  # that of asrkit.beam, which is not imported for --help


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Define --decoder, its options, and --decoder-options FILE."""
    group = parser.add_argument_group("decoding", "what the model was trained with, unless one of these is given")
    group.add_argument("--decoder", metavar="NAME", help="greedy, beam, or another that `asrkit plugins` lists")
    group.add_argument(
        "--decoder-options", type=Path, metavar="FILE", help="decoder and options as `asrkit tune-decoder` writes them"
    )
    group.add_argument("--lm", metavar="FILE", help="ARPA or KenLM file (`asrkit lm build`); implies beam")
    group.add_argument("--lm-weight", type=float, metavar="X", help="weight of its log-probabilities (default 0.5)")
    group.add_argument("--word-bonus", type=float, metavar="X", help="nats for each word of a lexicon (default 0)")
    group.add_argument("--lexicon", metavar="FILE", help="the words to write, one a line (default: those of --lm)")
    group.add_argument("--beam", type=int, metavar="N", help="hypotheses kept per frame (default 100)")
    group.add_argument(
        "--hot-word",
        action="append",
        metavar="WORD[=X]",
        help=f"a word to expect, with its bonus in nats (default {_HOT_WEIGHT:g}); may be repeated",
    )


def decoder_settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """{name, options} of the decoder that the command line asks for; None where it asks for none.

    What is typed wins over the file of --decoder-options. Raises RecipeError or DataError for a file or a number that
    cannot be.
    """
    settings: dict[str, Any] = {"name": None, "options": {}}
    if args.decoder_options is not None:
        settings = read_settings(args.decoder_options)
        if args.decoder not in (None, settings["name"]):
            settings["options"] = {}  # of another decoder
    typed = {name: getattr(args, key) for key, name in _OPTIONS.items() if getattr(args, key) is not None}
    if args.hot_word:
        typed["hot_words"] = dict(_hot_word(given) for given in args.hot_word)
    if args.decoder is None and not typed and settings["name"] is None:
        return None
    name = args.decoder or settings["name"] or "beam"
    return {"name": name, "options": settings["options"] | typed}


def read_settings(path: Path) -> dict[str, Any]:
    """{name, options} of a file that `write_settings` made; its paths are relative to the file.

    Raises DataError (`decoder_options`) for what is no such file.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        right = isinstance(settings["name"], str) and isinstance(settings["options"], dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _wrong(path, f"{type(error).__name__}: {error}") from error
    if not right:
        raise _wrong(path, "it has no name and options")
    if extra := [key for key in settings if key not in ("name", "options")]:
        raise _wrong(path, f"unknown {', '.join(map(repr, extra))} beside name and options")
    options = settings["options"]
    options |= {key: str(path.parent / str(options[key])) for key in _FILES if options.get(key)}
    return {"name": settings["name"], "options": options}


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """The file that --decoder-options reads; files beside it are named relative to it, others with their whole path."""
    from asrkit.disk import storage_error
    from asrkit.runs import atomic_write

    options = dict(settings["options"])
    for key in _FILES:
        if options.get(key):
            file, folder = Path(options[key]).resolve(), path.parent.resolve()
            options[key] = str(file.relative_to(folder) if file.is_relative_to(folder) else file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"name": settings["name"], "options": options}, indent=1, ensure_ascii=False)
        atomic_write(path, text + "\n")
    except OSError as error:
        raise storage_error(error, path) from error


def _wrong(path: Path, why: str) -> DataError:
    return DataError(
        f"--decoder-options {path}: {why}",
        fix='make it with `asrkit tune-decoder`, or write {"name": "beam", "options": {"lm": "lm.arpa"}}',
        reason="decoder_options",
    )


def _hot_word(given: str) -> tuple[str, float]:
    word, equals, weight = given.partition("=")
    try:
        bonus = float(weight) if equals else _HOT_WEIGHT
    except ValueError:
        bonus = math.nan
    if not math.isfinite(bonus):
        raise RecipeError(f"--hot-word {given}", possible="WORD or WORD=NUMBER, such as walter=8", reason="hot_word")
    return word, bonus
