"""How much load the stress tests make: small in CI, in full with `make stress`, long in a soak.

AGENTCACHE_TEST_SCALE names one of SCALES; without it they are small.
"""

import os

from attrs import evolve, frozen


@frozen
class Scale:
    """The sizes of all stress tests. What an issue or a document promises is in FULL.

    Burst and ramp count clients; `window` is in CPU seconds of the server, `sustained` in seconds.
    `limit` is how many seconds a test may take before it counts as hanging.
    """

    burst: int = 150
    retriers: int = 150
    saturating: int = 6
    overloading: int = 60
    window: float = 6.0
    windows: int = 5
    ramp: tuple[int, ...] = (10, 25, 50, 75, 100)
    rapid: tuple[int, int] = (10, 50)
    returning: int = 60
    returns: int = 12
    storm: int = 100
    storms: int = 5
    mixed: int = 40
    mixed_turns: int = 12
    killed: int = 24
    kills: int = 8
    swapped: int = 24
    swaps: int = 6
    slow: int = 20
    disk_agents: int = 24
    disk_rounds: int = 4
    tiny: int = 2_000
    huge: int = 7_000
    sustained: float = 300.0
    limit: float = 3_600.0


FULL = Scale()
SMALL = Scale(
    retriers=60,
    overloading=40,
    window=2.0,
    windows=2,
    ramp=(10, 40, 100),
    rapid=(10, 20),
    returning=24,
    returns=4,
    storm=50,
    storms=2,
    mixed=16,
    mixed_turns=4,
    killed=10,
    kills=2,
    swapped=8,
    swaps=2,
    slow=8,
    disk_agents=10,
    disk_rounds=2,
    tiny=300,
    huge=4_000,
    sustained=90.0,
    limit=300.0,
)
SCALES = {"small": SMALL, "full": FULL, "soak": evolve(FULL, sustained=3_600.0, limit=7_200.0)}
SCALE = SCALES[os.environ.get("AGENTCACHE_TEST_SCALE", "small")]
