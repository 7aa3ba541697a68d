"""The matrix as one HTML page that needs nothing else: colours, light and dark, details of a cell where one points."""

from __future__ import annotations

import html
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.matrix.command import Matrix
    from tools.matrix.rows import Row

_LIGHT = """--paper:#fbfbfa;--ink:#1c2126;--soft:#5d6873;--rule:#dfe3e7;--panel:#ffffff;--right:#d9f2e0;--right-ink:#14532d;
--wrong:#fbdcd9;--wrong-ink:#8a1c13;--crash:#f0dcf7;--crash-ink:#6b1a86;--timeout:#fbecc8;--timeout-ink:#6d4a05;
--none:#eef1f4;--none-ink:#5d6873;--pick:#1d5fbf"""
_DARK = """--paper:#14181c;--ink:#e7ebee;--soft:#9aa6b1;--rule:#313940;--panel:#1c2126;--right:#17402a;--right-ink:#b9f0cb;
--wrong:#5a1f1b;--wrong-ink:#ffcfc9;--crash:#472056;--crash-ink:#f0cdfb;--timeout:#4d3a10;--timeout-ink:#fbe3a6;
--none:#20262c;--none-ink:#9aa6b1;--pick:#7db4ff"""

_STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;max-width:1080px;padding:24px 20px 40px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}}
h1{{font-size:22px;margin:0 0 4px}}
h2{{font-size:17px;margin:24px 0 8px}}
p{{margin:0 0 14px;max-width:75ch}}
.soft{{color:var(--soft)}}
.legend{{display:flex;flex-wrap:wrap;gap:6px 16px;margin:0 0 16px;padding:0;list-style:none;font-size:13px}}
.legend b{{display:inline-block;min-width:1.9em;text-align:center;border-radius:5px;padding:0 5px;margin-right:5px}}
table{{border-collapse:separate;border-spacing:3px;width:100%;table-layout:fixed}}
th{{font-weight:600;text-align:left;padding:4px 6px;font-size:13px}}
thead th{{position:sticky;top:0;background:var(--paper);z-index:1;border-bottom:1px solid var(--rule)}}
thead th.column{{text-align:center}}
thead small{{display:block;font-weight:400;color:var(--soft)}}
th.family{{vertical-align:top;padding-top:8px;overflow-wrap:anywhere}}
th.precision{{font-weight:400;overflow-wrap:anywhere}}
tbody tr.first:not(:first-child) th,tbody tr.first:not(:first-child) td{{border-top:1px solid var(--rule);padding-top:4px}}
td{{padding:0}}
.cell{{display:block;width:100%;min-height:30px;border:0;border-radius:6px;padding:3px 4px;font:inherit;font-size:13px;
text-align:center;font-variant-numeric:tabular-nums;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}}
button.cell{{cursor:help}}
button.cell:hover,button.cell:focus-visible{{outline:2px solid var(--pick);outline-offset:0}}
.right{{background:var(--right);color:var(--right-ink)}}
.wrong,.no-load{{background:var(--wrong);color:var(--wrong-ink)}}
.crash{{background:var(--crash);color:var(--crash-ink)}}
.timeout,.not-made{{background:var(--timeout);color:var(--timeout-ink)}}
.not-run{{background:var(--none);color:var(--none-ink)}}
#tip{{position:fixed;z-index:5;max-width:min(460px,calc(100vw - 24px));padding:10px 12px;border-radius:9px;font-size:13px;
background:var(--panel);color:var(--ink);border:1px solid var(--rule);box-shadow:0 6px 28px rgb(0 0 0/.28);
white-space:pre-line;overflow-wrap:anywhere;pointer-events:none}}
#tip[hidden]{{display:none}}
ul.failing{{padding-left:20px}}
.failing li{{overflow-wrap:anywhere}}
col.names{{width:132px}}col.kinds{{width:88px}}
@media (max-width:640px){{
body{{padding:14px 10px 30px;font-size:14px}}
table{{border-spacing:2px}}
.number{{display:none}}
.cell{{padding:3px 0}}
th{{padding:3px 2px;font-size:12px}}
col.names{{width:92px}}col.kinds{{width:58px}}
}}
"""

_FIRST = ' class="first"'

_SCRIPT = """
const tip=document.getElementById('tip');
function show(event){
 const cell=event.target.closest('button.cell');
 if(!cell){tip.hidden=true;return}
 tip.textContent=cell.dataset.tip;tip.hidden=false;
 const box=cell.getBoundingClientRect(),own=tip.getBoundingClientRect();
 const left=Math.min(Math.max(12,box.left+box.width/2-own.width/2),innerWidth-own.width-12);
 const below=box.bottom+8,above=box.top-own.height-8;
 tip.style.left=left+'px';
 tip.style.top=Math.max(8,below+own.height>innerHeight-8&&above>8?above:below)+'px';
}
for(const name of ['mouseover','focusin','click'])document.addEventListener(name,show);
for(const name of ['focusout','scroll'])document.addEventListener(name,()=>{tip.hidden=true});
document.addEventListener('keydown',event=>{if(event.key==='Escape')tip.hidden=true});
"""


def html_page(matrix: Matrix, made: str) -> str:
    """The whole page.

    Args:
        matrix: what was run.
        made: date of the run.
    """
    from backends.mnn.contract import compiler_version
    from tools.matrix.cell import this_platform

    run, wrong = len(matrix.cells), len(matrix.failing())
    told = f"Lading {compiler_version()} on {this_platform()}, {made}. "
    told += f"{run - wrong} of {run} cells that were run are right."
    body = [
        "<h1>Models on MNN releases</h1>",
        f'<p class="soft">{_text(told)} Point at a cell, or tap it, for what was checked.</p>',
        _legend(matrix),
        _table(matrix),
        _failing(matrix),
        '<div id="tip" role="tooltip" hidden></div>',
        f"<script>{_SCRIPT}</script>",
    ]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>Models on MNN releases</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(body) + "\n</body>\n</html>\n"


def _legend(matrix: Matrix) -> str:
    from tools.matrix.report import MEANINGS, SYMBOLS, status_of

    used = {status_of(matrix, row, release) for row in matrix.rows for release in matrix.releases}
    items = [
        f'<li><b class="{_class(name)}">{SYMBOLS[name]}</b>{_text(MEANINGS[name])}</li>'
        for name in SYMBOLS
        if name in used
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _table(matrix: Matrix) -> str:
    columns = '<col class="names"><col class="kinds">' + "<col>" * len(matrix.releases)
    head = "".join(_column(matrix, release) for release in matrix.releases)
    lines = [
        f"<table><colgroup>{columns}</colgroup>",
        f'<thead><tr><th scope="col">model</th><th scope="col">stored as</th>{head}</tr></thead><tbody>',
    ]
    for family, group in groupby(matrix.rows, lambda row: row.family):
        rows = list(group)
        for number, row in enumerate(rows):
            cells = "".join(f"<td>{_cell(matrix, row, release)}</td>" for release in matrix.releases)
            name = (
                f'<th scope="rowgroup" class="family" rowspan="{len(rows)}">{_text(family)}</th>' if number == 0 else ""
            )
            lines.append(
                f"<tr{'' if number else _FIRST}>{name}"
                f'<th scope="row" class="precision">{_text(row.precision)}</th>{cells}</tr>'
            )
    return "\n".join([*lines, "</tbody></table>"])


def _column(matrix: Matrix, release: str) -> str:
    cells = [cell for row in matrix.rows if (cell := matrix.cell(row, release)) is not None]
    right = sum(cell["status"] == "right" for cell in cells)
    count = f"{right}/{len(cells)}" if cells else "not tested"
    return f'<th scope="col" class="column">{_text(release)}<small>{count}</small></th>'


def _cell(matrix: Matrix, row: Row, release: str) -> str:
    from tools.matrix.report import SYMBOLS, short, status_of

    status = status_of(matrix, row, release)
    number = f'<span class="number"> {_text(short(matrix, row, release))}</span>'
    label = f"{row.family} {row.precision} on MNN {release}: {status}"
    return (
        f'<button type="button" class="cell {_class(status)}" aria-label="{_text(label)}" '
        f'data-tip="{_text(_details(matrix, row, release, label))}">{SYMBOLS[status]}{number}</button>'
    )


def _details(matrix: Matrix, row: Row, release: str, label: str) -> str:
    cell = matrix.cell(row, release)
    if cell is None:
        why = row.failure or matrix.unavailable.get(release) or "the model is not compiled for this release"
        return f"{label}\n{why}"
    lines = [label, *(_check(name, check) for name, check in cell["checks"].items())]
    lines.append(f"{cell['seconds']['total']:.2f} s")
    return "\n".join(lines)


def _check(name: str, check: dict[str, Any]) -> str:
    mark = {True: "✓", False: "✗", None: "·"}[check["ok"]]
    parts = [check["note"]] if check["note"] else []
    if check.get("error") is not None and check["ok"]:
        parts.append(f"at most {check['error']:.2g} off, {check['bar']:.2g} allowed")
    if name == "greedy" and check["ok"]:
        parts.append(f"{check['equal']} of {check['tokens']} tokens")
    return f"{mark} {name}: {'; '.join(parts)}" if parts else f"{mark} {name}"


def _failing(matrix: Matrix) -> str:
    from tools.matrix.report import failures, unreferenced

    items = "".join(f"<li>{_text(line)}</li>" for line in (*failures(matrix), *unreferenced(matrix)))
    return f'<h2>What is not right or was not tested</h2><ul class="failing">{items}</ul>' if items else ""


def _class(status: str) -> str:
    return status.replace(" ", "-")


def _text(text: str) -> str:
    return html.escape(text)
