"""Decoded weights seen as codes again, through everything that a frontend does to a matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ir.quant.came_coded import SCATTERED, came_coded
from ir.quant.coded import Coded, decoded, decoded_from
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast, scaled
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import column_gather, reshaped, row_concat, row_gather, row_slice, swapped, transposed

ROWS, COLUMNS, BLOCK = 24, 64, 16
ORDER = np.random.default_rng(9).permutation(ROWS)


def matrix(seed: int = 0, zeros: bool = True, tile: tuple[int, int] = (1, BLOCK)) -> Tensor:
    """Decoded codes i8[24, 64]."""
    made = np.random.default_rng(seed)
    counts = ROWS // tile[0], COLUMNS // tile[1]
    codes = InlineTensor(made.integers(-8, 8, (ROWS, COLUMNS)).astype(np.int8), "i4")
    parts = [InlineTensor(made.uniform(0.1, 1, counts).astype(np.float32))]
    if zeros:
        parts.append(InlineTensor(made.integers(-8, 8, counts).astype(np.int8), "i4"))
    return decoded(codes, *parts, tile=tile)


def like(base: Tensor) -> Tensor:
    """Another matrix of the same form."""
    return matrix(1, zeros=len(base.inputs) == 3)


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda base: base,
    "transposed": transposed,
    "rows cut out": lambda base: row_slice(base, 5, 17),
    "rows of a transpose turned back": lambda base: transposed(transposed(row_slice(base, 3, 9))),
    "rows picked": lambda base: row_gather(base, ORDER),
    "picked of a part": lambda base: row_gather(row_slice(base, 8, 24), [3, 1, 2, 15, 0]),
    "put together": lambda base: row_concat([row_slice(base, 0, 4), row_gather(base, [9, 7]), like(base)]),
    "transposed parts together": lambda base: transposed(row_concat([base, like(base)])),
    "one of a stack": lambda base: reshaped(base, (1, ROWS, COLUMNS)),
    "back from a stack": lambda base: reshaped(reshaped(base, (1, ROWS, COLUMNS)), (ROWS, COLUMNS)),
    "widened to what it is": lambda base: cast(base, "f32"),
}


def as_matrix(tensor: Tensor) -> np.ndarray:
    """What the codes of a tensor say, the input features along its last axis or, of a transpose, the first."""
    found = came_coded(tensor)
    assert isinstance(found, Coded)
    if len(found.axes) == 3:
        found = found.reshaped(tuple(tensor.shape[1:]))
        assert found is not None
    for features in (1, 0):
        parts = found.matrix(features)
        if not isinstance(parts, str):
            codes, scale = parts.codes.load().astype(np.float32), parts.scale.load()
            zero = 0 if parts.zero is None else parts.zero.load().astype(np.float32)
            each = codes.shape[1] // (scale.shape[1] if scale.ndim else 1)
            wide = [np.repeat(part, each, axis=1) if np.ndim(part) else part for part in (scale, zero)]
            numbers = (codes - wide[1]) * wide[0]
            return numbers if features else numbers.T
    raise AssertionError(parts)


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("name", STEPS)
def test_the_codes_say_what_the_numbers_say(name: str, zeros: bool) -> None:
    tensor = STEPS[name](matrix(zeros=zeros))
    np.testing.assert_array_equal(as_matrix(tensor), tensor.load().reshape(as_matrix(tensor).shape))


@pytest.mark.parametrize("tile", [(1, COLUMNS), (ROWS, COLUMNS), (1, BLOCK)])
@pytest.mark.parametrize("name", ["as it is", "transposed", "rows cut out", "rows picked"])
def test_scales_of_rows_and_of_the_whole(tile: tuple[int, int], name: str) -> None:
    tensor = STEPS[name](matrix(tile=tile))
    np.testing.assert_array_equal(as_matrix(tensor), tensor.load())


@pytest.mark.parametrize("index", [0, 1])
def test_a_matrix_of_a_stack(index: int) -> None:
    made = np.random.default_rng(3)
    codes = InlineTensor(made.integers(-12, 13, (2, 8, 32)).astype(np.int8))
    stack = decoded(codes, InlineTensor(made.uniform(0, 1, (2, 8, 2)).astype(np.float32)), tile=(1, 1, 16))
    for tensor in (
        reshaped(row_slice(stack, index, index + 1), (8, 32)),
        row_slice(reshaped(stack, (16, 32)), 8 * index, 8 * index + 8),
        reshaped(row_slice(swapped(stack), index, index + 1), (32, 8)),
        row_gather(transposed(reshaped(row_slice(swapped(stack), index, index + 1), (32, 8))), [0, 2, 4, 6]),
    ):
        np.testing.assert_array_equal(as_matrix(tensor), tensor.load())


def test_groups_in_order_are_blocks_and_others_are_none() -> None:
    made = np.random.default_rng(4)
    codes = InlineTensor(made.integers(-8, 8, (ROWS, COLUMNS)).astype(np.int8), "i4")
    scale = InlineTensor(made.uniform(0.1, 1, (ROWS, 4)).astype(np.float32))
    groups = np.repeat(np.arange(4), BLOCK).astype(np.int32)
    in_order = decoded(codes, column_gather(scale, InlineTensor(groups)), tile=(1, 1))
    np.testing.assert_array_equal(as_matrix(transposed(in_order)), in_order.load().T)
    mixed = decoded(codes, column_gather(scale, InlineTensor(groups[made.permutation(COLUMNS)])), tile=(1, 1))
    assert came_coded(row_slice(mixed, 2, 5)) == SCATTERED


def test_what_is_no_weight_in_codes_is_none() -> None:
    floats = InlineTensor(np.ones((4, 4), np.float32))
    assert came_coded(floats) is None and came_coded(transposed(row_slice(floats, 1, 3))) is None
    assert came_coded(scaled(matrix(), 2.0)) is None and came_coded(cast(matrix(), "f16")) is None
    assert isinstance(came_coded(row_concat([matrix(), InlineTensor(np.ones((3, COLUMNS), np.float32))])), str)
    assert isinstance(came_coded(row_concat([matrix(), matrix(zeros=False)])), str)
    assert isinstance(came_coded(row_slice(matrix(tile=(8, 16)), 4, 12)), str)
    assert isinstance(came_coded(row_gather(matrix(tile=(8, 16)), ORDER)), str)
    assert isinstance(came_coded(reshaped(matrix(), (COLUMNS, ROWS))), str)


def test_blocks_of_several_rows_are_said_not_to_fit() -> None:
    found = came_coded(matrix(tile=(8, 16)))
    assert isinstance(found, Coded) and "several rows" in str(found.matrix(1))


def test_the_width_that_a_decoded_matrix_came_in() -> None:
    found = decoded_from(transposed(row_gather(row_slice(matrix(), 2, 20), [3, 1])))
    assert found is not None and found.type.dtype.bits == 4
    assert decoded_from(scaled(matrix(), 2.0)) is None
