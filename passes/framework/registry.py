"""Which passes and pipelines exist, built in and from plugins; classes are imported when they are used.

A third party publishes an entry point of the group ``lading.plugins`` that names a `Plugin` object. Its tables are
merged with the built-in ones; a name claimed twice is an error that names both packages.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from ir.base.diag import LadingError
from passes.framework.base import Pass, check_pass_class
from passes.framework.options import OptionSpec, options_of

PASSES: dict[str, str] = {
    "assign-precision": "passes.precision.assign_precision:AssignPrecision",
    "balance": "passes.calibration.balance:Balance",
    "calibrate": "passes.calibration.calibrate:Calibrate",
    "cse": "passes.canonicalize.cse:EliminateCommonSubexpressions",
    "dce": "passes.canonicalize.dce:EliminateDeadCode",
    "fold": "passes.canonicalize.fold:Fold",
    "fuse-mnn": "backends.mnn.lower.fuse:FuseMnn",
    "discover-inputs": "passes.inputs.discover_inputs:DiscoverInputs",
    "infer-types": "passes.canonicalize.infer_types:InferTypes",
    "insert-qdq": "passes.precision.insert_qdq:InsertQdq",
    "join-linears": "passes.canonicalize.join_linears:JoinLinears",
    "legalize-mnn": "backends.mnn.lower.legalize:LegalizeMnn",
    "rotate": "passes.calibration.rotate:Rotate",
    "simulate-activations": "backends.mnn.lower.simulate_activations:SimulateActivations",
    "simplify": "passes.canonicalize.simplify:Simplify",
    "sink-layouts": "backends.mnn.lower.sink_layouts:SinkLayouts",
    "toposort": "passes.canonicalize.toposort:SortNodes",
}
"""Built-in passes by name: ``module:Class``."""

PIPELINES: dict[str, str] = {
    "canonicalize": "repeat{max=8}(infer-types,fold,simplify,cse,dce),toposort",
    "default": "infer-types,discover-inputs,assign-precision,insert-qdq,legalize-mnn,sink-layouts,fuse-mnn,cse,dce",
    "calibrated": "infer-types,discover-inputs,calibrate,assign-precision{method=gptq},insert-qdq,legalize-mnn,sink-layouts,"
    "fuse-mnn,cse,dce",
    "mixed": "calibrated{budget=4.5bpw}",
    "fp32": "default{bits=32 logits-bits=32}",
    "fp16": "default{bits=16 logits-bits=16}",
    "int8": "default{bits=8 logits-bits=8}",
    "int4": "default{bits=4 logits-bits=4}",
}
"""Built-in pipelines by name. A pipeline may use others."""

GROUP = "lading.plugins"
BUILT_IN = "lading"
TABLES = ("passes", "pipelines", "ops", "frontends", "backends", "recipes")


@dataclass(frozen=True)
class Plugin:
    """What a third party adds; every table maps a name to an object or to ``"module:attribute"``, imported when used.

    Attributes:
        passes: `Pass` subclasses.
        pipelines: pipeline texts.
        ops: operator definitions of the party's own domain.
        frontends, backends: readers and writers of formats.
        recipes: tensor recipes that the text form can rebuild.
    """

    passes: Mapping[str, Any] = field(default_factory=dict)
    pipelines: Mapping[str, str] = field(default_factory=dict)
    ops: Mapping[str, Any] = field(default_factory=dict)
    frontends: Mapping[str, Any] = field(default_factory=dict)
    backends: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PassInfo:
    """A pass described for ``--list-passes`` and the manual, from its class alone."""

    name: str
    summary: str
    doc: str
    options: tuple[OptionSpec, ...]
    requires: tuple[str, ...]
    establishes: tuple[str, ...]
    breaks: tuple[str, ...]
    lossy: bool
    package: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        options = [
            {
                "name": spec.key,
                "type": spec.type_text,
                "default": None if spec.required else spec.write(spec.default).partition("=")[2] or "true",
                "required": spec.required,
                "help": spec.help,
            }
            for spec in self.options
        ]
        return {
            "name": self.name,
            "summary": self.summary,
            "doc": self.doc,
            "options": options,
            "requires": list(self.requires),
            "establishes": list(self.establishes),
            "breaks": list(self.breaks),
            "lossy": self.lossy,
            "package": self.package,
        }


class Registry:
    """Tables of names with the package each came from.

    Attributes:
        passes, pipelines: name to class (or ``"module:Class"``), name to text.
        ops, frontends, backends, recipes: what plugins added; the built-in ones are elsewhere. `install` hands the
            first and last to the IR.
    """

    def __init__(self, passes: Mapping[str, Any] | None = None, pipelines: Mapping[str, str] | None = None) -> None:
        self.passes: dict[str, Any] = {}
        self.pipelines: dict[str, str] = {}
        self.ops: dict[str, Any] = {}
        self.frontends: dict[str, Any] = {}
        self.backends: dict[str, Any] = {}
        self.recipes: dict[str, Any] = {}
        self._package: dict[tuple[str, str], str] = {}
        self.add(
            Plugin(
                passes=PASSES if passes is None else passes, pipelines=PIPELINES if pipelines is None else pipelines
            ),
            BUILT_IN,
        )

    def add(self, plugin: Plugin, package: str) -> None:
        """Merge a plugin's tables; LadingError P331 when another package has one of its names already."""
        for table in TABLES:
            for name, item in getattr(plugin, table).items():
                self._claim("steps" if table in ("passes", "pipelines") else table, name, package)
                getattr(self, table)[name] = item

    def _claim(self, table: str, name: str, package: str) -> None:
        if table == "steps" and name == "repeat":
            raise LadingError("P331", f"{package} cannot call a pass or pipeline 'repeat'", package)
        owner = self._package.setdefault((table, name), package)
        if owner != package or name in self._table_of(table):
            what = "pass or pipeline" if table == "steps" else table.rstrip("s")
            message = f"the {what} {name!r} is claimed by {owner} and by {package}"
            raise LadingError("P331", message, package, f"uninstall one of them, or rename it in {package}")

    def _table_of(self, table: str) -> Iterable[str]:
        return {*self.passes, *self.pipelines} if table == "steps" else getattr(self, table)

    def package(self, name: str, table: str = "steps") -> str:
        """The package that a pass or pipeline comes from, or an item of another table."""
        return self._package[table, name]

    def pass_class(self, name: str) -> type[Pass]:
        """The class of a pass name, imported now; KeyError for an unknown name, LadingError P330 if it cannot load."""
        found = self.passes[name]
        if isinstance(found, str):
            found = self.imported(found, self.package(name))
        try:
            cls = check_pass_class(found)
            if cls.name != name:
                raise TypeError(f"{cls.__name__}.name is {cls.name!r}, but it is registered as {name!r}")
        except TypeError as error:
            if self.package(name) == BUILT_IN:
                raise
            raise LadingError("P330", f"the pass {name!r} is malformed: {error}", self.package(name)) from error
        self.passes[name] = cls
        return cls

    def imported(self, path: str, package: str) -> Any:
        """The object of ``"module:attribute"``; LadingError P330 when a plugin's cannot be imported."""
        module, _, attribute = path.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:
            if package == BUILT_IN:
                raise
            raise LadingError("P330", f"cannot import {path!r}: {error!r}", package) from error

    def giving(self, invariant: str) -> list[str]:
        """Names of the passes that establish an invariant."""
        return [name for name in sorted(self.passes) if invariant in self.pass_class(name).establishes]

    def describe(self, name: str) -> PassInfo:
        """What there is to know about a pass."""
        cls = self.pass_class(name)
        doc = inspect.cleandoc(cls.__doc__ or "")
        return PassInfo(
            name,
            " ".join(doc.partition("\n\n")[0].split()),
            doc,
            tuple(options_of(cls).values()),
            tuple(cls.requires),
            tuple(cls.establishes),
            tuple(cls.breaks),
            cls.lossy,
            self.package(name),
        )

    def list_passes(self) -> list[PassInfo]:
        """Every pass, described, by name."""
        return [self.describe(name) for name in sorted(self.passes)]

    def install(self) -> None:
        """Make the operators and recipes of plugins known to the IR; LadingError P331 for a name that is taken
        there."""
        for table in ("ops", "recipes"):
            for name, item in getattr(self, table).items():
                package = self._package[table, name]
                found = self.imported(item, package) if isinstance(item, str) else item
                if _built_in(table).get(name, found) is not found:
                    message = f"the {table.rstrip('s')} {name!r} is taken: it is claimed by {BUILT_IN} and by {package}"
                    raise LadingError("P331", message, package, f"rename it in {package}")
                try:
                    _install(table, name, found)
                except ValueError as error:
                    raise LadingError("P331", str(error), package) from error


