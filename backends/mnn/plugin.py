"""The row by which MNN is known to the compiler; everything in it is imported when it is used."""

from __future__ import annotations

from ir.base.plugins import Plugin

PLUGIN = Plugin(
    passes={
        "fuse-mnn": "backends.mnn.lower.fuse:FuseMnn",
        "legalize-mnn": "backends.mnn.lower.legalize:LegalizeMnn",
        "legalize-module": "backends.mnn.modules.legalize:LegalizeModule",
        "simulate-activations": "backends.mnn.lower.simulate_activations:SimulateActivations",
        "store-weights": "backends.mnn.modules.edit.store_weights:StoreWeights",
        "take-qdq": "backends.mnn.modules.edit.take_qdq:TakeQdq",
        "sink-layouts": "backends.mnn.lower.sink_layouts:SinkLayouts",
    },
    pipelines={
        "default": "absorb-latent,lift-decoder,infer-types,discover-inputs,assign-precision,insert-qdq,legalize-mnn,"
        "sink-layouts,fuse-mnn,cse,dce",
        "calibrated": "absorb-latent,lift-decoder,infer-types,discover-inputs,calibrate,"
        "assign-precision{method=gptaq block-trade=4},recalibrate,insert-qdq,legalize-mnn,sink-layouts,fuse-mnn,cse,dce",
        "tuned": "absorb-latent,lift-decoder,infer-types,discover-inputs,calibrate,"
        "assign-precision{method=gptaq block-trade=4},calibrate-outputs,recalibrate,insert-qdq,legalize-mnn,"
        "sink-layouts,fuse-mnn,cse,dce",
        "fast": "default{block-trade=4}",
        "mixed": "calibrated{budget=5bpw min-speed=auto}",
        "fp32": "default{bits=32 logits-bits=32}",
        "fp16": "default{bits=16 logits-bits=16}",
        "int8": "default{bits=8 logits-bits=8}",
        "int4": "default{bits=4 logits-bits=4}",
        "mnn": "canonicalize,spell-linears,raise-weights,assign-precision{bits=32 logits-bits=32},insert-qdq,"
        "legalize-mnn,cse,dce",
        "mnn-module": "infer-types,upgrade-opset,repeat{max=1 foreign}(expand-contrib),canonicalize,settle-choices,"
        "stack-lists,widen-floats,infer-types,take-qdq,store-weights{bits=32},widen-integers,legalize-module,"
        "cse,dce,infer-types",
    },
    dialects={"mnn": "backends.mnn.dialect.table:DEFINITIONS"},
    stages={"mnn": "backends.mnn.lower.stage:STAGE"},
    invariants={"mnn": "backends.mnn.lower.stage:problems"},
    signatures={
        "mnn-llm": "backends.mnn.target.signatures:LLM",
        "mnn-llm-3.0": "backends.mnn.target.signatures:LLM_3_0",
    },
    targets={"mnn-llm": "backends.mnn.target.releases:target"},
    frontends={"mnn": "backends.mnn.read.frontend:MnnFile"},
    backends={"mnn": "backends.mnn.module_backend:MnnModule", "mnn-llm": "backends.mnn.backend:MnnLlm"},
    codes={"mnn": "backends.mnn.codes:CODES"},
    symptoms={"mnn": "backends.mnn.symptoms:ROWS"},
)
