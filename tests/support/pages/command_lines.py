"""Command lines as pages show them: found, taken apart, and held against the commands without running them."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks.quality import OFFICIAL
from ir.base.diag import LadingError, known_codes
from passes.framework.load import load
from passes.framework.registry import default_registry
from passes.precision.limits import limits_of
from tests.support.paths import ROOT
from tools.cache import KINDS
from tools.compile.job import LIMITS, Request, pipeline_of
from tools.main import TOOLS, main
from tools.shared.formats import CHECKPOINT, Formats

ELSEWHERE = frozenset("cat echo git grep head mypy pip ruff source tail . !".split())
"""Programs of others that pages call; nothing is known of their options."""

YOURS = frozenset(
    "./Qwen2.5-0.5B-Instruct Qwen/Qwen2.5-0.5B-Instruct path/to/checkpoint "
    "build/qwen build/other build/model model.onnx net.mlp "
    "model.mlp inputs.npz samples.npz sample.txt my_chats.jsonl questions.jsonl app.log".split()
)
"""Files that a reader has: names that speak, of what no page makes."""

OUTPUTS = frozenset("out save_plan dump_ir json_file html markdown report svg work".split())
"""Parameters that name what is written."""

INPUTS = frozenset("model source first second".split())
"""Parameters that name what is read, beside those that are paths by their type."""


@dataclass(frozen=True)
class Line:
    """A command line of a page.

    Attributes:
        text: as it stands there, without a prompt.
        whole: False for a mention in running text, which may leave out what a command cannot do without, or be an
            option with its value and leave out the command.
    """

    text: str
    whole: bool = True


def lines_of(page: str) -> list[Line]:
    """Command lines of a page in Markdown: of fenced blocks, of indented lines, and those in running text."""
    found: list[Line] = []
    fences = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    for language, block in fences.findall(page):
        if language == "sh":
            found += [Line(text) for text in block.replace("\\\n", " ").splitlines() if text.strip()]
        elif language in ("console", "text"):
            found += [Line(text) for text in re.findall(r"^\$ (.*)$", block, re.MULTILINE)]
    rest = fences.sub("", page)
    found += [Line(text) for text in re.findall(r"^ {4}((?:lading|python|pip|git) .*)$", rest, re.MULTILINE)]
    for span in re.findall(r"`([^`]+)`", rest):
        text = " ".join(span.replace("\\|", "|").split())
        if re.match(r"(lading|python3? -m) [\w-]|--[a-z][\w-]* \S", text):
            found.append(Line(text, whole=False))
    return found


def commands_of(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """The simple commands of a shell line: words each, and the files that its output goes to.

    Raises:
        ValueError: a quotation mark without its mate.
    """
    lexer = shlex.shlex(text, posix=True, punctuation_chars="<>|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    written: list[str] = []
    tokens = iter([*lexer, ";"])
    for token in tokens:
        if token in ("&&", "||", "|", ";"):
            if words:
                yield words, written
            words, written = [], []
        elif token in (">", ">>"):
            written.append(next(tokens))
        elif token == "<":
            next(tokens)
        elif token != "!":
            words.append(token)


def is_blank(value: Any) -> bool:
    """Whether a value is a word in capitals, which readers fill in."""
    return re.fullmatch(r"[A-Z][A-Z_]*(\.onnx)?", str(value)) is not None


class Checker:
    """Holds the command lines of one page against the commands.

    Args:
        made: files that the page makes, or that lie where its commands are run.
    """

    def __init__(self, made: Collection[str] = ()) -> None:
        self.made = set(made)
        self.registry = default_registry()
        self.formats = Formats(self.registry)

    def problems(self, line: Line) -> list[str]:
        """What is wrong with a line; nothing where it would be understood."""
        found: list[str] = []
        try:
            if line.text.startswith("--"):
                return self._option(line.text)
            for words, written in commands_of(line.text):
                found += self._command(words, line.whole)
                self.made.update(written)
        except ValueError as error:
            found.append(str(error))
        return [f"{line.text}: {problem}" for problem in found]

    def _option(self, text: str) -> list[str]:
        """An option with its value, of whichever command has it."""
        name = text.split()[0]
        if any(name in options.split() for options in OFFICIAL.values()):
            return []  # of the exporter that benchmarks run
        lines = [f"python -m tools.{tool} {text}" for tool in (*TOOLS, "pictures") if self._has(tool, name)]
        lines += [
            f"python -m benchmarks.{path.stem} {text}"
            for path in sorted((ROOT / "benchmarks").glob("*.py"))
            if f'"{name}"' in path.read_text()
        ]
        found = [self.problems(Line(line, whole=False)) for line in lines]
        return min(found, key=len) if found else [f"{text}: no command has this option"]

    @staticmethod
    def _has(tool: str, option: str) -> bool:
        command = _command_of(tool)
        return command is not None and any(option in (*item.opts, *item.secondary_opts) for item in command.params)

    def _command(self, words: Sequence[str], whole: bool) -> list[str]:
        """One simple command."""
        program, *rest = words
        if program.startswith("python") and rest[:1] == ["-m"]:
            module, *rest = rest[1:]
            package, _, name = module.partition(".")
            if module == "lading":
                return self._lading(rest, whole)
            if package == "tools":
                return self._tool(name, rest, whole)
            if package == "benchmarks":
                return self._benchmark(module, rest, whole)
            if module.startswith("tests.support."):
                return _script(module, rest)
            return [] if module in ("venv", "pytest", "json.tool", "doctest") else [f"no module {module}"]
        if program == "lading":
            return self._lading(rest, whole)
        known = program in ELSEWHERE or program in ("python3", "python", "pytest") or program.endswith("/bin/pip")
        return [] if known else [f"no program {program}"]

    def _lading(self, words: Sequence[str], whole: bool) -> list[str]:
        if words and not words[0].startswith("-"):
            return self._tool(words[0], words[1:], whole)
        known = {option for item in main.get_params(click.Context(main)) for option in item.opts}
        return [f"no option {word}" for word in words if word not in known]

    def _tool(self, name: str, words: Sequence[str], whole: bool) -> list[str]:
        """A command of ours."""
        tool = _command_of(name)
        if tool is None:
            return [f"no command {name}"]
        if list(words) in (["--help"], ["-h"]) or (not whole and not words):
            return []
        with pytest.MonkeyPatch.context() as patch:
            # Whether files are there is asked below.
            patch.setattr(click.Path, "convert", lambda _self, value, _param, _ctx: Path(value))
            for kind in (click.IntRange, click.FloatRange, type(click.INT), type(click.FLOAT)):
                patch.setattr(kind, "convert", _blank_or(kind.convert))
            try:
                given = _given(tool, name, words, whole)
            except (click.UsageError, LadingError) as error:
                return [error.format_message() if isinstance(error, click.UsageError) else str(error)]
        return [*self._values(name, given), *self._files(tool, given)]

    def _values(self, name: str, given: Mapping[str, Any]) -> list[str]:
        """Values that the command itself takes apart later."""
        from backends.mnn.target.releases import RELEASES
        from backends.mnn.target.releases import target as find_target
        from tools.doctor.command import releases_of
        from tools.fuzz.worker import load_targets
        from tools.ladder.command import parse_widths
        from tools.ladder.rungs import parse_rungs, parse_size
        from tools.matrix.command import find_releases

        def compiled(_: Any) -> None:
            backend = self.formats.emitter(
                _filled(given["to"]) or self.formats.emitter_of_frontend(CHECKPOINT) or "onnx"
            )
            limits = {key: _filled(given[key]) for key in (*LIMITS, "device", "save_plan")}
            limits_of(*(limits[key] for key in LIMITS))
            pipeline_of(Request("", Path(), _filled(given["pipeline"]), **limits), self.formats, backend)
            if _filled(given["target"]):
                backend.target(given["target"])

        def among(known: Collection[str]) -> Callable[[str], None]:
            def check(text: str) -> None:
                for word in text.split(","):
                    if word not in known:
                        raise ValueError(f"{word} is none of {', '.join(known)}")

            return check

        def is_code(word: str) -> bool:
            return re.fullmatch(r"[A-Z]\d{3}", word) is not None

        def nested(text: str) -> None:
            wrong = self.problems(Line(text.replace("{}", "INPUT")))
            if wrong:
                raise ValueError("; ".join(wrong))

        # Own targets of a page's reader are added with --load, own passes by a plugin.
        fuzz = among(load_targets("")) if not given.get("modules") else str
        rules: dict[tuple[str, str], Callable[[Any], object]] = {
            ("cache", "clear"): among(("all", *KINDS)),
            ("doctor", "runtime"): releases_of,
            ("explain", "words"): lambda words: [among(known_codes())(word) for word in words if is_code(word)],
            ("fuzz", "only"): fuzz,
            ("ladder", "rungs"): parse_rungs,
            ("ladder", "uniform"): parse_widths,
            ("ladder", "budget_size"): parse_size,
            ("ladder", "target"): find_target,
            ("matrix", "releases"): find_releases,
            ("matrix", "precisions"): lambda text: [load(part, self.registry) for part in text.split(",")],
            ("matrix", "target"): find_target,
            ("opt", "pipeline"): lambda text: text == "my-pass" or load(text, self.registry),
            ("reduce", "text"): nested,
            ("releases", "versions"): lambda texts: [among(RELEASES)(text) for text in texts],
            ("repair", "target"): find_target,
            ("run", "release"): among(RELEASES),
        }
        if name == "compile":
            rules["compile", "pipeline"] = compiled
        found = []
        for (tool, key), check in rules.items():
            if tool == name and (name == "compile" or (given.get(key) and not is_blank(given[key]))):
                try:
                    check(given[key])
                except (LadingError, ValueError) as error:
                    found.append(str(error))
        return found

    def _files(self, tool: click.Command, given: Mapping[str, Any]) -> list[str]:
        """Files that are named and nowhere to be found."""
        found = []
        for item in tool.params:
            values = given[item.name] if item.multiple or item.nargs < 0 else [given[item.name]]
            for value in values or ():
                if value is None or value == item.default:
                    continue
                if item.name in OUTPUTS:
                    self.made.add(str(value))
                elif (isinstance(item.type, click.Path) or item.name in INPUTS) and not (
                    self._is_there(str(value)) or value == getattr(item.type, "word", None)
                ):
                    found.append(f"there is no {value}")
        return found

    def _is_there(self, text: str) -> bool:
        return any(map(is_blank, Path(text).parts)) or text in YOURS or text in self.made or (ROOT / text).exists()

    def _benchmark(self, module: str, words: Sequence[str], whole: bool) -> list[str]:
        """A script of benchmarks/, up to where it has read its arguments."""
        if not (ROOT / (module.replace(".", "/") + ".py")).is_file():
            return [f"no module {module}"]
        if not whole and not words:
            return []
        script = importlib.import_module(module)
        values, message = _parsed(script.main, module, words)
        while not whole and (left_out := re.search(r"arguments are required: ([\w-]+)", message)):
            words = [*words, *([left_out[1]] if left_out[1].startswith("-") else []), "LEFT_OUT"]
            values, message = _parsed(script.main, module, words)
        if message:
            return [message]
        commands = [values[key] for key in ("lading_cmd", "command") if values.get(key)]
        if values.get("lading") is not None:
            commands += [method.template for method in script.lading_methods(values["lading"])]
        return [problem for text in commands for problem in self.problems(Line(filled_in(text)))]


def _script(module: str, words: Sequence[str]) -> list[str]:
    """A script of tests/support/, whose `main` is a command where it takes words."""
    if not (ROOT / (module.replace(".", "/") + ".py")).is_file():
        return [f"no module {module}"]
    command = getattr(importlib.import_module(module), "main", None)
    if not isinstance(command, click.Command):
        return [f"{module} takes no words"] if words else []
    try:
        command.make_context(module, list(words), resilient_parsing=False)
    except click.UsageError as error:
        return [error.format_message()]
    return []


def filled_in(template: str) -> str:
    """A command with its `{places}` filled in, as the script that runs it would."""
    known = {"python": "python", "budget": "4.5bpw"}
    return re.sub(
        r"\{(\w+)(\[[\w-]+\])?\}", lambda place: "1000000" if place[2] else known.get(place[1], "INPUT"), template
    )


def _filled(value: Any) -> Any:
    """A value, or None where it is a word in capitals."""
    return None if is_blank(value) else value


def _command_of(name: str) -> click.Command | None:
    """A command of ours, or a module of tools/ that is none and can be run all the same."""
    tool = main.get_command(click.Context(main), name)
    if tool is None and (ROOT / "tools" / f"{name}.py").is_file():
        return getattr(importlib.import_module(f"tools.{name}"), "main", None)
    return tool


def _blank_or(convert: Callable[..., Any]) -> Callable[..., Any]:
    """A conversion of numbers that leaves words in capitals alone."""
    return lambda self, value, param, ctx: value if is_blank(value) else convert(self, value, param, ctx)


def _given(tool: click.Command, name: str, words: Sequence[str], whole: bool) -> dict[str, Any]:
    """Parameters of a command; what a mention leaves out is filled up with words in capitals.

    Raises:
        click.UsageError: what the command says of its line.
    """
    try:
        return tool.make_context(name, list(words)).params
    except (click.MissingParameter, click.BadOptionUsage) as missing:
        last = isinstance(missing, click.BadOptionUsage) and words[-1:] == [missing.option_name]
        absent = isinstance(missing, click.MissingParameter) and missing.param is not None
        if whole or not (last or absent):
            raise
        option = missing.param.opts[:1] if absent and isinstance(missing.param, click.Option) else []
        return _given(tool, name, [*words, *option, "LEFT_OUT"], whole)


class _Parsed(BaseException):
    """A script has read its arguments."""


def _parsed(script: Callable[[], object], module: str, words: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The arguments that a script with argparse reads, or what it says of them."""
    known = argparse.ArgumentParser.parse_known_args

    def stop(parser: argparse.ArgumentParser, argv: Any = None, _namespace: Any = None) -> None:
        given, more = known(parser, argv)
        if more:
            raise ValueError(f"unknown arguments {' '.join(more)}")
        raise _Parsed(vars(given))

    def refuse(_parser: argparse.ArgumentParser, message: str) -> None:
        raise ValueError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "error", refuse)
        patch.setattr(sys, "argv", [module, *words])
        try:
            script()
        except _Parsed as done:
            return done.args[0], ""
        except ValueError as error:
            return {}, str(error)
    return {}, f"{module} reads no arguments"
