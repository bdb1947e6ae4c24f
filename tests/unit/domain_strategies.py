"""Hypothesis strategies, and a few values, for the tests of pool, lineage, registry and planner."""

from hypothesis import strategies as st

from agentcache.domain.spec import CacheSpec, LayerKind, LayerSpec, StateArray

FULL = CacheSpec((LayerSpec.full(2, 4),))
WINDOW = CacheSpec((LayerSpec.full(2, 4), LayerSpec(LayerKind.WINDOW, 2, 4, 4, window=8)))
STATE = CacheSpec(
    (LayerSpec.full(2, 4), LayerSpec(LayerKind.STATE, state=(StateArray((3,), "float32"),)))
)
SPECS = {"full": FULL, "window": WINDOW, "state": STATE}

cache_specs = st.sampled_from([FULL, WINDOW, STATE])
tiny_ids = st.lists(st.integers(0, 1), min_size=1, max_size=5)
