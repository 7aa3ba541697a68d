"""What the files around a graph say: configuration, embedding rows, weights, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from backends.mnn.doctor.findings import Finding
from backends.mnn.doctor.graph import REPAIR, lacking
from backends.mnn.read.model_folder import Settings, Subject, alpha_form
from backends.mnn.read.net_file import numbers
from backends.mnn.target.releases import Release
from backends.mnn.tokenizer.files.read import read_tokenizer
from backends.mnn.write.configs import CONFIG
from ir.base.diag import LadingError, suggest

_KNOWN = frozenset(
    """
    llm_model llm_weight llm_config tokenizer_file embedding_file base_dir context_file hidden_size layer_nums
    attention_mask attention_type sliding_window is_mrope tie_embeddings attn_scale jinja key_value_shape is_single
    attention_fused bos eos max_position_embeddings model_type backend_type thread_num precision memory power
    sampler_type max_new_tokens reuse_kv all_logits async use_template chunk chunk_limits use_mmap use_cached_mmap
    kvcache_mmap tmp_path dynamic_option attention_mode quant_qkv system_prompt hidden_states block_model lm_model
    embedding_model visual_model audio_model npu_model_dir max_all_tokens prefix_cache_path chat_template
    prompt_template system_prompt_template user_prompt_template assistant_prompt_template enable_debug
    cpu_sme2_neon_division_ratio cpu_sme_core_num is_visual is_audio has_talker has_deepstack talker_model
    talker_embedding_file talker_max_new_tokens talker_speaker predit_model dit_model bigvgan_model spk_dict dit_steps
    dit_solver talker_weight image_size image_size_unit image_max_size image_mean image_norm image_pad vision_start
    vision_end global_image num_grid_per_side vision_id_start_id vision_id_end_id vision_slice_start_id
    vision_slice_end_id mllm temperature topK topP minP tfsZ typical penalty n_gram ngram_factor penalty_sampler
    mixed_samplers speculative_type draft_predict_length draft_match_strictness draft_selection_rule ngram_match_maxlen
    ngram_update lookup_file draft_model mtp_model eagle_model eagle_fc eagle_d2t eagle_depth eagle_topk
    load_disk_embedding_only top_k top_p min_p tfs_z repetition_penalty presence_penalty frequency_penalty
    penalty_window logit_bias banned_tokens timeout_ms prompt_cache mmap_size audio_type audio_pad ple_embed_file
    ple_embed_dim ple_embed_scale ple_quant interleaved audio_start audio_end dflash_model dflash_fc dflash_lmhead
    dflash_block_size dflash_mask_token_id dflash_target_layer_ids
    """.split()
)
"""Keys that some release reads (``llmconfig.hpp``, ``llm.cpp``, ``omni.cpp``, ``sampler.cpp``) or exporters write."""

_PADDING = 0.05
"""Share of a vocabulary that may have no token: checkpoints pad it to round sizes, DeepSeek-V2 by 2.3 %."""

_SNAKE = {"top_k": "topK", "top_p": "topP", "min_p": "minP", "tfs_z": "tfsZ", "repetition_penalty": "penalty"}
_FLOATS = ("temperature", "topP", "minP", "tfsZ", "typical", "penalty", "ngram_factor", "attn_scale")


def file_findings(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """Everything that can be told from the files of a directory."""
    for check in (_readable, _keys, _mask, _contradictions, _embedding, _weights, _tokenizer, _token_count):
        yield from check(subject, releases)


def _every(releases: Sequence[Release]) -> tuple[str, ...]:
    return tuple(release.version for release in releases)


def _readable(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    every = _every(releases)
    for settings in (subject.config, subject.llm_config):
        where = str(subject.folder / settings.name)
        if settings.missing:
            yield Finding("B723", f"{settings.name} is missing", every, "copy the whole folder, or export again", where)
        elif settings.problem:
            yield Finding(
                "B723", f"{settings.name} cannot be read as JSON: {settings.problem}", every, "mend it", where
            )
    if not subject.model_path.is_file():
        yield Finding("B723", f"{subject.model_path.name} is missing", every, "copy it again", str(subject.model_path))


def _keys(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    every = _every(releases)
    for settings in (subject.config, subject.llm_config):
        where = str(subject.folder / settings.name)
        for key in settings.values.keys() - _KNOWN:
            fix = suggest(key, sorted(_KNOWN))
            yield Finding("B724", f"no release reads the key {key!r}", every, fix, where, "warning")
        for key in settings.repeated:
            yield Finding("B724", f"the key {key!r} stands twice", every, "keep one", where, "warning")
    yield from _both_files(subject, releases)
    yield from _spelling(subject, releases)


def _both_files(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    first, second = subject.config.values, subject.llm_config.values
    both = [key for key in first if key in second and first[key] != second[key]]
    if both:
        yield Finding(
            "B724",
            f"{', '.join(both)} stand in both files with different values: config.json wins on 3.4.0 and earlier, "
            "llm_config.json later",
            _every(releases),
            "keep each key in one file",
            str(subject.folder / CONFIG),
            "warning",
        )


def _spelling(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    values, where = subject.config.values, str(subject.folder / CONFIG)
    snake = [key for key, camel in _SNAKE.items() if key in values and camel not in values]
    if old := lacking(releases, lambda release: release.snake_sampler) if snake else ():
        yield Finding(
            "B725", f"{', '.join(snake)} are not read; defaults are used", old,
            f"write {', '.join(_SNAKE[key] for key in snake)} as well", where, "warning",
        )  # fmt: skip
    everything = {**values, **subject.llm_config.values}
    whole = [key for key in _FLOATS if type(everything.get(key)) is int]
    if old := lacking(releases, lambda release: not release.exact_kinds) if whole else ():
        yield Finding(
            "B725", f"{', '.join(whole)} are integers where floats are read; defaults are used", old,
            "write 1.0 for 1", where, "warning",
        )  # fmt: skip


def _mask(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    if subject.config.missing or subject.llm_config.missing or not subject.ops:
        return
    if not any(op.get("type") == "Attention" for op in subject.ops):
        return
    kinds = {release.version: subject.setting(release, "attention_mask") for release in releases}
    bad = tuple(version for version, kind in kinds.items() if kind in (None, "int"))
    if bad:
        yield Finding(
            "B726",
            "attention_mask is not set, and the default 'int' masks wrongly once a history exists: wrong logits without a "
            "message" if None in kinds.values() else "attention_mask is 'int', which masks wrongly once a history exists",
            bad,
            'write "attention_mask": "float" in llm_config.json',
            str(subject.folder / subject.llm_config.name),
        )  # fmt: skip


def _contradictions(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    every, where = _every(releases), str(subject.folder / subject.llm_config.name)
    values = {**subject.config.values, **subject.llm_config.values}
    rows = numbers(subject.inputs.get("input_ids", {}).get("dims"))
    hidden = values.get("hidden_size", 4096)
    if len(rows) == 3 and rows[-1] > 0 and not subject.llm_config.missing and hidden != rows[-1]:
        yield Finding(
            "B727", f"hidden_size is {hidden}, but the model reads embedding rows of {rows[-1]}", every,
            f'write "hidden_size": {rows[-1]}', where,
        )  # fmt: skip
    layers = sum(op.get("type") in ("Attention", "LinearAttention") for op in subject.ops)
    if layers and values.get("layer_nums", layers) != layers:
        yield Finding(
            "B727", f"layer_nums is {values['layer_nums']}, but the model has {layers} attention layers", every,
            f'write "layer_nums": {layers}', where, "warning",
        )  # fmt: skip
    if values.get("attention_type") == "mix" and not values.get("sliding_window"):
        yield Finding(
            "B727", "attention_type is 'mix' without a sliding_window", every, "write the width of the window", where
        )


def _embedding(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    if subject.config.missing or subject.llm_config.missing or "input_ids" not in subject.names:
        return
    tie, where = subject.llm_config.values.get("tie_embeddings"), str(subject.folder / subject.llm_config.name)
    if tie is None:
        yield from _embedding_file(subject, releases)
        return
    forms = tie_forms(subject, tie)
    if forms is None:
        yield Finding(
            "B728", f"tie_embeddings is neither five numbers nor an object: {str(tie)[:60]}", _every(releases),
            "write [weight_offset, alpha_offset, alpha_size, bits, block]", where,
        )  # fmt: skip
        return
    old = lacking(releases, lambda release: forms <= set(release.tie_embeddings))
    if old:
        kind = " and ".join(sorted(forms - {"pairs"})) or "five numbers"
        happens = "read from the embedding file" if subject.embedding_path.is_file() else "uninitialized memory"
        happens = happens if forms & {"object", "six"} else "decoded with other formulas"
        yield Finding(
            "B728",
            f"tie_embeddings is spelled in a way ({kind}) that is not understood; rows are {happens}: garbage without a "
            "message",
            old,
            f"write five numbers and single-precision scales, or {REPAIR}",
            where,
        )
    yield from _tied_place(subject, releases, tie, where)


def tie_numbers(tie: Any) -> list[int] | None:
    """Offset of codes, offset and size of scales, bits and block of either spelling; None when it is neither."""
    if isinstance(tie, dict):
        keys = ("weight_offset", "alpha_offset", "alpha_size", "quant_bit", "quant_block")
        found: list[Any] = [tie.get(key) for key in keys]
    elif isinstance(tie, list) and len(tie) in (5, 6):
        found = tie[:5]
    else:
        return None
    return found if all(type(value) is int and value >= 0 for value in found) else None


def tie_forms(subject: Subject, tie: Any) -> set[str] | None:
    """Names of the forms that a release must read, as in the profiles; None when nothing reads the value."""
    found = tie_numbers(tie)
    if found is None:
        return None
    forms = {"object"} if isinstance(tie, dict) else {"six"} if len(tie) == 6 else set()
    bits, block = found[3:]
    if bits == 16:
        return forms | {"half"}
    form = alpha_form(subject.logits_layer) if subject.logits_layer else None
    pairs = form is None or form[2]
    return forms | {"pairs" if pairs else "scales"} | (set() if block else {"row"})


def _embedding_file(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    path, every = subject.embedding_path, _every(releases)
    if not path.is_file():
        yield Finding(
            "B729", f"there is neither tie_embeddings nor {path.name}: embedding rows are uninitialized memory", every,
            "export again with the embedding, or copy the file", str(path),
        )  # fmt: skip
        return
    layer, hidden = subject.logits_layer, subject.llm_config.values.get("hidden_size", 4096)
    rows = layer["main"].get("common", {}).get("outputCount", 0) if layer and "main" in layer else 0
    if isinstance(hidden, int) and path.stat().st_size < 2 * rows * hidden:
        yield Finding(
            "B729", f"{path.name} has {path.stat().st_size:,} bytes, fewer than {rows:,} rows of {hidden} need", every,
            "copy the file again", str(path),
        )  # fmt: skip


def _tied_place(subject: Subject, releases: Sequence[Release], tie: Any, where: str) -> Iterator[Finding]:
    found = tie_numbers(tie)
    if found is None or not subject.weight_path.is_file():
        return
    offset, alpha, size, bits, _ = found
    nbytes = subject.weight_path.stat().st_size
    if max(offset, alpha + size) > nbytes:
        yield Finding(
            "B728", f"tie_embeddings points behind the end of {subject.weight_path.name} ({nbytes:,} bytes)",
            _every(releases), "the weight file is cut off or of another model", where,
        )  # fmt: skip
    layer = subject.logits_layer
    rows = layer["main"].get("common", {}).get("outputCount", 0) if layer and "main" in layer else 0
    if bits == 4 and rows % 2 and (old := lacking(releases, lambda release: release.odd_tied_int4)):
        yield Finding(
            "B728", f"4-bit embedding rows of an odd vocabulary ({rows:,}) are misread: wrong numbers", old,
            "store the logits matrix with 8 bits, or pad the vocabulary", where,
        )  # fmt: skip


def _weights(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    ends = [(end, op) for op, end in subject.external_ends()]
    if not ends:
        return
    path = subject.weight_path
    size = path.stat().st_size if path.is_file() else None
    last, op = max(ends, key=lambda item: item[0])
    if size is None:
        crash = lacking(releases, lambda release: release.no_weight_file != "crash")
        happens = "the process crashes" if crash == _every(releases) else "loading fails, on 3.4 with a crash"
        yield Finding("B723", f"{path.name} is missing: {happens}", _every(releases), "copy it again", str(path))
    elif last > size:
        yield Finding(
            "B730", f"{path.name} has {size:,} bytes, and {op.get('name') or op.get('type')} ends at {last:,}: a crash",
            _every(releases), "the file is cut off or of another model; copy it again", str(path),
        )  # fmt: skip


def _tokenizer(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    if subject.config.missing or subject.config.problem:
        return
    seen: dict[tuple[str, str], list[str]] = {}
    for release in releases:
        path = subject.tokenizer_path(release)
        problem = _tokenizer_problem(subject.config_of(release), path, release)
        if problem:
            seen.setdefault((str(path), f"{problem}: {release.no_tokenizer}"), []).append(release.version)
    for (place, problem), versions in seen.items():
        yield Finding(
            "B731", problem, tuple(versions), "name a text tokenizer (tokenizer.txt) in the configuration of these releases",
            place,
        )  # fmt: skip


def _tokenizer_problem(settings: Settings, path: Any, release: Release) -> str:
    if not path.is_file():
        return f"the tokenizer file {path.name} named in {settings.name} is missing"
    with path.open("rb") as file:
        head = file.readline(64).split()
    if len(head) != 2 or head[0] != b"430" or not head[1].isdigit():
        return f"{path.name} does not begin like a tokenizer file"
    kind = int(head[1])
    return "" if kind in release.tokenizers else f"{path.name} is of type {kind}, which is not read"


def _token_count(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    layer = subject.logits_layer or {}
    rows = layer.get("main", {}).get("common", {}).get("outputCount", 0)
    paths = {release.version: subject.tokenizer_path(release) for release in releases}
    for path in dict.fromkeys(paths.values()):
        versions = tuple(version for version, own in paths.items() if own == path)
        readers = tuple(release for release in releases if release.version in versions)
        if not path.is_file() or all(_tokenizer_problem(subject.config_of(item), path, item) for item in readers):
            continue
        try:
            count = len(read_tokenizer(path.read_bytes(), str(path)).tokens)
        except LadingError as error:
            message = f"the tokenizer may be damaged: {error.diagnostics[0].message}"
            yield Finding("B731", message, versions, "export the tokenizer again", str(path), "warning")
            continue
        if rows and count > rows:
            yield Finding(
                "B738", f"the tokenizer has {count:,} ids and the model {rows:,} rows: a text may get an id whose embedding row "
                "is read behind the end", versions, "is the tokenizer of another model? copy or export it again",
                str(path), "warning",
            )  # fmt: skip
        elif count < rows * (1 - _PADDING):
            yield Finding(
                "B738", f"the tokenizer has {count:,} ids and the model {rows:,}: ids without a token are printed as nothing",
                versions, "is the tokenizer of another model? copy or export it again", str(path), "warning",
            )  # fmt: skip
