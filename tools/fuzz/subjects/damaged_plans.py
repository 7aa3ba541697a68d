"""Damaged quantization files and pipelines."""

from __future__ import annotations

import json
import tomllib

from tools.fuzz.inputs.mutate import damage_json, damage_text, json_bytes
from tools.fuzz.inputs.samples import checkpoint
from tools.fuzz.target import Case, Target, require

_PLAN = """
[[rule]]
match = "*.mlp.down_proj.weight"
bits = 6
block = 32

[[rule]]
match = "re:layers\\\\.[0-3]\\\\."
min_bits = 4
max_bits = 8
zero = "float"
scale = "f16"
method = "rtn"

[[rule]]
role = "logits"
bits = 8
symmetric = true
block = "row"
"""
_PLAN_WORDS = (
    "[[rule]]",
    "rule",
    "match",
    "role",
    "embedding",
    "layer",
    "re:(",
    "re:(a+)+$",
    "*",
    "bits",
    "true",
    "3",
    "[x]",
)
_PIPELINE_WORDS = (
    "canonicalize", "default", "repeat", "max", "fold", "bits", "assign-precision",
    "keep", "re:(", "plan", "budget", "none",
    "4.5bpw", "1e400bpw", "99999999999999999999MB", "logits-bits",
    "block", "method", "gptq", "{", "}", "(", ")", "[", "]",
)  # fmt: skip
_PIPELINE_FILE = """
[[pass]]
name = "fold"
options = { max-bytes = 4096 }

[[pass]]
name = "repeat"
options = { max = 3 }

  [[pass.pass]]
  name = "cse"

[[pass]]
name = "assign-precision"
options = { bits = 4, keep = ["x", "re:y"], plan = "p.toml" }
"""


def _plan(case: Case) -> bytes:
    if case.rng.random() < 0.3:
        data = tomllib.loads(_PLAN)
        return json_bytes(case.rng, damage_json(case.rng, data))
    return damage_text(case.rng, _PLAN, _PLAN_WORDS).encode("utf-8", "surrogatepass")


def _read_plan(raw: bytes, case: Case) -> None:
    from frontends.checkpoint.load import load
    from passes.framework.manager import PassManager
    from passes.precision.plan_file import load_rules

    path = case.folder / ("plan.toml" if b"[[" in raw[:12] else "plan.json")
    path.write_bytes(raw)
    load_rules(path)
    options = [f'plan="{path}"', *_options(case)]
    graph = load(checkpoint(case.samples, case.rng))
    PassManager(f"infer-types,discover-inputs,assign-precision{{{' '.join(options)}}},insert-qdq").run(graph)


def _options(case: Case) -> list[str]:
    """A few options of assign-precision that are text, damaged."""
    texts = {"keep": r"re:(o|q)_proj\..*[0-9]", "floor": "logits=4", "method": "rtn", "embedding-method": "rtn"}
    chosen = case.rng.sample(sorted(texts), case.rng.choice([0, 0, 1, 2]))
    return [f"{name}={json.dumps(damage_text(case.rng, texts[name], actions=1))}" for name in chosen]


def _pipeline(case: Case) -> str:
    texts = ["repeat{max=8}(infer-types,fold,simplify,cse,dce),toposort", "default{bits=5 keep=[re:o_proj]}",
             'default{plan="mix.toml" logits-bits=8}', "mixed{budget=4.5bpw}", "rotate,balance,calibrate,default"]  # fmt: skip
    return damage_text(case.rng, case.rng.choice(texts), _PIPELINE_WORDS)


def _read_pipeline(text: str, case: Case) -> None:
    from passes.framework.load import load, parse

    pipeline = load(text)
    require(parse(str(pipeline)) == pipeline, f"the pipeline is read back as another one: {pipeline}")


def _pipeline_file(case: Case) -> str:
    return damage_text(case.rng, _PIPELINE_FILE, _PIPELINE_WORDS)


def _read_pipeline_file(text: str, case: Case) -> None:
    from passes.framework.pipeline_toml import load_toml
    from passes.framework.registry import default_registry

    path = case.folder / "pipeline.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    load_toml(path, default_registry())


DAMAGED_PLANS = (
    Target("plan", "damaged quantization files", _plan, _read_plan),
    Target("damaged-pipeline", "damaged pipeline text", _pipeline, _read_pipeline),
    Target("pipeline-file", "damaged pipeline files", _pipeline_file, _read_pipeline_file),
)
