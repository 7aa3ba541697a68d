"""Which keys of a configuration change what the reference computes, and whether the compiler follows, refuses or sleeps.

``python -m tests.support.families.keys [CASE ...]`` changes one key at a time in the ``config.json`` of a tiny
checkpoint. The reference reads the same file and the same weights. Where its logits change, or other tensors would be
needed, the compiler must change in the same way or refuse. The plain references read few keys and play no part.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ir.base.diag import LadingError
from tests.support.families.cases import CASES, Case
from tests.support.families.checkpoints import Golden, kept, model_class
from tests.support.families.released import write_config

FOREIGN: dict[str, Sequence[Any]] = {
    "add_cross_attention": (True,),
    "alibi": (True,),
    "attention_bias": (True,),
    "attention_multiplier": (0.3,),
    "attn_logit_softcapping": (3.0,),
    "embedding_multiplier": (2.0,),
    "final_logit_softcapping": (5.0,),
    "head_dim": (8,),
    "is_causal": (False,),
    "layer_types": (["sliding_attention", "full_attention", "sliding_attention", "full_attention"],),
    "logit_scale": (0.5,),
    "logits_scaling": (2.0,),
    "mlp_bias": (True,),
    "no_rope_layers": ([0, 1, 0, 1],),
    "partial_rotary_factor": (0.5,),
    "qk_layernorm": (True,),
    "residual_multiplier": (0.5,),
    "rope_interleaved": (True,),
    "rope_scaling": ({"rope_type": "linear", "factor": 4.0},),
    "rope_theta": (500.0,),
    "scale_emb": (2.0,),
    "sliding_window": (4,),
    "tie_word_embeddings": (True,),
    "use_bidirectional_attention": (True,),
    "use_parallel_residual": (True,),
    "use_qk_norm": (True,),
}
"""Keys of other families that a file may have, with values that would matter where they count."""

ROPE_FOREIGN: dict[str, Any] = {
    "alpha": 50.0,
    "attention_factor": 1.5,
    "beta_fast": 8.0,
    "beta_slow": 3.0,
    "factor": 3.0,
    "high_freq_factor": 3.0,
    "llama_4_scaling_beta": 0.5,
    "low_freq_factor": 2.0,
    "mscale": 2.0,
    "mscale_all_dim": 2.0,
    "original_max_position_embeddings": 8,
    "partial_rotary_factor": 0.25,
    "rope_theta": 300.0,
    "truncate": False,
}
"""Keys of a record of a rope, with values that would matter where they count."""

ACTIVATIONS = ("gelu", "silu", "relu", "gelu_pytorch_tanh")
NAMES = frozenset(
    "_name_or_path architectures auto_map dtype id2label label2id model_type name_or_path tokenizer_class torch_dtype "
    "transformers_version vision_config audio_config text_config rope_parameters".split()
)
"""Keys that say what a file is, or hold other configurations."""

ABSENT = ...
"""In place of a value: the key is taken out of the file, so that the default of the reference's class counts."""

CHANGED = 1e-3
"""From this difference of a logit on the reference is said to compute something else."""


@dataclass(frozen=True)
class Finding:
    """One changed key.

    Attributes:
        case: whose checkpoint.
        key: dotted place in ``config.json``.
        value: what it was set to.
        reference: ``same``, ``changed``, ``other tensors`` or ``refused``.
        compiler: ``same``, ``as the reference``, ``otherwise``, ``refused CODE`` or ``broken``.
        message: what the compiler said.
    """

    case: str
    key: str
    value: Any
    reference: str
    compiler: str
    message: str = ""

    @property
    def told(self) -> str:
        """Key and value."""
        return f"{self.key} absent" if self.value is ABSENT else f"{self.key} = {json.dumps(self.value)}"

    @property
    def offends(self) -> bool:
        """The compiler does not do what the reference does, and says nothing."""
        if self.compiler.startswith("refused") or self.reference == "refused":
            return False
        wanted = {"same": "same", "changed": "as the reference", "other tensors": "same"}[self.reference]
        return self.compiler != wanted

    @property
    def zealous(self) -> bool:
        """The compiler refuses what changes nothing."""
        return self.compiler.startswith("refused") and self.reference == "same"


def audit(name: str, folder: Path) -> Iterator[Finding]:
    """All findings about one case; `folder` is for its files."""
    case = CASES[name]
    source, golden = kept(folder, name)
    golden = Golden(golden.ids[-1:], golden.logits[-1:])
    original = json.loads((source / "config.json").read_text())
    for place, value in changes(original, class_keys(case, source)):
        config = with_key(original, place, value)
        write_config(source, config)
        try:
            reference, logits = reference_of(case, source, golden)
            compiler, message = compiler_of(source, golden, logits)
        finally:
            write_config(source, original)
        yield Finding(name, ".".join(place), value, reference, compiler, message)


def class_keys(case: Case, source: Path) -> dict[str, Any]:
    """Keys of the text part of the reference's configuration class, with the values that they have here."""
    return dict(_settings(case, source).get_text_config().to_dict())


