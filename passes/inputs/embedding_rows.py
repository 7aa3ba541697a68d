"""Which values are embedding rows: what the token ids choose from a table."""

from __future__ import annotations

from ir.base.diag import LadingError
from ir.graph.graph import Graph, Value
from passes.inputs.finding import LookUp
from passes.inputs.token_ids import look_ups


def find(graph: Graph, ids: Value) -> LookUp:
    """The only look-up of the token ids in a table.

    Raises:
        LadingError: P352 when the ids index several tables.
    """
    found = look_ups(ids)
    if len(found) != 1:
        raise LadingError(
            "P352",
            f"the token ids index {len(found)} tables and the runtime feeds the rows of one",
            where=", ".join(node.loc or repr(node) for node in found),
        )
    (gather,) = found
    table = gather.operand(0)
    reason = f"the runtime looks token ids up in @{table.name} itself and feeds the rows"
    return LookUp(gather.output, "runtime-feeds", reason, gather.loc or gather.name, gather)
