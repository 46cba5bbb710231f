"""The parts of a page: a head, sections, tables, lists. What comes from files goes through `text` on its way in.

A page is one file: its style is in it, its pictures are SVG, and nothing in it leads out of it. Its colours are
variables, so that it reads well on a bright screen, on a dark one and on paper.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufmerge.errors import GgufmergeError
from ggufmerge.files.small import open_regular
from ggufmerge.text import printable, shortened

Row = Sequence[str]

_LONGEST = 2_000  # letters of a text in a page
_LONGEST_BLOCK = 100_000  # of a recipe or an answer
_MOST_ROWS = 400  # of a table or a list
_MADE_BY = '<meta name="generator" content="ggufmerge">\n'


def text(value: object, most: int = _LONGEST) -> str:
    """A text from anywhere as HTML: on one line, without what turns letters around or hides them, not endless."""
    return html.escape(printable(shortened(str(value), most)))


def block(value: str) -> str:
    """The same of a text of several lines, such as a recipe or an answer, as it is written."""
    cut = value if len(value) <= _LONGEST_BLOCK else value[:_LONGEST_BLOCK] + "\n..."
    return f"<pre>{chr(10).join(html.escape(printable(line.rstrip(chr(13)))) for line in cut.splitlines())}</pre>"


def table(heads: Row, rows: Iterable[Row], numbers: int = 0, caption: str = "") -> str:
    """Rows of texts under heads, the last `numbers` columns set to the right. A very long table loses its end."""
    lines = list(rows)
    first = len(heads) - numbers

    def cells(row: Row, tag: str, more: str = "") -> str:
        kinds = [' class="n"' if column >= first else "" for column in range(len(row))]
        return "<tr>" + "".join(f"<{tag}{more}{c}>{text(cell)}</{tag}>" for c, cell in zip(kinds, row, strict=True))

    named = f"<caption>{text(caption)}</caption>" if caption else ""
    body = "\n".join(cells(row, "td") for row in lines[:_MOST_ROWS])
    head = cells(heads, "th", ' scope="col"')
    return (
        f'<div class="wide" tabindex="0"><table>{named}<thead>{head}</thead>\n<tbody>{body}</tbody></table></div>\n'
        + _cut(len(lines), "rows")
    )


def listed(lines: Iterable[str], kind: str = "") -> str:
    """Sentences below each other; `kind` is what they are: "warning" or "note"."""
    every = list(lines)
    if not every:
        return ""
    items = "\n".join(f"<li>{text(line)}" for line in every[:_MOST_ROWS])
    return f'<ul class="{kind}">{items}</ul>\n' + _cut(len(every), "lines")


def paragraph(line: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text(line)}</p>\n' if kind else f"<p>{text(line)}</p>\n"


def figure(drawing: str, caption: str, key: str = "") -> str:
    """A drawing (SVG) under what it shows. key: what its colours mean, as HTML."""
    shown = f'<div class="wide" tabindex="0">{drawing}</div>'
    return f"<figure><figcaption>{text(caption)}</figcaption>{key}{shown}</figure>\n"


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading. content: HTML; nothing is shown of an empty one."""

    title: str
    content: str


def page(title: str, result: Sequence[str], sections: Iterable[Section], foot: str) -> str:
    """A whole page. title: of the window and over it.  result: the lines right below, the first of which counts."""
    first, *more = result
    parts = "".join(
        f"<section><h2>{text(section.title)}</h2>\n{section.content}</section>\n"
        for section in sections
        if section.content
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'{_MADE_BY}<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{text(title)}</h1>\n<p class="result">{text(first)}</p>\n'
        + "".join(map(paragraph, more))
        + f"</header>\n{parts}<footer>{text(foot)}</footer>\n</main>\n</body>\n</html>\n"
    )


def is_report(path: Path) -> bool:
    """Whether a file is a page of this program's."""
    try:
        with open_regular(path) as file:
            return _MADE_BY.encode() in file.read(1000)
    except (OSError, GgufmergeError):
        return False


def _cut(count: int, what: str) -> str:
    return paragraph(f"and {count - _MOST_ROWS:,} {what} more", "soft") if count > _MOST_ROWS else ""


_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c2128;--soft:#57606a;--line:#d0d7de;--none:#e4e7eb;--block:#f3f5f7;
--warn:#fff4d1;--warn-line:#c98a00}
@media screen and (prefers-color-scheme:dark){:root{--page:#14181d;--ink:#e4e8ed;--soft:#a2acb8;--line:#3a424c;
--none:#2b323a;--block:#1e242b;--warn:#3a2f0d;--warn-line:#d9a521}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
main{max-width:62rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.2rem;line-height:1.3;margin:2.4rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
p,ul{margin:.5rem 0;max-width:46rem}
ul{padding-left:1.2rem}
.result{font-size:1.1rem;font-weight:600}
.soft,figcaption+.key,footer{color:var(--soft);font-size:.9rem}
ul.warning{list-style:none;padding:.5rem .8rem;background:var(--warn);border-left:4px solid var(--warn-line)}
ul.warning li+li{margin-top:.4rem}
.wide{overflow-x:auto}
.wide:focus-visible{outline:2px solid var(--soft)}
table{border-collapse:collapse;font-size:.9rem;margin:.6rem 0;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding-bottom:.25rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .9rem .25rem 0;border-bottom:1px solid var(--line);
min-width:3.5rem;overflow-wrap:break-word}
th{color:var(--soft);font-weight:600;white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}
pre{background:var(--block);padding:.8rem;border-radius:4px;font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,
"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}
figure{margin:1.2rem 0 1.6rem}
figcaption{font-weight:600}
.key{margin:.1rem 0 .3rem}
.key span{display:inline-block;margin-right:1.1rem;white-space:nowrap}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.35em;border-radius:2px;vertical-align:-.06em;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
svg{display:block;color:var(--ink)}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:currentColor}
svg .none{fill:var(--none)}
svg .rule{stroke:var(--none)}
svg use:hover,svg path.cell:hover{stroke:currentColor;stroke-width:1.5px}
footer{margin-top:2.5rem;border-top:1px solid var(--line);padding-top:.6rem}
h3{font-size:1rem;margin:1rem 0 .3rem}
@media print{:root{color-scheme:light}@page{margin:1.6cm}body{font-size:10.5pt}main{max-width:none;padding:0}
h2,h3{break-after:avoid}section,figure,tr,li{break-inside:avoid}section{margin-top:1.5rem}
thead{display:table-header-group}
.wide{overflow:visible}table{font-size:8.5pt;max-width:100%}th,td{padding-right:.5rem;min-width:0}
td.n,th.n,th{white-space:normal}svg{max-width:100%;height:auto;max-height:23cm}
ul.warning{border:1px solid var(--warn-line);border-left-width:4px}pre{font-size:8.5pt}}
"""
