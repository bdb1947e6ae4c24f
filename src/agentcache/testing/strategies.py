"""Hypothesis strategies for values of the domain and for what crosses the ports."""

import numpy as np
from attrs import evolve
from hypothesis import strategies as st

from agentcache.domain.conversation import Message, ToolCall
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey, Usage
from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.spec import CacheSpec, LayerKind, LayerSpec, StateArray
from agentcache.domain.tokens import tokens
from agentcache.domain.trace import Trace
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import RowArray, Rows, empty_rows

ROOT = bytes(range(32))
OTHER_ROOT = bytes(32)
FLOATS = ("float32", "float16", "bfloat16")

# Any `str` at all: NULs, and surrogates that stand alone.
texts = st.text(st.characters(exclude_categories=()), max_size=20)
names = st.text(st.characters(exclude_categories=()), min_size=1, max_size=8)
ids = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 3), max_size=12).map(tokens)
some_ids = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tokens)
keys = st.binary(min_size=32, max_size=32)
digests = st.binary(max_size=16)
times = st.floats(0, 2**40)

_dims = st.sampled_from([1, 2, 3, 8, 40, 64, 80])
_states = st.lists(
    st.builds(
        StateArray,
        st.lists(st.integers(1, 4), max_size=3).map(tuple),
        st.sampled_from(["float32", "float16", "bfloat16", "int32"]),
    ),
    min_size=1,
    max_size=2,
).map(tuple)
_full = st.builds(LayerSpec.full, st.integers(1, 3), _dims, _dims | st.just(0))
_window = st.builds(
    lambda layer, window: evolve(layer, kind=LayerKind.WINDOW, window=window),
    _full,
    st.integers(1, 6),
)
_state = st.builds(lambda arrays: LayerSpec(LayerKind.STATE, state=arrays), _states)


def specs(dtypes: tuple[str, ...] = FLOATS) -> st.SearchStrategy[CacheSpec]:
    """Caches of a few layers of any kind, some of the same shape."""
    shapes = st.lists(_full | _window | _state, min_size=1, max_size=3)
    layers = shapes.flatmap(lambda some: st.lists(st.sampled_from(some), min_size=1, max_size=4))
    return st.builds(CacheSpec, layers.map(tuple), st.sampled_from(dtypes))


def full_specs(dtypes: tuple[str, ...] = FLOATS) -> st.SearchStrategy[CacheSpec]:
    """Caches of full layers alone."""
    return st.builds(
        CacheSpec, st.lists(_full, min_size=1, max_size=3).map(tuple), st.sampled_from(dtypes)
    )


@st.composite
def rows(draw: st.DrawFn, spec: CacheSpec, count: int, wild: bool = False) -> Rows:
    """Rows [0, count) of `spec` in buffers with slack; `wild` ones hold any bits whatever."""
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = empty_rows(spec, 0, count, capacity=count + draw(st.integers(0, 3)))
    for array in (*made.full.values(), *made.window.values(), *made.state.values()):
        kind = draw(st.integers(0, 4 if wild else 2))
        array[...] = _numbers(noise, array, spec.dtype, kind)
    return made


def _numbers(noise: np.random.Generator, array: RowArray, dtype: str, kind: int) -> RowArray:
    """Numbers about 0, about 100, constant, any bits, or mostly tame with a few of any bits."""
    if array.dtype.kind not in "fu" or kind == 3:
        return _bits(noise, array)
    tame = (
        np.full(array.shape, 1.5) if kind == 2 else noise.normal(100 * (kind == 1), 3, array.shape)
    )
    numbers = _rounded(tame.astype(np.float32), array, dtype)
    few = noise.random(array.shape) < (0.02 if kind == 4 else 0)
    return np.where(few, _bits(noise, array), numbers)


def _bits(noise: np.random.Generator, array: RowArray) -> RowArray:
    return np.frombuffer(noise.bytes(array.nbytes), array.dtype).reshape(array.shape)


def _rounded(numbers: RowArray, array: RowArray, dtype: str) -> RowArray:
    if array.dtype == np.uint16:  # bfloat16: the upper half of a float32
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(array.dtype)


@st.composite
def payloads(draw: st.DrawFn, count: int) -> Payload:
    """Payloads of `count` rows with tensors of any dtype, some of them empty."""
    tensors = {}
    for name, dtype, item in (("g0.k", "F32", 4), ("g0.v", "BF16", 2), ("s1.0", "U8", 1)):
        width = draw(st.integers(0, 5))
        data = draw(st.binary(min_size=count * width * item, max_size=count * width * item))
        tensors[name] = Tensor(dtype, (count, width), memoryview(data))
    return Payload("native", count, tensors)


@st.composite
def children(draw: st.DrawFn, known: list[Segment], root: bytes = ROOT) -> Segment:
    """A segment that follows one of `known` at any of its rows, or the root."""
    parent = draw(st.sampled_from([None, *known]))
    if parent is None:
        return Segment.following(root, None, 0, draw(some_ids), draw(st.integers(0, 99)))
    row = draw(st.integers(parent.start + 1, parent.stop))
    return Segment.following(parent.root, parent.key, row, draw(some_ids), draw(st.integers(0, 99)))


spans = st.builds(Span, st.sampled_from(SpanKind), names, texts, ids)
tool_calls = st.builds(ToolCall, names, names, texts)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    texts,
    st.none() | names,
    st.lists(tool_calls, max_size=2).map(tuple),
    st.none() | names,
)
session_keys = st.builds(SessionKey, names, st.just(ROOT), names)


@st.composite
def cursors(draw: st.DrawFn, known: list[Segment]) -> Cursor | None:
    """A row of one of `known`, or none."""
    segment = draw(st.sampled_from([None, *known]))
    if segment is None:
        return None
    return Cursor(segment.key, draw(st.integers(segment.start + 1, segment.stop)))


_logs = st.floats(-100, 0, width=32)
_tops = st.lists(st.tuples(st.integers(0, 2**32 - 1), _logs), max_size=8).map(tuple)
traces = st.builds(Trace, st.integers(3, 2**40), st.lists(_tops, min_size=1, max_size=3).map(tuple))


@st.composite
def sessions(draw: st.DrawFn, known: list[Segment], key: SessionKey | None = None) -> Session:
    """A session whose cursor is at one of `known`."""
    return Session(
        key or draw(session_keys),
        tuple(draw(st.lists(spans, max_size=6))),
        draw(cursors(known)),
        draw(digests),
        draw(st.none() | names),
        draw(st.booleans()),
        draw(times),
        draw(times),
        draw(st.integers(0, 2**40)),
        tuple(draw(st.lists(messages, max_size=4))),
        draw(texts),
        draw(st.none() | times),
        Usage(*draw(st.lists(st.integers(0, 2**40), min_size=3, max_size=3))),
        draw(st.none() | traces),
    )
