"""What the doctor's codes come to in a few words."""

from __future__ import annotations

CAUSES: dict[str, str] = {
    "B710": "the model file is damaged, or is none",
    "B711": "the model file cannot be read",
    "B712": "it needs an input that the runtime does not feed",
    "B713": "it lacks the input logits_index, so the first token would be wrong",
    "B714": "it lacks an output that the runtime reads",
    "B715": "its operators are out of order",
    "B716": "it uses operators that came later",
    "B717": "its half-float scales would be read as garbage",
    "B718": "its norms would be computed along the wrong axis",
    "B719": "the gain of its norms would be ignored",
    "B720": "it uses a form of attention that is ignored or crashes",
    "B721": "its weights would be read as zeros",
    "B722": "the size of its blocks is computed wrong with memory low",
    "B723": "a file is missing or cannot be read",
    "B726": "its attention mask is of the wrong kind",
    "B727": "llm_config.json contradicts the model",
    "B728": "its embedding rows would be read in the wrong place or form",
    "B729": "its embedding rows are missing",
    "B730": "the weight file is cut off",
    "B731": "its tokenizer is missing, or in a form that is not read",
    "B732": "it is an ONNX file, which the runtime does not load",
    "B735": "a real run went otherwise than its files say",
    "B736": "it reads positions with another number of axes than is fed",
    "B737": "its expert numbers lack an axis",
    "B780": "a file lies outside of its folder",
    "B781": "the weight file is of another model, or damaged",
    "B782": "it holds numbers that no model has",
    "B783": "a file was never fetched from Git LFS",
    "C810": "a file of its contract is missing",
    "C811": "a file has another size than its contract says",
    "C812": "a file has other content than its contract says",
    "C814": "a file of its contract cannot be read",
}
"""Each code of an error, as the end of the sentence "it is broken: ..."."""
