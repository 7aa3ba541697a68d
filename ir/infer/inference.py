"""One run of type inference: what the rules read, and where results are merged into the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ir.base.diag import Diagnostic
from ir.base.types import Dim, MapType, TensorType, ValueType
from ir.graph.describe import describe
from ir.graph.graph import OPSET, Graph, Node, Value
from ir.infer.rule_table import KNOWN_LIMIT, Known, TypeMismatch, known_array, rule_of, value_rule_of
from ir.infer.symbolic import Extent, SymbolTable

_NAMED: WeakKeyDictionary[Graph, int] = WeakKeyDictionary()
"""By outermost graph: how many names of dimensions have been made, all of which are taken."""
FOLLOW_DEPTH = 64
"""Operators through which `infer_node` follows an integer tensor back."""


class Inference:
    """One run over a graph: what the rules read and where results are merged.

    Attributes:
        opset: version of the ONNX operators.
        root: the outermost graph.
        table: meanings of the symbolic dimensions.
        known: contents of small integer tensors.
        lazy: contents are followed when they are asked for, not node by node.
        problems: diagnostics found so far.
        hinted: recorded types are hints, which give way to what operators give.
        overruled: what was recorded, for each value whose recorded type gave way.
    """

    def __init__(self, graph: Graph, lazy: bool = False) -> None:
        self.lazy = lazy
        root = graph
        while root.parent is not None:
            root = root.parent
        self.root = root
        self.opset = root.opsets.get("", OPSET)
        self.known: dict[Value, Known | None] = {}
        self.problems: list[Diagnostic] = []
        self.hinted = root.hinted and not lazy
        self.overruled: dict[Value, str] = {}
        self._unproved: set[Value] = set(root.inputs) if self.hinted else set()
        self._used_names: set[str] = set()
        self._depth = 0
        self.table = SymbolTable(self._is_taken, _NAMED.get(root, 0))
        # One node alone is compared with nothing recorded, which is what the declared dimensions are looked up for.
        for value in () if lazy else root.inputs:
            if isinstance(value.type, TensorType):
                for dim in value.type.shape or ():
                    if type(dim) is Dim:
                        self.table.declare(dim)

    # ---- what rules ask for ----

    def known_of(self, value: Value | None) -> Known | None:
        """Contents of a small integer or boolean tensor of rank 0 or 1, as far as they are known."""
        if value is None:
            return None
        if value in self.known:
            found = self.known[value]
            if found is not None and any(type(entry) is Dim for entry in found.entries):
                return Known(found.rank, tuple(self.table.resolve(e) if e is not None else None for e in found.entries))
            return found
        if value.const is None:
            return self._recompute(value) if self.lazy else None
        found = self.known[value] = _constant(value)
        return found

    def _recompute(self, value: Value) -> Known | None:
        """Follow an integer tensor back through its producers, when they were not visited in order."""
        node = value.producer
        value_rule = value_rule_of(node.op) if node is not None else None
        self.known[value] = None
        if node is not None and value_rule is not None and self._depth < FOLLOW_DEPTH and is_sound(node):
            self._depth += 1
            self._follow(node, value_rule)
            self._depth -= 1
        return self.known[value]

    def ints_of(self, value: Value | None) -> tuple[int, ...] | None:
        """The elements of a small integer tensor, or None when they are not all known numbers."""
        found = self.known_of(value)
        return found.ints if found is not None else None

    def length_of(self, value: Value | None) -> int | None:
        """Number of elements of a vector, when its type tells."""
        shape = value.shape if value is not None else None
        return shape[0] if shape is not None and len(shape) == 1 and type(shape[0]) is int else None

    def attribute_or_input(self, node: Node, name: str, index: int) -> tuple[int, ...] | None:
        """Integers that older operator versions have as attribute and newer ones as input; None when unknown."""
        value = node._attrs.get(name)
        if value is not None:
            return (value,) if isinstance(value, int) else tuple(value)
        return self.ints_of(node.input(index))

    # ---- the run ----

    def graph(self, graph: Graph) -> None:
        """Infer every node of a graph in program order."""
        flaws_of = Forms(graph).flaws
        for node in graph.nodes:
            flaws = flaws_of(node)
            if flaws:
                self.problems.extend(flaws)
                continue
            found_before = len(self.problems)
            try:
                result = self._results(node)
            except (TypeMismatch, ArithmeticError) as error:
                self._report(node, str(error))
                continue
            results = result if type(result) is tuple else (result,)
            for value, found in zip(node.outputs, results, strict=False):
                if found is not None and found is not value.type:
                    self._merge(node, value, found)
            if self.hinted:
                self._note_unproved(node, results)
            value_rule = value_rule_of(node.op)
            if value_rule is not None and len(self.problems) == found_before:
                self._follow(node, value_rule)

    def _results(self, node: Node) -> Any:
        """What the rule of a node gives; recorded types of its operands that no operator gives yield to it."""
        rule = rule_of(node.op, self.opset)
        try:
            return rule(self, node)
        except (TypeMismatch, ArithmeticError):
            hints = dict.fromkeys(v for v in node.inputs if v in self._unproved) if self.hinted else {}
            recorded = {
                value: value.type
                for value in hints
                if value is not None and isinstance(value.type, TensorType) and value.type.shape is not None
            }
            for loosened in (self._of_any_size, _of_any_shape) if recorded else ():
                for value, type_ in recorded.items():
                    value.graph.set_type(value, loosened(type_))
                try:
                    result = rule(self, node)
                except (TypeMismatch, ArithmeticError):
                    continue
                for value, type_ in recorded.items():
                    self.overruled[value] = f"%{value.name} does not fit {node.op}, recorded is {type_}"
                return result
            for value, type_ in recorded.items():
                value.graph.set_type(value, type_)
            raise

    def _of_any_size(self, type_: TensorType) -> TensorType:
        """The type with every size open."""
        return TensorType(type_.dtype, tuple(self._name(self.table.fresh()) for _ in type_.shape or ()))

    def _note_unproved(self, node: Node, results: tuple[ValueType | None, ...]) -> None:
        """Remember the outputs of which nothing but the recorded type is known, or nothing of its shape."""
        for place, value in enumerate(node.outputs):
            found = results[place] if place < len(results) else None
            if value.type is not None and (found is None or (type(found) is TensorType and found.shape is None)):
                self._unproved.add(value)

    def overrule(self, value: Value, found: ValueType) -> None:
        """Give a value the type that its operator gives in place of the recorded one."""
        named = self.named(found)
        self.overruled[value] = f"%{value.name} is {named} by its operator, recorded is {value.type}"
        value.graph.set_type(value, named)

    def _follow(self, node: Node, rule: Callable[[Inference, Node], Known | None]) -> None:
        type_ = node.outputs[0].type if node.outputs else None
        if type(type_) is not TensorType or type_.dtype.kind not in "iub":
            return
        if type_.shape is None or len(type_.shape) > 1:
            return
        found = rule(self, node)
        if found is not None and len(found.entries) <= KNOWN_LIMIT:
            self.known[node.outputs[0]] = found

    def _merge(self, node: Node, value: Value, found: ValueType) -> None:
        """Record an inferred type, keeping what only the recorded one knows."""
        recorded = value.type
        if found == recorded:
            return
        if type(found) is TensorType:
            if type(recorded) is TensorType:
                problem = conflict(recorded, found)
                if problem and self.hinted:
                    self.overrule(value, found)
                    return
                if problem:
                    self.problems.append(
                        Diagnostic(
                            "T210",
                            f"{node.op} gives {found} for %{value.name}, recorded is {recorded}: {problem}",
                            where=describe(node),
                        )
                    )
                    return
                found = TensorType(found.dtype, self._merged_shape(found.shape, recorded.shape))
            elif recorded is None:
                found = TensorType(found.dtype, self._merged_shape(found.shape, None))
        else:
            found = _without_unknown(found)
            if type(recorded) is type(found) and elements_agree(recorded, found):
                return
        if recorded is not None and not elements_agree(recorded, found):
            if self.hinted:
                self.overrule(value, found)
                return
            self.problems.append(
                Diagnostic("T210", f"{node.op} gives {found} for %{value.name}, recorded is {recorded}", describe(node))
            )
            return
        if recorded != found:
            value.graph.set_type(value, found)

    def _merged_shape(self, found: tuple | None, recorded: tuple | None) -> tuple | None:
        if found is None:
            return recorded
        if all(type(dim) is int for dim in found):
            return found
        old = recorded if recorded is not None else (None,) * len(found)
        return tuple(self._merged_dim(dim, before) for dim, before in zip(found, old, strict=True))

    def _merged_dim(self, found: Extent | None, recorded: Extent | None) -> Extent:
        if found is None:
            return recorded if recorded is not None else self._name(self.table.fresh())
        found = self.table.resolve(found)
        if isinstance(found, int) or found.name[:1] != "?":
            return found
        if isinstance(recorded, int):
            return recorded
        if recorded is not None and self.table.fits(found, recorded):
            return self.table.bind(found, recorded)
        return self._name(found)

    def _name(self, pending: Dim) -> Dim:
        named = self.table.bind(pending)
        _NAMED[self.root] = self.table.named
        return self.root.add_dim(named)

    def _is_taken(self, name: str) -> bool:
        return name in self.root.dims or name in self._used_names

    def scan_names(self) -> None:
        """Collect the dimension names of all types, for graphs whose `dims` do not declare every one."""
        for graph in self.root.graphs():
            for value in graph._names.values():
                if type(value.type) is TensorType and not value.type.is_static:
                    self._used_names |= {dim.name for dim in value.type.shape or () if type(dim) is Dim}

    def named(self, found: ValueType | None) -> ValueType | None:
        """A rule's result with every unnamed dimension named."""
        if found is None:
            return None
        if type(found) is not TensorType:
            return _without_unknown(found)
        if found.shape is None:
            return found
        return TensorType(found.dtype, self._merged_shape(found.shape, None))

    def _report(self, node: Node, message: str) -> None:
        inputs = ", ".join("_" if value is None else str(value.type) for value in node.inputs)
        self.problems.append(Diagnostic("T212", f"{node.op}({inputs}): {message}", where=describe(node)))


