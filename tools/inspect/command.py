"""``python -m tools.inspect``: what a graph or a compiled model is, in a few lines or as a picture."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ir.base.diag import LadingError
from tools.shared.cli import EXIT_FAILED, JSON_OPTION, Screen, command

if TYPE_CHECKING:
    from ir.graph.graph import Graph
    from tools.shared.compiled import Compiled
    from tools.shared.formats import Formats

Rows = Sequence[tuple[str, str]]


def _size(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        name, mark, number = text.rpartition("=")
        if not mark or not number.strip().isdigit():
            raise click.BadParameter(f"{text!r} is not NAME=SIZE")
        found[name.strip()] = int(number)
    return found


@command("inspect")
@click.argument("source", metavar="INPUT")
@click.option("--size", "sizes", multiple=True, callback=_size, metavar="NAME=SIZE",
              help="Size of a dimension for the memory estimate; default 128 where that is legal.")  # fmt: skip
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw the graph as an SVG file.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE",
              help="Draw it as a page to move about in, search, and ask for details.")  # fmt: skip
@click.option("--around", metavar="VALUE", help="Draw only what is near to a value.")
@click.option("--steps", type=click.IntRange(1), default=3, show_default=True, help="How near, in nodes.")
@click.option("--graph", "whole", is_flag=True, help="Of a compiled model also describe the graph.")
@click.option("--from", "frontend", metavar="NAME", help="Frontend that reads INPUT; default by suffix.")
@JSON_OPTION
def main(source, sizes, svg, html, around, steps, whole, frontend, as_json) -> int:
    """Describe INPUT: a graph of any format, a compiled model directory, or a contract.json.

    Of a graph: interface, repeated blocks, parameters and how they are stored, operators, memory; of a language model
    in ONNX also what each input holds and what its parts compute, with the evidence. Of a compiled model:
    target, inputs, storage, files, what was verified, and whether the files are as they were written; of a directory
    without a contract the files and the graph. Pictures show repeated blocks once, and weights inside the nodes that
    read them.
    """
    from tools.shared.compiled import compiled_at

    compiled = compiled_at(source) if frontend is None else None
    screen = Screen(as_json, False)
    drawn = Drawing(svg, html, around, steps)
    if compiled is None:
        from ir.facts.free_tensors import free_notes
        from tools.shared.formats import Formats

        formats = Formats()
        graph = formats.read(source, frontend)
        for item in free_notes(graph):
            click.echo(str(item), err=True)
        raised, evidence = _evidence(graph, formats)
        found, rows = _described(graph, sizes, drawn)
        screen.data({**asdict(found), "raised": raised}, _text([*rows, *evidence]))
        return 0
    return _compiled(screen, compiled, sizes, drawn, whole)


def _evidence(graph: Graph, formats: Formats) -> tuple[dict[str, Any] | None, Rows]:
    """What an exported language model is found to be, as data and as lines."""
    from ir.base.diag import Diagnostic
    from tools.shared.evidence import evidence_of, rows

    found = evidence_of(graph, formats)
    if found is None:
        return None, ()
    if isinstance(found, Diagnostic):
        return {"refused": found.as_dict()}, [("refused", f"{found.code}: {found.message}, {found.where}")]
    return found.to_data(), list(rows(found))


@dataclass(frozen=True)
class Drawing:
    """Where pictures go, and what part of the graph they show."""

    svg: Path | None
    html: Path | None
    around: str | None
    steps: int

    @property
    def wanted(self) -> bool:
        """There is a picture to draw."""
        return self.svg is not None or self.html is not None


def _described(graph: Graph, sizes: dict[str, int], drawing: Drawing, known: Rows = (), stored=None):
    """The summary of a graph and its lines; pictures, with what is `known` beside the graph, are written."""
    from tools.inspect.summary import lines, summarize

    found = summarize(graph, sizes)
    rows = lines(found)
    if drawing.wanted:
        from tools.inspect import picture
        from tools.inspect.scene import make_scene

        scene = make_scene(graph, around=drawing.around, steps=drawing.steps, stored=stored)
        if drawing.svg is not None:
            picture.write(picture.svg(scene), drawing.svg)
        if drawing.html is not None:
            picture.write(picture.html(scene, [*known, *rows]), drawing.html)
    return found, rows


def _compiled(screen: Screen, compiled: Compiled, sizes: dict[str, int], drawing: Drawing, whole: bool) -> int:
    from tools.inspect import essentials
    from tools.shared.formats import Formats

    rows = essentials.rows(compiled)
    found = problem = None
    wanted = whole or drawing.wanted or bool(sizes)
    if wanted and compiled.graph is None:
        raise LadingError("U910", "the contract lies apart from its model, so there is no graph", compiled.source)
    if wanted or compiled.contract is None:
        stored = essentials.stored_notes(compiled.contract) if compiled.contract is not None else None
        try:
            graph = Formats().read(compiled.graph)
            found, lines = _described(graph, sizes, drawing, rows, stored)
            rows = [*rows, *lines]
        except LadingError as error:
            if wanted:
                raise
            problem = error.diagnostics[0]
            rows = [*rows, ("graph", f"cannot be read: {problem.code}, {problem.message}")]
    data = {
        **essentials.data(compiled),
        "graph": None if found is None else asdict(found),
        "unread": None if problem is None else problem.as_dict(),
    }
    screen.data(data, _text(rows))
    return EXIT_FAILED if any(item["severity"] == "error" for item in data["problems"]) else 0


def _text(rows: Rows) -> str:
    """Lines of name and text, folded between words where a terminal is narrower."""
    width = max(len(name) for name, _ in rows)
    room = shutil.get_terminal_size().columns - width - 2 if sys.stdout.isatty() else 0
    lines = []
    last = ""
    for name, text in rows:
        parts = textwrap.wrap(text, max(room, 20), break_on_hyphens=False) if room > 0 else [text]
        for part in parts or [""]:
            lines.append(f"{name if name != last else '':<{width}}  {part}")
            last = name
    return "\n".join(lines)
