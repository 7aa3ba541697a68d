"""The ``lading`` command: every tool as a subcommand, imported when it is called."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from ir.base.diag import suggest

COMPILE = "Compile"
LOOK = "Look at models and use them"
MEND = "Mend models made by others"
PROVE = "Prove"
DEVELOP = "Work on the compiler"


@dataclass(frozen=True)
class Tool:
    """A subcommand.

    Attributes:
        module: where it is; its `main` is the command.
        section: heading of ``--help`` under which it stands.
        summary: its line there, at most 60 characters.
    """

    module: str
    section: str
    summary: str


TOOLS: dict[str, Tool] = {
    "compile": Tool("tools.compile.command", COMPILE, "Compile a checkpoint or graph into a folder that runs."),
    "ladder": Tool("tools.ladder.command", COMPILE, "Compile in several precisions and recommend one."),
    "diff": Tool("tools.diff.command", LOOK, "Say what differs between two models."),
    "run": Tool("tools.run.command", LOOK, "Chat with a compiled model on this machine."),
    "inspect": Tool("tools.inspect.command", LOOK, "Say what is in a model, or draw it."),
    "doctor": Tool("tools.doctor.command", MEND, "Say on which releases a model runs, and why not."),
    "explain": Tool("tools.explain", MEND, "Explain an error code or a crash message of a runtime."),
    "repair": Tool("tools.repair.command", MEND, "Write a model again so that other releases run it."),
    "matrix": Tool("tools.matrix.command", PROVE, "Run families and precisions on every release."),
    "conformance": Tool("tools.conformance.command", PROVE, "Judge the compiler by ONNX's own test cases."),
    "releases": Tool("tools.releases", PROVE, "Install the releases that models are run on."),
    "cache": Tool("tools.cache", DEVELOP, "Show or clear what is kept between runs."),
    "fuzz": Tool("tools.fuzz.command", DEVELOP, "Search for inputs that break the compiler."),
    "opt": Tool("tools.opt", DEVELOP, "Run passes on a graph and write the result."),
    "reduce": Tool("tools.reduce.command", DEVELOP, "Shrink a graph that makes a command fail."),
}
"""Subcommands by name; in each section in the order of this table."""

MEANT = {
    "build": "compile",
    "check": "doctor",
    "compare": "diff",
    "convert": "compile",
    "error": "explain",
    "export": "compile",
    "fix": "repair",
    "optimize": "opt",
    "chat": "run",
    "quantize": "compile",
    "show": "inspect",
    "view": "inspect",
}
"""Words for which other programs have a command, and the one here that does it."""


class Tools(click.Group):
    """Loads a subcommand's module only when the subcommand is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands."""
        return sorted(TOOLS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of a name, or None."""
        return import_module(TOOLS[cmd_name].module).main if cmd_name in TOOLS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand that the arguments begin with; click.UsageError with the nearest name when there is none."""
        name = args[0]
        if name not in TOOLS and not name.startswith("-") and not ctx.resilient_parsing:
            meant = MEANT.get(name.lower())
            near = f"did you mean {meant!r}?" if meant else suggest(name.lower(), list(TOOLS))
            ctx.fail(f"there is no command {name!r}" + (f"; {near}" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands by section, without importing them."""
        for section in dict.fromkeys(tool.section for tool in TOOLS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, tool.summary) for name, tool in TOOLS.items() if tool.section == section])


def _print_version(ctx: click.Context, option: click.Parameter, wanted: Any) -> None:
    if wanted and not ctx.resilient_parsing:
        from backends.version import compiler_version

        click.echo(f"lading {compiler_version()}")
        ctx.exit()


@click.group(
    cls=Tools,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="'lading COMMAND --help' tells more of each.",
)
@click.option("-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Show the version and exit.")  # fmt: skip
def main() -> None:
    """Lading compiles language models for MNN and proves that they run."""


if __name__ == "__main__":
    main()
