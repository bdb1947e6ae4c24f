"""What the MLX engine samples from, for tests that compare bits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from agentcache.adapters.mlx import blas

blas.load()

import mlx.core as mx  # noqa: E402

from agentcache.adapters.mlx import runner, sampling  # noqa: E402
from agentcache.adapters.mlx.sampling import Choice, Draw  # noqa: E402

Logits = NDArray[np.float32]


@contextmanager
def listening() -> Iterator[list[Logits]]:
    """The logits of every forward that samples, in order."""
    found: list[Logits] = []
    choose = sampling.choose

    def listen(logits: Logits | mx.array, draws: Sequence[Draw], at: Sequence[int]) -> Choice:
        found.append(np.array(logits))
        return choose(logits, draws, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "choose", listen)
        yield found
