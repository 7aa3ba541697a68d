"""The version of this program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def compiler_version() -> str:
    """Version of the installed package; ``0+source`` when run from a source tree that is not installed."""
    try:
        return version("lading")
    except PackageNotFoundError:
        return "0+source"