def _constant(value: Value) -> Known | None:
    type_ = value.type
    if type(type_) is not TensorType or type_.dtype.kind not in "iub" or type_.shape is None:
        return None
    if len(type_.shape) > 1 or (type_.size or 0) > KNOWN_LIMIT:
        return None
    return known_array(value.tensor.load())


def conflict(recorded: TensorType, found: TensorType) -> str:
    if recorded.dtype is not found.dtype and recorded.dtype != found.dtype:
        return "the element types differ"
    if recorded.shape is None or found.shape is None:
        return ""
    if len(recorded.shape) != len(found.shape):
        return "the ranks differ"
    for axis, (old, new) in enumerate(zip(recorded.shape, found.shape, strict=True)):
        if type(new) is int and (old != new if isinstance(old, int) else not old.accepts(new)):
            return f"axis {axis} differs"
        if type(new) is Dim and type(old) is int and new.name[:1] != "?" and not new.accepts(old):
            return f"axis {axis} differs"
    return ""


def _of_any_shape(type_: TensorType) -> TensorType:
    return TensorType(type_.dtype)


def _without_unknown(found: ValueType) -> ValueType:
    """A sequence, optional or map type whose tensors have shapes only where every dimension is known."""
    if isinstance(found, TensorType):
        whole = found.shape is not None and all(dim is not None for dim in found.shape)
        return found if whole else TensorType(found.dtype)
    if isinstance(found, MapType):
        return MapType(found.key, _without_unknown(found.value))
    return type(found)(_without_unknown(found.element))


