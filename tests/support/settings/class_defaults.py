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
    return {"defaults": plain, "aliases": dict(made.attribute_map), "theta": made.default_theta}


def of_wrapper(model_type: str) -> dict[str, Any] | None:
    """The record of a model of several towers; its class may say other defaults for the language model, as ``inner``."""
    from transformers import CONFIG_MAPPING

    from frontends.families.table import WRAPPERS

    record, row = of_class(model_type), WRAPPERS[model_type]
    if record is None:
        return None
    made = CONFIG_MAPPING[model_type]
    given = getattr(made.sub_configs_defaults.get(row.records[0]), "init_kwargs", None) or {}
    text = made(**{row.records[0]: {"model_type": row.text}}).get_text_config().to_dict()
    plain = CONFIG_MAPPING[row.text]().to_dict()
    return {**record, "inner": {key: text[key] for key in given if text.get(key) != plain.get(key)}}


def all_classes() -> dict[str, Any]:
    """The records of every model type of a row that has a class."""
    from frontends.families.table import FAMILIES, WRAPPERS

    found = {name: of_wrapper(name) if name in WRAPPERS else of_class(name) for name in sorted({*FAMILIES, *WRAPPERS})}
    return {name: record for name, record in found.items() if record is not None}


def text() -> str:
    """What the file holds: one line for each model type."""
    lines = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in all_classes().items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text())
