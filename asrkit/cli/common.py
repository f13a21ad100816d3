"""What the verbs share: how options are read, how tables and JSON are printed, and quiet libraries."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import logging
import math
import os
import select
import shlex
import sys
import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from asrkit.errors import RecipeError, printable

if TYPE_CHECKING:
    from asrkit.transcribe.transcript import Transcript


class _Help(argparse.HelpFormatter):
    """Wraps paragraphs, but leaves a text that has lines of its own (examples) as it is."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._action_max_length = 14  # argparse forgets that the names of verbs are indented, and breaks their line

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return textwrap.indent(textwrap.dedent(text).strip("\n"), indent)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are asrkit's, and that does not guess what a shortened option means.

    A guess would take `--data=...` of the recipe for an option `--data-...` of the verb. Parsers of verbs are made
    with the same class by `subparsers.add_parser`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        """Raise RecipeError (exit 2) instead of printing the usage."""
        raise RecipeError(one_line(message), fix=f"see `{self.prog} --help`", reason="usage")


def known_options(parser: argparse.ArgumentParser) -> list[str]:
    """All option strings of a parser and of the parsers of its verbs, each once."""
    found = dict.fromkeys(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for nested in action.choices.values():
                found.update(dict.fromkeys(known_options(nested)))
    return list(found)


def nearest_hint(name: str, names: Collection[str]) -> str:
    """`" (did you mean '--seed'?)"`, or nothing where no name comes near."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def take_overrides(words: Sequence[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """(what the verb's own parser shall read, what is not an option of it), both in order.

    Done before argparse, which takes an unknown option whose value holds a space for a positional argument, and the
    value in `--key value` as well. After `--` nothing is an option.
    """
    own: list[str] = []
    unknown: list[str] = []
    end = words.index("--") if "--" in words else len(words)
    place = 0
    while place < end:
        word = words[place]
        place += 1
        if not word.startswith("--") or word.split("=", 1)[0] in known:
            own.append(word)
            continue
        unknown.append(word)
        if "=" not in word and place < end and not words[place].startswith("-"):
            unknown.append(words[place])
            place += 1
    return own + list(words[end:]), unknown


def split_overrides(unknown: list[str], known: Collection[str] = ()) -> list[tuple[str, str]]:
    """`["--data.root=/cv", "--width=64"]` to `[("data.root", "/cv"), ("width", "64")]`.

    Raises RecipeError (exit 2) for anything but `--key=value`, and shows how it is written; `known` are the options
    that may have been meant.
    """
    pairs: list[tuple[str, str]] = []
    for place, word in enumerate(unknown):
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and key and equals:
            pairs.append((key, value))
            continue
        following = unknown[place + 1] if place + 1 < len(unknown) else "-"
        value = "VALUE" if following.startswith("-") else shlex.quote(following)
        right = f"--{key}={value}" if word.startswith("--") and key else "--key=value"
        raise RecipeError(
            f"{word!r} is not an option of this verb{nearest_hint(word, known)}",
            fix=f"settings of the recipe are written with an equals sign: {right}",
            reason="override_form",
        )
    return pairs


def one_line(text: object) -> str:
    """The text without line breaks and runs of spaces."""
    return " ".join(str(text).split())


def count(text: str) -> int:
    """A whole number from 1, as the type of an option."""
    return _whole(text, 1)


def count_or_zero(text: str) -> int:
    """A whole number from 0, as the type of an option."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    number = int(text) if text.strip().isdecimal() else -1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r}; possible: a whole number from {least}")
    return number


def status_line(result: Transcript) -> str:
    """What is said of an input that failed, as standard error can show it: odd names with escapes."""
    named = result.message.startswith(result.source)
    what = result.message if named else f"{result.source}: {result.message}"
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    line = printable(one_line(f"asrkit: {result.status}: {what}"))
    return line.encode(encoding, "backslashreplace").decode(encoding)


def default_environment() -> None:
    """Settings that libraries read when they are first imported; what the user has set stays."""
    # Every clip has its own length: without a bound oneDNN keeps a compiled kernel for each of them.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def encode_any_name() -> None:
    """Let standard output take file names that are not valid UTF-8: their bytes come out as they are on disk."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


class _Careful:
    """A stream to a terminal that shows control characters instead of obeying them."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; line ends and tabs are the only controls that pass."""
        return int(self._stream.write(printable(text, keep="\n\t")))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def careful_terminal() -> Iterator[None]:
    """What a verb prints may hold file names and texts of strangers; on a terminal these are only shown.

    Into a pipe or a file everything goes as it is. Standard error is left to progress bars: what is printed there is
    made `printable` where it is printed.
    """
    stream = sys.stdout
    if stream is None or not stream.isatty():
        yield
        return
    sys.stdout = _Careful(stream)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout = stream


def quiet_libraries() -> None:
    """Keep what other libraries say about themselves off the terminal; their warnings about data remain.

    Call it in `run`, before they are imported.
    """
    for name in ("speechbrain", "torchaudio", "datasets", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(speechbrain|torchaudio|torch|datasets)(\.|$)")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torchaudio(\.|$)")


def print_json(data: Any) -> None:
    """One line of JSON on standard output that every JSON reader takes.

    Dataclasses become objects, paths text, arrays lists, NaN and infinity null. File names that are not valid UTF-8
    come out with escapes, so that `os.fsencode(json.loads(line)["path"])` gives their bytes again.
    """
    plain = _plain(data)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(plain, allow_nan=False)
    print(text)


def _plain(data: Any) -> Any:
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {field.name: _plain(getattr(data, field.name)) for field in dataclasses.fields(data)}
    if isinstance(data, Mapping):
        return {key if isinstance(key, str) else str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, str | int | None):
        return data
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else None
    if isinstance(data, os.PathLike):
        return os.fsdecode(data)
    if hasattr(data, "tolist"):  # NumPy and torch
        return _plain(data.tolist())
    if isinstance(data, set | frozenset):
        return sorted(_plain(value) for value in data)
    return [_plain(value) for value in data]


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their longest cell, columns of numbers to the right, no trailing spaces."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    shape = [f"{{:{'>' if right else '<'}{width}}}" for right, width in zip(numeric, widths, strict=True)]
    return "\n".join("  ".join(shape).format(*line).rstrip() for line in lines)


def reader_gone() -> bool:
    """Whether whoever read standard output or standard error has closed it; if so, both now lead nowhere.

    Tells `asrkit ... | head` from a broken pipe to a worker process, which is an error.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
            if hasattr(select, "poll"):
                poll = select.poll()
                poll.register(descriptor, 0)  # an error is reported without being asked for
                broken = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
            else:
                stream.flush()
                broken = False
        except BrokenPipeError:
            broken = True
        except (AttributeError, OSError, ValueError):  # no stream, no descriptor, already closed
            continue
        if broken:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)  # what is still buffered must not raise again at exit
            os.close(nowhere)
            gone = True
    return gone
