"""Judge an ONNX file for MNN: what is wrong with the file itself, what the converter of each release and the
language-model engine would make of it, and what this compiler makes of it.

Nothing native is run; `conversion` does what is predicted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backends.mnn.doctor.findings import Finding, Report, versions_of
from backends.mnn.doctor.onnx.attempt import Attempt, attempt
from backends.mnn.target.converter import converts
from backends.mnn.target.releases import MnnTarget, Release, target
from frontends.onnx.load import read_message
from frontends.onnx.survey import ONNX_DOMAINS, Lost, Port, Survey, survey
from ir.base.diag import LadingError
from ir.ops.registry import lookup

COMPILE = "lading compile FILE.onnx -o OUT makes an MNN model of it"
"""What is advised where the compiler takes the file."""

MOST_NAMED = 4
"""Names of a kind that a message lists."""


def examine_onnx(path: Path, releases: Sequence[Release]) -> Report:
    """The report on an ONNX file.

    Raises:
        LadingError: F600, F601 and others where it is no ONNX model, U950 it holds no operators.
    """
    told = survey(read_message(path))
    if not told.nodes:
        raise LadingError("U950", "the file holds no ONNX operators", where=str(path))
    tried = attempt(path, _target(releases))
    judge = _Judge(path, told, tried, tuple(releases))
    findings = list(judge.findings())
    order = {"error": 0, "warning": 1}
    findings.sort(key=lambda item: (order[item.severity], _RANK.get(item.code, len(_RANK)), -len(item.releases)))
    return Report(str(path), "onnx", judge.needs(findings), tuple(releases), findings, attempt=tried)


_RANK = {code: place for place, code in enumerate(("B684", "B687", "B712", "B691", "B714", "B695", "B713", "B689"))}
"""What is told first: what ends the way to a running model the earliest."""


def _target(releases: Sequence[Release]) -> MnnTarget:
    """Releases that one model can be for: those that are asked about, or the usual ones."""
    from backends.mnn.doctor.remedy import widest

    return widest(releases) or target("portable")


class _Judge:
    """Findings on one file."""

    def __init__(self, path: Path, told: Survey, tried: Attempt, releases: tuple[Release, ...]) -> None:
        self.where = str(path)
        self.told = told
        self.tried = tried
        self.releases = releases
        self.every = versions_of(releases)
        self.fix = COMPILE if tried.refusal is None else ""
        self.inputs = {item.name: item for item in told.inputs}
        self.lost = {item.name for item in told.lost}
        fed = {name for release in releases for name in release.inputs}
        self.language = tried.language or (
            bool(fed & (self.inputs.keys() | self.lost)) and "logits" in {item.name for item in told.outputs}
        )

    def findings(self) -> Iterator[Finding]:
        """Everything."""
        yield Finding("B732", "an ONNX file is not what the runtime loads", self.every, self.fix, self.where)
        yield from self._lost()
        yield from self._operators()
        yield from self._declarations()
        if self.language:
            yield from self._signature()
            yield from self._rows()
            yield from self._history()
        if self.tried.language and not self.tried.tokenizer:
            message = "no tokenizer lies beside the file, so what is compiled runs on token ids only"
            yield Finding("B744", message, self.every, "name its folder with --tokenizer", self.where, "warning")
        for item in self.tried.warnings:
            yield Finding(item.code, item.message, self.every, item.hint, item.where, "warning")

    def needs(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """What the file takes and gives, and what would become of it."""
        raised = self.tried.raised
        return {
            "inputs": {item.name: str(item) for item in self.told.inputs},
            "outputs": [item.name for item in self.told.outputs],
            "language_model": self.tried.language,
            "nodes": self.told.nodes,
            "opsets": {domain or "ai.onnx": version for domain, version in self.told.opsets.items()},
            "lost": {item.name: [str(reading) for reading in item.readings] for item in self.told.lost},
            "converted_as_it_is": {
                release.version: _outcome(findings, release.version, bool(self._unknown(release)))
                for release in self.releases
            },
            "raised": None if raised is None else raised.to_data(),
        }

    # ---- tensors that nothing makes ----

    def _lost(self) -> Iterator[Finding]:
        for item in self.told.lost:
            message = f"{_read(item)}{self._taken(item)}. {_converted(item)}"
            where = item.readings[0].node if item.readings else self.where
            yield Finding("B684", message, self.every, self.fix, where)

    def _taken(self, item: Lost) -> str:
        """What the rest of the graph makes of a tensor that nothing makes."""
        found = self.tried.free.find(item.name) if self.tried.free is not None else None
        if found is None:
            return f" as {' or '.join(item.types)}" if 0 < len(item.types) <= 2 else ""
        if found.value is not None:
            return f", which leaves it no choice but {list(found.value)}"
        return f", which makes it {found.type}" if found.type else ""

    # ---- operators ----

    def _operators(self) -> Iterator[Finding]:
        found: dict[tuple[str, ...], list[str]] = {}
        unknown = {release.version: self._unknown(release) for release in self.releases}
        foreign = []
        for domain, op in sorted(set().union(*unknown.values())):
            old = tuple(version for version, names in unknown.items() if (domain, op) in names)
            found.setdefault(old, []).append(f"{_called(domain, op)} ({self.told.operators[domain, op]})")
            if (domain, op) not in self.told.functions and lookup(_called(domain, op), self.told.opsets) is None:
                foreign.append(_called(domain, op))
        either = f"Nor does this compiler know {_few(foreign)}" if foreign else "This compiler knows them"
        for versions, names in found.items():
            yield Finding(
                "B687",
                f"the converter knows no {_few(names)} and ends with 'These Op Not Support'. {either}",
                versions,
                self.fix,
                self.where,
            )
        taken = [
            _called(domain, op) for domain, op in self.told.operators
            if domain not in ONNX_DOMAINS and (domain, op) not in self.told.functions and converts(self.releases[-1], op)
        ]  # fmt: skip
        if taken:
            yield Finding(
                "B687", f"the converter looks at names only and takes {_few(taken)} for ONNX's operator of that name",
                self.every, self.fix, self.where, "warning",
            )  # fmt: skip
        yield from self._quantized()

    def _unknown(self, release: Release) -> set[tuple[str, str]]:
        """Operators that the converter of a release does not know; it knows nothing of the model's own functions."""
        return {(domain, op) for domain, op in self.told.operators if not converts(release, op)}

    def _quantized(self) -> Iterator[Finding]:
        kinds = [op for _, op in self.told.operators if op in ("QuantizeLinear", "DequantizeLinear")]
        if not kinds:
            return
        small = sorted(kind for kind in self.told.stored if kind in ("i4", "u4", "i2", "u2"))
        happens = (
            f"gives NaN or sizes that do not fit for weights of {' and '.join(small)}" if small else
            "crashes on quantized activations, leaves them out, or writes an empty graph; only weights with one scale each "
            "come out right, as floats"
        )  # fmt: skip
        yield Finding("B687", f"of {' and '.join(kinds)} the converter {happens}", self.every, self.fix, self.where)

    # ---- declarations ----

    def _declarations(self) -> Iterator[Finding]:
        for what, ports in (("input", self.told.inputs), ("output", self.told.outputs)):
            untyped = [item.name for item in ports if not item.dtype]
            if untyped:
                yield Finding(
                    "B691", f"no element type is declared for the {what} {_few(map(repr, untyped))}: the converter takes a "
                    "float", self.every, self.fix, self.where, "warning",
                )  # fmt: skip
        unread = [item.name for item in self.told.inputs if not item.made]
        if unread:
            message = f"nothing reads the input {_few(map(repr, unread))}"
            yield Finding("B693", message, self.every, self.fix, self.where, "warning")

    # ---- language models ----

    def _signature(self) -> Iterator[Finding]:
        found: dict[tuple[str, ...], list[str]] = {}
        for name, port in self.inputs.items():
            old = tuple(item.version for item in self.releases if name not in (*item.inputs, *item.optional_inputs))
            if old and port.made:
                found.setdefault(old, []).append(name)
        for versions, names in found.items():
            yield Finding(
                "B712", f"the engine does not feed {_few(map(repr, names))}: loading would end with "
                "'tensor [ ... ] is input but not found'", versions, self.fix, self.where,
            )  # fmt: skip
        ids = self.inputs.get("input_ids")
        if ids is not None and ids.dtype.startswith(("i", "u")):
            message = (
                f"input_ids is {ids}, ids, and the engine feeds rows of the embedding, f32[tokens, 1, width]: a crash"
            )
            yield Finding("B691", message, self.every, self.fix, self.where)
        mask = self.inputs.get("attention_mask")
        if mask is not None and mask.made and (mask.dtype not in ("f32", "") or _axes(mask) == 2):
            message = (
                f"attention_mask is {mask}, and the engine feeds f32 without axes or of [1, 1, tokens, tokens]: a crash"
            )
            yield Finding("B691", message, self.every, self.fix, self.where)
        if "logits" not in {item.name for item in self.told.outputs}:
            message = "no output is called 'logits', which the engine reads: loading would fail"
            yield Finding("B714", message, self.every, self.fix, self.where)

    def _rows(self) -> Iterator[Finding]:
        if "logits_index" in self.inputs or "logits_index" in self.lost:
            return
        fed = tuple(release.version for release in self.releases if "logits_index" in release.inputs)
        found = self.tried.inputs.find("row-choice") if self.tried.inputs is not None else None
        if found is not None and found.why == "frozen-by-tracing":
            yield Finding(
                "B689",
                f"{found.reason}, and the engine feeds the choice of rows",
                fed,
                self.fix,
                found.node or self.where,
            )
        elif fed:
            message = "the runtime feeds 'logits_index' but the model has no such input: the first token would be wrong"
            yield Finding("B713", message, fed, self.fix, self.where)

    def _history(self) -> Iterator[Finding]:
        if ("", "Softmax") in self.told.operators:
            message = (
                "its attention is written out in single operators, and the engine keeps the history in its own Attention "
                "operator: a later call would not see the tokens of earlier ones"
            )
            yield Finding("B695", message, self.every, self.fix, self.where)


