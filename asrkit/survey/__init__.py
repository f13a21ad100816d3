"""The figures of a corpus: what every split holds, what of it cannot be used and why, and what splits share.

`asrkit data check` and `asrkit data stats` print the same survey; `text.py` and `page.py` show it. Texts are
judged for every row, files for every clip by their size; what only decoding tells is known for the clips that were
decoded, all of them or a sample (see `audio.py`), and said so.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrkit import registry
from asrkit.corpus import Corpus, Utterance, fetch, open_data, split_names
from asrkit.corpus.data_report import CHOICES
from asrkit.corpus.selection import DataReport, Leakage, leakage, select_texts
from asrkit.errors import AsrkitError, DataError, nearest
from asrkit.recipe.schema import SCHEMA
from asrkit.survey.audio import Listener
from asrkit.survey.figures import SplitFigures, split_figures
from asrkit.text import TextRules
from asrkit.tokenizers import CharacterTokenizer

VERSION = 1  # of the form of `Survey.to_dict`
TRAINED = ("train", "dev", "test")
ALIASES = ("valid", "validation", "val")  # of dev, in Parquet and in manifests
UNSPLIT = ("validated", "invalidated", "other")  # tables of a release that training does not read


@dataclass(frozen=True)
class Problem:
    """Something that stops training on this corpus: its code, one line, the exit code, the split ("" for several)."""

    reason: str
    message: str
    exit_code: int
    split: str = ""

    @classmethod
    def of(cls, error: AsrkitError, split: str = "") -> Problem:
        """The problem that an error tells of."""
        return cls(error.reason, str(error), error.exit_code, split)


@dataclass
class Survey:
    """A corpus: its splits, what those in `compared` share, the problems; `report` has a line for each exclusion.

    outside: how many clips belong to no split, by reason; notes: what the reader noticed.
    """

    root: str
    format: str
    rules: str
    alphabet: str | None
    limits: dict[str, float]
    splits: dict[str, SplitFigures]
    compared: list[str]
    leakage: Leakage
    problems: list[Problem]
    outside: dict[str, int]
    notes: list[dict[str, Any]]
    report: DataReport = field(repr=False)

    @property
    def exit_code(self) -> int:
        """0, or the exit code of the worst problem: 7 (untrusted content) before 3 (data)."""
        return max((problem.exit_code for problem in self.problems), default=0)

    def to_dict(self) -> dict[str, Any]:
        """JSON data: `survey` (the version of this form), `ok`, and the fields without `report`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "report"}
        return {"survey": VERSION, "ok": not self.problems} | {name: _plain(value) for name, value in fields.items()}


def survey(
    root: Path | str,
    *,
    format: str | None = None,
    column: str | None = None,
    language: str | None = None,
    reported: str = "keep",
    segments: str = "all",
    train: str | None = None,
    dev: str | None = None,
    test: str | None = None,
    cache: Path | str = SCHEMA["data"]["cache"],
    rules: str = "spanish",
    splits: Sequence[str] = (),
    decode: int | None = 200,
    only_unknown: bool = False,
    max_bad: float = 0.05,
    max_seconds: float = 20.0,
    allow_shared_speakers: bool = False,
    progress: bool = False,
) -> Survey:
    """Survey the splits (default: all) of a corpus.

    Options up to `cache` are those of a recipe's `data:`, and mean what they mean for training: `train`, `dev` and
    `test` are names of splits or of tables, and where any is given, the survey is of these.
    decode: how many clips of every split are decoded, None for all; only_unknown: none where the corpus claims their
    length. A table that cannot be read is a Problem, and the other tables are still read. The splits that training
    uses (train, dev or one of its other names, test; in a corpus without these names all but `validated`, `invalidated`
    and `other`) must not share speakers or audio, and at most `max_bad` of each may be unusable. Raises DataError where
    `root` is no corpus.
    """
    report = DataReport()
    data = {"root": str(root), "format": format, "column": column, "language": language, "cache": str(cache)}
    data |= {"reported": reported, "segments": segments, "train": train, "dev": dev, "test": test}
    corpus = open_data(data, report, progress)
    named = split_names(data)
    names = _names(list(named.values()) or corpus.splits(), splits)
    compared = (
        [name for name in names if named]
        or [name for name in names if name in (*TRAINED, *ALIASES)]
        or [name for name in names if name not in UNSPLIT]
    )
    text_rules = _Remembered(registry.load("text", rules)())
    listener = Listener(decode, only_unknown, max_seconds, progress)
    held = _fetch_sample(corpus, names, listener)
    found: dict[str, SplitFigures] = {}
    tables: dict[str, list[Utterance]] = {}
    problems: list[Problem] = []
    for name in names:
        try:
            utterances = held.pop(name) if name in held else corpus.read(name)
        except AsrkitError as error:
            problems.append(Problem.of(error, name))
            continue
        role = "test" if name == named.get("test") else name
        found[name] = _figures(utterances, name, role, text_rules, listener, report, hasattr(corpus, "fetch"))
        if name in compared:
            tables[name] = utterances
            problems += _too_many(name, found[name], max_bad)
    shared = leakage(tables, text_rules, listener.digests)
    try:
        shared.check(allow_shared_speakers)
    except DataError as error:
        problems.append(Problem.of(error))
    return Survey(
        root=str(root),
        format=format or _format_name(corpus),
        rules=rules,
        alphabet=text_rules.alphabet,
        limits={"max_bad": max_bad, "max_seconds": max_seconds},
        splits=found,
        compared=list(tables),
        leakage=shared,
        problems=problems,
        outside=dict(sorted(_excluded(report, "").items())),
        notes=[line for line in report.lines if "note" in line],
        report=report,
    )


