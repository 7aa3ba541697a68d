"""The rooms of the house: no circle, no upward import, no overfull folder, no runtime named outside its rooms.

Every import counts: of modules, inside functions, under ``TYPE_CHECKING``, and modules named by text in tables.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import networkx as nx
import pytest

from tests.support.paths import ROOT

TOPS = ("ir", "passes", "frontends", "backends", "tools", "lading")

FLOORS = (
    ("ir.base",),
    ("ir.tensor",),
    ("ir.graph",),
    ("ir.ops",),
    ("ir.onnx",),
    ("ir.infer",),
    ("ir.dialects",),
    ("ir.quant",),
    ("ir.facts",),
    ("ir.target", "ir.text"),
    ("ir.verify", "ir.analysis"),
    ("ir.evaluate",),
    ("passes.rewrite",),
    ("passes.framework",),
    ("passes", "frontends"),
    ("backends",),
    ("backends.onnx", "backends.mnn"),
    ("tools",),
    ("lading",),
)
"""Rooms from the ground up; the longest name that fits decides. A file imports from its own floor and from below."""

MOST_FILES = 15
"""Files of a folder, its ``__init__.py`` and ``__main__.py`` aside."""


def modules() -> dict[str, Path]:
    found = {}
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports_of(name: str) -> set[str]:
    """Own modules that a module imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{name} has a relative import in line {node.lineno}")
    return {item for item in found if item in MODULES} - {name}


IMPORTS = {name: imports_of(name) for name in MODULES}


def floor_of(module: str) -> int:
    best = max(
        (
            (room, number)
            for number, rooms in enumerate(FLOORS)
            for room in rooms
            if f"{module}.".startswith(f"{room}.")
        ),
        key=lambda item: len(item[0]),
        default=None,
    )
    assert best is not None, f"{module} is on no floor"
    return best[1]


def room_of(module: str) -> str:
    """The top folder, or the runtime's folder in ``backends``."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "backends" and f"backends.{parts[1:2]}" else parts[0]


def test_no_module_imports_itself_through_others():
    circles = [sorted(part) for part in nx.strongly_connected_components(nx.DiGraph(IMPORTS)) if len(part) > 1]
    assert not circles


def test_no_module_imports_from_a_higher_floor():
    upward = [f"{name} imports {other}" for name, found in IMPORTS.items() for other in sorted(found)
              if floor_of(other) > floor_of(name)]  # fmt: skip
    assert not upward


def test_runtimes_passes_and_frontends_do_not_import_each_other():
    crossing = []
    for name, found in IMPORTS.items():
        for other in sorted(found):
            ours, theirs = name.split("."), other.split(".")
            if {ours[0], theirs[0]} == {"passes", "frontends"}:
                crossing.append(f"{name} imports {other}")
            runtimes = {"mnn", "onnx"}
            if ours[0] == theirs[0] == "backends" and len({*ours[1:2], *theirs[1:2]} & runtimes) == 2:
                crossing.append(f"{name} imports {other}")
    assert not crossing


def test_no_folder_holds_more_files_than_can_be_overseen():
    folders: dict[Path, list[str]] = {}
    for top in (*TOPS, "tests"):
        for path in (ROOT / top).rglob("*.py"):
            if path.name not in ("__init__.py", "__main__.py"):
                folders.setdefault(path.parent, []).append(path.name)
    assert {str(folder.relative_to(ROOT)): len(found) for folder, found in folders.items()
            if len(found) > MOST_FILES} == {}  # fmt: skip


def names_of(module: str) -> set[str]:
    """Names that a module has: what it defines, assigns and imports at its top, whatever the condition."""
    found = set()
    waiting: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            else:
                waiting.append(node)
    return found


def test_what_is_imported_from_own_modules_is_there():
    """Imports inside functions too, which only a call would try."""
    missing = []
    names = {module: names_of(module) for module in MODULES}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in MODULES and "__getattr__" not in names[node.module]:
                missing += [
                    f"{module}, line {node.lineno}: {node.module} has no {alias.name}"
                    for alias in node.names
                    if alias.name not in names[node.module] and f"{node.module}.{alias.name}" not in MODULES
                ]
    assert missing == []


RUNTIMES = re.compile(r"mnn", re.IGNORECASE)


@pytest.mark.parametrize("top", ["ir", "passes"])
def test_the_compiler_names_no_runtime(top):
    named = {
        f"{name}:{number}: {line.strip()}"
        for name, path in MODULES.items()
        if name.split(".")[0] == top
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if RUNTIMES.search(line)
    }
    assert sorted(named) == []


def test_tests_stand_where_what_they_test_stands():
    """``tests/<top>/<room>/`` exists as a room of the house."""
    stray = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        parts = path.relative_to(ROOT / "tests").parts
        if parts[0] in TOPS and not (ROOT.joinpath(*parts[:-1])).is_dir():
            stray.append("/".join(parts))
    assert stray == []


def test_nothing_below_the_commands_starts_threads_or_processes_for_its_work():
    pools = {"ThreadPoolExecutor", "ProcessPoolExecutor", "InterpreterPoolExecutor", "ThreadPool", "Pool"}
    found = []
    for name, path in MODULES.items():
        if name.startswith("tools"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            word = getattr(called, "attr", getattr(called, "id", ""))
            imported = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            if word in pools or imported & pools:
                found.append(f"{name}, line {node.lineno}")
    assert not found
