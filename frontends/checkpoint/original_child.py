"""Logits of a checkpoint by the original implementation, in ``transformers`` and torch.

Run as ``python -I original_child.py FOLDER`` with ``request.json`` in FOLDER: the checkpoint's folder, the sequences of
token ids, adapters with their weights and a limit of memory. Writes ``outcome.json`` with the release of transformers,
or with the reason why there are no logits, and ``logits.npz``. Code that comes with a checkpoint is never run, and no
pickled file is opened.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

LONGEST = 300
"""Characters of a reason."""


def limit_memory(limit: int) -> None:
    """Bound the private memory of this process, where the system can."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def evaluate(request: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write the logits of every sequence; returns the outcome."""
    import numpy as np
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    loader: Any = transformers.AutoModelForCausalLM
    model, info = loader.from_pretrained(
        request["model"],
        dtype=torch.float32,
        attn_implementation="eager",
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        return {"reason": f"transformers finds no weights for {missing[0]} and makes them up"}
    outcome = {"version": transformers.__version__}
    if request["adapters"]:
        model, outcome["peft"] = with_adapters(model, request["adapters"])
    found = {}
    with torch.no_grad():
        for number, ids in enumerate(request["sequences"]):
            found[str(number)] = model.eval()(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    np.savez(folder / "logits.npz", **found)
    return outcome


def with_adapters(model: Any, adapters: list[Any]) -> tuple[Any, str]:
    """The model with adapters at work beside its weights, and the release of peft."""
    import peft

    names = [f"adapter{number}" for number in range(len(adapters))]
    for number, (name, (folder, _)) in enumerate(zip(names, adapters, strict=True)):
        if number == 0:
            model = peft.PeftModel.from_pretrained(model, folder, adapter_name=name, use_safetensors=True)
        else:
            model.load_adapter(folder, adapter_name=name, use_safetensors=True)
    model.base_model.set_adapter(names)
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict):
            for name, (_, weight) in zip(names, adapters, strict=True):
                if name in scaling:
                    scaling[name] *= weight
    return model, peft.__version__


def main() -> None:
    """Run one request; leaves without the interpreter's shutdown, which native threads may hold up."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    limit_memory(request["memory"])
    try:
        outcome = evaluate(request, folder)
    except Exception as error:
        # Whatever this library raises, it has no logits for us.
        outcome = {"reason": f"transformers: {type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]}
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
