"""A survey for the terminal: tables, and histograms that fit a line."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from asrkit.corpus.selection import REASONS
from asrkit.survey import Survey
from asrkit.survey.figures import AGES, Group, Histogram, SplitFigures

T = TypeVar("T")
BLOCKS, PLAIN = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
EXAMPLES = 3  # utterances shown for a reason
GROUPS = 12  # accents shown


def check_text(survey: Survey) -> str:
    """Rows, exclusions with examples, what splits share, audio, and the verdict."""
    parts = [_head(survey), _splits(survey), _excluded(survey), _noted(survey), _outside(survey), _audio(survey)]
    parts.append(_shared(survey))
    return _harmless("\n\n".join(part for part in [*parts, _verdict(survey)] if part))


def stats_text(survey: Survey, unicode: bool = True) -> str:
    """The figures of every split; `unicode`: whether the terminal can show block characters."""
    parts = [_head(survey), _splits(survey)]
    for title, unit, pick in (
        ("length", "s", lambda f: f.seconds),
        ("characters per second", "", lambda f: f.characters_per_second),
        ("clips per speaker", "", lambda f: f.clips_per_speaker),
    ):
        parts.append(_histograms(survey, title, unit, pick, unicode))
    parts += [
        _groups(survey, "gender", lambda f: f.gender),
        _groups(survey, "age", lambda f: f.age),
        _groups(survey, "accent", lambda f: f.accents),
        _alphabet(survey),
        _outside(survey),
        _repeated(survey),
        _excluded(survey, examples=0),
        _noted(survey),
        _audio(survey),
        _shared(survey),
        _verdict(survey),
    ]
    return _harmless("\n\n".join(part for part in parts if part))


def _harmless(text: str) -> str:
    """What a terminal would obey (escape sequences, direction marks) as `\\x1b`: cells are strangers' text."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def hours_text(figures: SplitFigures) -> str:
    """`0.042`, `12.3`, with `~` in front where it is estimated; `?` where no length is known."""
    if figures.hours is None:
        return "?"
    digits = 3 if figures.hours < 1 else 2 if figures.hours < 10 else 1
    return f"{'~' if figures.hours_estimated else ''}{figures.hours:,.{digits}f}"


def bin_label(histogram: Histogram, place: int) -> str:
    """`4 to 5` (of seconds), `6 to 10` (of clips), or `20 and more` for the last bin."""
    edges = histogram.edges
    if place + 1 == len(edges):
        return f"{edges[place]:g} and more"
    end = edges[place + 1] - (0 if histogram.even else 1)
    return f"{edges[place]:g}" if end == edges[place] else f"{edges[place]:g} to {end:g}"


def by_age(groups: Mapping[str, T]) -> dict[str, T]:
    """Ages from young to old, then other spellings, then who did not say."""
    order = {age: place for place, age in enumerate(AGES)}
    return dict(sorted(groups.items(), key=lambda pair: (pair[0] == "", order.get(pair[0], len(order)), pair[0])))


def _head(survey: Survey) -> str:
    return f"{survey.root}: {survey.format}, text rules {survey.rules!r}"


def _splits(survey: Survey) -> str:
    rows = [
        [
            name,
            f"{f.rows:,}",
            f"{f.kept:,}",
            f"{f.rows - f.kept:,}",
            hours_text(f),
            f"{f.speakers:,}",
            f"{f.sentences:,}",
            f"{f.audio.decoded:,}",
            f.split_hash[:12],
        ]
        for name, f in survey.splits.items()
    ]
    header = ["split", "rows", "kept", "excluded", "hours", "speakers", "sentences", "decoded", "hash of kept"]
    return _table(header, rows)


def _excluded(survey: Survey, examples: int = EXAMPLES) -> str:
    lines = []
    splits = {name: (name, figures.excluded) for name, figures in survey.splits.items()}
    for name, (split, excluded) in {**splits, "in no split": ("", survey.outside)}.items():
        for reason, count in excluded.items():
            lines.append(f"  {name}: {count:,} {reason}" + (f" ({REASONS[reason]})" if reason in REASONS else ""))
            found = (x for x in survey.report.lines if x.get("excluded") == reason and x["split"] == split)
            for _, line in zip(range(examples), found, strict=False):
                more = {key: value for key, value in line.items() if key not in ("excluded", "split", "id", "audio")}
                text = ", ".join(f"{key} {value}" for key, value in more.items())
                lines.append(f"    {line['id']}: {textwrap.shorten(text, 100, placeholder='…')}")
    return "\n".join(["excluded", *lines]) if lines else "excluded: nothing"


def _noted(survey: Survey) -> str:
    notes = survey.report.notes()
    return "\n".join(["noted", *(f"  {note}" for note in notes)]) if notes else ""


def _outside(survey: Survey) -> str:
    if survey.alphabet is None:
        return f"alphabet: text rules {survey.rules!r} have none of their own"
    counts = {name: {x["character"]: x for x in figures.outside} for name, figures in survey.splits.items()}
    found = {c: x for part in counts.values() for c, x in part.items()}
    if not found:
        return "characters outside the alphabet: none"
    rows = [
        [
            f"{character!r} {x['code']} {x['name']}",
            *(part[character]["count"] if character in part else "-" for part in counts.values()),
        ]
        for character, x in found.items()
    ]
    advice = "\ntraining stops at these unless text.unknown is drop, or map with replacements in text.map"
    return _table(["outside the alphabet", *counts], rows) + advice


