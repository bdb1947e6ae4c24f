"""The one place where the model is called, and where the tokens passed to it are counted."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from attrs import define, field

from agentcache.adapters.mlx.cache_adapter import ModelCache
from agentcache.adapters.mlx.spec import LanguageModel

Head = Callable[[mx.array], mx.array]
_PROBE = [[0, 1, 2]]


@define(eq=False)
class Forward:
    """A model, and where it has the shape, its body and head apart, so that the head sees one row.

    `tokens` counts every token that was passed to the model; `which` of the possible heads it is.
    """

    _model: LanguageModel
    _body: LanguageModel | None = None
    _head: Head | None = None
    which: int | None = None
    tokens: int = field(default=0, init=False)

    @classmethod
    def of(cls, model: LanguageModel) -> "Forward":
        """Take `model` apart if running its parts gives, bit for bit, what running it gives."""
        body, ids = _body_of(model), mx.array(_PROBE)
        if body is None:
            return cls(model)
        for which, head in enumerate(_heads(model, body)):
            try:
                same = mx.array_equal(head(body(ids, cache=None)), model(ids, cache=None))
                if same.item():
                    return cls(model, body, head, which)
            except Exception:  # whatever a model does to what it does not expect
                continue
        return cls(model)

    @classmethod
    def taken_apart(cls, model: LanguageModel, which: int | None) -> "Forward":
        """What `of` made of `model` before. Raises LookupError where that cannot be."""
        if which is None:
            return cls(model)
        body = _body_of(model)
        heads = _heads(model, body) if body is not None else []
        if not 0 <= which < len(heads):
            raise LookupError(f"the model has no head {which}")
        return cls(model, body, heads[which], which)

    @property
    def apart(self) -> bool:
        """Whether the head runs on the last position alone."""
        return self._head is not None

    def fill(self, ids: Sequence[int], cache: list[object]) -> None:
        """Run `ids` for their rows only. Whatever the rows do not need is never computed."""
        self._run(_row(ids), cache)

    def last(self, ids: Sequence[int], cache: list[object]) -> mx.array:
        """Run `ids`; the logits [1, vocabulary] after the last of them."""
        return self._logits(_row(ids), cache)

    def again(self, ids: Sequence[int], count: int, cache: list[object]) -> mx.array:
        """Run `ids`; the logits [count + 1, vocabulary] after the first `count` and the last."""
        out = self._run(_row(ids), cache)
        some = mx.concatenate([out[:, :count], out[:, -1:]], axis=1)
        return (some if self._head is None else self._head(some))[0]

    def next(self, ids: mx.array, cache: list[object]) -> mx.array:
        """Run one token of each sequence, `ids` [sequences]; logits [sequences, vocabulary]."""
        return self._logits(ids[:, None], cache)

    def _logits(self, ids: mx.array, cache: list[object]) -> mx.array:
        out = self._run(ids, cache)[:, -1:]
        return (out if self._head is None else self._head(out))[:, 0]

    def _run(self, ids: mx.array, cache: list[object]) -> mx.array:
        self.tokens += ids.size
        out = (self._body or self._model)(ids, cache=cache)
        if isinstance(cache, ModelCache):
            cache.ran(ids.shape[1])
        return out


def _row(ids: Sequence[int]) -> mx.array:
    return mx.array(np.asarray(ids, np.int32)[None])


def _body_of(model: LanguageModel) -> LanguageModel | None:
    body: LanguageModel | None = getattr(model, "model", getattr(model, "backbone", None))
    return body


def _heads(model: LanguageModel, body: object) -> list[Head]:
    embedding = getattr(body, "embed_tokens", None)
    found = (getattr(model, "lm_head", None), getattr(embedding, "as_linear", None))
    return [head for head in found if head is not None]
