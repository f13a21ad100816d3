"""A survey as one HTML page that needs nothing else: no network, no scripts, light and dark, from phone to desk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from asrkit.corpus.selection import REASONS
from asrkit.errors import StorageError
from asrkit.page_style import STYLE
from asrkit.survey import Survey
from asrkit.survey.charts import groups, histogram, letters, ranked, visible
from asrkit.survey.figures import SplitFigures
from asrkit.survey.text import by_age, hours_text


def write_page(survey: Survey, path: Path | str) -> None:
    """Write the page. Raises StorageError (`unwritable`)."""
    try:
        Path(path).write_bytes(page(survey).encode("utf-8", "replace"))
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", reason="unwritable") from error


def page(survey: Survey) -> str:
    """The whole page; the same survey gives the same bytes."""
    names = list(survey.splits)
    title = escape(_title(survey.root))
    tabs = "".join(
        f'<input type="radio" name="split" id="s{i}"{" checked" if i == 0 else ""}>' for i in range(len(names))
    )
    bar = "".join(f'<label for="s{i}">{escape(name)}</label>' for i, name in enumerate(names))
    panels = "".join(_panel(i, name, survey.splits[name]) for i, name in enumerate(names))
    rules = "".join(
        f"#s{i}:checked~.panels #p{i}{{display:block}}#s{i}:checked~.tabs label[for=s{i}]{{background:var(--ink);"
        f"color:var(--card)}}#s{i}:focus-visible~.tabs label[for=s{i}]{{outline:2px solid var(--main)}}"
        for i in range(len(names))
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>{title}: corpus figures</title>'
        f"<style>{STYLE}{rules}</style></head><body><main>"
        f'<header><p class="kind">corpus figures</p><h1>{title}</h1>'
        f'<p class="path">{escape(survey.root)} · {escape(survey.format)} · text rules {escape(survey.rules)}</p>'
        f"</header>{_verdict(survey)}{_overview(survey)}"
        f'<section class="splits">{tabs}<nav class="tabs" aria-label="splits">{bar}</nav>'
        f'<div class="panels">{panels}</div></section>'
        "<footer>made by <code>asrkit data stats --html</code> · texts and characters are those after the text rules · "
        "point at a bar to see its numbers</footer></main></body></html>\n"
    )


def _title(root: str) -> str:
    """The last two folders: `cv-corpus-6.1-2020-12-11 / es`."""
    parts = [part for part in os.path.abspath(root).split(os.sep) if part]
    return " / ".join(parts[-2:]) if parts else root


def _verdict(survey: Survey) -> str:
    if not survey.problems:
        return '<p class="verdict fine"><b>✓</b> No problem found that would stop training.</p>'
    items = "".join(f"<li><b>{escape(p.reason)}</b> {escape(p.message)}</li>" for p in survey.problems)
    count = len(survey.problems)
    return (
        f'<div class="verdict bad"><p><b>✗</b> {count} problem{"s" if count > 1 else ""} that would stop training</p>'
        f"<ul>{items}</ul></div>"
    )


def _overview(survey: Survey) -> str:
    """All splits in one table, with bars for their sizes, and what they share."""
    sizes = {name: f.hours if f.hours is not None else f.kept for name, f in survey.splits.items()}
    most = max(sizes.values(), default=0) or 1
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="wide"><span class="rail"><i style="width:{100 * sizes[name] / most:.2f}%"></i></span></td>'
        f"<td>{hours_text(f)}</td><td>{f.rows:,}</td><td>{f.kept:,}</td><td>{f.rows - f.kept:,}</td>"
        f"<td>{f.speakers:,}</td><td>{f.sentences:,}</td><td><code>{f.split_hash[:10]}</code></td></tr>"
        for name, f in survey.splits.items()
    )
    head = "".join(
        f"<th>{name}</th>" for name in ("hours", "rows", "kept", "excluded", "speakers", "sentences", "hash of kept")
    )
    table = f'<table><thead><tr><th>split</th><th class="wide"></th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return (
        f'<section class="grid"><article class="card all"><h2>Splits</h2><div class="scroll">{table}</div>'
        f"{_beside(survey)}</article>"
        f"{_shared(survey)}</section>"
    )


def _beside(survey: Survey) -> str:
    """What belongs to no split, and what the reader noticed."""
    lines = [f"in no split: {count:,} {REASONS.get(reason, reason)}" for reason, count in survey.outside.items()]
    return "".join(f'<p class="note">{escape(line)}</p>' for line in [*lines, *survey.report.notes()])


def _shared(survey: Survey) -> str:
    if len(survey.compared) < 2:
        return ""
    found = survey.leakage
    rows = "".join(
        f'<tr><th scope="row">{escape(pair.replace("/", " and "))}</th>'
        + "".join(
            f'<td class="{"hot" if number and hot else ""}">{number:,}</td>'
            for number, hot in (
                (len(found.speakers.get(pair, [])), True),
                (len(found.audio.get(pair, [])), True),
                (count, False),
            )
        )
        + "</tr>"
        for pair, count in found.sentences.items()
    )
    head = "<th>in both</th><th>speakers</th><th>clips</th><th>utterances with a shared sentence</th>"
    table = f'<table class="narrow"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<article class="card all"><h2>Shared between splits</h2><div class="scroll">{table}</div></article>'


def _panel(number: int, name: str, f: SplitFigures) -> str:
    tiles = "".join(
        f"<div><b>{value}</b><span>{label}</span></div>"
        for value, label in (
            (hours_text(f), "hours" + (" (estimated)" if f.hours_estimated else "")),
            (f"{f.kept:,}", "clips"),
            (f"{f.speakers:,}", "speakers"),
            (f"{f.sentences:,}", "sentences"),
            (f"{f.rows - f.kept:,}", f"excluded of {f.rows:,}"),
        )
    )
    pictures = (
        ("Length of clips, seconds", histogram(f.seconds, "s", "clips", "length")),
        ("Characters per second", histogram(f.characters_per_second, "", "clips", "characters per second")),
        ("Speakers by number of clips", histogram(f.clips_per_speaker, "clips", "speakers", "clips per speaker")),
    )
    lists = (
        ("Gender", groups(f.gender, f.kept)),
        ("Age", groups(by_age(f.age), f.kept, keep_order=True)),
        ("Excluded", _excluded(f)),
        ("Audio", _audio(f)),
        ("Accent", groups(f.accents, f.kept)),
        ("Repeated sentences", _repeated(f)),
    )
    alphabet = letters(f.alphabet, [x["character"] for x in f.outside]) + _outside(f)
    odd = _odd("fastest", f.fastest) + _odd("slowest", f.slowest)
    return (
        f'<div class="panel" id="p{number}"><h2 class="print">{escape(name)}</h2><div class="figures">{tiles}</div>'
        f'<div class="grid">{_cards(pictures)}</div>{_cards([("Alphabet", alphabet)])}'
        f'<div class="flow">{_cards(lists)}</div>'
        f"{_cards([('Fastest and slowest clips', odd)]) if odd else ''}</div>"
    )


def _cards(cards: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<article class="card"><h3>{title}</h3>{html}</article>' for title, html in cards)


def _outside(f: SplitFigures) -> str:
    if not f.outside:
        return ""
    items = "".join(
        f"<tr><td>{visible(x['character'])}</td><td><code>{x['code']}</code></td>"
        f"<td>{escape(x['name'].lower())}</td><td>{x['count']:,}</td></tr>"
        for x in f.outside
    )
    head = "<th>outside the alphabet</th><th>code</th><th>name</th><th>times</th>"
    many = f"<table class='narrow codes'><thead><tr>{head}</tr></thead><tbody>{items}</tbody></table>"
    return f'<div class="scroll">{many}</div>'


def _excluded(f: SplitFigures) -> str:
    ordered = sorted(f.excluded.items(), key=lambda pair: (-pair[1], pair[0]))
    rows = [
        (reason, float(count), f"{count:,}", f"{count:,} {REASONS.get(reason, reason)}") for reason, count in ordered
    ]
    return ranked(rows, f.rows) if rows else '<p class="none">nothing</p>'


def _audio(f: SplitFigures) -> str:
    audio = f.audio
    if not audio.decoded:
        return '<p class="none">no clip was decoded; <code>--decode N</code> does</p>'
    rows = [(f"{int(rate) / 1000:g} kHz", float(n), f"{n:,}", "") for rate, n in audio.sample_rates.items()]
    rows += [(note.replace("_", " "), float(n), f"{n:,}", "") for note, n in audio.notes.items()]
    rows += [(f"unusable: {reason}", float(n), f"{n:,}", "") for reason, n in audio.unusable.items()]
    if audio.same_audio:
        rows.append(("same bytes as another", float(audio.same_audio), f"{audio.same_audio:,}", ""))
    return f'<p class="note">{audio.decoded:,} clips decoded</p>{ranked(rows, audio.decoded)}'


def _repeated(f: SplitFigures) -> str:
    again = f.kept - f.sentences
    if not again:
        return '<p class="none">every sentence occurs once</p>'
    rows = [(x["text"], float(x["clips"]), f"{x['clips']:,}×", "") for x in f.repeated]
    return f'<p class="note">{again:,} clips repeat a sentence of the split</p>{ranked(rows, f.kept)}'


def _odd(title: str, clips: Sequence[dict[str, Any]]) -> str:
    if not clips:
        return ""
    rows = "".join(
        f"<tr><td>{x['characters_per_second']:.1f}</td><td>{x['seconds']:.2f}</td>"
        f"<td class='text'><bdi>{escape(x['text'])}</bdi><br><code>{escape(x['id'])}</code></td></tr>"
        for x in clips
    )
    head = "<th>characters/s</th><th>seconds</th><th class='text'>text and clip</th>"
    open_ = " open" if title == "fastest" else ""
    return (
        f"<details{open_}><summary>{title} {len(clips)}</summary><div class='scroll'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
