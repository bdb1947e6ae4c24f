"""What it costs to come back, for every kind of cache: models of random weights, in this process.

A sequence of some thousand tokens goes on by 30: live, from RAM, from disk, and from nothing.
Writes benchmarks/results/shapes.json and docs/shapes.md.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

from attrs import frozen
from recording import ROOT, parsed, write_results
from shapes_report import report

sys.path.insert(0, str(ROOT))

from agentcache.adapters.codecs import codec
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.mlx.engine import BlasThreads, MLXEngine
from agentcache.domain.plan import PrefillChunk
from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.domain.tokens import tokens
from agentcache.ports.payload import Payload
from agentcache.testing.driving import GREEDY, Driver
from tests.parking import Parking
from tests.tiny_shapes import SHAPES, UNKNOWN, Shape

CODECS = ("native", "f16", "q8", "k8v4", "q4")
NEW = 30
# What makes the tiny models of the tests large enough to be measured.
LARGER: Mapping[str, Mapping[str, object]] = {
    "gemma3_text": {"sliding_window": 256, "num_hidden_layers": 6},
    "gpt_oss": {
        "sliding_window": 256,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    },
    "mamba2": {"num_hidden_layers": 6, "num_heads": 16, "head_dim": 32, "intermediate_size": 512},
    "falcon_h1": {"mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32},
    "deepseek_v2": {"kv_lora_rank": 128, "qk_rope_head_dim": 64, "v_head_dim": 64},
    "deepseek_v3": {"kv_lora_rank": 128, "qk_rope_head_dim": 64, "v_head_dim": 64},
    "deepseek_v41": {"sliding_window": 64, "head_dim": 32},
}
WIDER: Mapping[str, object] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "head_dim": 64,
    "max_position_embeddings": 16384,
}


@frozen
class Cost:
    """Median seconds from the request to the first token."""

    hot: float
    warm: float
    cold: float
    prefill: float


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--only", default="", help="part of the name of an architecture")
    options = parsed(parser, tokens=256, repeat=1, only="llama")
    found = {
        name: _measured(name, shape, options.tokens, options.repeat)
        for name, shape in (SHAPES | UNKNOWN).items()
        if options.only in name
    }
    results = {"tokens": options.tokens, "new tokens": NEW, **found}
    write_results("shapes", results, options.quick or bool(options.only))
    if not (options.quick or options.only):
        (ROOT / "docs" / "shapes.md").write_text(report(found, options.tokens, os.getloadavg()[1]))


def _measured(name: str, shape: Shape, count: int, repeat: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        folder = _larger(name, shape).made(Path(scratch) / name)
        engine = MLXEngine.load(folder, b"bench", name, threads=BlasThreads(2, 1, 2))
        parking = _parked(Driver(engine), Path(scratch), count)
        cost = _cost(parking, count, repeat)
        seen, spec = engine.report, engine.card.spec
        result = {
            "caches": seen.kinds,
            "rows live in": "numpy buffers" if seen.in_buffers and spec.groups else "MLX arrays",
            "decode": seen.batching.mode,
            "why": seen.batching.reason,
            "notes": list(seen.notes),
            "ms hot": round(1000 * cost.hot, 1),
            "ms from RAM": round(1000 * cost.warm, 1),
            "ms from disk": round(1000 * cost.cold, 1),
            "ms from nothing": round(1000 * cost.prefill, 1),
            "RAM / hot": round(cost.warm / cost.hot, 2),
            "disk / hot": round(cost.cold / cost.hot, 2),
            "bytes": {one: _bytes(parking, spec, one, count) for one in CODECS},
        }
        parking.store.close()
        engine.close()
        print(name, {key: value for key, value in result.items() if key.startswith("ms")})
        return result


def _larger(name: str, shape: Shape) -> Shape:
    if name == "llama4":
        text = {**shape.config["text_config"], **WIDER}
        text |= {"num_hidden_layers": 8, "attention_chunk_size": 256, "intermediate_size_mlp": 512}
        return Shape(shape.kinds, shape.batching, {**shape.config, "text_config": text})
    wider = {key: value for key, value in WIDER.items() if key in shape.config}
    if name in ("deepseek_v41", "llama4_text"):
        wider.pop("num_hidden_layers")
    config = {**shape.config, **wider, **LARGER.get(name, {})}
    return Shape(shape.kinds, shape.batching, config)


def _parked(driver: Driver, scratch: Path, count: int) -> Parking:
    """Sequence 1 with all its tokens, kept in segments of up to 1,024 of them, also on disk."""
    parking = Parking(driver, DiskSegmentStore.open(scratch / "segments", scratch / "aside"))
    driver.engine.start(1, count + 64)
    ids = _ids(count)
    for start, stop in pairwise((*range(0, count, 512), count)):
        driver.step(PrefillChunk(1, start, tokens(ids[start:stop])))
        if stop % 1024 == 0 or stop == count:
            parking.keep(1, ids[:stop])
    for segment in parking.segments:
        parking.store.put(segment, parking.warm[segment.key])
    return parking


def _cost(parking: Parking, count: int, repeat: int) -> Cost:
    driver, warm = parking.driver, dict(parking.warm)

    def again(prepare: Callable[[], int]) -> float:
        seconds = []
        for _ in range(repeat):
            started = time.perf_counter()
            sequence = prepare()
            stop = driver.engine._live[sequence].cache.length
            driver.prefill(sequence, _ids(NEW), stop, chunk=512)
            seconds.append(time.perf_counter() - started)
            driver.engine.drop(sequence)
        return statistics.median(seconds)

    def restored(payloads: Mapping[bytes, Payload]) -> int:
        parking.warm = dict(payloads)
        parking.restore(2, count, capacity=count + 64)
        return 2

    def anew() -> int:
        driver.engine.start(2, count + 64)
        driver.prefill(2, _ids(count), chunk=512)
        return 2

    warm_cost, cold_cost = again(lambda: restored(warm)), again(lambda: restored({}))
    parking.warm = warm
    prefill = again(anew) if repeat < 3 else _once(anew, driver)
    return Cost(_hot(parking, count, repeat), warm_cost, cold_cost, prefill)


def _once(begin: Callable[[], int], driver: Driver) -> float:
    started = time.perf_counter()
    driver.engine.drop(begin())
    return time.perf_counter() - started


def _hot(parking: Parking, count: int, repeat: int) -> float:
    """Each time with a sequence that has just run all its tokens, restored beforehand."""
    driver, seconds = parking.driver, []
    for _ in range(repeat):
        parking.restore(2, count, capacity=count + 64)
        driver.prefill(2, _ids(1), count)  # its memory is touched, whatever is lazy is done
        started = time.perf_counter()
        driver.step(PrefillChunk(2, count + 1, tokens(_ids(NEW)), GREEDY))
        seconds.append(time.perf_counter() - started)
        driver.engine.drop(2)
    return statistics.median(seconds)


def _bytes(parking: Parking, spec: CacheSpec, name: str, count: int) -> dict[str, float]:
    """Of a segment of all tokens: bytes a token of full layers; bytes in all of other kinds."""
    rows = parking.driver.engine.export(1, 0, count)
    payload = codec(name).encode(spec, rows)
    kinds = {group.name: group.kind for group in spec.groups}
    held = dict.fromkeys(LayerKind, 0)
    for tensor, one in payload.tensors.items():
        group = tensor.partition(".")[0]
        other = LayerKind.WHOLE if group in spec.whole else LayerKind.STATE
        held[kinds.get(group, other)] += one.data.nbytes
    return {
        "full, a token": round(held[LayerKind.FULL] / count, 1),
        "windows": held[LayerKind.WINDOW],
        "states": held[LayerKind.STATE],
        "whole": held[LayerKind.WHOLE],
    }


def _ids(count: int) -> list[int]:
    return [13 * n % 250 + 3 for n in range(count)]


if __name__ == "__main__":
    main()
