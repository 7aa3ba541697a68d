"""``python -m tools.pictures``: draw the pictures of the manual from what was really run, so that they cannot go stale.

The ladder's curve is drawn from the numbers of a run that are kept beside it, the matrix from the page on
compatibility, the pipeline from the registry of passes. Every picture stands by itself and follows the reader's light or
dark setting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import click

from tools.shared.cli import command, megabytes

DOCS = Path(__file__).resolve().parent.parent / "docs"
FOLDER = DOCS / "pictures"
LADDER = "ladder.json"
"""The numbers that the curve is drawn from."""

KEPT = ("name", "kind", "bytes", "bits_per_weight", "kl", "on_front")
"""Fields of a rung that the curve needs."""

STYLE = """\
svg{--paper:#fbfbfa;--ink:#1c2126;--soft:#56616b;--rule:#dfe3e7;--box:#eef1f4;--line:#8b98a5;--mixed:#0b66b5;
--uniform:#b85c00;--fixed:#3b444c;--front:#c9dcf2;--right:#2f9e62;--stored:#2b8fa8;--wrong:#c0392b;--model:#dbe9fb;
--proof:#dcf2e4}
@media (prefers-color-scheme:dark){svg{--paper:#14181c;--ink:#e7ebee;--soft:#9fabb6;--rule:#313940;--box:#2a3138;
--line:#6d7a87;--mixed:#62b0ff;--uniform:#f0a04b;--fixed:#c3ccd4;--front:#2b4562;--right:#3fae74;--stored:#46aac4;
--wrong:#ff7a6b;--model:#1f3a5c;--proof:#1f4231}}
.paper{fill:var(--paper)}
text{font:13px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:var(--ink)}
.soft{fill:var(--soft);font-size:12px}.bold{font-weight:700}.mid{text-anchor:middle}.end{text-anchor:end}
.halo{stroke:var(--paper);stroke-width:3px;paint-order:stroke}
.grid{stroke:var(--rule)}.front{fill:none;stroke:var(--front);stroke-width:8;stroke-linecap:round;stroke-linejoin:round}
.run{fill:none;stroke-width:2;stroke-linejoin:round}.run.mixed{stroke:var(--mixed)}
.run.uniform{stroke:var(--uniform);stroke-dasharray:5 4}
.point.mixed{fill:var(--mixed)}.point.fixed,.point.pipeline{fill:var(--fixed)}
.point.uniform{fill:var(--paper);stroke:var(--uniform);stroke-width:2.5}.ring{fill:none;stroke:var(--ink);stroke-width:2}
.box{fill:var(--box);stroke:var(--line)}.box.model{fill:var(--model)}.box.proof{fill:var(--proof)}
.arrow{fill:none;stroke:var(--line);stroke-width:1.6}.head{fill:var(--line)}
.right{fill:var(--right)}.stored{fill:var(--stored)}.wrong{fill:var(--wrong)}.none{fill:var(--box)}.square{stroke-width:4;stroke-linejoin:round}.square.right{stroke:var(--right)}
.square.stored{stroke:var(--stored)}.square.wrong{stroke:var(--wrong)}.square.none{stroke:var(--box)}
"""


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    # A size of its own, small enough for the letters to be read where a telephone shrinks it to 330 pixels.
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
    head += f'viewBox="0 0 {width:g} {height:g}" role="img" '
    head += f'aria-label="{escape(label)}">'
    paper = f'<rect class="paper" width="{width:g}" height="{height:g}" rx="10"/>'
    return "\n".join([head, f"<style>\n{STYLE}</style>", paper, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, classes: str = "") -> str:
    mark = f' class="{classes}"' if classes else ""
    return f'<text{mark} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


# ---- the ladder ----


def kept_numbers(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the curve needs of a ladder's JSON."""
    ready = [rung for rung in data["rungs"] if rung["status"] == "ok"]
    return {
        "model": data["model"]["name"],
        "release": data["release"],
        "tokens": data["text"]["tokens"],
        "chosen": data["recommendation"]["rung"],
        "rungs": [{key: rung[key] for key in KEPT} for rung in ready],
    }


def ladder_picture(data: Mapping[str, Any]) -> str:
    """Size against divergence of every rung, logarithmic both ways; the recommended one is ringed."""
    from tools.ladder.charts import LOWEST, free_side, loss_axis, short_name, size_axis

    left, top, width, height = 62.0, 44.0, 480.0, 380.0
    rungs = sorted(data["rungs"], key=lambda rung: rung["bytes"])
    across = size_axis([float(rung["bytes"]) for rung in rungs], 1e6, " MB")
    up = loss_axis(rung["kl"] for rung in rungs)
    spots = {
        rung["name"]: (left + width * across.share(rung["bytes"]), top + height * (1 - up.share(rung["kl"])))
        for rung in rungs
    }
    parts = [_text(left, 24, f"Every rung of {data['model']}: KL divergence, nats a token", "bold")]
    for value, text in up.ticks:
        y = top + height * (1 - up.share(value))
        parts += [f'<path class="grid" d="M{left:g} {y:.1f}h{width:g}"/>', _text(left - 8, y + 4, text, "soft end")]
    if any(rung["kl"] < LOWEST for rung in rungs):
        parts.append(_text(left - 8, top + height + 4, "<1e-5", "soft end"))
    for value, text in across.ticks:
        x = left + width * across.share(value)
        parts += [
            f'<path class="grid" d="M{x:.1f} {top:g}v{height:g}"/>',
            _text(x, top + height + 20, text, "soft mid"),
        ]
    parts.append(f'<path class="grid" d="M{left:g} {top + height:g}h{width:g}"/>')
    parts += _lines(rungs, spots)
    taken: list[tuple[float, ...]] = [
        (x - left - 11, y - top - 11, x - left + 11, y - top + 11) for x, y in spots.values()
    ]
    for rung in sorted(rungs, key=lambda item: (item["name"] != data["chosen"], not item["on_front"], item["bytes"])):
        parts += _point(rung, spots[rung["name"]], rung["name"] == data["chosen"])
        x, y = spots[rung["name"]]
        bold = rung["name"] == data["chosen"]
        side = free_side(short_name(rung), (x - left, y - top), (width, height), taken, bold=bold)
        if side is not None:
            dx, dy, anchor = {"r": (14, 4, ""), "l": (-14, 4, "end"), "t": (0, -14, "mid"), "b": (0, 24, "mid")}[side]
            parts.append(_text(x + dx + (4 if bold and side == "r" else 0), y + dy, short_name(rung),
                               f"halo {'bold ' if bold else ''}{anchor}".strip()))  # fmt: skip
    parts += _legend(left, top + height + 48, rungs)
    note = f"size of the model directory; measured on MNN {data['release']}, {data['tokens']:,} tokens"
    parts.append(_text(left + width, top + height + 40, note, "soft end"))
    best = next((rung for rung in rungs if rung["name"] == data["chosen"]), None)
    words = f"; recommended: {best['name']}, {megabytes(best['bytes'])}" if best is not None else ""
    return _svg(left + width + 24, top + height + 104, f"Curve of size against KL divergence{words}", parts)


def _lines(rungs: Sequence[Mapping[str, Any]], spots: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    series = [("front", [rung for rung in rungs if rung["on_front"]])]
    series += [(f"run {kind}", [rung for rung in rungs if rung["kind"] == kind]) for kind in ("uniform", "mixed")]
    for classes, members in series:
        if len(members) > 1:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (spots[rung["name"]] for rung in members))
            yield f'<polyline class="{classes}" points="{points}"/>'


def _point(rung: Mapping[str, Any], at: tuple[float, float], chosen: bool) -> Iterator[str]:
    x, y = at
    if rung["kind"] in ("mixed", "uniform"):
        yield f'<circle class="point {rung["kind"]}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    else:
        yield f'<path class="point fixed" d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"/>'
    if chosen:
        yield f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="11"/>'


def _legend(x: float, y: float, rungs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    words = {"mixed": "mixed precision", "uniform": "one width everywhere", "fixed": "named policies"}
    kinds = [kind for kind in words if any(rung["kind"] == kind for rung in rungs)]
    for number, kind in enumerate((*kinds, "front")):
        at_x, at_y = x + 220 * (number % 2), y + 14 + 20 * (number // 2)
        if kind == "front":
            yield f'<path class="front" d="M{at_x + 2:.1f} {at_y:.1f}h14"/>'
        else:
            yield from _point({"kind": kind}, (at_x + 6, at_y), False)
        yield _text(at_x + 24, at_y + 4, words.get(kind, "best for their size"), "soft")


# ---- the pipeline ----

LIFTED = "lift-decoder"
"""The pipeline of the steps that graphs of others alone go through, which is one step in the picture."""
STEPS = {
    LIFTED: "graphs of others alone",
    "raise-weights": "codes that came, kept",
    "infer-types": "shapes and types",
    "discover-inputs": "what the runtime feeds",
    "absorb-latent": "a smaller history",
    "assign-precision": "width of each weight",
    "insert-qdq": "codes and scales",
    "legalize-mnn": "operators of MNN",
    "sink-layouts": "packed layouts",
    "fuse-mnn": "fused forms",
    "cse": "equal parts once",
    "dce": "unused parts out",
}
"""What each pass of the usual pipeline is about, in a few words."""


def pipeline_picture() -> str:
    """From a checkpoint to a verified directory, with the passes of the usual pipeline."""
    from passes.framework.load import load
    from passes.framework.pipeline import Repeat

    names = []
    for item in load("default").items:
        if isinstance(item, Repeat):
            names += [LIFTED] * (LIFTED not in names) if item.foreign else [one.name for one in item.body.passes()]
        else:
            names.append(item.name)
    wide, high, gap, per_row, left = 150.0, 48.0, 10.0, 3, 28.0
    all_of_it = per_row * wide + (per_row - 1) * gap
    half = (all_of_it - gap) / 2
    parts = [_text(left, 26, "lading compile", "bold")]
    sources = ("checkpoint", "config.json, safetensors"), ("ONNX graph", "or what a plugin reads")
    y = 40.0
    for number, (title, note) in enumerate(sources):
        x = left + number * (half + gap)
        parts += _box(x, y, half, high, title, note, "model")
        parts += _arrow(x + half / 2, y + high, y + high + 24)
    y += high + 24
    rows = -(-len(names) // per_row)
    around = rows * (high + gap) + 40
    parts.append(f'<rect class="box" x="12" y="{y:g}" width="{all_of_it + 32:g}" height="{around:g}" rx="12"/>')
    parts.append(_text(left, y + 22, "graph of operators, changed by passes", "soft"))
    for number, name in enumerate(names):
        x = left + (number % per_row) * (wide + gap)
        parts += _box(x, y + 34 + (number // per_row) * (high + gap), wide, high, name, STEPS.get(name, ""), "")
    middle = left + all_of_it / 2
    y += around
    steps = (
        ("model directory", "with its contract", "model"),
        ("read back, then run on MNN in a child process", "against its stored weights and the float model", "proof"),
    )
    for title, note, kind in steps:
        parts += _arrow(middle, y, y + 24)
        parts += _box(left, y + 24, all_of_it, high, title, note, kind)
        y += 24 + high
    parts.append(_text(middle, y + 22, "below the bar nothing is written", "soft mid"))
    label = (
        f"Checkpoint or ONNX graph, then the passes {', '.join(names)}, then a model directory that is run and compared"
    )
    return _svg(all_of_it + 2 * left, y + 38, label, parts)


def _box(x: float, y: float, width: float, height: float, title: str, note: str, kind: str) -> Iterator[str]:
    mark = f"box {kind}".strip()
    yield f'<rect class="{mark}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>'
    yield _text(x + width / 2, y + height / 2 - 3, title, "mid bold")
    yield _text(x + width / 2, y + height / 2 + 14, note, "mid soft")


def _arrow(x: float, y: float, to_y: float) -> Iterator[str]:
    """Downwards."""
    yield f'<path class="arrow" d="M{x:g} {y:g}V{to_y - 2:g}"/>'
    yield f'<path class="head" d="M{x:g} {to_y:g}l-4 -8h8z"/>'


# ---- the matrix ----


def matrix_rows(page: str) -> tuple[list[str], dict[str, dict[str, list[str]]]]:
    """Releases, and of each model and precision the cells of the page on compatibility."""
    found = re.search(r"^\| model \| precision \|(.*)\|$\n\|[-|]+\|$\n((?:\|.*\|$\n?)+)", page, re.MULTILINE)
    if found is None:
        raise ValueError("the page on compatibility has no table of results")
    releases = [cell.strip() for cell in found[1].split("|")]
    models: dict[str, dict[str, list[str]]] = {}
    for line in found[2].splitlines():
        family, precision, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        models.setdefault(family, {})[precision.strip("`")] = cells
    return releases, models


def matrix_picture(page: str) -> str:
    """A square for each model, release and precision, in the colour of its outcome."""
    releases, models = matrix_rows(page)
    precisions = list(dict.fromkeys(name for rows in models.values() for name in rows))
    step, row_step, left, top = 15.0, 17.0, 24 + 7.2 * max(map(len, models)), 66.0
    block = step * len(precisions) + 12
    parts = [_text(24, 26, "Run and compared on every release", "bold")]
    squares: dict[str, list[str]] = {}
    for number, release in enumerate(releases):
        x = left + number * block
        parts.append(_text(x + (block - 12) / 2, 56, release, "mid soft"))
        for place, precision in enumerate(precisions):
            for row, cells in enumerate(models.values()):
                text = cells[precision][number] if precision in cells else ""
                mark = {"✓": "right", "≈": "stored", "": "none"}.get(text[:1], "wrong")
                squares.setdefault(mark, []).append(_square(x + place * step, top + row * row_step))
    parts += [f'<path class="square {mark}" d="{"".join(items)}"/>' for mark, items in squares.items()]
    for row, family in enumerate(models):
        parts.append(_text(left - 10, top + row * row_step + 12, family, "end"))
    below = top + len(models) * row_step + 24
    parts.append(_text(24, below, f"squares of a release, from the left: {', '.join(precisions)}", "soft"))
    states = {"right": "right", "stored": "as stored", "wrong": "wrong", "none": "not run"}
    x = 24.0
    for mark in filter(squares.__contains__, states):
        parts.append(f'<path class="square {mark}" d="{_square(x, below + 12)}"/>')
        parts.append(_text(x + 26, below + 26, states[mark], "soft"))
        x += 46 + 7 * len(states[mark])
    label = f"{len(squares.get('right', ()))} cells of models, precisions and releases are right"
    return _svg(left + len(releases) * block + 10, below + 46, label, parts)


def _square(x: float, y: float) -> str:
    return f"M{x + 2:g} {y + 2:g}h10v10h-10z"


# ---- the command ----


def _ladder_of(docs: Path) -> str:
    return ladder_picture(json.loads((docs / "pictures" / LADDER).read_text(encoding="utf-8")))


def _matrix_of(docs: Path) -> str:
    return matrix_picture((docs / "compatibility.md").read_text(encoding="utf-8"))


PICTURES: dict[str, Callable[[Path], str]] = {
    "ladder.svg": _ladder_of,
    "matrix.svg": _matrix_of,
    "pipeline.svg": lambda docs: pipeline_picture(),
}
"""Pictures by file name, each a function of the folder of the manual."""


@command("pictures")
@click.option("--ladder", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="ladder.json of a run to take the numbers of the curve from; default those that are kept.")  # fmt: skip
def main(ladder: Path | None) -> int:
    """Draw the pictures of the manual."""
    FOLDER.mkdir(exist_ok=True)
    if ladder is not None:
        numbers = kept_numbers(json.loads(ladder.read_text(encoding="utf-8")))
        (FOLDER / LADDER).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    for name, picture in PICTURES.items():
        (FOLDER / name).write_text(picture(DOCS), encoding="utf-8")
        click.echo(str(FOLDER / name))
    return 0


if __name__ == "__main__":
    main()
