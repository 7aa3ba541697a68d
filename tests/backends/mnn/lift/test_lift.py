"""Lifting MNN models: operators taken apart, shape arithmetic, weights that stay as they are, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from backends.mnn.dialect.linear import read_matrix
from backends.mnn.dialect.table import evaluate
from backends.mnn.lift.lift import lift
from backends.mnn.read.net_file import read_net
from backends.mnn.read.sizes import Ints, resolve_sizes
from backends.mnn.read.stored_tensors import WeightFile
from backends.mnn.write.packing import pack_alpha, pack_codes, quantize_pack
from ir.base.diag import LadingError
from ir.base.types import Dim
from ir.quant.storage import Storage
from ir.quant.stored_codes import NAME, stored_codes, stored_weight, unpack
from ir.quant.weight import QuantizedWeight
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from ir.verify.stages import INVARIANTS
from tests.support.paths import DATA

SEQ = Dim("seq", 1, None)


@pytest.fixture(scope="module")
def fused():
    return read_net(DATA / "official-default-int8" / "llm.mnn")


def lifted(net, name="official-default-int8", **options):
    return lift(net, DATA / name / "llm.mnn.weight", **options)


# ---- whole models ----


@pytest.mark.parametrize("name", ["official-default-int8", "official-unfused-int4", "official-unfused-int8-fp32scales"])
@pytest.mark.parametrize("convention", ["mnn-llm", "mnn-llm-3.0"])
def test_official_models_become_legal_graphs(name, convention):
    graph = lifted(read_net(DATA / name / "llm.mnn"), name, convention=convention)
    for invariant in ("typed", "signature", "mnn"):
        assert INVARIANTS[invariant](graph) == []
    inputs = [value.name for value in graph.inputs]
    assert (
        inputs == ["input_ids", "attention_mask", "position_ids", "logits_index"][: 4 if convention == "mnn-llm" else 3]
    )
    assert [value.name for value in graph.outputs] == ["logits"]
    assert str(graph.outputs[0].type) == ("f32[1, rows, 2048]" if len(inputs) == 4 else "f32[1, seq, 2048]")


def test_fused_operators_are_taken_apart(fused):
    kinds = [node.op for node in lifted(fused).nodes]
    assert kinds.count("mnn.Attention") == 2 and kinds.count("mnn.LayerNorm") == 5
    unary = [node.attrs["kind"] for node in lifted(fused).nodes if node.op == "mnn.Unary"]
    assert unary == ["SILU", "SILU"]
    assert all(len(node.inputs) == 4 for node in lifted(fused).nodes if node.op == "mnn.Attention")
    assert not any(op in kinds for op in ("mnn.Shape", "mnn.Rank"))


def test_a_missing_logits_index_is_put_before_the_last_norm(fused):
    net = read_net(DATA / "official-unfused-int4" / "llm.mnn")
    names = net["tensorName"]
    index = names.index("logits_index")
    cut = next(op for op in net["oplists"] if op["type"] == "StridedSlice" and index in np.asarray(op["inputIndexes"]))
    source, result = int(cut["inputIndexes"][0]), int(cut["outputIndexes"][0])
    net["oplists"] = [op for op in net["oplists"] if op is not cut and index not in np.asarray(op["outputIndexes"])]
    for op in net["oplists"]:
        if "inputIndexes" in op:
            op["inputIndexes"] = [
                source if place == result else place for place in np.asarray(op["inputIndexes"]).tolist()
            ]
    graph = lifted(net, "official-unfused-int4")
    norm = [node for node in graph.nodes if node.op == "mnn.LayerNorm"][-1]
    slice_ = norm.inputs[0].producer
    assert slice_.op == "mnn.StridedSlice" and slice_.inputs[1].name == "logits_index"
    assert str(graph.outputs[0].type) == "f32[1, rows, 2048]" and INVARIANTS["typed"](graph) == []


def test_attention_gets_a_mask_where_it_has_none_and_a_scale_of_its_own(fused):
    net = copy.deepcopy(fused)
    for op in net["oplists"]:
        if op["type"] == "Attention":
            op["inputIndexes"] = op["inputIndexes"][:3]
    graph = lifted(net, attention_scale=0.5)
    attention = [node for node in graph.nodes if node.op == "mnn.Attention"]
    assert all(node.inputs[3].name == "attention_mask" for node in attention)
    product = attention[0].inputs[0].producer
    assert product.attrs["kind"] == "MUL"
    assert product.inputs[1].const.load() == pytest.approx(0.5 * np.sqrt(32))


# ---- weights ----


def test_codes_and_scales_are_kept_bit_for_bit():
    folder = DATA / "official-unfused-int4"
    weights = WeightFile(folder / "llm.mnn.weight")
    data = np.fromfile(folder / "llm.mnn.weight", np.uint8)
    for op in read_net(folder / "llm.mnn")["oplists"]:
        if op["type"] != "Convolution":
            continue
        offset, nbytes, alpha_bytes, *_ = np.asarray(op["main"]["external"]).tolist()
        weight, _ = read_matrix(weights, op)
        packed, alpha = quantize_pack(weight, 0, weight.shape[0], half=True)
        assert np.array_equal(packed, data[offset + nbytes - packed.size : offset + nbytes])
        stored = data[offset + nbytes : offset + nbytes + alpha_bytes]
        assert np.array_equal(np.ascontiguousarray(alpha).view(np.uint8).reshape(-1), stored)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_stored_weights_of_every_width(bits, symmetric):
    rng = np.random.default_rng(bits)
    spec = Storage(bits=bits, block=8, symmetric=symmetric, zero="float")
    origin = QuantizedWeight(InlineTensor(rng.normal(size=(7, 24)).astype(np.float32)), spec)
    part = origin.rows(0, 7)
    alpha = pack_alpha(part.scale, part.zero)
    made = stored_weight(stored_codes(InlineTensor(pack_codes(part.codes, bits)), InlineTensor(alpha), 7, 24, bits))
    assert (made.storage.bits, made.storage.block, made.storage.symmetric, made.storage.method) == (
        bits,
        8,
        symmetric,
        NAME,
    )
    for start, stop in ((0, 7), (1, 3), (5, 7)):
        again, wanted = made.rows(start, stop), origin.rows(start, stop)
        assert np.array_equal(again.codes, wanted.codes) and np.array_equal(again.scale, wanted.scale)
    assert np.array_equal(made.dequantized().load(), origin.dequantized().load())
    assert np.array_equal(made.source.rows(2, 4), origin.dequantized().rows(2, 4))


def test_zeros_of_the_smallest_code_are_moved_as_the_runtime_does():
    codes = np.arange(-8, 8, dtype=np.int8).reshape(1, 16)
    alpha = np.array([[[-2.0, 0.25]]], np.float32)
    made = stored_codes(InlineTensor(pack_codes(codes, 4)), InlineTensor(alpha), 1, 16, 4, low=-8)
    assert np.allclose(made.load(), -2.0 + 0.25 * np.arange(16))


def test_unpacking_inverts_packing_at_any_place():
    codes = np.random.default_rng(1).integers(-4, 4, 41).astype(np.int8)
    raw = pack_codes(codes, 3)
    assert np.array_equal(unpack(raw, 3, 0, 41), codes)
    assert np.array_equal(unpack(raw[1:], 3, 1, 38), codes[3:])


def test_lifted_graphs_can_be_printed_and_read():
    graph = lifted(read_net(DATA / "official-unfused-int4" / "llm.mnn"), "official-unfused-int4")
    text = print_graph(graph)
    again = parse(text)
    name = next(name for name in graph.consts if name.endswith("q_proj/Linear.codes"))
    assert "stored_codes" in text
    assert np.array_equal(again.consts[name].const.load(), graph.consts[name].const.load())


def test_what_cannot_be_stored_codes():
    codes, alpha = InlineTensor(np.zeros(10, np.uint8)), InlineTensor(np.zeros((2, 1), np.float32))
    with pytest.raises(LadingError) as caught:
        stored_codes(codes, alpha, 2, 16, 4)
    assert caught.value.code == "T254"
    floats = InlineTensor(np.ones((2, 8), np.float32))
    with pytest.raises(LadingError) as caught:
        QuantizedWeight(floats, Storage(bits=4, block=8, method=NAME)).rows(0, 2)
    assert caught.value.code == "F640"


# ---- shapes ----


def test_shape_arithmetic():
    one, two = Ints((1,)), Ints((2,), True)
    assert evaluate("BinaryOp", {"opType": "ADD"}, [Ints((1, 2)), two]) == Ints((3, 4))
    assert evaluate("BinaryOp", {"opType": "REALDIV"}, [Ints((-7,)), two]) == Ints((-3,))
    assert evaluate("BinaryOp", {"opType": "MUL"}, [Ints((SEQ,)), two]) == Ints((None,))
    assert evaluate("BinaryOp", {"opType": "MOD"}, [one, Ints((0,))]) is None
    assert evaluate("GatherV2", {}, [Ints((1, SEQ, 8)), Ints((1,), True)]) == Ints((SEQ,), True)
    assert evaluate("GatherV2", {}, [Ints((1,)), Ints((5,))]) is None
    assert evaluate("Concat", {}, [one, Ints((SEQ,))]) == Ints((1, SEQ))
    assert evaluate("StridedSlice", {"fromType": 0}, [Ints((4, 5, 6)), one, Ints((3,)), one]) == Ints((5, 6))
    assert evaluate("Shape", {}, [Ints((1, 2, 3))]) == Ints((3,))
    assert evaluate("Rank", {}, [two]) == Ints((0,), True)
    assert evaluate("Softmax", {}, [one]) is None


@pytest.mark.parametrize(
    ("shape", "wanted", "found"),
    [
        ((1, SEQ, 8), (-1, 8, 1, 1), (SEQ, 8, 1, 1)),
        ((SEQ, 16), (SEQ, -1), (SEQ, 16)),
        ((1, SEQ, 8), (0, 0, 2, -1), (1, SEQ, 2, 4)),
        ((2, 6), (3, -1), (3, 4)),
        ((2, 6), (5, -1), None),
        ((SEQ, 8), (-1, 4), None),
        ((SEQ, 8), (None, 8), None),
    ],
)
def test_sizes_of_reshapes(shape, wanted, found):
    assert resolve_sizes(shape, wanted) == found


# ---- refusals ----


def broken(net, change):
    made = copy.deepcopy(net)
    change(made)
    return made


def first(net, kind):
    return next(op for op in net["oplists"] if op["type"] == kind)


def set_type(kind, new):
    return lambda net: first(net, kind).update(type=new)


def set_main(kind, **values):
    return lambda net: first(net, kind)["main"].update(values)


def shift(net):
    main = first(net, "Convolution")["main"]
    main["external"] = np.asarray(main["external"]) + np.array([10**9, 0, 0, 0, 0])[: len(main["external"])]


def misplace(net):
    main = first(net, "Convolution")["main"]
    main["external"] = np.asarray(main["external"]) + np.array([4, 0, 0, 0, 0])[: len(main["external"])]


def odd_scales(net):
    main = first(net, "Convolution")["main"]
    main["external"] = np.asarray(main["external"]) + np.array([0, 0, -2, 0, 0])[: len(main["external"])]


def size_of_the_run(net):
    """The rows reshaped to sizes that are products of sizes of the run."""
    rows = {"dims": [-1, 1, 4], "dtype": "DT_FLOAT", "dformat": "NCHW"}
    net["tensorName"] = ["input_ids", "sizes", "squares", "logits"]
    net["oplists"] = [
        {"type": "Input", "main": rows, "outputIndexes": [0]},
        {"type": "Shape", "inputIndexes": [0], "outputIndexes": [1]},
        {"type": "BinaryOp", "main": {"opType": "MUL"}, "inputIndexes": [1, 1], "outputIndexes": [2]},
        {"type": "Reshape", "main": {}, "inputIndexes": [0, 2], "outputIndexes": [3]},
    ]


def rename(net, old):
    net["tensorName"] = ["other" if name == old else name for name in net["tensorName"]]


REFUSED = {
    "cut": (shift, "F642"),
    "header": (misplace, "F643"),
    "scales": (odd_scales, "F643"),
    "float-type": (lambda net: first(net, "Convolution")["main"]["quanParameter"].update(type=4), "F643"),
    "scale-factor": (lambda net: first(net, "Convolution")["main"]["quanParameter"].update(quantScale=2.0), "F643"),
    "inline": (set_main("Convolution", external=[0]), "F643"),
    "blob": (set_main("Const", dataType="DT_UINT8"), "F643"),
    "blob-size": (set_main("Const", dims=[77]), "F643"),
    "operator": (set_type("RoPE", "CumSum"), "F644"),
    "kernel": (lambda net: first(net, "Convolution")["main"]["common"].update(kernelX=3), "F644"),
    "relu": (lambda net: first(net, "Convolution")["main"]["common"].update(relu=True), "F644"),
    "groups": (set_main("LayerNorm", group=2), "F644"),
    "shared": (set_main("Attention", kv_shared_layer_index=0), "F644"),
    "run-size": (size_of_the_run, "F645"),
    "no-logits": (lambda net: rename(net, "logits"), "F646"),
    "no-rows": (lambda net: rename(net, "input_ids"), "F646"),
    "order": (lambda net: net["oplists"].reverse(), "F646"),
    "index": (lambda net: first(net, "Convolution").update(inputIndexes=[10**6]), "F646"),
    "operands": (lambda net: first(net, "RoPE").update(inputIndexes=first(net, "RoPE")["inputIndexes"][:3]), "F646"),
    "no-parameter": (lambda net: first(net, "Convolution").pop("main"), "F646"),
    "no-width": (set_main("Input", dims=[]), "F646"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lifted_is_refused(name, fused):
    change, code = REFUSED[name]
    with pytest.raises(LadingError) as caught:
        lifted(broken(fused, change))
    assert caught.value.code == code, caught.value
