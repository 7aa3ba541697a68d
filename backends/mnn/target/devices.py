"""What MNN's kernels stream from memory to decode one token, by device and release, as data with its evidence.

Every figure was read in MNN's source at the tag of a release; those of x86-64 were also measured, by
``python -m benchmarks.decode_speed``. All hold for the settings that are shipped (memory low, precision low).

On CPUs a block of a weight is one piece of memory: codes, then a scale and an offset of 4 bytes each for every row,
whether it has a zero or not (``packWeightAndQuantInfo``). Codes of a width that has no kernel are widened to a byte each
when the model is loaded. Weights of 16 bits are single floats in memory, half floats where the processor computes with
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ir.quant.storage import INTEGER_BITS
from ir.target.device import Device, Figure

_PACK = "source/backend/cpu/compute/ConvInt8TiledExecutor.cpp"
_METAL = "source/backend/metal/MetalConvolutionCommon.mm"
_OPENCL = "source/backend/opencl/execution/buffer/ConvBufLowMemoryExecution.cpp"
_ARM = "source/backend/cpu/compute/Int8FunctionsOpt.cpp"
_AVX = "source/backend/cpu/x86_x64/AVX2Functions.cpp"
_PROBE = "probe: benchmarks/decode_speed on 3.6.1"

UNMEASURED = "the speed itself was not measured on this device"


@dataclass(frozen=True)
class Reads:
    """What kernels read of codes from a release on.

    Attributes:
        since: the first release.
        packed: bytes for each weight of the widths that have a kernel of their own; others are read as bytes.
        evidence: where that is written, and whether it was measured.
    """

    since: str
    packed: Mapping[int, float]
    evidence: str


@dataclass(frozen=True)
class Row:
    """One device: what its kernels read, over time, and what they read beside codes.

    Attributes:
        name, meaning: as of `ir.target.device.Device`.
        reads: oldest first.
        floats: bytes of a weight stored in 16 bits, and of one stored in 32.
        zeros, plain, row: as of `ir.target.device.Device`.
        beside: evidence of `floats`, `zeros`, `plain` and `row`.
        speed: how far bytes foretell the speed.
    """

    name: str
    meaning: str
    reads: tuple[Reads, ...]
    floats: tuple[float, float]
    zeros: float
    plain: float
    row: float
    beside: str
    speed: str = UNMEASURED


ROWS = (
    Row(
        "x86", "x86-64 processors",
        (Reads("3.0.0", {4: 0.5}, f"{_AVX}, {_PACK} 3.6.1: Int8GemmKernel_W4 alone is registered; {_PROBE}"),),
        (4, 4), 8, 8, 8, f"{_PACK} 3.6.1: packWeightAndQuantInfo, mWeightKernelSum, mOriginBias; {_PROBE}",
        "decode speed follows the bytes; measured by benchmarks/decode_speed",
    ),
    Row(
        "arm82", "64-bit ARM with half floats and dot products (ARMv8.2)",
        (
            Reads("3.0.0", {4: 0.5}, f"{_ARM} 3.5.0: kernels of 4 and 8 bits; not measured"),
            Reads("3.6.0", {2: 0.25, 3: 0.5, 4: 0.5},
                  f"{_ARM}, {_PACK} 3.6.0: w2 and w3 kernels, cells of 12 bytes padded to 16 at 3 bits; not measured"),
        ),
        (2, 2), 8, 8, 8, f"{_PACK} 3.6.1: QUANT_INFO_BYTES 4, also with half floats; not measured",
    ),
    Row(
        "arm86", "64-bit ARM with integer matrix products (ARMv8.6, i8mm)",
        (
            Reads("3.0.0", {4: 0.5}, f"{_ARM} 3.5.0: kernels of 4 and 8 bits; not measured"),
            Reads("3.6.0", {2: 0.25, 3: 0.375, 4: 0.5},
                  f"{_ARM}, {_PACK} 3.6.0: w2 and w3 kernels, cells of 24 bytes for 64 weights; not measured"),
        ),
        (2, 2), 8, 8, 8, f"{_PACK} 3.6.1: QUANT_INFO_BYTES 4, also with half floats; not measured",
    ),
    Row(
        "metal", "Apple's GPUs",
        (
            Reads("3.0.0", {4: 0.5}, f"{_METAL} 3.5.0: weightTransform of 4 and 8 bits; not measured"),
            Reads("3.6.0", {2: 0.25, 3: 0.375, 4: 0.5},
                  f"{_METAL} 3.6.0: weightTransform, tiles of 4 and 6 bytes for 16 weights; not measured"),
        ),
        (2, 2), 4, 4, 0, f"{_METAL} 3.6.1: getDequantScale, a half-float pair with and without a zero; not measured",
    ),
    Row(
        "opencl", "GPUs through OpenCL, weights in buffers",
        (
            Reads("3.0.0", {4: 0.5}, f"{_OPENCL} 3.5.0: canUseInt4, else bytes; not measured"),
            Reads("3.6.0", {2: 0.25, 3: 0.375, 4: 0.5},
                  f"{_OPENCL} 3.6.0: output_size a quarter and three eighths; not measured"),
        ),
        (2, 2), 4, 2, 0, f"{_OPENCL} 3.6.1: getInfoFromOpLowMemory, half floats, pairs with a zero; not measured",
    ),
)  # fmt: skip
"""Every device; the first is taken when nobody says. With releases before 3.6.0 in a target the ARM processors read what
x86-64 does."""


def devices(versions: Iterable[str]) -> dict[str, Device]:
    """The devices as some releases use them: where these differ, the most that one of them reads."""
    known = [_key(version) for version in versions]
    return {row.name: _device(row, known) for row in ROWS}


def _device(row: Row, versions: list[tuple[int, ...]]) -> Device:
    used = [[reads for reads in row.reads if _key(reads.since) <= version][-1] for version in versions]
    codes = {}
    for bits in INTEGER_BITS:
        most = max(used, key=lambda reads: reads.packed.get(bits, 1.0))
        codes[bits] = Figure(most.packed.get(bits, 1.0), most.evidence)
    codes[16], codes[32] = (Figure(size, row.beside) for size in row.floats)
    return Device(
        row.name,
        row.meaning,
        codes,
        Figure(row.zeros, row.beside),
        Figure(row.plain, row.beside),
        Figure(row.row, row.beside),
        row.speed,
    )


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


__all__ = ["ROWS", "devices"]
