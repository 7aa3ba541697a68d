"""Calling conventions: what a runtime feeds a language model and what it reads back.

A signature is plain data. `passes.inputs.discover_inputs` reconciles a graph with it, backends name the one their
runtime uses. Kinds of a fed input say what it means, so that a pass can recognise the value a graph computes for
itself:

==================  ==================================================================================
kind                meaning
==================  ==================================================================================
``embedding-rows``  one row of the embedding table for each token, already dequantized
``attention-mask``  who may attend to whom; a scalar stands for "causal"
``positions``       absolute position of each token of this call: ``history .. history + seq - 1``
``output-rows``     first row of the output wanted: -1 for the last only, 0 for all
==================  ==================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from ir.base.diag import LadingError, suggest
from ir.base.plugins import rows_of
from ir.base.tables import Table
from ir.base.types import DType


@dataclass(frozen=True)
class FedInput:
    """One input that the runtime feeds.

    Attributes:
        name: tensor name.
        kind: meaning, see the module docstring.
        dtype: element type.
        shapes: accepted shapes, each a tuple of ints and dimension names; the first is the one declared.
        meaning: one sentence for people.
        default: value to feed when nothing better is known; None when there is none.
        low, high: legal values of an integer input (inclusive); None means unbounded.
    """

    name: str
    kind: str
    dtype: DType
    shapes: tuple[tuple[int | str, ...], ...]
    meaning: str
    default: int | float | None = None
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True)
class ReadOutput:
    """One output that the runtime reads: its name, meaning and shape."""

    name: str
    kind: str
    dtype: DType
    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True)
class Signature:
    """A calling convention.

    Attributes:
        name: how pipelines refer to it.
        inputs, outputs: what is fed and read.
        keeps_cache: True when the runtime keeps past keys and values itself.
        embedding: name of the graph table from which the runtime takes the embedding rows.
    """

    name: str
    inputs: tuple[FedInput, ...]
    outputs: tuple[ReadOutput, ...]
    keeps_cache: bool
    embedding: str = "embedding"

    def fed(self, kind: str) -> FedInput | None:
        """The fed input of a kind, or None."""
        return next((item for item in self.inputs if item.kind == kind), None)


SIGNATURES: Table[Signature] = Table("signature", {}, rows_of("signatures"))
"""Calling conventions by name; runtimes bring theirs."""


def signature(name: str) -> Signature:
    """The signature of a name; P-coded error when there is none."""
    if not name:
        message = "nothing says what the runtime feeds the model and reads back"
        raise LadingError(
            "P350", message, hint=f"name a target, or a signature: {', '.join(SIGNATURES) or 'none is known'}"
        )
    if name not in SIGNATURES:
        raise LadingError(
            "P350", f"unknown signature {name!r}", hint=suggest(name, list(SIGNATURES)) or f"known: {list(SIGNATURES)}"
        )
    return SIGNATURES[name]
