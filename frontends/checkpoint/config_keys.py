"""What a key of ``config.json`` weighs that the frontend does not read.

The keys are those of the configuration classes of the supported families in ``transformers``, of the classes' common
base (its releases 4 and 5), and those that tools for training, conversion and serving leave in such files. A key in
no table is unknown: nobody here can say whether it changes what the model computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from frontends.configuration.class_defaults import ClassDefaults, class_defaults
from frontends.configuration.keys import Keys, shown
from frontends.families.scheme import Family
from ir.base.diag import Diagnostic, LadingError

Weight = Literal["numbers", "training", "bookkeeping", "unknown"]
"""Changes the numbers; matters to training alone; changes nothing that is computed; nobody knows."""

HONOURED: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
}
"""Keys by which the reference implementation, or code that is published with checkpoints, changes the computation of any
family, with the values (besides null) that do not."""

REASONS = {
    "add_cross_attention": "the model reads a second sequence then",
    "is_causal": "every token then sees those after it too, as in models that make embeddings",
    "use_bidirectional_attention": "every token then sees those after it too, as in models that make embeddings",
}
"""What they mean."""

ELSEWHERE: dict[str, tuple[object, ...]] = {
    "alibi": (False,),
    "attention_bias": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "dim_model_base": (),
    "dual_chunk_attention_config": ({},),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (),
    "hidden_activation": (),
    "kv_lora_rank": (0,),
    "layer_norm_eps": (),
    "layer_norm_epsilon": (),
    "layer_types": (["full_attention"],),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_bias": (False,),
    "n_routed_experts": (0, 1),
    "no_rope_layers": ([], [1]),
    "norm_eps": (),
    "norm_type": ("rmsnorm", "rms_norm"),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "partial_rotary_factor": (1,),
    "q_lora_rank": (0,),
    "qk_layernorm": (False,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "rope_interleaved": (False,),
    "rope_ratio": (1,),
    "rotary_dim": (),
    "rotary_pct": (1,),
    "scale_depth": (),
    "scale_emb": (1,),
    "sliding_window": (),
    "use_mrope": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
}
"""Keys that change the computation in some families, with the values (besides null) that do not; a list stands for any
number of its only element. In a family whose row does not read such a key the reference implementation ignores it; so
does this reader, with a warning."""

ROPE_HONOURED: dict[str, tuple[object, ...]] = {
    "alpha": (1,),
    "attn_factor": (1,),
    "extrapolation_factor": (1,),
    "llama_4_scaling_beta": (0,),
}
"""The same for keys of a rope record that no kind here reads."""

TRAINING = frozenset(
    """
    attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout dropout emb_dropout_prob
    embd_pdrop gradient_checkpointing hidden_dropout hidden_dropout_prob init_std initializer_factor
    initializer_range label_smoothing layerdrop loss_type mlp_dropout neftune_noise_alpha output_router_logits
    resid_pdrop residual_dropout rope_theta_base_for_training router_aux_loss_coef router_jitter_noise
    router_z_loss_coef use_bfloat16 z_loss
    """.split()
)
"""Keys that training alone reads."""

BOOKKEEPING = frozenset(
    """
    architectures attn_implementation bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id dtype eos_token_id finetuning_task id2label is_decoder is_llama_config keys_to_ignore
    label2id max_sequence_length max_window_layers model_max_length name_or_path num_labels num_mtp_layers
    num_nextn_predict_layers output_attentions
    output_hidden_states pad_token_id prefix pretraining_tp problem_type pruned_heads return_dict sep_token_id
    seq_length task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torch_dtype torchscript
    transformers.js_config transformers_version unk_token_id unsloth_fixed unsloth_version use_cache
    use_flash_attention use_flash_attn use_return_dict use_sliding_window

    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length
    max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p
    typical_p
    """.split()
)
"""Keys that change nothing of what a text model computes: names, number formats, defaults of generation (which are read
from ``generation_config.json``), and switches of layers that the family's windows do not ask."""

ROPE_BOOKKEEPING = frozenset("finetuned max_position_embeddings mrope_interleaved mrope_section xdrope_section".split())
"""The same for keys of a rope record: sections of a head that pictures and films turn otherwise are all turned alike by
text."""

INNER = ("text_config", "llm_config", "language_config", "decoder", "generator", "text_encoder")
"""Records that hold the configuration of a language model inside another one."""

CHECKED = ("compression_config", "is_encoder_decoder", "model_type", "per_layer_config", "quantization_config")
"""Keys that are looked at before any family is."""

OTHER_MODEL = {
    "architectures": "the output of that class is something else; what is compiled is a language model of this family",
    "auto_map": "code of the checkpoint may compute something else; it is not run",
}
"""Keys that name another model, and what to know of them."""

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How names of architectures end that compute what is compiled."""


def weigh(key: str, value: Any) -> Weight:
    """What a key that is not read weighs."""
    if key == "architectures":
        return "bookkeeping" if _causal(value) else "unknown"
    if key == "auto_map":
        return "unknown" if value else "bookkeeping"
    if key in HONOURED or key in ELSEWHERE:
        return "bookkeeping" if neutral(value, HONOURED.get(key) or ELSEWHERE.get(key, ())) else "numbers"
    if key in TRAINING:
        return "training"
    return "bookkeeping" if key in BOOKKEEPING or key.startswith("_") or key.endswith("_token_id") else "unknown"


def weigh_rope(key: str, value: Any) -> Weight:
    """What a key of a rope record weighs that no kind of rope reads."""
    if key in ROPE_HONOURED:
        return "bookkeeping" if neutral(value, ROPE_HONOURED[key]) else "numbers"
    return "bookkeeping" if key in ROPE_BOOKKEEPING else "unknown"


def neutral(value: Any, harmless: tuple[object, ...]) -> bool:
    """True for null and for the values of a table's row."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[:1]
    return value is None or value in harmless


