"""What each MNN release feeds, reads and computes right, as data with the evidence for every entry.

One row for each release on PyPI from 3.0.0 on. A field is a history: values with the release that brought them and how
that is known, either a probe (a model run on that release's wheel) or a file of MNN's source at the release's tag. A
target is a set of releases that one artefact must run on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from backends.mnn.target.devices import devices
from backends.mnn.target.sizes import exact_rows_bytes, fixed_bytes, weight_bytes
from ir.base.diag import LadingError, suggest
from ir.graph.graph import Graph
from ir.quant.storage import Storage
from ir.target.device import Device
from ir.target.target import Target

FINE_BITS = 6
"""Width of stored weights from which on activations rounded by row cost more than the weights do."""
ROUNDED_UNIT = 8
"""Blocks that are multiples of this can be quantized on their own by ``dynamic_option`` 2."""
VERSIONS = ("3.0.0", "3.1.0", "3.2.0", "3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1")
"""Releases on PyPI, oldest first."""

_LLM = "transformers/llm/engine/src/llm.cpp"
_SCHEMA = "schema/default/MNN.fbs"
_TENSORFLOW = "schema/default/TensorflowOp.fbs"
_DISK = "transformers/llm/engine/src/diskembedding.cpp"
_CONFIG = "transformers/llm/engine/src/llmconfig.hpp"
_CPU = "source/backend/cpu"
_LINEAR = f"{_CPU}/CPULinearAttention.cpp"
_SAMPLER = "transformers/llm/engine/src/sampler.cpp"
_LAYER = "probe: a model of one linear layer, one row and several, memory low and normal"


@dataclass(frozen=True)
class Step:
    """From release `since` on the field has this value; `evidence` says how that is known."""

    since: str
    value: Any
    evidence: str


@dataclass(frozen=True)
class FieldHistory:
    """One field of the profiles: its meaning and its values over time, the first from 3.0.0 on."""

    name: str
    meaning: str
    steps: tuple[Step, ...]

    def at(self, version: str) -> Step:
        """The step that holds for a release."""
        return [step for step in self.steps if _key(step.since) <= _key(version)][-1]


def _history(name: str, meaning: str, *steps: tuple[str, Any, str]) -> FieldHistory:
    return FieldHistory(name, meaning, tuple(Step(*step) for step in steps))


_THREE = ("input_ids", "attention_mask", "position_ids")

HISTORIES = (
    _history(
        "llm_on_pypi", "the wheel has the language-model runtime, and the Attention operator with it",
        ("3.0.0", False, "probe: no llm module in the wheel; a model with Attention stops with code=2 in onForward"),
        ("3.4.0", True, "probe: MNN.llm loads and runs models"),
    ),
    _history(
        "signature", "calling convention, a key of ir.target.signature.SIGNATURES",
        ("3.0.0", "mnn-llm-3.0", f"{_LLM}: Module::load with three names when attention_fused"),
        ("3.1.0", "mnn-llm", f"{_LLM}: logits_index is loaded and fed; probe from 3.4.0 on"),
    ),
    _history(
        "inputs", "inputs that every text model is fed",
        ("3.0.0", _THREE, f"{_LLM}: Module::load with three names when attention_fused"),
        ("3.1.0", (*_THREE, "logits_index"), f"{_LLM}: Module::load; probe: a model that echoes its inputs"),
    ),
    _history(
        "optional_inputs", "inputs fed on a condition, and that condition",
        ("3.0.0", {"past_key_values": "attention_fused is false"}, f"{_LLM}: Module::load"),
        ("3.1.0", {}, f"{_LLM}: past_key_values is gone"),
        ("3.4.0", {"deepstack_embeds": "has_deepstack, in vision models"}, f"{_LLM}: inputNames"),
        (
            "3.6.0",
            {"deepstack_embeds": "has_deepstack, in vision models", "ple_embeddings": "ple_embed_file"},
            f"{_LLM}: inputNames",
        ),
    ),
    _history(
        "outputs", "outputs that are always read",
        ("3.0.0", ("logits",), f"{_LLM}: Module::load; probe: load fails without the name"),
    ),
    _history(
        "optional_outputs", "outputs read on a condition, and that condition",
        ("3.0.0", {"presents": "attention_fused is false"}, f"{_LLM}: Module::load"),
        ("3.1.0", {}, f"{_LLM}: presents is gone"),
        ("3.2.0", {"talker_embeds": "has_talker"}, f"{_LLM}: outputNames"),
        ("3.4.0", {"talker_embeds": "has_talker", "hidden_states": "hidden_states"}, f"{_LLM}: outputNames"),
    ),
    _history(
        "position_ranks", "ranks of position_ids (a reshape in the graph takes all)",
        ("3.0.0", (1,), f"{_LLM}: gen_position_ids"),
        ("3.4.1", (1, 2), "probe: rank 2 where more than one token is fed"),
        ("3.5.0", (2,), "probe: rank 2 always"),
    ),
    _history(
        "causal_mask", "form of attention_mask for a causal model on the CPU",
        ("3.0.0", "square", f"{_LLM}: gen_attention_mask gives [1, 1, seq, kv]"),
        ("3.4.0", "scalar", "probe: a scalar 0; the Attention operator masks"),
    ),
    _history(
        "scalar_mask", "Attention takes a mask without axes for causal",
        ("3.0.0", False, "source/backend/cpu/CPUAttention.cpp: reads the mask as a matrix"),
        ("3.4.0", True, "probe through MNN.llm"),
    ),
    _history(
        "maskless_attention", "Attention runs with q, k and v alone",
        ("3.0.0", False, "probe: crash on 3.4.0 to 3.5.0"),
        ("3.6.0", True, "probe"),
    ),
    _history(
        "last_union", "highest operator parameter kind that the loader verifies",
        ("3.0.0", 98, f"{_SCHEMA}: OpParameter ends with AttentionParam"),
        ("3.1.0", 99, f"{_SCHEMA}: StftParam"),
        ("3.4.1", 100, f"{_SCHEMA}: LinearAttentionParam; probe: the buffer is refused before"),
        ("3.5.0", 101, f"{_SCHEMA}: ShapeParam"),
        ("3.6.1", 102, f"{_SCHEMA}: RoPEParam; probe: the buffer is refused before"),
    ),
    _history(
        "missing_ops", "operators of later releases",
        ("3.0.0", ("Stft", "MoE", "LinearAttention", "RoPE"), f"{_SCHEMA}: OpType"),
        ("3.1.0", ("MoE", "LinearAttention", "RoPE"), f"{_SCHEMA}: OpType"),
        ("3.2.0", ("LinearAttention", "RoPE"), f"{_SCHEMA}: OpType"),
        ("3.4.1", ("RoPE",), f"{_SCHEMA}: OpType; probe: Can't compute size for 306"),
        ("3.6.1", (), f"{_SCHEMA}: OpType; {_CPU}/CPURoPE.cpp; probe: logits with RoPE, with and without norms"),
    ),
    _history(
        "last_unary", "highest UnaryOpOperation",
        ("3.0.0", 33, f"{_TENSORFLOW}: ends with GELU_STANDARD"),
        ("3.1.0", 34, f"{_TENSORFLOW}: SILU"),
    ),
    _history(
        "last_binary", "highest BinaryOpOperation",
        ("3.0.0", 28, f"{_TENSORFLOW}: ends with RIGHTSHIFT"),
        ("3.6.1", 29, f"{_TENSORFLOW}: MUL_SILU; {_CPU}/CPUBinary.cpp; probe: Create execution error before"),
    ),
    _history(
        "packed_norm", "LayerNorm of the channels of an NC4HW4 tensor, with or without a sum before it",
        ("3.0.0", False, "probe: normalizes an axis of length 1 without a message"),
        ("3.6.1", True, f"probe; {_CPU}/CPULayerNorm.cpp"),
    ),
    _history(
        "packed_attention", "Attention with output_c4, and with values in the packed layout",
        ("3.0.0", False, f"{_SCHEMA}: no such field, which is ignored without a message"),
        ("3.6.1", True, f"probe; {_CPU}/CPUAttention.cpp, CPUKVCacheManager.cpp"),
    ),
    _history(
        "shared_cache", "layers that read another layer's keys and values (kv_shared_layer_index)",
        ("3.0.0", False, f"{_SCHEMA}: no such field, which is ignored without a message"),
        ("3.6.0", True, f"{_SCHEMA}: AttentionParam"),
    ),
    _history(
        "lost_memory", "prompts before which linear attention keeps or forgets what it should not",
        ("3.0.0", (), f"{_SCHEMA}: no such operator"),
        (
            "3.4.1", ("several tokens behind a history", "as long as the one before a reset", "one token after a reset"),
            f"{_LINEAR}: cleared in onResize where more than one token comes; probe: logits of pieces and after resets",
        ),
        (
            "3.5.0", ("as long as the one before a reset", "one token after a reset"),
            f"{_LINEAR}: onResize asks for the history; probe: logits of pieces and after resets",
        ),
        ("3.6.0", ("one token after a reset",), "probe: logits of pieces and after resets"),
    ),
    _history(
        "attention_scale", "attn_scale of llm_config.json is read",
        ("3.0.0", False, f"{_CONFIG}: not read; always 1/sqrt(head size)"),
        ("3.6.0", True, "probe"),
    ),
    _history(
        "flat_experts", "MoE takes expert numbers without a leading axis",
        ("3.0.0", False, "probe: crash on 3.4.0"),
        ("3.4.1", True, "probe"),
    ),
    _history(
        "f16_scales", "quantization scales stored as half floats",
        ("3.0.0", False, "probe: garbage without a message, or SIGFPE, up to 3.5.0"),
        ("3.6.0", True, "probe"),
    ),
    _history(
        "widths", "bits of blocked integer weights that linear layers compute right",
        ("3.0.0", (2, 3, 4, 5, 6, 7, 8), f"{_LAYER}; blocks of 4 to 1024 weights and whole rows"),
    ),
    _history(
        "symmetric", "linear layers compute weights right that have a scale and no zero",
        ("3.0.0", True, f"{_LAYER}; 2 to 8 bits"),
    ),
    _history(
        "block_unit", "blocks that are not a whole row have to be a multiple of this",
        (
            "3.0.0", 4,
            f"{_LAYER}; garbage with memory low and blocks of 1, 2, 5, 6, 9, 10, 30 and 59, up to a crash on 3.0.0",
        ),
    ),
    _history(
        "ragged_rows", "rows with one scale and one zero may have any length, else a multiple of block_unit",
        ("3.0.0", False, f"{_LAYER}; garbage with memory low and rows of 117 and 118"),
        ("3.1.0", True, f"{_LAYER}; rows of 117 and 118"),
    ),
    _history(
        "mapped_widths", "bits of weights that second loads compute right with use_mmap and memory low",
        ("3.0.0", (), "not tried"),
        ("3.4.0", (2, 3, 4, 5, 6, 7, 8), "probe: logits of three loads; half and single floats crash at the second"),
        ("3.6.0", (4, 5, 6, 7, 8), "probe: logits of three loads; garbage with 2 and 3 bits, floats crash"),
    ),
    _history(
        "row_widths", "bits of embedding rows that are read right from the weight file",
        ("3.0.0", (), f"{_LLM}: q41_dequant_ref and q81_dequant_ref take codes as unsigned"),
        ("3.1.0", (4, 8), f"{_LLM}: q41_dequant_ref and q81_dequant_ref, nothing else"),
        ("3.2.0", (4, 8, 16), f"{_DISK}: mQuantBit; probe from 3.4.0 on: logits of models with tied embeddings"),
    ),
    _history(
        "tie_embeddings", "spellings of tie_embeddings that are read right",
        ("3.0.0", (), f"{_LLM}: five numbers, but codes are taken as unsigned"),
        ("3.1.0", ("pairs",), f"{_LLM}: five numbers with (zero, scale) pairs and a block above 0"),
        ("3.2.0", ("pairs", "scales", "half"), f"{_DISK}: five numbers, with or without zeros; a block above 0"),
        ("3.4.0", ("pairs", "scales", "half", "row"), "probe: five numbers; block 0 is one block a row"),
        ("3.6.0", ("pairs", "scales", "half", "row", "six", "object"), "probe: also six numbers or an object"),
    ),
    _history(
        "odd_tied_int4", "tied embeddings of 4 bits with an odd vocabulary",
        ("3.0.0", False, f"{_DISK}: the row count is rounded down to even"),
        ("3.5.0", True, "probe"),
    ),
    _history(
        "tokenizers", "tokenizer file types that are read",
        ("3.0.0", (0, 1, 2, 3), "transformers/llm/engine/src/tokenizer.cpp"),
        ("3.5.0", (0, 1, 2, 3, 4), "probe: .mtok; before it leaves no tokenizer"),
    ),
    _history(
        "no_weight_file", "what happens without the weight file",
        ("3.0.0", "crash", "probe on 3.4.0 and 3.4.1: messages, then a segmentation fault"),
        ("3.5.0", "load returns false", "probe: LLM weight file not found"),
    ),
    _history(
        "no_tokenizer", "what happens without a readable tokenizer",
        ("3.0.0", "text functions crash", "probe on 3.4.0 and 3.4.1: ids work, any text is a segmentation fault"),
        ("3.5.0", "load returns false", "probe"),
    ),
    _history(
        "first_config", "file that wins where config.json and llm_config.json have the same key",
        ("3.0.0", "config.json", "probe on 3.4.0"),
        ("3.4.1", "llm_config.json", "probe"),
    ),
    _history(
        "exact_kinds", "a configuration number of another JSON kind (1 for 1.0) counts as absent",
        ("3.0.0", True, f"{_CONFIG}: getters ask for the exact kind"),
        ("3.5.0", False, f"{_CONFIG}: numbers are converted"),
    ),
    _history(
        "snake_sampler", "sampler settings are read under snake-case names (top_k)",
        ("3.0.0", False, "probe: camel case (topK) only"),
        ("3.5.0", True, "probe"),
    ),
    _history(
        "sampler_steps", "steps of mixed_samplers that do what transformers does, in its order",
        ("3.0.0", (), f"{_LLM}: the most likely token, repetition penalty 1.1, whatever is written"),
        (
            "3.1.0", ("penalty", "topK", "topP", "temperature", "greedy"),
            f"{_SAMPLER}; probe from 3.4.0 on: tokens within what transformers' processors leave",
        ),
        (
            "3.5.0", ("penalty", "topK", "topP", "typical", "temperature", "greedy"),
            f"{_SAMPLER}: typical keeps the token that completes the mass; probe",
        ),
    ),
    _history(
        "usual_sampler", "sampler where sampler_type is absent",
        ("3.0.0", "greedy", f"{_CONFIG}: sampler_type"),
        ("3.5.0", "mixed", f"{_CONFIG}: sampler_type"),
    ),
    _history(
        "token_bias", "banned_tokens and logit_bias are read",
        ("3.0.0", False, f"{_CONFIG}: no such keys"),
        ("3.5.0", True, f"{_SAMPLER}: stepLogitBias, stepBannedTokens; probe"),
    ),
    _history(
        "time_limit", "timeout_ms ends generation",
        ("3.0.0", False, f"{_CONFIG}: no such key"),
        ("3.5.0", True, "transformers/llm/engine/src/speculative_decoding/generate.cpp: TIMEOUT"),
    ),
    _history(
        "no_top_k", "what a topK of 0 does",
        ("3.0.0", "always the most likely token", f"{_LLM}: nothing is sampled"),
        ("3.1.0", "crash", f"{_SAMPLER}; probe from 3.4.0 on: segmentation fault at the first token"),
    ),
    _history(
        "no_top_p", "what a topP of 0 does",
        ("3.0.0", "always the most likely token", f"{_LLM}: nothing is sampled"),
        ("3.1.0", "crash", f"{_SAMPLER}: no token is left; probe from 3.4.0 on: segmentation fault"),
        ("3.5.0", "always the most likely token", "probe"),
    ),
    _history(
        "large_top_k", "what a topK above the vocabulary does",
        ("3.0.0", "always the most likely token", f"{_LLM}: nothing is sampled; probe from 3.4.0 on"),
        ("3.5.0", "nothing", "probe"),
    ),
)  # fmt: skip
"""Every field of the profiles."""

FIELDS = {history.name: history for history in HISTORIES}


@dataclass(frozen=True)
class Release:
    """One MNN release. The fields of `HISTORIES` are attributes: ``release.f16_scales``."""

    version: str

    def __getattr__(self, name: str) -> Any:
        if name not in FIELDS:
            raise AttributeError(name)
        return FIELDS[name].at(self.version).value

    @property
    def key(self) -> tuple[int, ...]:
        """Numbers of the version, for comparing."""
        return _key(self.version)

    def fault(self, columns: int, storage: Storage) -> tuple[str, str] | None:
        """What comes out wrong of linear layers over `columns` input features, of integers stored so, and what to do;
        None when they are right."""
        unit, block = self.block_unit, storage.block or columns
        if storage.bits not in self.widths:
            return f"codes of {storage.bits} bits", f"use one of {', '.join(map(str, self.widths))} bits, or 16"
        if storage.symmetric and not self.symmetric:
            return "codes without zeros", "use symmetric=false"
        if block < columns and block % unit:
            hint = "use blocks of 32 or 64, or block=0, one scale per row"
            return f"blocks of {block}, no multiple of {unit}, when memory is low", hint
        if block == columns and columns % unit and not storage.symmetric and not self.ragged_rows:
            what = f"one block per row of {columns}, no multiple of {unit}, when it has a zero and memory is low"
            return what, "use symmetric=true, or 16 bits"
        return None

    @property
    def mtok(self) -> bool:
        """Reads the exact binary tokenizer form; others only text forms."""
        return 4 in self.tokenizers

    def evidence(self, field: str) -> str:
        """How the value of a field is known."""
        return FIELDS[field].at(self.version).evidence


def _key(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in version.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


PROFILES: dict[str, Release] = {version: Release(version) for version in VERSIONS}
"""Every release on PyPI."""

RELEASES: dict[str, Release] = {key: release for key, release in PROFILES.items() if release.llm_on_pypi}
"""The releases whose wheel has a language-model runtime; older ones can be had by building MNN from source."""


def rounds_by_block(storage: Storage) -> bool:
    """True for codes so fine that activations are rounded by their blocks, where all codes of a model are such."""
    return storage.bits >= FINE_BITS and storage.block % ROUNDED_UNIT == 0


@dataclass(frozen=True)
class MnnTarget(Target):
    """The releases that one artefact must run on, oldest first."""

    embedding_widths: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    tied_widths: ClassVar[tuple[int, ...]] = (4, 8, 16)

    name: str = "portable"
    releases: tuple[Release, ...] = ()

    def all(self, field: str) -> bool:
        """True when a yes-or-no field holds for every release."""
        return all(getattr(release, field) for release in self.releases)

    def least(self, field: str) -> int:
        """Smallest value of a number field."""
        return min(getattr(release, field) for release in self.releases)

    def lacking(self, accepts: Callable[[Release], bool]) -> tuple[str, ...]:
        """Versions that do not accept something."""
        return tuple(release.version for release in self.releases if not accepts(release))

    def common(self, field: str) -> tuple[Any, ...]:
        """Those values of a field with several values that every release has, in the order of the oldest."""
        first, *others = (getattr(release, field) for release in self.releases)
        return tuple(value for value in first if all(value in other for other in others))

    @cached_property
    def versions(self) -> tuple[str, ...]:
        """Version numbers, oldest first."""
        return tuple(release.version for release in self.releases)

    @property
    def signature(self) -> str:
        """The calling convention that all releases of the target share."""
        return self.releases[0].signature

    @property
    def f16_scales(self) -> bool:
        """True when every release loads half-float scales."""
        return self.all("f16_scales")

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of blocked integer weights that every release computes right."""
        return self.common("widths")

    @property
    def row_widths(self) -> tuple[int, ...]:
        """Bits of embedding rows that every release reads right from the weight file."""
        return self.common("row_widths")

    @property
    def rows_in_weight_file(self) -> bool:
        """True when every release reads embedding rows from the weight file."""
        return bool(self.row_widths)

    def reads_rows(self, bits: int, rows: int) -> bool:
        """As `ir.target.target.Target.reads_rows`."""
        # Before 3.5 MNN drops the last row of a 4-bit table with an odd number of rows.
        return bits in self.embedding_widths and (bits != 4 or rows % 2 == 0 or self.all("odd_tied_int4"))

    def unfit(self, columns: int, storage: Storage) -> str:
        """As `ir.target.target.Target.unfit`."""
        faults = [(release, fault) for release in self.releases if (fault := release.fault(columns, storage))]
        return f"MNN {faults[0][0].version} computes {faults[0][1][0]} wrong" if faults else ""

    def weight_bytes(self, rows: int, columns: int, storage: Storage) -> int:
        """Bytes of a matrix in the weight file: header, codes, scales and zeros; without the bias behind it."""
        return weight_bytes(rows, columns, storage)

    def exact_rows_bytes(self, rows: int, columns: int, parts: int) -> int:
        """Bytes of embedding rows kept exactly as `parts` bfloat16 numbers each."""
        return exact_rows_bytes(rows, columns, parts)

    def fixed_bytes(self, graph: Graph) -> int:
        """Bytes of biases and norms, which no storage changes."""
        return fixed_bytes(graph)

    @cached_property
    def devices(self) -> dict[str, Device]:
        """What the releases of the target stream on each kind of processor."""
        return devices(self.versions)

    def rounds(self, storage: Storage) -> Literal["no", "row", "block"]:
        """As `ir.target.target.Target.rounds`, with the settings that are recommended."""
        if not storage.is_integer:
            return "no"
        return "block" if rounds_by_block(storage) else "row"

    @property
    def ties_rows(self) -> bool:
        """True when every release reads embedding rows from a matrix of one scale a row."""
        return "row" in self.common("tie_embeddings")

    @property
    def symmetric(self) -> bool:
        """True when every release computes weights right that have no zeros."""
        return self.all("symmetric")

    @property
    def block_unit(self) -> int:
        """Smallest number whose multiples are blocks that every release computes right."""
        return math.lcm(*(release.block_unit for release in self.releases))

    @property
    def needs_text_tokenizer(self) -> bool:
        """True when a release cannot read the exact tokenizer form."""
        return not all(release.mtok for release in self.releases)


