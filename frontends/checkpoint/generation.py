"""What a checkpoint says about generation, with the meaning that transformers gives to it.

Transformers reads ``generation_config.json`` alone where that file exists, else the same keys of ``config.json``. Where
onnxruntime-genai has left its own file in the place of the first, that one is read. A
setting that is absent or null has transformers' default (`SETTINGS`), whatever a runtime would take for it. Most
settings count only where ``do_sample`` is true; those that do not count are not looked at, by transformers neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir.base.diag import Diagnostic, LadingError
from ir.base.json_numbers import whole

FILE = "generation_config.json"
GENAI = "genai_config.json"
"""The configuration of onnxruntime-genai, whose object ``search`` has settings of the same names and meaning."""

Problem = tuple[str, str]
"""A code and what is wrong with a value."""


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        default: its value where it is absent.
        check: what is wrong with a value, None for a good one.
        sampling: counts only where ``do_sample`` is true.
    """

    default: Any
    check: Callable[[Any], Problem | None]
    sampling: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _switch(value: Any) -> Problem | None:
    return None if isinstance(value, bool) else ("F570", "not true or false")


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[Any], Problem | None]:
    """A finite number from `low` (or, with `above`, beyond it) to `high`."""

    def check(value: Any) -> Problem | None:
        if not _is_number(value):
            return "F570", "not a number"
        if value < low or value > high or (above and value == low):
            bound = f"above {low:g}" if above else f"at least {low:g}"
            return "F571", f"not {bound}" + (f" and at most {high:g}" if math.isfinite(high) else "")
        return None

    return check


def _count(low: int) -> Callable[[Any], Problem | None]:
    def check(value: Any) -> Problem | None:
        if not isinstance(value, int) or isinstance(value, bool):
            return "F570", "not a whole number"
        return ("F571", f"not at least {low}") if value < low else None

    return check


def _ids(value: Any) -> Problem | None:
    good = isinstance(value, list) and all(map(_is_id, value))
    return None if good else ("F570", "not a list of token ids")


def _phrases(value: Any) -> Problem | None:
    good = isinstance(value, list) and all(isinstance(item, list) and item and not _ids(item) for item in value)
    return None if good else ("F570", "not a list of lists of token ids")


def _biases(value: Any) -> Problem | None:
    good = isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 2 and item[0] and not _ids(item[0]) and _is_number(item[1])
        for item in value
    )
    return None if good else ("F570", "not a list of pairs of token ids and a number")


def _texts(value: Any) -> Problem | None:
    rows = value if isinstance(value, list) else [value]
    return None if all(isinstance(row, str) and row for row in rows) else ("F570", "not a text or a list of texts")


def _anything(value: Any) -> Problem | None:
    return None


SETTINGS: Mapping[str, Setting] = {
    "do_sample": Setting(False, _switch),
    "temperature": Setting(1.0, _number(0), sampling=True),
    "top_k": Setting(50, _count(0), sampling=True),
    "top_p": Setting(1.0, _number(0, 1), sampling=True),
    "min_p": Setting(None, _number(0, 1), sampling=True),
    "top_h": Setting(None, _number(0, 1, above=True), sampling=True),
    "typical_p": Setting(1.0, _number(0, above=True), sampling=True),
    "epsilon_cutoff": Setting(0.0, _number(0), sampling=True),
    "eta_cutoff": Setting(0.0, _number(0), sampling=True),
    "repetition_penalty": Setting(1.0, _number(0, above=True)),
    "encoder_repetition_penalty": Setting(1.0, _number(0, above=True)),
    "no_repeat_ngram_size": Setting(0, _count(0)),
    "encoder_no_repeat_ngram_size": Setting(0, _count(0)),
    "suppress_tokens": Setting(None, _ids),
    "begin_suppress_tokens": Setting(None, _ids),
    "bad_words_ids": Setting(None, _phrases),
    "sequence_bias": Setting(None, _biases),
    "forced_bos_token_id": Setting(None, _anything),
    "forced_eos_token_id": Setting(None, _anything),
    "exponential_decay_length_penalty": Setting(None, _anything),
    "guidance_scale": Setting(1.0, _number(-math.inf)),
    "watermarking_config": Setting(None, _anything),
    "num_beams": Setting(1, _count(1)),
    "num_return_sequences": Setting(1, _count(1)),
    "penalty_alpha": Setting(0.0, _number(0)),
    "dola_layers": Setting(None, _anything),
    "constraints": Setting(None, _anything),
    "force_words_ids": Setting(None, _anything),
    "token_healing": Setting(False, _switch),
    "max_new_tokens": Setting(None, _count(1)),
    "max_length": Setting(None, _count(1)),
    "min_new_tokens": Setting(0, _count(0)),
    "min_length": Setting(0, _count(0)),
    "max_time": Setting(None, _number(0)),
    "stop_strings": Setting(None, _texts),
}
"""Settings that decide which tokens come, with the defaults of transformers 4 and 5.

Lengths have none: without any transformers stops after 20 tokens and asks for a length."""

