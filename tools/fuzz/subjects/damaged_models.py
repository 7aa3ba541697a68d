"""Damaged model directories, and contracts with feeds of any kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.fuzz.inputs.damage import damage_some
from tools.fuzz.inputs.mutate import damage_bytes, damage_json, json_bytes
from tools.fuzz.inputs.samples import copy_of, model_directory
from tools.fuzz.target import Case, Target, require

# ---- model directories ----


def _model(case: Case) -> Path:
    folder = copy_of(model_directory(case.samples, case.rng), case.folder)
    damage_some(case, folder, case.rng.choice([1, 1, 2]))
    return folder


def _examine(folder: Path, case: Case) -> None:
    from backends.mnn.doctor.remedy import remedy
    from tools.doctor.command import diagnose, releases_of
    from tools.doctor.words import sentence

    report = diagnose(folder, releases_of(case.rng.choice(["all", "portable"])))
    found = remedy(report)
    require(bool(sentence(report, found)), "the doctor has nothing to say")
    json.dumps(report.as_dict())


def _read_model(folder: Path, case: Case) -> None:
    import numpy as np

    from backends.mnn.read.decoded_weights import MnnModel

    model = MnnModel(folder)
    for name, item in model.linears.items():
        model.decode(name, 0, min(item.rows, 2))
        model.bias(name)
    model.embedding_rows(np.array([0, 7]))


def _repair(folder: Path, case: Case) -> None:
    from ir.base.diag import LadingError
    from tools.repair.command import repair

    out = case.folder / "out" / "model"
    try:
        repair(folder, out)
    except LadingError:
        left = sorted(path.name for path in out.parent.iterdir()) if out.parent.is_dir() else []
        require(not left, f"a failed run left {left} behind")
        raise


def _tokenizer_file(case: Case) -> bytes:
    folder = model_directory(case.samples, case.rng)
    return damage_bytes(case.rng, case.rng.choice(sorted(folder.glob("tokenizer.*"))).read_bytes())


def _read_tokenizer(data: bytes, case: Case) -> None:
    from backends.mnn.tokenizer.files.read import read_mtok, read_text
    from ir.base.diag import LadingError

    for read in (read_mtok, read_text):
        try:
            read(data)
        except LadingError:
            continue


# ---- contracts ----


def _contract(case: Case) -> bytes:
    folder = model_directory(case.samples, case.rng)
    data = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
    return json_bytes(case.rng, damage_json(case.rng, data))


def _read_contract(raw: bytes, case: Case) -> None:
    from backends.contract import check_feed, check_files, dumps, read
    from backends.contract.document import decode
    from ir.base.diag import LadingError

    path = case.folder / "contract.json"
    path.write_bytes(raw)
    contract = read(path)
    text = dumps(contract)
    again, problems = decode(json.loads(text))
    require(not problems and again == contract, f"the contract is not read back as it was: {problems[:1]}")
    check_files(contract, case.folder)
    for release in (None, *contract.target.releases[:2], "9.9"):
        try:
            check_feed(contract, _feed(case, contract), release=release)
        except LadingError:
            continue


def _feed(case: Case, contract: Any) -> dict[str, Any]:
    import numpy as np

    rng = case.rng
    shapes: list[tuple[int, ...]] = [(), (1,), (3, 1, 32), (1, 3), (0,), (1, 1, 3, 3)]
    values = [np.zeros(rng.choice(shapes), rng.choice(["f4", "i4", "i8", "f2", "?", "U3", "O"])) for _ in range(4)]
    strange: list[Any] = [None, 1, "x", [1], ((1, 2), "float32"), ((-1,), None), ("x", "y"), float("nan")]
    names = [item.name for item in contract.signature.inputs] + ["x", ""]
    return {rng.choice(names): rng.choice([*values, *strange]) for _ in range(rng.randint(0, 5))}


DAMAGED_MODELS = (
    Target("doctor", "damaged model directories, judged by the doctor", _model, _examine),
    Target("reader", "damaged model directories, decoded", _model, _read_model, seconds=60),
    Target("repair", "damaged model directories, repaired: a whole folder or none", _model, _repair, seconds=60),
    Target("mnn-tokenizer", "damaged tokenizer files of model directories", _tokenizer_file, _read_tokenizer),
    Target("contract", "damaged contracts, and feeds of any kind", _contract, _read_contract),
)
