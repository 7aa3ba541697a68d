"""Static quantization against onnxruntime's ``quantize_static``, both run by onnxruntime.

Three networks are trained for some seconds on patterns that are made up (plain; inverted residuals with depthwise
convolutions; a detector with concatenated scales), exported by torch and quantized by both, on the same calibration data.
``--ppocr FILE`` adds the text detector of PP-OCR, on pictures of text, for which Pillow must be installed. The error is the
root mean square by which outputs are off on test data that neither has seen, relative to that of the float model; times
are those of the fastest runs, with one thread, of sessions that alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, SIZE = 10, 32
CALIBRATION, TEST = 128, 64
"""Pictures to calibrate on, and to measure errors on."""
STEPS, BATCH = 150, 64
PAGES, PAGE = (20, 8), 320
"""Pages to calibrate on and to measure errors on, and their size."""
OURS = {
    "int8-static": "int8-static",
    "all that can": "int8-static{max-error=none products=1}",
    "no measuring": "int8-static{max-error=none}",
}
"""Pipelines by the name of the row."""


@dataclass(frozen=True)
class Subject:
    """A float model, inputs to calibrate with and inputs to measure with."""

    name: str
    model: Path
    calibration: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Row:
    """What one way of quantizing gives.

    Attributes:
        model, way: of what, and how.
        error: relative error of the outputs.
        milliseconds: fastest run.
        faster: times faster than the float model.
        integers: fused operators of onnxruntime that compute with integers, by name.
        floats: convolutions and products that it computes with floats.
        seconds: that quantizing took.
    """

    model: str
    way: str
    error: float
    milliseconds: float
    faster: float
    integers: dict[str, int]
    floats: int
    seconds: float


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ppocr", type=Path, help="the detector's ONNX file, as in the package rapidocr-onnxruntime")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each model (default 20)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors\n")
    print("| model | way | error | ms | times float | computed with integers | products in floats | quantized in |")
    print("|---|---|---|---|---|---|---|---|")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in _subjects(Path(folder), options.ppocr, options.only):
            for row in _measured(subject, Path(folder), options.rounds):
                rows.append(row)
                print(_line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _line(row: Row) -> str:
    fused = ", ".join(f"{count} {op}" for op, count in sorted(row.integers.items())) or "-"
    return (
        f"| {row.model} | {row.way} | {row.error:.4f} | {row.milliseconds:.2f} | {row.faster:.2f} | {fused} | {row.floats} | "
        f"{row.seconds:.1f} s |"
    )


# ---- models ----


def _subjects(folder: Path, ppocr: Path | None, only: str) -> Iterator[Subject]:
    for name in ("plain", "residual", "detector"):
        if only in name:
            model = folder / f"{name}.onnx"
            _trained(name, model)
            yield Subject(name, model, _pictures(CALIBRATION, 10_000)[0], _pictures(TEST, 20_000)[0])
    if ppocr is not None and only in "ppocr-det":
        count, tests = PAGES
        pages = np.stack([_page(number) for number in range(count + tests)])
        yield Subject("ppocr-det", ppocr, pages[:count], pages[count:])


def _pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Waves of ten directions and three lengths in noise, float32[count, 3, 32, 32], and the number of the direction."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    x, y = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))
    angle = (labels * np.pi / CLASSES)[:, None, None]
    length = (9 + 6 * (labels % 3))[:, None, None]
    waves = np.sin(length * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * np.pi, (count, 1, 1)))
    pictures = waves[:, None] * rng.uniform(0, 2, (count, 3, 1, 1)) + rng.normal(0, 0.6, (count, 3, SIZE, SIZE))
    return pictures.astype(np.float32), labels


def _page(seed: int) -> np.ndarray:
    """A page with lines of text, as the detector takes it: float32[3, 320, 320] from -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(seed)
    page = Image.new("RGB", (PAGE, PAGE), tuple(int(item) for item in rng.integers(120, 256, 3)))
    draw = ImageDraw.Draw(page)
    letters = list("ABCDEFGHabcdefghijklmnop0123456789 ")
    for _ in range(rng.integers(3, 9)):
        text = "".join(rng.choice(letters, rng.integers(4, 14)))
        place = (int(rng.integers(0, PAGE // 2)), int(rng.integers(0, PAGE - 40)))
        colour = tuple(int(item) for item in rng.integers(0, 110, 3))
        draw.text(place, text, fill=colour, font=ImageFont.load_default(int(rng.integers(12, 44))))
    noisy = np.clip(np.asarray(page, np.float32) + rng.normal(0, 6, (PAGE, PAGE, 3)), 0, 255)
    return ((noisy / 255 - 0.5) / 0.5).transpose(2, 0, 1).astype(np.float32)


def _trained(name: str, path: Path) -> None:
    """Train a network and export it."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = _network(name)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for step in range(STEPS):
        arrays, labels = _pictures(BATCH, step)
        pictures = torch.from_numpy(arrays)
        if name == "detector":
            coarse = nn.functional.avg_pool2d(pictures, 2)
            wanted = torch.stack([(coarse[:, 0] > 0.2), (coarse[:, 1].abs() > 0.5)], 1).float()
            loss = nn.functional.binary_cross_entropy(model(pictures), wanted)
        else:
            loss = nn.functional.cross_entropy(model(pictures), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    example = torch.zeros(1, 3, SIZE, SIZE)
    torch.onnx.export(
        model, (example,), str(path), dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
    )  # fmt: skip


def _network(name: str) -> Any:
    import torch
    from torch import nn

    def layers(width: int, out: int, stride: int = 1, kernel: int = 3, groups: int = 1, bound: Any = nn.ReLU) -> Any:
        convolution = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out), bound())

    class Inverted(nn.Module):
        def __init__(self, width: int, out: int, stride: int) -> None:
            super().__init__()
            wide = 4 * width
            self.body = nn.Sequential(
                layers(width, wide, kernel=1, bound=nn.ReLU6),
                layers(wide, wide, stride, groups=wide, bound=nn.ReLU6),
                layers(wide, out, kernel=1, bound=nn.Identity),
            )
            self.adds = width == out and stride == 1

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.adds else self.body(x)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([layers(3, 16, 2), layers(16, 32, 2), layers(32, 64, 2)])
            self.side = nn.ModuleList([layers(width, 24, kernel=1) for width in (16, 32, 64)])
            self.head = nn.Sequential(layers(72, 32), nn.Conv2d(32, 2, 1), nn.Sigmoid())

        def forward(self, x: Any) -> Any:
            scales = []
            for number, (down, side) in enumerate(zip(self.down, self.side, strict=True)):
                x = down(x)
                scales.append(nn.functional.interpolate(side(x), scale_factor=2**number, mode="nearest"))
            return self.head(torch.cat(scales, 1))

    if name == "plain":
        body = [layers(3, 16), layers(16, 32, 2), layers(32, 32), layers(32, 64, 2), nn.MaxPool2d(2)]
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    if name == "residual":
        blocks = [
            Inverted(16, 16, 1),
            Inverted(16, 24, 2),
            Inverted(24, 24, 1),
            Inverted(24, 40, 2),
            Inverted(40, 40, 1),
        ]
        stem = layers(3, 16, bound=nn.ReLU6)
        return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, CLASSES))
    return Detector()


# ---- ways ----


def _measured(subject: Subject, folder: Path, rounds: int) -> Iterator[Row]:
    feeds = [{"x": item[None]} for item in subject.test]
    files = {"float": (subject.model, 0.0), "onnxruntime": _by_onnxruntime(subject, folder)}
    files |= {name: _by_us(subject, pipeline, folder / f"{subject.name}-{number}.onnx")
              for number, (name, pipeline) in enumerate(OURS.items())}  # fmt: skip
    sessions = {name: _session(path) for name, (path, _) in files.items()}
    wanted = [sessions["float"].run(None, feed) for feed in feeds]
    times = _times(list(sessions.values()), feeds[0], rounds)
    milliseconds = dict(zip(sessions, times, strict=True))
    for name, (path, seconds) in files.items():
        got = [sessions[name].run(None, feed) for feed in feeds]
        integers, floats = _kernels(path, folder)
        faster = milliseconds["float"] / milliseconds[name]
        yield Row(
            subject.name, name, _error(wanted, got), milliseconds[name], faster, integers, floats, round(seconds, 2)
        )


def _by_us(subject: Subject, pipeline: str, out: Path) -> tuple[Path, float]:
    from backends.onnx.write import write
    from frontends.onnx.load import load
    from ir.quant.statistics.samples import ArraySamples, split
    from passes.framework.context import PassContext
    from passes.framework.manager import PassManager

    begin = time.perf_counter()
    graph = load(str(subject.model))
    samples = split(ArraySamples([{"x": item[None]} for item in subject.calibration]))
    PassManager(pipeline).run(graph, PassContext(samples))
    write(graph, out)
    return out, time.perf_counter() - begin


def _by_onnxruntime(subject: Subject, folder: Path) -> tuple[Path, float]:
    """As its documentation says: shape inference and optimization, then pairs of Q/DQ, weights by channel."""
    import onnx
    from onnx import version_converter
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([{"x": item[None]} for item in subject.calibration])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    begin = time.perf_counter()
    model = onnx.load(subject.model)
    version = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if version < 13:
        model = version_converter.convert_version(model, 13)
    plain, out = folder / "plain.onnx", folder / f"{subject.name}-onnxruntime.onnx"
    onnx.save(model, plain)
    quant_pre_process(str(plain), str(plain), skip_symbolic_shape=True)
    quantize_static(
        str(plain), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out, time.perf_counter() - begin


# ---- measuring ----


def _session(path: Path, fused: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if fused is not None:
        options.optimized_model_filepath = str(fused)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _times(sessions: Sequence[Any], feed: dict[str, np.ndarray], rounds: int) -> list[float]:
    """Milliseconds of the fastest run of each, in turn."""
    found = [float("inf")] * len(sessions)
    for _ in range(rounds):
        for number, session in enumerate(sessions):
            begin = time.perf_counter()
            session.run(None, feed)
            found[number] = min(found[number], 1e3 * (time.perf_counter() - begin))
    return found


def _kernels(path: Path, folder: Path) -> tuple[dict[str, int], int]:
    """What onnxruntime makes of a model: operators on integers by name, and how many products are left in floats."""
    import onnx

    _session(path, folder / "fused.onnx")
    ops = Counter(node.op_type for node in onnx.load(folder / "fused.onnx").graph.node)
    integers = {
        op: count for op, count in ops.items() if op.startswith("QLinear") or op in ("QGemm", "MatMulIntegerToFloat")
    }
    return integers, sum(ops[op] for op in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"))


def _error(wanted: Sequence[Sequence[np.ndarray]], got: Sequence[Sequence[np.ndarray]]) -> float:
    gap = sum(float(np.square(a.astype(np.float64) - b).sum()) for one, other in zip(wanted, got, strict=True)
              for a, b in zip(one, other, strict=True))  # fmt: skip
    base = sum(float(np.square(a.astype(np.float64)).sum()) for one in wanted for a in one)
    return (gap / base) ** 0.5


if __name__ == "__main__":
    main()
