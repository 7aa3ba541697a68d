"""The text form of a graph: one node per line, everything named, nothing lost (`ir.text.parser` reads it back).

    lading 1
    graph decoder {
      opset "" 24
      dim seq = 1..8192
      const @q.w: f32[896, 896] = transposed(cast(file("model.safetensors", 128, bf16[896, 896], "q.weight"), "f32"))
      input %h: f32[1, seq, 896]
      %q: f32[1, seq, 896] = MatMul(%h, @q.w) "/layers.0/q" ; "model.safetensors:q.weight"
      output %q
      table embedding = @q.w
      fact precision-plan {"storage": {}, "tied": false}
    }

Constants are written ``@name``, all other values ``%name``; a name that is not made of letters, digits, ``_`` and ``.``
is quoted, an input left out is ``_``. A node line is: outputs with types, ``=``, operator, operands, attributes in
braces (sorted), node name, ``overload "x"``, ``meta {json}``, and ``;`` with the source location. An output whose
location is not its node's says ``at "location"``.

=================  ====================================================================================================
attribute          spelling
=================  ====================================================================================================
int, float         ``-3``; ``1.0``, ``1e-05``, ``inf``, ``nan``, other NaNs by their bits: ``nan:fff8000000000000``
str, bytes         ``"text"``; ``b"\\u{ff}"``
tensor             type and contents: ``f32[2] [1.0, 2.0]``
type               ``type f32[1, seq]``
graph              ``graph name { ... }``
list               ``[1, 2]``; an empty one of known kind ``ints[]``, ``floats[]``, ``strings[]``...
=================  ====================================================================================================

A line ``hints`` says that the types are as a file records them, and give way to what operators give.

Contents of a tensor are its elements row by row (complex numbers as two), ``base64 "..."`` of its packed little-endian
bytes, or a recipe ``name(argument, ..., key=argument)`` from `ir.tensor.recipes.RECIPES`. ``file`` is written
``file(path, offset, type, key)``. Comments run from ``//`` to the end of the line.
"""

from __future__ import annotations

import json
import os
import re
import struct
from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ir.base.types import Dim, DType, MapType, OptionalType, SequenceType, TensorType, ValueType
from ir.base.whole_files import write_pair, write_whole
from ir.graph.facts import data_of
from ir.graph.graph import EmptyList, Graph, Node, Value
from ir.tensor.base import Tensor
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor, bytes_of

VERSION = 1
"""Version of the text form, in its first line."""

INLINE_LIMIT = 16
"""Inline constants of at most this many elements are printed element by element."""

SIDE_ALIGNMENT = 64
JSON_WIDTH = 100
SNIPPET_WIDTH = 140

_BARE_VALUE = re.compile(r"[A-Za-z0-9_.]+").fullmatch
_BARE_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*").fullmatch
_PLAIN_STRING = re.compile(r"[ !#-\[\]-~]*").fullmatch
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def print_graph(
    graph: Graph,
    *,
    inline_limit: int = INLINE_LIMIT,
    side: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
) -> str:
    """The graph as text that `ir.text.parser.parse` reads back.

    Args:
        graph: a root graph; nodes should be in topological order, or the text cannot be parsed.
        inline_limit: inline constants of more elements than this are written as bytes.
        side: file for these bytes, written at once and replaced as a whole; without it they are in the text (base64).
        base: folder that paths in the text are relative to, where they lie below it.

    Raises:
        ValueError: the graph reads constants from the file that `side` would overwrite.
        TypeError: an attribute, fact or metadata value is of a kind that graphs do not have.
    """
    blobs = _SideFile(Path(side)) if side is not None else None
    text = _printed(graph, blobs, inline_limit, base)
    if blobs is not None and not blobs.is_empty:
        blobs.require_free()
        with write_whole(blobs.path) as part:
            blobs.write(part)
    return text


