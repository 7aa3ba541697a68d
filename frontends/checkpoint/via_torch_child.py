"""The graph of a checkpoint's model as torch exports it, without its weights.

Run as ``python -I via_torch_child.py FOLDER`` with ``request.json`` in FOLDER: the checkpoint's folder and a limit of
memory. Writes ``graph.onnx``, in which parameters are read and never made, and ``outcome.json`` with the names under which
each parameter may be stored, or with the reason why there is no graph.

``transformers`` builds the model from its configuration alone. Code that comes with a checkpoint is never run, and no file
of weights is opened: parameters have a shape and no numbers, so nothing that depends on their numbers can be written into
the graph either.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

LONGEST = 300
"""Characters of a reason."""

TRACED = 7
"""Tokens that the graph is traced with; their number stays open."""

OPSET = 20
"""Version of ONNX's operators that the graph is written in."""


def limit_memory(limit: int) -> None:
    """Bound the private memory of this process, where the system can."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def parameters_without_numbers() -> Any:
    """A context: parameters of modules that are made meanwhile have no memory; buffers are computed as usual."""
    from unittest.mock import patch

    import torch

    register = torch.nn.Module.register_parameter

    def without(module: Any, name: str, parameter: Any) -> None:
        register(module, name, parameter)
        made = module._parameters[name]
        if made is not None and made.device.type != "meta":
            module._parameters[name] = torch.nn.Parameter(made.to("meta"), requires_grad=False)

    return patch.object(torch.nn.Module, "register_parameter", without)


def built(folder: str) -> Any:
    """The model of a configuration; each parameter is one number in memory, seen everywhere."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with parameters_without_numbers():
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        ).eval()
    seen: dict[Any, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in seen:
                seen[parameter] = torch.nn.Parameter(torch.zeros(1).expand(parameter.shape), requires_grad=False)
            module._parameters[name] = seen[parameter]
    return model


def exported(model: Any) -> Any:
    """The program from token ids i64[1, seq] to the logits of all positions."""
    import torch

    class OfIds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> Any:
            return self.model(input_ids=input_ids, use_cache=False).logits

    with torch.no_grad():
        return torch.onnx.export(
            OfIds().eval(),
            (torch.zeros((1, TRACED), dtype=torch.int64),),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=({1: torch.export.Dim.DYNAMIC},),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )


def write(program: Any, model: Any, folder: Path) -> list[dict[str, Any]]:
    """Write the graph; returns name, other names and shape of each parameter that it reads."""
    import onnx
    import onnx_ir
    import onnxscript.optimizer

    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    aliases = {name: group for group in names.values() for name in group}
    graph = program.model.graph
    found = []
    for key, value in list(graph.initializers.items()):
        name = key.removeprefix("model.")
        if name not in aliases:
            continue
        # As an input it has no value, so that nothing folds it.
        del graph.initializers[key]
        value.const_value = None
        value.name = name
        graph.inputs.append(value)
        found.append({"name": name, "names": aliases[name], "shape": [int(size) for size in value.shape]})
    onnxscript.optimizer.optimize(program.model)
    proto = onnx_ir.to_proto(program.model)
    free = {item["name"] for item in found}
    kept = [item for item in proto.graph.input if item.name not in free]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    tokens = kept[0].type.tensor_type.shape.dim[1].dim_param
    for item in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for size in item.type.tensor_type.shape.dim:
            if size.dim_param == tokens:
                size.dim_param = "seq"
    onnx.save(proto, str(folder / "graph.onnx"))
    return found


def export(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the graph; returns the outcome."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    step = "build"
    try:
        model = built(request["model"])
        step = "export"
        found = write(exported(model), model, folder)
    except Exception as error:  # Whatever these libraries raise, there is no graph.
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        return {"step": step, "reason": f"{type(error).__name__}: {' '.join(said.split())}"[:LONGEST]}
    return {"parameters": found, "transformers": transformers.__version__, "torch": torch.__version__}


def main() -> None:
    """Run one request; leaves without the interpreter's shutdown, which native threads may hold up."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    limit_memory(request["memory"])
    outcome = export(request, folder)
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
