"""Block formats of ggml: the numbers of the gguf package bit for bit, and codes that stand for them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants

from ir.base.diag import LadingError
from ir.quant.coded import decoded
from ir.quant.ggml_blocks import BLOCK_TYPES, GgmlBlocks, ggml_blocks, ggml_part
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from tests.support.gguf_files import HALVES, SIMPLE, random_blocks, stored

KINDS = sorted(BLOCK_TYPES)


def any_bytes(kind: str, rows: int = 24, columns: int = 512, seed: int = 0) -> np.ndarray:
    row = BLOCK_TYPES[kind]
    return np.random.default_rng(seed).integers(0, 256, (rows, columns // row.values * row.nbytes), np.uint8)


def reference(raw: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return quants.dequantize(raw, getattr(gguf.GGMLQuantizationType, kind.upper()))


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Equal but for the payload of NaN."""
    plain = ~np.isnan(theirs)
    return np.array_equal(np.isnan(ours), ~plain) and np.array_equal(
        ours.view(np.uint32)[plain], theirs.view(np.uint32)[plain]
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_are_decoded_as_the_package_does(kind: str) -> None:
    """NaN and infinity among the scales, too."""
    raw = any_bytes(kind)
    assert same_bits(ggml_blocks(InlineTensor(raw), kind).load(), reference(raw, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_numbers_are_decoded_as_the_package_does(kind: str) -> None:
    numbers = np.random.default_rng(1).standard_normal((9, 512)).astype(np.float32)
    raw, wanted = stored(numbers, kind.upper())
    found = ggml_blocks(InlineTensor(raw), kind)
    assert same_bits(found.load(), wanted)
    assert kind.upper() not in SIMPLE or np.abs(wanted - numbers).max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_row_ranges_read_no_more_than_they_give(kind: str) -> None:
    raw = random_blocks((11, 768), kind.upper()) if kind.upper() in HALVES else any_bytes(kind, 11, 768)
    whole = ggml_blocks(InlineTensor(raw), kind)

    read: list[tuple[int, int]] = []

    class Watched(InlineTensor):
        def rows(self, start: int, stop: int) -> np.ndarray:
            read.append((start, stop))
            return super().rows(start, stop)

    with np.errstate(all="ignore"):
        found = ggml_blocks(Watched(raw), kind).rows(3, 7)
        assert same_bits(found, whole.load()[3:7])
    assert read == [(3, 7)]


@pytest.mark.parametrize("kind", KINDS)
def test_codes_scales_and_zeros_stand_for_the_numbers(kind: str) -> None:
    """Exact without zeros; with them up to the rounding of the zero that was moved to the middle."""
    raw = stored(np.random.default_rng(2).standard_normal((6, 512)).astype(np.float32), kind.upper())[0]
    matrix = ggml_blocks(InlineTensor(raw), kind)
    assert isinstance(matrix, GgmlBlocks)
    codes, scale, zero = matrix.parts()
    numbers = decoded(
        codes, scale, *([] if zero is None else [zero]), tile=(1, matrix.kind.group), affine=zero is not None
    ).load()
    wanted = matrix.load()
    assert codes.type.dtype.name == f"i{matrix.kind.bits}"
    assert codes.type.dtype.low <= codes.load().min() and codes.load().max() <= codes.type.dtype.high
    if zero is None:
        assert np.array_equal(numbers, wanted)
    else:
        bound = np.repeat(np.abs(zero.load()) + np.abs(scale.load()) * 2**matrix.kind.bits, matrix.kind.group, 1)
        assert (np.abs(numbers - wanted) <= bound * 2.0**-23).all()


def test_the_recipe_is_printed_and_read_again() -> None:
    from ir.graph.graph import Graph

    matrix = ggml_blocks(InlineTensor(any_bytes("q8_0", 2, 64)), "q8_0")
    assert isinstance(matrix, GgmlBlocks)
    graph = Graph("test", opsets={"": 24})
    outputs = [graph.add_const("w", matrix), graph.add_const("codes", matrix.parts()[0])]
    graph.set_outputs([graph.add("Identity", [item], outputs=(f"o{n}",)).output for n, item in enumerate(outputs)])
    again = parse(print_graph(graph))
    for name in ("w", "codes"):
        assert np.array_equal(again.value(name).tensor.load(), graph.value(name).tensor.load())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ggml_blocks(InlineTensor(np.zeros((2, 18), np.uint8)), "q9_9"),
        lambda: ggml_blocks(InlineTensor(np.zeros((2, 19), np.uint8)), "q4_0"),
        lambda: ggml_blocks(InlineTensor(np.zeros(18, np.uint8)), "q4_0"),
        lambda: ggml_blocks(InlineTensor(np.zeros((2, 18), np.int8)), "q4_0"),
        lambda: ggml_part(ggml_blocks(InlineTensor(np.zeros((2, 18), np.uint8)), "q4_0"), "zero"),
    ],
)
def test_what_is_no_matrix_of_blocks(make) -> None:
    with pytest.raises(LadingError) as caught:
        made: Tensor = make()
        made.load()
    assert caught.value.code == "T254"
