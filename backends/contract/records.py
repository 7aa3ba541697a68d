"""What a contract consists of. These dataclasses are the one definition of the format; the schema is made from them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from reprlib import repr as short_repr
from typing import Annotated, Any, Final, Literal

from backends.contract.codec import SCALARS, Limits, Record, record_codec, version_key, whole
from backends.contract.cross_checks import disagreements
from ir.base.diag import Diagnostic, LadingError
from ir.base.whole_files import sha256_of
from ir.quant import storage as quant_storage

CONTRACT_VERSION: Final = "1.0"
DTYPES = {
    "bool": "bool",
    "i8": "int8",
    "u8": "uint8",
    "i16": "int16",
    "u16": "uint16",
    "i32": "int32",
    "u32": "uint32",
    "i64": "int64",
    "u64": "uint64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
}
"""Element types of inputs and outputs: name in the contract -> name in numpy."""

_FOLDER_PART = r"(?!\.{1,2}(?:/|$))[^/\\:\u0000-\u001f]+"
Count = Annotated[int, Limits(low=0)]
Positive = Annotated[int, Limits(low=1)]
Size = Annotated[float, Limits(low=0)]
Fraction = Annotated[float, Limits(low=0, high=1)]
Name = Annotated[str, Limits(length=1)]
Release = Annotated[str, Limits(pattern=whole(r"[0-9]+\.[0-9]+\.[0-9]+"))]
Digest = Annotated[str, Limits(pattern=whole("[0-9a-f]{64}"))]
RelativePath = Annotated[str, Limits(pattern=whole(f"{_FOLDER_PART}(?:/{_FOLDER_PART})*"))]
Moment = Annotated[str, Limits(pattern=whole("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"))]
Code = Annotated[str, Limits(pattern=whole("[A-Z][0-9]{3}"))]
DTypeName = Annotated[str, Limits(words=tuple(DTYPES))]
Releases = Annotated[tuple[Release, ...], Limits(unique=True, sort=version_key)]
DefaultValue = Annotated[int | float | bool | None, Limits(types=("number", "boolean", "null"))]
Setting = Annotated[Any, Limits(types=(*SCALARS, "array"))]
Memory = Literal["low", "normal", "high"]
Precision = Literal["low", "normal", "high"]


@dataclass(frozen=True, kw_only=True)
class Compiler(Record):
    """The program that wrote the model."""

    name: Annotated[Name, "name of the compiler"]
    version: Annotated[Name, "its version"]


@dataclass(frozen=True, kw_only=True)
class Target(Record):
    """What the model was compiled for."""

    profile: Annotated[Name, "name of the runtime profile"]
    releases: Annotated[
        tuple[Release, ...],
        Limits(unique=True, length=1, sort=version_key),
        "releases of the runtime that are promised to load the model and to give the same numbers",
    ]


@dataclass(frozen=True, kw_only=True)
class AdapterFile(Record):
    """One file of an adapter."""

    file: Annotated[RelativePath, "its name in the adapter's folder"]
    digest: Annotated[Digest, "SHA-256 of its content, in lower-case hexadecimal"]


@dataclass(frozen=True, kw_only=True)
class Adapter(Record):
    """A low-rank adapter that was merged into the weights before anything else."""

    name: Annotated[Name, "its folder's name or repository"]
    weight: Annotated[float, "what its changes were multiplied by"]
    base: Annotated[str | None, "the model that it says it was trained on; null where it does not say"] = None
    rank: Annotated[Positive, "rank of its factors, unless it says otherwise of single modules"]
    tensors: Annotated[Count, "tensors of the checkpoint that it changed"]
    files: Annotated[tuple[AdapterFile, ...], Limits(sort=attrgetter("file")), "its files"]


@dataclass(frozen=True, kw_only=True)
class Model(Record):
    """The model that was compiled; figures that the family does not have are null."""

    name: Annotated[Name, "name of the checkpoint"]
    family: Annotated[Name | None, "model family, as in the checkpoint's model_type"] = None
    layers: Annotated[Count | None, "decoder layers"] = None
    hidden: Annotated[Count | None, "width of the hidden state"] = None
    heads: Annotated[Count | None, "query heads"] = None
    kv_heads: Annotated[Count | None, "key and value heads"] = None
    head_dim: Annotated[Count | None, "width of one head"] = None
    vocab: Annotated[Count | None, "rows of the vocabulary matrix"] = None
    max_position: Annotated[Count | None, "longest sequence, in tokens"] = None
    parameters: Annotated[Count | None, "weights of the checkpoint, tied ones counted once"] = None
    adapters: Annotated[tuple[Adapter, ...], "what was merged into its weights, in this order"] = ()


@dataclass(frozen=True, kw_only=True)
class Source(Record):
    """One file that the model was compiled from."""

    file: Annotated[RelativePath, "path relative to the checkpoint folder"]
    bytes: Annotated[Count, "size of the file"]
    digest: Annotated[Digest, "SHA-256, in lower-case hexadecimal"]
    digest_of: Annotated[
        Literal["content", "header"],
        "what was digested: the whole file, or of a safetensors file its length word and header alone",
    ]


@dataclass(frozen=True, kw_only=True)
class ShapeForm(Record):
    """One shape that an input or output may have."""

    shape: Annotated[
        tuple[Count | Name, ...], "one item per axis: a fixed size or the name of a dimension; [] is a scalar"
    ]
    releases: Annotated[Releases, "releases that use this form; empty means all"] = ()

    def __str__(self) -> str:
        return f"[{', '.join(str(axis) for axis in self.shape)}]"


@dataclass(frozen=True, kw_only=True)
class ValueRange(Record):
    """Inclusive range of the values of an integer input."""

    min: Annotated[int | None, "smallest allowed value; null means unbounded"] = None
    max: Annotated[int | None, "largest allowed value; null means unbounded"] = None


@dataclass(frozen=True, kw_only=True)
class Discovery(Record):
    """Why the compiler declared something that the source model did not."""

    by: Annotated[Name, "name of the pass"]
    kind: Annotated[
        Literal[
            "runtime-feeds",
            "dangling",
            "declared",
            "frozen-by-tracing",
            "shape-computed",
            "whole-sequence",
            "kv-cache",
            "renamed",
        ],
        "fed by the runtime; read in the source and made by nothing; an input of the source too, of its own kind; a "
        "constant that tracing had frozen; computed from shapes in the source; the source gave the whole sequence; past "
        "keys and values that the runtime keeps; another name in the source",
    ]
    reason: Annotated[str, "one sentence for people"]
    node: Annotated[str | None, "source node or tensor that showed it"] = None


@dataclass(frozen=True, kw_only=True)
class Input(Record):
    """One tensor that has to be fed."""

    name: Annotated[Name, "name of the tensor"]
    dtype: Annotated[DTypeName, "element type"]
    shapes: Annotated[tuple[ShapeForm, ...], Limits(length=1), "every form that is accepted"]
    meaning: Annotated[str, "what the values mean"]
    default: Annotated[
        DefaultValue,
        "value of every element that makes the model behave like its source; a runtime does not fill it in",
    ] = None
    values: Annotated[ValueRange | None, "allowed values of an integer input; null means any"] = None
    discovered: Annotated[Discovery | None, "null for an input of the source model"] = None


@dataclass(frozen=True, kw_only=True)
class Output(Record):
    """One tensor that the model returns."""

    name: Annotated[Name, "name of the tensor"]
    dtype: Annotated[DTypeName, "element type"]
    shapes: Annotated[tuple[ShapeForm, ...], Limits(length=1), "every form that occurs"]
    meaning: Annotated[str, "what the values mean"]
    discovered: Annotated[Discovery | None, "null for an output of the source model"] = None


@dataclass(frozen=True, kw_only=True)
class Dimension(Record):
    """A named size; all inputs that use the name have to agree on it."""

    low: Annotated[Count, "smallest size"] = 0
    high: Annotated[Count | None, "largest size; null means unbounded"] = None
    multiple_of: Annotated[Positive, "the size is a multiple of this"] = 1
    sum_of: Annotated[
        tuple[Name, ...], Limits(unique=True), "dimensions that add up to this one; empty for a free one"
    ] = ()
    meaning: Annotated[str, "what is counted"]


@dataclass(frozen=True, kw_only=True)
class KVCache(Record):
    """Keys and values of earlier tokens, kept by the runtime and never fed."""

    layers: Annotated[Count, "layers that keep them"]
    dtype: Annotated[DTypeName, "element type of the figure below"]
    bytes_per_token: Annotated[Count, "growth per token, all layers together"]
    past: Annotated[Name, "the dimension that counts the tokens in the cache"]


@dataclass(frozen=True, kw_only=True)
class Signature(Record):
    """What is fed, what comes back and what is kept in between."""

    inputs: Annotated[tuple[Input, ...], "in the order of the runtime's list; matched by name"]
    outputs: Annotated[tuple[Output, ...], "in the order of the runtime's list; matched by name"]
    dims: Annotated[dict[str, Dimension], "every named dimension"] = field(default_factory=dict)
    state: Annotated[KVCache | None, "null for a model without a cache"] = None

    @cached_property
    def _plans(self) -> dict[str | None, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class FileEntry(Record):
    """One file of the model folder."""

    path: Annotated[RelativePath, "path relative to the folder, with forward slashes"]
    bytes: Annotated[Count, "size of the file"]
    sha256: Annotated[Digest, "digest of the whole file, in lower-case hexadecimal"]
    role: Annotated[
        Literal["model", "weights", "embedding", "tokenizer", "config", "llm_config", "template", "license", "other"],
        "what the file is for",
    ]

    @classmethod
    def of(cls, folder: str | os.PathLike[str], path: str, role: Any, digest: str | None = None) -> FileEntry:
        """The entry of a file that exists, digested unless `digest` is given; OSError when it cannot be read."""
        full = Path(folder, path)
        return cls(path=path, bytes=full.stat().st_size, sha256=digest or sha256_of(full), role=role)


@dataclass(frozen=True, kw_only=True)
class Storage(Record):
    """How the numbers of a weight are stored."""

    bits: Annotated[Positive, "bits of one stored number"]
    block: Annotated[Count, "columns that share one scale; 0 means the whole row"] = 0
    symmetric: Annotated[bool, "true when the codes lie evenly around zero"] = True
    zero: Annotated[Literal["int", "float", "none"], "kind of the stored zero points"] = "none"
    scale_dtype: Annotated[DTypeName | None, "element type of the scales; null without scales"] = None
    method: Annotated[
        Name, "how the codes were chosen, such as cast, rtn, gptq, yaqa; stored for codes kept as they came"
    ]
    layout: Annotated[Name, "byte layout in the file, such as mnn-dense-codes, mnn-f16, rows-bf16"]

    @classmethod
    def of(cls, how: quant_storage.Storage, layout: str, *, floats: str = "cast") -> Storage:
        """The record of a weight that is stored so; `floats` says how stored floats were made."""
        if not how.is_integer:
            return cls(bits=how.bits, method=floats, layout=layout)
        return cls(
            bits=how.bits,
            block=how.block,
            symmetric=how.symmetric,
            zero="none" if how.symmetric else how.zero,
            scale_dtype=how.scale,
            method=how.method,
            layout=layout,
        )


@dataclass(frozen=True, kw_only=True)
class WeightError(Record):
    """Distance of the stored weight from the original."""

    rms_relative: Annotated[Size, "root mean square of the difference, divided by that of the original"]
    max_abs: Annotated[Size, "largest absolute difference"]


@dataclass(frozen=True, kw_only=True)
class WeightEntry(Record):
    """Where a weight lies and what it lost."""

    name: Annotated[Name, "key in the checkpoint, or the key that a tied weight would have there"]
    file: Annotated[RelativePath, "one of the files of the folder"]
    offset: Annotated[Count, "first byte in that file"]
    bytes: Annotated[Count, "bytes in that file, scales and header included"]
    shape: Annotated[tuple[Count, ...], "shape of the decoded weight"]
    storage: Annotated[Storage, "how it is stored"]
    shared_with: Annotated[Name | None, "name of the weight whose bytes these are (tied weights)"] = None
    error: Annotated[WeightError | None, "null when it was not measured"] = None
    from_bits: Annotated[
        Positive | None, "bits of the codes it came in, where it came quantized and is stored anew"
    ] = None


@dataclass(frozen=True, kw_only=True)
class PassCounts(Record):
    """One pass of the pipeline."""

    name: Annotated[Name, "name of the pass"]
    counts: Annotated[dict[str, int], "what it did, by name"] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pipeline(Record):
    """The passes that made the model."""

    text: Annotated[str, "canonical text of the pipeline; running it on the sources gives the same bytes"]
    passes: Annotated[tuple[PassCounts, ...], "in order of execution"] = ()


@dataclass(frozen=True, kw_only=True)
class TuningStep(Record):
    """A step after the choice of widths, and what it gained on text that it did not look at."""

    step: Annotated[Name, "name of the pass"]
    tokens: Annotated[Positive, "calibration tokens that it looked at"]
    kl_before: Annotated[float, "divergence on the held-out windows without it, activations in float"]
    kl_after: Annotated[float, "divergence on the held-out windows with it"]
    positions: Annotated[Positive, "held-out positions"]
    kept: Annotated[bool, "false when it gained nothing, so that it was left out"]


@dataclass(frozen=True, kw_only=True)
class Calibration(Record):
    """Text that quantization was measured with, and what it promised there."""

    tokens: Annotated[Positive, "tokens that statistics were gathered on"]
    digest: Annotated[Name, "digest of the token windows, those held out for measuring included"]
    limit: Annotated[str | None, "the limit that precision was chosen under; null when a policy chose it"] = None
    kl_predicted: Annotated[float | None, "divergence that the chosen widths were expected to cost"] = None
    kl: Annotated[float | None, "divergence measured on the held-out windows, activations in float"] = None
    unreached: Annotated[
        dict[str, Literal["layer", "even"]],
        "weights of experts that no token reached, and what they were quantized by: what enters their layer, or as if "
        "all features counted the same",
    ] = field(default_factory=dict)
    steps: Annotated[tuple[TuningStep, ...], "steps after the choice of widths, in order"] = ()


@dataclass(frozen=True, kw_only=True)
class Requirements(Record):
    """What a runtime has to offer and how it has to be configured."""

    min_release: Annotated[Release, "oldest release that runs the model"]
    memory: Annotated[Memory | None, "recommended memory setting; null when it makes no difference"] = None
    keys: Annotated[dict[str, str], "configuration keys that matter, each with its reason"] = field(
        default_factory=dict
    )


@dataclass(frozen=True, kw_only=True)
class RunSettings(Record):
    """Runtime settings of a real run."""

    memory: Annotated[Memory, "memory setting"]
    precision: Annotated[Precision, "precision setting"]
    threads: Annotated[Positive, "threads"]
    dynamic_option: Annotated[Count, "how low memory quantizes activations: 2 by block of the weight, else by row"] = 0
    others: Annotated[dict[str, Setting], "further settings, by the names that the runtime reads"] = field(
        default_factory=dict, hash=False
    )


@dataclass(frozen=True, kw_only=True)
class Choice(Record):
    """Runtime settings that were measured, and what they cost."""

    settings: Annotated[RunSettings, "the settings"]
    kl: Annotated[float, "mean Kullback-Leibler divergence from the original model per position, in nats"]
    top1: Annotated[Fraction, "share of the positions whose most likely token agrees with the original model"]
    kl_decode: Annotated[
        float | None,
        "the divergence where tokens are decoded one at a time; null where that was not measured apart",
    ] = None
    perplexity: Annotated[Size | None, "perplexity on the evaluation text; null without one"] = None
    recommended: Annotated[bool, "true for the settings that the compiler recommends"] = False
    note: Annotated[str, "what speaks for or against them"] = ""


@dataclass(frozen=True, kw_only=True)
class Runtime(Record):
    """Requirements, and the settings that were written into the configuration."""

    requires: Annotated[Requirements, "what the runtime has to offer"]
    settings: Annotated[dict[str, Setting], "runtime settings as written; never sampling defaults"] = field(
        default_factory=dict
    )
    choices: Annotated[
        tuple[Choice, ...], "settings that were measured on the release that verified the model, least divergence first"
    ] = ()
    streamed: Annotated[
        dict[str, Count], "predicted bytes of weights that are read for each decoded token, by kind of processor"
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TokenizerFile(Record):
    """The tokenizer file for a range of releases."""

    file: Annotated[RelativePath, "one of the files of the folder"]
    releases: Annotated[Releases, "releases that read it; empty means all"] = ()


@dataclass(frozen=True, kw_only=True)
class Inexact(Record):
    """Releases whose tokenizer gives other ids than the original one."""

    releases: Annotated[Releases, "releases concerned; empty means all"] = ()
    differing: Annotated[Count | None, "test strings that got other ids; null when none were tried"] = None
    of: Annotated[Positive | None, "test strings tried; null when none were"] = None
    reasons: Annotated[tuple[str, ...], "why, one sentence each"] = ()


def _chat_run_order(run: ChatRun) -> tuple[int, ...]:
    return version_key(run.release)


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Record):
    """How text becomes ids."""

    form: Annotated[Name, "kind of tokenizer, such as byte-level-bpe"]
    files: Annotated[tuple[TokenizerFile, ...], "files of the folder"] = ()
    inexact: Annotated[tuple[Inexact, ...], "known differences from the original tokenizer"] = ()


@dataclass(frozen=True, kw_only=True)
class SamplerFile(Record):
    """A configuration file and the sampler in it."""

    file: Annotated[RelativePath, "one of the files of the folder"]
    releases: Annotated[Releases, "releases that read it; empty means all"] = ()
    mode: Annotated[Literal["greedy", "sample"], "whether the most likely token is taken or tokens are drawn"]
    keys: Annotated[dict[str, Setting], "the keys of the sampler, as written"] = field(default_factory=dict)
    logit_bias: Annotated[dict[str, float], "what is added to the scores of tokens, by id"] = field(
        default_factory=dict
    )


@dataclass(frozen=True, kw_only=True)
class EndToken(Record):
    """A token that ends generation."""

    id: Annotated[Count, "its id"]
    text: Annotated[str | None, "its text; null where the tokenizer has none"] = None
    sources: Annotated[tuple[str, ...], "the files that name it"] = ()


@dataclass(frozen=True, kw_only=True)
class LostSetting(Record):
    """A setting of the checkpoint for generation that the runtime has no equal of."""

    setting: Annotated[Name, "its name in generation_config.json"]
    value: Annotated[str, "its value, as JSON"]
    releases: Annotated[Releases, "releases concerned; empty means all"] = ()
    reason: Annotated[str, "why"] = ""


@dataclass(frozen=True, kw_only=True)
class Generation(Record):
    """How the runtime chooses tokens, and what ends its answers."""

    samplers: Annotated[tuple[SamplerFile, ...], "the samplers as written"] = ()
    ends: Annotated[tuple[EndToken, ...], "tokens that end generation; empty when nothing but a limit does"] = ()
    lost: Annotated[tuple[LostSetting, ...], "settings of the checkpoint that are not kept"] = ()
    unused: Annotated[tuple[str, ...], "settings of the checkpoint without effect, because do_sample is not true"] = ()
    tried: Annotated[Releases, "releases on which tokens were sampled with these files, and the end tokens tried"] = ()


@dataclass(frozen=True, kw_only=True)
class ChatRun(Record):
    """What one release made of the chat template."""

    release: Annotated[Release, "release of the runtime that rendered"]
    same: Annotated[Count, "conversations that it renders as the original template does"]
    differing: Annotated[tuple[str, ...], "conversations of which it makes another text"] = ()
    not_handed_over: Annotated[tuple[str, ...], "conversations that its interface cannot be told"] = ()


@dataclass(frozen=True, kw_only=True)
class Chat(Record):
    """How chats become text."""

    template: Annotated[Digest, "SHA-256 of the template of the model that was compiled"]
    written: Annotated[Digest, "SHA-256 of the template in the configuration"]
    rewritten: Annotated[tuple[str, ...], "what was spelled otherwise, for the runtime; empty means nothing"] = ()
    problem: Annotated[str | None, "why the original template could not be run; null when it could"] = None
    conversations: Annotated[Count, "conversations that were tried on the original template"]
    refused: Annotated[Count, "how many of them it refuses, so that there is nothing to compare with"] = 0
    runs: Annotated[tuple[ChatRun, ...], Limits(sort=_chat_run_order), "the releases that were tried"] = ()
    untried: Annotated[Releases, "releases of the target that were not tried"] = ()


@dataclass(frozen=True, kw_only=True)
class Verification(Record):
    """One real run of the finished files. Never filled by anything else."""

    release: Annotated[Release, "release of the runtime that ran"]
    platform: Annotated[Name, "operating system and processor"]
    settings: Annotated[RunSettings | None, "how it was configured; null for a runtime without such settings"]
    reference: Annotated[
        Literal["float", "decoded weights", "runtime model", "transformers", "onnxruntime"],
        "compared with the original weights in float, with the stored weights decoded to float, with these times "
        "activations quantized as the runtime quantizes them under these settings, with the original implementation, or "
        "with the ONNX file that the model was read from",
    ]
    prompt_tokens: Annotated[Positive | None, "tokens of the prompt; null for a model that reads no tokens"]
    max_abs_error: Annotated[Size, "largest absolute difference of a logit, or of whatever else comes out"]
    kl: Annotated[
        float | None,
        "mean Kullback-Leibler divergence per position, in nats, reference first; null where no logits come out",
    ]
    top1: Annotated[Fraction | None, "share of the positions whose most likely token agrees; null likewise"]
    perplexity: Annotated[Size | None, "perplexity on the evaluation text; null without one"] = None
    perplexity_reference: Annotated[Size | None, "the same for the reference"] = None
    kl_predicted: Annotated[
        float | None,
        "the divergence that the reference evaluation predicts for this run; null when it was not evaluated",
    ] = None
    perplexity_predicted: Annotated[Size | None, "the same for the perplexity"] = None
    decode_tokens: Annotated[Count | None, "tokens decoded greedily after the prompt; null when none were"] = None
    decode_equal_tokens: Annotated[Count | None, "how many of them came before the first difference"] = None
    decode_close_tokens: Annotated[
        Count, "further tokens that are not counted, because rounding decides between the reference's two best"
    ] = 0


@dataclass(frozen=True, kw_only=True)
class Notice(Record):
    """A warning of the compiler."""

    code: Annotated[Code, "diagnostic code"]
    message: Annotated[str, "what was found"]
    where: Annotated[str, "tensor, node, file or option concerned; may be empty"] = ""
    hint: Annotated[str, "what to do about it; may be empty"] = ""


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """What the compilation ended with."""

    outcome: Annotated[
        Literal["passed", "passed with warnings", "not verified"],
        "whether the files were run and found good, and whether anything is to be warned of",
    ]
    text: Annotated[str, "the same in one line for people, with the figures that matter"]
    original: Annotated[
        Name | None,
        "implementation, with its release, whose logits the model was found to give; null when none was run",
    ] = None
    original_note: Annotated[str, "how far its logits are off, or why it was not run"] = ""
    unread: Annotated[
        dict[str, tuple[str, ...]],
        "keys of the checkpoint's configuration that the compiler did not read, by what they weigh: 'numbers' for keys "
        "that the original implementation ignores too, 'training', 'bookkeeping', or 'unknown'",
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Port(Record):
    """What an input or output of the graph that was read was found to hold."""

    name: Annotated[str, "its name in the file; may be empty"]
    kind: Annotated[Name, "'token-ids', 'attention-mask', 'positions', 'history', 'row-choice', 'logits' and others"]
    evidence: Annotated[str, "how that is known"]
    dtype: Annotated[str, "its element type; empty where the file does not say"]
    shape: Annotated[tuple[int | str, ...], "its shape in the file, sizes or names"] = ()


@dataclass(frozen=True, kw_only=True)
class Region(Record):
    """A part of the graph that was read whose meaning was found by evaluating it."""

    kind: Annotated[Name, "'attention', 'norm', 'activation', 'linear', 'table', 'positions' or 'mask'"]
    where: Annotated[str, "node of the file that it ends in"]
    nodes: Annotated[Count, "nodes that it had"]
    finding: Annotated[str, "what it computes"]
    parameters: Annotated[dict[str, Setting], "the same for programs"]
    difference: Annotated[Size, "largest difference from what it is taken for, relative to its largest value"]
    probes: Annotated[tuple[str, ...], "what it was evaluated on"] = ()


@dataclass(frozen=True, kw_only=True)
class Raised(Record):
    """What a graph that somebody else exported was found to be, and by what evidence."""

    inputs: Annotated[tuple[Port, ...], "what it takes"]
    outputs: Annotated[tuple[Port, ...], "what it gives"]
    regions: Annotated[tuple[Region, ...], "its parts, in the order of the graph"]


def _weight_order(weight: WeightEntry) -> tuple[str, int, str]:
    return weight.file, weight.offset, weight.name


def _run_order(run: Verification) -> tuple[tuple[int, ...], str]:
    return version_key(run.release), json.dumps(run.to_json())


@dataclass(frozen=True, kw_only=True)
class Contract(Record):
    """Everything that is known about a compiled model."""

    contract_version: Annotated[Literal["1.0"], "version of this format"] = CONTRACT_VERSION
    compiler: Annotated[Compiler, "who wrote the model"]
    created: Annotated[
        Moment | None, "time of writing in UTC; null unless asked for, so that the same input gives the same bytes"
    ] = None
    target: Annotated[Target, "what it was compiled for"]
    model: Annotated[Model, "what was compiled"]
    sources: Annotated[tuple[Source, ...], Limits(sort=attrgetter("file")), "the files it was compiled from"]
    config_digest: Annotated[Digest | None, "SHA-256 of the checkpoint's config.json; null without one"] = None
    raised: Annotated[
        Raised | None, "what the exported graph was found to be; null for a model that is no such graph"
    ] = None
    signature: Annotated[Signature, "inputs, outputs, dimensions and state"]
    files: Annotated[tuple[FileEntry, ...], Limits(sort=attrgetter("path")), "every file of the folder but this one"]
    weights: Annotated[tuple[WeightEntry, ...], Limits(sort=_weight_order), "every stored weight"]
    pipeline: Annotated[Pipeline, "how it was made"]
    calibration: Annotated[Calibration | None, "null when no method looked at data"] = None
    runtime: Annotated[Runtime, "what it needs to run"]
    tokenizer: Annotated[Tokenizer | None, "null for a model without text"] = None
    generation: Annotated[Generation | None, "null for a model that is not asked for tokens"] = None
    chat: Annotated[Chat | None, "null for a model without chat template, or when none was looked at"] = None
    verified: Annotated[tuple[Verification, ...], Limits(sort=_run_order), "real runs of the finished files"] = ()
    warnings: Annotated[tuple[Notice, ...], "what the compiler warned of"] = ()
    verdict: Annotated[Verdict | None, "what the compilation ended with; null for a model that it did not make"] = None

    @classmethod
    def from_json(cls, data: Any) -> Contract:
        """The contract of parsed JSON, references between its parts checked.

        Raises:
            LadingError: with every problem found; `where` of each is ``#`` and the JSON pointer of the place.
        """

        result, problems = decode(data)
        if problems or result is None:
            raise LadingError.of(problems)
        return result


def decode(data: Any) -> tuple[Contract | None, list[Diagnostic]]:
    """The contract of parsed JSON, or every problem of it; see `validate`."""
    version = data.get("contract_version") if isinstance(data, dict) else None
    if isinstance(version, str) and version != CONTRACT_VERSION:
        message = f"contract version {short_repr(version)} is not known, only {CONTRACT_VERSION}"
        return None, [Diagnostic("C803", message, "#/contract_version", "read it with the release that wrote it")]
    problems: list[Diagnostic] = []
    contract = record_codec(Contract).read(data, "#", problems)
    return contract, problems or [Diagnostic("C806", text, f"#{at}") for at, text in disagreements(data)]
