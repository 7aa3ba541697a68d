"""An example plugin for Lading: one row in every table, among them a toy runtime that ``lading compile`` emits to.

Only the names are here, so that commands which use none of it do not load it.
"""

from ir.base.plugins import Plugin

PLUGIN = Plugin(
    passes={
        "fuse-squared-relu": "lading_example.fuse:FuseSquaredRelu",
        "lower-to-toy": "lading_example.toy.lower:LowerToToy",
    },
    pipelines={
        "squared-relu": "canonicalize,fuse-squared-relu,dce",
        "toy": "squared-relu,assign-precision{bits=8 logits-bits=8 block=0 symmetric method=ceiling},insert-qdq,lower-to-toy,dce",
    },
    ops={"example.SquaredRelu": "lading_example.ops:SQUARED_RELU"},
    dialects={"toy": "lading_example.toy.dialect:DEFINITIONS"},
    recipes={"example_low_rank": "lading_example.low_rank:low_rank"},
    facts={"toy-layers": "lading_example.toy.lower:ToyLayers"},
    stages={"toy": "lading_example.toy.dialect:STAGE"},
    invariants={"toy": "lading_example.toy.dialect:problems"},
    signatures={"toy": "lading_example.toy.target:SIGNATURE"},
    targets={"toy": "lading_example.toy.target:target"},
    quantizers={"ceiling": "lading_example.ceiling:METHOD"},
    families={"example": "lading_example.family:EXAMPLE"},
    formats={"npz": "lading_example.npz:FORMAT"},
    frontends={"mlp": "lading_example.mlp:MlpFile"},
    backends={"dot": "lading_example.dot:DotFile", "toy": "lading_example.toy.backend:ToyBackend"},
    codes={"example": "lading_example.codes:CODES"},
    symptoms={"toy": "lading_example.toy.symptoms:SYMPTOMS"},
)
