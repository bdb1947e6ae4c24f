"""Which adapters are plugged in. Only entry points and tests look in here."""

import logging
import os
import threading
from functools import cache
from pathlib import Path

from dependency_injector import containers, providers

from agentcache.adapters.clock import SystemClock
from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home
from agentcache.adapters.disk.portable import PortableTars
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.grammars.llguidance import LLGrammars
from agentcache.adapters.models.source import LocalModelSource
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.assembly import Assembly, Budgets
from agentcache.domain.notices import Limits
from agentcache.loop import EngineLoop
from agentcache.mapped_memory import MappedMemory
from agentcache.model_shelf import ModelShelf
from agentcache.plugins import codec, codecs, made, parse_choices, plugged
from agentcache.porting import Porter
from agentcache.ports.engine import Engine, ModelCard
from agentcache.ports.grammar import Grammars
from agentcache.ports.model_source import ModelFolder
from agentcache.ports.tokenizer import Tokenizer
from agentcache.roots import Codecs
from agentcache.service import Service
from agentcache.settings import Settings

log = logging.getLogger(__name__)
_MOST_READING = 128 << 20


def no_progress(_done: int, _total: int | None, _stage: str) -> None:
    """For those who do not watch a model being fetched."""


def open_model(folder: ModelFolder, settings: Settings, cache_dir: Path) -> Engine:
    """Load the model with MLX, the BLAS first: it has to be there before MLX is."""
    if name := parse_choices(settings.plugins).get("engine"):
        plugged_in: Engine = made("engine", name, folder, settings)
        return plugged_in
    memory = MappedMemory.of(Budgets(settings.memory_budget, settings.disk_cap).hot)
    # Whoever comes first shall find it ready; importing MLX leaves the other cores idle.
    threading.Thread(target=_make_ready, args=(memory,), name="agentcache-memory").start()
    _load_blas(settings.cpu_path, cache_dir)
    from agentcache.adapters.mlx.engine import BlasThreads, MLXEngine

    cores = settings.threads or os.cpu_count() or 1
    threads = BlasThreads(prefill=cores, decode=1, kernels=cores)
    called = Path(folder.ref).name if os.sep in folder.ref else folder.ref
    return MLXEngine.load(
        folder.path,
        folder.digest,
        called,
        cpu_path=settings.cpu_path,
        threads=threads,
        memory=memory,
        probes=cache_dir / "probes",
    )


def _make_ready(memory: MappedMemory) -> None:
    while memory.prepare():
        pass


def open_tokenizer(folder: ModelFolder, settings: Settings) -> Tokenizer:
    """The model's own tokenizer and chat template; mlx-lm's part of it imports MLX, too."""
    if name := parse_choices(settings.plugins).get("tokenizer"):
        plugged_in: Tokenizer = made("tokenizer", name, folder, settings)
        return plugged_in
    _load_blas(settings.cpu_path, settings.home.expanduser())
    from agentcache.adapters.mlx import tokenizer

    return tokenizer.load(folder.path)


@cache
def _load_blas(enabled: bool, cache_dir: Path) -> None:
    """What stands in its way is told once, by whoever comes first."""
    from agentcache.adapters.mlx import blas

    status = blas.load(enabled=enabled, cache_dir=cache_dir)
    if status.remedy:
        log.warning("%s: %s", status.message, status.remedy)


def open_grammars(tokenizer: Tokenizer, card: ModelCard) -> Grammars:
    """What keeps answers to a grammar."""
    return LLGrammars(tokenizer.lexicon, card.ends)


def _limits(settings: Settings) -> Limits:
    context = settings.context or Limits().context
    return Limits(
        batch=settings.max_batch,
        queue=settings.max_queue,
        busy_chunk=settings.prefill_chunk,
        step_seconds=settings.step_time,
        context=context,
    )


def _read_memory(settings: Settings) -> MappedMemory:
    return MappedMemory.of(settings.memory_budget // 2, _reading(settings.memory_budget))


def _reading(budget: int) -> int:
    """Bytes that are kept ready for what is read."""
    return min(_MOST_READING, budget // 32)


def _is_durable(settings: Settings) -> bool:
    return settings.durability == "turn"


class Container(containers.DeclarativeContainer):
    """The bundled parts. Give it `settings`, and `progress` to watch a model being fetched."""

    settings = providers.Dependency(instance_of=Settings)
    progress = providers.Object(no_progress)

    clock = providers.Singleton(plugged, "clock", settings.provided.plugins, SystemClock)
    telemetry = providers.Singleton(
        plugged, "telemetry", settings.provided.plugins, PrometheusTelemetry
    )
    home = providers.Singleton(Home.open, settings.provided.home)
    model_source = providers.Singleton(
        plugged,
        "model_source",
        settings.provided.plugins,
        providers.Factory(LocalModelSource, settings.provided.home).provider,
        providers.List(settings.provided.home),
    )
    model = providers.Singleton(
        model_source.provided.resolve.call(settings.provided.model, progress)
    )
    codec = providers.Singleton(codec, settings.provided.codec)
    codecs = providers.Singleton(Codecs, codec, providers.Callable(codecs))
    read_memory = providers.Singleton(_read_memory, settings)
    segments = providers.Singleton(
        plugged,
        "segments",
        settings.provided.plugins,
        providers.Factory(
            DiskSegmentStore.open,
            home.provided.segments,
            home.provided.quarantine,
            memory=read_memory,
        ).provider,
        providers.List(home.provided.path),
    )
    sessions = providers.Singleton(
        plugged,
        "sessions",
        settings.provided.plugins,
        providers.Factory(SqliteSessionStore.open, home.provided.catalogue).provider,
        providers.List(home.provided.path),
    )
    load_engine = providers.Factory(open_model, model, settings, home.provided.path)
    load_tokenizer = providers.Factory(open_tokenizer, model, settings)

    budgets = providers.Factory(
        Budgets,
        memory=settings.provided.memory_budget,
        disk=settings.provided.disk_cap,
        disk_floor=settings.provided.disk_floor,
        reading=providers.Callable(_reading, settings.provided.memory_budget),
    )
    limits = providers.Factory(_limits, settings)
    assembly = providers.Factory(
        Assembly,
        load_engine=load_engine.provider,
        load_tokenizer=load_tokenizer.provider,
        codecs=codecs,
        segments=segments,
        sessions=sessions,
        clock=clock,
        telemetry=telemetry,
        budgets=budgets,
        limits=limits,
        durable=providers.Callable(_is_durable, settings),
        free_bytes=home.provided.free_bytes,
        idle_ttl=settings.provided.idle_ttl,
        open_grammars=providers.Object(open_grammars),
        canary=settings.provided.canary,
    )
    loop = providers.Singleton(EngineLoop, assembly, clock, telemetry)
    shelf = providers.Singleton(
        ModelShelf,
        model_source,
        assembly,
        open_engine=providers.Factory(
            open_model, settings=settings, cache_dir=home.provided.path
        ).provider,
        open_tokenizer=providers.Factory(open_tokenizer, settings=settings).provider,
    )
    porter = providers.Singleton(Porter, loop, providers.Factory(PortableTars))
    service = providers.Singleton(
        Service, loop, clock, settings.provided.queue_timeout, shelf, porter
    )