def save_graph(graph: Graph, path: Path, *, base: Path | None = None, durable: bool = True) -> tuple[str, bool]:
    """Write a graph as text to a file, bytes of large inline constants to one with the suffix ``.bin`` beside it.

    Both replace those of an older graph together. Returns the text, and whether there was need for the second file.

    Args:
        graph, base: as for `print_graph`.
        path: the file.
        durable: wait until both are on the disk.

    Raises:
        OSError: they cannot be written.
        ValueError, TypeError: as `print_graph`.
    """
    blobs = _SideFile(path.with_suffix(".bin"))
    text = _printed(graph, blobs, INLINE_LIMIT, base)
    if blobs.is_empty:
        with write_whole(path, durable=durable) as part:
            part.write_text(text, encoding="utf-8")
        return text, False
    blobs.require_free()

    def head(name: str) -> bytes:
        named = (
            text if name == blobs.path.name else _printed(graph, _SideFile(path.with_name(name)), INLINE_LIMIT, base)
        )
        return named.encode("utf-8")

    write_pair(path, blobs.path.name, blobs.write, head, durable=durable)
    return text, True


def _printed(graph: Graph, side: _SideFile | None, inline_limit: int, base: str | os.PathLike[str] | None) -> str:
    printer = Printer(inline_limit, side, base)
    printer.emit(f"lading {VERSION}")
    printer.graph(graph, "", "")
    return "\n".join(printer.lines) + "\n"


def node_text(node: Node) -> str:
    """The line of one node, for messages; subgraphs are shown by name only."""
    return Printer(INLINE_LIMIT, None, None, nested=False).node(node, "")


def snippet(node: Node, *, operand: int | None = None, output: int | None = None) -> str:
    """The line of a node between its neighbours' lines, with carets under an operand, an output or the operator."""
    printer = Printer(INLINE_LIMIT, None, None, nested=False)
    outputs = [printer._output(value, node) for value in node.outputs]
    if output is not None:
        start, marked = sum(len(text) + 2 for text in outputs[:output]), value_text(node.outputs[output])
    else:
        start, marked = len(", ".join(outputs) or "()") + 3, word(node.op)
        if operand is not None:
            inputs = [value_text(value) for value in node.inputs]
            start += len(marked) + 1 + sum(len(text) + 2 for text in inputs[:operand])
            marked = inputs[operand]
    shift = max(0, start - SNIPPET_WIDTH // 2)
    around = [near for near in (node._prev, node, node._next) if near is not None]
    lines = [printer.node(near, "")[shift if near is node else 0 :][:SNIPPET_WIDTH] for near in around]
    lines.insert(around.index(node) + 1, " " * (start - shift) + "^" * len(marked))
    return "\n".join("  " + line for line in lines)


# ---- words ----


def quote(text: str) -> str:
    """A string in quotes; everything that is not printable is escaped, so that the result is one line."""
    if _PLAIN_STRING(text):
        return f'"{text}"'
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in text) + '"'


def quote_bytes(data: bytes) -> str:
    """Bytes as ``b"..."``, one character for each byte."""
    return "b" + "".join(c if c <= "~" else f"\\u{{{ord(c):x}}}" for c in quote(data.decode("latin-1")))


def word(text: str) -> str:
    """A name as a bare word if it is one, else quoted."""
    return text if _BARE_WORD(text) else quote(text)


def value_text(value: Value | None) -> str:
    """A value as it is referred to: ``%name``, ``@name`` or ``_``."""
    if value is None:
        return "_"
    sign = "%" if value.const is None else "@"
    return sign + (value.name if _BARE_VALUE(value.name) else quote(value.name))


