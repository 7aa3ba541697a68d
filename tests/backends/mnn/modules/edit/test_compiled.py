"""`compile` writes what is stored in few bits, runs it, and says what it cannot store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from backends.contract import Contract
from backends.mnn.modules.edit import integers, weights
from backends.mnn.modules.edit.edited import Edited, warnings_of
from backends.mnn.read.net_file import read_net
from ir.base.diag import LadingError
from tests.support.modules.quantized import Chain, quantized
from tools.compile.job import Request, compile_model

pytestmark = pytest.mark.mnn


def network(chain: Chain) -> str:
    x = chain.add("Relu", chain.conv("x", 3, 32, 3))
    y = chain.add("Relu", chain.conv(x, 32, 32, 3, group=32))
    y = chain.add("Add", chain.add("Relu", chain.conv(y, 32, 48)), chain.conv(x, 32, 48))
    return chain.conv(y, 48, 16)


def made(folder: Path, model: onnx.ModelProto, passes: str, **options: Any) -> Contract:
    onnx.save(model, folder / "given.onnx")
    request = Request(str(folder / "given.onnx"), folder / "out", passes, target="3.6.1", to="mnn", **options)
    return compile_model(request).contract


def test_weights_are_stored_and_named_in_the_contract(tmp_path):
    chain = Chain([1, 3, 16, 16])
    contract = made(tmp_path, chain.model(network(chain)), "mnn-module{bits=4 least=500}")
    assert {entry.storage.bits for entry in contract.weights} == {4} and len(contract.weights) == 4
    data = (tmp_path / "out" / "model.mnn").read_bytes()
    for entry in contract.weights:
        rows, columns = entry.shape
        assert entry.file == "model.mnn"
        assert data[entry.offset] == 2 and tuple(np.frombuffer(data, "<u2", 2, entry.offset + 1)) == (rows, columns)
        assert 0 <= entry.bytes - (1 + 4 + 1 + 16 + rows * columns // 2 + 8 * rows) <= 7, (
            "scales lie behind their number"
        )
    assert [run.reference for run in contract.verified] == ["decoded weights", "float"]


def test_weights_may_lie_beside_the_model(tmp_path):
    chain = Chain([1, 3, 16, 16])
    contract = made(tmp_path, chain.model(network(chain)), "mnn-module{bits=8 least=500}", external_data=True)
    assert [(item.path, item.role) for item in contract.files] == [
        ("model.mnn", "model"),
        ("model.mnn.weight", "weights"),
    ]
    data = (tmp_path / "out" / "model.mnn.weight").read_bytes()
    for entry in contract.weights:
        assert entry.file == "model.mnn.weight" and data[entry.offset] == 2
        assert entry.bytes == 6 + 256 + entry.shape[0] * (entry.shape[1] + 8)


def test_quantized_models_compute_with_integers(tmp_path):
    chain = Chain([1, 3, 16, 16])
    model, feeds = chain.model(network(chain)), chain.feeds()
    contract = made(tmp_path, quantized(model, feeds, tmp_path), "mnn-module")
    net = read_net(tmp_path / "out" / "model.mnn")
    assert len(contract.weights) == 5 and len(net["extraTensorDescribe"]) >= 6
    assert contract.verdict.outcome == "passed"


def test_a_wrong_scale_is_found_by_what_it_does(tmp_path, monkeypatch):
    chain = Chain([1, 3, 16, 16])
    model, feeds = chain.model(network(chain)), chain.feeds()
    right = integers._described
    monkeypatch.setattr(
        integers, "_described", lambda tensor, codes: right(tensor, integers.replace(codes, zero=codes.zero + 9))
    )
    with pytest.raises(
        LadingError, match=r"output 0 is off by .* from the graph of floats, and rounding accounts for"
    ) as caught:
        made(tmp_path, quantized(model, feeds, tmp_path, "s8s8", ActivationSymmetric=True), "mnn-module")
    assert caught.value.code == "V703"


def test_what_computes_with_floats_is_said(tmp_path):
    chain = Chain([1, 3, 16, 16], seed=2)
    contract = made(
        tmp_path,
        quantized(chain.model(network(chain)), chain.feeds(), tmp_path, "u8u8", per_channel=False),
        "mnn-module",
    )
    assert [item.code for item in contract.warnings] == ["Q488"]
    assert "its weights have zeros" in contract.warnings[0].where


def test_weights_that_the_converter_changes_are_said(tmp_path, monkeypatch):
    chain = Chain([1, 3, 16, 16])
    monkeypatch.setattr(weights, "_factors", lambda *given: None)
    contract = made(tmp_path, chain.model(network(chain)), "mnn-module{bits=8 least=1500}")
    assert [item.code for item in contract.warnings] == ["Q487"]


def test_long_lists_are_cut():
    found = warnings_of(Edited(lost={f"v{number}": "why" for number in range(6)}))
    assert found[0].message == "6 weights are stored as floats"
    assert found[0].where.splitlines() == ["v0: why", "v1: why", "v2: why", "v3: why", "and 2 more"]