class _Remembered:
    """Text rules that work once a sentence: figures, selection and leakage all ask for it."""

    def __init__(self, rules: TextRules) -> None:
        self.rules, self.alphabet = rules, rules.alphabet
        self.texts: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        found = self.texts.get(text)
        if found is None:
            found = self.texts[text] = self.rules(text)
        return found


def _fetch_sample(corpus: Corpus, names: Sequence[str], listener: Listener) -> dict[str, list[Utterance]]:
    """The tables of an archive, all read first so that one pass takes the clips to decode; nothing for a folder."""
    held: dict[str, list[Utterance]] = {}
    if hasattr(corpus, "fetch"):
        for name in names:
            with contextlib.suppress(AsrkitError):  # told when it is this split's turn
                held[name] = corpus.read(name)
        fetch(corpus, [utterance for table in held.values() for utterance in listener.chosen(table)])
    return held


def _figures(
    utterances: list[Utterance],
    name: str,
    role: str,
    rules: TextRules,
    listener: Listener,
    report: DataReport,
    fetched: bool,
) -> SplitFigures:
    """The figures of one split; `report` already has the rows that the reader left out. role: test, whatever its name,
    keeps long clips."""
    rows = len(utterances) + _excluded(report, name).total()
    texts = [rules(utterance.text) for utterance in utterances]
    tokenizer = CharacterTokenizer(texts or " " if rules.alphabet is None else rules.alphabet)
    selected = select_texts(utterances, rules, tokenizer, "drop", None, report)
    text_of = {utterance.id: text for utterance, text in selected}
    chosen = {utterance.id for utterance in listener.chosen(utterances)}
    usable, audio = listener.listen([utterance for utterance, _ in selected], role, report, chosen, fetched)
    kept = [(utterance, text_of[utterance.id]) for utterance in usable]
    excluded = dict(sorted(_excluded(report, name).items()))
    return split_figures(kept, texts, listener.seconds, rules.alphabet, rows, excluded, audio)


def _excluded(report: DataReport, split: str) -> Counter[str]:
    return Counter(line["excluded"] for line in report.lines if "excluded" in line and line["split"] == split)


def _too_many(name: str, figures: SplitFigures, max_bad: float) -> list[Problem]:
    """The share of unusable clips against the limit; what decoding a sample found is taken for the whole split. Rows
    that are left out by choice are not among them."""
    audio = figures.audio
    by_choice = sum(figures.excluded.get(reason, 0) for reason in CHOICES)
    rows = figures.rows - by_choice
    from_audio = sum(audio.unusable.values())
    known = sum(figures.excluded.values()) - by_choice - from_audio
    rest = rows - known
    bad = known + (from_audio * rest / audio.decoded if audio.decoded else 0)
    if bad <= max_bad * rows:
        return []
    about = "about " if from_audio and audio.decoded < rest else ""
    counts = ", ".join(f"{count} {reason}" for reason, count in figures.excluded.items() if reason not in CHOICES)
    texts = figures.excluded.get("unknown_character", 0) + figures.excluded.get("empty_text", 0)
    fix = "choose text rules or replacements (text.map) that fit the language" if 2 * texts > bad else "repair the data"
    error = DataError(
        f"{about}{bad / rows:.1%} of the {rows} rows of {name!r} cannot be used ({counts})",
        possible=f"up to {max_bad:.2%} (max_bad)",
        fix=f"{fix}; or, if this is expected, raise data.max_bad (here --max-bad)",
        reason="too_many_excluded",
    )
    return [Problem.of(error, name)]


def _names(names: list[str], wanted: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in names:
            raise DataError(f"no split {name!r}", possible=nearest(name, names), reason="unknown_split")
    return [name for name in names if name in wanted] if wanted else names


def _format_name(corpus: Corpus) -> str:
    readers = registry.loadable("corpora")
    return next((name for name, reader in readers.items() if reader is type(corpus)), type(corpus).__name__)


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, at any depth of lists and dictionaries."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
