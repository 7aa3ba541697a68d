"""What onnxruntime makes of the ONNX file that a language model was read from, whatever passes made of its graph since.

The file itself is run, in the child process for models from elsewhere, and its inputs are fed by what they hold: token
ids, a mask of ones, positions from 0 on, an empty history, and whatever choice of rows gives the most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from frontends.checkpoint.original import Original
from ir.base.diag import LadingError
from ir.base.types import BF16, DTYPES, F16, Dim, TensorType
from ir.evaluate.evaluator import Evaluator
from ir.evaluate.kernels import run_file
from ir.facts.inputs import DynamicInputs
from ir.facts.raised import Port, Raised
from ir.graph.copy import copied
from ir.graph.graph import Graph, Node, Value
from ir.onnx.keys import UNMADE
from ir.tensor.base import Tensor

PREFIXES = 6
"""Beginnings of each sequence that are read by a file that gives its last row only."""

RUN = ("", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml", "ai.onnx.preview.training")
"""Sets of operators that onnxruntime brings."""

MEMORY_LIMIT = 256 << 20
"""Bytes of constants that one segment of an evaluation by definitions may hold."""

Run = Callable[[Sequence[Mapping[str, np.ndarray]]], list[np.ndarray]]
"""Logits float32[rows, vocabulary] for each set of feeds."""

FED = ("token-ids", "embedding-rows", "attention-mask", "positions", "history", "row-choice", "length", "unused")
"""Kinds of inputs that can be fed."""


ROUNDING = ("DynamicQuantize", "MatMulInteger", "QAttention", "QGemm", "QLinear", "QuantizeLinear")
"""How operators are called that round what is computed, or go on with what was rounded."""


@dataclass(frozen=True)
class FileInput:
    """An input of the file.

    Attributes:
        name: its name.
        kind: what it holds, in the words of `ir.facts.raised.Port`; empty where nobody knows.
        role: the same more precisely, for masks and lengths.
        dtype: name of its element type.
        shape: sizes, and the names of those that are open; None for one that has none.
        declared: the file says that it is an input; else it is read and never made.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int | str | None, ...]
    declared: bool = True
    role: str = ""


