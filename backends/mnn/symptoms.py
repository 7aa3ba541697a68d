"""What MNN prints or does when something is wrong, and why: rows for ``lading explain``.

Every wording is one of MNN 3.4.0 to 3.6.1, at the place named; what each means was tried on the releases.
"""

from __future__ import annotations

from backends.symptoms import Symptom

_REPAIR = ("lading repair MODEL -o OUT", "writes it in forms that every release from 3.4.0 on runs")
_COMPILE = ("lading compile CHECKPOINT -o OUT", "makes the folder anew")
_FROM_ONNX = (
    "lading compile FILE.onnx -o OUT",
    "where it was converted from ONNX: declares what the file reads and never makes, and writes a model that runs",
)


def _doctor(what: str, options: str = "") -> tuple[str, str]:
    return f"lading doctor MODEL{options}", what


SYMPTOMS = (
    Symptom(
        "logits_index is not fed",
        (r"tensor\s*\[\s*['\"]?logits_index['\"]?\s*\]\s*is input but not found",),
        "The model waits for the input 'logits_index', and what loads it does not feed one: loading fails, and the "
        "next call crashes.",
        (
            "the application has an MNN before 3.1.0, which feeds three inputs; models are exported with four",
            "the application loads llm.mnn itself with a list of inputs in which logits_index is missing",
            "the graph that was converted reads logits_index and declares it nowhere",
        ),
        (
            ("lading repair MODEL -o OUT --target 3.0.0", "writes it without this input, for MNN 3.0"),
            _REPAIR,
            _FROM_ONNX,
            _COMPILE,
            _doctor("tells which of them it is; it takes the folder, an .mnn file or an ONNX file"),
        ),
        (
            "move the application to MNN 3.4.0 or later, which feeds it",
            "feed it: int32[1], -1 for the logits of the last position, 0 for those of all",
        ),
        ("B712", "B684", "B685"),
        source="express/module/PipelineModule.cpp",
    ),
    Symptom(
        "an input is not fed",
        (r"tensor\s*\[\s*(?P<tensor>[^\]\n]*?)\s*\]\s*is input but not found",),
        "The model needs the tensor '{tensor}', which is neither fed nor computed before it is read: loading fails, and "
        "the next call crashes.",
        (
            "the model was exported for another release, or for an application that feeds '{tensor}' itself",
            "it was converted from an ONNX file for another runtime, which feeds a history or an embedding itself, or "
            "from one that reads '{tensor}' and declares it nowhere",
            "the operators of the file are not in the order in which they are computed",
        ),
        (
            _REPAIR,
            _FROM_ONNX,
            _COMPILE,
            _doctor("names the input, and the releases that feed it; it takes ONNX files too"),
        ),
        codes=("B712", "B684", "B715"),
        source="express/module/PipelineModule.cpp",
    ),
    Symptom(
        "an output is missing",
        (r"Can't find output (?P<tensor>\S+?) from the model", r"Can't find enough output from the model"),
        "The runtime asks for an output that the model does not have: loading fails.",
        (
            "the export names its logits otherwise",
            "llm_config.json has hidden_states: true and the model has no such output",
            "the converter wrote an empty graph and reported success, as it does for some quantized ONNX files",
        ),
        (_COMPILE, _FROM_ONNX, _doctor("says which of them it is")),
        codes=("B714", "B688"),
        source="express/module/PipelineModule.cpp",
    ),
    Symptom(
        "the converter loses a tensor",
        (r"Check it out ==> (?P<node>\S+) has empty input, the index is (?P<place>\d+)",),
        "MNN's converter finds nothing for operand {place} of '{node}'. That is harmless where the operand may be left "
        "out; otherwise the ONNX file reads a tensor that nothing makes, and the file that is written crashes.",
        (
            "an exporter or a tool that edits graphs left the tensor without a declaration, as with logits_index",
            "the operand is optional and was left out on purpose",
        ),
        (
            ("lading doctor FILE.onnx", "names the tensor, who reads it and as what; says nothing where all is well"),
            _FROM_ONNX,
        ),
        codes=("B684",),
        source="tools/converter/source/onnx/onnxConverter.cpp",
    ),
    Symptom(
        "the converter refuses operators",
        (r"These Op Not Support: (?P<ops>[^\n]*\S)",),
        "MNN's converter does not know {ops}, and writes nothing.",
        ("the file was exported for onnxruntime or with operators that are newer than the converter",),
        (_FROM_ONNX, ("lading doctor FILE.onnx", "lists them by release, and says whether they can be compiled")),
        codes=("B687",),
        source="tools/converter/source/common/writeFb.cpp",
    ),
    Symptom(
        "loading corrupts memory",
        (
            r"double free or corruption", r"free\(\): invalid", r"malloc\(\): (?:corrupted|invalid|unaligned)",
            r"corrupted size vs\. prev_size", r"Scudo ERROR", r"invalid chunk state", r"heap corruption detected",
            r"munmap_chunk\(\): invalid",
        ),
        "Memory is written out of bounds, most often while a model is loaded in which an operator reads a tensor that "
        "does not exist.",
        (
            "the ONNX file that was converted reads a tensor, such as logits_index, that nothing makes: the converter "
            "writes number -1 for it and reports success",
            "llm.mnn.weight is cut off or of another export",
        ),
        (
            ("lading repair MODEL -o OUT", "declares a lost choice of rows again, where that is it"),
            _FROM_ONNX,
            _doctor("names the operator, without loading anything; it takes the .mnn file alone or an ONNX file too"),
            _COMPILE,
        ),
        codes=("B685", "B686", "B684"),
        source="express/module/PipelineModule.cpp",
    ),
    Symptom(
        "the file is refused",
        (r"Invalidate buffer to create MNN Module", r"Invalid net, for null oplist or tensorName"),
        "The release does not accept llm.mnn as a model.",
        (
            "the file was written by a newer MNN and has operators whose parameters this release does not know",
            "the file is cut off, or is something else",
        ),
        (_REPAIR, _COMPILE, _doctor("tells the two apart")),
        codes=("B710", "B716"),
        source="source/core/OpCommonUtils.cpp",
    ),
    Symptom(
        "an operator is not there",
        (r"Don't support type \[(?P<op>[^\]\n]*)\]",),
        "The release has no operator '{op}' on this device: the first call fails, and then crashes.",
        (
            "the model was exported for a newer MNN, with fused operators",
            "this build of MNN leaves the operator out, as builds without -DMNN_SUPPORT_TRANSFORMER_FUSE=ON leave "
            "Attention out",
        ),
        (_REPAIR, _COMPILE, _doctor("names the operators that each release lacks")),
        codes=("B716",),
        source="source/backend/cpu/CPUBackend.cpp",
    ),
    Symptom(
        "a size cannot be computed",
        (
            r"Can't compute size for (?P<op>\d+)", r"Compute Shape Error for (?P<op>[\w./-]+)",
            r"Error to compute shape for (?P<op>[\w./-]+)", r"Reshape error: -?\d+ -> -?\d+",
        ),
        "An operator gets sizes that it cannot work with, or the release does not know the operator.",
        (
            "the model was exported for a newer MNN: 305 is LinearAttention, 306 is RoPE",
            "position_ids or the mask have another number of axes than the release feeds",
            "the tokenizer, llm_config.json and llm.mnn are of different exports",
        ),
        (_REPAIR, _COMPILE, _doctor("names the operator and the releases")),
        codes=("B716", "B727", "B736"),
        source="source/shape/SizeComputer.cpp, source/geometry/GeometryComputerUtils.cpp",
    ),
    Symptom(
        "weights are damaged",
        (r"weightLength is 0", r"Read quan weights error", r"don't has alpha but has index", r"No weight data"),
        "Weights cannot be read where llm.mnn says that they are.",
        (
            "llm.mnn.weight is cut off: the copy to the device, or its disk, stopped early",
            "llm.mnn.weight is of another export than llm.mnn",
        ),
        (_COMPILE, _doctor("tells whether the files are whole and belong together")),
        ("copy llm.mnn and llm.mnn.weight again, from one and the same export",),
        ("B681", "B682", "B730", "B781", "C811"),
        source="source/core/ConvolutionCommon.cpp",
    ),
    Symptom(
        "an operator cannot be created",
        (r"Create execution error(?: :)?(?: (?P<op>\d+))?", r"Pipeline: execution invalid"),
        "The release knows an operator of the model but cannot set it up, or there is no memory for its weights.",
        (
            "the model has forms of a newer release: fused activations, Attention with three inputs, half-float scales",
            "llm.mnn.weight is cut off or of another export",
            "there is not enough memory, which a smaller block or width would not need",
        ),
        (_REPAIR, _COMPILE, _doctor("names the operator and the releases")),
        codes=("B716", "B717", "B720", "B730"),
        source="source/core/Pipeline.cpp",
    ),
    Symptom(
        "there is not enough memory",
        (
            r"Alloc (?:memory|buffer) error", r"Alloc memory for const tensor error", r"Not enought? memory",
            r"Memory not enought?", r"_allocTensor failed", r"\bout of memory\b", r"(?:Mmap|MNNMmapFile) failed",
            r"Grow mmap cache file", r"Set File size \d+ error", r"\blowmemorykiller\b", r"\bOOM\b",
        ),
        "The device has no memory, or its temporary folder no room, for the model.",
        (
            "the weights alone are as large as llm.mnn.weight, and with memory 'normal' or 'high' they are expanded",
            "use_mmap is on and tmp_path is not writable, or full",
        ),
        (
            ("lading compile CHECKPOINT -o OUT --max-size 300MB", "makes the weight file that small"),
            ("lading ladder CHECKPOINT", "measures size, memory and quality of every precision"),
        ),
        ('set "memory": "low" in config.json, and tmp_path to a folder that the application may write',),
        source="source/core/ConvolutionCommon.cpp, source/core/BufferAllocator.cpp, source/backend/cpu/CPUBackend.cpp",
    ),
    Symptom(
        "a file is missing",
        (
            r"(?:tokenizer file|LLM model file|LLM weight file) not found", r"Failed to open [^\n]*permission denied",
            r"\bOpen [^\n]{1,200}? error\b", r"Can't open file", r"Unable to open (?:llm_)?config file",
            r"Failed to open (?:the )?(?:embedding )?file", r"Failed to open embedding",
        ),
        "A file of the model is not where the configuration says, or may not be read.",
        (
            "not the whole folder was copied, or config.json of another folder is opened",
            "a release before 3.5.0 opens config.json with names of newer files; it has config.3.4.json of its own",
            "the application may not read the place, as on the shared storage of a phone",
        ),
        (_COMPILE, _doctor("names the file that is missing"), _REPAIR),
        ("copy the whole folder again",),
        ("B723", "B729", "B731", "B783", "C810"),
        source="source/core/FileLoader.cpp, transformers/llm/engine/src/llm.cpp, diskembedding.cpp, llmconfig.hpp",
    ),
    Symptom(
        "the tokenizer does not load",
        (r"Failed to load tokenizer", r"No encoding found for the sequence", r"\[Tokenizer\] Skip"),
        "The tokenizer file is of a kind that the release does not read, or is damaged.",
        (
            "MNN 3.4 was given tokenizer.mtok, which 3.5.0 and later read",
            "the file is of another export, or cut off",
        ),
        (_REPAIR, _COMPILE, _doctor("says which releases read the file")),
        codes=("B731", "B738"),
        source="transformers/llm/engine/src/llm.cpp, tokenizer/tokenizer.cpp",
    ),
    Symptom(
        "garbage",
        (
            r"!{4,}", r"\b(?:garbage|gibberish|nonsense|garbled|mojibake)\b", r"\b(?:random|wrong|same) (?:text|tokens?)\b",
            r"(?P<word>\b\S+\b)(?: (?P=word)){7,}", r"\ufffd{3,}",
        ),
        "The model runs and its numbers are wrong. '!' is token 0 of many vocabularies, chosen when the logits are not "
        "numbers or all alike.",
        (
            "half-float scales on MNN before 3.6.0, a norm on packed tensors before 3.6.1, blocks of an odd size",
            "attention_mask is not \"float\" in llm_config.json, which shows after the first turn",
            "tie_embeddings is spelled for other releases, or the embedding file is missing: rows are garbage",
            "the numbers overflow half precision on a GPU or an ARM CPU",
            "llm.mnn.weight or the tokenizer is of another export",
        ),
        (_REPAIR, _COMPILE, _doctor("says which it is, and runs the model here", " --run")),
        ('set "precision": "high" in config.json, and see whether that is it',),
        ("B717", "B718", "B719", "B721", "B722", "B726", "B728", "B738"),
    ),
    Symptom(
        "the first token is wrong",
        (r"\bfirst (?:generated )?(?:token|word|character) (?:is )?(?:wrong|strange|odd)",),
        "The first token is chosen from the logits of the first position, not of the last.",
        ("the model has no input 'logits_index', which MNN 3.1.0 and later feed",),
        (_REPAIR, _COMPILE),
        codes=("B713",),
    ),
    Symptom(
        "it does not stop",
        (r"\b(?:never|does(?: not|n't)|won't|keeps|endless\w*)\b.{0,20}\b(?:stop\w*|end\w*|generat\w*|answer\w*|talking)\b",),
        "No token that the model produces at the end of its answer counts as an end for the runtime.",
        (
            "the end token stands in generation_config.json or the chat template only, and was not exported",
            "the chat template is not applied: the prompt goes in as raw text",
        ),
        (_COMPILE, _doctor("looks at the tokenizer and the template")),
        codes=("B652", "B762", "B763"),
    ),
    Symptom(
        "a GPU cannot be used",
        (r"Can't Find type=(?P<type>\d+) backend", r"Can't create Runtime"),
        "This build of MNN has no such device, and the CPU takes its place.",
        ("config.json has backend_type 'opencl', 'vulkan', 'metal' or 'cuda', and MNN was built without it",),
        (_doctor("runs the model here on the CPU", " --run"),),
        ('set "backend_type": "cpu" in config.json, or build MNN with the device',),
        source="source/core/Schedule.cpp, source/core/Interpreter.cpp",
    ),
    Symptom(
        "a step failed",
        (
            r"Load module failed", r"Create module error", r"Pipeline Resize error", r"Resize error for type",
            r"Can't run session because not resized", r"\d+ input not ready", r"Code=\d+ in on\w+",
        ),
        "The model could not be loaded or prepared; a line before this one says why.",
        (
            "the model needs inputs, operators or files that this release does not have",
            "the weight file is cut off or of another export",
        ),
        (_REPAIR, _COMPILE, _doctor("names what a release lacks")),
        ("give the lines before this one to lading explain",),
        ("B712", "B716", "B730"),
        follows=True,
        source="transformers/llm/engine/src/llm.cpp, express/module/PipelineModule.cpp, source/core/Pipeline.cpp",
    ),
    Symptom(
        "a crash",
        (
            r"Segmentation fault", r"SIG(?:SEGV|ABRT|BUS|FPE|ILL)\b", r"signal (?:6|7|8|11)\b", r"SEGV_MAPERR",
            r"lib(?:MNN\w*|llm|mnnllmapp)\.so", r"Floating point exception", r"EXC_BAD_ACCESS", r"null pointer dereference",
            r"Bus error", r"Aborted \(core dumped\)", r"Illegal instruction",
        ),
        "MNN reports a failed load by a printed line and crashes at the next call; without such a line, it computed with "
        "something that it takes for granted.",
        (
            "loading failed and nobody looked: the lines before the crash (logcat on Android) name the reason",
            "operators or forms of another release: RoPE, Attention with three inputs, half-float scales (SIGFPE)",
            "the weight file is cut off or of another export; on MNN 3.4 nothing is printed then",
            "the tokenizer is in a form that MNN 3.4 does not read",
            "topK is 0 in config.json",
        ),
        (_REPAIR, _COMPILE, _doctor("runs it here, and says on which releases it crashes", " --run")),
        ("give the lines before the crash to lading explain: as text, as a file, or with - from standard input",),
        ("B712", "B716", "B717", "B720", "B730", "B731", "B737", "B760", "B781"),
        follows=True,
    ),
)  # fmt: skip
"""Rows from the most to the least telling."""

ROWS = {item.name: item for item in SYMPTOMS}
