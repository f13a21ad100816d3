"""A report as one HTML page that needs nothing else: no network, no scripts, light and dark; and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from asrkit.report.tables import Table
from asrkit.survey_style import STYLE

MORE = """
svg{min-width:720px}p.say{margin:.35em 0}ul.say{margin:.3em 0 .8em;padding-left:1.2em}
.card{margin:16px 0}td{vertical-align:top}td:last-child{white-space:normal}
"""


@dataclass(frozen=True)
class Section:
    """A heading and, in this order, sentences, pictures (title, SVG) and tables."""

    title: str
    sentences: Sequence[str] = ()
    pictures: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = field(default_factory=list)


def page(name: str, subtitle: str, headlines: Sequence[str], troubled: int, sections: Sequence[Section]) -> str:
    """The whole page; the same study gives the same bytes."""
    title = escape(name)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>{title}: report</title>'
        f"<style>{STYLE}{MORE}</style></head><body><main>"
        f'<header><p class="kind">report of a study</p><h1>{title}</h1><p class="path">{escape(subtitle)}</p></header>'
        f"{_verdict(headlines, troubled)}{''.join(map(_section, sections))}"
        "<footer>made by <code>asrkit report</code> from study.json, cell.json and metrics.jsonl · numbers of every "
        "cell in cells.csv, of every figure in report.json</footer></main></body></html>\n"
    )


def _verdict(headlines: Sequence[str], troubled: int) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in headlines)
    mark, kind, text = "✓", "fine", "Every cell is done."
    if troubled:
        are = "cell is" if troubled == 1 else "cells are"
        mark, kind, text = "✗", "bad", f"{troubled} {are} not simply done: see the end of the page."
    return f'<div class="verdict {kind}"><p><b>{mark}</b> {text}</p><ul>{items}</ul></div>'


def _section(one: Section) -> str:
    said = "".join(f"<li>{escape(line)}</li>" for line in one.sentences)
    said = f'<ul class="say">{said}</ul>' if said else ""
    drawn = "".join(f'<h3>{escape(title)}</h3><div class="scroll">{svg}</div>' for title, svg in one.pictures if svg)
    return (
        f'<section class="card"><h2>{escape(one.title)}</h2>{said}{drawn}{"".join(map(_table, one.tables))}</section>'
    )


def _table(one: Table) -> str:
    heading = f'<h3>{escape(one.title)}</h3><p class="note">{escape(one.note)}</p>'
    if not one.rows:
        return f'{heading}<p class="none">nothing</p>'
    head = "".join(f"<th>{escape(name)}</th>" for name in one.head)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in one.rows)
    return f'{heading}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(text: str) -> str:
    return f"<td{' class=hot' if text.startswith('≠') else ''}>{escape(text)}</td>"


def markdown(name: str, subtitle: str, headlines: Sequence[str], sections: Sequence[Section]) -> str:
    """The same without pictures."""
    lines = [f"# {name}", "", subtitle, "", *(f"- {line}" for line in headlines)]
    for one in sections:
        lines += ["", f"## {one.title}", "", *(f"- {line}" for line in one.sentences)]
        for table in one.tables:
            lines += ["", f"### {table.title}", "", table.note, ""]
            lines += _markdown_table(table) if table.rows else ["nothing"]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(table.head), line(["---"] * len(table.head)), *map(line, table.rows)]