@dataclass(frozen=True)
class OnnxOriginal:
    """The file as a reference.

    Attributes:
        path: the file.
        inputs: its inputs.
        logits: name of the output that is compared.
        half: it computes in half precision.
        width: size of a head, for histories whose own last size is open.
        table: the embedding, for a file that takes rows of it.
        graph: what was read from the file, where it has operators that onnxruntime does not know: it is computed by the
            definitions that these have here.
        unknown: the sets of such operators.
        rounds: it rounds activations to integers.
    """

    path: Path
    inputs: tuple[FileInput, ...]
    logits: str
    half: bool = False
    width: int | None = None
    table: Tensor | None = None
    graph: Graph | None = None
    unknown: tuple[str, ...] = ()
    rounds: bool = False

    def __call__(self, sequences: Sequence[Sequence[int]]) -> Original:
        """The logits of sequences of token ids: of every position, or of the last of several beginnings."""
        from importlib.metadata import version

        runtime = f"onnxruntime {version('onnxruntime')} on {self.path.name}"
        plain = Original(file=self.path.name, half=self.half, rounds=self.rounds)
        if reason := self.obstacle():
            return replace(plain, reason=reason)
        run: Run = self._by_file
        if self.graph is not None:
            runtime += f", {' and '.join(self.unknown)} operators by their definitions"
            run = partial(self._by_definitions, self.graph)
        try:
            logits, rows = self._read([list(ids) for ids in sequences], run)
        except LadingError as error:
            return replace(plain, reason=_short(error.diagnostics[0].message))
        return replace(plain, name=runtime, logits=tuple(logits), rows=tuple(rows))

    def obstacle(self) -> str:
        """Why the file cannot be fed; empty when it can."""
        for item in self.inputs:
            chooses = item.kind != "row-choice" or DTYPES[item.dtype].is_integer
            if item.kind not in FED or not chooses:
                return f"nobody knows what its input {item.name} holds"
            if item.kind == "history" and all(isinstance(size, int) and size > 0 for size in item.shape):
                return f"its history {item.name} has a fixed length"
        return ""

    def _read(self, sequences: list[list[int]], run: Run) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Logits float32[rows, vocabulary] of each sequence, and the positions of the rows."""
        whole = run([self.feeds(ids, 0) for ids in sequences])
        if all(len(logits) == len(ids) for logits, ids in zip(whole, sequences, strict=True)):
            return whole, [np.arange(len(ids)) for ids in sequences]
        ends = [np.unique(np.linspace(1, len(ids), PREFIXES, dtype=int)) for ids in sequences]
        # The last row is chosen by its number as well as by where a slice begins.
        cuts = [(ids[:end], int(end) - 1) for ids, cut in zip(sequences, ends, strict=True) for end in cut]
        single = run([self.feeds(ids, row) for ids, row in cuts])
        if any(len(logits) != 1 for logits in single):
            message = f"its output {self.logits} has {len(single[0])} rows for {len(cuts[0][0])} tokens"
            raise LadingError("T225", message, str(self.path))
        parts = iter(single)
        return [np.concatenate([next(parts) for _ in cut]) for cut in ends], [cut - 1 for cut in ends]

    def _by_file(self, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        free = {item.name: (item.dtype, len(item.shape)) for item in self.inputs if not item.declared}
        found = run_file(self.path, feeds, optimized=False, foreign=True, free=free, outputs=[self.logits])
        return [_table(item[self.logits]) for item in found]

    def _by_definitions(self, graph: Graph, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        from ir.infer.engine import infer_types

        # Definitions need types; what contradicts them is told where the graph is compiled.
        infer_types(graph)
        results = Evaluator(graph, [self.logits], memory_limit=MEMORY_LIMIT).run_many(feeds)
        return [_table(item[self.logits]) for item in results]

    # ---- feeds ----

    def feeds(self, ids: Sequence[int], row: int) -> dict[str, np.ndarray]:
        """Every input for a sequence that begins with an empty history.

        Args:
            ids: token ids.
            row: what a choice of rows says.
        """
        made = {
            "token-ids": partial(_of_tokens, np.asarray(ids)),
            "embedding-rows": partial(_rows, self.table, np.asarray(ids)),
            "attention-mask": partial(_mask, len(ids)),
            "positions": partial(_of_tokens, np.arange(len(ids))),
            "history": partial(_history, self._batch, self.width or 1),
            "row-choice": partial(_filled, row),
            "length": partial(_length, len(ids)),
            "unused": partial(_filled, 0),
        }
        return {item.name: made[item.kind](item) for item in self.inputs}

    @property
    def _batch(self) -> int | str | None:
        """How the file calls the axis of sequences."""
        first = next((item for item in self.inputs if item.kind == "token-ids"), None)
        return first.shape[0] if first is not None and len(first.shape) > 1 else None


def _table(logits: np.ndarray) -> np.ndarray:
    """float32[rows, vocabulary]."""
    return logits.reshape(-1, logits.shape[-1]).astype(np.float32)


def _of_tokens(values: np.ndarray, item: FileInput) -> np.ndarray:
    """A number for each token; further axes in front hold the same numbers."""
    shape = [size if isinstance(size, int) else 1 for size in item.shape[:-1]]
    return np.broadcast_to(values, (*shape, len(values))).astype(DTYPES[item.dtype].numpy)


def _rows(table: Tensor | None, ids: np.ndarray, item: FileInput) -> np.ndarray:
    """The rows that tokens choose, with a batch of one before or behind them."""
    assert table is not None
    rows = np.concatenate([table.rows(int(at), int(at) + 1) for at in ids]).astype(DTYPES[item.dtype].numpy)
    return rows[:, None] if item.shape[1] == 1 else rows[None]


def _mask(tokens: int, item: FileInput) -> np.ndarray:
    """All tokens are there; a matrix says which token sees which: with numbers that are added, or with ones."""
    kind = DTYPES[item.dtype]
    if len(item.shape) <= 2:
        return np.ones((1,) * (len(item.shape) - 1) + (tokens,) * bool(item.shape), kind.numpy)
    seen = np.tril(np.ones((tokens, tokens), bool))
    plane = np.where(seen, 0.0, np.finfo(kind.numpy).min) if kind.is_float else seen
    return plane.astype(kind.numpy).reshape((1,) * (len(item.shape) - 2) + (tokens, tokens))


def _history(batch: int | str | None, width: int, item: FileInput) -> np.ndarray:
    """No tokens: open sizes are 0, but for that of sequences, which is that of the token ids or comes first, and the last
    one, if another is left for the tokens."""
    shape = list(item.shape)
    opened = [place for place, size in enumerate(shape) if not isinstance(size, int)]
    named = [place for place in opened if shape[place] is not None and shape[place] == batch]
    for place in named[:1] or (opened[:1] if len(opened) > 1 else []):
        shape[place] = 1
        opened.remove(place)
    if len(opened) > 1 and opened[-1] == len(shape) - 1:
        shape[-1] = width
    return np.zeros([size if isinstance(size, int) else 0 for size in shape], DTYPES[item.dtype].numpy)


def _length(tokens: int, item: FileInput) -> np.ndarray:
    """How many tokens there are, were, or where the last one is."""
    return _filled({"past": 0, "last": tokens - 1}.get(item.role, tokens), item)


def _filled(number: int, item: FileInput) -> np.ndarray:
    return np.full([size if isinstance(size, int) else 1 for size in item.shape], number, DTYPES[item.dtype].numpy)


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= 160 else text[:157] + "..."


# ---- of a graph ----


@dataclass(frozen=True)
class AsRead:
    """What a graph took and gave when it was read.

    Attributes:
        path: its file.
        inputs: what it took; of none is known what it holds.
        outputs: names of what it gave.
        half: something in it is computed in half precision.
        rows: name of the input that takes rows of an embedding which the file does not hold; empty for none.
        table: that embedding.
        unknown: the sets of operators that onnxruntime does not know.
        graph: a copy of the graph, where it has such operators.
        rounds: it rounds activations to integers.
    """

    path: Path
    inputs: tuple[FileInput, ...]
    outputs: tuple[str, ...]
    half: bool
    rows: str = ""
    table: Tensor | None = None
    unknown: tuple[str, ...] = ()
    graph: Graph | None = None
    rounds: bool = False

    def reference(self, graph: Graph, width: int | None = None) -> OnnxOriginal:
        """The file as a reference.

        Args:
            graph: what passes made of it; they recorded what its inputs hold.
            width: size of a head; None for that of the first attention that was found.
        """
        fact = graph.fact(Raised)
        if width is None and fact is not None:
            sizes = (region.parameters.get("head_size") for region in fact.regions if region.kind == "attention")
            width = next((size for size in sizes if isinstance(size, int)), None)
        kinds = {self.rows: "embedding-rows"} if self.rows else _discovered(graph) if fact is None else {}
        ports = {port.name: port for port in fact.inputs} if fact is not None else {}
        inputs = tuple(
            _known(replace(item, kind=kinds.get(item.name, "")), ports.get(item.name)) for item in self.inputs
        )
        scores = [port.name for port in fact.outputs if port.kind == "logits"] if fact is not None else []
        logits = scores[0] if scores else self.outputs[0]
        return OnnxOriginal(
            self.path, inputs, logits, self.half, width, self.table, self.graph, self.unknown, self.rounds
        )


def _discovered(graph: Graph) -> dict[str, str]:
    """What the inputs hold in whose place those of the runtime stand, by name."""
    found = graph.fact(DynamicInputs)
    kinds = {"embedding-rows": "token-ids", "output-rows": "row-choice"}
    discoveries = found.discoveries if found is not None else ()
    return {name: kinds[item.kind] for item in discoveries if item.kind in kinds for name in item.given}


def _known(item: FileInput, port: Port | None) -> FileInput:
    """An input with what was found out about it; the type of one that the file never declares is found out, too."""
    if port is None:
        return item
    known = replace(item, kind=port.kind, role=port.role)
    return known if item.declared else replace(known, dtype=port.dtype, shape=port.shape)


def as_read(path: Path, graph: Graph) -> AsRead:
    """What a graph that was just read takes and gives."""
    outputs = tuple(value.name for value in graph.outputs)
    values = (*graph.inputs, *(value for node in graph.walk() for value in node.outputs))
    half = any(isinstance(value.type, TensorType) and value.dtype in (F16, BF16) for value in values)
    constants = (value.const.type.dtype for value in graph.consts.values() if value.const is not None)
    half = half or any(item in (F16, BF16) for item in constants)
    unknown = tuple(sorted({domain for node in graph.walk() if (domain := _domain(graph, node)) not in RUN}))
    rounds = any(node.op_type.startswith(ROUNDING) and not _is_constant(node) for node in graph.walk())
    inputs = tuple(map(_input, graph.inputs))
    kept = copied(graph) if unknown else None
    return AsRead(path, inputs, outputs, half, unknown=unknown, graph=kept, rounds=rounds)


def _domain(graph: Graph, node: Node) -> str:
    """The set that an operator belongs to; that of ONNX for functions of the model itself."""
    return "" if node.op in graph.functions else node.op.rpartition(".")[0]


def _is_constant(node: Node) -> bool:
    return all(value is None or value.is_const for value in node.inputs)


def _input(value: Value) -> FileInput:
    type_ = value.type if isinstance(value.type, TensorType) else None
    shape = tuple(_axes(type_)) if type_ is not None and type_.shape is not None else ()
    dtype = type_.dtype.name if type_ is not None else "i64"
    return FileInput(value.name, "", dtype, shape, declared=not (value.loc or "").startswith(UNMADE))


def _axes(type_: TensorType) -> Iterator[int | str | None]:
    for size in type_.shape or ():
        yield size if isinstance(size, int) else size.name if isinstance(size, Dim) else None


__all__ = ["AsRead", "FileInput", "OnnxOriginal", "as_read"]
