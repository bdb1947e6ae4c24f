"""A process of its own that goes on from segments on disk: `restored_elsewhere` runs it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.testing.driving import Driver
from tests.listening import Logits, listening
from tests.parking import STEPS, SUFFIX, Parking

from agentcache.adapters.mlx.engine import MLXEngine  # isort: skip  (after the BLAS)

RESTORED_AT = (5, 33)
SECONDS = 300.0


def restored_elsewhere(
    models: Mapping[str, Path], stores: Path, ends: Sequence[int]
) -> dict[str, Logits]:
    """What another process says that restores HISTORY from `stores`/model/end and goes on."""
    told = stores / "told.npz"
    named = [f"{name}={folder}" for name, folder in models.items()]
    cuts = ",".join(map(str, ends))
    command = [sys.executable, "-m", "tests.shape_process", str(stores), str(told), cuts, *named]
    subprocess.run(command, check=True, timeout=SECONDS)
    with np.load(told) as found:
        return {name: found[name] for name in found.files}


def _restored(driver: Driver, store: DiskSegmentStore, ends: Sequence[int]) -> Logits:
    parking = Parking(driver, store)
    parking.know(ends)
    parking.restore(1, ends[-1])
    with listening() as heard:
        driver.prefill(1, SUFFIX, ends[-1], chunk=4)
        driver.decode(1, steps=STEPS)
    driver.engine.drop(1)
    return np.concatenate(heard)


def main(stores: Path, told: Path, ends: Sequence[int], models: Mapping[str, Path]) -> None:
    found: dict[str, Logits] = {}
    for name, folder in models.items():
        driver = Driver(MLXEngine.load(folder, b"tiny", name))
        for end in RESTORED_AT:
            store = DiskSegmentStore.open(stores / f"{name}.{end}", stores / "aside")
            found[f"{name}.{end}"] = _restored(driver, store, [one for one in ends if one <= end])
            store.close()
        driver.engine.close()
    np.savez(told, **found)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        [int(end) for end in sys.argv[3].split(",")],
        {name: Path(folder) for name, folder in (one.split("=", 1) for one in sys.argv[4:])},
    )
