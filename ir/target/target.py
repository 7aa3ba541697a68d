"""What passes ask about the runtime that a graph is compiled for.

A runtime has a `Target` of its own that answers for a set of its releases; the class itself answers for a runtime that
reads every storage the IR has, such as onnxruntime. Passes get it from `passes.framework.context.PassContext.target`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from ir.base.diag import LadingError, suggest
from ir.base.plugins import rows_of
from ir.base.tables import Table
from ir.graph.graph import Graph
from ir.quant.storage import Storage
from ir.quant.storage_size import stored_bits
from ir.target.device import Device, as_stored


class Target:
    """The releases of a runtime that one artefact must run on.

    Attributes:
        name: as the user names it.
        embedding_widths: bits at which rows of an embedding table can be read.
        tied_widths: bits of a logits matrix from which embedding rows can be read too.
    """

    name: str = "any"
    embedding_widths: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 16, 32)
    tied_widths: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 16)

    @property
    def signature(self) -> str:
        """The calling convention, a key of `ir.target.signature.SIGNATURES`; empty when there is none."""
        return ""

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of block-quantized weights that are computed right."""
        return (2, 3, 4, 5, 6, 7, 8)

    @property
    def rows_in_weight_file(self) -> bool:
        """False when embedding rows have to be kept exactly, in a file of their own."""
        return True

    def rounds(self, storage: Storage) -> Literal["no", "row", "block"]:
        """How activations are rounded to 8 bits before a product with a weight stored so: not at all, by row, or by block
        of the weight where all weights of the model are such."""
        return "no"

    @property
    def ties_rows(self) -> bool:
        """True when embedding rows can be read from a logits matrix that has one scale a row."""
        return True

    @property
    def symmetric(self) -> bool:
        """True when weights without a zero are computed right."""
        return True

    @property
    def f16_scales(self) -> bool:
        """True when scales and zeros may be stored in half precision."""
        return False

    @property
    def block_unit(self) -> int:
        """Blocks that are not a whole row have to be a multiple of this."""
        return 1

    @property
    def devices(self) -> Mapping[str, Device]:
        """What the runtime runs on, by name, and what its kernels read there; the first is taken when nobody says."""
        return {"stored": as_stored()}

    def device(self, name: str = "") -> Device:
        """The device of a name, or the first one without a name.

        Raises:
            LadingError: Q479 there is none of the name.
        """
        known = self.devices
        if not name:
            return next(iter(known.values()))
        if name not in known:
            hint = suggest(name, list(known)) or f"known: {', '.join(known)}"
            raise LadingError("Q479", f"nothing is known of the speed of a device {name!r}", f"device={name}", hint)
        return known[name]

    def reads_rows(self, bits: int, rows: int) -> bool:
        """True when rows of an embedding table of `rows` rows can be read at a width."""
        return bits in self.embedding_widths

    def unfit(self, columns: int, storage: Storage) -> str:
        """Why linear layers over `columns` input features, of integers stored so, come out wrong; empty for right."""
        if storage.bits not in self.widths:
            return f"codes of {storage.bits} bits are not computed right"
        if storage.symmetric and not self.symmetric:
            return "codes without zeros are not computed right"
        if (storage.block or columns) < columns and storage.block % self.block_unit:
            return f"blocks of {storage.block} are not computed right, being no multiple of {self.block_unit}"
        return ""

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
