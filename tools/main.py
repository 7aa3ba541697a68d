"""The ``lading`` command: every tool as a subcommand, imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

from ir.base.diag import LadingError, known_codes, suggest
from tools.shared.cli import command

TOOLS = {
    "cache": "tools.cache",
    "compile": "tools.compile.command",
    "diff": "tools.diff.command",
    "doctor": "tools.doctor.command",
    "fuzz": "tools.fuzz.command",
    "inspect": "tools.inspect.command",
    "ladder": "tools.ladder.command",
    "matrix": "tools.matrix.command",
    "opt": "tools.opt",
    "reduce": "tools.reduce.command",
    "releases": "tools.releases",
    "repair": "tools.repair.command",
    "run": "tools.run.command",
}
"""Subcommand to module; the module's `main` is the command."""


class Tools(click.Group):
    """Loads a subcommand's module only when the subcommand is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands."""
        return sorted([*TOOLS, "explain"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of a name, or None."""
        if cmd_name == "explain":
            return explain
        return import_module(TOOLS[cmd_name]).main if cmd_name in TOOLS else None


@click.group(cls=Tools, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lading")
def main() -> None:
    """Lading compiles language models for MNN and proves that they run."""


@command("explain")
@click.argument("code")
def explain(code: str) -> int:
    """Explain a diagnostic code such as F503."""
    codes = known_codes()
    if code.upper() not in codes:
        raise LadingError("U900", f"unknown code {code!r}", hint=suggest(code.upper(), list(codes)))
    click.echo(f"{code.upper()}: {codes[code.upper()]}")
    return 0


if __name__ == "__main__":
    main()
