"""The model as the engine runs it, but with the logits of every token; parking and resuming.

Import it after the BLAS has been loaded: it imports MLX.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from tokenizers import Tokenizer

from agentcache.adapters.mlx import cpu, handles
from agentcache.adapters.mlx.cache_adapter import MLXCacheAdapter
from agentcache.adapters.mlx.forward import Forward
from agentcache.adapters.mlx.live import LiveCache
from agentcache.adapters.mlx.loading import load_folder
from agentcache.adapters.mlx.spec import LanguageModel, probed
from agentcache.domain.spec import CacheSpec
from agentcache.ports.codec import Codec
from agentcache.ports.payload import Payload

CHUNK = 128

Logs = NDArray[np.float32]


@frozen(eq=False)
class Model:
    """A loaded model, its tokenizer and its live caches."""

    model: LanguageModel
    forward: Forward
    adapter: MLXCacheAdapter
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path) -> "Model":
        """Load the MLX folder `folder`; on a CPU with the kernels that the engine uses there."""
        model = load_folder(folder, folder.name).model
        on_cpu = mx.default_device() == mx.Device(mx.cpu)
        if on_cpu:
            cpu.install()
        handles.install()
        spec, _ = probed(model, folder.name)
        adapter = MLXCacheAdapter.of(model, spec, in_buffers=on_cpu)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(model, Forward.of(model), adapter, tokenizer)

    @property
    def spec(self) -> CacheSpec:
        """What a row is made of."""
        return self.adapter.spec

    def run(self, cache: LiveCache, ids: Sequence[int]) -> None:
        """Add the rows of `ids`."""
        for start in range(0, len(ids), CHUNK):
            self.forward.fill(ids[start : start + CHUNK], self.adapter.single(cache))
            cache.settle()

    def logs(self, cache: LiveCache, ids: Sequence[int]) -> Iterator[Logs]:
        """Run `ids`; the logarithms of the probabilities after each, [up to 128, vocabulary]."""
        for start in range(0, len(ids), CHUNK):
            chunk = mx.array([list(ids[start : start + CHUNK])])
            logits = self.model(chunk, cache=self.adapter.single(cache))
            cache.ran(chunk.shape[1])
            yield _log_softmax(np.array(logits.astype(mx.float32))[0])

    def greedy(self, caches: Sequence[LiveCache], token: int, steps: int) -> NDArray[np.int64]:
        """What each of `caches` says after `token`, always the likeliest: [caches, steps]."""
        said = [np.full(len(caches), token)]
        for _ in range(steps):
            cache = self.adapter.ragged(caches)
            logits = self.forward.next(mx.array(said[-1]), cache)
            said.append(np.argmax(np.array(logits.astype(mx.float32)), axis=-1))
        return np.stack(said[1:], axis=1)

    def park(self, codec: Codec, cache: LiveCache, start: int = 0) -> Payload:
        """Export and encode the rows from `start` on."""
        return codec.encode(self.spec, cache.rows(start, cache.length))

    def resume(self, codec: Codec, segments: Sequence[Payload], capacity: int) -> LiveCache:
        """Decode segments one behind the other into a new cache's buffers, and adopt them."""
        cache = self.adapter.empty(capacity)
        stop, total = 0, sum(payload.rows for payload in segments)
        blank = cache.blank(total)
        for payload in segments:
            start, stop = stop, stop + payload.rows
            codec.decode(self.spec, payload, blank.part(start, stop))
        cache.adopt(total)
        return cache


def _log_softmax(logits: Logs) -> Logs:
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits
