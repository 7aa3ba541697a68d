"""Real changes to a decoder that somebody exported: each gives another model, which runs and says something else.

Every function takes a model and gives back a changed copy; one that finds nothing to change raises `Nothing`. The parts
that are changed are found by the operators that exporters write, which is enough for `tests.support.exports`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.exports.edit import Editor


class Nothing(ValueError):
    """The model has no place where the change could be made."""


def _found(edited: Editor, count: int, what: str) -> onnx.ModelProto:
    if not count:
        raise Nothing(what)
    return edited.finish()


def _set(node: onnx.NodeProto, name: str, value: int | float) -> None:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _get(node: onnx.NodeProto, name: str, default: int | float) -> int | float:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def window(model: onnx.ModelProto, old: int, new: int) -> onnx.ModelProto:
    """Attention reaches `new` positions back instead of `old`."""
    edited = Editor(deepcopy(model))
    count = 0
    for node in edited.nodes("GroupQueryAttention"):
        if _get(node, "local_window_size", -1) == old:
            _set(node, "local_window_size", new)
            count += 1
    for node in edited.nodes("Sub", "Add"):
        for index, name in enumerate(node.input):
            held = edited.constant(name)
            if held is not None and held.dtype.kind == "i" and held.size == 1 and abs(held.item()) == old:
                changed = (np.sign(held) * new).astype(held.dtype)
                edited.replace_input(node, index, edited.add_constant(changed))
                count += 1
    return _found(edited, count, f"a window of {old}")


def rope_style(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rotary embedding turns neighbours instead of halves, or halves instead of neighbours."""
    edited = Editor(deepcopy(model))
    count = 0
    for node in edited.nodes("RotaryEmbedding"):
        _set(node, "interleaved", 1 - int(_get(node, "interleaved", 0)))
        count += 1
    for node in edited.nodes("GroupQueryAttention"):
        if _get(node, "do_rotary", 0):
            _set(node, "rotary_interleaved", 1 - int(_get(node, "rotary_interleaved", 0)))
            count += 1
    for source in _halved(edited):
        readers = edited.readers(source)
        pairs = edited.add("Reshape", [source, edited.add_constant(np.array([0, 0, 0, -1, 2]))])
        apart = edited.add("Transpose", [pairs], perm=[0, 1, 2, 4, 3])
        even_first = edited.add("Reshape", [apart, edited.add_constant(np.array([0, 0, 0, -1]))])
        for node in readers:
            for index, name in enumerate(node.input):
                if name == source:
                    edited.replace_input(node, index, even_first)
        count += 1
    return _found(edited, count, "a rotary embedding")


def rope_sign(model: onnx.ModelProto) -> onnx.ModelProto:
    """Queries are turned one way and keys the other, so that scores no longer depend on the distance alone."""
    edited = Editor(deepcopy(model))
    count = 0
    for joined in _rotations(edited)[::2]:
        edited.behind(joined.output[0], "Neg", [])
        count += 1
    return _found(edited, count, "a rotary embedding written out")


def _rotations(edited: Editor) -> list[onnx.NodeProto]:
    """The nodes ``Concat(Neg(second half), first half)``."""

    def rotates(node: onnx.NodeProto) -> bool:
        makers = [edited.maker(name) for name in node.input]
        return len(makers) == 2 and makers[0] is not None and makers[0].op_type == "Neg"

    return [node for node in edited.nodes("Concat") if rotates(node)]


def _halved(edited: Editor) -> list[str]:
    """For each rotation written out the value [batch, heads, seq, width] that is halved."""
    cuts = [edited.maker(joined.input[1]) for joined in _rotations(edited)]
    return [cut.input[0] for cut in cuts if cut is not None and cut.op_type in ("Slice", "Split")]


def scale(model: onnx.ModelProto, factor: float = 1.5) -> onnx.ModelProto:
    """Scores are multiplied by a factor before the mask is added."""
    edited = Editor(deepcopy(model))
    count = 0
    for node in edited.nodes("GroupQueryAttention", "MultiHeadAttention", "Attention"):
        size = float(_get(node, "scale", 0.0))
        if size:
            _set(node, "scale", size * factor)
            count += 1
    for product in _score_products(edited):
        edited.behind(product.output[0], "Mul", [edited.add_constant(np.array(factor, np.float32))])
        count += 1
    return _found(edited, count, "scores")


def _score_products(edited: Editor) -> list[onnx.NodeProto]:
    """The products of queries and keys: the nearest above each Softmax."""
    softmaxes = edited.nodes("Softmax")
    return [next(node for node in edited.back(item.input[0]) if node.op_type == "MatMul") for item in softmaxes]


