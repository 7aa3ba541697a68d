"""``python -m tools.docs``: write the pages of the manual that follow from the code, so that they cannot go stale."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.shared.cli import EXIT_FAILED, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_UNPROVEN, EXIT_USAGE, command

if TYPE_CHECKING:
    from passes.framework.registry import PassInfo

FOLDER = Path(__file__).resolve().parent.parent / "docs"
NOTE = "<!-- Written by `python -m tools.docs`; do not edit. -->"

_COMMANDS = f"""\
Installation makes the command `lading`; `python -m lading` is the same. In a source tree that is not installed,
`python -m tools.compile` is `lading compile`, and so on. `lading --help` lists the commands by what they are for,
`--help` or `-h` after a command its options; `lading -V` prints the version. A mistyped command or option is answered
with the nearest one.

Results go to standard output, progress and errors to standard error. Progress is drawn when standard error is a terminal;
elsewhere a plain line comes every ten seconds, later every minute, and none with `--quiet` or `--json`.

| exit code | meaning |
|---|---|
| 0 | done |
| {EXIT_FAILED} | the input, the machine or the result was not good enough; a [coded message](errors.md) says why |
| {EXIT_USAGE} | the command line is wrong |
| {EXIT_FAULT} | the program itself is at fault (U980, and a report file), or a pass raised something in `opt` |
| {EXIT_UNPROVEN} | written, and not compared with the original, which could not be run |
| {EXIT_INTERRUPTED} | stopped from the keyboard |
| 129, 143 | stopped by SIGHUP or SIGTERM |

Whatever stops a command, a folder or file that it writes is there as a whole or as it was before: `--force` exchanges the
old folder and the new one in one step, once the new one is on the disk. Only what the old folder's contract lists is
removed; a folder that holds anything else is not replaced (B633). What a killed command left beside it, the next one of
the same output removes. A command that is stopped, or cannot print its result, says what is there.

## Completion

Commands, options and their values are completed in bash, zsh and fish, by one line in the file that the shell reads when
it starts:

| shell | file | line |
|---|---|---|
| bash | `~/.bashrc` | `eval "$(_LADING_COMPLETE=bash_source lading)"` |
| zsh | `~/.zshrc` | `eval "$(_LADING_COMPLETE=zsh_source lading)"` |
| fish | `~/.config/fish/completions/lading.fish` | `_LADING_COMPLETE=fish_source lading \\| source` |

## What only one command needs

| command | needs | install |
|---|---|---|
| `lading matrix` | transformers, the reference for chats and token ids | `pip install 'lading[matrix]'` |

