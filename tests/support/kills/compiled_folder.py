"""Folders that look like compiled models, made in no time: files with a contract that lists them."""

from __future__ import annotations

from pathlib import Path

import backends.contract as c


def fill(folder: Path, files: dict[str, str]) -> None:
    """Write files with these contents by path, and the contract that lists them."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    contract = c.Contract(
        compiler=c.Compiler(name="lading", version="0"),
        target=c.Target(profile="test", releases=("1.0.0",)),
        model=c.Model(name="model"),
        sources=(),
        signature=c.Signature(inputs=(), outputs=()),
        files=tuple(c.FileEntry.of(folder, name, "other") for name in files),
        weights=(),
        pipeline=c.Pipeline(text="none", passes=()),
        runtime=c.Runtime(requires=c.Requirements(min_release="1.0.0")),
    )
    c.write(contract, folder)


def contents(folder: Path) -> dict[str, str]:
    """Text of every file of a folder by path, the contract aside."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "contract.json"]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def is_whole(folder: Path) -> bool:
    """True when the files are those of the contract and nothing else is there."""
    return c.check_files(c.read(folder), folder) == []
