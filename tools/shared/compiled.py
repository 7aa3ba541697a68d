"""What was compiled, as a path names it: a directory with its contract, a contract alone, or a directory of others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends.contract import CONTRACT_FILE

if TYPE_CHECKING:
    from backends.contract import Contract


@dataclass(frozen=True)
class Compiled:
    """A compiled model.

    Attributes:
        source: the path as it was given.
        folder: the directory; None for a contract that lies in no directory of its model.
        contract: its contract; None for a directory without one.
    """

    source: str
    folder: Path | None
    contract: Contract | None

    @property
    def graph(self) -> str | None:
        """Path that a frontend reads the graph from; None for a contract alone."""
        if self.folder is None:
            return None
        if any(self.folder.glob("*.mnn")):
            return str(self.folder)
        files = self.contract.files if self.contract is not None else ()
        return next((str(self.folder / item.path) for item in files if item.role == "model"), None)


def compiled_at(source: str) -> Compiled | None:
    """The compiled model of a path; None for a path of something else.

    Raises:
        LadingError: C800 to C806 a contract that is damaged.
    """
    from backends.contract import read

    path = Path(os.path.expanduser(source))
    if path.is_dir():
        if (path / CONTRACT_FILE).exists():
            return Compiled(source, path, read(path))
        config = (path / "config.json").is_file() or (path / "llm_config.json").is_file()
        return Compiled(source, path, None) if config and any(path.glob("*.mnn")) else None
    if path.suffix.lower() != ".json":
        return None
    contract = read(path)
    beside = path.name == CONTRACT_FILE and all((path.parent / item.path).exists() for item in contract.files)
    return Compiled(source, path.parent if beside else None, contract)


__all__ = ["Compiled", "compiled_at"]
