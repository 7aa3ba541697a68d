"""Compare the quality of Lading's results with that of MNN's official exporter, in every quantization mode it has.

Each mode compiles the checkpoint in a process of its own. The result is then run by the installed MNN over windows of
the evaluation text, which no calibration has seen, and its logits are compared with those of the float model: once with
settings that compute exactly, which shows what the weights lost, and once with those that are shipped, where MNN also
quantizes activations. A result in the file given with ``--json`` is not computed again, so the table can be completed
step by step. Linux only.

    python -m benchmarks.quality MODEL --mnn-checkout MNN --torch-python ENV/bin/python --json results.json

MNN is a checkout of MNN's repository; ENV has torch, transformers, datasets, onnx, yaspin, tqdm and the MNN wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.official import CONVERTER, ROOT, machine, measure

if TYPE_CHECKING:
    from backends.mnn.verify.measure import FloatReference

EXPORT = "{torch} {exporter} --path {model} --export mnn --dst_path {out} --mnnconvert {converter}"
OFFICIAL: Mapping[str, str] = {
    "int8": "--quant_bit 8",
    "int4": "",
    "int4-head8": "--lm_quant_bit 8",
    "int4-block32-head8": "--quant_block 32 --lm_quant_bit 8",
    "hqq": "--hqq",
    "hqq-head8": "--hqq --lm_quant_bit 8",
    "awq-head8": "--awq --lm_quant_bit 8 --calib_data {passages_folder}",
    "smooth-head8": "--smooth --lm_quant_bit 8 --calib_data {passages}",
    "smooth-hqq-head8": "--smooth --hqq --lm_quant_bit 8 --calib_data {passages}",
    "omni-head8": "--omni --lm_quant_bit 8 --calib_data {passages}",
    "omni-hqq-head8": "--omni --hqq --lm_quant_bit 8 --calib_data {passages}",
}
"""Options of each official mode; blocks are of 64 and widths 4 where nothing else is said. The calibrated modes are
given a copy of the checkpoint in float32, as the exporter computes in the type it reads."""
CALIBRATED = ("--awq", "--smooth", "--omni")
COMPILE = "{python} -m tools.compile {model} -o {out} --force --verify none --passes "
LADING: Mapping[str, str] = {
    "default": COMPILE + "default",
    "int8": COMPILE + "int8",
    "int4": COMPILE + "int4",
    "default for 3.6.1": COMPILE + "default --target 3.6.1",
    "int4 for 3.6.1": COMPILE + "int4 --target 3.6.1",
}
"""Half scales, which the exporter always writes, are for targets whose releases read them."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "exact": {"memory": "normal", "precision": "high", "thread_num": 1},
    "shipped": {"memory": "low", "precision": "low", "thread_num": 1},
}
MEASURED = ("positions", "kl", "kl_error", "top1", "perplexity", "perplexity_reference", "nll_error")
"""What is kept of a `backends.mnn.verify.measure.Measured`."""


@dataclass(frozen=True)
class Method:
    """One way to compile: who, its name in the table, its command before places are filled in."""

    maker: str
    name: str
    template: str

    @property
    def key(self) -> str:
        """Name in the file of results."""
        return f"{self.maker} {self.name}"


def official_methods(names: Sequence[str]) -> list[Method]:
    """The modes of the exporter by name.

    Raises:
        SystemExit: there is no such mode.
    """
    unknown = [name for name in names if name not in OFFICIAL]
    if unknown:
        raise SystemExit(f"no official mode {unknown[0]!r}; there are {', '.join(OFFICIAL)}")
    return [Method("official", name, f"{EXPORT} {OFFICIAL[name]}".strip()) for name in names]


def lading_methods(given: Sequence[str]) -> list[Method]:
    """Methods of the form ``NAME=PIPELINE OPTIONS`` or ``NAME=COMMAND``, a command being told by its ``{out}``.

    Raises:
        SystemExit: there is no ``=``.
    """
    found = []
    for text in given:
        name, sign, template = text.partition("=")
        if not sign or not name.strip() or not template.strip():
            raise SystemExit(f"{text!r} is not NAME=PIPELINE or NAME=COMMAND")
        found.append(Method("Lading", name.strip(), template if "{out}" in template else COMPILE + template))
    return found or [Method("Lading", name, template) for name, template in LADING.items()]


