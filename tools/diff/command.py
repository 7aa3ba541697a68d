"""``python -m tools.diff``: what differs between two compilations, or between two graphs, node by node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from ir.base.diag import LadingError
from tools.shared.cli import JSON_OPTION, Screen, command

if TYPE_CHECKING:
    from tools.diff.contracts import Comparison
    from tools.shared.compiled import Compiled

EXIT_DIFFERENT = 1
MARKS = {"added": "+", "removed": "-", "changed": "~"}
COLOURS = {"added": "green", "removed": "red", "changed": "yellow"}


@command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--from", "frontend", metavar="NAME", help="Frontend that reads both; default by suffix.")
@click.option("--names/--no-names", default=True, show_default=True, help="Count other names as differences.")
@click.option("--types/--no-types", default=True, show_default=True, help="Count other types as differences.")
@click.option("--locs", is_flag=True, help="Count other source locations as differences.")
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="Changes to print.")
@click.option("--graph", "whole", is_flag=True, help="Compare compiled models by their graphs, not by their contracts.")
@JSON_OPTION
def main(first, second, frontend, names, types, locs, limit, whole, as_json) -> int:
    """Compare A with B: two compilations by their contracts, or two graphs by structure.

    Compilations are model directories or contract.json files. Told are weights that are stored otherwise, measured
    numbers, sizes, inputs, settings and tokenizers, and files that were changed after they were written. Graphs may be
    of any format that is read, not necessarily the same; nodes correspond by what they compute, by their names and by
    their neighbours, and their order does not count. Exit code 0 when nothing differs, 1 when something does.
    """
    screen = Screen(as_json, False)
    if frontend is None:
        from tools.shared.compiled import compiled_at

        sides = [compiled_at(first), compiled_at(second)]
        if not whole and all(side is not None and side.contract is not None for side in sides):
            return _contracts(screen, sides, limit)
        first, second = (_graph_of(side, path) for side, path in zip(sides, (first, second), strict=True))
    from tools.diff.match import Differ
    from tools.shared.formats import Formats

    formats = Formats()
    result = Differ(names=names, types=types, locs=locs).run(
        formats.read(first, frontend), formats.read(second, frontend)
    )
    if as_json:
        screen.data(result.as_dict(), "")
    else:
        for line in lines(result, first, second, limit):
            click.echo(line)
    return EXIT_DIFFERENT if result.changes else 0


def _graph_of(side: Compiled | None, path: str) -> str:
    """Where the graph of one side is read from."""
    if side is None:
        return path
    if side.graph is None:
        message = "a contract that lies apart from its model can be compared with another contract only"
        raise LadingError("U993", message, path, "give two model directories, or two contracts")
    return side.graph


def _contracts(screen: Screen, sides: Sequence[Compiled], limit: int) -> int:
    from tools.diff.contracts import compare

    one, two = sides
    found = compare(one.contract, two.contract, (one.folder, two.folder))
    if screen.as_json:
        screen.data(found.as_dict(), "")
    elif found.same:
        click.echo("the same")
    else:
        click.echo(click.style(f"--- {one.source}", fg="red"))
        click.echo(click.style(f"+++ {two.source}", fg="green"))
        for line in contract_lines(found, limit):
            click.echo(line)
    return 0 if found.same else EXIT_DIFFERENT


def contract_lines(found: Comparison, limit: int = 200) -> Iterator[str]:
    """The comparison of two compilations as text."""
    from tools.diff.contracts import summary_of_weights

    if found.weights:
        yield click.style("weights", bold=True)
    for change in found.weights:
        yield f"  {_arrow(change.before, change.after)}  ({summary_of_weights(change)})"
        yield from (f"    {pattern}" for pattern in change.patterns[:limit])
        if len(change.patterns) > limit:
            yield f"    ... {len(change.patterns) - limit} more"
    for section in ("numbers", "sizes", "inputs", "settings", "generation", "tokenizer", "made", "warnings", "files"):
        changes = getattr(found, section)
        if changes:
            yield click.style(section, bold=True)
        for change in changes[:limit]:
            yield f"  {change.what}: {_arrow(change.before, change.after)}"
        if len(changes) > limit:
            yield f"  ... {len(changes) - limit} more"


def _arrow(before: str, after: str) -> str:
    return f"{click.style(before, fg='red')} -> {click.style(after, fg='green')}"


def lines(result, first: str, second: str, limit: int = 200):
    """The comparison as text, with colours that click removes where no terminal is."""
    if not result.changes:
        yield f"the same: {_count(result.nodes[0], 'node')}{_moved(result)}"
        return
    yield click.style(f"--- {first}", fg="red")
    yield click.style(f"+++ {second}", fg="green")
    place = None
    for change in result.changes[:limit]:
        if change.place != place:
            place = change.place
            yield click.style(f"in {place}", bold=True) if place else click.style("graph", bold=True)
        mark = click.style(MARKS[change.kind], fg=COLOURS[change.kind], bold=True)
        yield f"{mark} {change.what} {change.text}"
        for field, before, after in change.details:
            yield f"    {field}: {click.style(before, fg='red')} -> {click.style(after, fg='green')}"
    if len(result.changes) > limit:
        yield f"... {len(result.changes) - limit} more changes"
    yield _summary(result)


def _summary(result) -> str:
    parts = []
    for what, counts in result.counts().items():
        parts += [f"{_count(number, what)} {kind}" for kind, number in counts.items()]
    return ", ".join(parts) + _moved(result)


def _moved(result) -> str:
    return f"; {_count(result.moved, 'node')} moved, which is no difference" if result.moved else ""


def _count(number: int, what: str) -> str:
    if what == "metadata":
        what = "metadata entry"
    plural = f"{what[:-1]}ies" if what.endswith("ry") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
