"""How a weight is stored: the decision that passes make and backends carry out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Storage:
    """How one weight is stored.

    Attributes:
        bits: 2 to 8 for blocked integers, 16 for half floats, 32 for single floats.
        block: number of input features that share a scale; 0 for one scale a row. Meaningless above 8 bits.
        symmetric: no zero point.
        zero: ``int`` for an ONNX integer zero point, ``float`` for a real-valued one.
        scale: element type of the scale, ``f32`` or ``f16``.
        method: name of the quantization method.
        rule: which rule chose it, for people.
    """

    bits: int
    block: int = 0
    symmetric: bool = False
    zero: Literal["int", "float"] = "int"
    scale: Literal["f32", "f16"] = "f32"
    method: str = "rtn"
    rule: str = ""

    def same_bytes(self, other: Storage) -> bool:
        """True when both would store the same bytes (the rule that chose them aside)."""
        return replace(self, rule="") == replace(other, rule="")
