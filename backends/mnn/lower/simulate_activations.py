"""Make the graph compute what the runtime computes when it quantizes activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from backends.mnn.lower.simulated import simulate
from ir.graph.graph import Graph
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.framework.options import option


@dataclass(frozen=True)
class SimulateActivations(Pass):
    """Quantize and dequantize the rows that flow into every integer weight, as MNN does with low memory.

    The result is a reference, to be evaluated and compared; it is not meant to be written as a model.
    """

    name = "simulate-activations"
    requires = ("quantized",)
    breaks = ("mnn",)
    lossy = True

    dynamic_option: Literal[0, 1, 2] = option(
        0, help="the runtime's setting of this name: 2 quantizes by block of the weight"
    )
    decode: bool = option(False, help="every row is a call of its own, as in decoding; else all rows are one call")

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        joint = graph.add_const("joint_rows", InlineTensor(np.zeros(1, np.int32))) if self.decode else None
        made = simulate(graph, self.dynamic_option, joint)
        if joint is not None and not joint.use_count:
            graph.erase_const(joint)
        return {"inserted": len(made)}
