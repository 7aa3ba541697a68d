"""Weights of converted nets in few bits."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.modules.edit import relink
from backends.mnn.modules.edit.codes import codes_of, is_half
from backends.mnn.modules.edit.edit_net import edit_net
from backends.mnn.run.native import mnn_to_json
from ir.base.diag import LadingError
from passes.framework.load import load
from tests.support.modules.models import legal
from tests.support.modules.quantized import LIFT, Chain, compiled, exact, run

STORE = LIFT + ",store-weights{%s},take-qdq,cse,dce,infer-types"


def network(chain: Chain) -> str:
    """Convolutions of each kind and a product with a matrix, all above 1,024 weights but for the depthwise one."""
    x = chain.add("Relu", chain.conv("x", 3, 48, 3))
    x = chain.conv(chain.conv(x, 48, 48, 3, group=48), 48, 40)
    kernel = chain.random.standard_normal((40, 8, 2, 2)).astype(np.float32)
    x = chain.add("ConvTranspose", x, chain.const(kernel), kernel_shape=[2, 2], strides=[2, 2])
    x = chain.add("Reshape", x, chain.const(np.array([1, 64, 50], np.int64)))
    matrix = chain.random.standard_normal((50, 30)).astype(np.float32)
    return chain.add("Add", chain.add("MatMul", x, chain.const(matrix)), chain.const(np.ones(30, np.float32)))


WIDTHS = [(bits, how) for bits in range(2, 9) for how in ("", " symmetric=true", " block=16")]


@pytest.mark.mnn
@pytest.mark.parametrize(("bits", "how"), [*WIDTHS, (16, "")])
def test_the_net_computes_with_what_the_codes_stand_for(bits: int, how: str, tmp_path):
    chain = Chain([1, 3, 10, 10])
    model = chain.model(network(chain))
    _, found, _ = compiled(model, tmp_path, STORE % f"bits={bits}{how}")
    assert not found.lost and found.stored == ({bits: 3, 16: 1} if bits < 16 else {16: 4})
    feeds = chain.feeds(1)[0]
    want, got = exact(tmp_path / "legal.onnx", feeds), run(tmp_path, feeds)
    assert np.abs(want - got).max() <= 2e-5 * np.abs(want).max()
    assert np.abs(want - exact(model, feeds)).max() > 1e-5


@pytest.mark.mnn
def test_weights_inside_and_beside_are_the_same_numbers(tmp_path):
    chain = Chain([1, 3, 10, 10])
    model, feeds = chain.model(network(chain)), chain.feeds(1)[0]
    for place in ("inside", "beside"):
        (tmp_path / place).mkdir()
        compiled(model, tmp_path / place, STORE % "bits=4", inside=place == "inside")
    np.testing.assert_array_equal(run(tmp_path / "inside", feeds), run(tmp_path / "beside", feeds))
    sizes = {path.relative_to(tmp_path).as_posix(): path.stat().st_size for path in tmp_path.glob("*/model.mnn*")}
    raw = (tmp_path / "beside" / "raw.mnn.weight").stat().st_size
    assert sizes["beside/model.mnn.weight"] < raw / 3
    assert abs(sizes["inside/model.mnn"] - sizes["beside/model.mnn.weight"] - sizes["beside/model.mnn"]) < 1000


@pytest.mark.mnn
def test_a_net_that_is_not_edited_stays_as_it_was(tmp_path):
    chain = Chain([1, 3, 10, 10])
    compiled(chain.model(network(chain)), tmp_path, STORE % "bits=32", inside=False)
    assert mnn_to_json(tmp_path / "model.mnn") == mnn_to_json(tmp_path / "raw.mnn")
    assert (tmp_path / "model.mnn.weight").read_bytes() == (tmp_path / "raw.mnn.weight").read_bytes()


@pytest.mark.mnn
def test_a_normalization_that_the_converter_takes_in_scales_the_codes(tmp_path):
    chain = Chain([1, 8, 9, 9])
    x = chain.conv("x", 8, 32, 3)
    numbers = [chain.random.standard_normal(32).astype(np.float32) for _ in range(3)]
    names = [chain.const(array) for array in (*numbers, chain.random.uniform(0.5, 2, 32).astype(np.float32))]
    model = chain.model(chain.add("BatchNormalization", x, *names))
    _, found, net = compiled(model, tmp_path, STORE % "bits=8")
    assert found.stored == {8: 1} and "BatchNorm" not in {op["type"] for op in net["oplists"]}
    feeds = chain.feeds(1)[0]
    want = exact(tmp_path / "legal.onnx", feeds)
    assert np.abs(want - run(tmp_path, feeds)).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.mnn
def test_files_that_are_too_large_or_too_short_are_refused(tmp_path, monkeypatch):
    chain = Chain([1, 3, 10, 10])
    graph, _, _ = compiled(chain.model(network(chain)), tmp_path, STORE % "bits=4")
    monkeypatch.setattr(relink, "LIMIT", 10_000)
    with pytest.raises(LadingError, match=r"the model would take [\d,]+ bytes") as caught:
        edit_net(tmp_path / "raw.mnn", graph, tmp_path / "again.mnn")
    assert caught.value.code == "B791"
    weights = (tmp_path / "raw.mnn.weight").read_bytes()
    (tmp_path / "raw.mnn.weight").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(LadingError, match="keeps its numbers at") as caught:
        edit_net(tmp_path / "raw.mnn", graph, tmp_path / "again.mnn", inside=False)
    assert caught.value.code == "B792"


def test_small_and_named_weights_stay_as_they_are():
    chain = Chain([1, 3, 10, 10])
    model = chain.model(network(chain))
    graph = legal(model, pipeline=STORE % "bits=4 keep=[c4]")
    kinds = {node.op: [] for node in graph.nodes}
    for node in graph.nodes:
        if node.op in ("Conv", "ConvTranspose", "MatMul"):
            tensor = node.operand(1).tensor
            kinds[node.op].append("codes" if codes_of(tensor) is not None else "half" if is_half(tensor) else "float")
    assert kinds["Conv"] == ["codes", "float", "float"]
    assert kinds["ConvTranspose"] == ["half"] and kinds["MatMul"] == ["codes"]


def test_methods_that_need_inputs_are_refused():
    with pytest.raises(LadingError, match="store-weights has no quantization method 'gptq'") as caught:
        legal(Chain([1]).model("x"), pipeline=STORE % "method=gptq")
    assert caught.value.code == "Q413"
    assert load("store-weights{method=hqq}")
