"""Choose how the weights of a graph of any kind are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from backends.mnn.modules.edit.codes import codes_of, is_half
from ir.base.diag import LadingError
from ir.base.types import F16, F32
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import attribute
from ir.quant.methods.base import METHODS
from ir.quant.storage import Storage
from ir.quant.weight import shared_quantized
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.rearranged import reshaped, transposed
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.precision.plan_file import check_pattern

BLOCKS = (128, 64, 32, 16)
"""Lengths of blocks that are tried where the one that was asked for does not divide a row."""


@dataclass(frozen=True)
class StoreWeights(Pass):
    """Round the weights of convolutions and matrix products to what they are to be stored as.

    Each output channel of a Conv, Gemm or MatMul with a constant weight is a row of input features, which has one
    scale, or one for each block of them. Blocks hold whole input channels of a convolution; where they do not divide
    a row, the largest that does is taken, else one scale a row. ConvTranspose, whose rows are no output channels, is
    stored in half floats at least. Weights that came in codes stay as they are, and so do small ones, which gain
    nothing.
    """

    name = "store-weights"
    requires = ("typed",)
    lossy = True

    bits: Literal[2, 3, 4, 5, 6, 7, 8, 16, 32] = option(8, help="width of the weights")
    block: int = option(0, help="input features that share a scale; 0 for one scale a row", low=0)
    symmetric: bool = option(False, help="no zero point")
    method: str = option("rtn", help="how codes are chosen; one that needs no statistics")
    keep: tuple[str, ...] = option((), help="patterns of weights that stay as they are")
    least: int = option(1024, help="weights of fewer numbers stay as they are", low=0)

    def prepare(self) -> None:
        """Check patterns and method before any work.

        Raises:
            LadingError: Q411 a bad pattern, Q413 a method that is not known or needs statistics.
        """
        for pattern in self.keep:
            check_pattern(pattern, f"keep={pattern[:200]}")
        known = [
            name for name, method in METHODS.items() if method.needs in ("nothing", "diagonal") and name != "stored"
        ]
        if self.method not in known:
            message = f"store-weights has no quantization method {self.method!r}"
            raise LadingError("Q413", message, hint=f"known: {', '.join(sorted(known))}")

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        counts = {"integer": 0, "half": 0}
        for home in graph.graphs():
            for weight in list(home.consts.values()):
                node = next(iter(weight.users), None)
                stored = self._stored(node, weight.tensor) if node is not None and self._wanted(node, weight) else None
                if stored is not None:
                    counts["half" if codes_of(stored) is None else "integer"] += 1
                    home.set_const(weight, stored)
        return counts

    def _wanted(self, node: Node, weight: Value) -> bool:
        if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or weight.const is None or weight.dtype != F32:
            return False
        if (
            any(user.op != node.op or place != 1 for user, place in weight.uses)
            or codes_of(weight.tensor) is not None
            or is_half(weight.tensor)
        ):
            return False
        rank = weight.tensor.type.rank or 0
        fits = rank == 2 if node.op in ("Gemm", "MatMul") else rank > 2
        small = math.prod(weight.tensor.shape) < self.least
        return fits and not small and not any(fnmatchcase(weight.name, pattern) for pattern in self.keep)

    def _stored(self, node: Node, tensor: Tensor) -> Tensor | None:
        if self.bits == 32:
            return None
        if self.bits == 16 or node.op == "ConvTranspose":
            return cast(cast(tensor, F16), F32)
        by_rows = node.op == "Conv" or (node.op == "Gemm" and bool(attribute(node, "transB")))
        shape = tensor.shape
        rows = reshaped(tensor, (shape[0], math.prod(shape[1:]))) if by_rows else transposed(tensor)
        unit = math.prod(shape[2:]) if node.op == "Conv" else 1
        storage = Storage(
            bits=self.bits, block=self._block(rows.row_size, unit), symmetric=self.symmetric, method=self.method
        )
        found = shared_quantized(rows, storage).dequantized()
        return reshaped(found if by_rows else transposed(found), shape)

    def _block(self, columns: int, unit: int) -> int:
        """The block of rows of `columns` features of which `unit` belong together, 0 for the whole row."""
        tried = [block for block in (self.block, *BLOCKS) if 0 < block <= self.block]
        return next((block * unit for block in tried if columns % (block * unit) == 0 and block * unit < columns), 0)


__all__ = ["StoreWeights"]
