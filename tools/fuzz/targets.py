"""The table of everything that is searched; a new target is a row of one of its parts."""

from __future__ import annotations

from tools.fuzz.subjects.damaged_checkpoints import DAMAGED_CHECKPOINTS
from tools.fuzz.subjects.damaged_gguf import DAMAGED_GGUF
from tools.fuzz.subjects.damaged_graphs import DAMAGED_GRAPHS
from tools.fuzz.subjects.damaged_models import DAMAGED_MODELS
from tools.fuzz.subjects.damaged_plans import DAMAGED_PLANS
from tools.fuzz.subjects.dangling_tensors import DANGLING
from tools.fuzz.subjects.laws import LAWS
from tools.fuzz.subjects.tokenizer_children import TOKENIZER_CHILDREN
from tools.fuzz.subjects.unlucky import UNLUCKY
from tools.fuzz.target import Target

TARGETS: tuple[Target, ...] = (
    *LAWS, *DAMAGED_GRAPHS, *DAMAGED_CHECKPOINTS, *DAMAGED_GGUF, *TOKENIZER_CHILDREN, *DAMAGED_MODELS, *DAMAGED_PLANS,
    *DANGLING, *UNLUCKY,
)  # fmt: skip
"""All targets, in the order in which they are searched."""
