"""What the files around a graph say: configuration, embedding rows, weights, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backends.mnn.doctor.findings import Finding, versions_of
from backends.mnn.doctor.generation import generation_findings
from backends.mnn.doctor.graph import lacking
from backends.mnn.doctor.tied import TiedRows, half_scales, tie_forms, tie_numbers, vocabulary, width
from backends.mnn.read.model_folder import Settings, Subject, is_lfs_pointer
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
    for check in (_places, _pointers, _readable, _keys, _mask, _contradictions, _embedding, _weights, _tokenizer,
                  _token_count, generation_findings):  # fmt: skip
        yield from check(subject, releases)


def _places(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """Files outside of the folder, which are not opened here and do not travel with it."""
    seen: dict[tuple[str, str, str], list[str]] = {}
    for release in releases:
        for what, path in subject.read_files(release).items():
            if message := subject.misplaced(what, path, release):
                seen.setdefault((message, str(path), what), []).append(release.version)
    for (message, where, _), versions in seen.items():
        yield Finding("B780", message, tuple(versions), "copy the file into the folder and name it there", where)
    if "base_dir" in subject.config.values:
        yield Finding(
            "B780", f"base_dir {subject.config.values['base_dir']!r} lets the runtime look for every other file there and "
            "not beside config.json", versions_of(releases), "remove base_dir", str(subject.folder / CONFIG),
        )  # fmt: skip


def _pointers(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """Small texts that Git leaves in the place of large files that were not fetched."""
    seen: dict[Path, list[str]] = {}
    for release in releases:
        for path in set(subject.read_files(release).values()):
            if subject.has(path) and is_lfs_pointer(path):
                seen.setdefault(path, []).append(release.version)
    for path, versions in sorted(seen.items()):
        yield Finding(
            "B783", f"{path.name} is a Git LFS pointer: the file itself was never fetched", tuple(versions),
            "run git lfs pull in the repository, or download the file", str(path),
        )  # fmt: skip


def _readable(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    every = versions_of(releases)
    yield from _json_file(subject, subject.llm_config, every)
    for settings in dict.fromkeys(id(subject.config_of(release)) for release in releases):
        own = tuple(release for release in releases if id(subject.config_of(release)) == settings)
        yield from _json_file(subject, subject.config_of(own[0]), versions_of(own))
    if not subject.has(subject.model_path):
        yield Finding("B723", f"{subject.model_path.name} is missing", every, "copy it again", str(subject.model_path))


def _json_file(subject: Subject, settings: Settings, versions: tuple[str, ...]) -> Iterator[Finding]:
    where = str(subject.folder / settings.name)
    if settings.missing:
        yield Finding("B723", f"{settings.name} is missing", versions, "copy the whole folder, or export again", where)
    elif settings.problem:
        message = f"{settings.name} cannot be read as JSON: {settings.problem}"
        yield Finding("B723", message, versions, "mend it", where)


def _keys(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    every = versions_of(releases)
    for settings in (subject.config, subject.llm_config):
        where = str(subject.folder / settings.name)
        unknown = [key for key in settings.values if key not in _KNOWN]
        if unknown:
            guesses = [f"{key}: {guess}" for key in unknown if (guess := suggest(key, sorted(_KNOWN)))]
            message = f"no release reads {', '.join(map(repr, unknown))}"
            yield Finding("B724", message, every, "; ".join(guesses), where, "warning")
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
            versions_of(releases),
            "keep each key in one file",
            str(subject.folder / CONFIG),
            "warning",
            True,
        )


def _spelling(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    values, where = subject.config.values, str(subject.folder / CONFIG)
    snake = [key for key, camel in _SNAKE.items() if key in values and camel not in values]
    if old := lacking(releases, lambda release: release.snake_sampler) if snake else ():
        yield Finding(
            "B725", f"{', '.join(snake)} are not read; defaults are used", old,
            f"write {', '.join(_SNAKE[key] for key in snake)} as well", where, "warning", True,
        )  # fmt: skip
    everything = {**values, **subject.llm_config.values}
    whole = [key for key in _FLOATS if type(everything.get(key)) is int]
    if old := lacking(releases, lambda release: not release.exact_kinds) if whole else ():
        yield Finding(
            "B725", f"{', '.join(whole)} are integers where floats are read; defaults are used", old,
            "write 1.0 for 1", where, "warning", True,
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
            mended=True,
        )  # fmt: skip


def _contradictions(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    every, where = versions_of(releases), str(subject.folder / subject.llm_config.name)
    values = {**subject.config.values, **subject.llm_config.values}
    rows = numbers(subject.inputs.get("input_ids", {}).get("dims"))
    hidden = values.get("hidden_size", 4096)
    if len(rows) == 3 and rows[-1] > 0 and not subject.llm_config.missing and hidden != rows[-1]:
        yield Finding(
            "B727", f"hidden_size is {hidden}, but the model reads embedding rows of {rows[-1]}", every,
            f'write "hidden_size": {rows[-1]}', where, mended=True,
        )  # fmt: skip
    layers = sum(op.get("type") in ("Attention", "LinearAttention") for op in subject.ops)
    if layers and values.get("layer_nums", layers) != layers:
        yield Finding(
            "B727", f"layer_nums is {values['layer_nums']}, but the model has {layers} attention layers", every,
            f'write "layer_nums": {layers}', where, "warning", True,
        )  # fmt: skip
    if values.get("attention_type") == "mix" and not values.get("sliding_window"):
        yield Finding(
            "B727", "attention_type is 'mix' without a sliding_window", every, "write the width of the window", where
        )
    consts = {index for op in subject.ops if op.get("type") == "Const" for index in numbers(op.get("outputIndexes"))}
    fifth = [numbers(op.get("inputIndexes"))[4:5] for op in subject.ops if op.get("type") == "Attention"]
    if any(set(found) & consts for found in fifth) and values.get("attention_type") != "mix":
        yield Finding(
            "B727", "attention has sinks and attention_type is not 'mix': tokens see those behind them", every,
            'write "attention_type": "mix" and a sliding_window', where,
        )  # fmt: skip


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
            "B728", f"tie_embeddings is neither five numbers nor an object: {str(tie)[:60]}", versions_of(releases),
            "write [weight_offset, alpha_offset, alpha_size, bits, block]", where,
        )  # fmt: skip
        return
    old = lacking(releases, lambda release: forms <= set(release.tie_embeddings))
    if old:
        kind = " and ".join(sorted(forms - {"pairs"})) or "five numbers"
        happens = "read from the embedding file" if subject.has(subject.embedding_path) else "uninitialized memory"
        happens = happens if forms & {"object", "six"} else "decoded with other formulas"
        yield Finding(
            "B728",
            f"tie_embeddings is spelled in a way ({kind}) that is not understood; rows are {happens}: garbage without a "
            "message",
            old,
            "write five numbers and single-precision scales",
            where,
            mended=True,
        )
    yield from _odd_rows(subject, releases, tie, where)
    numbers_ = tie_numbers(tie)
    if numbers_ is not None and not numbers_[0]:
        yield from _coded_file(subject, releases, TiedRows.of(subject, numbers_, half_scales(tie)))


def _embedding_file(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    path, every = subject.embedding_path, versions_of(releases)
    if not subject.has(path):
        yield Finding(
            "B729", f"there is neither tie_embeddings nor {path.name}: embedding rows are uninitialized memory", every,
            "export again with the embedding, or copy the file", str(path),
        )  # fmt: skip
        return
    rows, columns, size = vocabulary(subject), width(subject), path.stat().st_size
    if not columns:
        return
    if size < 2 * rows * columns:
        yield Finding(
            "B729", f"{path.name} has {size:,} bytes, fewer than {rows:,} rows of {columns} need", every,
            "copy the file again", str(path),
        )  # fmt: skip
    elif size % (2 * columns):
        yield Finding(
            "B729", f"{path.name} has {size:,} bytes, which are no whole rows of {columns} bfloat16 numbers", every,
            "is it the file of another model? copy or export it again", str(path),
        )  # fmt: skip


def _coded_file(subject: Subject, releases: Sequence[Release], rows: TiedRows) -> Iterator[Finding]:
    """Quantized rows in a file of their own."""
    path, every = subject.embedding_path, versions_of(releases)
    where = str(subject.folder / subject.llm_config.name)
    if not subject.has(path):
        yield Finding(
            "B729", f"{path.name}, where tie_embeddings says that the rows are, is missing", every,
            "copy the file, or export again", str(path),
        )  # fmt: skip
    elif max(rows.end, rows.alpha_end) > path.stat().st_size:
        yield Finding(
            "B729", f"{path.name} has {path.stat().st_size:,} bytes, fewer than the {max(rows.end, rows.alpha_end):,} that "
            "tie_embeddings speaks of", every, "copy the file again", str(path),
        )  # fmt: skip
    elif fault := rows.fault():
        yield Finding("B728", f"tie_embeddings {fault}", every, "export again", where)


def _odd_rows(subject: Subject, releases: Sequence[Release], tie: Any, where: str) -> Iterator[Finding]:
    found, rows = tie_numbers(tie), vocabulary(subject)
    if found is None or found[3] != 4 or not rows % 2:
        return
    if old := lacking(releases, lambda release: release.odd_tied_int4):
        yield Finding(
            "B728", f"4-bit embedding rows of an odd vocabulary ({rows:,}) are misread: wrong numbers", old,
            "store the logits matrix with 8 bits, or pad the vocabulary", where,
        )  # fmt: skip


def _weights(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    ends = [(end, op) for op, end in subject.external_ends()]
    if not ends:
        return
    path = subject.weight_path
    size = path.stat().st_size if subject.has(path) else None
    last, op = max(ends, key=lambda item: item[0])
    if size is None:
        crash = lacking(releases, lambda release: release.no_weight_file != "crash")
        happens = "the process crashes" if crash == versions_of(releases) else "loading fails, on 3.4 with a crash"
        yield Finding("B723", f"{path.name} is missing: {happens}", versions_of(releases), "copy it again", str(path))
    elif last > size and not is_lfs_pointer(path):
        yield Finding(
            "B730", f"{path.name} has {size:,} bytes, and {op.get('name') or op.get('type')} ends at {last:,}: a crash",
            versions_of(releases), "the file is cut off or of another model; copy it again", str(path),
        )  # fmt: skip


def _tokenizer(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    seen: dict[tuple[str, str, bool], list[str]] = {}
    for release in releases:
        settings, path = subject.config_of(release), subject.tokenizer_path(release)
        if settings.missing or settings.problem:
            continue
        problem, mended = _tokenizer_problem(subject, settings, path, release)
        if problem:
            seen.setdefault((str(path), f"{problem}: {release.no_tokenizer}", mended), []).append(release.version)
    for (place, problem, mended), versions in seen.items():
        fix = "name a text tokenizer (tokenizer.txt) in the configuration of these releases"
        yield Finding(
            "B731", problem, tuple(versions), fix if mended else "copy or export it again", place, mended=mended
        )


def _tokenizer_problem(subject: Subject, settings: Settings, path: Path, release: Release) -> tuple[str, bool]:
    """What is wrong with a tokenizer, empty for nothing, and whether another form of it would do."""
    if not subject.has(path):
        return f"the tokenizer file {path.name} named in {settings.name} is missing", False
    if is_lfs_pointer(path):
        return "", False
    with path.open("rb") as file:
        head = file.readline(64).split()
    if len(head) != 2 or head[0] != b"430" or not head[1].isdigit():
        return f"{path.name} does not begin like a tokenizer file", False
    kind = int(head[1])
    return ("", False) if kind in release.tokenizers else (f"{path.name} is of type {kind}, which is not read", True)


def _end_of_answers(subject: Subject) -> str:
    jinja = subject.llm_config.values.get("jinja")
    eos = jinja.get("eos") if isinstance(jinja, dict) else None
    return eos if isinstance(eos, str) else ""


def _token_count(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    rows = vocabulary(subject)
    paths = {release.version: subject.tokenizer_path(release) for release in releases}
    for path in dict.fromkeys(paths.values()):
        versions = tuple(version for version, own in paths.items() if own == path)
        readers = tuple(release for release in releases if release.version in versions)
        if not subject.has(path) or is_lfs_pointer(path):
            continue
        if all(_tokenizer_problem(subject, subject.config_of(item), path, item)[0] for item in readers):
            continue
        try:
            tokens = read_tokenizer(path.read_bytes(), str(path)).tokens
        except LadingError as error:
            message = f"the tokenizer may be damaged: {error.diagnostics[0].message}"
            yield Finding("B731", message, versions, "export the tokenizer again", str(path), "warning")
            continue
        count, eos = len(tokens), _end_of_answers(subject)
        if eos and eos.encode() not in tokens:
            yield Finding(
                "B738", f"the chat template ends answers with {eos!r}, which is no token of {path.name}", versions,
                "is the tokenizer of another model? copy or export it again", str(path), "warning",
            )  # fmt: skip
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
