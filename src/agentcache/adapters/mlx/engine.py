"""The engine on MLX: prefill one sequence at a time, decode all of them in one ragged batch."""

import gc
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import mlx.core as mx
from attrs import define, evolve, field, frozen

from agentcache.adapters.mlx import blas, cpu, handles
from agentcache.adapters.mlx.fitting import Batching, Fitted, Found, as_found, fitted, told
from agentcache.adapters.mlx.loading import load_folder
from agentcache.adapters.mlx.probe_memory import ProbeMemory
from agentcache.adapters.mlx.runner import LiveSequence, Runner, Running
from agentcache.adapters.mlx.spec import LanguageModel
from agentcache.domain.errors import IntegrityError
from agentcache.domain.plan import (
    PrefillChunk,
    Retold,
    Sampled,
    SequenceFailed,
    StepPlan,
    StepResult,
)
from agentcache.domain.trace import Top
from agentcache.mapped_memory import MappedMemory
from agentcache.ports.engine import ModelCard
from agentcache.ports.rows import Rows


@frozen
class BlasThreads:
    """How many threads to use: BLAS's own in `prefill`, whose matmuls are large, and in `decode`,
    where they would wait for each other longer than they work. `kernels` is for our own.
    """

    prefill: int
    decode: int
    kernels: int


@frozen(eq=False)
class _Step:
    number: int
    running: tuple[Running, ...]
    forwarded: int


