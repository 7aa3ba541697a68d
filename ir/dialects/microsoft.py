"""Operators that onnxruntime adds to ONNX's: their arity, attributes and types.

onnxruntime computes them itself, so they need no meaning in ONNX terms here; what they mean is written down in the
rewrites of `passes.contrib`. Exporters and onnxruntime's own optimizer write them. Two stand in ONNX's domain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ir.base.types import DTYPES, F32, I32, TensorType, ValueType
from ir.graph.graph import Node
from ir.infer.inference import Inference
from ir.infer.numeric import (
    Shape,
    axis_of,
    broadcast,
    matmul_shape,
    one_dtype,
    part_axis,
    positive,
    tensor,
    typed,
)
from ir.infer.rule_table import TypeMismatch
from ir.infer.symbolic import Extent
from ir.ops.registry import ANY, AttrDef, OpDef

DOMAIN = "com.microsoft"
Types = ValueType | tuple[ValueType | None, ...] | None


# ---- types ----


def _as_input(run: Inference, node: Node) -> Types:
    return tensor(node.inputs[0])


def _gelu_of_sum(run: Inference, node: Node) -> Types:
    x, bias = tensor(node.inputs[0]), tensor(node.input(1))
    if node.input(1) is None or x is None:
        return x
    return typed(x.dtype, broadcast(run, (x.shape, bias.shape if bias is not None else None)))


def _reduced(x: TensorType, axis: int) -> TensorType:
    """Type of a statistic of the axes from `axis` on."""
    if x.shape is None:
        return TensorType(F32)
    place = axis_of(axis, len(x.shape))
    return typed(F32, (*x.shape[:place], *(1 for _ in x.shape[place:])))


def _norm(run: Inference, node: Node) -> Types:
    x, scale = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None:
        return None
    told = _reduced(x, node._attrs.get("axis", -1))
    return (TensorType(scale.dtype if scale is not None else x.dtype, x.shape), told, told)


def _skip_norm(run: Inference, node: Node) -> Types:
    x, skip = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None:
        return None
    one_dtype(x, skip, *(tensor(value) for value in node.inputs[2:]))
    shape = broadcast(run, (x.shape, skip.shape)) if skip is not None else None
    total = typed(x.dtype, shape)
    told = _reduced(total, -1)
    return (total, told, told, total)


def _embed_norm(run: Inference, node: Node) -> Types:
    ids, words = tensor(node.inputs[0]), tensor(node.input(2))
    if ids is None or words is None or ids.shape is None or words.shape is None:
        return None
    if not words.shape:
        raise TypeMismatch("its table of words is a scalar")
    found = typed(words.dtype, (*ids.shape, words.shape[-1]))
    return (found, typed(I32, ids.shape[:1]), found)


def _fused_matmul(run: Inference, node: Node) -> Types:
    a, b = tensor(node.inputs[0]), tensor(node.inputs[1])
    if a is None or b is None:
        return None
    if node._attrs.get("transBatchA") or node._attrs.get("transBatchB"):
        return typed(one_dtype(a, b), None)
    shape = matmul_shape(run, _swapped(a.shape, node, "transA"), _swapped(b.shape, node, "transB"))
    return typed(one_dtype(a, b), shape)


def _swapped(shape: Shape | None, node: Node, name: str) -> Shape | None:
    if shape is None or not node._attrs.get(name) or len(shape) < 2:
        return shape
    return (*shape[:-2], shape[-1], shape[-2])


def _plain_product(run: Inference, node: Node) -> Types:
    a, b = tensor(node.inputs[0]), tensor(node.inputs[1])
    return None if a is None or b is None else typed(F32, matmul_shape(run, a.shape, b.shape))


def _matmul_bits(run: Inference, node: Node) -> Types:
    positive(node, "K", "N", "block_size", "bits")
    a = tensor(node.inputs[0])
    if a is None or a.shape is None:
        return a
    features = node._attrs["K"]
    if not a.shape or (type(a.shape[-1]) is int and a.shape[-1] != features):
        raise TypeMismatch(f"it multiplies rows of {features} numbers")
    return typed(a.dtype, (*a.shape[:-1], node._attrs["N"]))


def _gather_block_quantized(run: Inference, node: Node) -> Types:
    positive(node, "block_size", "bits")
    data, indices, scales = (tensor(value) for value in node.inputs[:3])
    if data is None or indices is None or scales is None or data.shape is None or indices.shape is None:
        return typed(scales.dtype, None) if scales is not None else None
    axis = part_axis(node._attrs.get("gather_axis", 0), len(data.shape))
    sizes: list[Extent | None] = list(data.shape)
    if data.dtype == DTYPES["u8"]:
        packed = 8 // node._attrs.get("bits", 4)
        last = sizes[-1]
        sizes[-1] = None if last is None else run.table.multiply(last, packed)
    return typed(scales.dtype, (*sizes[:axis], *indices.shape, *sizes[axis + 1 :]))


def _rotary(run: Inference, node: Node) -> Types:
    x = tensor(node.inputs[0])
    if x is not None and x.shape is not None and len(x.shape) not in (3, 4):
        raise TypeMismatch("it turns tensors of rank 3 or 4")
    return x


def _grouped_attention(run: Inference, node: Node) -> Types:
    positive(node, "num_heads", "kv_num_heads")
    q, past = tensor(node.inputs[0]), tensor(node.input(3))
    heads, kv_heads = node._attrs["num_heads"], node._attrs["kv_num_heads"]
    if q is None:
        return None
    if q.shape is None or len(q.shape) != 3:
        return (TensorType(q.dtype),) * 4
    width, size = q.shape[2], None
    if node.input(1) is None and width is not None:
        size = run.table.quotient([width], [heads + 2 * kv_heads])
        width = run.table.multiply(heads, size)
    elif width is not None:
        size = run.table.quotient([width], [heads])
    kept = past.dtype if past is not None else q.dtype
    present = typed(kept, (q.shape[0], kv_heads, None, size))
    return (
        typed(q.dtype, (*q.shape[:2], width)),
        present,
        present,
        typed(q.dtype, (q.shape[0], heads, q.shape[1], None)),
    )


def _multi_head(run: Inference, node: Node) -> Types:
    positive(node, "num_heads")
    q, v = tensor(node.input(0)), tensor(node.input(2))
    if q is None:
        return None
    unknown = (TensorType(q.dtype),) * 4
    if q.shape is None or len(q.shape) != 3 or v is None or v.shape is None:
        return unknown
    heads = node._attrs["num_heads"]
    if len(v.shape) == 3:
        width = v.shape[2]
        size = run.table.quotient([width], [heads]) if width is not None else None
    elif len(v.shape) == 4:
        size = v.shape[3]
        width = run.table.multiply(heads, size) if size is not None else None
    else:
        return unknown
    key_size = run.table.quotient([q.shape[2]], [heads]) if q.shape[2] is not None else None
    return (
        typed(q.dtype, (*q.shape[:2], width)),
        typed(q.dtype, (q.shape[0], heads, None, key_size)),
        typed(q.dtype, (q.shape[0], heads, None, size)),
        typed(q.dtype, (q.shape[0], heads, q.shape[1], None)),
    )


def _attention(run: Inference, node: Node) -> Types:
    positive(node, "num_heads", "qkv_hidden_sizes")
    x, weights = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None or x.shape is None or len(x.shape) != 3:
        return (x, None)
    sizes = node._attrs.get("qkv_hidden_sizes")
    if sizes and len(sizes) != 3:
        raise TypeMismatch(f"qkv_hidden_sizes has {len(sizes)} numbers, not 3")
    width: Extent | None = sizes[2] if sizes else None
    if not sizes and weights is not None and weights.shape and weights.shape[-1] is not None:
        width = run.table.quotient([weights.shape[-1]], [3])
    heads = node._attrs["num_heads"]
    size = run.table.quotient([width], [heads]) if width is not None else None
    return (typed(x.dtype, (*x.shape[:2], width)), typed(x.dtype, (2, x.shape[0], heads, None, size)))


def _quantize(run: Inference, node: Node) -> Types:
    x, zero = tensor(node.inputs[0]), tensor(node.input(2))
    return None if x is None else TensorType(zero.dtype if zero is not None else DTYPES["u8"], x.shape)


def _dequantize(run: Inference, node: Node) -> Types:
    x, scale = tensor(node.inputs[0]), tensor(node.inputs[1])
    return None if x is None or scale is None else TensorType(scale.dtype, x.shape)


def _binary_codes(run: Inference, node: Node) -> Types:
    a, b = tensor(node.inputs[0]), tensor(node.inputs[3])
    return None if a is None or b is None else typed(a.dtype, broadcast(run, (a.shape, b.shape)))


def _concat_codes(run: Inference, node: Node) -> Types:
    zero, parts = tensor(node.inputs[1]), [tensor(value) for value in node.inputs[2::3]]
    known = [part.shape for part in parts if part is not None and part.shape is not None]
    if zero is None or len(known) < len(parts) or len({len(shape) for shape in known}) != 1:
        return typed(zero.dtype, None) if zero is not None else None
    axis = part_axis(node._attrs["axis"], len(known[0]))
    total: Extent = 0
    for shape in known:
        total = run.table.add(total, shape[axis])
    return typed(zero.dtype, (*known[0][:axis], total, *known[0][axis + 1 :]))


def _where_codes(run: Inference, node: Node) -> Types:
    types = [tensor(node.inputs[index]) for index in (0, 1, 4)]
    known = [type_ for type_ in types if type_ is not None]
    return typed(known[1].dtype, broadcast(run, [type_.shape for type_ in known])) if len(known) == 3 else None


def _gemm_codes(run: Inference, node: Node) -> Types:
    a, b, zero = tensor(node.inputs[0]), tensor(node.inputs[3]), tensor(node.input(8))
    if a is None or b is None:
        return None
    dtype = F32 if node.input(7) is None else zero.dtype if zero is not None else a.dtype
    return typed(dtype, matmul_shape(run, _swapped(a.shape, node, "transA"), _swapped(b.shape, node, "transB")))


def _fused_gemm(run: Inference, node: Node) -> Types:
    a, b = tensor(node.inputs[0]), tensor(node.inputs[1])
    if a is None or b is None:
        return None
    shape = matmul_shape(run, _swapped(a.shape, node, "transA"), _swapped(b.shape, node, "transB"))
    return typed(one_dtype(a, b), shape)


def _fused_conv(run: Inference, node: Node) -> Types:
    """The channels of a convolution; its other sizes follow where it is written out."""
    x, w = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None or x.shape is None or w is None or not w.shape or len(x.shape) < 3:
        return typed(x.dtype, None) if x is not None else None
    return typed(x.dtype, (x.shape[0], w.shape[0], *(None for _ in x.shape[2:])))


def _expand_dims(run: Inference, node: Node) -> Types:
    x, axes = tensor(node.inputs[0]), run.ints_of(node.inputs[1])
    if x is None or x.shape is None:
        return x
    rank = len(x.shape) + 1
    if axes is None or len(axes) != 1:
        return typed(x.dtype, (None,) * rank)
    place = axis_of(axes[0], rank)
    return typed(x.dtype, (*x.shape[:place], 1, *x.shape[place:]))


# ---- rows ----


def _first_only(node: Node, index: int) -> bool:
    return index == 0


def _norm_rows(node: Node, index: int) -> bool:
    x = tensor(node.input(0))
    last = x is not None and x.rank is not None and node._attrs.get("axis", -1) in (-1, x.rank - 1)
    return index == 0 and last


def _both_rows(node: Node, index: int) -> bool:
    """Rows of a sum need the same row of both operands, where none is broadcast."""
    x, skip = tensor(node.input(0)), tensor(node.input(1))
    same = x is not None and skip is not None and x.shape is not None and x.shape == skip.shape
    return index in (0, 1) and same


# ---- the table ----


def _attrs(text: str) -> dict[str, AttrDef]:
    """Attributes from ``name:kind`` words; ``name:kind!`` is needed, ``name:kind=1`` has a default."""
    found = {}
    for word in text.split():
        name, _, rest = word.partition(":")
        kind, _, default = rest.rstrip("!").partition("=")
        number = None if not default else float(default) if kind == "float" else int(default)
        found[name] = AttrDef(name, kind, number, rest.endswith("!"))
    return found


def _row(
    name: str,
    inputs: str,
    least: int,
    infer: Callable[[Inference, Node], Any],
    attrs: str = "",
    outputs: tuple[int, int] = (1, 1),
    doc: str = "",
    **more: Any,
) -> OpDef:
    names = tuple(inputs.split())
    most = ANY if names[-1].endswith("*") else len(names)
    return OpDef(
        name,
        inputs=tuple(item.rstrip("*") for item in names),
        min_inputs=least,
        max_inputs=most,
        min_outputs=outputs[0],
        max_outputs=outputs[1],
        attrs=_attrs(attrs),
        infer=infer,
        native=True,
        doc=doc,
        **more,
    )


_ELEMENTWISE = frozenset({"pure", "constant_foldable", "elementwise"})
_MIXING: dict[str, Any] = {"traits": frozenset({"pure", "constant_foldable", "mixing"}), "role": "attention"}
_NORM: dict[str, Any] = {"traits": frozenset({"pure", "constant_foldable", "mixing"}), "role": "norm"}
_UNARY_CODES = "X X_scale X_zero_point Y_scale Y_zero_point"
_PAIR_CODES = "A A_scale A_zero_point B B_scale B_zero_point C_scale C_zero_point"

DEFINITIONS = (
    _row(
        "SimplifiedLayerNormalization",
        "X scale",
        2,
        _norm,
        "axis:int=-1 epsilon:float=1e-5 stash_type:int=1",
        (1, 2),
        "x divided by its root mean square, times scale; ONNX's RMSNormalization before there was one.",
        rowwise=_norm_rows,
        **_NORM,
    ),
    _row(
        "LayerNormalization",
        "X Scale B",
        2,
        _norm,
        "axis:int=-1 epsilon:float=1e-5 stash_type:int=1",
        (1, 3),
        "ONNX's LayerNormalization in graphs of an opset before 17, which has none.",
        rowwise=_norm_rows,
        **_NORM,
    ),
    _row(
        f"{DOMAIN}.SkipSimplifiedLayerNormalization",
        "input skip gamma bias",
        3,
        _skip_norm,
        "epsilon:float=1e-12",
        (1, 4),
        "SimplifiedLayerNormalization of input + skip + bias; the last output is that sum.",
        rowwise=_both_rows,
        **_NORM,
    ),
    _row(
        f"{DOMAIN}.SkipLayerNormalization",
        "input skip gamma beta bias",
        3,
        _skip_norm,
        "epsilon:float=1e-12",
        (1, 4),
        "LayerNormalization of input + skip + bias; the last output is that sum.",
        rowwise=_both_rows,
        **_NORM,
    ),
    _row(
        f"{DOMAIN}.EmbedLayerNormalization",
        "input_ids segment_ids word_embedding position_embedding segment_embedding gamma beta mask position_ids",
        7,
        _embed_norm,
        "epsilon:float=1e-12 mask_index_type:int=0",
        (2, 3),
        "LayerNormalization of the sum of word, position and segment embeddings.",
        left_out=frozenset({1, 4}),
        **_NORM,
    ),
    _row(
        f"{DOMAIN}.RotaryEmbedding",
        "input position_ids cos_cache sin_cache",
        4,
        _rotary,
        "interleaved:int=0 num_heads:int=0 rotary_embedding_dim:int=0 scale:float=1 is_packed_batching:int=0",
        doc="ONNX's RotaryEmbedding, with the tables as inputs and positions given or counted from one offset.",
    ),
    _row(
        f"{DOMAIN}.GroupQueryAttention",
        "query key value past_key past_value seqlens_k total_sequence_length cos_cache sin_cache position_ids "
        "attention_bias head_sink k_scale v_scale q_norm_weight k_norm_weight query_seqlens",
        7,
        _grouped_attention,
        "num_heads:int! kv_num_heads:int! scale:float=0 softcap:float=0 local_window_size:int=-1 do_rotary:int=0 "
        "rotary_interleaved:int=0 smooth_softmax:int=-1 qk_output:int=0 causal:int=1 sliding_window_cache:int=0 "
        "k_quant_type:str v_quant_type:str kv_cache_bit_width:int qk_norm_epsilon:float=1e-6 "
        "q_norm_epsilon:float k_norm_epsilon:float",
        (1, 4),
        "Causal attention of grouped heads with a history, rotation and window of its own.",
        left_out=frozenset({1, 2, 3, 4}),
        **_MIXING,
    ),
    _row(
        f"{DOMAIN}.MultiHeadAttention",
        "query key value bias key_padding_mask attention_bias past_key past_value past_sequence_length "
        "cache_indirection",
        1,
        _multi_head,
        "num_heads:int! scale:float=0 mask_filter_value:float=-10000 unidirectional:int=0",
        (1, 4),
        "Attention of as many key heads as query heads, with biases, masks and history.",
        **_MIXING,
    ),
    _row(
        f"{DOMAIN}.Attention",
        "input weights bias mask_index past attention_bias past_sequence_length",
        2,
        _attention,
        "num_heads:int! scale:float=0 mask_filter_value:float=-10000 unidirectional:int=0 do_rotary:int=0 "
        "rotary_embedding_dim:int=0 past_present_share_buffer:int=0 qkv_hidden_sizes:ints",
        (1, 2),
        "Attention with the product by the joined weights of queries, keys and values in it.",
        **_MIXING,
    ),
    _row(
        f"{DOMAIN}.FusedMatMul",
        "A B",
        2,
        _fused_matmul,
        "transA:int=0 transB:int=0 transBatchA:int=0 transBatchB:int=0 alpha:float=1",
        doc="alpha * A @ B, each transposed on request.",
        role="linear",
    ),
    _row(
        f"{DOMAIN}.TransposeMatMul",
        "A B",
        2,
        _fused_matmul,
        "transA:int=0 transB:int=0 alpha:float=1",
        doc="The older name of FusedMatMul.",
        role="linear",
    ),
    _row(
        f"{DOMAIN}.Gelu", "X", 1, _as_input, doc="x times the normal distribution function of x.", traits=_ELEMENTWISE
    ),
    _row(f"{DOMAIN}.BiasGelu", "A B", 2, _gelu_of_sum, doc="Gelu of A + B.", traits=_ELEMENTWISE),
    _row(f"{DOMAIN}.FastGelu", "X bias", 1, _gelu_of_sum, doc="Gelu of X + bias by tanh.", traits=_ELEMENTWISE),
    _row(
        f"{DOMAIN}.QuickGelu",
        "X",
        1,
        _as_input,
        "alpha:float=1.702",
        doc="x * sigmoid(alpha * x).",
        traits=_ELEMENTWISE,
    ),
    _row(
        f"{DOMAIN}.MatMulNBits",
        "A B scales zero_points g_idx bias",
        3,
        _matmul_bits,
        "K:int! N:int! block_size:int! bits:int=4 accuracy_level:int=0 weight_prepacked:int=0",
        doc="A @ W.T + bias, where W[N, K] is stored as packed codes in blocks along K.",
        rowwise=_first_only,
        role="linear",
    ),
    _row(
        f"{DOMAIN}.GatherBlockQuantized",
        "data indices scales zero_points",
        3,
        _gather_block_quantized,
        "bits:int=4 block_size:int=128 gather_axis:int=0 quantize_axis:int=1",
        doc="Gather from a table that is stored as packed codes in blocks.",
    ),
    _row(f"{DOMAIN}.QuantizeLinear", "x y_scale y_zero_point", 2, _quantize, "axis:int", role="storage"),
    _row(f"{DOMAIN}.DequantizeLinear", "x x_scale x_zero_point", 2, _dequantize, "axis:int", role="storage"),
    _row(f"{DOMAIN}.QLinearAdd", _PAIR_CODES, 7, _binary_codes, left_out=frozenset({2, 5}), doc="A + B on codes."),
    _row(f"{DOMAIN}.QLinearMul", _PAIR_CODES, 7, _binary_codes, left_out=frozenset({2, 5}), doc="A * B on codes."),
    _row(f"{DOMAIN}.QLinearSigmoid", _UNARY_CODES, 4, _as_input, left_out=frozenset({2}), doc="Sigmoid on codes."),
    _row(
        f"{DOMAIN}.QLinearLeakyRelu",
        _UNARY_CODES,
        4,
        _as_input,
        "alpha:float=0.01",
        left_out=frozenset({2}),
        doc="LeakyRelu on codes.",
    ),
    _row(
        f"{DOMAIN}.QLinearSoftmax",
        "X X_scale x_zero_point y_scale y_zero_point",
        5,
        _as_input,
        "axis:int=-1 opset:int!",
        left_out=frozenset({2}),
        doc="Softmax on codes.",
    ),
    _row(
        f"{DOMAIN}.QLinearConcat", "Y_scale Y_zero_point inputs*", 3, _concat_codes, "axis:int!", doc="Concat on codes."
    ),
    _row(
        f"{DOMAIN}.QLinearWhere",
        "condition X x_scale x_zero_point Y y_scale y_zero_point z_scale z_zero_point",
        9,
        _where_codes,
        doc="Where on codes.",
    ),
    _row(
        f"{DOMAIN}.QGemm",
        "A a_scale a_zero_point B b_scale b_zero_point C y_scale y_zero_point",
        6,
        _gemm_codes,
        "transA:int=0 transB:int=0 alpha:float=1",
        doc="Gemm on codes; to codes where a scale for them is given, else to floats.",
        role="linear",
    ),
    _row(
        f"{DOMAIN}.FusedConv",
        "X W B Z",
        2,
        _fused_conv,
        "activation:str activation_params:floats auto_pad:str dilations:ints group:int=1 kernel_shape:ints pads:ints "
        "strides:ints",
        doc="Conv, a sum, and an activation.",
        role="linear",
    ),
    _row(
        f"{DOMAIN}.FusedGemm",
        "A B C",
        2,
        _fused_gemm,
        "transA:int=0 transB:int=0 alpha:float=1 beta:float=1 activation:str activation_alpha:float "
        "activation_beta:float activation_gamma:float",
        doc="Gemm and an activation.",
        role="linear",
    ),
    _row(f"{DOMAIN}.ExpandDims", "X axis", 2, _expand_dims, doc="ONNX's Unsqueeze of one axis."),
    _row(f"{DOMAIN}.Trilu", "X k", 1, _as_input, "upper:int=1", doc="ONNX's Trilu."),
    _row(
        f"{DOMAIN}.DynamicQuantizeMatMul",
        "A B b_scale b_zero_point bias",
        3,
        _plain_product,
        doc="A quantized as it comes, times codes B, as floats.",
        role="linear",
    ),
    _row(
        f"{DOMAIN}.MatMulIntegerToFloat",
        "A B a_scale b_scale a_zero_point b_zero_point bias",
        4,
        _plain_product,
        doc="Codes A times codes B, as floats.",
        role="linear",
    ),
)
"""Rows for `ir.ops.registry.OPERATORS`."""
