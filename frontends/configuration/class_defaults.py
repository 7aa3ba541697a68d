"""Values that the configuration classes of ``transformers`` give to absent keys, without importing that library.

Importing it takes seconds; a file beside this one holds what is needed of it. A test compares the file with the classes
of the installed release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ClassDefaults:
    """What one configuration class says.

    Attributes:
        defaults: values of absent keys; every key that the class declares is among them.
        aliases: other spellings of keys.
        theta: base of the rope where the file names none; by layer type for classes with several ropes.
        rope: the rope record where the file has none, for classes with another one than the plain rope.
        text: for a model of several towers, values of keys that are absent from the record of its language model.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    theta: Any = None
    rope: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)


@cache
def _records() -> dict[str, ClassDefaults]:
    data = json.loads(Path(__file__).with_name("class_defaults.json").read_text(encoding="utf-8"))
    return {name: ClassDefaults(**record) for name, record in data.items()}


def class_defaults(model_type: str) -> ClassDefaults:
    """The record of a model type; an empty one where there is no class."""
    return _records().get(model_type, ClassDefaults())


__all__ = ["ClassDefaults", "class_defaults"]