class Places(dict[str, Any]):
    """What commands are filled in with; copies and texts are made in the work folder when first asked for."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        converter = work / "mnnconvert"
        converter.write_text(CONVERTER.format(python=args.torch_python.absolute()))
        converter.chmod(0o755)
        super().__init__(
            python=sys.executable,
            torch=args.torch_python.absolute(),
            exporter=args.mnn_checkout.absolute() / "transformers/llm/export/llmexport.py",
            converter=converter,
            model=args.model.absolute(),
            calibration=args.calibration.absolute(),
            weight={},
        )
        self.work, self.passage = work, args.passage

    def __missing__(self, key: str) -> Any:
        if key == "model_float32":
            self[key] = widen(self["model"], self.work / "float32")
        elif key in ("passages", "passages_folder"):
            folder = self.work / "passages"
            folder.mkdir(exist_ok=True)
            lines = passages(self["calibration"].read_text(encoding="utf-8"), self.passage)
            (folder / "test.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            self["passages"], self["passages_folder"] = folder / "test.txt", folder
        else:
            raise SystemExit(f"nothing is called {{{key}}} in a command")
        return self[key]

    def fill(self, method: Method, out: Path) -> tuple[str, ...]:
        """The command of a method.

        Raises:
            SystemExit: a place has no such name, or a size is wanted of a mode that has not been compiled.
        """
        widened = method.maker == "official" and any(option in method.template for option in CALIBRATED)
        template = method.template.replace("{model}", "{model_float32}") if widened else method.template
        self["out"] = out
        try:
            return tuple(word.format_map(self) for word in shlex.split(template))
        except KeyError as error:
            raise SystemExit(f"{method.key}: there is no size of official mode {error}; compile it too") from None


def passages(text: str, size: int) -> list[str]:
    """The text as lines that the exporter reads as one sample each: lines joined by spaces until `size` characters.

    Its calibrated modes read at most 128 tokens (omni) or 512 (awq, smooth) of the first 128 lines, and take each line
    as a sample, so lines of source code as they are would be samples of ten tokens. 0 leaves the lines as they are.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    found: list[str] = []
    for line in lines:
        if size and found and len(found[-1]) + len(line) < size:
            found[-1] += " " + line
        else:
            found.append(line)
    return found


def widen(model: Path, out: Path) -> Path:
    """Copy a checkpoint with bfloat16 and float16 tensors as float32, exactly."""
    out.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.suffix == ".safetensors":
            _widen_file(path, out / path.name)
        elif path.name == "config.json":
            config = json.loads(path.read_text(encoding="utf-8"))
            config.update({key: "float32" for key in ("dtype", "torch_dtype") if key in config})
            (out / path.name).write_text(json.dumps(config), encoding="utf-8")
        elif path.is_file():
            shutil.copyfile(path, out / path.name)
    return out


