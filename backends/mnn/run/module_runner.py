"""Load one ``.mnn`` file with named inputs and outputs, run it once, then leave.

A stand-alone script: ``python -I module_runner.py FOLDER``, for the interpreter of any MNN release. FOLDER holds
``request.json`` (``model``, ``inputs``, ``outputs``) and ``inputs.npz`` with an array for each input. A line
``{"loaded": true}`` or ``{"loaded": false, "error": text}`` goes to ``results.jsonl``, then ``{"ran": ...}``, and the
outputs to ``outputs.npz``. This is how a program loads a model whose input names it knows by itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from typing import Any

import numpy as np


def record(folder: str, fields: dict[str, Any]) -> None:
    """Append one line of results."""
    with open(os.path.join(folder, "results.jsonl"), "a", encoding="ascii") as file:
        file.write(json.dumps(fields) + "\n")


def variable(array: np.ndarray) -> Any:
    """An MNN variable that holds the numbers of an array."""
    import MNN.expr as expr

    kind = expr.int if array.dtype.kind == "i" else expr.float
    made = expr.placeholder(list(array.shape), expr.NCHW, kind)
    made.write(np.ascontiguousarray(array))
    return made


def main(folder: str) -> int:
    libc = ctypes.CDLL(None)
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "__stdoutp" if sys.platform == "darwin" else "stdout"), None, 1, 0)
    import MNN.nn as nn

    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        request = json.load(file)
    with np.load(os.path.join(folder, "inputs.npz")) as archive:
        arrays = {name: archive[name] for name in archive.files}
    try:
        module = nn.load_module_from_file(request["model"], request["inputs"], request["outputs"])
    except Exception as error:
        record(folder, {"loaded": False, "error": f"{type(error).__name__}: {error}"})
        return 3
    record(folder, {"loaded": True})
    results = module.forward([variable(arrays[name]) for name in request["inputs"]])
    results = results if isinstance(results, (list, tuple)) else [results]
    if len(results) != len(request["outputs"]):
        record(folder, {"ran": False})
        return 4
    found = dict(zip(request["outputs"], (np.array(item.read()) for item in results)))  # noqa: B905
    np.savez(os.path.join(folder, "outputs.npz"), **found)
    record(folder, {"ran": True})
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1])
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(code)  # releasing a model at interpreter exit crashes in every release