WITHOUT_EFFECT = frozenset(
    """_commit_hash _from_model_config assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
    assistant_lookbehind bos_token_id cache_config cache_implementation compile_config continuous_batching_config
    decoder_start_token_id disable_compile diversity_penalty early_stopping eos_token_id is_assistant length_penalty
    low_memory max_cache_len max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    output_attentions output_hidden_states output_logits output_scores pad_token_id prefill_chunk_size
    prompt_lookup_num_tokens remove_invalid_values renormalize_logits return_dict_in_generate return_legacy_cache
    speculation_type target_lookbehind transformers_version use_cache use_mtp""".split()
)
"""Keys that change no token of a decoder that takes one token after the other, or that are read elsewhere."""


OTHERS = frozenset(
    """frequency_penalty max_tokens mirostat mirostat_eta mirostat_tau n_predict presence_penalty repeat_last_n seed stop
    tfs_z""".split()
)
"""Settings of other programs (servers, runtimes) that people write into the file, where transformers has no such thing."""


@dataclass(frozen=True)
class Generation:
    """The settings of a checkpoint that count.

    Attributes:
        given: known settings as they stand in the file, without nulls; values are checked where they count.
        warnings: what people should know of them.
    """

    given: Mapping[str, Any]
    warnings: tuple[Diagnostic, ...] = ()


def read_generation(folder: Path) -> Generation:
    """The settings of a checkpoint folder.

    Raises:
        LadingError: U904 a file that is not a JSON object, F570 values of a wrong kind, F571 values out of range.
    """
    path = folder / FILE
    model = _own_keys(_read(folder / "config.json"))
    if not path.is_file() and (folder / GENAI).is_file():
        search = _read(folder / GENAI).get("search")
        given = _own_keys(search if isinstance(search, dict) else {})
        # The length that it states is that of its buffers.
        given.pop("max_length", None)
        _check(given, str(folder / GENAI))
        return Generation(given, tuple(_odd(given, str(folder / GENAI))))
    if not path.is_file():
        _check(model, str(folder / "config.json"))
        return Generation(model, tuple(_odd(model, str(folder / "config.json"))))
    data = _read(path)
    given = {key: value for key, value in data.items() if key in SETTINGS and value is not None}
    _check(given, str(path))
    unused = [key for key, value in model.items() if value not in (SETTINGS[key].default, given.get(key))]
    warnings = [*_odd(given, str(path)), *_misspelt(data, str(path))]
    if unused:
        message = f"{_listed(unused)} in config.json has no effect, because there is a {FILE}"
        hint = f"write it into {FILE}, where transformers reads it"
        warnings.append(Diagnostic("F573", message, str(folder / "config.json"), hint, "warning"))
    return Generation(given, tuple(warnings))


def effective(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting with the value that counts: as given, else the default; what needs ``do_sample`` is left out
    without it."""
    sampling = given.get("do_sample", False) is True
    return {
        key: given.get(key, setting.default) for key, setting in SETTINGS.items() if sampling or not setting.sampling
    }


def unused(given: Mapping[str, Any]) -> list[str]:
    """Settings that are given and do not count, because ``do_sample`` is not true."""
    if given.get("do_sample", False) is True:
        return []
    return [key for key, value in given.items() if SETTINGS[key].sampling and value != SETTINGS[key].default]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=whole)
    except (ValueError, RecursionError, OSError) as error:
        raise LadingError("U904", f"cannot be read as JSON: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise LadingError("U904", "is not a JSON object", where=str(path))
    return data


def _own_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in ``config.json``; those of the part for text where the file has parts."""
    inner = config.get("text_config")
    rows = {**(inner if isinstance(inner, dict) else {}), **config}
    return {key: rows[key] for key in SETTINGS if rows.get(key) is not None}


def _check(given: Mapping[str, Any], where: str) -> None:
    sampling = given.get("do_sample", False) is True
    problems = []
    for key, value in given.items():
        setting = SETTINGS[key]
        found = setting.check(value) if sampling or not setting.sampling else None
        if found is not None:
            code, text = found
            hint = f"correct {key} or take it out of the file; transformers does not generate with it either"
            if key == "top_k" and code == "F571":
                hint = "write 0 for no top-k filter, as transformers spells it"
            problems.append(Diagnostic(code, f"{key} is {_short(value)}, {text}", where, hint))
    if problems:
        raise LadingError.of(problems)


def _odd(given: Mapping[str, Any], where: str) -> Iterator[Diagnostic]:
    """Settings that transformers refuses and that everybody means alike."""
    if given.get("do_sample", False) is True and given.get("temperature") == 0:
        message = "temperature is 0, with which transformers does not sample; the most likely token is taken"
        yield Diagnostic("F572", message, where, "write do_sample false to say so", "warning")


def _misspelt(data: Mapping[str, Any], where: str) -> Iterator[Diagnostic]:
    """Unknown keys that look like a setting (``topK``, ``top-p``, ``repitition_penalty``) or are one elsewhere."""
    odd = [key for key in data if key not in SETTINGS and key not in WITHOUT_EFFECT]
    if not odd:
        return
    from difflib import get_close_matches

    plain = {_letters(key): key for key in SETTINGS}
    for key in odd:
        near = get_close_matches(_letters(key), list(plain), n=1, cutoff=0.85)
        if near or key in OTHERS:
            hint = f"did you mean {plain[near[0]]!r}?" if near else "set it in the program that runs the model"
            yield Diagnostic("F574", f"{key!r} is no setting of transformers and has no effect", where, hint, "warning")


def _letters(key: str) -> str:
    return "".join(filter(str.isalnum, key.lower()))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = ["FILE", "SETTINGS", "Generation", "Setting", "effective", "read_generation", "unused"]
