"""What a codec costs in quality: a text goes on from rows as they were, and from decoded ones.

Rows go the way they go in the server: exported, encoded, decoded into a new sequence's buffers,
adopted. The texts are topics of Python's own language reference (`pydoc_data`), in English. Writes
benchmarks/results/fidelity.json, docs/fidelity.md and its plots; takes minutes on two cores.
"""

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import fidelity_report
import numpy as np
from attrs import define, field, frozen
from driver import MODEL, default_model, tiny_model
from numpy.typing import NDArray
from plain_q4 import PlainQ4
from recording import parsed, write_results

from agentcache.adapters.codecs import CODECS, codec
from agentcache.adapters.mlx import blas
from agentcache.ports.codec import Codec
from agentcache.ports.payload import Payload

blas.load()

from scoring import LiveCache, Logs, Model  # noqa: E402  (MLX after its BLAS)

TOPICS = ("types", "specialnames", "compound", "debugger", "formatstrings", "string-methods")
PLAIN = "plain q4"
MEASURED = {**CODECS, PLAIN: PlainQ4()}
DRIFTING = ("q8", "k8v4", "q4")
FIRST, PIECE = 256, 32

Ids = list[int]


@define
class Loss:
    """What was lost at each token, over all texts."""

    surprise: list[float] = field(factory=list)  # natural log of native's probability over ours
    divergence: list[float] = field(factory=list)
    same: list[bool] = field(factory=list)  # whether the likeliest token is the same
    greedy: list[int] = field(factory=list)  # tokens said before the first other one

    def add(self, native: "Truth", ours: Logs, following: Sequence[int]) -> None:
        """Compare logarithms of probabilities, [tokens, vocabulary]; the text has `following`."""
        at = np.arange(len(following))
        self.surprise += (native.logs[at, following] - ours[at, following]).tolist()
        self.divergence += native.divergence(ours).tolist()
        self.same += (native.best == ours.argmax(axis=-1)).tolist()

    def summary(self) -> dict[str, object]:
        """Perplexity's change in per cent and its standard error, KL, agreement, divergence."""
        error = np.std(self.surprise) / np.sqrt(len(self.surprise))
        return {
            "perplexity_percent": _rounded(100 * np.expm1(np.mean(self.surprise))),
            "perplexity_error_percent": _rounded(100 * error),
            "kl": _rounded(np.mean(self.divergence)),
            "kl_median": _rounded(np.median(self.divergence)),
            "kl_p99": _rounded(np.quantile(self.divergence, 0.99)),
            "top1_percent": _rounded(100 * np.mean(self.same)),
            "greedy_same": self.greedy,
        }


@frozen(eq=False)
class Truth:
    """What the model says of some tokens on its own rows: [tokens, vocabulary]."""

    logs: Logs
    _shares: Logs = field(init=False)
    best: NDArray[np.int64] = field(init=False)

    @_shares.default
    def _probabilities(self) -> Logs:
        return np.exp(self.logs)

    @best.default
    def _likeliest(self) -> NDArray[np.int64]:
        return self.logs.argmax(axis=-1)

    def divergence(self, ours: Logs) -> Logs:
        """KL of each token, in nats."""
        return np.einsum("tv,tv->t", self._shares, self.logs - ours)


@frozen
class Sizes:
    """How many tokens are cached, scored and said greedily, for each text."""

    cached: int
    scored: int
    said: int


def main() -> None:
    """Measure, keep, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1536, help="cached tokens of each text")
    parser.add_argument("--scored", type=int, default=256, help="tokens after them, scored")
    parser.add_argument("--said", type=int, default=48, help="tokens generated greedily")
    parser.add_argument("--texts", type=int, default=len(TOPICS), choices=range(1, len(TOPICS) + 1))
    parser.add_argument("--rounds", type=int, default=20, help="rounds of parking and resuming")
    parser.add_argument("--threads", type=int, default=1, help="of BLAS; sums depend on it")
    parser.add_argument("--no-report", action="store_true", help="leave docs/ as it is")
    options = parsed(parser, tokens=64, scored=16, said=4, texts=1, rounds=2, no_report=True)
    blas.set_threads(options.threads)
    sizes = Sizes(options.tokens, options.scored, options.said)
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        model = Model.load(tiny_model(Path(scratch)) if options.quick else default_model())
    names = TOPICS[: options.texts]
    texts = [_ids(model, name, sizes.cached + sizes.scored + 1) for name in names]
    results = {
        "model": MODEL,
        "python": platform.python_version(),
        "texts": dict(zip(names, (_digest(ids) for ids in texts), strict=True)),
        "tokens": {"cached": sizes.cached, "scored": sizes.scored, "said": sizes.said},
        **_losses(model, texts, sizes),
        "rounds": {"first": FIRST, "piece": PIECE},
        "drift": _drift(model, names, options.rounds),
    }
    write_results("fidelity", results, options.quick or options.no_report)
    if not options.no_report:
        fidelity_report.write(results)


def _losses(model: Model, texts: Sequence[Ids], sizes: Sizes) -> dict[str, object]:
    losses = {name: Loss() for name in MEASURED}
    surprise: list[float] = []
    for n, ids in enumerate(texts, 1):
        surprise += _score(model, ids, sizes, losses)
        print(f"scored {n} of {len(texts)} texts", file=sys.stderr)
    codecs = {
        name: {"bytes_per_token": one.nbytes(model.spec, 1), **losses[name].summary()}
        for name, one in MEASURED.items()
    }
    return {"native_perplexity": _rounded(np.exp(np.mean(surprise))), "codecs": codecs}


def _score(model: Model, ids: Ids, sizes: Sizes, losses: dict[str, Loss]) -> list[float]:
    """Score one text under every codec; native's surprise at each of its tokens."""
    begun, scored, following = ids[: sizes.cached], ids[sizes.cached : -1], ids[sizes.cached + 1 :]
    capacity = len(ids) + sizes.said
    live = model.adapter.empty(capacity)
    model.run(live, begun)
    kept = {name: model.park(one, live) for name, one in MEASURED.items()}
    native = [Truth(logs) for logs in model.logs(live, scored)]
    live.rewind(sizes.cached)
    speaking = [live]
    for name, one in MEASURED.items():
        cache = model.resume(one, [kept[name]], capacity)
        after = iter(following)
        for truth, ours in zip(native, model.logs(cache, scored), strict=True):
            losses[name].add(truth, ours, list(islice(after, len(ours))))
        cache.rewind(sizes.cached)
        speaking.append(cache)
    said = model.greedy(speaking, scored[0], sizes.said)
    for loss, line in zip(losses.values(), said[1:], strict=True):
        loss.greedy.append(_same_for(said[0], line))
    rows = (row for truth in native for row in truth.logs)
    return [-float(row[token]) for row, token in zip(rows, following, strict=True)]