def _causal(value: Any) -> bool:
    names = value if isinstance(value, list) else [value] if value else []
    return all(isinstance(name, str) and name.endswith(CAUSAL) for name in names)


@dataclass
class Unread:
    """The keys of one file that were not read: where they stand, and what they weigh.

    Attributes:
        path: the file, for messages.
        family: ``model_type`` of the family.
        prefix: what stands before keys in messages.
        keys: names by weight; those of inner records with the record's name before a dot.
        errors: of keys that change the numbers.
        warnings: of keys that change the numbers of other families, and of unknown ones.
    """

    path: str
    family: str
    prefix: str = ""
    keys: dict[Weight, list[str]] = field(default_factory=dict)
    errors: list[Diagnostic] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)

    def note(self, key: str, weight: Weight) -> None:
        """Keep a key under its weight."""
        self.keys.setdefault(weight, []).append(key)

    def refuse(self, key: str, value: Any, why: str = "the model would compute something else") -> None:
        """A key that changes the numbers and would be ignored."""
        self.note(key, "numbers")
        message = f"{key} is {shown(value)}, which this compiler does not read: {why}"
        hint = f"where the model is known to ignore it, remove {key} from config.json"
        self.errors.append(Diagnostic("F561", message, f"{self.path}:{self.prefix}{key}", hint))

    def ignored(self, key: str, value: Any) -> None:
        """A key that other families read; the reference implementation of this one does not."""
        self.note(key, "numbers")
        message = f"{key} is {shown(value)}, but the {self.family} family does not use it"
        self.warnings.append(Diagnostic("F560", message, f"{self.path}:{self.prefix}{key}", severity="warning"))

    def other_model(self, key: str, value: Any) -> None:
        """A key by which the checkpoint is, or may be, another model than the one that is compiled."""
        self.note(key, "unknown")
        hint = "--verify full compares with transformers, where that and torch are installed"
        message = f"{key} is {shown(value)}: {OTHER_MODEL[key]}"
        self.warnings.append(Diagnostic("F562", message, f"{self.path}:{self.prefix}{key}", hint, "warning"))

    def finish(self) -> None:
        """Warn of unknown keys, all in one; raise the errors, if there are any."""
        unknown = [key for key in self.keys.get("unknown", []) if key not in OTHER_MODEL]
        if unknown:
            several = len(unknown) > 1
            message = f"nobody knows what {'these keys do' if several else 'this key does'}: {listed(unknown)}"
            hint = "--verify full compares with transformers, where that and torch are installed"
            self.warnings.append(Diagnostic("F562", message, self.path, hint, "warning"))
        if self.errors:
            raise LadingError.of(self.errors)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Some names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:60] for name in names[:most]) + rest


def unread(
    raw: Mapping[str, Any],
    keys: Keys,
    model_type: str,
    row: Family,
    known: ClassDefaults,
    outer: Mapping[str, Any] | None = None,
) -> Unread:
    """Weigh every key of a configuration that was not asked for, inner records of language models included.

    Args:
        raw: the record of the language model.
        keys: what was read of it.
        model_type: of the language model.
        row: its family.
        known: what its class in ``transformers`` declares.
        outer: the whole file, where it describes a model of several towers.
    """
    found = Unread(keys.path, model_type, prefix=keys.prefix)
    for key, value in raw.items():
        if key in keys.seen or key in CHECKED or key in row.unread:
            continue
        if key in INNER and isinstance(value, dict):
            _weigh_inner(found, raw, key, keys.seen)
        else:
            _weigh_one(found, key, value, row, known, model_type)
    if outer is not None and keys.prefix:
        for key in outer:
            if key != "tie_word_embeddings" and key not in CHECKED and not isinstance(outer[key], dict):
                found.note(key, "bookkeeping")
    return found


def _weigh_one(found: Unread, key: str, value: Any, row: Family, known: ClassDefaults, model_type: str) -> None:
    weight = weigh(key, value)
    if key in row.fixed:
        if neutral(value, row.fixed[key]):
            found.note(key, "bookkeeping")
        else:
            found.refuse(key, value)
    elif key == "auto_map" and not class_defaults(model_type).defaults:
        found.note(key, "bookkeeping")  # the row says what that code computes: the library has none for the type
    elif weight == "unknown" and key in OTHER_MODEL:
        found.other_model(key, value)
    elif weight == "numbers" and key in HONOURED:
        found.refuse(key, value, REASONS[key])
    elif key in known.defaults and weight in ("numbers", "unknown"):
        # The class declares it, and no part reads it: only what the class gives to an absent key is computed.
        if value is None or value == known.defaults[key]:
            found.note(key, "bookkeeping")
        else:
            found.refuse(key, value)
    elif weight != "numbers":
        found.note(key, weight)
    elif known.defaults or row.defaults:
        found.ignored(key, value)
    else:
        found.refuse(key, value)


def _weigh_inner(found: Unread, raw: Mapping[str, Any], record: str, seen: Collection[str]) -> None:
    """Entries of an inner record that say something else than the top level does."""
    for key, value in raw[record].items():
        if key in raw and raw[key] == value:
            continue
        if key in seen or weigh(key, value) == "numbers":
            found.refuse(f"{record}.{key}", value, "only keys at the top level count")
        else:
            found.note(f"{record}.{key}", weigh(key, value))


__all__ = ["ELSEWHERE", "Unread", "Weight", "listed", "neutral", "unread", "weigh", "weigh_rope"]
