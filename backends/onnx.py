"""`ir.Graph` to ONNX models and files.

A graph that came from an ONNX model gives that model again: format version, producer, documentation, metadata, order of
the initializers, unused constants, default values of inputs, functions and left-out outputs included. What differs is how
the same is spelt: tensors that the IR made or changed are written as raw bytes, sparse initializers as dense ones.

Operators of the compiler's own domains become model-local functions, as `ir.onnx_export` describes.
"""

from __future__ import annotations

import os
import tempfile
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from ir.diag import LadingError
from ir.graph import OPSET, Graph, Node, Value
from ir.onnx_export import (
    IR_VERSION,
    SMALL_BYTES,
    all_constants,
    external_constants,
    layout_external,
    onnx_dtype,
    stored_bytes,
    tensor_proto,
    write_constant,
)
from ir.onnx_export import Exporter as _Exporter
from ir.onnx_keys import DEFAULT, DOC, LOCATION, MODEL, RESERVED, absent_outputs
from ir.ops import opsets_of
from ir.proto_tensor import ProtoTensor
from ir.tensor import FileTensor, InlineTensor, Tensor, find_source
from ir.types import dtype_of_onnx

LARGEST = 2**31 - 1
"""Bytes that a protobuf message can have."""
ROOM = 64 << 20
"""Bytes kept free for everything that is not a constant when a model is close to `LARGEST`."""
_TEXTS = ("producer_name", "producer_version", "domain", "doc_string", "model_version")
