"""The pieces an offline HTML page is made of: style, sections, tables, figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ksel.plots import to_svg


def section(title: str, body: str) -> str:
    """A part of the page under its heading; ``body`` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


def missing(text: str) -> str:
    """A line that says what is not there."""
    return f'<p class="missing">{escape(text)}</p>'


def note(text: str, *, faint: bool = False) -> str:
    """A line that explains what is there."""
    return f'<p class="{"missing" if faint else "note"}">{escape(text)}</p>'


def folded(title: str, body: str) -> str:
    """HTML that a reader unfolds."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def heat_table(
    heads: Sequence[str],
    names: Sequence[str],
    values: np.ndarray,
    pattern: str,
    signed: float | None = None,
) -> str:
    """A table of numbers whose cells are as strong in colour as their value is large.

    Args:
        heads: of all columns, that of the names first.
        names: of the rows.
        values: [rows, columns] in [0, 1]; with ``signed`` in [-signed, signed], in two colours; nan is
            shown as a dash.
        pattern: how a number is written.
        signed: the value of the strongest colour.
    """
    rows = []
    for name, row in zip(names, np.asarray(values, np.float64), strict=True):
        cells = []
        for value in row:
            if not np.isfinite(value):
                cells.append("&ndash;")
                continue
            depth = float(np.clip(abs(value) / (signed or 1.0), 0, 1))
            side = " under" if signed and value < 0 else ""
            text = _signless(value, pattern)
            cells.append(f'<span class="heat{side}" style="--v:{100 * depth:.0f}%">{text}</span>')
        rows.append([_breakable(escape(name)), *cells])
    return table(heads, rows, kind="even")


def _signless(value: float, pattern: str) -> str:
    """A number in words, without the sign of a zero."""
    text = format(value, pattern)
    return text if any(digit in text for digit in "123456789") else text.lstrip("+-")


def _breakable(text: str) -> str:
    """A name that may be broken after a slash; ``text`` is HTML without tags."""
    return text.replace("/", "/<wbr>")


def show(figure: Figure, name: str, label: str) -> str:
    """A figure as inline SVG; ``name`` is unique on the page, ``label`` is for screen readers."""
    return f"<figure>{to_svg(figure, name, label)}</figure>"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], emphasis: str = "", kind: str = ""
) -> str:
    """A table whose cells are HTML already; the row whose first cell is ``emphasis`` stands out.

    Args:
        heads: of the columns, plain text.
        rows: the first cell of each is its name.
        emphasis: see above.
        kind: ``even``: columns of equal width; ``facts``: names and texts.
    """
    head = "".join(f"<th>{_breakable(escape(text))}</th>" for text in heads)
    body = ""
    for row in rows:
        mark = ' class="selected"' if row[0] == emphasis else ""
        cells = "".join(f"<td>{cell}</td>" for cell in row[1:])
        body += f"<tr{mark}><th>{row[0]}</th>{cells}</tr>"
    of = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{of}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def number(value: Any, pattern: str) -> str:
    """A number as HTML, or a dash where there is none."""
    return format(value, pattern) if isinstance(value, (int, float)) else "&ndash;"


def document(title: str, body: str) -> str:
    """The whole page; ``body`` is HTML."""
    return (
        f"{_HEAD}<title>{escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def is_own(path: Path) -> bool:
    """True if a file is a page of ksel: it begins like one, and has a title of ksel."""
    begin = f"{_HEAD}<title>ksel".encode()
    with path.open("rb") as file:
        return file.read(len(begin)) == begin


_HEAD = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
)
_CSS = """
:root{color-scheme:light dark;--paper:#fff;--card:#f6f7f9;--ink:#1f2329;--faint:#79808a;--line:#dfe2e7;
--accent:#0072b2;--loud:#fff1e0;--loudline:#d55e00;--good:#d9f2e6;--bad:#fde3d8;--c0:#0072b2;--c1:#d55e00;
--c2:#009e73;--c3:#cc79a7;--c4:#e69f00;--c5:#56b4e9;--c6:#8a7c00;--c7:#7a7a7a}
@media(prefers-color-scheme:dark){:root{--paper:#14171c;--card:#1d2128;--ink:#e6e9ee;--faint:#969eaa;
--line:#343a44;--accent:#6cb6ee;--loud:#3a2814;--loudline:#e58a3c;--good:#173d2e;--bad:#47271a;--c0:#4a9fe0;
--c1:#ef7c2e;--c2:#2fc49a;--c3:#dd94bb;--c4:#f0b429;--c5:#a3d8fb;--c6:#c9bb3f;--c7:#b3b3b3}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
main{max-width:1040px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.1rem 0 .8rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.6rem 0 .8rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.6rem 0 .5rem}
.kicker{margin:0;color:var(--faint);letter-spacing:.08em;text-transform:uppercase;font-size:.8rem}
.chip{display:inline-block;background:var(--card);border:1px solid var(--line);border-radius:1rem;
padding:.1rem .8rem;margin:0 .4rem .4rem 0}.chip b{font-weight:500;color:var(--faint)}
.good{background:var(--good)}.bad{background:var(--bad)}
.loud{background:var(--loud);border-left:5px solid var(--loudline);padding:.7rem 1rem;border-radius:4px}
.note{margin:.3rem 0;overflow-wrap:anywhere}
.missing{color:var(--faint);font-style:italic;margin:.5rem 0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:bottom}
th:first-child{text-align:left}tbody th{font-weight:400}thead th{font-size:.85rem;color:var(--faint)}
.selected th,.selected td{font-weight:650;background:var(--card)}
.facts td{text-align:left;overflow-wrap:anywhere}.facts th{white-space:nowrap;vertical-align:top}
.facts thead{display:none}
.even{table-layout:fixed}.even th:first-child{width:15rem;overflow-wrap:anywhere}
.even th,.even td{padding:.25rem .35rem;vertical-align:middle}.even thead th{vertical-align:bottom}.even td:has(.heat){padding:.12rem}
.on{color:var(--accent)}.heat{display:block;padding:.15rem .4rem;border-radius:4px;text-align:center;
background:color-mix(in srgb,var(--accent) calc(var(--v)*.62),transparent)}
.even thead th:not(:first-child){text-align:center;overflow-wrap:break-word;font-size:.8rem;line-height:1.25}
.heat.under{background:color-mix(in srgb,var(--c1) calc(var(--v)*.62),transparent)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:.2rem 2rem}
.pair .even th:first-child{width:32%}h4{font-size:.95rem;margin:.8rem 0 .3rem}small{color:var(--faint);font-weight:400}
.bar{display:block;padding:0 .3rem;border-radius:3px;background:linear-gradient(90deg,
color-mix(in srgb,var(--accent) 32%,transparent) var(--w),transparent var(--w))}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem}
.tile{flex:1 1 170px;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem 1rem}
.tile span{display:block;color:var(--faint);font-size:.85rem}.tile b{font-size:1.35rem}
figure{margin:1.2rem 0}figure svg{width:100%;height:auto;display:block}
figure svg text{font-family:inherit!important}
details{border:1px solid var(--line);border-radius:8px;padding:.5rem 1rem;margin:.7rem 0}
summary{cursor:pointer}pre{overflow-x:auto;font-size:.85rem;line-height:1.45}
@media print{details{display:none}}
"""
