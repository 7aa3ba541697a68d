"""Time and error of static int8 in MNN, beside the same models in floats.

Three networks made by torch, and the text detector of PP-OCR where the package ``rapidocr-onnxruntime`` is installed
or its file is given, are quantized by onnxruntime's ``quantize_static`` and compiled. Float and int8 modules alternate in
one process, so that a machine that slows down favours neither. ``--layers`` times chains of one kind of layer instead,
which says where time goes. Ratios are those of the fastest runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

PPOCR = "models/ch_PP-OCRv4_det_infer.onnx"
LAYERS = {
    "1x1, 64 at 56": (64, 56, 1, 1), "1x1, 256 at 28": (256, 28, 1, 1), "1x1, 256 at 7": (256, 7, 1, 1),
    "3x3, 64 at 56": (64, 56, 3, 1), "3x3, 256 at 14": (256, 14, 3, 1), "5x5, 64 at 28": (64, 28, 5, 1),
    "depthwise 3x3, 128 at 56": (128, 56, 3, 128), "depthwise 5x5, 128 at 28": (128, 28, 5, 128),
}  # fmt: skip
"""Channels, height and width, kernel and groups of the layers that are timed alone, six in a row with ReLUs between."""
DEPTH = 6
SAMPLES = 16


def main() -> None:
    """Measure and print a table."""
    if sys.argv[1:2] == ["--child"]:
        _time_in_child(json.loads(Path(sys.argv[2]).read_text()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", action="store_true", help="time layers of one kind in place of networks")
    parser.add_argument("--ppocr", type=Path, help="the detector's ONNX file; by default that of rapidocr-onnxruntime")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each module (default 20)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = []
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors\n")
    found = _layers() if options.layers else _networks(options.ppocr)
    print("| model | threads | float ms | int8 ms | float / int8 | int8 operators | size | error | of onnxruntime |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in found:
        if options.only in name:
            with tempfile.TemporaryDirectory() as folder:
                for row in _measured(name, make, Path(folder), options.rounds):
                    rows.append(row)
                    print(_line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _line(row: dict[str, Any]) -> str:
    float_ms, int8_ms = row["float"], row["int8"]
    times = " | ".join(f"{item['median']:.2f} ({item['least']:.2f}-{item['most']:.2f})" for item in (float_ms, int8_ms))
    return (
        f"| {row['model']} | {row['threads']} | {times} | {float_ms['least'] / int8_ms['least']:.2f} | "
        f"{row['operators']} | {row['bytes'] / row['float_bytes']:.2f} | {row['error']:.4f} | {row['reference']:.4f} |"
    )


# ---- models ----

Make = Callable[[Path], tuple[Path, list[dict[str, np.ndarray]]]]
"""Writes a float model to a folder; the file, and inputs to calibrate with, of which the last is held out."""


def _networks(ppocr: Path | None) -> Iterator[tuple[str, Make]]:
    for name in ("plain", "residual", "separable"):
        yield name, lambda folder, name=name: _exported(_network(name), (1, 3, 128, 128), folder)  # type: ignore[misc]
    package = find_spec("rapidocr_onnxruntime")
    path = ppocr or (Path(package.origin).parent / PPOCR if package is not None and package.origin else None)
    if path is None or not path.is_file():
        print("the detector is left out: pip install --no-deps rapidocr-onnxruntime, or --ppocr FILE", file=sys.stderr)
        return
    yield "PP-OCR detection", lambda folder: _detector(path, folder)


def _network(name: str) -> Any:
    """A network for images with random weights, its normalizations set by random images."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    def block(
        into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: Any = nn.ReLU
    ) -> nn.Sequential:
        conv = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out), *([act()] if act else []))

    class Residual(nn.Module):
        def __init__(self, into: int, out: int, stride: int) -> None:
            super().__init__()
            self.inner = nn.Sequential(block(into, out, 3, stride), block(out, out, act=None))
            self.short = block(into, out, 1, stride, act=None) if stride > 1 or into != out else nn.Identity()

        def forward(self, x: Any) -> Any:
            return torch.relu(self.inner(x) + self.short(x))

    def separable(into: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(block(into, into, 3, stride, into, nn.ReLU6), block(into, out, 1, act=nn.ReLU6))

    body: list[Any]
    if name == "plain":
        body = [block(3, 32), block(32, 32), nn.MaxPool2d(2), block(32, 64), block(64, 64), nn.MaxPool2d(2)]
        body += [block(64, 128), block(128, 128), nn.MaxPool2d(2), block(128, 128)]
        width = 128
    elif name == "residual":
        body = [
            block(3, 32, 3, 2),
            Residual(32, 32, 1),
            Residual(32, 64, 2),
            Residual(64, 128, 2),
            Residual(128, 128, 1),
        ]
        width = 128
    else:
        sizes = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
        body = [block(3, 32, 3, 2, act=nn.ReLU6), *(separable(*size) for size in sizes)]
        width = 512
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 100))
    net.train()
    with torch.no_grad():
        for _ in range(8):
            net(torch.randn(4, 3, 128, 128))
    return net.eval()


