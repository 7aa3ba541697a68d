"""Inner loops that are compiled where a C compiler was at hand when the package was installed (``native.c``).

Whoever uses them has the same in numpy beside it, for machines without, with the same bytes.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType

VERSION = 1
"""Version of the functions that callers expect; a module that was built from other sources is left alone."""
VARIABLE = "LADING_NATIVE"
"""Environment variable that turns the compiled loops off when it is 0."""


def native() -> ModuleType | None:
    """The compiled loops; None where they were not built, are of another version or turned off."""
    return None if os.environ.get(VARIABLE) == "0" else _loaded()


@cache
def _loaded() -> ModuleType | None:
    try:
        found = import_module("ir.tensor._native")
    except ImportError:
        return None
    return found if found.VERSION == VERSION else None


__all__ = ["native"]
