"""How many bits a stored matrix takes, known from its shape and storage alone, before anything is quantized."""

from __future__ import annotations

from ir.quant.storage import Storage


def scale_bytes(rows: int, columns: int, storage: Storage) -> int:
    """Bytes of the scales and zeros of a matrix ``[rows, columns]``; 0 for float storage."""
    if storage.bits > 8:
        return 0
    numbers = rows * (columns // (storage.block or columns)) * (1 if storage.symmetric else 2)
    return numbers * (2 if storage.scale == "f16" else 4)


def stored_bits(rows: int, columns: int, storage: Storage) -> int:
    """Bits of a matrix with its scales and zeros, without the header: what "bits per weight" counts."""
    return rows * columns * storage.bits + 8 * scale_bytes(rows, columns, storage)


__all__ = ["scale_bytes", "stored_bits"]
