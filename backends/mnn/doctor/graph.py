"""What a graph needs of the runtime, and which releases give it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from backends.mnn.dialect.arithmetic import NUMBER_OF_BINARY, NUMBER_OF_UNARY
from backends.mnn.dialect.table import FORMS
from backends.mnn.doctor.findings import Finding
from backends.mnn.doctor.rows import row_choice
from backends.mnn.read.model_folder import Subject, alpha_form
from backends.mnn.read.net_file import PARAMETERS, numbers
from backends.mnn.target.releases import ROUNDED_UNIT, Release

REPAIR = "lading repair writes a copy in forms that these releases read"
"""What is advised where nothing else is."""


def graph_findings(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """Everything that can be told from the ``.mnn`` file alone."""
    if subject.net_problem is not None or not subject.ops:
        return
    for check in (_inputs, _missing_inputs, _outputs, _order, _operators, _scales, _norms, _attention, _codes):
        yield from check(subject, releases)


def lacking(releases: Sequence[Release], accepts: Callable[[Release], bool]) -> tuple[str, ...]:
    """Versions that do not accept something."""
    return tuple(release.version for release in releases if not accepts(release))


def _lacking_form(releases: Sequence[Release], form: str) -> tuple[str, ...]:
    return lacking(releases, lambda release: FORMS[form](release, {}))


def place_of(ops: Sequence[dict[str, Any]]) -> str:
    """The first of some operators, and how many more there are."""
    first = str(ops[0].get("name") or ops[0].get("type"))
    return first if len(ops) == 1 else f"{first} and {len(ops) - 1} more"


def fed_names(release: Release, subject: Subject) -> set[str]:
    """Inputs that a release feeds this model."""
    fed = set(release.inputs)
    config = {**subject.config.values, **subject.llm_config.values}
    if config.get("has_deepstack") and "deepstack_embeds" in release.optional_inputs:
        fed.add("deepstack_embeds")
    if config.get("ple_embed_file") and "ple_embeddings" in release.optional_inputs:
        fed.add("ple_embeddings")
    if not config.get("attention_fused", True) and "past_key_values" in release.optional_inputs:
        fed.add("past_key_values")
    return fed


def _inputs(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    if not subject.is_language_model:
        return
    needed = [*((name, False) for name in subject.read_inputs), *((name, True) for name in subject.undeclared)]
    groups: dict[tuple[tuple[str, ...], bool, bool], list[str]] = {}
    for name, undeclared in sorted(needed):
        old = tuple(release.version for release in releases if name not in fed_names(release, subject))
        if old:
            groups.setdefault((old, undeclared, name == "logits_index"), []).append(name)
    for (old, undeclared, rows), names in groups.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        what = f"reads the tensor {names[0]!r}{more}, which nothing makes or declares, and" if undeclared else (
            f"needs the input {names[0]!r}{more},"
        )  # fmt: skip
        yield Finding(
            "B712",
            f"the model {what} which is not fed: loading fails with 'tensor [ {names[0]} ] is input but not found'",
            old,
            _input_fix(names),
            str(subject.model_path),
            mended=rows,
        )


def _input_fix(names: Sequence[str]) -> str:
    if "logits_index" in names:
        return "compile or repair for this release: --target 3.0.0 gives a model without this input"
    if any(name.startswith("past_key_values") for name in names):
        return "export with the runtime's own cache (fused attention), or compile the original"
    return f"make {names[0]!r} a constant, or export without the part that needs it"


def _missing_inputs(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    if not subject.is_language_model or not {"logits", "input_ids"} <= set(subject.names):
        return
    fed = lacking(releases, lambda release: "logits_index" not in release.inputs)
    chosen = row_choice(subject)
    other = chosen is not None and chosen.fixed != 0
    if fed and not other and "logits_index" not in subject.read_inputs | subject.undeclared:
        yield Finding(
            "B713",
            "the runtime feeds 'logits_index' but the model has no such input: it returns the logits of every position, "
            "of which the runtime reads the first, so the first generated token is wrong",
            fed,
            REPAIR,
            str(subject.model_path),
            mended=True,
        )


def _outputs(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    every = tuple(release.version for release in releases)
    if subject.is_folder and "logits" not in subject.names:
        yield Finding(
            "B714", "no tensor is called 'logits', which the runtime reads: loading fails", every,
            "export the model with an output of this name", str(subject.model_path),
        )  # fmt: skip
    if subject.llm_config.values.get("hidden_states") and "hidden_states" not in subject.names:
        yield Finding(
            "B714", "the configuration asks for the output 'hidden_states' and the model has none: loading fails", every,
            "remove hidden_states from llm_config.json", str(subject.folder / subject.llm_config.name), mended=True,
        )  # fmt: skip


def _order(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    known: set[int] = set()
    for op in subject.net["oplists"]:
        late = [index for index in numbers(op.get("inputIndexes")) if index not in known and index in subject.producers]
        if late:
            yield Finding(
                "B715",
                f"an operator reads {subject.name(late[0])!r} before it is computed: loading fails",
                tuple(release.version for release in releases),
                "write the operators in topological order",
                place_of([op]),
            )
            return
        known.update(numbers(op.get("outputIndexes")))


def _operators(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for op in subject.ops:
        for need in _needs(op):
            kinds.setdefault(need, []).append(op)
    for need, ops in kinds.items():
        sort, _, value = need.partition(" ")
        old = tuple(release.version for release in releases if not _has(release, sort, value))
        if old:
            what = {
                "parameter": "operator parameters of kind {}, at which the file is refused: Invalidate buffer",
                "operator": "the operator {}, which does not exist: a crash at the first call",
                "unary": "the function {}, which does not exist: Create execution error at the first call",
                "binary": "the function {}, which does not exist: Create execution error at the first call",
            }[sort]
            yield Finding("B716", f"the model uses {what.format(value)}", old, REPAIR, place_of(ops), mended=True)


def _needs(op: dict[str, Any]) -> Iterator[str]:
    yield f"operator {op.get('type', 'AbsVal')}"
    yield f"parameter {op.get('main_type', 'NONE')}"
    main = op.get("main", {})
    if op.get("type") == "UnaryOp":
        yield f"unary {main.get('opType', 'ABS')}"
    if op.get("type") == "BinaryOp":
        yield f"binary {main.get('opType', 'ADD')}"


def _has(release: Release, sort: str, value: str) -> bool:
    if sort == "operator":
        return value not in release.missing_ops and not value.isdigit()
    if sort == "parameter":
        return (int(value) if value.isdigit() else PARAMETERS.index(value)) <= release.last_union
    table, last = (NUMBER_OF_UNARY, release.last_unary) if sort == "unary" else (NUMBER_OF_BINARY, release.last_binary)
    return table.get(value, int(value) if value.lstrip("-").isdigit() else 0) <= last


def _scales(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    ops = [op for op in subject.convolutions if op["main"].get("quanParameter", {}).get("scaleStorage") == "FP16"]
    if old := lacking(releases, lambda release: release.f16_scales) if ops else ():
        yield Finding(
            "B717",
            "half-float scales are read as single floats: garbage without a message, or SIGFPE",
            old,
            "export with single-precision scales",
            place_of(ops),
            mended=True,
        )


def _norms(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    packed = _packed_tensors(subject)
    norms = [op for op in subject.ops if op.get("type") == "LayerNorm"]
    found = [op for op in norms if len(inputs := numbers(op.get("inputIndexes"))) > 1 or set(inputs) & packed]
    if old := _lacking_form(releases, "packed-norm") if found else ():
        yield Finding(
            "B718",
            "LayerNorm works on tensors in the packed layout (NC4HW4), where these releases normalize an axis of length 1: "
            "garbage without a message",
            old,
            "export with the fusion of transformers off",
            place_of(found),
            mended=True,
        )
    bare = [op for op in norms if "gamma" in op.get("main", {}) and "beta" not in op["main"] and not _outside(op)]
    if bare:
        yield Finding(
            "B719",
            "a LayerNorm with gamma and no beta in the file: the runtime ignores gamma without a message",
            tuple(release.version for release in releases),
            "write a beta of zeros beside it",
            place_of(bare),
        )


def _outside(op: dict[str, Any]) -> bool:
    return len(numbers(op["main"].get("external"))) > 1


def _packed_tensors(subject: Subject) -> set[int]:
    """Tensors of the main graph that are in the packed layout."""
    packed: set[int] = set()
    keeps = {"BinaryOp", "UnaryOp", "Cast", "LayerNorm", "ReLU", "ReLU6", "Eltwise", "StridedSlice"}
    for op in subject.net["oplists"]:
        kind, main = op.get("type"), op.get("main", {})
        inputs = set(numbers(op.get("inputIndexes")))
        if (
            kind == "Convolution"
            or (kind == "ConvertTensor" and main.get("dest") == "NC4HW4")
            or (kind == "Attention" and main.get("output_c4"))
            or (kind in keeps and inputs & packed)
        ):
            packed.update(numbers(op.get("outputIndexes")))
    return packed


def _attention(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    ops = [op for op in subject.ops if op.get("type") == "Attention"]
    bare = [op for op in ops if len(numbers(op.get("inputIndexes"))) < 4]
    if old := lacking(releases, lambda release: release.maskless_attention) if bare else ():
        yield Finding("B720", "Attention without a mask input crashes", old, REPAIR, place_of(bare), mended=True)
    packed = [op for op in ops if op.get("main", {}).get("output_c4")]
    if old := _lacking_form(releases, "packed-attention") if packed else ():
        yield Finding(
            "B720",
            "output_c4 of Attention is ignored, so what follows reads another layout",
            old,
            REPAIR,
            place_of(packed),
            mended=True,
        )
    shared = [op for op in ops if op.get("main", {}).get("kv_shared_layer_index", -1) >= 0]
    if old := lacking(releases, lambda release: release.shared_cache) if shared else ():
        yield Finding(
            "B720",
            "layers share keys and values (kv_shared_layer_index), which is ignored without a message: wrong logits",
            old,
            "export without sharing, or use 3.6.0 and later",
            place_of(shared),
        )
    yield from _scale(subject, releases, ops)


def _scale(subject: Subject, releases: Sequence[Release], ops: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    scale = subject.llm_config.values.get("attn_scale")
    size = head_size(subject)
    if (
        not ops
        or not isinstance(scale, float)
        or not scale
        or size is None
        or math.isclose(scale, size**-0.5, rel_tol=1e-4)
    ):
        return
    if old := lacking(releases, lambda release: release.attention_scale):
        yield Finding(
            "B720",
            f"attn_scale {scale:g} is not read; the runtime takes {size**-0.5:g}: wrong logits without a message",
            old,
            "multiply the queries by the factor in the graph, as this compiler does",
            str(subject.folder / subject.llm_config.name),
            mended=True,
        )


def head_size(subject: Subject) -> int | None:
    """Width of one attention head as the graph spells it; None when it cannot be told."""
    for op in subject.ops:
        if op.get("type") == "RoPE":
            return op.get("main", {}).get("head_dim") or None
        if op.get("type") == "Attention":
            return _query_size(subject, op)
    return None


def _query_size(subject: Subject, op: dict[str, Any]) -> int | None:
    """Last size of the nearest reshape to four axes above the queries."""
    for _ in range(8):
        operands = numbers(op.get("inputIndexes"))
        op = subject.producers.get(operands[0], {}) if operands else {}
        dims = reshape_dims(subject, op)
        if len(dims) == 4:
            return dims[-1] if dims[-1] > 0 else None
    return None


def reshape_dims(subject: Subject, op: dict[str, Any]) -> list[int]:
    """Target shape of a reshape: its parameter, or the last of what a Concat makes its second input from."""
    if op.get("type") != "Reshape":
        return []
    inputs = numbers(op.get("inputIndexes"))
    if len(inputs) < 2:
        return numbers(op.get("main", {}).get("dims"))
    shape = subject.producers.get(inputs[1], {})
    if shape.get("type") == "Const":
        return numbers(shape.get("main", {}).get("int32s"))
    parts = [subject.producers.get(index, {}) for index in numbers(shape.get("inputIndexes"))]
    return [(numbers(part.get("main", {}).get("int32s")) or [-1])[0] for part in parts]


def _codes(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    every = tuple(release.version for release in releases)
    # Half floats (type 3) are read without it, on every release.
    zero = [
        op
        for op in subject.convolutions
        if (quant := op["main"].get("quanParameter")) and quant.get("type") != 3 and not quant.get("quantScale")
    ]
    if zero:
        yield Finding(
            "B721",
            "quantScale is absent or 0, so all weights are read as zero",
            every,
            "write quantScale 1.0",
            place_of(zero),
        )
    odd = {release.version: found for release in releases if (found := _ragged(subject, release))}
    if odd:
        first = next(iter(odd.values()))
        form = alpha_form(first[0])
        yield Finding(
            "B722",
            f"{form[1] if form else 0} weights share a scale, which this release computes wrong with memory low",
            tuple(odd),
            'set "memory": "normal" in config.json, or quantize in blocks of 32 or 64',
            place_of(first),
        )


def _ragged(subject: Subject, release: Release) -> list[dict[str, Any]]:
    """Linear layers whose blocks a release cannot compute with memory low, as the configuration has it."""
    if subject.setting(release, "memory", "low") != "low":
        return []
    by_block = subject.setting(release, "dynamic_option", 0) == 2
    unit = ROUNDED_UNIT if by_block else release.block_unit

    def fails(op: dict[str, Any]) -> bool:
        form = alpha_form(op)
        if form is None:
            return False
        _, block, zeros = form
        if block < op["main"]["common"]["inputCount"]:
            return block % unit != 0
        return block % release.block_unit != 0 and zeros and not release.ragged_rows

    return [op for op in subject.convolutions if fails(op)]
