"""``python -m tools.inspect``: what a graph is, in a few lines or as a picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from tools.shared.cli import JSON_OPTION, Screen, command


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
@click.option("--from", "frontend", metavar="NAME", help="Frontend that reads INPUT; default by suffix.")
@click.option("--free-inputs", is_flag=True, help="Let tensors of an ONNX model that nothing produces be inputs.")
@JSON_OPTION
def main(source, sizes, svg, html, around, steps, frontend, free_inputs, as_json) -> int:
    """Describe the graph INPUT: interface, repeated blocks, parameters and how they are stored, operators, memory.

    Pictures show repeated blocks once, and weights inside the nodes that read them.
    """
    from tools.inspect.summary import lines, summarize
    from tools.shared.formats import Formats

    graph = Formats().read(source, frontend, free_inputs=free_inputs)
    found = summarize(graph, sizes)
    rows = lines(found)
    if svg is not None or html is not None:
        from tools.inspect import picture
        from tools.inspect.scene import make_scene

        scene = make_scene(graph, around=around, steps=steps)
        if svg is not None:
            picture.write(picture.svg(scene), svg)
        if html is not None:
            picture.write(picture.html(scene, rows), html)
    width = max(len(name) for name, _ in rows)
    Screen(as_json, False).data(asdict(found), "\n".join(_rows(rows, width)))
    return 0


def _rows(rows, width: int):
    last = ""
    for name, text in rows:
        yield f"{name if name != last else '':<{width}}  {text}"
        last = name
