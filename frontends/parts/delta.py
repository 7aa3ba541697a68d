"""The gated delta rule: a memory of one matrix for each head in place of keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from frontends.configuration.specs import Constant, Kind, Setting, size
from frontends.parts.builder import Builder, Layer
from frontends.parts.fused import Matrix, split
from ir.graph.graph import Value
from ir.tensor.rearranged import row_concat


def _silu(spec: object) -> Setting:
    """A field for the activation behind the convolution, of which one is computed."""
    return field(default=spec, metadata={"kind": Kind("'silu'", lambda value: value in ("silu", "swish"))})


@dataclass(frozen=True)
class Delta:
    """Gated delta rule (Yang et al. 2024, arXiv:2412.06464), its result normalized by heads and gated.

    Attributes:
        at: what stands before the names of the modules.
        fused: queries, keys, values and gates share one tensor in which each group of heads has its share of each, and so
            do betas and decays; otherwise queries, keys and values share one, and the others are by themselves.
        key_heads, heads: heads of queries and keys, and of values and the memory.
        key_dim, value_dim: elements of a head of each.
        kernel: positions that the convolution sees.
        activation: behind the convolution.
    """

    at: str = "linear_attn."
    fused: bool = False
    key_heads: Setting = size("linear_num_key_heads", most=1 << 16)
    heads: Setting = size("linear_num_value_heads", most=1 << 16)
    key_dim: Setting = size("linear_key_head_dim", most=1 << 16)
    value_dim: Setting = size("linear_value_head_dim", most=1 << 16)
    kernel: Setting = size("linear_conv_kernel_dim", most=1 << 10)
    activation: Setting = _silu(("hidden_act", Constant("silu")))

    def build(self, b: Builder, x: Value, layer: Layer) -> Value:
        """f32[1, seq, hidden] of the same."""
        at, heads, width = f"{layer.base}.{self.at}", self.heads, self.value_dim
        matrices = self._matrices(b, at)
        keys, values = self.key_heads * self.key_dim, heads * width
        kernel = b.const(f"{at}conv1d.weight", b.stored.get(f"{at}conv1d.weight", (2 * keys + values, 1, self.kernel)))
        beta = b.same("Sigmoid", [b.apply(x, matrices["b"])], f"{at}beta")
        inputs: list[Value | None] = [b.apply(x, matrices["qkv"]), self._decay(b, b.apply(x, matrices["a"]), at), beta]
        attrs = {
            "num_k_heads": self.key_heads,
            "num_v_heads": heads,
            "head_k_dim": self.key_dim,
            "head_v_dim": width,
        }
        mixed = b.add("lading.GatedDeltaRule", [*inputs, kernel], f"{at}rule", b.rows(values), attrs)
        apart = b.heads(mixed, heads, width, f"{at}rule.heads")
        normed = b.norm(apart, f"{at}norm", replace(layer.norm, offset=0.0), width)
        gate = b.same("Swish", [b.apply(x, matrices["z"])], f"{at}gate")
        gated = b.same("Mul", [b.merged(normed, values, f"{at}normed"), gate], f"{at}gated")
        return b.linear(gated, f"{at}out_proj", b.hidden, values)

    def _matrices(self, b: Builder, at: str) -> dict[str, Matrix]:
        """The matrices of q | k | v, of the gate z, of betas b and decays a."""
        keys, values, heads = self.key_heads * self.key_dim, self.heads * self.value_dim, self.heads
        if not self.fused:
            widths = {"qkv": 2 * keys + values, "z": values, "b": heads, "a": heads}
            return {name: b.matrix(f"{at}in_proj_{name}", width, b.hidden) for name, width in widths.items()}
        whole = b.matrix(f"{at}in_proj_qkvz", 2 * keys + 2 * values, b.hidden)
        parts = split(whole, "g:q|k|v|z", {"q": keys, "k": keys, "v": values, "z": values}, self.key_heads)
        pair = b.matrix(f"{at}in_proj_ba", 2 * heads, b.hidden)
        gates = split(pair, "g:b|a", {"b": heads, "a": heads}, self.key_heads)
        joined = Matrix(f"{at}in_proj_qkv", row_concat([parts[name].weight for name in "qkv"]))
        alone = {"z": parts["z"], **gates}
        return {"qkv": joined, **{name: matrix.called(f"{at}in_proj_{name}") for name, matrix in alone.items()}}

    def _decay(self, b: Builder, value: Value, at: str) -> Value:
        """The logarithm of what the memory keeps: ``-exp(A_log) * softplus(a + dt_bias)``."""
        shift = b.const(f"{at}dt_bias", b.stored.get(f"{at}dt_bias", (self.heads,)))
        log = b.const(f"{at}A_log", b.stored.get(f"{at}A_log", (self.heads,)))
        step = b.same("Softplus", [b.same("Add", [value, shift], f"{at}shifted")], f"{at}step")
        rate = b.same("Exp", [log], f"{at}rate")
        return b.same("Neg", [b.same("Mul", [step, rate], f"{at}loss")], f"{at}decay")


__all__ = ["Delta"]
