"""What passes ask about the runtime that a graph is compiled for.

A runtime has a `Target` of its own that answers for a set of its releases; the class itself answers for a runtime that
reads every storage the IR has, such as onnxruntime. Passes get it from `passes.framework.context.PassContext.target`.
"""

from __future__ import annotations

from collections.abc import Callable

from ir.base.plugins import rows_of
from ir.base.tables import Table
from ir.graph.graph import Graph
from ir.quant.storage import Storage
from ir.quant.storage_size import stored_bits


class Target:
    """The releases of a runtime that one artefact must run on.

    Attributes:
        name: as the user names it.
        signature: the calling convention, a key of `ir.target.signature.SIGNATURES`; empty when there is none.
        widths: bits of block-quantized weights that are computed right.
        embedding_widths: bits at which rows of an embedding table can be read.
        tied_widths: bits of a logits matrix from which embedding rows can be read too.
        rows_in_weight_file: False when embedding rows have to be kept exactly, in a file of their own.
        symmetric: weights without a zero are computed right.
        f16_scales: scales and zeros may be stored in half precision.
        block_unit: blocks that are not a whole row have to be a multiple of this.
    """

    name: str = "any"
    signature: str = ""
    widths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    embedding_widths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 16, 32)
    tied_widths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 16)
    rows_in_weight_file: bool = True
    symmetric: bool = True
    f16_scales: bool = False
    block_unit: int = 1

    def reads_rows(self, bits: int, rows: int) -> bool:
        """True when rows of an embedding table of `rows` rows can be read at a width."""
        return bits in self.embedding_widths

    def weight_bytes(self, rows: int, columns: int, storage: Storage) -> int:
        """Bytes of a matrix ``[rows, columns]`` as it is written, without a bias."""
        return (stored_bits(rows, columns, storage) + 7) // 8

    def exact_rows_bytes(self, rows: int, columns: int, parts: int) -> int:
        """Bytes of embedding rows kept exactly, which take `parts` bfloat16 numbers for each."""
        return 4 * rows * columns

    def fixed_bytes(self, graph: Graph) -> int:
        """Bytes that no storage of weights changes; `graph` has constant weights still."""
        return 0


Resolve = Callable[..., Target]
"""From the text of ``--target`` to a target; without text the target that a runtime would choose for itself."""

TARGETS: Table[Resolve] = Table("target", {}, rows_of("targets"))
"""How targets are found, by backend. Open to plugins."""


def default_target() -> Target:
    """What is compiled for when nobody says: the first runtime's own choice, or any runtime when there is none."""
    for resolve in TARGETS.values():
        return resolve()
    return Target()


__all__ = ["TARGETS", "Resolve", "Target", "default_target"]
