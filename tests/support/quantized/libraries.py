"""Matrices quantized, packed and decoded by the libraries that own the encodings, for ``tests/data/quantized``.

Run in an environment that has the libraries, on CPU (they need not be in the one of the tests)::

    pip install compressed-tensors==0.20.0 bitsandbytes==0.50.2 gptqmodel==7.7.0 autoawq==0.2.9 transformers==5.24.0
    python -m tests.support.quantized.libraries tests/data/quantized

Each file holds some matrices, each as the tensors of a module, with ``decoded`` beside them: what the library itself
makes of the tensors, in float32. Where a library computes in half precision its own function is called with scales in
single precision, so that nothing but the layout and the formula is compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS, COLUMNS = 32, 64
Tensors = dict[str, Any]


def matrix(seed: int, rows: int = ROWS, columns: int = COLUMNS) -> Any:
    """float32[rows, columns] with rows of different size."""
    import torch

    made = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(0.2, 2.0, rows)[:, None]
    return torch.randn(rows, columns, generator=made) * sizes


def compressed_tensors() -> Iterator[tuple[str, Tensors]]:
    """Every width, symmetric and not, in groups and rows; bytes; floats of 8 and 4 bits."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    def args(**given: Any) -> QuantizationScheme:
        return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**given))

    def made(name: str, form: str, scheme: QuantizationScheme, seed: int) -> tuple[str, Tensors]:
        weight, how = matrix(seed), scheme.weights
        group = how.group_size or COLUMNS
        blocks = weight.reshape(ROWS, -1, group)
        extra: Tensors = {}
        if how.strategy == "tensor":
            low, high = weight.min()[None], weight.max()[None]
        else:
            low, high = blocks.amin(-1), blocks.amax(-1)
        if form == "nvfp4-pack-quantized":
            extra["weight_global_scale"] = torch.tensor([448 * 6 / weight.abs().max()])
        scale, zero = calculate_qparams(low, high, how, global_scale=extra.get("weight_global_scale"))
        state = {"weight": weight, "weight_scale": scale.float(), **extra}
        if not how.symmetric:
            state["weight_zero_point"] = zero
        compressor = BaseCompressor.load_from_registry(form)
        packed = compressor.compress(state, scheme)
        decoded = (
            _nvfp4(packed, how)
            if form == "nvfp4-pack-quantized"
            else compressor.decompress(dict(packed), scheme)["weight"]
        )
        return name, {**packed, "decoded": decoded.float()}

    seed = 0
    for bits in range(2, 9):
        for symmetric in (True, False):
            seed += 1
            grouped = symmetric == (bits % 2 == 0)
            strategy = {"strategy": "group", "group_size": 32} if grouped else {"strategy": "channel"}
            scheme = args(num_bits=bits, symmetric=symmetric, **strategy)
            kind = f"{'symmetric' if symmetric else 'zeros'}-{'groups' if grouped else 'rows'}"
            yield made(f"packed-{bits}-{kind}", "pack-quantized", scheme, seed)
    for strategy in ("channel", "tensor"):
        for symmetric in (True, False):
            scheme = args(num_bits=8, symmetric=symmetric, strategy=strategy)
            yield made(f"bytes-{strategy}-{symmetric}", "int-quantized", scheme, 50)
        yield made(f"float8-{strategy}", "float-quantized", args(num_bits=8, type="float", strategy=strategy), 51)
    fp4 = {"num_bits": 4, "type": "float", "symmetric": True}
    yield made(
        "nvfp4",
        "nvfp4-pack-quantized",
        args(**fp4, strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn),
        52,
    )
    yield made(
        "mxfp4", "mxfp4-pack-quantized", args(**fp4, strategy="group", group_size=32, scale_dtype=torch.uint8), 53
    )


def _nvfp4(packed: Tensors, how: Any) -> Any:
    """The library's own steps in single precision; its compressor takes them in bfloat16."""
    import torch
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    codes = unpack_fp4_from_uint8(packed["weight_packed"], ROWS, COLUMNS, dtype=torch.float32)
    scale, whole = packed["weight_scale"].float(), packed["weight_global_scale"]
    return dequantize(codes, scale, args=how, dtype=torch.float32, global_scale=whole)


def gptq() -> Iterator[tuple[str, Tensors]]:
    """2, 3, 4 and 8 bits with both forms of zeros, and with groups in the order of activations."""
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    for seed, (bits, order) in enumerate([(2, False), (3, False), (4, False), (8, False), (4, True)], 100):
        weight, group = matrix(seed), 32
        blocks = weight.reshape(ROWS, -1, group)
        top = 2**bits - 1
        low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
        scale = ((high - low) / top).half().float()
        zero = torch.round(-low / scale).clamp(1, top)
        groups = torch.arange(COLUMNS) // group
        if order:
            groups = groups[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(seed))]
        linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
        codes = (torch.round(weight / scale[:, groups]) + zero[:, groups]).clamp(0, top)
        linear.weight.data = (codes - zero[:, groups]) * scale[:, groups]
        module = TorchLinear(bits, group, False, order, COLUMNS, ROWS, False, register_buffers=True)
        module.pack(linear, scale, zero, groups.to(torch.int32))
        module.post_init()
        names = ("qweight", "qzeros", "scales", "g_idx")
        module.scales = module.scales.float()
        decoded = module.dequantize_weight().T.float()
        newer = {name: getattr(module, name).clone() for name in names}
        newer["scales"] = newer["scales"].half()
        kind = f"{bits}{'-order' if order else ''}"
        yield f"newer-{kind}", {**newer, "decoded": decoded}
        convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=bits, group_size=group))
        yield f"older-{kind}", {**newer, "qzeros": module.qzeros.clone(), "decoded": decoded}


