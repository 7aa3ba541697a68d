"""The packages of the compiler have common names, such as ``tools``; here it is made sure that they are the own ones.

Nothing of them may be imported here, since another package may stand in their place.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOMS = ("ir", "passes", "frontends", "backends", "tools")
"""Packages that lie beside this one, wherever it is installed."""

ROOT = Path(__file__).resolve().parent.parent


def foreign() -> dict[str, str]:
    """Packages that Python would take, or has taken, from elsewhere: name to place; empty text for none at all."""
    found = {}
    for name in ROOMS:
        place = _place(name)
        if place is None or place != ROOT / name:
            found[name] = "" if place is None else str(place)
    return found


def _place(name: str) -> Path | None:
    module = sys.modules.get(name)
    try:
        spec = find_spec(name) if module is None else module.__spec__
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if folders:
        return Path(folders[0]).resolve()
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def sentence(found: dict[str, str]) -> str:
    """The message about `foreign` packages, in the form of every coded message."""
    name, place = next(iter(found.items()))
    if not place:
        return (
            f"error[U996]: the package {name!r} of Lading is not in {ROOT}, so the installation is not complete\n"
            "  hint: python -m pip install --force-reinstall --no-deps lading"
        )
    return (
        f"error[U996]: another {name!r} hides the package of this name that belongs to Lading\n"
        f"  at {place}\n"
        f"     hides {ROOT / name}\n"
        "  hint: rename it, or start Python with -P where it lies in the current folder or beside the script"
    )


def require_own() -> None:
    """Do nothing when the packages of the compiler are the own ones.

    Raises:
        ImportError: U996 another package has one of their names.
    """
    found = foreign()
    if found:
        name, place = next(iter(found.items()))
        raise ImportError(sentence(found), name=name, path=place)


def prefer_own() -> None:
    """For commands, which have the process to themselves: look for packages beside this one first.

    Raises:
        ImportError: U996 one of them is missing, or another of its name is loaded already.
    """
    if foreign():
        sys.path.insert(0, str(ROOT))
        require_own()
