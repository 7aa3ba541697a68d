"""Lading inside other programs: the stable interface (``docs/embedding.md``), loaded when it is first used.

    import lading

    outcome = lading.run(model, "canonicalize")
    contract = lading.read_contract("build/model")

Importing this package loads nothing else: neither numpy nor a runtime. The names are those of `tools.embed` and of the
reader of contracts in `backends.contract`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.contract import Contract, check_feed, check_files
    from backends.contract import read as read_contract
    from ir.base.diag import Diagnostic, LadingError
    from tools.embed import Declared, Outcome, Steps, apply_in_place, declare_inputs, lift, lower, run

    __version__: str

_PLACES = {
    "Contract": "backends.contract:Contract",
    "Declared": "tools.embed:Declared",
    "Diagnostic": "ir.base.diag:Diagnostic",
    "LadingError": "ir.base.diag:LadingError",
    "Outcome": "tools.embed:Outcome",
    "Steps": "tools.embed:Steps",
    "apply_in_place": "tools.embed:apply_in_place",
    "check_feed": "backends.contract:check_feed",
    "check_files": "backends.contract:check_files",
    "declare_inputs": "tools.embed:declare_inputs",
    "lift": "tools.embed:lift",
    "lower": "tools.embed:lower",
    "read_contract": "backends.contract:read",
    "run": "tools.embed:run",
}
"""Public name to ``module:attribute``."""


def __getattr__(name: str) -> Any:
    """A public name, imported now.

    Raises:
        ImportError: U996 a package of this installation is hidden by another one of its name.
    """
    if name == "__version__":
        return _own("backends.version:compiler_version")()
    if name not in _PLACES:
        raise AttributeError(f"module 'lading' has no attribute {name!r}")
    found = globals()[name] = _own(_PLACES[name])
    return found


def _own(place: str) -> Any:
    from importlib import import_module

    from lading.rooms import require_own

    require_own()
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


__all__ = [
    "Contract",
    "Declared",
    "Diagnostic",
    "LadingError",
    "Outcome",
    "Steps",
    "apply_in_place",
    "check_feed",
    "check_files",
    "declare_inputs",
    "lift",
    "lower",
    "read_contract",
    "run",
]
