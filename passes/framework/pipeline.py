"""Pipelines as values and as text.

::

    pipeline := [step ("," step)* [","]]
    step     := name [options] | "repeat" [options] "(" pipeline ")"
    options  := "{" (option [","])* "}"
    option   := key | key "=" value ("," value)* | key "=" "[" [value ("," value)*] "]"
    value    := word | "string with JSON escapes"

Blanks, line breaks and ``# comments`` are free between tokens. A bare key is a true flag. Dashes and underscores mean
the same in names and keys. ``str(pipeline)`` is canonical: dashes, lists in brackets, options at their default left
out; ``parse(str(p)) == p``. The name of a registered pipeline stands for its text; options written after it go to the
one pass of that text that has such an option.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError, suggest
from passes.framework.base import Pass
from passes.framework.options import WORD, BadValue, OptionSpec, Raw, options_of, show_options

if TYPE_CHECKING:
    from passes.framework.registry import Registry

MAX_ROUNDS = 10
"""How often ``repeat`` runs its steps when no ``max`` is given."""


@dataclass(frozen=True)
class Repeat:
    """Steps that run again until the graph stays as it is, at most `max` times.

    Attributes:
        body: the steps.
        max: most rounds; with one round the steps run once.
        foreign: run them on graphs alone that were read from a file of others.
    """

    body: Pipeline
    max: int = MAX_ROUNDS
    foreign: bool = False

    def __post_init__(self) -> None:
        if not self.body.items or self.max < 1:
            raise ValueError("repeat needs at least one step and one round")

    def __str__(self) -> str:
        options = [f"max={self.max}"] if self.max != MAX_ROUNDS else []
        options += ["foreign"] if self.foreign else []
        shown = f"{{{' '.join(options)}}}" if options else ""
        return f"repeat{shown}({self.body})"


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, some of them repeated."""

    items: tuple[Pass | Repeat, ...] = ()

    def __str__(self) -> str:
        return ",".join(str(item) for item in self.items)

    def __add__(self, other: Pipeline) -> Pipeline:
        return Pipeline(self.items + other.items)

    def passes(self) -> Iterator[Pass]:
        """Every pass in order, repeated ones once."""
        for item in self.items:
            if isinstance(item, Repeat):
                yield from item.body.passes()
            else:
                yield item

    def map(self, change: Callable[[Pass], Pass]) -> Pipeline:
        """The same pipeline with every pass replaced by ``change(pass)``."""
        return Pipeline(
            tuple(
                replace(item, body=item.body.map(change)) if isinstance(item, Repeat) else change(item)
                for item in self.items
            )
        )


@dataclass(frozen=True, slots=True)
class RawOption:
    """An option as written."""

    key: str
    value: Raw
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RawStep:
    """A step as written: its name, options and, for ``repeat``, its steps."""

    name: str
    span: tuple[int, int]
    options: tuple[RawOption, ...] = ()
    body: tuple[RawStep, ...] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where raw steps come from, to point at a fault: pipeline text, or a file whose parts have no columns."""

    text: str
    name: str = "the pipeline"

    def error(self, code: str, message: str, span: tuple[int, int], hint: str = "") -> LadingError:
        """An error that shows the faulty line with the span underlined."""
        if not self.text:
            return LadingError(code, message, self.name, hint)
        start, end = span
        line_start = self.text.rfind("\n", 0, start) + 1
        line_end = self.text.find("\n", start)
        line_end = len(self.text) if line_end < 0 else line_end
        number = self.text.count("\n", 0, start) + 1
        column = start - line_start
        shown, column = _window(self.text[line_start:line_end].replace("\t", " "), column)
        width = max(1, min(end, line_end) - start, 1)
        width = min(width, max(1, len(shown) - column))
        place = f"line {number}, column {start - line_start + 1}" if "\n" in self.text else f"column {start + 1}"
        where = f"{place} of {self.name}\n{shown}\n{' ' * column}{'^' * width}"
        return LadingError(code, message, where, hint)


def _window(line: str, column: int, width: int = 100) -> tuple[str, int]:
    """A part of a long line around a column, and the column within it."""
    if len(line) <= width:
        return line, column
    begin = max(0, min(column - width // 3, len(line) - width))
    shown = line[begin : begin + width]
    head, tail = ("..." if begin else ""), ("..." if begin + width < len(line) else "")
    return head + shown + tail, column - begin + len(head)


# ---- text to raw steps ----

_BLANK = r"(?:[ \t\r\n]|\#[^\n]*+)*+"
_STRING = r'"(?:[^"\\\n]|\\.)*+"'
_SKIP = re.compile(_BLANK)
_TOKEN = re.compile(rf"{_BLANK}(?:(?P<string>{_STRING})|(?P<word>{WORD.pattern})|(?P<mark>[,{{}}()\[\]=]))")
_DEEPEST = 20


class _Reader:
    """One token of look-ahead over pipeline text, with a second one on request."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tokens: list[tuple[str, str, tuple[int, int]]] = []
        text, at = source.text, 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                skipped = _SKIP.match(text, at)
                at = skipped.end() if skipped is not None else at
                if at < len(text):
                    raise self.bad_character(at)
                break
            kind = found.lastgroup or ""
            self.tokens.append((kind, found.group(kind), found.span(kind)))
            at = found.end()
        self.at = 0

    def bad_character(self, at: int) -> LadingError:
        """The error for text that starts no token: an unclosed string, or a character no word may hold."""
        found = self.source.text[at]
        message = "this string has no closing quote on its line" if found == '"' else f"unexpected character {found!r}"
        return self.source.error("P300", message, (at, at + 1))

    def peek(self, ahead: int = 0) -> str:
        """The mark ahead, or ``word``, ``string`` or (at the end) an empty string."""
        if self.at + ahead >= len(self.tokens):
            return ""
        kind, text, _ = self.tokens[self.at + ahead]
        return text if kind == "mark" else kind

    def take(self) -> tuple[str, str, tuple[int, int]]:
        """The next token: kind, text, span."""
        token = self.tokens[self.at]
        self.at += 1
        return token

    def accept(self, mark: str) -> bool:
        """Skip a mark if it is next."""
        if self.peek() != mark:
            return False
        self.at += 1
        return True

    def expect(self, mark: str, what: str) -> tuple[str, str, tuple[int, int]]:
        """The next token, which must be of a kind; P300 otherwise."""
        if self.peek() == mark:
            return self.take()
        raise self.fail(f"expected {what}")

    def fail(self, message: str) -> LadingError:
        """A syntax error at the next token."""
        if self.at < len(self.tokens):
            _, text, span = self.tokens[self.at]
            return self.source.error("P300", f"{message}, found {text!r}", span)
        end = len(self.source.text.rstrip())
        return self.source.error("P300", f"{message}, but the text ends", (end, end + 1))


