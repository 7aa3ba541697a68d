"""Plugins: whatever a runtime or a third party adds to the compiler, as rows of tables.

A plugin is a `Plugin` object. Those of the source tree stand in ``backends/<name>/plugin.py`` under the name
``PLUGIN``; others are published as entry points of the group ``lading.plugins``. Each table of the compiler that
plugins may add to (`ir.base.tables.Table`) merges their rows when it first needs them, so that nothing has to be
installed by hand and nothing of a plugin is imported before it is used. A name claimed twice is an error that names
both packages.

``LADING_DISABLE`` in the environment names plugins to leave out, separated by commas.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ir.base.diag import LadingError, more_codes
from ir.base.tables import imported

GROUP = "lading.plugins"
"""Group of entry points under which third parties publish plugins."""

BUILT_IN = "lading"
"""The package that the plugins of the source tree belong to."""

DISABLE_VARIABLE = "LADING_DISABLE"

RUNTIMES = "backends"
"""Package whose subpackages are runtimes, each with a plugin of its own."""

Rows = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What is added; every table maps a name to an object or to ``"module:attribute"``, imported when it is used.

    Attributes:
        passes: `passes.framework.base.Pass` subclasses.
        pipelines: pipeline texts.
        ops: operators, each an `ir.ops.registry.OpDef`.
        dialects: operators of a whole domain, by domain: a tuple of `ir.ops.registry.OpDef`.
        recipes: functions that rebuild lazy tensors; see `ir.tensor.recipes`.
        facts: classes of decisions recorded on graphs; see `ir.graph.facts`.
        stages: what may exist at a stage of compilation, an `ir.verify.stages.Stage`.
        invariants: checks that passes name in ``requires`` and ``establishes``; see `ir.verify.stages`.
        signatures: calling conventions, each an `ir.target.signature.Signature`.
        targets: functions from the text of ``--target`` to an `ir.target.target.Target`, by backend.
        quantizers: quantization methods; see `ir.quant.methods.base`.
        families: model families; see `frontends.families.table`.
        formats: storage formats of checkpoints; see `frontends.containers.formats`.
        frontends, backends: readers and writers of models; see `tools.shared.formats`.
        codes: help texts of diagnostic codes, a mapping for each area; long ones stand beside the module that holds
            them (`ir.base.explanations`).
        symptoms: what a runtime prints or does when something is wrong: mappings of `backends.symptoms.Symptom`.
    """

    passes: Rows = field(default_factory=dict)
    pipelines: Mapping[str, str] = field(default_factory=dict)
    ops: Rows = field(default_factory=dict)
    dialects: Rows = field(default_factory=dict)
    recipes: Rows = field(default_factory=dict)
    facts: Rows = field(default_factory=dict)
    stages: Rows = field(default_factory=dict)
    invariants: Rows = field(default_factory=dict)
    signatures: Rows = field(default_factory=dict)
    targets: Rows = field(default_factory=dict)
    quantizers: Rows = field(default_factory=dict)
    families: Rows = field(default_factory=dict)
    formats: Rows = field(default_factory=dict)
    frontends: Rows = field(default_factory=dict)
    backends: Rows = field(default_factory=dict)
    codes: Rows = field(default_factory=dict)
    symptoms: Rows = field(default_factory=dict)


TABLES = tuple(item.name for item in fields(Plugin))
"""Names of the tables that plugins add to."""


@dataclass(frozen=True)
class Loaded:
    """A plugin and where it comes from.

    Attributes:
        name: folder in ``backends``, or name of the entry point.
        package: the distribution that it comes from.
        plugin: its tables.
    """

    name: str
    package: str
    plugin: Plugin


@cache
def loaded() -> tuple[Loaded, ...]:
    """All plugins that are not disabled, those of the source tree first.

    Raises:
        LadingError: P330 for one that does not load or is no `Plugin`.
    """
    from importlib.metadata import entry_points

    disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    published = [entry for entry in entry_points(group=GROUP) if entry.name not in disabled]
    return (*_of_tree(disabled), *of_entry_points(published))


def _of_tree(disabled: Collection[str]) -> Iterator[Loaded]:
    spec = find_spec(RUNTIMES)
    for place in spec.submodule_search_locations or () if spec is not None else ():
        for path in sorted(Path(place).glob("*/plugin.py")):
            name = path.parent.name
            if name not in disabled:
                yield Loaded(name, BUILT_IN, imported(f"{RUNTIMES}.{name}.plugin:PLUGIN"))


def of_entry_points(entries: Iterable[Any]) -> Iterator[Loaded]:
    """The plugins of entry points, by package and name; errors as for `loaded`."""
    for entry in sorted(entries, key=lambda item: (item.dist.name if item.dist else "", item.name)):
        package = entry.dist.name if entry.dist else entry.value
        try:
            plugin = entry.load()
        except Exception as error:
            hint = f"update or uninstall {package}"
            raise LadingError("P330", f"the plugin {entry.name!r} does not load: {error!r}", package, hint) from error
        if not isinstance(plugin, Plugin):
            raise LadingError("P330", f"the plugin {entry.name!r} is not an ir.base.plugins.Plugin", package)
        yield Loaded(entry.name, package, plugin)


def rows_of(table: str) -> Callable[[], Iterator[tuple[str, Any, str]]]:
    """A function that gives the rows ``(name, row, package)`` of all plugins for a table."""

    def rows() -> Iterator[tuple[str, Any, str]]:
        for item in loaded():
            for name, row in getattr(item.plugin, table).items():
                yield name, row, item.package

    return rows


def _codes() -> Iterator[tuple[str, str]]:
    for _, rows, _ in rows_of("codes")():
        yield from (imported(rows) if isinstance(rows, str) else rows).items()


more_codes(_codes)

__all__ = ["BUILT_IN", "DISABLE_VARIABLE", "GROUP", "RUNTIMES", "TABLES", "Loaded", "Plugin", "loaded", "rows_of"]
