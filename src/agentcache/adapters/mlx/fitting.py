"""Which caches suit a model: the best of those with which it says what it says with its own."""

import logging
from collections import Counter
from typing import Literal

from attrs import evolve, frozen

from agentcache.adapters.mlx.cache_adapter import MLXCacheAdapter
from agentcache.adapters.mlx.forward import Forward
from agentcache.adapters.mlx.probe import Verdict, ragged_works, restoring_works, single_works
from agentcache.adapters.mlx.spec import LanguageModel, all_whole, probed
from agentcache.domain.errors import ModelError
from agentcache.domain.spec import CacheSpec, LayerKind, LayerSpec

log = logging.getLogger(__name__)


@frozen
class Batching:
    """How decode runs, and if not in one forward for all sequences, why not."""

    mode: Literal["ragged", "single"]
    reason: str = ""

    @classmethod
    def of(cls, verdict: Verdict) -> "Batching":
        """The mode that a probe allows."""
        return cls("ragged" if verdict.works else "single", verdict.reason)


@frozen
class CacheReport:
    """What was found out about a model's caches: their kinds, where they live, how decode runs."""

    spec: CacheSpec
    in_buffers: bool
    batching: Batching

    @property
    def kinds(self) -> str:
        """How many caches of which kind: `4 full, 20 window(512)`."""
        counts = Counter(_kind(layer) for layer in self.spec.layers)
        return ", ".join(f"{count} {kind}" for kind, count in counts.items())

    @property
    def notes(self) -> tuple[str, ...]:
        """What somebody who runs the model should know; nothing if all is as good as it gets."""
        notes = [
            f"{count} of {len(self.spec.layers)} caches are kept whole, at the ends of segments "
            f"only: {reason}"
            for reason, count in Counter(self.spec.whole.values()).items()
        ]
        if self.batching.mode == "single":
            notes.append(f"sequences decode one after another: {self.batching.reason}")
        return tuple(notes)


def fitted(
    model: LanguageModel, forward: Forward, name: str, on_cpu: bool
) -> tuple[MLXCacheAdapter, int, CacheReport]:
    """Caches for `model`, the size of its vocabulary, and a report, which is logged, too.

    Raises ModelError for a model that cannot be run, or goes on from nothing that can be stored.
    """
    spec, vocabulary = probed(model, name)
    adapter, verdict = _batched(_adapter(model, forward, spec, name, on_cpu), forward)
    report = CacheReport(adapter.spec, adapter.in_buffers, Batching.of(verdict))
    log.info("the caches of %s: %s", name, report.kinds)
    for note in report.notes:
        log.warning("%s: %s", name, note)
    return adapter, vocabulary, report


def _adapter(
    model: LanguageModel, forward: Forward, spec: CacheSpec, name: str, on_cpu: bool
) -> MLXCacheAdapter:
    verdict = Verdict(False)
    for in_buffers in (True, False) if on_cpu else (False,):
        adapter = MLXCacheAdapter.of(model, spec, in_buffers)
        verdict = _usable(model, forward, adapter)
        if verdict.works:
            return adapter
    adapter = MLXCacheAdapter.of(model, all_whole(spec, verdict.reason), in_buffers=False)
    verdict = _usable(model, forward, adapter)
    if not verdict.works:
        raise ModelError(name, f"its caches cannot be stored: {verdict.reason}")
    return adapter


def _batched(adapter: MLXCacheAdapter, forward: Forward) -> tuple[MLXCacheAdapter, Verdict]:
    """With the shape in which the model takes rows of several sequences, and whether it does."""
    verdict = ragged_works(forward, adapter)
    if verdict.works or adapter.in_buffers:
        return adapter, verdict
    latent = evolve(adapter, latent=True)
    return (latent, Verdict(True)) if ragged_works(forward, latent).works else (adapter, verdict)


def _usable(model: LanguageModel, forward: Forward, adapter: MLXCacheAdapter) -> Verdict:
    verdict = single_works(model, forward, adapter)
    return restoring_works(forward, adapter) if verdict.works else verdict


def _kind(layer: LayerSpec) -> str:
    if layer.kind is LayerKind.WINDOW:
        return f"window({layer.window})"
    return str(layer.kind.value)
