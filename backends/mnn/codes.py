"""Help texts of the diagnostic codes that only MNN's rooms raise; see `ir.base.codes`."""

from __future__ import annotations

CODES: dict[str, str] = {
    "B640": "The folder has no tokenizer.json. Load the tokenizer with transformers and save_pretrained it to get one.",
    "B641": "A tokenizer file cannot be read, is not valid JSON, or lacks a part that every such file has.",
    "B642": "MNN has no such vocabulary model, or no equal of one of its options. It runs BPE, Unigram, WordPiece.",
    "B643": "MNN cannot express this text normalization.",
    "B644": "MNN cannot express this pre-tokenizer (how text is cut into words).",
    "B645": "MNN's regular expressions lack a construct of the word pattern, so words would be cut elsewhere.",
    "B646": "MNN cannot express this decoder (how tokens become text again).",
    "B647": "An added token cannot be matched as the tokenizer matches it, or has no usable id or text.",
    "B648": "The post-processor, which adds ids such as BOS, is of an unknown kind or names unknown tokens.",
    "B649": "The vocabulary or the merge list contradicts itself, or a token is too long to be stored.",
    "B650": "No single chat template can be chosen, or it is not text.",
    "B651": "The tokenizer cannot be written as text for MNN 3.4, whose reader needs tokens that it lacks.",
    "B652": "A token id in generation_config.json or config.json is not a whole number from 0 on.",
    "B653": "The model's vocabulary is smaller than the tokenizer's: some tokens would have no embedding.",
    "B655": "The file is not a tokenizer of MNN, or its header is damaged.",
    "B656": "The tokenizer file ends too early, has bytes left over, or holds a part of unknown kind.",
    "B657": "The tokenizer file breaks a rule that MNN relies on unchecked, such as sorted entries or ids in range.",
    "I132": "The graph has an operator that is not in the form that the MNN backend writes.",
    "B660": "The MNN wheel, whose converter writes .mnn files, is missing from the interpreter asked to convert.",
    "B661": "The MNN converter refused its input or wrote nothing; its own messages follow.",
    "B662": "The MNN converter crashed. It does so on operators or value kinds it does not know and on damaged files.",
    "B663": "The MNN converter did not finish within its time limit and was stopped.",
    "B664": "The MNN converter skipped fields it does not know, so the file would not say what was asked for.",
    "B665": "The .mnn file to be read does not exist.",
    "B666": "The interpreter for a child process cannot be started: no such file, or not executable.",
    "B667": "The MNN runtime crashed or left early while it loaded or ran the model; its last messages follow.",
    "B668": "The MNN runtime did not finish within its time limit and was stopped.",
    "B669": "The MNN runtime raised an error for one of the actions it was asked for.",
    "B670": "The environment of an MNN release could not be made: no network, or no wheel for this Python or platform.",
    "B671": "The folder of an MNN release exists but holds no working environment of that release.",
    "B696": "The graph has a fused operator that a release of the target lacks; fuse-mnn was told to use it.",
    "B697": "A release of the target computes linear layers wrong whose weights are stored in this width, block or form.",
    "P370": "legalize-mnn knows no MNN form of this operator.",
    "P371": "A reshape would have to work out more than one size at run time, which MNN's Reshape cannot.",
    "P372": "A matrix product of two computed values; legalize-mnn lowers products with stored weights only.",
    "P373": "The operator has an MNN form, but not with these attributes or operands.",
    "Q470": "The logits of a reference cannot be kept on disk.",
    "Q471": "The runtime loses another amount to its quantized activations than the model of it predicts.",
    "B600": "The target is neither 'portable' nor a known MNN release.",
    "B601": "A matrix has more elements than MNN's loader can count (2^31 - 1).",
    "B602": "The embedding table is stored in a form whose rows no MNN release reads.",
    "B603": (
        "Half-float scales are loaded by MNN 3.6.0 and later; a release of the target is older and would read garbage."
    ),
    "B604": (
        "A matrix that came quantized has scales or codes that the weight file has no form for: scales are for the matrix, "
        "its rows, or blocks that divide a row."
    ),
    "B610": "The graph holds an operator for which the MNN writer has no encoding.",
    "B611": "MNN has no tensors or constants of this element type, and no inputs of unknown rank.",
    "B620": "A file of the model directory cannot be created or written: no room, no permission, or a failing disk.",
    "B621": "A weight holds NaN or infinity. The checkpoint is damaged or was trained into overflow.",
    "B680": "The model directory lacks a file, or one of its JSON files is damaged.",
    "B681": "The weight file is shorter than the model says. It was truncated or belongs to another model.",
    "B682": (
        "The header of a stored weight disagrees with the model. The weight file belongs to another model or "
        "is damaged."
    ),
    "B683": (
        "What was written decodes to other numbers than were meant. This is a fault of the compiler or of the disk."
    ),
    "V700": (
        "The installed MNN computes other logits than the stored weights give. The model would be wrong on "
        "this release."
    ),
    "V701": "Quantization changes the model's predictions more than is allowed for the chosen widths.",
    "B700": "A target is 'portable', one MNN release, or version clauses such as >=3.4,<3.6 that some release fits.",
    "B701": "The releases of the target feed a model different inputs, so no single model is right on all of them.",
    "B702": "A release of the target misreads embedding rows stored in this form. Give the embedding a file of its own.",
    "B710": "The file is not an MNN model, or it is damaged: an offset in it leads outside the file or nowhere.",
    "B711": "The model file is missing, empty, or cannot be read.",
    "B712": "The model needs an input that a release does not feed. Loading prints that the tensor is input but not found.",
    "B713": "A release feeds an input that the model does not have. Without logits_index the first generated token is wrong.",
    "B714": "The model lacks an output that the runtime reads, so loading fails.",
    "B715": "Operators of the model are not in topological order, so the runtime does not find a tensor.",
    "B716": "The model uses an operator, parameter kind or function that a release does not have.",
    "B717": "The model has half-float scales, which releases before 3.6.0 read as garbage.",
    "B718": "A LayerNorm works on a packed tensor, which releases before 3.6.1 normalize along the wrong axis.",
    "B719": "A LayerNorm has an inline gamma and no beta; the runtime then ignores gamma.",
    "B720": "Attention is used in a form, or with a setting, that a release ignores or crashes on.",
    "B721": "quantScale of a quantized weight is absent or 0, so the runtime reads zeros.",
    "B722": "Blocks of an odd size give garbage when memory is low: no multiple of 4, or of 8 with dynamic_option 2.",
    "B723": "A file of the model directory is missing or cannot be read.",
    "B724": "A configuration key is unknown, stands twice, or has different values in the two files.",
    "B725": "A setting is spelled in a way that some releases do not read; they use defaults.",
    "B726": "attention_mask is not 'float'. The default 'int' gives wrong logits once a history exists.",
    "B727": "llm_config.json contradicts the graph or itself.",
    "B728": "tie_embeddings is spelled, or points, in a way that a release does not understand: embedding rows are garbage.",
    "B729": "There are no embedding rows, or fewer than the vocabulary has.",
    "B730": "The weight file is shorter than the offsets in the model. It was cut off or belongs to another model.",
    "B731": "The tokenizer file is missing or in a form that a release does not read.",
    "B732": "An ONNX file was given; the runtime loads MNN model directories.",
    "B733": "The contract of the model does not promise a release that was asked about.",
    "B734": "The wheel of a release has no language-model runtime; it can be had by building MNN from source.",
    "B735": "A real run had another outcome than the doctor's verdict.",
    "B736": "position_ids is read in a way that fits another number of axes than the release feeds.",
    "B737": "MoE gets expert numbers without a leading axis, at which MNN 3.4.0 crashes.",
    "B738": "The tokenizer may be of another model: more or far fewer ids than rows, or no token that ends answers.",
    "B741": "Only a model directory whose configuration can be read can be repaired.",
    "B742": "A file that a repaired model needs, the tokenizer or the embedding rows, is missing from the original.",
    "B743": "The model is an MNN model already. The command repair writes such a model again for other releases.",
    "B744": (
        "No tokenizer belongs to the model. With --tokenizer none the directory runs on token ids only; its tokenizer file "
        "then holds a token for each id, because the engine loads no model without one."
    ),
    "B760": (
        "MNN crashed, or raised an error, when it sampled tokens with the settings that would be written. They come from "
        "generation_config.json of the checkpoint."
    ),
    "B761": "A setting for generation has no equal on some releases of the target, where other tokens may come.",
    "B762": "No token ends generation, so every answer goes on until the limit on its length.",
    "B763": "A token that should end generation has no row in the embedding, or is no token of the tokenizer.",
    "B764": "MNN does not end generation at a token at which it should.",
    "B765": "MNN sampled a token that the settings for generation exclude.",
    "B766": "A token has another id than a file says, as in transformers, or is left out for want of a row in the embedding.",
    "B767": "A sampler of the configuration crashes a release at the first token, or divides by a temperature of 0.",
    "B770": "A release makes another text of some chats than the original chat template does.",
    "B771": "A release crashes or hangs while it renders the chat template.",
    "B772": "The chat template cannot be run as the original implementation runs it, so nothing is known of chats.",
    "B755": "The child process that runs the model on MNN crashed, left, or could not load the model.",
    "B756": "The child process that runs the model on MNN gave no sign of life for so long that it was stopped.",
    "B757": "MNN makes no tokens of a prompt, or none in answer to it, or its Python binding raised an error.",
    "V702": "The installed MNN gives other numbers than the stored weights or the original model give.",
    "B780": (
        "A configuration or a link leads to a file outside of the model's folder. It is neither read nor copied, and it "
        "would be missing on the device."
    ),
    "B781": "The weight file is not of this model, or damaged: matrices begin with other shapes than the model says.",
    "B782": "Scales, norms, weights or embedding rows are numbers that no model has: NaN, infinity, zeros, other magnitudes.",
    "B783": "A file of the model is a Git LFS pointer: the repository was cloned without its large files.",
    "B786": (
        "tokenizer_config.json has a setting by which some programs read texts otherwise than tokenizer.json says, which "
        "is what the written tokenizer follows."
    ),
    "B787": "The text to measure perplexity on is shorter than what is measured at once, so no perplexity is told.",
    "F642": "A weight of the MNN model lies beyond the end of the weight file. The file is cut off or of another model.",
    "F643": "A weight or constant of the MNN model is in a form that is not read back.",
    "F644": "The MNN model holds an operator, or a form of one, that cannot be brought back into the IR.",
    "F645": "A size that the MNN model computes while running cannot be worked out from the graph.",
    "F646": "The MNN file is not a language model: token rows or logits are missing, or operators are out of order.",
    "U905": "The pipeline leaves operators in the graph that MNN does not have, so no model can be written.",
    "U906": "Verification runs the model on MNN, and the MNN package is not installed.",
    "U950": "The file is neither a model directory, nor an .mnn file, nor a readable ONNX model.",
    "U955": "What was given holds no MNN model: a checkpoint, a GGUF file, an archive. The hint says which command takes it.",
    "U953": "The repaired model cannot be run as asked: no release that it runs on is installed or has an environment.",
    "U970": "None of the MNN releases asked for can be had: they are not installed and cannot be downloaded.",
    "U971": "There is no MNN release of this number whose wheel has the language-model runtime.",
    "U990": "The folder to run holds no language model that was compiled for MNN.",
    "U991": "The MNN release to run the model on is not installed and has no environment.",
    "U994": "The prompt, or the conversation so far, is longer than the positions that the model has.",
    "U954": "The repaired model was written and could not be compared with the original, so nobody knows whether it is right.",
}