def _audio(survey: Survey) -> str:
    lines = []
    for name, figures in survey.splits.items():
        audio = figures.audio
        if not audio.decoded:
            continue
        known = [f"{rate} Hz {count:,}" for rate, count in audio.sample_rates.items()]
        known += [f"{note} {count:,}" for note, count in audio.notes.items()]
        known += [f"unusable: {reason} {count:,}" for reason, count in audio.unusable.items()]
        known += [f"same bytes as another clip {audio.same_audio:,}"] if audio.same_audio else []
        lines.append(f"  {name}: {audio.decoded:,} decoded: {', '.join(known)}")
    return "\n".join(["audio", *lines]) if lines else "audio: nothing decoded"


def _shared(survey: Survey) -> str:
    if len(survey.compared) < 2:
        return ""
    shared = survey.leakage
    rows = [
        [pair, len(shared.speakers.get(pair, [])), len(shared.audio.get(pair, [])), count]
        for pair, count in shared.sentences.items()
    ]
    return _table(["in both", "speakers", "clips", "utterances with a shared sentence"], rows)


def _verdict(survey: Survey) -> str:
    limits = f"limits: max_bad {survey.limits['max_bad']:.1%}, max_seconds {survey.limits['max_seconds']:g}"
    if not survey.problems:
        return f"{limits}\nno problem found"
    lines = [f"  [{problem.reason}] {problem.message}" for problem in survey.problems]
    return "\n".join([limits, "problems", *lines])


def _histograms(survey: Survey, title: str, unit: str, pick: Callable[[SplitFigures], Histogram], unicode: bool) -> str:
    shown = {name: pick(f) for name, f in survey.splits.items() if pick(f).median is not None}
    if not shown:
        return f"{title}: no length is known; decode some clips with --decode" if unit == "s" else ""
    last = max(place for h in shown.values() for place, count in enumerate(h.counts) if count)
    width = max(map(len, shown))
    edges = next(iter(shown.values())).edges
    end = f"{edges[last]:g}+" if last + 1 == len(edges) else f"{edges[last + 1]:g}"
    lines = [f"{title}{f' ({unit})' if unit else ''}, from {edges[0]:g} to {end}"]
    for name, h in shown.items():
        text = f"median {h.median:.3g}, 90 % between {h.low:.3g} and {h.high:.3g}"
        lines.append(f"  {name:<{width}} |{bars(h.counts[: last + 1], unicode)}| {text}")
    return "\n".join(lines)


def bars(counts: Sequence[int], unicode: bool = True) -> str:
    """One character a count, two wide; any count that is not 0 shows."""
    marks = BLOCKS if unicode else PLAIN
    most = max(counts, default=0)
    levels = [0 if not n else max(1, round(n / most * (len(marks) - 1))) for n in counts]
    return "".join(marks[level] * 2 for level in levels)


def _groups(survey: Survey, title: str, pick: Callable[[SplitFigures], Mapping[str, Group]]) -> str:
    found = {name: pick(figures) for name, figures in survey.splits.items()}
    values = list(dict.fromkeys(value for groups in found.values() for value in groups))
    values = list(by_age(dict.fromkeys(values))) if title == "age" else sorted(values, key=lambda value: value == "")
    if values in ([], [""]):
        return f"{title}: not given"
    rows = [
        [value or "not given"]
        + [
            f"{groups[value].clips:,} ({groups[value].clips / max(1, survey.splits[name].kept):.0%})"
            if value in groups
            else "-"
            for name, groups in found.items()
        ]
        for value in values[:GROUPS]
    ]
    if len(values) > GROUPS:
        rows.append([f"and {len(values) - GROUPS} more"] + [""] * len(found))
    return _table([f"{title} (clips)", *found], rows)


def _alphabet(survey: Survey) -> str:
    lines = ["characters after the text rules"]
    for name, figures in survey.splits.items():
        items = [f"{'space' if c == ' ' else c}\0{count:,}" for c, count in figures.alphabet.items()]
        lines += textwrap.wrap(f"{name}: {', '.join(items)}", 110, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines).replace("\0", " ")  # no line ends between a character and its count


def _repeated(survey: Survey) -> str:
    lines = []
    for name, figures in survey.splits.items():
        if again := figures.kept - figures.sentences:
            top = ", ".join(f"{x['text'][:60]!r} {x['clips']:,} times" for x in figures.repeated[:3])
            lines.append(f"  {name}: {again:,} clips repeat a sentence of the split; {top}")
    return "\n".join(["repeated sentences", *lines]) if lines else "repeated sentences: none"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their longest cell; the first to the left, the others to the right."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shape = "  ".join(f"{{:{'<' if place == 0 else '>'}{width}}}" for place, width in enumerate(widths))
    return "\n".join(shape.format(*line).rstrip() for line in lines)
