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
class Found:
    """What was found out about a model, by running it: all that it takes to serve it.

    The kinds of its caches, where they live and how decode runs; `latent` as in `MLXCacheAdapter`,
    `head` is `Forward.which`.
    """

    spec: CacheSpec
    vocabulary: int
    in_buffers: bool
    batching: Batching
    latent: bool = False
    head: int | None = None

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


@frozen(eq=False)
class Fitted:
    """A model with the caches that suit it, as was `found` out; `known` if that was before."""

    forward: Forward
    adapter: MLXCacheAdapter
    found: Found
    known: bool = False


def fitted(model: LanguageModel, name: str, on_cpu: bool) -> Fitted:
    """Find out what suits `model`.

    Raises ModelError for a model that cannot be run, or goes on from nothing that can be stored.
    """
    forward = Forward.of(model)
    spec, vocabulary = probed(model, name)
    adapter, verdict = _batched(_adapter(model, forward, spec, name, on_cpu), forward)
    found = Found(
        adapter.spec,
        vocabulary,
        adapter.in_buffers,
        Batching.of(verdict),
        adapter.latent,
        forward.which,
    )
    return Fitted(forward, adapter, found)


def as_found(model: LanguageModel, found: Found, on_cpu: bool) -> Fitted | None:
    """What was `found` out about `model` before; None where it cannot be about this one."""
    if found.in_buffers and not on_cpu:
        return None
    adapter = evolve(MLXCacheAdapter.of(model, found.spec, found.in_buffers), latent=found.latent)
    if adapter.in_buffers != found.in_buffers or len(found.spec.layers) != adapter.count:
        return None
    try:
        return Fitted(Forward.taken_apart(model, found.head), adapter, found, known=True)
    except LookupError:
        return None


def told(name: str, found: Found) -> None:
    """Log what somebody who runs the model should know."""
    log.info("the caches of %s: %s", name, found.kinds)
    for note in found.notes:
        log.warning("%s: %s", name, note)


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