def matching(text: str) -> tuple[Release, ...]:
    """Releases that fit version specifiers (PEP 440) such as ``>=3.4,<3.6``, ``==3.6.*`` or ``~=3.4.0``; bare numbers
    stand for themselves.

    Raises:
        LadingError: B700 text that is no such list, or that no release fits.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    wanted = SpecifierSet()
    for clause in text.replace(" ", "").split(","):
        try:
            # An empty set of specifiers would admit everything.
            wanted &= SpecifierSet(f"=={clause}" if clause[:1].isdigit() else clause or "empty")
        except InvalidSpecifier:
            hint = 'write for example ">=3.4,<3.6"'
            raise LadingError("B700", f"{clause!r} is not a version clause", where=text, hint=hint) from None
    found = tuple(release for release in PROFILES.values() if release.version in wanted)
    if not found:
        raise LadingError("B700", f"no release fits {text!r}", hint=f"known: {', '.join(VERSIONS)}")
    return found


def target(name: str = "portable") -> MnnTarget:
    """``portable`` for every release with a runtime on PyPI, one version, or version clauses such as ``>=3.4,<3.6``.

    Raises:
        LadingError: B600 an unknown target, B700 bad clauses, B701 releases that no one artefact can serve.
    """
    if name == "portable":
        return MnnTarget(name, tuple(RELEASES.values()))
    if name in PROFILES:
        return MnnTarget(name, (PROFILES[name],))
    if not re.search(r"[<>=!~,]", name):
        known = ["portable", *VERSIONS]
        raise LadingError("B600", f"unknown target {name!r}", hint=suggest(name, known) or f"known: {', '.join(known)}")
    found = MnnTarget(name, matching(name))
    conventions = sorted({release.signature for release in found.releases})
    if len(conventions) > 1:
        raise LadingError(
            "B701",
            f"releases {', '.join(found.versions)} feed different inputs: {', '.join(conventions)}",
            where=name,
            hint="compile twice: 3.0.0 does not feed logits_index, and later releases need it for the right first token",
        )
    return found
