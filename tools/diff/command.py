"""``python -m tools.diff``: what differs between two graphs, node by node."""

from __future__ import annotations

import click

from tools.shared.cli import JSON_OPTION, Screen, command

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
@JSON_OPTION
def main(first, second, frontend, names, types, locs, limit, as_json) -> int:
    """Compare graph A with graph B by structure.

    Both may be of any format that is read, not necessarily the same. Nodes correspond by what they compute, by their
    names and by their neighbours; their order does not count. Exit code 0 when the graphs are the same, 1 when not.
    """
    from tools.diff.match import Differ
    from tools.shared.formats import Formats

    formats = Formats()
    result = Differ(names=names, types=types, locs=locs).run(
        formats.read(first, frontend), formats.read(second, frontend)
    )
    screen = Screen(as_json, False)
    if as_json:
        screen.data(result.as_dict(), "")
    else:
        for line in lines(result, first, second, limit):
            click.echo(line)
    return EXIT_DIFFERENT if result.changes else 0


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
