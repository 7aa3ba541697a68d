"""What the configuration classes of ``transformers`` give to absent keys, as a file that the frontend reads.

``python -m tests.support.settings.class_defaults`` writes ``frontends/configuration/class_defaults.json`` anew after a row with a
new model type, or for another release of that library. Types without a class there are left out; their rows say their
defaults themselves.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[3] / "frontends/configuration/class_defaults.json"

PLAIN = (type(None), bool, int, float, str)


def of_class(model_type: str) -> dict[str, Any] | None:
    """Defaults, other spellings of keys and the base of the rope of one model type; None when it has no class."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    if model_type not in CONFIG_MAPPING:
        return None
    made = CONFIG_MAPPING[model_type]
    common = {item.name for item in dataclasses.fields(PreTrainedConfig)}
    defaults = {}
    for item in dataclasses.fields(made):
        value = item.default if item.default is not dataclasses.MISSING else None
        if item.name not in common and not item.name.endswith(("_token_id", "_config")):
            defaults[item.name] = list(value) if isinstance(value, tuple) else value
    plain = {key: value for key, value in defaults.items() if isinstance(value, (*PLAIN, list))}
    found = {"defaults": plain, "aliases": dict(made.attribute_map), "theta": made.default_theta}
    rope = getattr(made(), "rope_parameters", None) or {}
    return {**found, "rope": rope} if rope.get("rope_type", "default") != "default" else found


def of_wrapper(model_type: str) -> dict[str, Any] | None:
    """What the class of a model of several towers says of the record of its language model; None when it has no class."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return None
    made = CONFIG_MAPPING[model_type]
    spec = made.sub_configs_defaults.get("text_config")
    left_out = ("model_type", "eos_token_id", "rope_parameters")
    given = {key: value for key, value in (spec.init_kwargs if spec else {}).items() if key not in left_out}
    tied = getattr(made(), "tie_word_embeddings", None)
    return {"defaults": {} if tied is None else {"tie_word_embeddings": tied}, "text": given}


def all_classes() -> dict[str, Any]:
    """The records of every model type of a row that has a class."""
    from frontends.families.table import FAMILIES, WRAPPERS

    found = {name: of_class(name) for name in FAMILIES} | {name: of_wrapper(name) for name in WRAPPERS}
    return {name: record for name, record in sorted(found.items()) if record is not None}


def text() -> str:
    """What the file holds: one line for each model type."""
    lines = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in all_classes().items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text())