def read_steps(source: Source) -> tuple[RawStep, ...]:
    """The steps that a pipeline text spells; LadingError P300 for a fault of syntax."""
    reader = _Reader(source)
    steps = _steps(reader, "", 0)
    if reader.peek():
        raise reader.fail("expected ',' or the end")
    return steps


def _steps(reader: _Reader, end: str, depth: int) -> tuple[RawStep, ...]:
    steps: list[RawStep] = []
    while reader.peek() != end:
        steps.append(_step(reader, depth))
        if not reader.accept(","):
            break
    return tuple(steps)


def _step(reader: _Reader, depth: int) -> RawStep:
    _, name, span = reader.expect("word", "the name of a pass or pipeline")
    options: tuple[RawOption, ...] = _options(reader) if reader.peek() == "{" else ()
    name = name.replace("_", "-")
    if name != "repeat":
        if reader.peek() == "(":
            raise reader.fail("only repeat has steps in parentheses; expected ',' or the end")
        return RawStep(name, span, options)
    reader.expect("(", "'(' with the steps to repeat")
    if depth == _DEEPEST:
        raise reader.source.error("P300", f"repeat is nested more than {_DEEPEST} deep", span)
    body = _steps(reader, ")", depth + 1)
    if not body:
        raise reader.fail("expected a step to repeat")
    reader.expect(")", "',' or ')'")
    return RawStep(name, span, options, body)


def _options(reader: _Reader) -> tuple[RawOption, ...]:
    reader.expect("{", "'{'")
    options: list[RawOption] = []
    while not reader.accept("}"):
        _, key, span = reader.expect("word", "the name of an option or '}'")
        value = Raw(None, span=span)
        if reader.accept("="):
            value = _value_list(reader)
        options.append(RawOption(key.replace("-", "_"), value, span))
        reader.accept(",")
    return tuple(options)


def _value_list(reader: _Reader) -> Raw:
    if reader.peek() == "[":
        return _bracketed(reader)
    values = [_value(reader)]
    # After a comma, "word =" starts the next option and anything else is another element.
    while reader.peek() == "," and reader.peek(1) in ("word", "string") and reader.peek(2) != "=":
        reader.take()
        values.append(_value(reader))
    if len(values) == 1:
        return values[0]
    return Raw(tuple(values), span=(values[0].span[0], values[-1].span[1]))


def _bracketed(reader: _Reader) -> Raw:
    start = reader.take()[2][0]
    values: list[Raw] = []
    while reader.peek() != "]":
        values.append(_value(reader))
        if not reader.accept(","):
            break
    end = reader.expect("]", "',' or ']'")[2][1]
    return Raw(tuple(values), span=(start, end))


def _value(reader: _Reader) -> Raw:
    if reader.peek() not in ("word", "string"):
        raise reader.fail("expected a value")
    kind, text, span = reader.take()
    if kind == "word":
        return Raw(text, span=span)
    try:
        return Raw(json.loads(text, strict=False), True, span)
    except json.JSONDecodeError as error:
        raise reader.source.error("P300", f"bad escape in a string: {error.msg}", span) from None