def look_ahead(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every position sees the one behind it too."""
    edited = Editor(deepcopy(model))
    count = 0
    for node, index in _causal_comparisons(edited):
        one = edited.add_constant(np.array(1, np.int64))
        edited.replace_input(node, index, edited.add("Add", [node.input[index], one]))
        count += 1
    for node in edited.nodes("Trilu"):
        held = edited.constant(node.input[1]) if len(node.input) > 1 else None
        if held is not None:
            edited.replace_input(node, 1, edited.add_constant(held + np.int64(1)))
            count += 1
    return _found(edited, count, "a causal comparison")


def _causal_comparisons(edited: Editor) -> Iterable[tuple[onnx.NodeProto, int]]:
    """Comparisons ``key <= query`` of whole numbers, with the place of the query."""
    for node in edited.nodes("LessOrEqual"):
        yield node, 1
    for node in edited.nodes("GreaterOrEqual"):
        yield node, 0


def swap_groups(model: onnx.ModelProto) -> onnx.ModelProto:
    """Query heads share keys and values with other heads than before."""
    edited = Editor(deepcopy(model))
    read = [(product, 1) for product in _score_products(edited)]
    read += [(_next_product(edited, softmax.output[0]), 1) for softmax in edited.nodes("Softmax")]
    for node, index in read:  # heads 0, 2, 1, 3 of four, two of which share
        order = edited.add_constant(np.array([0, 2, 1, 3]))
        edited.replace_input(node, index, edited.add("Gather", [node.input[index], order], axis=1))
    fused = edited.nodes("Attention")
    for node in fused:
        for index in (1, 2):
            order = edited.add_constant(np.array([1, 0]))
            edited.replace_input(node, index, edited.add("Gather", [node.input[index], order], axis=1))
    return _found(edited, len(read) + len(fused), "scores")


def _next_product(edited: Editor, value: str) -> onnx.NodeProto:
    waiting = [value]
    while waiting:
        for node in edited.readers(waiting.pop(0)):
            if node.op_type == "MatMul":
                return node
            waiting += node.output
    raise Nothing("a product of weights and values")


def no_causality(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every position sees all others."""
    edited = Editor(deepcopy(model))
    count = 0
    for node, index in _causal_comparisons(edited):
        far = edited.add_constant(np.array(1 << 20, np.int64))
        edited.replace_input(node, index, edited.add("Add", [node.input[index], far]))
        count += 1
    return _found(edited, count, "a causal comparison")


def epsilon(model: onnx.ModelProto, layer: int = 1) -> onnx.ModelProto:
    """One norm, that of number `layer`, adds a thousand times as much before it divides."""
    edited = Editor(deepcopy(model))
    kinds = ("SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")
    kinds += ("LayerNormalization", "SkipLayerNormalization")
    fused = edited.nodes(*kinds)
    if fused:
        _set(fused[layer], "epsilon", 1000 * float(_get(fused[layer], "epsilon", 1e-5)))
        return edited.finish()
    sums = [node for mean in edited.nodes("ReduceMean") for node in edited.readers(mean.output[0])]
    sums = [node for node in sums if node.op_type == "Add"]
    if len(sums) <= layer:
        raise Nothing("a norm")
    index = next(place for place, name in enumerate(sums[layer].input) if edited.constant(name) is not None)
    edited.replace_input(sums[layer], index, edited.add_constant(1000 * edited.constant(sums[layer].input[index])))
    return edited.finish()


def activation(model: onnx.ModelProto, layer: int = 1) -> onnx.ModelProto:
    """The gate of one layer is squashed by HardSigmoid instead of Sigmoid."""
    edited = Editor(deepcopy(model))
    gates = edited.nodes("Sigmoid")
    if len(gates) <= layer:
        raise Nothing("a second Sigmoid")
    gates[layer].op_type = "HardSigmoid"
    return edited.finish()


def shift_keys(model: onnx.ModelProto) -> onnx.ModelProto:
    """In the second layer the rows of keys are those of the position before, the first row that of the last."""
    edited = Editor(deepcopy(model))
    read = [(product, 1, -1) for product in _score_products(edited)]
    read += [(node, 1, -2) for node in edited.nodes("Attention")]
    if len(read) < 2:
        raise Nothing("scores of two layers")
    node, index, axis = read[1]
    keys = node.input[index]
    first, last, end, along = (edited.add_constant(np.array([item])) for item in (0, -1, 1 << 62, axis))
    parts = [edited.add("Slice", [keys, last, end, along]), edited.add("Slice", [keys, first, last, along])]
    edited.replace_input(node, index, edited.add("Concat", parts, axis=axis))
    return edited.finish()


def one_weight(model: onnx.ModelProto, by: float = 0.5) -> onnx.ModelProto:
    """One entry of the last large matrix is moved: everything is found as before, but numbers differ."""
    changed = deepcopy(model)
    large = [item for item in changed.graph.initializer if len(item.dims) == 2 and min(item.dims) > 32]
    if not large:
        raise Nothing("a matrix")
    array = numpy_helper.to_array(large[-1]).copy()
    array[1, 1] += np.asarray(by, array.dtype)
    large[-1].CopyFrom(numpy_helper.from_array(array, large[-1].name))
    return changed


MUTATIONS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "rope style": rope_style,
    "rope sign": rope_sign,
    "scale": scale,
    "look ahead": look_ahead,
    "no causality": no_causality,
    "swapped groups": swap_groups,
    "epsilon": epsilon,
    "activation": activation,
    "shifted keys": shift_keys,
}
"""The changes that need no other argument; `window` needs the window."""
