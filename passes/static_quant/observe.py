"""Observe within which range every activation lies on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from zipfile import BadZipFile

import numpy as np

from ir.base.diag import LadingError
from ir.base.store import Store
from ir.evaluate.evaluator import Evaluator
from ir.facts.activation_ranges import ActivationRange, ActivationRanges
from ir.graph.copy import copied
from ir.graph.digests import value_digests
from ir.graph.graph import Graph, Value
from ir.quant.statistics.samples import CalibrationSamples, Feed, Samples
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.inputs.language_model import looks_like_one
from passes.static_quant.histogram import Chosen, Histogram, Method
from passes.static_quant.operators import observed_values, units_of

FORMAT = "activations 1"
"""Part of every key; another one when histograms are made otherwise."""


@dataclass(frozen=True)
class Observe(Pass):
    """Observe within which range every activation lies that could be stored in 8 bits.

    The float model is run on the calibration data with its intermediate values exposed, in groups that fit in memory;
    kept are histograms, from which a method chooses ranges. They stay in the cache folder, and are not made again while
    graph, weights and samples are the same, whatever the method.
    """

    name = "observe"
    requires = ("typed",)
    establishes = ("activation-ranges",)
    passing = frozenset({"computed", "cached"})

    method: Method = option("mse", help="how a range is chosen from what occurred")
    percentile: float = option(99.99, help="percent that the range of that method holds", low=50.0, high=100.0)
    samples: int = option(256, help="most samples to run", low=1)
    memory: int = option(1024, help="MiB of exposed values to hold at once", low=1)
    threads: int = option(0, help="threads of the evaluation; 0 for one per processor", low=0)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        refuse_language_models(graph)
        samples = required_samples(ctx).calibration.first(self.samples)
        values = observed_values(units_of(graph))
        keys = keys_of(graph, values, samples)
        store = ctx.store
        found = {value: kept for value in values if (kept := _load(store, keys[value])) is not None}
        missing = [value for value in values if value not in found]
        if missing:
            found |= self._gathered(graph, missing, samples, ctx)
            for value in missing:
                _save(store, keys[value], found[value])
        chosen = Chosen(self.method, self.percentile)
        ranges = {value.name: _range(found[value], chosen, value) for value in values}
        told = f"percentile {self.percentile:g}" if self.method == "percentile" else self.method
        fact = ActivationRanges(samples.digest(), len(samples), told, ranges)
        graph.set_fact(fact.name, fact)
        return {"values": len(values), "computed": len(missing), "cached": len(values) - len(missing)}

    def _gathered(
        self, graph: Graph, values: Sequence[Value], samples: Samples, ctx: PassContext
    ) -> dict[Value, Histogram]:
        """Histograms of some values over all samples."""
        found = {value: Histogram() for value in values}
        groups = list(_groups(_sizes(graph, values, next(iter(samples))), self.memory << 20))
        steps = len(groups) * len(samples)
        for number, group in enumerate(groups):
            fed = [value for value in group if value.is_input]
            made = [value.name for value in group if not value.is_input]
            evaluator = Evaluator(graph, made, threads=self.threads or None) if made else None
            by_name = {value.name: value for value in group}
            for place, feed in enumerate(samples):
                ctx.progress(number * len(samples) + place, steps, f"observing {len(samples)} samples")
                arrays = {value.name: feed[value.name] for value in fed}
                if evaluator is not None:
                    arrays |= evaluator.run(feed)
                for name, array in arrays.items():
                    found[by_name[name]].add(array)
        ctx.progress(steps, steps, f"observing {len(samples)} samples")
        return found


def refuse_language_models(graph: Graph) -> None:
    """Static quantization is for models whose inputs are like those that they are calibrated on.

    Raises:
        LadingError: Q478 for a language model.
    """
    if looks_like_one(graph):
        raise LadingError(
            "Q478",
            "static quantization of activations is for models that read no tokens, and this is a language model",
            graph.name,
            "runtimes quantize activations of language models while they run: --passes int8, or --budget 4.5bpw",
        )


def required_samples(ctx: PassContext) -> CalibrationSamples:
    """The calibration data of a run.

    Raises:
        LadingError: Q472 there is none.
    """
    found = ctx.get(CalibrationSamples, None)
    if found is None or not len(found.calibration):
        raise LadingError(
            "Q472",
            "activation ranges are observed on calibration data, and none is given",
            hint="--calibration FILE.npz with an array for each input, or a folder of such files: 16 to 512 samples of "
            "what the model is used for, prepared as for the model",
        )
    return found


def keys_of(graph: Graph, values: Sequence[Value], samples: Samples) -> dict[Value, str]:
    """Names of the histograms in a store: digests of all that their numbers follow from."""
    digests = value_digests(graph, values, lambda value: value.name)
    said = samples.digest()
    found = {}
    for value in values:
        state = blake2b(digest_size=16)
        for part in (FORMAT, said, digests[value]):
            state.update(part.encode() + b"\0")
        found[value] = f"activations/{state.hexdigest()}"
    return found


def _load(store: Store, key: str) -> Histogram | None:
    kept = store.find(key)
    if kept is None:
        return None
    try:
        with np.load(kept.path, allow_pickle=False) as held:
            return Histogram.of_arrays(held["numbers"], held["counts"], held["seen"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _save(store: Store, key: str, found: Histogram) -> None:
    if not found.finite:
        return
    with store.put(key, "Q431", "activation ranges") as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **found.arrays_of())


def _range(seen: Histogram, chosen: Chosen, value: Value) -> ActivationRange:
    """The range of a value.

    Raises:
        LadingError: Q476 what occurred was not finite.
    """
    if not seen.finite:
        raise LadingError(
            "Q476",
            f"%{value.name} is not finite on the calibration data",
            where=repr(value.producer or value),
            hint="look for NaN and infinities in the data, and for data that is not prepared as the model takes it",
        )
    low, high = map(float, chosen.range(seen))
    extremes = (seen.low, seen.high) if seen.elements else (0.0, 0.0)
    return ActivationRange(low, high, *extremes, seen.elements // max(1, seen.arrays))


def _sizes(graph: Graph, values: Sequence[Value], feed: Feed) -> dict[Value, int]:
    """Bytes of each value for one set of inputs, which the model is run on once."""
    twin = copied(graph)
    counted = {value: twin.add("Size", [twin.value(value.name)]).output.name for value in values}
    found = Evaluator(twin, list(counted.values())).run(feed)
    return {value: 4 * int(found[name]) for value, name in counted.items()}


def _groups(sizes: Mapping[Value, int], limit: int) -> Iterator[list[Value]]:
    """The values in groups of at most so many bytes, as far as single ones are no larger."""
    group: list[Value] = []
    total = 0
    for value, nbytes in sizes.items():
        if group and total + nbytes > limit:
            yield group
            group, total = [], 0
        group.append(value)
        total += nbytes
    if group:
        yield group


__all__ = ["Observe", "keys_of", "refuse_language_models", "required_samples"]
