"""A report as one HTML page that needs nothing else: no network, no scripts, light and dark; and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from asrkit.page_style import STYLE
from asrkit.report.drawing import VARIABLES, Gallery, key
from asrkit.report.formats import Table, amount

MORE = """
p.say{margin:.35em 0}ul.say{margin:.3em 0 .8em;padding-left:1.2em;overflow-wrap:anywhere}
.card{margin:16px 0}td{vertical-align:top}th{vertical-align:bottom;white-space:normal;min-width:4.6em}
td.long{white-space:normal;min-width:14em}td.word,th.word,td.long,th.long{text-align:left}
h3{margin-top:1.2em}summary{margin-top:.6em}
.panels{display:grid;gap:10px 18px;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
.panels svg{max-width:560px}.legend{display:flex;flex-wrap:wrap;gap:2px 18px;list-style:none;padding:0;
margin:.2em 0 .6em;font-size:.92rem}.legend span{min-width:0;overflow-wrap:anywhere}
.legend li{min-width:0;display:flex;align-items:center;gap:6px}
svg.key{display:inline-block;width:34px;flex:none}
@media (max-width:520px){main{padding:16px 10px 32px}.card{padding:12px}
th,td{padding:5px 8px}table{font-size:.85rem}}
"""
MANY = 16  # rows of a table that a page shows without being asked
NUMBER = re.compile(r"(≠ ?)?[-+–<]?[\d.,]*(e[-+]?\d+)?([ ,(].*)?")


@dataclass(frozen=True)
class Section:
    """A heading and, in this order, sentences, more of them on request, pictures and tables."""

    title: str
    sentences: Sequence[str] = ()
    more: Sequence[str] = ()
    galleries: Sequence[Gallery] = ()
    tables: Sequence[Table] = field(default_factory=list)


def page(
    name: str, subtitle: str, headlines: Sequence[str], troubled: int, sections: Sequence[Section], unplanned: int = 0
) -> str:
    """The whole page; the same study gives the same bytes. troubled: how many cells are not simply done; unplanned: are
    to come that depend on others."""
    title = escape(name)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>{title}: report</title>'
        f"<style>{STYLE}{VARIABLES}{MORE}</style></head><body><main>"
        f'<header><p class="kind">report of a study</p><h1>{title}</h1><p class="path">{escape(subtitle)}</p></header>'
        f"{_verdict(headlines, troubled, unplanned)}{''.join(map(_section, sections))}"
        "<footer>made by <code>asrkit report</code> from study.json, cell.json and metrics.jsonl · numbers of every "
        "cell in cells.csv, of every figure in report.json</footer></main></body></html>\n"
    )


def _verdict(headlines: Sequence[str], troubled: int, unplanned: int) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in headlines)
    mark, kind, said = "✓", "fine", ["Every cell is done."]
    if troubled or unplanned:
        mark, kind, said = "✗", "bad", []
    if troubled:
        said.append(f"{amount(troubled, 'cell is', 'cells are')} not simply done: see the end of the page.")
    if unplanned:
        said.append(f"{amount(unplanned, 'cell depends', 'cells depend')} on what others come to: still to come.")
    return f'<div class="verdict {kind}"><p><b>{mark}</b> {" ".join(said)}</p><ul>{items}</ul></div>'


def _section(one: Section) -> str:
    said = _list(one.sentences)
    if one.more:
        none = "" if one.sentences else "No difference stands. "
        pairs = amount(len(one.more), "pair")
        said += f"<details><summary>{none}{pairs} without evidence</summary>{_list(one.more)}</details>"
    drawn = "".join(map(_gallery, one.galleries))
    return (
        f'<section class="card"><h2>{escape(one.title)}</h2>{said}{drawn}{"".join(map(_table, one.tables))}</section>'
    )


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="say">{items}</ul>' if items else ""


def _gallery(one: Gallery) -> str:
    if not any(one.panels):
        return ""
    names = "".join(f"<li>{key(place)}<span>{escape(name)}</span></li>" for place, name in enumerate(one.legend))
    legend = f'<ul class="legend">{names}</ul>' if names else ""
    return f'<h3>{escape(one.title)}</h3>{legend}<div class="panels">{"".join(one.panels)}</div>'


def _table(one: Table) -> str:
    note = f'<p class="note">{escape(one.note)}</p>'
    if not one.rows:
        return f'<h3>{escape(one.title)}</h3>{note}<p class="none">nothing</p>'
    kinds = [_kind([row[i] for row in one.rows]) for i in range(len(one.head))]
    names = zip(one.head, kinds, strict=True)
    head = "".join(f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in names)
    rows = "".join(f"<tr>{''.join(map(_cell, row, kinds))}</tr>" for row in one.rows)
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(one.title)}"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )
    if one.folded or len(one.rows) > MANY:
        return (
            f"<details><summary>{escape(one.title)} ({amount(len(one.rows), 'row')})</summary>{note}{table}</details>"
        )
    return f"<h3>{escape(one.title)}</h3>{note}{table}"


def _kind(column: Sequence[str]) -> str:
    """Of a column: `long` may break its lines, `word` begins at the left, `number` ends at the right."""
    if any(len(text) > 46 for text in column):
        return "long"
    return "number" if all(map(NUMBER.fullmatch, column)) else "word"


def _cell(text: str, kind: str) -> str:
    return f'<td class="{kind}{" hot" * text.startswith("≠")}">{escape(text)}</td>'


def markdown(name: str, subtitle: str, headlines: Sequence[str], sections: Sequence[Section]) -> str:
    """The same without pictures."""
    lines = [f"# {name}", "", subtitle, "", *(f"- {line}" for line in headlines)]
    for one in sections:
        lines += ["", f"## {one.title}", "", *(f"- {line}" for line in [*one.sentences, *one.more])]
        for table in one.tables:
            lines += ["", f"### {table.title}", "", table.note, ""]
            lines += _markdown_table(table) if table.rows else ["nothing"]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(table.head), line(["---"] * len(table.head)), *map(line, table.rows)]