# ---- raw steps to passes ----


def resolve(steps: tuple[RawStep, ...], source: Source, registry: Registry, inside: tuple[str, ...] = ()) -> Pipeline:
    """Passes of raw steps: names looked up, pipelines expanded, options read by the type of their field.

    `inside` names the pipelines being expanded, to stop one that contains itself.
    """
    items: list[Pass | Repeat] = []
    for step in steps:
        if step.body is not None:
            items.append(_resolve_repeat(step, source, registry, inside))
        elif step.name in registry.pipelines:
            items.extend(_expand(step, source, registry, inside).items)
        else:
            items.append(_build(step, source, registry))
    return Pipeline(tuple(items))


_REPEAT = {
    "max": OptionSpec("max", "int", False, False, (), MAX_ROUNDS, "most rounds", 1, None),
    "foreign": OptionSpec(
        "foreign", "bool", False, False, (), False, "only on graphs read from a file of others", None, None
    ),
}


def _resolve_repeat(step: RawStep, source: Source, registry: Registry, inside: tuple[str, ...]) -> Repeat:
    values = _read_options(step, _REPEAT, source)
    return Repeat(resolve(step.body or (), source, registry, inside), **values)


def _build(step: RawStep, source: Source, registry: Registry) -> Pass:
    if step.name not in registry.passes:
        known = [*registry.passes, *registry.pipelines, "repeat"]
        hint = suggest(step.name, known) or f"known: {', '.join(sorted(known))}"
        raise source.error("P301", f"no pass or pipeline is called {step.name!r}", step.span, hint)
    cls = registry.pass_class(step.name)
    specs = options_of(cls)
    values = _read_options(step, specs, source)
    for spec in specs.values():
        if spec.required and spec.name not in values:
            raise source.error("P305", f"{step.name} needs the option {spec.key}", step.span, spec.help)
    return _construct(lambda: cls(**values), step, source)


def _construct(make: Callable[[], Pass], step: RawStep, source: Source) -> Pass:
    try:
        return make()
    except ValueError as error:
        raise source.error("P306", f"{step.name}: {error}", step.span) from None


def _read_options(step: RawStep, specs: dict[str, OptionSpec], source: Source) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in step.options:
        spec = specs.get(item.key)
        if spec is None:
            shown = item.key.replace("_", "-")
            hint = suggest(shown, [known.key for known in specs.values()])
            hint = hint or f"options of {step.name}: {show_options(list(specs.values()))}"
            raise source.error("P302", f"{step.name} has no option {shown!r}", item.span, hint)
        if item.key in values:
            raise source.error("P304", f"the option {spec.key} of {step.name} is given twice", item.span)
        values[item.key] = _read_value(spec, item, source)
    return values


def _read_value(spec: OptionSpec, item: RawOption, source: Source) -> Any:
    try:
        return spec.read(item.value)
    except BadValue as error:
        hint = error.hint
        if not hint and isinstance(item.value.text, tuple) and not spec.many:
            hint = "separate options by blanks"
        raise source.error("P303", str(error), error.raw.span, hint) from None


def _expand(step: RawStep, source: Source, registry: Registry, inside: tuple[str, ...]) -> Pipeline:
    if step.name in inside:
        chain = " -> ".join((*inside[inside.index(step.name) :], step.name))
        raise source.error("P308", f"the pipeline {step.name!r} contains itself: {chain}", step.span)
    inner = Source(registry.pipelines[step.name], f"the pipeline {step.name!r}")
    pipeline = resolve(read_steps(inner), inner, registry, (*inside, step.name))
    for item in step.options:
        pipeline = _forward(pipeline, step, item, source)
    return pipeline


def _forward(pipeline: Pipeline, step: RawStep, item: RawOption, source: Source) -> Pipeline:
    """The pipeline with one option set on the one pass class that has it."""
    owners = {type(one): options_of(type(one)).get(item.key) for one in pipeline.passes()}
    having = {cls: spec for cls, spec in owners.items() if spec is not None}
    shown = item.key.replace("_", "-")
    if not having:
        known = sorted({spec.key for cls in owners for spec in options_of(cls).values()})
        raise source.error("P302", f"no pass of {step.name} has an option {shown!r}", item.span, suggest(shown, known))
    if len(having) > 1:
        names = " and ".join(sorted(cls.name for cls in having))
        raise source.error(
            "P307", f"{shown} is an option of {names}", item.span, f"write out the passes of {step.name}"
        )
    ((cls, spec),) = having.items()
    value = _read_value(spec, item, source)

    def change(one: Pass) -> Pass:
        if type(one) is not cls:
            return one
        return _construct(lambda: dataclasses.replace(one, **{item.key: value}), step, source)

    return pipeline.map(change)
