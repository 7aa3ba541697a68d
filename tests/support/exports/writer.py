"""Write a decoder of the llama kind by hand, from the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from tests.support.exports.families import checkpoint, config_of, torch_model


class Writer:
    """Nodes and constants of a model that is being written.

    Attributes:
        config: of the family: one with RMSNorm, a gated MLP with SiLU, and biases or norms of queries and keys or neither.
        heads, groups, size: heads of queries, of keys and values, and their width.
    """

    def __init__(self, family: str):
        self.config = config_of(family)
        self.heads, self.groups = self.config.num_attention_heads, self.config.num_key_value_heads
        self.size = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads
        self.epsilon = float(self.config.rms_norm_eps)
        self.weights = load_file(checkpoint(family) / "model.safetensors")
        self._family = family
        self._nodes: list[onnx.NodeProto] = []
        self._stored: dict[str, onnx.TensorProto] = {}

    def const(self, array: np.ndarray | Sequence[int], name: str = "") -> str:
        """A constant, stored once for each name."""
        name = name or f"c{len(self._stored)}"
        if name not in self._stored:
            self._stored[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def op(self, kind: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **attributes: Any) -> str:
        """A node; returns its first output."""
        names = list(outputs) or [f"v{len(self._nodes)}"]
        node = helper.make_node(kind, list(inputs), names, f"{kind}.{len(self._nodes)}", domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)
        return names[0]

    def vector(self, name: str) -> str:
        """A tensor of the checkpoint."""
        return self.const(self.weights[name], name)

    def linear(self, x: str, name: str) -> str:
        """The linear layer of a name, with its bias if it has one."""
        out = self.op("MatMul", x, self.const(self.weights[f"{name}.weight"].T.copy(), f"{name}.weight"))
        return self.op("Add", out, self.vector(f"{name}.bias")) if f"{name}.bias" in self.weights else out

    def head(self, x: str) -> None:
        """The product that gives ``logits``."""
        name = "lm_head.weight" if "lm_head.weight" in self.weights else "model.embed_tokens.weight"
        self.op("MatMul", x, self.const(self.weights[name].T.copy(), f"{name} for logits"), outputs=["logits"])

    def mlp(self, x: str, layer: str) -> str:
        """The gated MLP of a layer."""
        gate = self.linear(x, f"{layer}.mlp.gate_proj")
        gate = self.op("Mul", gate, self.op("Sigmoid", gate))
        return self.linear(self.op("Mul", gate, self.linear(x, f"{layer}.mlp.up_proj")), f"{layer}.mlp.down_proj")

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine f32[positions, size / 2] of the rotary embedding."""
        import torch

        positions = torch.arange(self.config.max_position_embeddings)[None]
        tables = torch_model(self._family).model.rotary_emb(torch.zeros(1), positions)
        return tuple(table[0, :, : self.size // 2].numpy().copy() for table in tables)  # type: ignore[return-value]

    def finish(
        self,
        path: Path,
        inputs: dict[str, tuple[type, list[int | str]]],
        outputs: dict[str, list[int | str]],
        **domains: int,
    ) -> None:
        """Write the model.

        Args:
            path: where to.
            inputs: element type and shape by name.
            outputs: shapes by name; all are float32.
            domains: versions of operators beyond the default domain's, whose version is ``onnx``.
        """
        takes = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
            for name, (kind, shape) in inputs.items()
        ]
        gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self._nodes, "decoder", takes, gives, list(self._stored.values()))
        versions = [helper.make_opsetid("" if name == "onnx" else name, number) for name, number in domains.items()]
        model = helper.make_model(graph, opset_imports=versions)
        model.ir_version = 10
        onnx.save(model, path)
