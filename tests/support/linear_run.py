"""Run every output of one model, at each memory mode and each set of rows, under the interpreter of any MNN release.

A stand-alone script: ``python -I linear_run.py FOLDER``. FOLDER holds ``request.json`` (``model``, ``inputs``,
``outputs``, ``calls``: numbers of rows) and ``inputs.npz``. ``<memory>.npz`` gets what each call gives for the first
rows of the inputs, as ``<output>.<rows>``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

MEMORY = {"normal": 0, "low": 2}
PRECISION_HIGH = 1


def main(folder: Path) -> None:
    import MNN.expr as expr
    import MNN.nn as nn

    request = json.loads((folder / "request.json").read_text())
    with np.load(folder / "inputs.npz") as archive:
        arrays = {name: archive[name] for name in request["inputs"]}
    for memory, number in MEMORY.items():
        settings = {"backend": "CPU", "numThread": 1, "memory": number, "precision": PRECISION_HIGH}
        runtime = nn.create_runtime_manager((settings,))
        module = nn.load_module_from_file(
            request["model"], request["inputs"], request["outputs"], runtime_manager=runtime
        )
        found = {}
        for rows in request["calls"]:
            feeds = []
            for array in arrays.values():
                feed = expr.placeholder([rows, *array.shape[1:]], expr.NCHW, expr.float)
                feed.write(np.ascontiguousarray(array[:rows]))
                feeds.append(feed)
            for name, value in zip(request["outputs"], module.forward(feeds)):  # noqa: B905
                found[f"{name}.{rows}"] = np.array(value.read())
        np.savez(folder / f"{memory}.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # releasing a model at interpreter exit crashes in every release
