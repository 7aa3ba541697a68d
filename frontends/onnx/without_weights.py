"""Large ONNX files without their weights: a model whose stored tensors stay in the file and are read from there.

A model of two gigabytes would be in memory twice or three times if it were parsed as a whole. Here the outermost levels
of the file are walked, and each large initializer is replaced by a reference to its bytes in the same file, in the form
in which ONNX refers to external data. Anything unusual is left as it is: the parser then reports what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

SELF = "\0"
"""External location that means the model's own file."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_LENGTH_DELIMITED = 2
_FIXED = {0: 0, 1: 8, 5: 4}


class Malformed(Exception):
    """The bytes are not what they should be; the parser's own message is better than ours."""


def without_weights(data: memoryview, above: int) -> bytes:
    """The model with every initializer of more than `above` raw bytes replaced by a reference into the file.

    Args:
        data: the whole file.
        above: size in bytes from which a tensor stays in the file.

    Raises:
        Malformed: the file is not laid out as models are.
    """
    parts: list[bytes | memoryview] = []
    for field, start, body, end in _fields(data, 0, len(data)):
        if field == _GRAPH:
            graph = _graph(data, body, end, above)
            parts += [_tag(_GRAPH), _varint(sum(map(len, graph))), *graph]
        else:
            parts.append(data[start:end])
    return b"".join(parts)


def _graph(data: memoryview, start: int, stop: int, above: int) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    kept = start
    for field, begin, body, end in _fields(data, start, stop):
        if field == _INITIALIZER and end - body > above:
            stripped = _tensor(data, body, end, above)
            if stripped is not None:
                parts += [data[kept:begin], _tag(_INITIALIZER), _varint(len(stripped)), stripped]
                kept = end
    parts.append(data[kept:stop])
    return parts


def _tensor(data: memoryview, start: int, stop: int, above: int) -> bytes | None:
    rest: list[bytes | memoryview] = []
    raw: list[tuple[int, int]] = []
    for field, begin, body, end in _fields(data, start, stop):
        if field == _RAW_DATA:
            raw.append((body, end - body))
        else:
            rest.append(data[begin:end])
    if len(raw) != 1 or raw[0][1] <= above:
        return None
    offset, length = raw[0]
    proto = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, text in (("location", SELF), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=key, value=text)
    return b"".join([*rest, proto.SerializeToString()])


def _fields(data: memoryview, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Field number, start, start of the contents and end of each field of a message."""
    while at < stop:
        start = at
        key, at = _read_varint(data, at, stop)
        kind = key & 7
        if not key >> 3:  # No field has this number; a file of zeros is full of it.
            raise Malformed
        if kind == _LENGTH_DELIMITED:
            length, at = _read_varint(data, at, stop)
            end = at + length
        elif kind in _FIXED:
            end = at + _FIXED[kind] if kind else _read_varint(data, at, stop)[1]
        else:
            raise Malformed
        if end > stop:
            raise Malformed
        yield key >> 3, start, at, end
        at = end


def _read_varint(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            raise Malformed
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed


def _tag(field: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


__all__ = ["SELF", "Malformed", "without_weights"]
