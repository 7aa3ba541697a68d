"""MNN models as graphs: a model directory, or one ``.mnn`` file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontends.frontend import Frontend
from ir.base.executor import SERIAL

if TYPE_CHECKING:
    from ir.graph.graph import Graph


class MnnFile(Frontend):
    """The language models of MNN, as `backends.mnn.lift` reads them; weights keep their codes."""

    suffixes = (".mnn",)

    def recognises(self, source: str) -> bool:
        """Files of that suffix, and folders with such a file and no checkpoint."""
        path = Path(os.path.expanduser(source))
        if not path.is_dir():
            return super().recognises(source)
        return any(path.glob("*.mnn")) and not any(path.glob("*.safetensors"))

    def load(self, path: str, **options: Any) -> Graph:
        """Read a model directory or file.

        Raises:
            LadingError: B710, B711 or B741 files that cannot be read, F640 to F646 a graph that cannot be.
        """
        from backends.mnn.lift.lift import lift
        from backends.mnn.read.model_folder import Subject
        from backends.mnn.write.rewritten_folder import describe, require_readable

        subject = Subject(Path(path))
        if subject.is_folder:
            require_readable(subject)
        elif not subject.net["oplists"] and subject.net_problem is not None:
            raise subject.net_problem
        scale = subject.llm_config.values.get("attn_scale", 0.0)
        graph = lift(
            subject.net,
            subject.weight_path,
            attention_scale=float(scale) if isinstance(scale, int | float) else 0.0,
        )
        describe(graph, subject, SERIAL)
        return graph
