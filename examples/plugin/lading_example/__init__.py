"""An example plugin for Lading: networks with squared ReLU, read from JSON, drawn by Graphviz.

Only the names are here, so that commands which use none of it do not load it.
"""

from ir.base.plugins import Plugin

PLUGIN = Plugin(
    passes={"fuse-squared-relu": "lading_example.fuse:FuseSquaredRelu"},
    pipelines={"squared-relu": "canonicalize,fuse-squared-relu,dce"},
    ops={"example.SquaredRelu": "lading_example.ops:SQUARED_RELU"},
    frontends={"mlp": "lading_example.mlp:Frontend"},
    backends={"dot": "lading_example.dot:Backend"},
    recipes={"example_low_rank": "lading_example.low_rank:low_rank"},
)