def type_text(type: ValueType) -> str:
    """A type as it is written: ``f32[1, seq]``, ``f32[*]``, ``seq<f32[]>``, ``optional<...>``, ``map<i64, f32[]>``."""
    if isinstance(type, TensorType):
        if type.shape is None:
            return f"{type.dtype.name}[*]"
        return f"{type.dtype.name}[{', '.join(word(d.name) if isinstance(d, Dim) else str(d) for d in type.shape)}]"
    if isinstance(type, SequenceType):
        return f"seq<{type_text(type.element)}>"
    if isinstance(type, OptionalType):
        return f"optional<{type_text(type.element)}>"
    if isinstance(type, MapType):
        return f"map<{type.key.name}, {type_text(type.value)}>"
    raise TypeError(f"{type!r} is no type")


def float_text(value: float) -> str:
    """A Python float so that every bit survives."""
    if value == value:
        return repr(value)
    bits = struct.unpack("<Q", struct.pack("<d", value))[0]
    return "nan" if bits == 0x7FF8000000000000 else f"nan:{bits:016x}"


def json_text(data: Any, indent: str) -> str:
    """JSON on one line where that is short, else one member per line, nested the same way."""
    compact = json.dumps(data)
    if len(indent) + len(compact) <= JSON_WIDTH or not isinstance(data, dict | list) or not data:
        return compact
    inner = indent + "  "
    if isinstance(data, dict):
        rows = [f"{inner}{json.dumps(key)}: {json_text(item, inner)}" for key, item in data.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + json_text(item, inner) for item in data) + f"\n{indent}]"


# ---- elements of tensors ----


