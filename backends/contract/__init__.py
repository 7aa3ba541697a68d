"""The contract of a compiled model: what it expects, what it consists of, and how far it was really tested.

``contract.json`` lies beside the compiled model and is made from the same objects. An application reads it and checks
what it is about to feed, so that a missing or misshapen input is a named error in Python, not a crash in native code:

    from backends.contract import check_feed, read

The records (`backends.contract.records`) are the one definition of the format; reading, writing and the published JSON
Schema (`schema`, stored as ``contract.schema.json``) are derived from their annotations. Needs nothing but numpy.
Fields: ``docs/contract.md``.
"""

from __future__ import annotations

from backends.contract.codec import CONTRACT_FILE
from backends.contract.document import SCHEMA_ID, dumps, read, schema, validate, write
from backends.contract.feed_checks import bind, check_feed
from backends.contract.file_checks import check_files
from backends.contract.records import (
    CONTRACT_VERSION,
    DTYPES,
    Adapter,
    AdapterFile,
    Calibration,
    Chat,
    ChatRun,
    Choice,
    Compiler,
    Contract,
    Dimension,
    Discovery,
    EndToken,
    FileEntry,
    Generation,
    Inexact,
    Input,
    KVCache,
    LostSetting,
    Model,
    Notice,
    Output,
    PassCounts,
    Pipeline,
    Port,
    Raised,
    Region,
    Requirements,
    RunSettings,
    Runtime,
    SamplerFile,
    ShapeForm,
    Signature,
    Source,
    Storage,
    Target,
    Tokenizer,
    TokenizerFile,
    ValueRange,
    Verdict,
    Verification,
    WeightEntry,
    WeightError,
)

__all__ = [
    "CONTRACT_FILE",
    "CONTRACT_VERSION",
    "DTYPES",
    "SCHEMA_ID",
    "Adapter",
    "AdapterFile",
    "Calibration",
    "Chat",
    "ChatRun",
    "Choice",
    "Compiler",
    "Contract",
    "Dimension",
    "Discovery",
    "EndToken",
    "FileEntry",
    "Generation",
    "Inexact",
    "Input",
    "KVCache",
    "LostSetting",
    "Model",
    "Notice",
    "Output",
    "PassCounts",
    "Pipeline",
    "Port",
    "Raised",
    "Region",
    "Requirements",
    "RunSettings",
    "Runtime",
    "SamplerFile",
    "ShapeForm",
    "Signature",
    "Source",
    "Storage",
    "Target",
    "Tokenizer",
    "TokenizerFile",
    "ValueRange",
    "Verdict",
    "Verification",
    "WeightEntry",
    "WeightError",
    "bind",
    "check_feed",
    "check_files",
    "dumps",
    "read",
    "schema",
    "validate",
    "write",
]