def elements_agree(recorded: Any, found: Any) -> bool:
    """True when two types hold the same kind of things, shapes aside."""
    if type(recorded) is not type(found):
        return False
    if type(recorded) is TensorType:
        return recorded.dtype == found.dtype
    if isinstance(recorded, MapType):
        return recorded.key == found.key and elements_agree(recorded.value, found.value)
    return elements_agree(recorded.element, found.element)


_FORMS: WeakKeyDictionary[Graph, tuple[dict[str, int], set[tuple]]] = WeakKeyDictionary()
"""By outermost graph: its opsets, and the forms of nodes that were found to be as their operators declare."""


class Forms:
    """Tells which nodes of a graph break the declaration of their operator.

    What `ir.ops.check.check_node` says depends on the form of a node alone: operator, arity, and the kinds of its
    attributes. A graph has few forms, so each is checked once.
    """

    def __init__(self, graph: Graph) -> None:
        while graph.parent is not None:
            graph = graph.parent
        found = _FORMS.get(graph)
        if found is None or found[0] != graph.opsets:
            found = _FORMS[graph] = (dict(graph.opsets), set())
        self._sound = found[1]

    def flaws(self, node: Node) -> Sequence[Diagnostic]:
        """The errors that `check_node` finds in a node."""
        inputs, attrs = node.inputs, node._attrs
        left_out = tuple(i for i, value in enumerate(inputs) if value is None) if None in inputs else None
        kinds = tuple([(name, _kind(value)) for name, value in attrs.items()]) if attrs else None
        form = (node.op, len(inputs), len(node.outputs), left_out, kinds)
        return () if form in self._sound else self._check(node, form)

    def _check(self, node: Node, form: tuple) -> Sequence[Diagnostic]:
        from ir.ops.check import check_node
        from ir.ops.registry import opdef

        found = check_node(node)
        if not found and opdef(node) is not None:
            self._sound.add(form)
        return [problem for problem in found if problem.severity == "error"]


def _kind(value: Any) -> Any:
    """What a check of an attribute looks at: words themselves, of all else the type."""
    if type(value) is tuple:
        return frozenset(map(type, value))
    return value if type(value) is str else type(value)


def is_sound(node: Node) -> bool:
    """True when a node is as its operator declares it, so that rules may read it without looking twice."""
    return not Forms(node.home).flaws(node)