def _drift(model: Model, names: Sequence[str], rounds: int) -> dict[str, object]:
    """KL of each text's rounds, by codec and by way.

    In each round a piece of a text is run on resumed rows, which are then parked.
    """
    found: dict[str, dict[str, list[list[float]]]] = {}
    for n, name in enumerate(names, 1):
        for one in _text_rounds(model, name, rounds):
            ways = found.setdefault(one.codec.name, {way: [] for way in one.kl})
            for way, kl in one.kl.items():
                ways[way].append(kl)
        print(f"went {rounds} rounds of {n} of {len(names)} texts", file=sys.stderr)
    return found


def _text_rounds(model: Model, topic: str, rounds: int) -> "list[Rounds]":
    ids = _ids(model, topic, FIRST + rounds * PIECE)
    live = model.adapter.empty(len(ids))
    model.run(live, ids[:FIRST])
    codecs = [Rounds.begin(model, name, live) for name in DRIFTING]
    for start in range(FIRST, len(ids), PIECE):
        piece = ids[start : start + PIECE]
        goes = [model.park(one.codec, live) for one in codecs]
        (native,) = (Truth(logs) for logs in model.logs(live, piece))
        for one, go in zip(codecs, goes, strict=True):
            one.run(model, piece, go, native)
    for one in codecs:
        one.check(model, len(ids))
    return codecs


@define
class Rounds:
    """One codec's rounds: the segments parked so far, and the KL of each round, three ways.

    Rows encoded once, when they are new; native ones, all encoded for this round; all rows again
    in every round.
    """

    codec: Codec
    first: dict[str, bytes]
    once: list[Payload]
    again: Payload
    kl: dict[str, list[float]] = field(factory=lambda: {"once": [], "in one go": [], "again": []})

    @classmethod
    def begin(cls, model: Model, name: str, live: LiveCache) -> "Rounds":
        """Park the rows that are there."""
        parked = model.park(codec(name), live)
        return cls(codec(name), _decoded(model, codec(name), parked), [parked], parked)

    def run(self, model: Model, piece: Ids, in_one_go: Payload, native: Truth) -> None:
        """One round in each of the three ways."""
        start = sum(payload.rows for payload in self.once)
        ways = {"once": self.once, "in one go": [in_one_go], "again": [self.again]}
        caches = {}
        for way, segments in ways.items():
            caches[way] = model.resume(self.codec, segments, start + len(piece))
            (ours,) = model.logs(caches[way], piece)
            self.kl[way].append(_rounded(np.mean(native.divergence(ours))))
        self.once.append(model.park(self.codec, caches["once"], start))
        self.again = model.park(self.codec, caches["again"])

    def check(self, model: Model, length: int) -> None:
        """All rows were parked, and those of the first round are the same bits after the last."""
        if (parked := sum(one.rows for one in self.once)) != length:
            raise AssertionError(f"{parked} of {length} rows were parked")
        cache = model.resume(self.codec, self.once, sum(one.rows for one in self.once))
        for role, array in cache.rows(0, self.once[0].rows).full.items():
            if array.tobytes() != self.first[role]:
                raise AssertionError(f"{role} of {self.codec.name} changed in later rounds")


def _decoded(model: Model, one: Codec, payload: Payload) -> dict[str, bytes]:
    rows = model.resume(one, [payload], payload.rows).rows(0, payload.rows)
    return {role: array.tobytes() for role, array in rows.full.items()}


def _ids(model: Model, name: str, count: int) -> Ids:
    ids: Ids = model.tokenizer.encode(topics[name]).ids
    if len(ids) < count:
        raise SystemExit(f"{name} has {len(ids)} tokens, not {count}: ask for fewer")
    return ids[:count]


def _digest(ids: Ids) -> str:
    return sha256(np.array(ids, "<u4").tobytes()).hexdigest()[:16]


def _same_for(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    differ = np.flatnonzero(one != other)
    return int(differ[0]) if len(differ) else len(one)


def _rounded(value: float | np.floating) -> float:
    return float(f"{float(value):.4g}")


if __name__ == "__main__":
    main()