Without it the command ends with [U997](errors.md#u997), which says so."""

_PASSES = """\
A pass is named in a [pipeline](#named-pipelines) with its options in braces:
`default{bits=8}`, `assign-precision{keep=[re:o_proj] plan="q.toml"}`. `lading compile --list-passes` prints this page
with the passes of installed plugins, `--print-pipeline` a pipeline in full. Invariants are explained in
[concepts](concepts.md#passes-and-pipelines), the way to a pass of your own in [writing a pass](writing-a-pass.md)."""

_PIPELINES = """\
A name stands for its text, also inside other pipelines. Options written after a name go to the one pass of it that has
such an option."""

_ERRORS = """\
Everything that can go wrong with an input, a machine or a result has a code. `lading explain CODE` prints what is on this
page: cause, example and remedy. In examples `...` stands for what differs from case to case; the rest is what the program
printed in its tests. A message names the place and, where there is more than one thing to do, what to do:"""


_SYMPTOMS = """\
`lading explain` also takes what a runtime printed or did before it crashed, as text, as a log file, or from standard
input:

```sh
lading explain 'tensor [ logits_index ] is input but not found'
lading explain '!!!!!!!!' --model build/model
```

It answers with the causes, and with the commands that mend them. `MODEL` is the folder of the compiled model,
`CHECKPOINT` what it was made from."""


def commands_page() -> str:
    """docs/commands.md: every command with its arguments and options."""
    from tools.main import main

    group = click.Context(main, info_name="lading")
    parts = ["# Commands", NOTE, "[中文](zh/commands.md)", _COMMANDS]
    for name in main.list_commands(group):
        one = main.get_command(group, name)
        parts += _command(one, click.Context(one, parent=group, info_name=name, **one.context_settings))
    return "\n\n".join(parts) + "\n"


def _command(one: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## lading {context.info_name}"
    yield "```text\n" + " ".join([context.command_path, *one.collect_usage_pieces(context)]) + "\n```"
    yield "\n\n".join(" ".join(part.split()) for part in (one.help or "").split("\n\n"))
    options = [item for item in one.params if isinstance(item, click.Option)]
    if options:
        yield _table(("option", "meaning", "default"), [_option(item, context) for item in options])


def _option(item: click.Option, context: click.Context) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in item.opts)
    if not item.is_flag:
        names += f" {_cell(_value(item))}"
    default = item.get_default(context, call=False) if item.show_default else None
    return names, _cell(item.help or ""), "" if default is None else f"`{default}`"


def _value(item: click.Option) -> str:
    if isinstance(item.type, click.Choice):
        return "|".join(map(str, item.type.choices))
    return item.metavar or item.type.name.partition(" ")[0].upper()


def passes_page() -> str:
    """docs/passes.md: every built-in pass with its options, and the named pipelines."""
    from passes.framework.registry import built_in_registry

    registry = built_in_registry()
    parts = ["# Passes", NOTE, _PASSES, "## Named pipelines", _PIPELINES]
    parts.append(
        _table(("name", "text"), [(f"`{name}`", f"`{text}`") for name, text in sorted(registry.pipelines.items())])
    )
    for info in registry.list_passes():
        parts += _pass(info)
    return "\n\n".join(parts) + "\n"


def _pass(info: PassInfo) -> Iterator[str]:
    yield f"## {info.name}"
    yield info.doc.replace("``", "`")
    if info.options:
        yield _table(
            ("option", "values", "default", "meaning"),
            [
                (f"`{item.key}`", _cell(item.type_text), _default(item), _cell(item.help.replace("``", "`")))
                for item in info.options
            ],
        )
    facts = [("requires", info.requires), ("establishes", info.establishes), ("breaks", info.breaks)]
    lines = [f"- {word} {', '.join(f'`{name}`' for name in names)}" for word, names in facts if names]
    if info.lossy:
        lines.append("- lossy: changes numbers by more than rounding")
    if lines:
        yield "\n".join(lines)


def _default(item) -> str:
    return "required" if item.required else f"`{item.write(item.default).partition('=')[2] or 'true'}`"


def errors_page() -> str:
    """docs/errors.md: what runtimes print, then every code with its help text and long explanation, by area."""
    from ir.base.codes import AREAS
    from ir.base.diag import Diagnostic, known_codes

    sample = Diagnostic("F533", "unknown model family 'qwen22'", "config.json", "did you mean 'qwen2'?")
    parts = ["# Error codes", NOTE, _ERRORS, f"```text\n{sample}\n```", "## What runtimes print", _SYMPTOMS]
    parts.append(_table(("what is seen", "what it means", "what to do", "codes"), [*_symptoms()]))
    for letter, area in AREAS.items():
        codes = sorted(code for code in known_codes() if code[0] == letter)
        rows = [(f"[{code}](#{code.lower()})", _cell(_code(known_codes()[code]))) for code in codes]
        parts += [f"## {letter}: {area}", _table(("code", "meaning"), rows)]
        parts += [part for code in codes for part in _explained(code)]
    return "\n\n".join(parts) + "\n"


def _code(text: str) -> str:
    return text.replace("``", "`")


def _explained(code: str) -> Iterator[str]:
    from ir.base.diag import known_codes
    from ir.base.explanations import explanation

    found = explanation(code)
    yield f"### {code}"
    yield _code(known_codes()[code]).replace("<", "\\<")
    if found is not None:
        yield from (found.cause, f"```text\n{found.example}\n```", found.remedy)


def _symptoms() -> Iterator[tuple[str, ...]]:
    from tools.explain import symptoms

    for item in symptoms():
        codes = ", ".join(f"[{code}](#{code.lower()})" for code in item.codes)
        yield item.name, _cell(_code(re.sub(r"\{\w+\}", "...", item.happens))), f"`{item.do[0][0]}`", codes


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines).replace("|  |", "| |")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "errors.md": errors_page,
    "passes.md": passes_page,
}
"""Generated pages by file name."""


@command("docs")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=FOLDER,
    help="Where the manual is; default the docs folder of this source tree.",
)
def main(folder: Path) -> int:
    """Write the generated pages of the manual: commands, passes and error codes."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
        click.echo(str(folder / name))
    return 0


if __name__ == "__main__":
    main()
