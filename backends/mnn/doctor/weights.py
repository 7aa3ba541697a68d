"""What the bytes of the weights say: whether they are this model's, and whether they are numbers that a model has.

Each matrix of integer codes begins with its shape and table, which must be what the graph says. Floats have no header;
those of another layout betray themselves by values that no weight has. Scales, norms and biases are read whole, large
float matrices in samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from backends.mnn.doctor.findings import Finding, versions_of
from backends.mnn.doctor.graph import place_of
from backends.mnn.doctor.tied import TiedRows, half_scales, tie_numbers
from backends.mnn.read.model_folder import Subject
from backends.mnn.read.net_file import numbers
from backends.mnn.read.stored_tensors import first_code
from backends.mnn.target.releases import Release

_SAMPLE, _PLACES = 4096, 64
"""Elements looked at in one place of a large matrix of floats, and places."""

_WHOLE = 1 << 24
"""Elements looked at in one go."""

_LEAST, _MOST = 1e-8, 1e4
"""Between these lies the median magnitude of the weights of any trained model, by orders of magnitude."""

_AGAIN = "copy the files again, all from one export"


def weight_findings(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """Everything that can be told from the weight file and the embedding file of a model."""
    if not subject.ops:
        return
    if subject.has(subject.weight_path):
        weights = _Weights(subject)
        yield from weights.headers(releases)
        yield from weights.values(releases)
        yield from weights.tied_rows(releases)
    yield from _embedding_values(subject, releases)


@dataclass(frozen=True)
class _Part:
    """Numbers of an operator in the weight file: scales, a norm, a bias, or a matrix of floats."""

    op: dict[str, Any]
    what: str
    offset: int
    nbytes: int
    dtype: str
    sampled: bool = False


@dataclass(frozen=True)
class _Codes:
    """Whether the bytes of codes of a row differ, and whether all of them are zero."""

    differ: bool
    zero: bool


class _Weights:
    """The weight file of a model, mapped."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.path = subject.weight_path
        self.data = _mapped(self.path)

    @cached_property
    def coded(self) -> list[dict[str, Any]]:
        """Linear layers with integer codes in the file, whose bytes are all there."""
        return [
            op
            for op in self.subject.convolutions
            if op["main"].get("quanParameter", {}).get("type") == 1
            and len(ext := numbers(op["main"].get("external"))) > 2
            and min(ext) >= 0
            and sum(ext[:3]) <= self.data.size
        ]

    # ---- headers ----

    def headers(self, releases: Sequence[Release]) -> Iterator[Finding]:
        """Matrices whose own header is for another shape or width than the graph says."""
        wrong = [op for op in self.coded if self._first_code(op) is None]
        headless = {id(op) for op in wrong}
        if wrong:
            few = f"{len(wrong)} of {len(self.coded)} matrices begin"
            yield Finding(
                "B781",
                f"{self.path.name} is not the file of this model, or is damaged: {few} with another header than the model "
                f"says, the first with {self._said(wrong[0])}",
                versions_of(releases),
                _AGAIN,
                place_of(wrong),
            )
        uneven = [op for op in self.coded if id(op) not in headless and not _scales_fit(op)]
        if uneven:
            yield Finding(
                "B781",
                f"the scales of a matrix have {numbers(uneven[0]['main']['external'])[2]:,} bytes, which do not fit its "
                f"{' x '.join(map(str, _shape(uneven[0])))} elements",
                versions_of(releases),
                _AGAIN,
                place_of(uneven),
            )

    def _first_code(self, op: dict[str, Any]) -> tuple[int, int] | None:
        offset, nbytes = numbers(op["main"]["external"])[:2]
        found = first_code(self.data[offset : offset + min(nbytes, 270)], nbytes, _shape(op))
        return None if found is None else (offset + found.place, found.bits)

    def _said(self, op: dict[str, Any]) -> str:
        """What stands where a header should stand, and what should."""
        offset = numbers(op["main"]["external"])[0]
        head = np.asarray(self.data[offset : offset + 9])
        wide = bool(op["main"]["quanParameter"].get("shapeInt32"))
        size = 9 if wide else 5
        wanted = " x ".join(map(str, _shape(op)))
        if head.size < size or head[0] != 2:
            return f"no header where one for {wanted} should be"
        dims = head[1:size].copy().view("<u4" if wide else "<u2").tolist()
        if tuple(dims) == _shape(op):
            return f"{wanted} as it should, but a table or codes of another size"
        return f"{' x '.join(map(str, dims))} in place of {wanted}"

    # ---- values ----

    def values(self, releases: Sequence[Release]) -> Iterator[Finding]:
        """Scales, norms and floats that no model has."""
        found: dict[str, list[dict[str, Any]]] = {}
        headed = {id(op) for op in self.coded if self._first_code(op) is not None}
        for part in self._parts(headed):
            fault = self._fault(part)
            if fault:
                found.setdefault(f"{part.what} {fault}", []).append(part.op)
        for message, ops in found.items():
            yield Finding("B782", f"{message}: garbage without a message", versions_of(releases), _AGAIN, place_of(ops))

    def _parts(self, headed: set[int]) -> Iterator[_Part]:
        for op in self.subject.ops:
            main, ext = op.get("main", {}), numbers(op.get("main", {}).get("external"))
            if len(ext) < 2 or min(ext) < 0 or sum(ext) > self.data.size:
                continue
            quant = main.get("quanParameter")
            if op.get("type") == "LayerNorm":
                yield _Part(op, "the gain of a norm", ext[0], ext[1], "<f4")
            elif op.get("type") != "Convolution":
                continue
            elif not quant:
                yield _Part(op, "the weights of a matrix", ext[0], ext[1], "<f4", True)
            elif quant.get("type") == 3:
                yield _Part(op, "the weights of a matrix", ext[0], ext[1], "<f2", True)
            elif id(op) in headed:
                half = quant.get("scaleStorage") == "FP16"
                yield _Part(op, "the scales of a matrix", ext[0] + ext[1], ext[2], "<f2" if half else "<f4")

    def _fault(self, part: _Part) -> str:
        """What is wrong with numbers; empty when nothing is."""
        count = part.nbytes // np.dtype(part.dtype).itemsize
        numbers_ = self.data[part.offset : part.offset + count * np.dtype(part.dtype).itemsize].view(part.dtype)
        if part.sampled:
            return _implausible(_sampled(numbers_))
        if not all(np.isfinite(numbers_[at : at + _WHOLE]).all() for at in range(0, count, _WHOLE)):
            return "hold NaN or infinity" if part.what.endswith("matrix") else "holds NaN or infinity"
        if part.what.startswith("the scales"):
            return self._row_fault(part.op, numbers_)
        return _implausible(_sampled(numbers_)) or ("is zero everywhere" if count and not numbers_.any() else "")

    def _row_fault(self, op: dict[str, Any], alpha: np.ndarray) -> str:
        """Rows whose codes and scales contradict each other: one of them was lost, as in a download that stopped.

        A row of zeros, or of one number, has one code throughout.
        """
        place, (rows, _) = self._first_code(op), _shape(op)
        if place is None or not _scales_fit(op):
            return ""
        scales = alpha.reshape(rows, -1)
        scales = scales[:, 1::2] if op["main"]["quanParameter"].get("readType") else scales
        silent = np.flatnonzero(~scales.any(axis=1))
        lost = [row for row in _spread(silent) if self._codes(op, place, row).differ]
        if lost:
            return f"are zero in {len(silent):,} of {rows:,} rows, whose codes are not"
        sample = [row for row in _spread(np.arange(rows)) if scales[row].any()]
        empty = [row for row in sample if self._codes(op, place, row).zero]
        return "have values where the codes are all zero" if len(empty) > len(sample) / 2 else ""

    def _codes(self, op: dict[str, Any], place: tuple[int, int], row: int) -> _Codes:
        start, (_, columns) = place[0], _shape(op)
        first, last = row * columns * place[1] // 8 + 1, (row + 1) * columns * place[1] // 8 - 1
        found = np.asarray(self.data[start + first : start + max(last, first)][:_SAMPLE])
        return _Codes(bool(found.size and found.max() > found.min()), bool(found.size and not found.any()))

    # ---- embedding rows ----

    def tied_rows(self, releases: Sequence[Release]) -> Iterator[Finding]:
        """Whether ``tie_embeddings`` points at whole rows of a matrix."""
        tie = self.subject.llm_config.values.get("tie_embeddings")
        found = tie_numbers(tie)
        if found is None or not found[0] or not self.subject.is_folder:
            return
        fault = self._tie_fault(TiedRows.of(self.subject, found, half_scales(tie)))
        if fault:
            where = str(self.subject.folder / self.subject.llm_config.name)
            yield Finding("B728", f"tie_embeddings {fault}", versions_of(releases), _AGAIN, where)

    def _tie_fault(self, rows: TiedRows) -> str:
        name = self.path.name
        if max(rows.end, rows.alpha_end) > self.data.size:
            return f"points behind the end of {name} ({self.data.size:,} bytes)"
        if fault := rows.fault():
            return fault
        for op in self.subject.convolutions:
            ext = numbers(op["main"].get("external"))
            if len(ext) < 2 or not ext[0] <= rows.offset < ext[0] + ext[1]:
                continue
            place = (self._first_code(op) or (-1, 0))[0] if op in self.coded else ext[0]
            if place != rows.offset:
                return f"points into the middle of {op.get('name') or 'a matrix'}, not at its first code"
            if rows.bits != 16 and op in self.coded and rows.alpha != ext[0] + ext[1]:
                return f"does not point at the scales of {op.get('name') or 'its matrix'}"
        return ""


