"""What the doctor's codes come to in a few words, and which of them a message of the runtime points at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from backends.mnn.read.net_file import OPS

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


@dataclass(frozen=True)
class Cause:
    """What a message of the runtime means.

    Attributes:
        message: the words that were recognised, as they stand in the text.
        codes: codes of the doctor's findings that lead to it, the likeliest first.
        meaning: what has happened, as a sentence.
    """

    message: str
    codes: tuple[str, ...]
    meaning: str


_MESSAGES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (r"tensor \[ (logits_index) \] is input but not found", ("B712",),
     "The model needs the input 'logits_index', which runtimes before MNN 3.1.0 do not feed, nor does a program that loads "
     "llm.mnn by itself and does not name it."),
    (r"tensor \[ (.+?) \] is input but not found", ("B712", "B715"),
     "The model needs the input '{0}', which this runtime does not feed, or reads that tensor before it is computed."),
    (r"Can't find output (\S+) from the model", ("B714",), "No tensor of the model is called '{0}', which the runtime reads."),
    (r"Invalidate buffer to create MNN Module", ("B716", "B710"),
     "The runtime refused the .mnn file: it holds operator parameters of a later release, or is damaged."),
    (r"(?:Can't compute size for|Compute Shape Error for) (\d+)", ("B716",),
     "The model uses the operator {op}, which this runtime does not have."),
    (r"Compute Shape Error", ("B716", "B736"),
     "An operator got shapes that it does not take, or does not exist in this runtime."),
    (r"weightLength is 0", ("B730", "B781"), "The weights end before the model does: the file is cut off or of another model."),
    (r"Create execution error : (\d+)", ("B716", "B730"),
     "This runtime cannot run the operator {op}: it does not know the operator or one of its functions, or its weights are "
     "missing."),
    (r"Don't support type \[(.*?)\]", ("B716",), "The model uses an operator that this runtime does not have."),
    (r"RoPE: input must be C4", ("B716",), "The model feeds the operator RoPE in a layout that this runtime does not take."),
    (r"Alloc Bias .*Not Enough Memory", ("B781",), "A matrix of the model has no bias in the weight file where it should."),
    (r"LLM weight file not found|weight file not found", ("B723",), "The weight file is not beside the model."),
    (r"Unable to open (?:llm_)?config file", ("B723",),
     "A configuration file is not where the program looks for it; the runtime goes on with defaults that fit no model."),
    (r"Failed to open embedding file", ("B729", "B728"),
     "There are no embedding rows where the runtime looks for them, so it computes with uninitialized memory."),
    (r"Failed to load tokenizer|tokenizer.* not found", ("B731",), "The tokenizer is missing, or of a form that came later."),
    (r"(?:LLM )?model file not found", ("B723",), "The file llm.mnn is not in the folder."),
    (r"!{4,}", ("B717", "B728", "B782", "B726"),
     "All logits are the same or not numbers, so the first token of the vocabulary wins every time."),
    (r"libMNN_Express|Load module failed|Create module error", ("B712", "B716", "B730"),
     "The model was not loaded, and the next call crashed for it; the lines before say why."),
)  # fmt: skip
"""Messages of ``llm.cpp``, ``PipelineModule.cpp``, ``Pipeline.cpp`` and others, the most telling first."""


def causes_in(text: str) -> Iterator[Cause]:
    """What the messages of the runtime in a text mean, the most telling first; nothing where none is known."""
    for pattern, codes, meaning in _MESSAGES:
        found = re.search(pattern, text)
        if found is not None:
            words = [word or "" for word in found.groups()]
            operator = OPS.get(int(words[0]), f"number {words[0]}") if words and words[0].isdigit() else ""
            yield Cause(found[0], codes, meaning.format(*words, op=operator))