def _built_in(table: str) -> Mapping[str, Any]:
    if table == "ops":
        from ir.ops.registry import load_own

        return load_own()
    from ir.tensor.recipes import RECIPES

    return RECIPES


def _install(table: str, name: str, item: Any) -> None:
    if table == "recipes":
        from ir.tensor.recipes import RECIPES

        RECIPES.add(name, item)
        return
    from ir.ops.registry import register

    if item.name != name:
        raise ValueError(f"the operator {item.name!r} is listed as {name!r}")
    register(item)


def load_plugins(registry: Registry, entry_points: Iterable[Any]) -> None:
    """Merge the plugins of entry points; LadingError P330 for one that does not load or is no `Plugin`."""
    for entry in sorted(entry_points, key=lambda item: (item.dist.name if item.dist else "", item.name)):
        package = entry.dist.name if entry.dist else entry.value
        try:
            plugin = entry.load()
        except Exception as error:
            hint = f"update or uninstall {package}"
            raise LadingError("P330", f"the plugin {entry.name!r} does not load: {error!r}", package, hint) from error
        if not isinstance(plugin, Plugin):
            raise LadingError("P330", f"the plugin {entry.name!r} is not a passes.framework.registry.Plugin", package)
        registry.add(plugin, package)


@cache
def default_registry() -> Registry:
    """The built-in tables and those of every installed plugin."""
    from importlib.metadata import entry_points

    registry = Registry()
    load_plugins(registry, entry_points(group=GROUP))
    registry.install()
    return registry