def _axes(port: Port) -> int | None:
    return None if port.shape is None else len(port.shape)


def _called(domain: str, op: str) -> str:
    return op if domain in ONNX_DOMAINS[:2] else f"{domain}.{op}"


def _few(names: Any) -> str:
    """The first of some names, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"


def _read(item: Lost) -> str:
    """By whom a lost tensor is read."""
    if not item.readings:
        return f"{item.name!r} is an output that nothing makes"
    return f"{item.name!r} is read and never made: by {_few(map(str, item.readings))}"


def _converted(item: Lost) -> str:
    """What MNN's converter makes of it; tried on every one from 3.4.0 on."""
    if not item.readings:
        return "The converter would write a graph without it, and loading would fail"
    first = item.readings[0]
    if first.inside:
        return "The converter would crash, or write a file that crashes"
    prints = f"The converter would print 'has empty input, the index is {first.operand}'"
    if first.last and first.optional:
        return f"{prints}, report success and compute as if it was left out on purpose: wrong numbers"
    if first.last:
        return f"{prints} and crash, or leave it away: wrong numbers, or a crash at the first call"
    number = "write tensor number -1 in its place, at which the process dies that loads the file"
    return f"{prints} and {number}" if first.op == "Slice" else f"{prints} and crash, or {number}"


def _outcome(findings: Sequence[Finding], version: str, refused: bool) -> str:
    """What would come of converting the file as it is, and loading the result.

    Args:
        findings: all of them.
        version: a release.
        refused: its converter does not know an operator.
    """
    codes = {item.code for item in findings if item.severity == "error" and version in item.releases}
    for code, text in (
        ("B684", "not converted, or a crash" if refused else "a crash, or wrong numbers"),
        ("B687", "no converter takes it" if refused else "wrong, or an empty graph"),
        ("B712", "loading fails"),
        ("B714", "loading fails"),
        ("B691", "the first call fails"),
        ("B695", "wrong tokens"),
        ("B713", "wrong tokens"),
        ("B689", "wrong tokens"),
    ):
        if code in codes:
            return text
    return "unknown: lading compile compares it with onnxruntime"


__all__ = ["examine_onnx"]