def changes(config: Mapping[str, Any], keys: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Places and values to try: every key of the file or of the class, those of other families, and those of ropes."""
    at: tuple[str, ...] = ("text_config",) if isinstance(config.get("text_config"), dict) else ()
    text = config["text_config"] if at else config
    known = {**keys, **text}
    for key in sorted(set(known) | set(FOREIGN)):
        if key in NAMES or key.endswith("_token_id"):
            continue
        tried = list(FOREIGN.get(key, ())) + (list(others(known[key])) if key in known else [])
        if key in text:
            yield (*at, key), ABSENT
        for number, value in enumerate(tried):
            if value != known.get(key, ...) and value not in tried[:number]:
                yield (*at, key), value
    if at and "tie_word_embeddings" in config:
        yield ("tie_word_embeddings",), not config["tie_word_embeddings"]
    for record in ("rope_parameters", "rope_scaling"):
        rope = text.get(record)
        if not isinstance(rope, dict):
            continue
        nested = [key for key in rope if isinstance(rope[key], dict)]
        for inner in nested or [""]:
            inside = rope[inner] if inner else rope
            path = (*at, record, inner) if inner else (*at, record)
            for key, value in ROPE_FOREIGN.items():
                if inside.get(key) != value:
                    yield (*path, key), value


def others(value: Any) -> Iterator[Any]:
    """Values of the same kind that would matter where this one counts."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
        if value > 1:
            yield value // 2
    elif isinstance(value, float):
        yield value * 3 if value > 1e-3 else 0.5
    elif isinstance(value, str):
        yield from (name for name in ACTIVATIONS if value in ACTIVATIONS or "gelu" in value or "relu" in value)
    elif isinstance(value, list) and value:
        yield value[::-1]
        yield [value[-1]] * len(value)
    elif value is None:
        yield from (True, 2, 0.5)


def with_key(config: Mapping[str, Any], place: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of a configuration with one value changed."""
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if value is ABSENT:
        inner.pop(place[-1], None)
    else:
        inner[place[-1]] = value
    return changed


# ---- the two sides ----


def _settings(case: Case, source: Path) -> Any:
    from transformers import AutoConfig

    file = source / "config.json"
    text = file.read_text()
    try:
        if case.reads_as:
            write_config(source, {**json.loads(text), "model_type": case.reads_as})
        return AutoConfig.from_pretrained(source)
    finally:
        file.write_text(text)


def reference_of(case: Case, source: Path, golden: Golden) -> tuple[str, list[np.ndarray]]:
    """What the reference makes of the files, and its logits where it computes them."""
    import torch

    text = (source / "config.json").read_text()
    try:
        if case.reads_as:
            write_config(source, {**json.loads(text), "model_type": case.reads_as})
        model, told = model_class(case).from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        if told["missing_keys"] or told["mismatched_keys"]:
            return "other tensors", []
        with torch.no_grad():
            logits = [model(input_ids=torch.from_numpy(ids), use_cache=False).logits[0].numpy() for ids in golden.ids]
    except Exception as error:
        return "refused", [np.array(str(error))]
    finally:
        (source / "config.json").write_text(text)
    changed = max(float(np.abs(a - b).max()) for a, b in zip(logits, golden.logits, strict=True)) > CHANGED
    return ("changed" if changed else "same"), logits


def _compiled(source: Path, golden: Golden) -> list[np.ndarray]:
    from frontends.checkpoint.load import load
    from ir.evaluate.evaluator import Evaluator

    evaluator = Evaluator(load(source), threads=1)
    return [evaluator.run({"input_ids": ids})["logits"][0] for ids in golden.ids]


def compiler_of(source: Path, golden: Golden, wanted: Sequence[np.ndarray]) -> tuple[str, str]:
    """What the compiler makes of the files, held against the golden of the unchanged ones and the reference's logits."""
    try:
        found = _compiled(source, golden)
    except LadingError as error:
        return f"refused {error.code}", error.diagnostics[0].message
    except Exception as error:
        return "broken", f"{type(error).__name__}: {error}"
    if _near(found, wanted):
        return ("same" if _near(golden.logits, wanted) else "as the reference"), ""
    return ("same" if _near(found, golden.logits) else "otherwise"), ""


def _near(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and float(np.abs(x - y).max()) < CHANGED for x, y in zip(a, b, strict=True)
    )


@click.command()
@click.argument("patterns", nargs=-1)
@click.option("--folder", type=click.Path(path_type=Path), help="Where checkpoints are kept; they are made once.")
@click.option("--all", "everything", is_flag=True, help="Also print what counts for the reference.")
def main(patterns: Sequence[str], folder: Path | None, everything: bool) -> None:
    """Print keys that the compiler reads otherwise than the reference, and those it refuses for nothing."""
    names = [name for name, case in CASES.items() if case.spelling != "terse" and case.reader != "plain"]
    names = [name for name in names if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            findings = list(audit(name, place))
            offending = [found for found in findings if found.offends]
            zealous = [found for found in findings if found.zealous]
            print(
                f"{name}: {len(findings)} changes, {len(offending)} offend, {len(zealous)} refused for nothing",
                flush=True,
            )
            for found in offending:
                print(f"  OFFENDS {found.told}: reference {found.reference}, compiler {found.compiler} {found.message}")
            for counted in ("changed", "other tensors") if everything else ():
                keys = sorted({found.key for found in findings if found.reference == counted})
                print(f"  {counted}: {' '.join(keys)}")
            for found in zealous:
                print(f"  zealous {found.told}: {found.compiler} {found.message}")


if __name__ == "__main__":
    main()
