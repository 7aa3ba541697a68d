"""What MNN's language-model runtime feeds and reads, by release."""

from __future__ import annotations

from ir.base.types import DTYPES
from ir.target.signature import FedInput, ReadOutput, Signature

_F32, _I32 = DTYPES["f32"], DTYPES["i32"]

_ROWS = FedInput(
    "input_ids",
    "embedding-rows",
    _F32,
    (("seq", 1, "hidden"),),
    "rows of the embedding table, one for each token of this call, dequantized by the runtime",
)
_MASK = FedInput(
    "attention_mask",
    "attention-mask",
    _F32,
    ((), (1, 1, "seq", "seq"), (2, 1, 1, "seq", "kv")),
    "scalar 0: causal; or 0 where a token may be attended to and the lowest float where not",
    default=0.0,
)
_POSITIONS = FedInput(
    "position_ids",
    "positions",
    _I32,
    ((1, "seq"), ("seq",)),
    "absolute position of each token of this call",
    low=0,
)
_INDEX = FedInput(
    "logits_index",
    "output-rows",
    _I32,
    ((1,),),
    "first position whose logits are wanted: -1 for the last only, 0 for all",
    default=-1,
    low=-1,
    high=0,
)
_LOGITS = ReadOutput("logits", "logits", _F32, (1, "rows", "vocab"), "unnormalised scores of the next token")

LLM_3_0 = Signature("mnn-llm-3.0", (_ROWS, _MASK, _POSITIONS), (_LOGITS,), keeps_cache=True)
"""What MNN 3.0.x feeds a language model and reads back."""

LLM = Signature("mnn-llm", (_ROWS, _MASK, _POSITIONS, _INDEX), (_LOGITS,), keeps_cache=True)
"""What MNN 3.1.0 and later feed a language model and read back."""
