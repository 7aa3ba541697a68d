"""The toy runtime itself: it reads ``model.toy`` and needs numpy only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def run(path: Path, x: np.ndarray) -> np.ndarray:
    """float32[batch, results] for float32[batch, features]."""
    model = json.loads(path.read_text(encoding="utf-8"))
    weights = np.fromfile(path.with_name(model["weights"]), np.int8)
    for layer in model["layers"]:
        rows, columns = layer["shape"]
        codes = weights[layer["offset"] : layer["offset"] + rows * columns].reshape(rows, columns)
        x = x @ (codes * np.array(layer["scale"], np.float32))
        if layer["activation"] != "none":
            x = np.maximum(x, 0)
        if layer["activation"] == "squared-relu":
            x = x * x
    return x
