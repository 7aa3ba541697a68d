"""The value that says how a weight is stored, and the fact that keeps one for each weight."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from backends.contract import Storage as Record
from ir.base.diag import LadingError
from ir.facts.precision import PrecisionPlan
from ir.quant.storage import Storage


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_signed_and_use_every_bit(bits):
    found = Storage(bits=bits)
    assert (found.low, found.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) and found.is_integer


def test_floats_have_no_codes():
    assert not Storage(bits=16).is_integer and not Storage(bits=32).is_integer
    for bits in (0, 1, 9, 15, 64):
        with pytest.raises(LadingError, match="Q400"):
            Storage(bits=bits)


def test_it_is_a_value_with_named_fields():
    one = Storage(bits=4, block=32, method="gptq")
    assert one == pickle.loads(pickle.dumps(one)) == replace(one) and len({one, replace(one)}) == 1
    assert one != replace(one, symmetric=True)
    with pytest.raises(TypeError):
        Storage(4, 32)
    with pytest.raises(FrozenInstanceError):
        one.bits = 8
    with pytest.raises(LadingError, match="Q400"):
        replace(one, scale="bf16")


def test_blocks_of_a_row_and_the_block_that_fits():
    assert (Storage(bits=4, block=32).blocks(96), Storage(bits=4).blocks(96), Storage(bits=4).blocks(0)) == (3, 1, 0)
    with pytest.raises(LadingError, match="use block=32") as caught:
        Storage(bits=4, block=64).blocks(96)
    assert caught.value.code == "Q401"
    assert Storage(bits=4, block=64, symmetric=True).fit(96) == Storage(bits=4, block=32, symmetric=True)
    assert Storage(bits=4, block=64).fit(33) == Storage(bits=4)


def test_a_plan_keeps_what_chose_a_storage_beside_it():
    plan = PrecisionPlan({"a": Storage(bits=4, block=32), "b": Storage(bits=16)}, rules={"a": "layer", "b": "keep=b"})
    data = json.loads(json.dumps(plan.to_data()))
    assert data["storage"]["a"] == {
        "bits": 4, "block": 32, "symmetric": False, "zero": "int", "scale": "f32", "method": "rtn", "rule": "layer",
    }  # fmt: skip
    assert PrecisionPlan.from_data(data) == plan
    renamed = plan.renamed("a", "c")
    assert (dict(renamed.storage), dict(renamed.rules)) == (
        {"c": plan.storage["a"], "b": plan.storage["b"]}, {"c": "layer", "b": "keep=b"},
    )  # fmt: skip
    assert plan.renamed("d", "e") is plan


@pytest.mark.parametrize(
    ("how", "record"),
    [
        (Storage(bits=4, block=64, method="gptq"), (4, 64, False, "int", "f32", "gptq")),
        (Storage(bits=8, symmetric=True, zero="float", scale="f16"), (8, 0, True, "none", "f16", "rtn")),
        (Storage(bits=16, block=64), (16, 0, True, "none", None, "cast")),
    ],
)
def test_the_record_of_a_contract_is_made_of_it(how, record):
    found = Record.of(how, "some-layout")
    assert (found.bits, found.block, found.symmetric, found.zero, found.scale_dtype, found.method) == record
    assert found.layout == "some-layout" and Record.of(Storage(bits=16), "x", floats="split").method == "split"