def awq() -> Iterator[tuple[str, Tensors]]:
    """The gemm version."""
    import torch
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    for group in (32, COLUMNS):
        weight = matrix(200 + group)
        blocks = weight.reshape(ROWS, -1, group)
        scale = ((blocks.amax(-1) - blocks.amin(-1)) / 15).half().float()
        zero = torch.round(-blocks.amin(-1) / scale).clamp(0, 15)
        codes = (torch.round(blocks / scale[..., None]) + zero[..., None]).clamp(0, 15)
        linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
        linear.weight.data = ((codes - zero[..., None]) * scale[..., None]).reshape(ROWS, COLUMNS)
        module = WQLinear_GEMM.from_linear(linear, 4, group, False, scale.T.contiguous(), zero.T.contiguous())
        decoded = dequantize_gemm(module.qweight, module.qzeros, module.scales.float(), 4, group).T.float()
        names = ("qweight", "qzeros", "scales")
        yield f"groups-{group}", {**{name: getattr(module, name) for name in names}, "decoded": decoded}


def bitsandbytes() -> Iterator[tuple[str, Tensors]]:
    """nf4 and fp4, nested or not, and bytes; decoded by the library's own generic code.

    The kernel for CPUs of release 0.50.2 decodes matrices wrongly whose blocks cross rows.
    """
    import torch
    from bitsandbytes import functional
    from bitsandbytes.backends.default import ops

    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            for block in (64, 128):
                weight = matrix(300 + block)
                packed, state = functional.quantize_4bit(
                    weight, blocksize=block, quant_type=kind, compress_statistics=nested
                )
                factors = state.absmax
                if nested:
                    inner = state.state2
                    factors = ops._dequantize_blockwise_compute(
                        state.absmax, inner.absmax, inner.code, inner.blocksize, torch.float32
                    )
                    factors = factors + state.offset
                decoded = ops._dequantize_4bit_compute(
                    packed.reshape(-1), factors, state.code, block, weight.shape, torch.float32
                )
                parts = {f"weight.{key}": item for key, item in state.as_dict(packed=True).items()}
                yield f"{kind}-{block}{'-nested' if nested else ''}", {"weight": packed, **parts, "decoded": decoded}
    codes, scale, _ = functional.int8_vectorwise_quant(matrix(320).half())
    decoded = functional.int8_vectorwise_dequant(codes, scale)
    yield "bytes", {"weight": codes, "SCB": scale, "decoded": decoded.float()}


def transformers() -> Iterator[tuple[str, Tensors]]:
    """FP8 in blocks, whole and ragged, and the stacks of gpt-oss."""
    import torch
    from transformers.integrations import finegrained_fp8, mxfp4

    for rows, columns in ((128, 128), (136, 160)):
        weight = matrix(400 + rows, rows, columns)
        padded = torch.zeros(-(-rows // 128) * 128, -(-columns // 128) * 128)
        padded[:rows, :columns] = weight
        blocks = padded.reshape(padded.shape[0] // 128, 128, -1, 128)
        scale = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:rows, :columns].contiguous()
        stored = {"weight": codes.to(torch.float8_e4m3fn), "weight_scale_inv": scale}
        decoded = finegrained_fp8._dequantize_fp8_weight(
            stored["weight"], stored["weight_scale_inv"], [128, 128], torch.float32
        )
        yield f"fp8-{rows}-{columns}", {**stored, "decoded": decoded}
    made = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (2, 24, 3, 16), generator=made, dtype=torch.uint8)
    scales = torch.randint(110, 130, (2, 24, 3), generator=made, dtype=torch.uint8)
    decoded = mxfp4._convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    yield "mxfp4", {"experts_blocks": blocks, "experts_scales": scales, "decoded": decoded}


LIBRARIES = (compressed_tensors, gptq, awq, bitsandbytes, transformers)


def main(folder: Path) -> None:
    """Write a file for each library."""
    import torch
    from safetensors.torch import save_file

    for library in LIBRARIES:
        tensors = {}
        for name, parts in library():
            given = {ending: item for ending, item in parts.items() if isinstance(item, torch.Tensor)}
            tensors |= {f"{name}.{ending}": item.clone().contiguous() for ending, item in given.items()}
        save_file(tensors, folder / f"{library.__name__.replace('_', '-')}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
