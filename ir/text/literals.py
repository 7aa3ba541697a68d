"""Types and contents of tensors in the text form."""

from __future__ import annotations

import os
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ir.base.diag import LadingError, suggest
from ir.base.json_numbers import LONGEST
from ir.base.types import DTYPES, Dim, DType, MapType, OptionalType, SequenceType, TensorType, ValueType
from ir.graph.graph import Graph, Value
from ir.tensor.base import Tensor
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor, array_of
from ir.tensor.recipes import RECIPES
from ir.text.lexer import Tokens


class _NanBits(NamedTuple):
    """A NaN that is not the usual one."""

    bits: int
    digits: int


class Scope:
    """What the lines of one graph look up: the graph, its dimensions by name, and types already read."""

    def __init__(self, graph: Graph, dims: dict[str, Dim], outer: Scope | None) -> None:
        self.graph = graph
        self.dims = dims
        self.outer = outer
        self.types: dict[str, TensorType] = {}

    def find(self, name: str) -> Value | None:
        """The value of a name, in this graph or around it."""
        scope: Scope | None = self
        while scope is not None:
            value = scope.graph._names.get(name)
            if value is not None:
                return value
            scope = scope.outer
        return None


class Literals:
    """Reads types and contents of tensors from a stream of tokens.

    Args:
        at: the tokens.
        base: folder that relative paths of files are in.
    """

    def __init__(self, at: Tokens, base: str) -> None:
        self.at = at
        self.base = base

    # ---- types ----

    def type(self, scope: Scope) -> ValueType:
        """Take a type."""
        at = self.at
        if at.kind == "type":
            found = scope.types.get(at.text)
            if found is None:
                found = scope.types[at.text] = self.short_type(scope)
            at.next()
            return found
        word = at.text
        if word in ("seq", "optional") and at.kind == "word":
            at.next()
            at.expect("<")
            element = self.type(scope)
            at.expect(">")
            return SequenceType(element) if word == "seq" else OptionalType(element)
        if word == "map" and at.kind == "word":
            at.next()
            at.expect("<")
            key = self.dtype(at.text)
            at.next()
            at.expect(",")
            value = self.type(scope)
            at.expect(">")
            return MapType(key, value)
        return self.long_type(scope)

    def short_type(self, scope: Scope) -> TensorType:
        """The type in the current token, whose dimensions are all bare."""
        at = self.at
        name, _, rest = at.text[:-1].partition("[")
        dtype = self.dtype(name)
        rest = rest.strip()
        if rest == "*":
            return TensorType(dtype)
        return TensorType(dtype, tuple(self.dim(scope, part.strip()) for part in rest.split(",")) if rest else ())

    def long_type(self, scope: Scope) -> TensorType:
        """A type some of whose dimensions are quoted."""
        at = self.at
        if at.kind != "word":
            at.fail("I100", f"a type such as f32[1, seq] expected, not {at.shown()}")
        dtype = self.dtype(at.text)
        at.next()
        at.expect("[")
        dims: list[int | Dim] = []
        while not at.accept("]"):
            if dims:
                at.expect(",")
            dims.append(at.integer() if at.kind == "number" else self.named_dim(scope, at.name()))
        return TensorType(dtype, tuple(dims))

    def dtype(self, name: str) -> DType:
        """The element type that the current token begins with."""
        at = self.at
        if name not in DTYPES:
            end = at.start + len(name)
            at.fail("T270", f"there is no element type {name!r}", at.start, end, suggest(name, list(DTYPES)))
        return DTYPES[name]

    def dim(self, scope: Scope, text: str) -> int | Dim:
        """A bare dimension."""
        if text.lstrip("-").isdigit():
            if len(text) > LONGEST:
                self.at.fail("I104", "this number has too many digits")
            return int(text)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.\-]*", text):
            self.at.fail("I100", f"{text!r} is no dimension", hint='quote names that are not words: "past + 1"')
        return self.named_dim(scope, text)

    def named_dim(self, scope: Scope, name: str) -> Dim:
        """The dimension declared under a name in this graph or around it, else an unbounded one."""
        inner: Scope | None = scope
        while inner is not None:
            if name in inner.dims:
                return inner.dims[name]
            inner = inner.outer
        found = scope.dims[name] = Dim(name)
        return found

    # ---- tensors ----

    def contents(self, scope: Scope, type: ValueType) -> Tensor:
        """What follows the type of a constant."""
        at = self.at
        if not isinstance(type, TensorType) or min(type.sizes or (), default=0 if type.is_static else -1) < 0:
            at.fail("I104", f"a constant has a static tensor type, not {type}")
        if not type.is_countable:
            at.fail("I104", f"no array can be {type}")
        start, end = at.start, at.end
        if at.kind == "mark" and at.text == "[":
            return self.elements(type)
        if at.accept("base64"):
            return self.base64(type)
        tensor = self.recipe(scope)
        if tensor.type != type:
            at.fail("I106", f"this recipe gives {tensor.type}, not {type}", start, end)
        return tensor

    def elements(self, type: TensorType) -> Tensor:
        """The elements one by one, in brackets."""
        at = self.at
        start = at.start
        dtype = type.dtype
        read = {"s": self.text_element, "b": self.flag_element}.get(dtype.kind, self.number_element)
        found = at.list(lambda: read(dtype))
        # A complex number is written as two floats.
        storage = np.dtype("f4" if dtype.bits == 64 else "f8") if dtype.kind == "c" else dtype.numpy
        count = (type.size or 0) * (2 if dtype.kind == "c" else 1)
        if len(found) != count:
            at.fail("I104", f"{type} has {count} elements, here are {len(found)}", start)
        array = self.array(found, dtype, storage, start)
        if dtype.kind == "c":
            array = array.view(dtype.numpy)
        return InlineTensor(array.reshape(type.sizes or ()), dtype)

    def array(self, found: Sequence[Any], dtype: DType, storage: np.dtype, start: int) -> np.ndarray:
        """Elements as a vector of the storage type."""
        if dtype.kind == "s":
            array = np.empty(len(found), object)
            array[:] = found
            return array
        if dtype.kind == "b":
            return np.array(found, np.bool_)
        if dtype.is_integer:
            return np.array(found, np.uint64 if dtype.name == "u64" else np.int64).astype(storage)
        wide = np.array([0.0 if isinstance(item, _NanBits) else item for item in found], np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            array = wide.astype(storage)
        lost = np.isfinite(wide) & ~np.isfinite(array.astype(np.float64))
        if lost.any():
            self.at.fail("I104", f"{float(wide[lost][0])!r} does not fit {dtype}", start)
        for place, item in enumerate(found):
            if isinstance(item, _NanBits):
                if item.digits != 2 * storage.itemsize:
                    self.at.fail("I104", f"the bits of a NaN of {dtype} are {2 * storage.itemsize} digits", start)
                array.view(f"u{storage.itemsize}")[place] = item.bits
        return array

    def text_element(self, dtype: DType) -> str | bytes:
        """A string, or bytes that are no text."""
        at = self.at
        if at.kind != "string" or at.text[0] != "b":
            return at.string()
        value = at.bytes()
        at.next()
        return value

    def flag_element(self, dtype: DType) -> bool:
        """``true`` or ``false``."""
        if self.at.accept("true"):
            return True
        self.at.expect("false")
        return False

    def number_element(self, dtype: DType) -> int | float | _NanBits:
        """A number in the range of an integer type, or any float."""
        at = self.at
        start, end = at.start, at.end
        if dtype.is_integer:
            value = at.integer()
            if not dtype.low <= value <= dtype.high:
                at.fail("I104", f"{value} does not fit {dtype}", start, end)
            return value
        text = at.text
        if at.kind != "number" and not (at.kind == "word" and text in ("inf", "nan")):
            at.fail("I100", f"a number expected, not {at.shown()}")
        at.next()
        return _NanBits(int(text[4:], 16), len(text) - 4) if text.startswith("nan:") else float(text)

    def base64(self, type: TensorType) -> Tensor:
        """Packed little-endian bytes."""
        at = self.at
        start, end = at.start, at.end
        if type.dtype.kind == "s":
            at.fail("I104", "strings are written one by one")
        try:
            raw = b64decode(at.string(), validate=True)
        except (Base64Error, ValueError) as error:
            at.fail("I104", f"not base64: {error}", start, end)
        wanted = type.nbytes if type.dtype.bits in (2, 4) else (type.size or 0) * type.dtype.numpy.itemsize
        if len(raw) != wanted:
            at.fail("I104", f"{type} takes {wanted} bytes, here are {len(raw)}", start, end)
        array = array_of(raw, type.dtype, type.size or 0)
        return InlineTensor(array.reshape(type.sizes or ()), type.dtype)

    def recipe(self, scope: Scope) -> Tensor:
        """A recipe and its arguments."""
        at = self.at
        start, end = at.start, at.end
        if at.kind not in ("word", "string"):
            at.fail("I100", f"the contents of a tensor expected, not {at.shown()}")
        name = at.name()
        at.expect("(")
        if name == "file":
            return self.file(scope)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        while not at.accept(")"):
            if args or kwargs:
                at.expect(",")
            self._argument(scope, args, kwargs)
        return self._built(name, args, kwargs, start, end)

    def _built(self, name: str, args: list[Any], kwargs: dict[str, Any], start: int, end: int) -> Tensor:
        make = RECIPES.get(name)
        if make is None:
            self.at.fail("I105", f"there is no recipe {name!r}", start, end, suggest(name, list(RECIPES)))
        try:
            return make(*args, **kwargs)
        except LadingError as error:
            first = error.diagnostics[0]
            self.at.fail("I105", f"{first.message} [{first.code}]", start, end, first.hint)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            self.at.fail("I105", f"recipe {name!r} cannot be built from these arguments: {error}", start, end)

    def _argument(self, scope: Scope, args: list[Any], kwargs: dict[str, Any]) -> None:
        at = self.at
        if at.kind == "word" and at.is_before("="):
            start, end = at.start, at.end
            key = at.name()
            at.expect("=")
            if key in kwargs:
                at.fail("I103", f"argument {key!r} is given twice", start, end)
            kwargs[key] = self.recipe_value(scope)
        else:
            args.append(self.recipe_value(scope))

    def recipe_value(self, scope: Scope) -> Any:
        """One argument of a recipe: a tensor, a literal or a list."""
        at = self.at
        if at.kind == "mark" and at.text == "[":
            return at.list(lambda: self.recipe_value(scope))
        if at.kind == "type":
            return self.contents(scope, self.type(scope))
        if at.kind == "word" and at.text in ("true", "false", "none"):
            word = at.text
            at.next()
            return {"true": True, "false": False, "none": None}[word]
        if at.kind in ("word", "string") and at.is_before("("):
            return self.recipe(scope)
        return at.scalar()

    def file(self, scope: Scope) -> Tensor:
        """The arguments of ``file(path, offset, type, key)``."""
        at = self.at
        start = at.start
        path = at.string()
        at.expect(",")
        offset = at.integer()
        at.expect(",")
        type = self.type(scope)
        key = at.string() if at.accept(",") else ""
        end = at.end
        at.expect(")")
        if not isinstance(type, TensorType):
            at.fail("I105", f"a file holds a tensor, not {type}", start, end)
        try:
            return FileTensor(os.path.join(self.base, path), offset, type, key)
        except ValueError as error:
            at.fail("I105", str(error), start, end)


__all__ = ["Literals", "Scope"]