def _shape(op: dict[str, Any]) -> tuple[int, int]:
    common = op["main"].get("common", {})
    return common.get("outputCount", 0), common.get("inputCount", 0)


def _scales_fit(op: dict[str, Any]) -> bool:
    """The scales of a matrix are as many as whole blocks of its rows need."""
    rows, columns = _shape(op)
    quant = op["main"]["quanParameter"]
    size = (2 if quant.get("scaleStorage") == "FP16" else 4) * (2 if quant.get("readType") else 1)
    blocks, rest = divmod(numbers(op["main"]["external"])[2], max(rows, 1) * size)
    return rows > 0 and blocks > 0 and not rest and columns % blocks == 0


def _mapped(path: Path) -> np.ndarray:
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)


def _sampled(values: np.ndarray) -> np.ndarray:
    """All of a short vector, and places of a long one at even distances."""
    if values.size <= _SAMPLE * _PLACES:
        return values.astype(np.float32)
    starts = np.linspace(0, values.size - _SAMPLE, _PLACES).astype(np.int64)
    return np.concatenate([values[start : start + _SAMPLE] for start in starts]).astype(np.float32)


def _spread(rows: np.ndarray) -> list[int]:
    """Some of many rows, at even distances."""
    return rows[np.linspace(0, rows.size - 1, min(rows.size, _PLACES)).astype(np.int64)].tolist() if rows.size else []


def _implausible(values: np.ndarray) -> str:
    """Why these are not the weights of a model; empty when they may be."""
    if not np.isfinite(values).all():
        return "hold NaN or infinity"
    sizes = np.abs(values[values != 0])
    middle = float(np.median(sizes)) if sizes.size else 1.0
    return "" if _LEAST < middle < _MOST else f"are of size {middle:.0e}, as no model's are"


def _embedding_values(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """Rows of bfloat16 in a file of their own."""
    path = subject.embedding_path
    if not subject.is_folder or subject.llm_config.values.get("tie_embeddings") is not None or not subject.has(path):
        return
    data = _mapped(path)
    halves = data[: data.size // 2 * 2].view("<u2")
    starts = np.linspace(0, max(halves.size - _SAMPLE, 0), _PLACES).astype(np.int64)
    sample = np.concatenate([halves[start : start + _SAMPLE] for start in starts])
    fault = _implausible((sample.astype(np.uint32) << 16).view(np.float32))
    if fault:
        message = f"the embedding rows of {path.name} {fault}: is it bfloat16, and of this model?"
        yield Finding("B782", message, versions_of(releases), _AGAIN, str(path))