def _exported(net: Any, shape: tuple[int, ...], folder: Path) -> tuple[Path, list[dict[str, np.ndarray]]]:
    import warnings

    import torch

    rng = np.random.default_rng(0)
    feeds = [{"x": _image(rng, shape)} for _ in range(SAMPLES + 1)]
    path = folder / "float.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(shape),), str(path), dynamo=False, opset_version=17, input_names=["x"], output_names=["y"]
        )
    return path, feeds


def _image(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Blobs of several sizes with some noise."""
    found = 0.2 * rng.standard_normal(shape)
    for cell in (4, 16, 32):
        grid = rng.standard_normal((*shape[:2], -(-shape[2] // cell), -(-shape[3] // cell)))
        found += np.kron(grid, np.ones((1, 1, cell, cell)))[:, :, : shape[2], : shape[3]]
    return (found / found.std()).astype(np.float32)


def _detector(path: Path, folder: Path) -> tuple[Path, list[dict[str, np.ndarray]]]:
    import onnx
    import onnx.version_converter

    model = onnx.version_converter.convert_version(onnx.load(path), 17)
    onnx.save(model, folder / "float.onnx")
    rng = np.random.default_rng(0)
    return folder / "float.onnx", [{model.graph.input[0].name: _page(rng, 320)} for _ in range(SAMPLES + 1)]


def _page(rng: np.random.Generator, size: int) -> np.ndarray:
    """A light page with rows of dark strokes, which a detector takes for text."""
    page = np.full((size, size), 0.85 + 0.1 * rng.random(), np.float32)
    for top in range(int(rng.integers(8, 24)), size - 30, int(rng.integers(34, 60))):
        height, left = int(rng.integers(12, 24)), int(rng.integers(8, 60))
        while left < size - 30 and rng.random() < 0.93:
            width = int(rng.integers(6, 14))
            glyph = np.kron(rng.random((5, 3)) < 0.55, np.ones((-(-height // 5), -(-width // 3))))[:height, :width]
            page[top : top + height, left : left + width][glyph > 0] = 0.1
            left += width + (3 if rng.random() < 0.8 else 14)
    normal = page[None, None] - np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    return (normal / np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)).astype(np.float32)


def _layers() -> Iterator[tuple[str, Make]]:
    from torch import nn

    for name, (channels, size, kernel, groups) in LAYERS.items():

        def make(folder: Path, c: int = channels, s: int = size, k: int = kernel, g: int = groups) -> Any:
            one = [layer for _ in range(DEPTH) for layer in (nn.Conv2d(c, c, k, 1, k // 2, groups=g), nn.ReLU())]
            return _exported(nn.Sequential(*one).eval(), (1, c, s, s), folder)

        yield name, make


# ---- measuring ----


def _measured(name: str, make: Make, folder: Path, rounds: int) -> Iterator[dict[str, Any]]:
    path, feeds = make(folder)
    _quantize(path, folder / "qdq.onnx", feeds[:-1])
    held_out = feeds[-1]
    exact, rounded = _by_onnxruntime(path, held_out), _by_onnxruntime(folder / "qdq.onnx", held_out)
    _, output = _compile(path, folder / "float.mnn")
    edited, _ = _compile(folder / "qdq.onnx", folder / "int8.mnn")
    key, array = next(iter(held_out.items()))
    np.save(folder / "x.npy", array)
    for threads in (1, 2):
        spec = {"folder": str(folder), "input": key, "output": output, "threads": threads, "rounds": rounds}
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "benchmarks.static_int8", "--child", str(folder / "spec.json")]
        subprocess.run(command, check=True, timeout=1200, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times = json.loads((folder / "times.json").read_text())
        got = np.load(folder / "int8.npy").reshape(exact.shape)
        yield {
            "model": name, "threads": threads, **{key: _spread(times[key]) for key in ("float", "int8")},
            "operators": len(edited.integer), "bytes": (folder / "int8.mnn").stat().st_size,
            "float_bytes": (folder / "float.mnn").stat().st_size, "error": _error(got, exact),
            "reference": _error(rounded, exact),
        }  # fmt: skip


def _spread(seconds: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(seconds) * 1e3,
        "least": min(seconds) * 1e3,
        "most": max(seconds) * 1e3,
    }


def _error(got: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of the difference relative to that of the output."""
    return float(np.sqrt(np.square(got - exact).sum() / np.square(exact).sum()))


def _quantize(source: Path, out: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.disable(logging.WARNING)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    prepared = out.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip


def _by_onnxruntime(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: np.ndarray = ort.InferenceSession(str(path), options).run(None, feeds)[0]
    return found


def _compile(source: Path, out: Path) -> tuple[Any, str]:
    """Compile to one file; what became of it and the name of its output."""
    import onnx

    from backends.mnn.modules.child import Converter
    from backends.mnn.modules.edit.edited import Edited
    from backends.mnn.modules.emit import emit
    from backends.mnn.target.releases import target
    from frontends.onnx.load import load as load_onnx
    from passes.framework.context import PassContext
    from passes.framework.load import load
    from passes.framework.manager import PassManager

    graph = load_onnx(onnx.load(source))
    PassManager(load("mnn-module")).run(graph, PassContext(target("3.6.1")))
    with Converter() as converter:
        edited = emit(graph, out, converter)
    return edited or Edited(), graph.outputs[0].name


def _time_in_child(spec: dict[str, Any]) -> None:
    """Run both modules in turn; MNN is imported here alone."""
    import MNN.expr as expr
    import MNN.nn as nn

    folder = Path(spec["folder"])
    config = {"backend": 0, "numThread": spec["threads"], "precision": "high", "memory": "normal"}
    runtime = nn.create_runtime_manager((config,))
    array = np.load(folder / "x.npy")
    modules = {
        name: nn.load_module_from_file(
            str(folder / f"{name}.mnn"), [spec["input"]], [spec["output"]], runtime_manager=runtime, shape_mutable=False
        )
        for name in ("float", "int8")
    }

    def once(name: str) -> tuple[float, np.ndarray]:
        given = expr.const(array, list(array.shape), expr.NCHW, expr.float)
        start = time.perf_counter()
        made = modules[name].onForward([given])[0]
        found = np.array(expr.convert(made, expr.NCHW).read())
        return time.perf_counter() - start, found

    times: dict[str, list[float]] = {name: [] for name in modules}
    for name in modules:
        once(name)
        np.save(folder / f"{name}.npy", once(name)[1])
    for _ in range(spec["rounds"]):
        for name in modules:
            times[name].append(once(name)[0])
    (folder / "times.json").write_text(json.dumps(times))
    os._exit(0)


if __name__ == "__main__":
    main()
