"""A converted net whose operators are exchanged, and its weights, which are moved inside or beside it.

The converter is told to write weights to a file of their own (``--saveExternalData``); what the net holds is small
then. Numbers of operators that are not exchanged are moved as they are.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from backends.mnn.modules.edit.relink import Item, New, Objects, Old, Scalar, Vector, copied, reference, relink, vector
from backends.mnn.read.flatbuffer import Buffer, Table
from backends.mnn.read.net_file import OPS, PARAMETERS, number_kinds, numbers, parse_net, slot_of
from ir.base.diag import LadingError

_LISTS = {
    "Convolution2D": ("weight", "bias"),
    "Scale": ("scaleData", "biasData"),
    "LayerNorm": ("gamma", "beta"),
}
"""Floats that each kind of parameter keeps in the weight file, in their order there."""

_BLOBS = {"DT_FLOAT": ("float32s", "<f4"), "DT_INT32": ("int32s", "<i4"), "DT_UINT8": ("uint8s", "u1"),
          "DT_INT8": ("int8s", "i1"), "DT_BFLOAT16": ("uint8s", "u1")}  # fmt: skip
"""Where constants of each element type keep their numbers."""

Fields = Mapping[str, Item | None]
"""Fields of a table by name; None leaves one out."""


@dataclass(eq=False)
class Operator:
    """One operator of a net.

    Attributes:
        data: what it says, as in MNN's JSON form.
        level: the graph that it stands in: 0 for the main one, else one more than the place of the subgraph.
        fields: fields of its parameters that are to be exchanged, by name.
        parts: makes what a convolution is to keep instead of its floats: codes, scales and biases.
        inside: its numbers stay in the net, wherever those of others are.
        removed: it is to be left out.
        becomes: another type, kind of parameters and parameters that it is to have.
        reads, makes: numbers of other tensors that it is to read and make.
    """

    data: dict[str, Any]
    table: Table
    level: int
    fields: dict[str, Item | None]
    parts: Callable[[], tuple[np.ndarray, ...]] | None = None
    inside: bool = False
    removed: bool = False
    becomes: tuple[str, str, New] | None = None
    reads: list[int] | None = None
    makes: list[int] | None = None

    @property
    def name(self) -> str:
        """The name that the converter gave it, which begins with that of the value it computes."""
        return str(self.data.get("name") or "")

    @property
    def type(self) -> str:
        """Which operator it is."""
        return str(self.data.get("type"))

    @property
    def main(self) -> dict[str, Any]:
        """Its parameters."""
        return self.data.get("main") or {}

    @property
    def inputs(self) -> list[int]:
        """Numbers of the tensors that it reads."""
        return numbers(self.data.get("inputIndexes")) if self.reads is None else self.reads

    @property
    def outputs(self) -> list[int]:
        """Numbers of the tensors that it makes."""
        return numbers(self.data.get("outputIndexes")) if self.makes is None else self.makes


class Net:
    """A net as the converter wrote it, and the weight file beside it."""

    def __init__(self, path: Path, weights: Path | None = None) -> None:
        """Read both.

        Args:
            path: the net.
            weights: its weight file; by default the one of its name, if there is one.

        Raises:
            LadingError: B710 it is no net, B711 it is not there.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LadingError("B711", f"cannot be read: {error}", where=str(path)) from error
        self.path = path
        self.buffer = Buffer(data, str(path))
        self.data = parse_net(data, str(path))
        self.root = self.buffer.root()
        self._weights = _mapped(weights or path.with_name(path.name + ".weight"))
        self.levels: list[list[Operator]] = [
            self._operators(self.data["oplists"], self.root.tables(slot_of("Net", "oplists")), 0)
        ]
        self._bodies = self.root.tables(slot_of("Net", "subgraphs")) or []
        for place, (said, body) in enumerate(zip(self.data.get("subgraphs", ()), self._bodies, strict=True)):
            self.levels.append(
                self._operators(said.get("nodes", ()), body.tables(slot_of("SubGraphProto", "nodes")), place + 1)
            )
        self.described: dict[int, New] = {}

    @staticmethod
    def _operators(said: Iterable[dict[str, Any]], tables: list[Table] | None, level: int) -> list[Operator]:
        return [Operator(data, table, level, {}) for data, table in zip(said, tables or (), strict=True)]

    @property
    def names(self) -> list[str]:
        """Names of the tensors of the main graph."""
        return list(self.data["tensorName"])

    def floats(self, operator: Operator) -> tuple[np.ndarray, ...]:
        """The floats of parameters of the kinds that keep them in the weight file: weights and biases of a convolution.

        Raises:
            LadingError: B792 they are not there.
        """
        fields = _LISTS[operator.data["main_type"]]
        external = numbers(operator.main.get("external"))
        if not external:
            return tuple(np.asarray(operator.main.get(field, ()), np.float32) for field in fields)
        return tuple(self._part(operator, index).view("<f4") for index in range(len(external) - 1))

    def _part(self, operator: Operator, index: int) -> np.ndarray:
        """One part of what an operator keeps in the weight file, as bytes."""
        external = numbers(operator.main.get("external"))
        start = external[0] + sum(external[1 : 1 + index])
        part = self._weights[start : start + external[1 + index]]
        if part.size != external[1 + index]:
            message = (
                f"{operator.name} keeps its numbers at {start:,}, and the weight file has {self._weights.size:,} bytes"
            )
            raise LadingError("B792", message, where=str(self.path))
        return part

    def span(self, operator: Operator) -> tuple[int, int]:
        """From where to where in the net the codes and scales of a convolution lie."""
        main = operator.table.table(slot_of("Op", "main"))
        quan = main.table(slot_of("Convolution2D", "quanParameter")) if main is not None else None
        assert quan is not None
        start, end = 0, 0
        for field, kind in (("buffer", "i1"), ("alpha", "<f4")):
            array = quan.array(slot_of("IDSTQuan", field), kind)
            if array is not None:
                begin = quan.target(slot_of("IDSTQuan", field)) + 4
                start, end = start or begin, begin + array.nbytes
        return start, end

    def write(self, path: Path, *, inside: bool) -> None:
        """Write the net with its operators exchanged, its weights in it or beside it.

        Raises:
            LadingError: B791 it does not fit one file, B792 numbers are missing.
        """
        if inside:
            path.write_bytes(relink(self.buffer, self._root(self._put_inside)))
            return
        with path.with_name(path.name + ".weight").open("wb") as file:
            path.write_bytes(relink(self.buffer, self._root(lambda operator: self._put_beside(operator, file))))

    # ---- tables ----

    def _root(self, put: Callable[[Operator], dict[str, Item | None]]) -> New:
        lists = [
            Objects(tuple(self._operator(item, put) for item in level if not item.removed)) for level in self.levels
        ]
        changes: dict[int, Item | None] = {slot_of("Net", "oplists"): lists[0]}
        if self._bodies:
            nodes = slot_of("SubGraphProto", "nodes")
            kinds = number_kinds("SubGraphProto")
            bodies = [copied(body, kinds, {nodes: found}) for body, found in zip(self._bodies, lists[1:], strict=True)]
            changes[slot_of("Net", "subgraphs")] = Objects(tuple(bodies))
        if self.described:
            changes[slot_of("Net", "extraTensorDescribe")] = Objects(tuple(self.described.values()))
        return copied(self.root, number_kinds("Net"), changes)

    def _operator(self, operator: Operator, put: Callable[[Operator], dict[str, Item | None]]) -> New | Old:
        fields: dict[str, Item | None] = {**operator.fields, **put(operator)}
        changes: dict[int, Item | None] = {}
        if operator.reads is not None:
            changes[slot_of("Op", "inputIndexes")] = vector(operator.reads, "<i4")
        if operator.makes is not None:
            changes[slot_of("Op", "outputIndexes")] = vector(operator.makes, "<i4")
        if operator.becomes is not None:
            kind, parameter, main = operator.becomes
            changes[slot_of("Op", "type")] = Scalar("i", next(number for number, name in OPS.items() if name == kind))
            changes[slot_of("Op", "main_type")] = Scalar("B", PARAMETERS.index(parameter))
            changes[slot_of("Op", "main")] = main
            return copied(operator.table, number_kinds("Op"), changes)
        if not fields and not changes:
            return Old(operator.table.position)
        if operator.data["main_type"] != "NONE":
            kind = str(operator.data["main_type"])
            old = operator.table.table(slot_of("Op", "main"))
            assert old is not None
            said = {slot_of(kind, field): item for field, item in fields.items()}
            changes[slot_of("Op", "main_type")] = Scalar("B", PARAMETERS.index(kind))
            changes[slot_of("Op", "main")] = copied(old, number_kinds(kind), said) if said else Old(old.position)
        return copied(operator.table, number_kinds("Op"), changes)

    def _put_inside(self, operator: Operator) -> dict[str, Item | None]:
        """What an operator has to say to have its numbers in the net."""
        kind = operator.data.get("main_type")
        external = numbers(operator.main.get("external"))
        if operator.parts is not None:
            codes, scales, bias = operator.parts()
            return {
                "quanParameter": _with_numbers(operator, codes, scales),
                "bias": Vector(bias),
                "weight": None,
                "external": None,
            }
        if not external:
            return {}
        if kind == "Blob":
            field, dtype = _BLOBS[str(operator.main["dataType"])]
            return {field: Vector(self._part(operator, 0).view(dtype)), "external": None}
        found = {field: Vector(part) for field, part in zip(_LISTS[str(kind)], self.floats(operator), strict=False)}
        return {**found, "external": None}

    def _put_beside(self, operator: Operator, file: BinaryIO) -> dict[str, Item | None]:
        """Write the numbers of an operator to the weight file; what it has to say to find them."""
        if operator.inside:
            return self._put_inside(operator)
        external = numbers(operator.main.get("external"))
        if operator.parts is None and not external:
            return {}
        if operator.parts is not None:
            parts = operator.parts()
        else:
            parts = tuple(self._part(operator, index) for index in range(len(external) - 1))
        start = file.tell()
        for part in parts:
            file.write(np.ascontiguousarray(part).tobytes())
        sizes = [part.nbytes for part in parts]
        if operator.parts is None:
            return {"external": vector([start, *sizes], "<i8")}
        return {"external": vector([start, *sizes, 0], "<i8"), "weight": None, "bias": None}


def _with_numbers(operator: Operator, codes: np.ndarray, scales: np.ndarray) -> New:
    quan = operator.fields["quanParameter"]
    assert isinstance(quan, New)
    held: dict[int, Item] = {slot_of("IDSTQuan", "buffer"): Vector(codes.reshape(-1).view(np.int8))}
    if scales.size:
        held[slot_of("IDSTQuan", "alpha")] = Vector(scales.reshape(-1))
    return New({**quan.fields, **held})


def table(kind: str, values: Mapping[str, int | float | bool | Item]) -> New:
    """A new table of numbers and other things, by the names of their fields."""
    kinds = number_kinds(kind)
    fields: dict[int, Item] = {}
    for field, value in values.items():
        slot = slot_of(kind, field)
        fields[slot] = Scalar(kinds[slot], value) if isinstance(value, bool | int | float) else value
    return New(fields)


def _mapped(path: Path) -> np.ndarray:
    if not path.is_file() or not path.stat().st_size:
        return np.zeros(0, np.uint8)
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


__all__ = ["Net", "Operator", "reference", "table"]
