"""From parts to a working whole: done on the engine thread, where the engine has to be made."""

from collections.abc import Callable

from attrs import evolve, frozen

from agentcache.conductor import Conductor
from agentcache.domain.hot import HotTier
from agentcache.domain.lineage import Lineage
from agentcache.domain.notices import Limits
from agentcache.domain.planner import Planner
from agentcache.domain.pool import BLOCK_TOKENS, BlockPool
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.spec import CacheSpec
from agentcache.fetcher import Fetcher
from agentcache.keeper import Keeper
from agentcache.loop import EngineLoop
from agentcache.ports.clock import Clock
from agentcache.ports.codec import Codec
from agentcache.ports.engine import Engine, ModelCard
from agentcache.ports.segment_store import SegmentStore
from agentcache.ports.session_store import SessionStore
from agentcache.ports.telemetry import Telemetry
from agentcache.ports.tokenizer import Tokenizer
from agentcache.rendering import PromptBuilder
from agentcache.writer import Writer

HOT_SHARE = 0.5


@frozen
class Budgets:
    """Bytes of memory for live sequences and encoded segments together, and of disk."""

    memory: int
    disk: int

    @property
    def hot(self) -> int:
        """Bytes for the caches of live sequences."""
        return int(self.memory * HOT_SHARE)

    @property
    def warm(self) -> int:
        """Bytes for encoded segments in RAM."""
        return self.memory - self.hot

    def blocks(self, spec: CacheSpec) -> int:
        """How many blocks of the pool the hot bytes are."""
        return max(1, self.hot // max(1, BLOCK_TOKENS * (spec.row_bytes + spec.window_row_bytes)))


@frozen(eq=False)
class Assembly:
    """The parts of a conductor. Called on the engine thread, with the loop that will run it."""

    load_engine: Callable[[], Engine]
    load_tokenizer: Callable[[], Tokenizer]
    codec: Codec
    segments: SegmentStore
    sessions: SessionStore
    clock: Clock
    telemetry: Telemetry
    budgets: Budgets
    limits: Limits
    durable: bool = True

    def __call__(self, loop: EngineLoop) -> Conductor:
        """Open the home, load the model, take in what is remembered."""
        salt = self.sessions.salt()
        writer = Writer(self.segments, self.sessions)
        catalogue = writer.open()
        tokenizer = self.load_tokenizer()
        engine = self.load_engine()
        spec, lineage = engine.card.spec, Lineage(engine.card.spec)
        keeper = Keeper(
            spec=spec,
            codec=self.codec,
            lineage=lineage,
            registry=SessionRegistry(),
            writer=writer,
            telemetry=self.telemetry,
            post=loop.post,
            warm_cap=self.budgets.warm,
            cold_cap=self.budgets.disk,
        )
        keeper.open(catalogue)
        return Conductor(
            engine=engine,
            planner=self._planner(engine.card, lineage),
            keeper=keeper,
            fetcher=Fetcher(spec, self.codec, self.segments),
            tokenizer=tokenizer,
            builder=PromptBuilder(tokenizer),
            clock=self.clock,
            telemetry=self.telemetry,
            post=loop.post,
            salt=salt,
            durable=self.durable,
        )

    def _planner(self, card: ModelCard, lineage: Lineage) -> Planner:
        hot = HotTier(BlockPool(self.budgets.blocks(card.spec)))
        limits = evolve(
            self.limits,
            in_flight=card.in_flight,
            context=min(card.context, self.limits.context),
        )
        return Planner(lineage, hot, card.ends, limits)