def _widen_file(source: Path, target: Path) -> None:
    data = np.memmap(source, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:start]))
    metadata = header.pop("__metadata__", None)
    made: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    pieces, place = [], 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = (start + offset for offset in entry["data_offsets"])
        dtype, raw = entry["dtype"], data[first:last]
        if dtype == "BF16":
            raw = (np.ascontiguousarray(raw).view("<u2").astype("<u4") << 16).view(np.uint8)
        elif dtype == "F16":
            raw = np.ascontiguousarray(raw).view("<f2").astype("<f4").view(np.uint8)
        dtype = "F32" if dtype in ("BF16", "F16") else dtype
        made[name] = {**entry, "dtype": dtype, "data_offsets": [place, place + len(raw)]}
        place += len(raw)
        pieces.append(raw)
    text = json.dumps(made, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            piece.tofile(file)


def cut_windows(ids: Sequence[int], width: int, count: int) -> list[list[int]]:
    """Windows that lie evenly over a text and do not overlap; all that fit when `count` is 0 or too many.

    Raises:
        SystemExit: the text is shorter than a window.
    """
    fit = len(ids) // width
    if fit == 0:
        raise SystemExit(f"the text has {len(ids)} tokens, less than one window of {width}")
    count = min(count or fit, fit)
    starts = [number * (len(ids) - width) // max(1, count - 1) for number in range(count)]
    return [list(ids[start : start + width]) for start in starts]


def float_reference(args: argparse.Namespace) -> FloatReference:
    """The float model's logits over the windows of the evaluation text."""
    from tokenizers import Tokenizer

    from backends.mnn.verify.measure import FloatReference
    from frontends.checkpoint.load import load
    from ir.base.store import default_store

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    ids = tokenizer.encode(args.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    windows = cut_windows(ids, args.window, args.windows)
    return FloatReference(load(str(args.model)), windows, default_store())


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def weight_bytes(files: Mapping[str, int]) -> int:
    """Bytes of the weight file, and of the embedding rows where they have a file of their own."""
    return sum(size for name, size in files.items() if name == "llm.mnn.weight" or name.startswith("embeddings"))


def try_method(method: Method, places: Places, reference: FloatReference) -> dict[str, Any]:
    """Compile with one method and measure the result; an exporter that fails is a result too."""
    from backends.mnn.verify.measure import measure as run
    from ir.base.diag import LadingError

    out = places.work / method.key.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    argv = places.fill(method, out)
    cache = str(places.work / "hub")
    offline = {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": cache}
    official = method.maker == "official"
    load = round(os.getloadavg()[0], 2)
    try:
        sample = measure(argv, places.work if official else ROOT, {**os.environ, **(offline if official else {})})
        found: dict[str, Any] = {"wall_s": round(sample.wall_s, 2), "cpu_s": round(sample.cpu_s, 2), "load": load}
        found["peak_tree"] = sample.peak_tree
        found["files"] = sizes(out)
        for name, settings in SETTINGS.items():
            measured = run(out, reference, settings).as_dict()
            found[name] = {key: round(measured[key], 7) for key in MEASURED}
    except (SystemExit, LadingError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"command": method.template, "error": lines[-1].replace(str(places.work), "WORK")}
    return {"command": method.template, **found}


def compare(args: argparse.Namespace, work: Path, results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run every method whose result is not there with the same command, and give all results after each."""
    reference = float_reference(args)
    places = Places(args, work)
    wanted = official_methods(args.official) + lading_methods(args.lading)
    for method in wanted:
        known = results["methods"].get(method.key)
        if known is None or known["command"] != method.template or args.again:
            print(f"{method.key} ...", file=sys.stderr, flush=True)
            known = results["methods"][method.key] = try_method(method, places, reference)
            yield results
        if "files" in known and method.maker == "official":
            places["weight"][method.name] = weight_bytes(known["files"])


def heading(args: argparse.Namespace) -> dict[str, Any]:
    """What all results of a file have in common; results of another checkpoint, text or exporter do not belong to
    it."""
    state = blake2b(digest_size=16)
    for path in sorted([*args.model.glob("*.safetensors"), args.model / "config.json"]):
        state.update(path.read_bytes())
    revision = subprocess.run(
        ["git", "-C", str(args.mnn_checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "checkpoint": args.model.absolute().name,
        "checkpoint_digest": state.hexdigest(),
        "text_digest": blake2b(args.text.read_bytes(), digest_size=16).hexdigest(),
        "calibration_digest": blake2b(args.calibration.read_bytes(), digest_size=16).hexdigest(),
        "window": args.window,
        "windows": args.windows,
        "passage": args.passage,
        "exporter": revision,
        "mnn": machine()["mnn"],
    }


def read_results(path: Path | None, head: Mapping[str, Any]) -> dict[str, Any]:
    """Results of earlier runs with the same heading, or none.

    Raises:
        SystemExit: the file is of something else.
    """
    if path is None or not path.exists():
        return {**head, "methods": {}}
    known = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key, value in head.items() if known.get(key) != value]
    if other:
        raise SystemExit(f"{path} has results of another {other[0]}; give another file or remove it")
    return known


def table(results: Mapping[str, Any]) -> str:
    """All methods as rows of Markdown, ordered by the size of the weights."""
    titles = ("method", "compile s", "CPU s", "weights MB", "and graph MB", "folder MB", "KL", "top-1 %", "perplexity")
    titles += ("KL shipped", "top-1 % shipped", "perplexity shipped")
    lines = [f"| {' | '.join(titles)} |", "|---|" + "--:|" * (len(titles) - 1)]
    methods = results["methods"]
    good = sorted((name for name in methods if "files" in methods[name]), key=lambda name: _order(methods[name]))
    for name in good:
        found = methods[name]
        files = found["files"]
        weights = weight_bytes(files)
        cells = [name, f"{found['wall_s']:.1f}", f"{found['cpu_s']:.1f}"]
        cells += [f"{size / 1e6:.3f}" for size in (weights, weights + files["llm.mnn"], sum(files.values()))]
        for setting in SETTINGS:
            item = found[setting]
            cells.append(f"{item['kl']:.5f} ± {item['kl_error']:.5f}")
            cells += [f"{100 * item['top1']:.2f}", f"{item['perplexity']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | failed: {methods[name]['error']} |" for name in methods if "error" in methods[name]]
    references = [methods[name]["exact"]["perplexity_reference"] for name in good[:1]]
    lines += [f"\nfloat model: perplexity {value:.3f}" for value in references]
    return "\n".join(lines)


def _order(found: Mapping[str, Any]) -> tuple[int, float]:
    return weight_bytes(found["files"]), found["exact"]["kl"]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of this script; texts default to the ones beside the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--mnn-checkout", type=Path, required=True)
    parser.add_argument("--torch-python", type=Path, required=True, help="interpreter the exporter runs under")
    parser.add_argument("--text", type=Path, help="evaluation text; default evaluation.txt in MODEL")
    parser.add_argument("--calibration", type=Path, help="calibration text; default calibration.txt in MODEL")
    parser.add_argument("--official", default=",".join(OFFICIAL), help="modes, with commas; default all; '' for none")
    parser.add_argument("--lading", action="append", default=[], metavar="NAME=PIPELINE",
                        help="pipeline and options of compile, or a whole command with {out}; may be repeated; "
                        "{calibration} and {weight[int4-head8]} (bytes of that mode's weights) are filled in; "
                        f"default: {', '.join(LADING)}")  # fmt: skip
    parser.add_argument("--window", type=int, default=256, help="tokens a window")
    parser.add_argument("--windows", type=int, default=64, help="windows, spread over the text; 0 for all of it")
    parser.add_argument("--passage", type=int, default=600, help="characters a sample of the exporter; 0 for lines")
    parser.add_argument("--again", action="store_true", help="compute anew what the file has")
    parser.add_argument("--work", type=Path, help="folder that keeps the results; default: a temporary one")
    parser.add_argument("--json", type=Path, help="file of results, read first and written after each method")
    args = parser.parse_args(argv)
    args.official = [name for name in args.official.split(",") if name]
    args.text = args.text or args.model / "evaluation.txt"
    args.calibration = args.calibration or args.model / "calibration.txt"
    missing = [path for path in (args.model / "config.json", args.text, args.calibration) if not path.is_file()]
    if missing:
        parser.error(f"there is no file {missing[0]}")
    if args.window < 2 or args.windows < 0 or args.passage < 0:
        parser.error("--window is 2 or more, --windows and --passage are not negative")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Compile, measure, write and print the table."""
    args = parse_arguments(argv)
    results = read_results(args.json, heading(args))
    with tempfile.TemporaryDirectory(prefix="lading-quality-") as temporary:
        work = (args.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        for state in compare(args, work, results):
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(state, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