@define(eq=False)
class MLXEngine:
    """A loaded model and its live sequences; implements `ports.engine.Engine`.

    Where rows live in numpy buffers (`buffered`), a step is done when `submit` returns. Elsewhere
    it is lazy, and two may be under way. `report` was `known` if it was found out before.
    """

    card: ModelCard
    report: Found
    _runner: Runner | None
    known: bool = False
    _threads: BlasThreads | None = None
    _live: dict[int, LiveSequence] = field(factory=dict, init=False)
    _steps: deque[_Step] = field(factory=deque, init=False)

    @classmethod
    def load(
        cls,
        folder: Path,
        digest: bytes,
        name: str,
        *,
        cpu_path: bool = True,
        threads: BlasThreads | None = None,
        ends: Iterable[int] = (),
        memory: MappedMemory | None = None,
        probes: Path | None = None,
    ) -> "MLXEngine":
        """Load the MLX folder `folder` and find out what its model can do.

        `cpu_path` lets numpy do what MLX's CPU backend is slow at; it has no effect elsewhere.
        Without `threads` the BLAS is left as it is. `ends` are further ids that end a turn. Buffers
        lie in `memory`. What is found out is remembered in the folder `probes`, if there is one,
        until something changes.
        Raises ModelError when the model cannot be loaded or its caches are not supported.
        """
        loaded = load_folder(folder, name)
        on_cpu = cpu_path and mx.default_device() == mx.cpu
        _install(on_cpu)
        known = ProbeMemory(probes, digest, on_cpu) if probes else None
        fit = _fitted(loaded.model, name, on_cpu, known)
        adapter, report = fit.adapter, fit.found
        if adapter.in_buffers and memory is not None:
            adapter = evolve(adapter, memory=memory)
        card = ModelCard(
            name=name,
            digest=digest,
            spec=adapter.spec,
            context=loaded.context,
            vocabulary=report.vocabulary,
            ends=loaded.ends | frozenset(ends),
            in_flight=1 if adapter.in_buffers else 2,
            notes=report.notes,
        )
        ragged = report.batching.mode == "ragged"
        runner = Runner(fit.forward, adapter, ragged)
        return cls(card, report, runner, fit.known, threads)

    @property
    def batching(self) -> Batching:
        """How decode runs."""
        return self.report.batching

    @property
    def buffered(self) -> bool:
        """Whether rows live in numpy buffers."""
        return self._loaded.adapter.in_buffers

    @property
    def memory(self) -> MappedMemory:
        """Where the buffers lie."""
        return self._loaded.adapter.memory

    def start(self, sequence: int, capacity: int, restore: int = 0) -> Rows:
        """See `Engine.start`."""
        if sequence in self._live:
            raise IntegrityError(f"sequence {sequence} has been started already")
        cache = self._loaded.adapter.empty(capacity)
        blank = cache.blank(restore)
        self._live[sequence] = LiveSequence(sequence, cache)
        self.memory.settle(self.held_bytes())
        return blank

    def adopt(self, sequence: int, length: int) -> None:
        """See `Engine.adopt`."""
        self._one(sequence).cache.adopt(length)

    def grow(self, sequence: int, capacity: int) -> None:
        """See `Engine.grow`."""
        cache = self._one(sequence).cache
        if capacity > cache.capacity:
            cache.grow(capacity)
            self.memory.settle(self.held_bytes())

    def submit(self, plan: StepPlan) -> None:
        """See `Engine.submit`."""
        if len(self._steps) >= self.card.in_flight:
            raise IntegrityError(f"step {plan.number} is submitted before a step is collected")
        before = self._loaded.forward.tokens
        running = [self._prefill(chunk) for chunk in plan.prefill]
        if plan.decode:
            running += self._decode(plan.decode)
        forwarded = self._loaded.forward.tokens - before
        self._steps.append(_Step(plan.number, tuple(running), forwarded))

    def collect(self) -> StepResult:
        """See `Engine.collect`."""
        if not self._steps:
            raise IntegrityError("no step has been submitted")
        step = self._steps.popleft()
        outcomes = [outcome for running in step.running for outcome in running.outcomes()]
        return StepResult(
            step.number,
            tuple(one for one in outcomes if isinstance(one, Sampled)),
            tuple(one for one in outcomes if isinstance(one, SequenceFailed)),
            step.forwarded,
            tuple(one for one in outcomes if isinstance(one, Retold)),
        )

    def export(self, sequence: int, start: int, stop: int) -> Rows:
        """See `Engine.export`."""
        cache = self._one(sequence).cache
        if not 0 <= start <= stop <= cache.length:
            raise IntegrityError(f"[{start}, {stop}) of {cache.length} rows cannot be exported")
        return cache.rows(start, stop)

    def likeliest(self, sequence: int, stop: int) -> tuple[Top, ...]:
        """See `Engine.likeliest`."""
        one = self._one(sequence)
        kept, one.recollection = one.recollection, None
        return kept.take(stop) if kept else ()

    def trim(self, sequence: int, length: int) -> None:
        """See `Engine.trim`."""
        one = self._one(sequence)
        if length not in self._trimmable(one.cache.length):
            raise IntegrityError(f"{one.cache.length} rows cannot be trimmed to {length}")
        one.reset(length)

    def drop(self, sequence: int) -> None:
        """See `Engine.drop`."""
        one = self._live.pop(sequence, None)
        if one is not None:
            one.reset(0)
            del one
            self.memory.settle(self.held_bytes())

    def rest(self) -> bool:
        """See `Engine.rest`: memory is made ready that the next sequences will write to."""
        return self.memory.prepare(self.held_bytes())

    def held_bytes(self) -> int:
        """See `Engine.held_bytes`."""
        return sum(one.cache.nbytes for one in self._live.values())

    def close(self) -> None:
        """See `Engine.close`."""
        self._steps.clear()
        self._live.clear()
        self._runner = None
        gc.collect()  # a module and what it compiled may refer to each other
        mx.clear_cache()

    def _prefill(self, chunk: PrefillChunk) -> Running:
        one = self._one(chunk.sequence)
        if one.problem is None and chunk.start != one.cache.length:
            raise IntegrityError(f"{chunk.start} does not follow {one.cache.length} rows")
        if chunk.again is not None:
            _check_again(one, len(chunk.again.ids))
        _check_room(one, len(chunk.ids))
        self._use_threads("prefill")
        return self._loaded.prefill(one, chunk)

    def _decode(self, sequences: tuple[int, ...]) -> list[Running]:
        batch = [self._one(sequence) for sequence in sequences]
        for one in batch:
            _check_room(one, 1)
            if one.token is None and one.problem is None:
                raise IntegrityError(f"nothing was sampled for sequence {one.number}")
        self._use_threads("decode")
        return list(self._loaded.decode(batch))

    def _trimmable(self, length: int) -> Sequence[int]:
        return range(length + 1) if self.card.spec.interior_restorable else (0, length)

    @property
    def _loaded(self) -> Runner:
        if self._runner is None:
            raise IntegrityError(f"the engine of {self.card.name} is closed")
        return self._runner

    def _one(self, sequence: int) -> LiveSequence:
        if sequence not in self._live:
            raise IntegrityError(f"there is no sequence {sequence}")
        return self._live[sequence]

    def _use_threads(self, phase: Literal["prefill", "decode"]) -> None:
        if self._threads is not None:
            blas.set_threads(getattr(self._threads, phase), self._threads.kernels)


def _fitted(model: LanguageModel, name: str, on_cpu: bool, memory: ProbeMemory | None) -> Fitted:
    known = memory.recall() if memory else None
    fit = as_found(model, known, on_cpu) if known else None
    if fit is None:
        fit = fitted(model, name, on_cpu)
        if memory:
            memory.remember(fit.found)
    told(name, fit.found)
    return fit


def _install(on_cpu: bool) -> None:
    """Put handles over whatever attention the CPU path puts in place, or takes away."""
    handles.uninstall()
    if on_cpu:
        cpu.install()
    else:
        cpu.uninstall()
    handles.install()


def _check_again(one: LiveSequence, count: int) -> None:
    if one.problem is None and not 0 < count <= one.cache.length:
        problem = f"{count} of {one.cache.length} rows cannot be run again"
        raise IntegrityError(problem)


def _check_room(one: LiveSequence, count: int) -> None:
    if one.cache.length + count > one.cache.capacity:
        raise IntegrityError(
            f"sequence {one.number} has no room for {count} more tokens: "
            f"{one.cache.length} of {one.cache.capacity} rows are taken"
        )
