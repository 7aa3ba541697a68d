"""Feed-forward parts: the gated MLP and the plain one."""

from __future__ import annotations

from dataclasses import dataclass

from frontends.configuration.specs import Setting, flag, size, word
from frontends.parts.activations import ACTIVATIONS
from frontends.parts.builder import Builder, Layer
from frontends.parts.fused import Matrix, split
from ir.base.types import Shape
from ir.graph.graph import Value

ACTIVATION = ("hidden_activation", "hidden_act", "activation_function", "activation")
"""Where configurations name the activation."""


@dataclass(frozen=True)
class Glu:
    """A gated MLP: ``down(act(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202).

    Attributes:
        at: what stands before the names of the modules.
        gate, up, down: the modules.
        fused, order: one module that holds gate and up, and the order of its rows (see `frontends.parts.fused`).
        inner: width between the matrices.
        activation: name of the activation.
        bias: all three modules have a bias.
    """

    at: str = "mlp."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused: str = ""
    order: str = "gate|up"
    inner: Setting = size("intermediate_size", most=1 << 24)
    activation: Setting = word(ACTIVATION, "the name of an activation")
    bias: Setting = flag(False)

    def build(self, b: Builder, x: Value, layer: Layer) -> Value:
        """f32[1, seq, hidden] of the same."""
        return self.apply(b, x, f"{layer.base}.{self.at}", None)

    def apply(self, b: Builder, x: Value, at: str, rows: Shape | None) -> Value:
        """The nodes of the MLP whose modules' names begin with `at`; `rows` is the shape of `x` where it is another one."""
        gate, up = self.first(b, at)
        down = b.matrix(at + self.down, b.hidden, self.inner, self.bias)
        return self.product(b, x, gate, up, down, at, rows)

    def product(
        self, b: Builder, x: Value, gate: Matrix, up: Matrix, down: Matrix, at: str, rows: Shape | None
    ) -> Value:
        """The same of matrices that were asked for already."""
        inner = None if rows is None else (*rows[:-1], self.inner)
        gated, lifted = b.apply(x, gate, inner), b.apply(x, up, inner)
        active = ACTIVATIONS[self.activation](b, gated, f"{at}act_fn")
        product = b.same("Mul", [active, lifted], f"{at}product")
        return b.apply(product, down, rows)

    def first(self, b: Builder, at: str) -> tuple[Matrix, Matrix]:
        """The matrices of gate and up."""
        if not self.fused:
            return (
                b.matrix(at + self.gate, self.inner, b.hidden, self.bias),
                b.matrix(at + self.up, self.inner, b.hidden, self.bias),
            )
        both = b.matrix(at + self.fused, 2 * self.inner, b.hidden, self.bias)
        parts = split(both, self.order, {"gate": self.inner, "up": self.inner}, self.inner)
        return parts["gate"].called(at + self.gate), parts["up"].called(at + self.up)


@dataclass(frozen=True)
class Mlp:
    """A plain MLP: ``down(act(up(x)))``.

    Attributes: as of `Glu`.
    """

    at: str = "mlp."
    up: str = "up_proj"
    down: str = "down_proj"
    inner: Setting = size("intermediate_size", most=1 << 24)
    activation: Setting = word(ACTIVATION, "the name of an activation")
    bias: Setting = flag(False)

    def build(self, b: Builder, x: Value, layer: Layer) -> Value:
        """f32[1, seq, hidden] of the same."""
        at = f"{layer.base}.{self.at}"
        inner = b.linear(x, at + self.up, self.inner, b.hidden, self.bias)
        active = ACTIVATIONS[self.activation](b, inner, f"{at}act_fn" if self.at else f"{at}activation_fn")
        return b.linear(active, at + self.down, b.hidden, self.inner, self.bias)


__all__ = ["ACTIVATION", "Glu", "Mlp"]
