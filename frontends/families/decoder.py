"""The graph of a decoder: a checked configuration and the checkpoint's tensors to standard operators.

The graph has one input, the token ids of one sequence, and one output, the logits of every position. Positions are
computed from the shape of the input, and the tables of the ropes from the positions: what a runtime feeds itself is for
later passes to find out. Nothing is simplified here beyond what the family's row says, weights keep their own constants
(recipes over the files, nothing is read), and values are named after the modules whose output they are.

Queries and keys that a rope turns by neighbours are turned by halves after a permutation of the rows of the weights that
make them; the product of a query and a key does not change when both are permuted alike.
"""

from __future__ import annotations

from frontends.families.model_config import ModelConfig
from frontends.families.places import Places
from frontends.parts.builder import Builder, Layer
from frontends.parts.rope_table import rope_table
from frontends.parts.stored import Stored
from ir.graph.graph import Graph, Value
from ir.tensor.base import Tensor
from ir.tensor.rearranged import row_slice, transposed


def build_decoder(config: ModelConfig, places: Places, stored: Stored, name: str) -> Graph:
    """The graph ``input_ids: i64[1, seq] -> logits: f32[1, seq, vocab]``.

    What is wrong with the tensors is kept by `stored`, whose `finish` tells it.

    Args:
        config: the configuration.
        places: where embedding, layers and head are in this checkpoint.
        stored: its tensors.
        name: name of the graph.
    """
    return _Decoder(config, places, stored, name).build()


class _Decoder:
    """One construction."""

    def __init__(self, config: ModelConfig, places: Places, stored: Stored, name: str) -> None:
        self.config = config
        self.row = config.family
        self.places = places
        self.stored = stored
        self.b = Builder(
            stored,
            name,
            hidden=config.hidden_size,
            context=config.context,
            ropes=config.ropes,
            is_transposed=config.family.transposed,
        )

    def build(self) -> Graph:
        b, config, row = self.b, self.config, self.row
        for layer in config.layers:
            width = getattr(layer.mixer, "rope_width", 0)
            if layer.rope is not None and width:
                rope_table(b, layer.rope, width)
        matrix = self.stored.get(self.places.embed, (config.vocab_size, config.hidden_size))
        embedding = b.const(self.places.embed, matrix)
        name = self.places.embed.removesuffix(".weight") if not self.places.only_head else self._named(row.embed)
        hidden = b.add("Gather", [embedding, b.ids], name, b.rows(), {"axis": 0})
        hidden = b.times(hidden, row.embed_scale, "embedding_scale")
        hidden = self._positioned(hidden)
        for index in range(len(config.layers)):
            hidden = self._layer(hidden, index)
        hidden = b.norm(hidden, self._named(row.final), row.norm, config.hidden_size)
        b.graph.set_outputs([self._head(hidden, matrix)])
        return b.graph

    def _named(self, module: str) -> str:
        return f"{self.places.prefix}{module}"

    def _positioned(self, hidden: Value) -> Value:
        """The stream with learned positions added, for families that have them."""
        if not self.row.positions:
            return hidden
        b, (module, first) = self.b, self.row.positions
        name = self._named(f"{module}.weight")
        count = self.config.max_position + first
        table = row_slice(self.stored.get(name, (count, self.config.hidden_size)), first, count)
        place = b.add("Gather", [b.const(name, table), b.positions], self._named(module), b.rows(), {"axis": 0})
        return b.same("Add", [hidden, place], "positioned")

    # ---- layers ----

    def _layer(self, hidden: Value, index: int) -> Value:
        row, settings = self.row, self.config.layers[index]
        layer = Layer(index, self._named(f"{row.layers}.{index}"), row.norm, settings.window, settings.rope)
        first = self._normed(hidden, layer, row.attn_in)
        mixed = self._normed(settings.mixer.build(self.b, first, layer), layer, row.attn_out)
        middle = self._residual(hidden, mixed, f"{layer.base}.attn_residual")
        if row.parallel:
            slot = row.mlp_in if row.mlp_in_parallel is None else row.mlp_in_parallel
            second = self._normed(hidden, layer, slot) if self._slot(layer, slot) else first
        else:
            second = self._normed(middle, layer, row.mlp_in)
        fed = self._normed(settings.feed.build(self.b, second, layer), layer, row.mlp_out)
        return self._residual(middle, fed, layer.base)

    def _slot(self, layer: Layer, names: str | tuple[str, ...]) -> str:
        """The name of a norm's place in this checkpoint; empty where there is none."""
        if isinstance(names, str):
            return names
        return next((name for name in names if not name or self.stored.has(f"{layer.base}.{name}.weight")), names[0])

    def _normed(self, value: Value, layer: Layer, names: str | tuple[str, ...]) -> Value:
        slot = self._slot(layer, names)
        return self.b.norm(value, f"{layer.base}.{slot}", layer.norm, self.config.hidden_size) if slot else value

    def _residual(self, hidden: Value, value: Value, name: str) -> Value:
        value = self.b.times(value, self.row.residual, "residual_scale")
        return self.b.same("Add", [hidden, value], name)

    # ---- logits ----

    def _head(self, hidden: Value, embedding: Tensor) -> Value:
        b, row, key = self.b, self.row, self.places.head
        name = row.head if key is None else key.removesuffix(".weight")
        shape = (self.config.vocab_size, self.config.hidden_size)
        hint = "set tie_word_embeddings to true in config.json if the output matrix is the embedding"
        tensor = embedding if key is None else self.stored.get(key, shape, "" if self.config.tied else hint)
        weight = b.const(f"{name}.weight", transposed(tensor))
        last = "logits" if row.logits == 1.0 and row.logit_cap is None and not row.head_bias else name
        logits = b.add("MatMul", [hidden, weight], last, b.rows(self.config.vocab_size), loc=weight.loc)
        if row.head_bias:
            bias = b.const(f"{name}.bias", self.stored.get(f"{name}.bias", (self.config.vocab_size,)))
            plain = row.logits == 1.0 and row.logit_cap is None
            logits = b.same("Add", [logits, bias], "logits" if plain else f"{name}.biased")
        logits = b.times(logits, row.logits, "logit_scale", "logits" if row.logit_cap is None else f"{name}.scaled")
        return logits if row.logit_cap is None else self._capped(logits, row.logit_cap)

    def _capped(self, logits: Value, cap: float) -> Value:
        """``cap * tanh(logits / cap)``."""
        bound = self.b.setting("logit_cap", cap)
        share = self.b.same("Div", [logits, bound], "logits.share")
        share = self.b.same("Tanh", [share], "logits.tanh")
        return self.b.same("Mul", [share, bound], "logits")


__all__ = ["build_decoder"]
