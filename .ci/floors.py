"""Print the lowest version of every dependency in pyproject.toml as a constraint, one a line: ``click==8.1``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def floors(*extras: str) -> list[str]:
    """Constraints for the dependencies and those of some extras; ValueError for one without a floor."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    found = []
    for requirement in [*project["dependencies"], *(item for name in extras for item in _extra(project, name))]:
        match = re.fullmatch(r"([\w-]+)(?:>=|==)([\w.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement!r} has no lowest version")
        found.append("==".join(match.groups()))
    return found


def _extra(project: dict, name: str) -> list[str]:
    return [item for item in project["optional-dependencies"][name] if not item.startswith("lading[")]


if __name__ == "__main__":
    print(*floors(), sep="\n")
