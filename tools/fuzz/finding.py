"""What a search found: the record, the file it is written to, and the line that reproduces it."""

from __future__ import annotations

import base64
import re
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ir.base.diag import LadingError
from tools.fuzz.target import Broken

ROOT = Path(__file__).resolve().parent.parent.parent
_OWN = Path(__file__).resolve().parent
_FRAME = re.compile(r'File "([^"]+)", line \d+,? in (\S+)')


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        target, seed: the case that shows it.
        kind: ``exception``, ``broken law``, ``refused`` (a sound input), ``died`` or ``hung``.
        summary: one line.
        place: file and function of the product where it came up, as far as that is known.
        trace: traceback, or what the process left on standard error.
        suffix, data: the input as a file, base64; empty where the seed has to do.
        module: module with the target's table where that is not the command's own.
    """

    target: str
    seed: int
    kind: str
    summary: str
    place: str = ""
    trace: str = ""
    suffix: str = ""
    data: str = ""
    module: str = ""

    @property
    def signature(self) -> tuple[str, ...]:
        """Findings of equal signatures are one fault, as far as a machine can tell."""
        return (self.kind, self.summary.partition(":")[0], self.place or self.target)

    @property
    def command(self) -> str:
        """The command that shows the fault again."""
        loaded = f"--load {self.module} " if self.module else ""
        return f"python -m tools.fuzz {loaded}--only {self.target} --seed {self.seed} --count 1"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without the input."""
        data = asdict(self)
        del data["data"], data["suffix"], data["module"]
        return {**data, "command": self.command}

    def write(self, folder: Path) -> Path:
        """Write the finding, and its input beside it, into a folder; returns the path of the finding."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.target}-{self.seed}.txt"
        lines = [f"target    {self.target}", f"seed      {self.seed}", f"kind      {self.kind}"]
        lines += [f"summary   {self.summary}", f"reproduce {self.command}"]
        if self.data:
            kept = path.with_name(f"{path.stem}.input{self.suffix}")
            kept.write_bytes(base64.b64decode(self.data))
            lines.append(f"input     {kept.name}")
        text = "\n".join([*lines, "", self.trace.rstrip(), ""])
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return path


def of_error(error: BaseException, target: str, seed: int, given: Any, module: str = "") -> Finding:
    """The finding that an exception of a case is."""
    kind = {Broken: "broken law", LadingError: "refused"}.get(type(error), "exception")
    text = " ".join(str(error).split())[:300]
    summary = text if kind == "broken law" else f"{type(error).__name__}: {text}"
    trace = "".join(traceback.format_exception(error))
    suffix, data = as_file(given)
    return Finding(target, seed, kind, summary, place_of(trace), trace, suffix, data, module)


def place_of(trace: str) -> str:
    """``file: function`` of the innermost frame of a traceback that lies in the product."""
    for path, function in reversed(_FRAME.findall(trace)):
        full = Path(path)
        if full.is_relative_to(ROOT) and not full.is_relative_to(_OWN):
            return f"{full.relative_to(ROOT).as_posix()}: {function}"
    return ""


def as_file(given: Any) -> tuple[str, str]:
    """Suffix and base64 of an input as a file; empty for a folder, which is gone when the case is over."""
    from ir.graph.graph import Graph

    if isinstance(given, Path):
        return "", ""
    suffix = ".txt"
    if isinstance(given, bytes):
        suffix, data = ".bin", given
    elif isinstance(given, Graph):
        suffix, data = ".lading", _graph_text(given).encode("utf-8", "surrogatepass")
    else:
        text = given if isinstance(given, str) else repr(given)
        data = text.encode("utf-8", "surrogatepass")
    return suffix, base64.b64encode(data).decode()


def _graph_text(graph: Any) -> str:
    from ir.text.printer import print_graph

    try:
        return print_graph(graph)
    except Exception as error:  # The graph is what a fault was found in, so that printing it may fail as well.
        return f"// cannot be printed: {error!r}\n"


__all__ = ["Finding", "as_file", "of_error", "place_of"]
