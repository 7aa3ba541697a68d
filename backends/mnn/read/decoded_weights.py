"""Independent reader of MNN model directories: it decodes what was written and shares no code with the writer.

It knows the format from the runtime's side (``source/core/ConvolutionCommon.cpp``, ``diskembedding.cpp``): offsets and
parameters come from the ``.mnn`` file as the wheel's converter spells it, embedding rows from ``llm_config.json``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from backends.mnn.run.native import mnn_to_json
from ir.base.diag import LadingError
from ir.base.inside import outside
from ir.base.json_numbers import whole

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class StoredLinear:
    """One convolution of the file: `rows` output channels of `columns` input channels.

    `kind` is ``codes``, ``f16`` or ``f32``; `bits` the width read from the blob's header (16 or 32 for floats).
    """

    name: str
    rows: int
    columns: int
    kind: str
    offset: int
    weight_bytes: int
    alpha_bytes: int
    bias_bytes: int
    asymmetric: bool
    half_scales: bool


def _well_formed(read: Callable[P, R]) -> Callable[P, R]:
    """A method that follows what the files say, with a coded error where that leads nowhere.

    Raises:
        LadingError: B680 a part that every model has is missing or of another kind, B682 a weight whose place, size or
            header do not go together.
    """

    @wraps(read)
    def method(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return read(*args, **kwargs)
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            model: Any = args[0]
            name = args[1] if len(args) > 1 and isinstance(args[1], str) else ""
            code, what = ("B682", f"the weight {name}") if name else ("B680", "the model")
            message = f"{what} is not as its files say: {type(error).__name__}: {error}"
            raise LadingError(code, message, where=str(model.folder), hint="the files are damaged") from error

    return method


class MnnModel:
    """A model directory opened for reading."""

    folder: Path

    @_well_formed
    def __init__(self, folder: Path) -> None:
        """Open a directory.

        Raises:
            LadingError: B680 a file is missing or not what it should be.
        """
        self.folder = folder
        self.config = self._json("config.json")
        self.llm_config = self._json(self.config.get("llm_config", "llm_config.json"))
        self.weight_path = self._file(self.config.get("llm_weight", "llm.mnn.weight"))
        self.weights = (
            np.memmap(self.weight_path, np.uint8, "r") if self.weight_path.stat().st_size else np.empty(0, np.uint8)
        )

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise LadingError("B680", f"the model directory lacks {name}", where=str(self.folder))
        if (real := outside(path, self.folder)) is not None:
            raise LadingError("B780", f"{name} leads out of the model's folder, to {real}", where=str(self.folder))
        return path

    def _json(self, name: str) -> dict[str, Any]:
        path = self._file(name)
        try:
            data = json.loads(path.read_text(encoding="utf-8"), parse_int=whole)
        except (ValueError, RecursionError) as error:
            raise LadingError("B680", f"{name} is not JSON: {error}", where=str(path)) from error
        if not isinstance(data, dict):
            raise LadingError("B680", f"{name} is not a JSON object", where=str(path))
        return data

    @cached_property
    @_well_formed
    def net(self) -> dict[str, Any]:
        """The ``Net`` of the model file in MNN's JSON form.

        Raises:
            LadingError: B660 to B665 as `mnn_to_json`.
        """
        return json.loads(mnn_to_json(self._file(self.config.get("llm_model", "llm.mnn"))))

    @cached_property
    @_well_formed
    def linears(self) -> dict[str, StoredLinear]:
        """Every convolution, by operator name, those of experts too, which stand in graphs of their own.

        Raises:
            LadingError: B680 a convolution without the parts that every one has, B681 an offset beyond the end of the
                weight file.
        """
        return {item.name: item for item in self._linears()}

    def _linears(self) -> Iterator[StoredLinear]:
        graphs = [self.net["oplists"], *(graph["nodes"] for graph in self.net.get("subgraphs", ()))]
        for op in itertools.chain.from_iterable(graphs):
            if op["type"] != "Convolution":
                continue
            main, common = op["main"], op["main"]["common"]
            external, quant = main["external"], main.get("quanParameter")
            if quant is None:
                offset, weight, bias = external[:3]
                alpha, kind = 0, "f32"
            else:
                offset, weight, alpha, bias = external[:4]
                kind = {1: "codes", 3: "f16"}[quant["type"]]
            end = offset + weight + alpha + bias
            if offset < 0 or end > self.weights.size:
                raise LadingError(
                    "B681",
                    f"{op['name']} ends at byte {end:,} of a weight file of {self.weights.size:,}",
                    where=str(self.weight_path),
                )
            yield StoredLinear(
                op["name"],
                common["outputCount"],
                common["inputCount"],
                kind,
                offset,
                weight,
                alpha,
                bias,
                bool(quant and quant.get("readType")),
                bool(quant and quant.get("scaleStorage") == "FP16"),
            )

    @_well_formed
    def decode(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of a convolution's weight as the runtime computes them, float32[stop - start, columns]."""
        item = self.linears[name]
        stop = item.rows if stop is None else stop
        if item.kind != "codes":
            dtype = np.dtype("<f2" if item.kind == "f16" else "<f4")
            width = item.columns * dtype.itemsize
            raw = self.weights[item.offset + start * width : item.offset + stop * width]
            return raw.view(dtype).astype(np.float32).reshape(stop - start, item.columns)
        values = self.codes(name, start, stop).astype(np.float32)
        return _dequantize(values, self._alpha(item, start, stop), item.asymmetric)

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Signed codes of rows of a convolution that is stored in integers, int8[stop - start, columns].

        Raises:
            LadingError: B682 the header speaks of another matrix.
        """
        item = self.linears[name]
        stop = item.rows if stop is None else stop
        head = self.weights[item.offset : item.offset + 10]
        wide = item.rows > 0xFFFF or item.columns > 0xFFFF
        dims = np.frombuffer(head[1 : 9 if wide else 5].tobytes(), "<u4" if wide else "<u2")
        if head[0] != 2 or tuple(dims) != (item.rows, item.columns):
            raise LadingError("B682", f"the header of {name} says {tuple(dims)}", where=str(self.weight_path))
        table_at = item.offset + (9 if wide else 5)
        table_size = int(self.weights[table_at]) or 256
        table = self.weights[table_at + 1 : table_at + 1 + table_size].view(np.int8)
        bits = table_size.bit_length() - 1
        codes_at = table_at + 1 + table_size
        codes = _unpack(self.weights, codes_at, bits, start * item.columns, stop * item.columns)
        return table[codes].reshape(stop - start, item.columns)

    def _alpha(self, item: StoredLinear, start: int, stop: int) -> np.ndarray:
        offset, width = item.offset + item.weight_bytes, item.alpha_bytes // item.rows
        raw = self.weights[offset + start * width : offset + stop * width]
        return raw.view("<f2" if item.half_scales else "<f4").astype(np.float32).reshape(stop - start, -1)

    @_well_formed
    def bias(self, name: str) -> np.ndarray:
        """Bias of a convolution, float32[rows]; zeros when none is stored."""
        item = self.linears[name]
        at = item.offset + item.weight_bytes + item.alpha_bytes
        if not item.bias_bytes:
            return np.zeros(item.rows, np.float32)
        return self.weights[at : at + item.bias_bytes].view("<f4").copy()

    @_well_formed
    def embedding_rows(self, ids: np.ndarray) -> np.ndarray:
        """Embedding rows as the runtime feeds them, float32[len(ids), width]."""
        width = self.llm_config["hidden_size"]
        tied = self.llm_config.get("tie_embeddings")
        if tied is None:
            path = self._file(self.config.get("embedding_file", "embeddings_bf16.bin"))
            table = np.memmap(path, "<u2", "r").reshape(-1, width)
            return (table[ids].astype(np.uint32) << 16).view(np.float32)
        at, alpha_at, alpha_bytes, bits, block = tied[:5]
        scale_type = "<f2" if len(tied) > 5 and tied[5] == 1 else "<f4"
        if bits == 16:
            size = self.weights.size - (self.weights.size - at) % 2
            table = self.weights[at:size].view("<f2")
            return np.stack([table[i * width : (i + 1) * width] for i in ids]).astype(np.float32)
        blocks = width // block if block else 1
        return np.stack(
            [self._embedding_row(int(i), width, bits, blocks, at, alpha_at, alpha_bytes, scale_type) for i in ids]
        )

    def _embedding_row(
        self, row: int, width: int, bits: int, blocks: int, at: int, alpha_at: int, alpha_bytes: int, scale_type: str
    ) -> np.ndarray:
        codes = _unpack(self.weights, at, bits, row * width, (row + 1) * width).astype(np.float32) - (1 << (bits - 1))
        size = np.dtype(scale_type).itemsize
        per_row = alpha_bytes // size // self._vocabulary()
        start = alpha_at + size * row * per_row
        raw = self.weights[start : start + size * per_row].view(scale_type).astype(np.float32)
        return _dequantize(codes[None], raw.reshape(1, -1), per_row == 2 * blocks)[0]

    def _vocabulary(self) -> int:
        index = {name: number for number, name in enumerate(self.net["tensorName"])}
        wanted = index["logits"]
        by_output = {number: op for op in self.net["oplists"] for number in op["outputIndexes"]}
        while by_output[wanted]["type"] != "Convolution":
            wanted = by_output[wanted]["inputIndexes"][0]
        return by_output[wanted]["main"]["common"]["outputCount"]


def _unpack(data: np.ndarray, offset: int, bits: int, start: int, stop: int) -> np.ndarray:
    """Codes ``start..stop`` of a stream whose most significant bit comes first, as uint8."""
    if bits == 8:
        return np.asarray(data[offset + start : offset + stop])
    first, last = start * bits, stop * bits
    raw = np.asarray(data[offset + first // 8 : offset + (last + 7) // 8])
    stream = np.unpackbits(raw)[first % 8 : first % 8 + last - first].reshape(-1, bits)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.uint8)
    return (stream * weights).sum(axis=1, dtype=np.uint8)


def _dequantize(codes: np.ndarray, alpha: np.ndarray, asymmetric: bool) -> np.ndarray:
    """``codes * scale + zero`` block by block; alpha holds (zero, scale) pairs or scales."""
    rows, columns = codes.shape
    pairs = alpha.reshape(rows, -1, 2 if asymmetric else 1)
    blocked = codes.reshape(rows, pairs.shape[1], -1)
    scale = pairs[:, :, -1:]
    zero = pairs[:, :, :1] if asymmetric else np.float32(0)
    return (blocked * scale + zero).reshape(rows, columns)
