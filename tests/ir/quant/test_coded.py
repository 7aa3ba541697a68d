"""Codes of any rank, followed through transposes and reshapes; recipes over codes in ranges."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.quant.coded import Coded, coded, decoded, repeated, rounded_codes, signed_codes, wide_codes
from ir.tensor.inline import InlineTensor
from ir.tensor.packed import unpacked
from ir.tensor.rearranged import column_slice
from ir.tensor.recipes import RECIPES

SHAPES = [(24, 64), (64, 24), (24, 2, 32), (8, 3, 64), (24, 4, 16)]
GIVEN = {
    "blocks": ((24, 64), 1, 16), "blocks of the first axis": ((64, 24), 0, 16), "rows": ((24, 64), 0, 0),
    "columns": ((64, 24), 1, 0), "whole": ((24, 64), 1, None), "three axes": ((24, 4, 16), 2, 16),
    "short last block": ((64, 24), 0, 5), "cut into even blocks": ((24, 64), 1, 48),
}  # fmt: skip


def given(name: str) -> tuple[Coded, np.ndarray]:
    """Random codes in a form, and the numbers that they are."""
    shape, axis, block = GIVEN[name]
    made = np.random.default_rng(0)
    counts = [-(-size // block) if place == axis else size for place, size in enumerate(shape)] if block else None
    table = () if block is None else tuple(counts) if counts else (shape[axis],)
    codes, scale = made.integers(0, 16, shape).astype(np.uint8), made.uniform(0.5, 1, table).astype(np.float32)
    zero = np.asarray(made.integers(0, 16, table)).astype(np.uint8)
    found = coded(InlineTensor(codes, "u4"), InlineTensor(scale), InlineTensor(zero, "u4"), axis, block or 0)
    assert isinstance(found, Coded)

    def spread(part: np.ndarray) -> np.ndarray:
        if not block:
            return part if block is None else np.expand_dims(part, [a for a in range(len(shape)) if a != axis])
        return np.repeat(part, block, axis)[tuple(map(slice, shape))]

    return found, (codes.astype(np.float32) - spread(zero)) * spread(scale)


@pytest.mark.parametrize("name", GIVEN)
def test_every_way_that_is_followed_gives_the_same_numbers(name):
    start, numbers = given(name)
    np.testing.assert_array_equal(start.numbers().load(), numbers)
    matrices = 0
    for shape in SHAPES:
        cut = start.reshaped(shape)
        if cut is None:
            continue
        for order in itertools.permutations(range(len(shape))):
            turned, wanted = cut.transposed(order), numbers.reshape(shape).transpose(order)
            tensor = turned.numbers()
            if tensor is not None:
                np.testing.assert_array_equal(tensor.load(), wanted)
            for last in ((24, 64), (64, 24)):
                seen = turned.reshaped(last)
                for features in (0, 1) if seen is not None else ():
                    parts = seen.matrix(features)
                    if isinstance(parts, str):
                        continue
                    matrices += 1
                    codes, scale, zero = (part.load().astype(np.float32) for part in parts)
                    if scale.shape:
                        scale, zero = (np.repeat(part, codes.shape[1] // part.shape[1], 1) for part in (scale, zero))
                    real = wanted.reshape(last)
                    np.testing.assert_array_equal((codes - zero) * scale, real if features else real.T)
    assert bool(matrices) == (name not in ("short last block",))


def test_reshapes_that_cut_what_is_not_even_are_not_followed():
    found, _ = given("blocks")
    assert found.reshaped((64, 24)) is None and found.reshaped((24, 65)) is None and found.reshaped((24, 32)) is None


def test_constants_that_are_no_dequantization_say_why():
    codes, scale = InlineTensor(np.zeros((4, 8), np.int8)), InlineTensor(np.ones(4, np.float32))
    assert "scales of type" in coded(codes, scale, None, 1, 0)
    assert "no array of narrow" in coded(InlineTensor(np.zeros((4, 8), np.int32)), scale, None, 0, 0)
    assert "scales are f64" in coded(codes, InlineTensor(np.ones(4)), None, 0, 0)
    assert "zeros of type" in coded(codes, scale, InlineTensor(np.zeros(4, np.uint8)), 0, 0)
    assert "blocks of 3" in coded(codes, InlineTensor(np.ones((4, 2), np.float32)), None, 1, 3)


def recipes() -> dict[str, tuple]:
    made = np.random.default_rng(1)
    raw = made.integers(0, 256, (6, 10)).astype(np.uint8)
    low, high = raw & 15, raw >> 4
    nibbles = np.stack([low, high], -1).reshape(6, 20)
    codes, scale = (
        InlineTensor(made.integers(-8, 8, (6, 10)).astype(np.int8)),
        made.uniform(1, 2, (2, 4)).astype(np.float32),
    )
    wide = np.repeat(np.repeat(scale, 3, 0), 3, 1)[:, :10]
    return {
        "unpacked": (unpacked(InlineTensor(raw), "u4"), nibbles),
        "column_slice": (column_slice(InlineTensor(raw), 3, 8), raw[:, 3:8]),
        "signed_codes": (signed_codes(InlineTensor(nibbles, "u4")), nibbles.astype(np.int8) - 8),
        "repeated": (repeated(InlineTensor(nibbles[:2]), 0, 4, 6), np.repeat(nibbles[:2], 4, 0)[:6]),
        "rounded_codes": (
            rounded_codes(InlineTensor(codes.load().astype(np.float32)), InlineTensor(scale), tile=(3, 3), dtype="i4"),
            np.clip(np.rint(codes.load() / wide), -8, 7),
        ),
        "wide_codes": (wide_codes(InlineTensor(nibbles, "u4"), "u8"), nibbles),
        "decoded": (decoded(codes, InlineTensor(scale), tile=(3, 3)), codes.load() * wide),
    }


@pytest.mark.parametrize("name", ["unpacked", "column_slice", "signed_codes", "wide_codes", "decoded"])
def test_recipes_over_codes_in_every_range(name):
    tensor, wanted = recipes()[name]
    made, args, kwargs = tensor.recipe()
    assert made == name
    for one in (tensor, RECIPES[name](*args, **kwargs), pickle.loads(pickle.dumps(tensor))):
        np.testing.assert_array_equal(one.load().astype(wanted.dtype), wanted)
        assert one.fingerprint() == tensor.fingerprint()
    for start, stop in itertools.combinations(range(7), 2):
        np.testing.assert_array_equal(tensor.rows(start, stop).astype(wanted.dtype), wanted[start:stop])
    flat = wanted.reshape(-1)
    for start, stop in ((0, 1), (1, 2), (3, 11), (5, 6), (7, 7), (1, flat.size)):
        np.testing.assert_array_equal(tensor.elements(start, stop).astype(wanted.dtype), flat[start:stop])


def test_arguments_that_do_not_fit_are_diagnostics():
    bytes_, codes = InlineTensor(np.zeros((2, 4), np.uint8)), InlineTensor(np.zeros((2, 4), np.int8))
    for make in (
        lambda: unpacked(codes, "u4"),
        lambda: unpacked(bytes_, "u8"),
        lambda: column_slice(bytes_, 2, 5),
        lambda: signed_codes(codes),
        lambda: wide_codes(bytes_, "i8"),
        lambda: repeated(bytes_, 1, 2, 9),
        lambda: rounded_codes(codes, InlineTensor(np.ones((2, 2), np.float32)), tile=(1, 4), dtype="i8"),
        lambda: decoded(codes, InlineTensor(np.ones((2, 2), np.float32)), tile=(1, 4)),
    ):
        with pytest.raises(LadingError, match="T254"):
            make()
