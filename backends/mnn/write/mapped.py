"""Weights that the runtime keeps as it rearranged them, in a file from which later loads map them.

A first load takes as long as any. It leaves files in a folder below the working directory of the program; later loads map
them and read nothing else of the weights. The runtime does not look whether they belong to the model: their names say
which settings they were made with, and nothing else (MNN ``source/backend/cpu/CPUBackend.cpp``,
``source/core/BufferAllocator.cpp``). So the folder's name holds a digest of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backends.mnn.target.releases import MnnTarget
from backends.mnn.write import configs
from backends.mnn.write.weight_layout import Layout
from ir.base.diag import LadingError
from ir.base.whole_files import sha256_of

REASON = "belongs to these files, to one release and to one kind of processor; delete the folder when either changes"


def check_mapped(layout: Layout, memory: str, target: MnnTarget) -> None:
    """Raise B793 for a model that a release of the target would map wrong."""
    if len(target.releases) > 1:
        raise LadingError(
            "B793",
            f"{len(target.releases)} releases may lay out mapped weights in as many ways",
            where=target.name,
            hint="name the release that will run the model, for example --target 3.6.1",
        )
    release = target.releases[0]
    if memory != "low":
        hint = "use --memory low, or leave --mmap out"
        raise LadingError("B793", f"MNN {release.version} crashes on mapped weights when memory is {memory}", hint=hint)
    for matrix in layout.matrices.values():
        bits = matrix.weight.bits
        if bits not in release.mapped_widths:
            known = ", ".join(map(str, release.mapped_widths))
            raise LadingError(
                "B793",
                f"MNN {release.version} computes mapped weights of {bits} bits wrong, or crashes",
                where=matrix.weight.name,
                hint=f"store all in {known} bits, or leave --mmap out",
            )


def mapped_keys(folder: Path, release: str, digests: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The keys of ``config.json`` for a written model and weight file; `digests` are those known already, by name."""
    parts = [digests.get(name) or sha256_of(folder / name) for name in (configs.MODEL, configs.WEIGHTS)]
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
    return {"use_mmap": True, "tmp_path": f"mnn-{release}-{digest}"}


def check_second_load(folder: Path, settings: Mapping[str, Any], interpreter: Path | str) -> None:
    """Load the model as it is, then twice with mapped weights, on the release of an interpreter, and compare logits.

    Raises:
        LadingError: B794 they differ, B667 to B669 a load fails.
    """
    import numpy as np

    from backends.mnn.run.native import run_model
    from ir.base.scratch import scratch_folder

    action = {"do": "forward", "pieces": [[1, 2, 3, 5, 8, 13, 21], [34]]}
    with scratch_folder() as place:
        mapped = {"use_mmap": True, "tmp_path": str(place)}
        ways: list[dict[str, Any]] = [{"use_mmap": False}, mapped, mapped]
        config = folder / configs.CONFIG
        runs = [run_model(config, [action], overrides={**settings, **way}, interpreter=interpreter) for way in ways]
        found = [run.require(str(folder)).results[0] or {} for run in runs]
        logits = [np.concatenate(result["logits"]) for result in found]
    if not all(np.array_equal(logits[0], other) for other in logits[1:]):
        worst = max(float(np.abs(logits[0] - other).max()) for other in logits[1:])
        raise LadingError(
            "B794",
            f"logits differ by {worst:.3g} when the weights are mapped",
            where=str(folder),
            hint="leave --mmap out",
        )


__all__ = ["REASON", "check_mapped", "check_second_load", "mapped_keys"]
