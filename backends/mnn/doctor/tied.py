"""What ``tie_embeddings`` says of where embedding rows lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends.mnn.read.model_folder import Subject, alpha_form
from backends.mnn.read.net_file import numbers


@dataclass(frozen=True)
class TiedRows:
    """Rows of codes and their scales, by offsets in a file.

    Attributes:
        rows, columns: size of the table as graph and configuration tell; 0 where they do not.
        offset, alpha, alpha_bytes: place of the first code, and place and size of the scales.
        bits, block: width of codes, and columns that share a scale; block 0 is a row.
        half: scales are half floats.
    """

    rows: int
    columns: int
    offset: int
    alpha: int
    alpha_bytes: int
    bits: int
    block: int
    half: bool

    @classmethod
    def of(cls, subject: Subject, found: list[int], half: bool) -> TiedRows:
        """Rows of a model, from the numbers of `tie_numbers`."""
        offset, alpha, alpha_bytes, bits, block = found
        return cls(vocabulary(subject), width(subject), offset, alpha, alpha_bytes, bits, block, half)

    @property
    def end(self) -> int:
        """First byte behind the codes."""
        return self.offset + (self.rows * self.columns * self.bits + 7) // 8

    @property
    def alpha_end(self) -> int:
        """First byte behind the scales."""
        return 0 if self.bits == 16 else self.alpha + self.alpha_bytes

    def fault(self) -> str:
        """What contradicts itself; empty when nothing does."""
        if self.bits not in (4, 8, 16):
            return f"speaks of codes of {self.bits} bits, and rows are read with 4, 8 or 16"
        if self.bits == 16 or not self.rows or not self.columns:
            return ""
        if self.alpha != self.end:
            # The runtime works the number of rows out from this distance.
            codes = self.end - self.offset
            return (
                f"has scales {self.alpha - self.offset:,} bytes behind the first code, where the codes take {codes:,}"
            )
        blocks, rest = divmod(self.columns, self.block) if self.block else (1, 0)
        size = self.rows * blocks * (2 if self.half else 4)
        if rest or self.alpha_bytes not in (size, 2 * size):
            return f"speaks of {self.alpha_bytes:,} bytes of scales, where {self.rows:,} rows have {size:,} or {2 * size:,}"
        return ""


def vocabulary(subject: Subject) -> int:
    """Rows of the matrix that computes the logits; 0 when it cannot be told."""
    layer = subject.logits_layer or {}
    return layer.get("main", {}).get("common", {}).get("outputCount", 0)


def width(subject: Subject) -> int:
    """Elements of an embedding row, as the graph declares them or the configuration says; 0 when neither does."""
    dims = numbers(subject.inputs.get("input_ids", {}).get("dims"))
    if len(dims) == 3 and dims[-1] > 0:
        return dims[-1]
    hidden = subject.llm_config.values.get("hidden_size")
    return hidden if type(hidden) is int and hidden > 0 else 0


def tie_numbers(tie: Any) -> list[int] | None:
    """Offset of codes, offset and size of scales, bits and block of either spelling; None when it is neither."""
    if isinstance(tie, dict):
        keys = ("weight_offset", "alpha_offset", "alpha_size", "quant_bit", "quant_block")
        found: list[Any] = [tie.get(key) for key in keys]
    elif isinstance(tie, list) and len(tie) in (5, 6):
        found = tie[:5]
    else:
        return None
    return found if all(type(value) is int and value >= 0 for value in found) else None


def half_scales(tie: Any) -> bool:
    """The scales of embedding rows are half floats, as either spelling says it."""
    return tie.get("alpha_dtype") == "fp16" if isinstance(tie, dict) else tie[5:] == [1]


def tie_forms(subject: Subject, tie: Any) -> set[str] | None:
    """Names of the forms that a release must read, as in the profiles; None when nothing reads the value."""
    found = tie_numbers(tie)
    if found is None:
        return None
    forms = {"object"} if isinstance(tie, dict) else {"six"} if len(tie) == 6 else set()
    bits, block = found[3:]
    if bits == 16:
        return forms | {"half"}
    form = alpha_form(subject.logits_layer) if subject.logits_layer else None
    pairs = form is None or form[2]
    return forms | {"pairs" if pairs else "scales"} | (set() if block else {"row"})
