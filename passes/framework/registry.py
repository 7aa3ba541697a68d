"""Which passes, pipelines, frontends and backends exist, built in and from plugins; classes are imported on use.

A name claimed twice is an error that names both packages.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ir.base.diag import LadingError
from ir.base.plugins import BUILT_IN, TABLES, Loaded, Plugin, loaded
from ir.base.tables import imported
from passes.framework.base import Pass, check_pass_class
from passes.framework.options import OptionSpec, options_of

PASSES: dict[str, str] = {
    "absorb-latent": "passes.canonicalize.absorb_latent:AbsorbLatent",
    "assign-int8": "passes.static_quant.assign_int8:AssignInt8",
    "assign-precision": "passes.precision.assign_precision:AssignPrecision",
    "balance": "passes.calibration.balance:Balance",
    "bias-correct": "passes.static_quant.bias_correct:BiasCorrect",
    "calibrate": "passes.calibration.calibrate:Calibrate",
    "calibrate-outputs": "passes.calibration.calibrate_outputs:CalibrateOutputs",
    "cse": "passes.canonicalize.cse:EliminateCommonSubexpressions",
    "dce": "passes.canonicalize.dce:EliminateDeadCode",
    "equalize": "passes.static_quant.equalize:Equalize",
    "fold-batch-norms": "passes.static_quant.fold_batch_norms:FoldBatchNorms",
    "fold": "passes.canonicalize.fold:Fold",
    "fuse-linears": "passes.fusing.fuse_linears:FuseLinears",
    "discover-inputs": "passes.inputs.discover_inputs:DiscoverInputs",
    "insert-static-qdq": "passes.static_quant.insert_static_qdq:InsertStaticQdq",
    "infer-types": "passes.canonicalize.infer_types:InferTypes",
    "insert-qdq": "passes.precision.insert_qdq:InsertQdq",
    "join-linears": "passes.canonicalize.join_linears:JoinLinears",
    "observe": "passes.static_quant.observe:Observe",
    "raise-decoder": "passes.raising.raise_decoder:RaiseDecoder",
    "raise-weights": "passes.precision.raise_weights:RaiseWeights",
    "recalibrate": "passes.calibration.recalibrate:Recalibrate",
    "rotate": "passes.calibration.rotate:Rotate",
    "expand-contrib": "passes.contrib.expand_contrib:ExpandContrib",
    "expand-functions": "passes.canonicalize.expand_functions:ExpandFunctions",
    "spell-linears": "passes.canonicalize.spell_linears:SpellLinears",
    "settle-choices": "passes.control.settle_choices:SettleChoices",
    "stack-lists": "passes.control.stack_lists:StackLists",
    "simplify": "passes.canonicalize.simplify:Simplify",
    "toposort": "passes.canonicalize.toposort:SortNodes",
    "unround-activations": "passes.precision.unround_activations:UnroundActivations",
    "upgrade-opset": "passes.canonicalize.upgrade_opset:UpgradeOpset",
    "widen-floats": "passes.canonicalize.widen_floats:WidenFloats",
    "widen-integers": "passes.integers.widen_integers:WidenIntegers",
}
"""Built-in passes by name: ``module:Class``."""

PIPELINES: dict[str, str] = {
    "canonicalize": "repeat{max=8}(infer-types,fold,simplify,cse,dce),toposort",
    "smallest": "canonicalize,fold-batch-norms,fuse-linears",
    "int8-static": "repeat{max=1 foreign}(expand-functions),canonicalize,fold-batch-norms,observe,"
    "assign-int8,bias-correct,insert-static-qdq,dce",
    "newest-opset": "repeat{max=1 foreign}(expand-functions,infer-types,upgrade-opset)",
    "lift-decoder": "repeat{max=1 foreign}(expand-functions,infer-types,upgrade-opset,expand-contrib,widen-floats,"
    "canonicalize,unround-activations,spell-linears),raise-weights,repeat{max=1 foreign}(raise-decoder,canonicalize)",
}
"""Pipelines that hold for every runtime, by name. A pipeline may use others."""

HELD = ("passes", "pipelines", "frontends", "backends")
"""Tables of `ir.base.plugins.Plugin` that a registry holds; the others belong to the rooms whose rows they are."""


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
        frontends, backends: what plugins added; those of the source tree's own formats are in `tools.shared.formats`.
    """

    def __init__(self, passes: Mapping[str, Any] | None = None, pipelines: Mapping[str, str] | None = None) -> None:
        self.passes: dict[str, Any] = {}
        self.pipelines: dict[str, str] = {}
        self.frontends: dict[str, Any] = {}
        self.backends: dict[str, Any] = {}
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
                if table in HELD:
                    getattr(self, table)[name] = item

    def _claim(self, table: str, name: str, package: str) -> None:
        if table == "steps" and name == "repeat":
            raise LadingError("P331", f"{package} cannot call a pass or pipeline 'repeat'", package)
        owner = self._package.setdefault((table, name), package)
        if owner != package or (table in ("steps", *HELD) and name in self._table_of(table)):
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
        try:
            return imported(path)
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


@cache
def default_registry() -> Registry:
    """The built-in tables and those of every plugin."""
    return registry_of(loaded())


def built_in_registry() -> Registry:
    """The built-in tables and those of the source tree's own plugins; what the manual describes."""
    return registry_of(item for item in loaded() if item.package == BUILT_IN)


def registry_of(plugins: Iterable[Loaded]) -> Registry:
    """The built-in tables and those of some plugins."""
    registry = Registry()
    for item in plugins:
        registry.add(item.plugin, item.package)
    return registry