def elements_text(array: np.ndarray, dtype: DType) -> list[str]:
    """The elements of an array in row-major order, each so that every bit survives."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype.kind == "s":
        return [quote_bytes(item) if isinstance(item, bytes) else quote(str(item)) for item in flat]
    if dtype.kind == "b":
        return ["true" if item else "false" for item in flat.tolist()]
    if dtype.kind == "c":
        flat = flat.view(np.float32 if dtype.bits == 64 else np.float64)
    if dtype.kind in "iu":
        return [str(int(item)) for item in flat]
    return _float_elements(flat)


def _float_elements(flat: np.ndarray) -> list[str]:
    bits = flat.view(f"u{flat.dtype.itemsize}").tolist()
    found = []
    for item, code in zip(flat, bits, strict=True):
        value = float(item)
        if value != value:
            found.append("nan" if code == usual_nan(flat.dtype) else f"nan:{code:0{2 * flat.dtype.itemsize}x}")
            continue
        # The spelling for the narrow type is used where it is shorter and reading it as double gives the same number.
        exact, short = repr(value), str(item)
        is_narrow = flat.dtype in (np.float32, np.float16) and len(short) < len(exact)
        found.append(short if is_narrow and flat.dtype.type(float(short)) == item else exact)
    return found


def usual_nan(dtype: np.dtype) -> int:
    """The bits of the NaN of a float type that is spelled ``nan``."""
    return int(np.array([np.nan]).astype(dtype).view(f"u{dtype.itemsize}")[0])


class _SideFile:
    """Collects the bytes of large inline constants and writes them to one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_read = False
        self._parts: list[bytes] = []
        self._end = 0

    def add(self, data: bytes) -> int:
        """Take some bytes; returns their offset in the file."""
        offset = -(-self._end // SIDE_ALIGNMENT) * SIDE_ALIGNMENT
        self._parts += [b"\0" * (offset - self._end), data]
        self._end = offset + len(data)
        return offset

    @property
    def is_empty(self) -> bool:
        """Nothing was collected."""
        return not self._parts

    def require_free(self) -> None:
        """ValueError when the graph reads constants from the file."""
        if self.is_read:
            raise ValueError(f"the graph reads constants from {self.path}, so it cannot be the side file")

    def write(self, path: Path) -> None:
        """Write what was collected to a path."""
        with path.open("wb") as file:
            file.writelines(self._parts)


class Printer:
    """Writes graphs as lines of text."""

    def __init__(
        self,
        inline_limit: int,
        side: _SideFile | None,
        base: str | os.PathLike[str] | None,
        nested: bool = True,
    ) -> None:
        self.lines: list[str] = []
        self.emit: Callable[[str], None] = self.lines.append
        self._limit = inline_limit
        self._side = side
        self._base = os.path.abspath(base) if base is not None else None
        self._nested = nested
        # Types are shared by many values of one graph, which keeps them alive while it is printed.
        self._types: dict[int, str] = {}

    # ---- graphs ----

    def graph(self, graph: Graph, lead: str, indent: str) -> None:
        """Emit ``<lead>graph name {`` to ``}``; `indent` is that of the closing brace."""
        self.emit(f"{lead}graph {word(graph.name)} {{")
        self._body(graph, indent + "  ")
        self.emit(indent + "}")

    def _body(self, graph: Graph, pad: str) -> None:
        emit = self.emit
        if graph.owner is None:
            for domain, version in graph.opsets.items():
                emit(f"{pad}opset {word(domain)} {version}")
        if graph.hinted:
            emit(f"{pad}hints")
        for key, item in graph.metadata.items():
            emit(f"{pad}meta {word(key)} {json_text(item, pad)}")
        for dim in graph.dims.values():
            emit(pad + _dim_line(dim))
        for value in graph.consts.values():
            emit(pad + self._const_line(value))
        for value in graph.inputs:
            emit(f"{pad}input {self._typed(value)}{_loc(value.loc)}")
        for node in graph.nodes:
            emit(self.node(node, pad))
        if graph.outputs:
            emit(f"{pad}output {', '.join(map(value_text, graph.outputs))}")
        for name, value in graph.tables.items():
            emit(f"{pad}table {word(name)} = {value_text(value)}")
        for name, fact in graph.facts.items():
            emit(f"{pad}fact {word(name)} {json_text(data_of(fact), pad)}")
        for name, function in graph.functions.items():
            self.graph(function, f"{pad}function {word(name)} = ", pad)

    def _const_line(self, value: Value) -> str:
        tensor = value.tensor
        loc = "" if value.loc == _usual_loc(tensor) else f" ; {quote(value.loc)}"
        return f"const {self._typed(value)} = {self._contents(tensor)}{loc}"

    def _typed(self, value: Value) -> str:
        return value_text(value) if value.type is None else f"{value_text(value)}: {self._type(value.type)}"

    def _type(self, type: ValueType) -> str:
        found = self._types.get(id(type))
        if found is None:
            found = self._types[id(type)] = type_text(type)
        return found

    # ---- nodes ----

    def node(self, node: Node, pad: str) -> str:
        """The line, or with subgraphs the lines, of a node."""
        outputs = ", ".join([self._output(value, node) for value in node.outputs]) or "()"
        inputs = ", ".join([value_text(value) for value in node.inputs])
        line = f"{pad}{outputs} = {word(node.op)}({inputs})"
        if node._attrs:
            line += " {" + self._attrs(node, pad) + "}"
        if node.name:
            line += " " + quote(node.name)
        if node.overload:
            line += f" overload {quote(node.overload)}"
        if node.metadata:
            line += f" meta {json.dumps(node.metadata)}"
        return line + _loc(node.loc)

    def _output(self, value: Value, node: Node) -> str:
        text = self._typed(value)
        return text if value.loc == node.loc else f"{text} at {quote(value.loc)}"

    def _attrs(self, node: Node, pad: str) -> str:
        return ", ".join([f"{word(name)} = {self.attr(node._attrs[name], pad)}" for name in sorted(node._attrs)])

    def attr(self, value: Any, pad: str) -> str:
        """An attribute value; `pad` is the indentation of the node's line."""
        if isinstance(value, float | np.floating):
            return float_text(float(value))
        if isinstance(value, int | np.integer):
            return str(int(value))
        if isinstance(value, str):
            return quote(value)
        if isinstance(value, EmptyList):
            return value.kind + "[]"
        if isinstance(value, tuple):
            return f"[{', '.join([self.attr(item, pad) for item in value])}]"
        if isinstance(value, Tensor):
            return f"{type_text(value.type)} {self._contents(value)}"
        if isinstance(value, bytes):
            return quote_bytes(value)
        if isinstance(value, Graph):
            return self._subgraph(value, pad)
        if isinstance(value, TensorType | SequenceType | OptionalType | MapType):
            return "type " + type_text(value)
        if not self._nested:
            return repr(value)
        raise TypeError(f"an attribute cannot be {type(value).__name__}")

    def _subgraph(self, graph: Graph, pad: str) -> str:
        if not self._nested:
            return f"graph {word(graph.name)} {{...}}"
        inner = Printer(self._limit, self._side, self._base)
        inner.graph(graph, "", pad)
        return "\n".join(inner.lines)

    # ---- tensors ----

    def _contents(self, tensor: Tensor) -> str:
        """What stands after the type of a constant."""
        return self._inline(tensor) if isinstance(tensor, InlineTensor) else self._recipe(tensor)

    def _inline(self, tensor: InlineTensor) -> str:
        dtype, size = tensor.type.dtype, tensor.type.size or 0
        if size <= self._limit or dtype.kind == "s":
            return f"[{', '.join(elements_text(tensor.load(), dtype))}]"
        data = bytes_of(tensor.load(), dtype)
        if self._side is not None and dtype.bits in (2, 4, 8 * dtype.numpy.itemsize):
            return self._file(str(self._side.path), self._side.add(data), tensor.type, "")
        return f'base64 "{b64encode(data).decode()}"'

    def _file(self, path: str, offset: int, type: TensorType, key: str) -> str:
        found = Path(os.path.abspath(path))
        if self._base is not None and found.is_relative_to(self._base):
            path = found.relative_to(self._base).as_posix()
        return f"file({quote(path)}, {offset}, {type_text(type)}{', ' + quote(key) if key else ''})"

    def _recipe(self, tensor: Tensor) -> str:
        if isinstance(tensor, FileTensor):
            if self._side is not None and os.path.abspath(tensor.path) == os.path.abspath(self._side.path):
                self._side.is_read = True
            return self._file(tensor.path, tensor.offset, tensor.type, tensor.key)
        name, args, kwargs = tensor.recipe()
        parts = [self._argument(item) for item in args]
        parts += [f"{word(key)}={self._argument(item)}" for key, item in sorted(kwargs.items())]
        return f"{word(name)}({', '.join(parts)})"

    def _argument(self, value: Any) -> str:
        if isinstance(value, Tensor):
            if isinstance(value, InlineTensor):
                return f"{type_text(value.type)} {self._inline(value)}"
            return self._recipe(value)
        if value is None:
            return "none"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._argument, value))}]"
        if isinstance(value, DType):
            return quote(value.name)
        return self.attr(value, "")


def _dim_line(dim: Dim) -> str:
    high = "" if dim.high is None else str(dim.high)
    step = f" step {dim.multiple_of}" if dim.multiple_of != 1 else ""
    return f"dim {word(dim.name)} = {dim.low}..{high}{step}"


def _loc(loc: str) -> str:
    return f" ; {quote(loc)}" if loc else ""


def _usual_loc(tensor: Tensor) -> str:
    """The location that the tensor has when it is built again from its recipe."""
    waiting: list[Any] = [tensor]
    while waiting:
        item = waiting.pop()
        if isinstance(item, InlineTensor) and item.loc != "inline":
            return "inline" if item is tensor else "?"
        if not isinstance(item, InlineTensor | FileTensor):
            waiting.extend(_tensors(item.recipe()[1]))
    return tensor.loc


def _tensors(items: Iterable[Any]) -> list[Tensor]:
    return [item for item in items if isinstance(item, Tensor)]


__all__ = [
    "INLINE_LIMIT",
    "VERSION",
    "float_text",
    "json_text",
    "node_text",
    "print_graph",
    "quote",
    "snippet",
    "type_text",
    "value_text",
    "word",
]
