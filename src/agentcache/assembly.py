"""From parts to a working whole: done on the engine thread, where the engine has to be made."""

from collections.abc import Callable
from contextlib import ExitStack

from attrs import evolve, frozen

from agentcache.conductor import Conductor
from agentcache.disk_room import DiskRoom, boundless
from agentcache.domain.canaries import Canaries
from agentcache.domain.canary import tolerance
from agentcache.domain.hot import HotTier
from agentcache.domain.lineage import Lineage
from agentcache.domain.notices import Limits
from agentcache.domain.planner import Planner
from agentcache.domain.pool import BLOCK_TOKENS, BlockPool
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.spec import CacheSpec
from agentcache.fetcher import Fetcher
from agentcache.keeper import Keeper
from agentcache.outbox import Outbox, Post
from agentcache.ports.clock import Clock
from agentcache.ports.engine import Engine, ModelCard
from agentcache.ports.grammar import Grammars
from agentcache.ports.segment_store import SegmentStore
from agentcache.ports.session_store import SessionStore
from agentcache.ports.telemetry import Telemetry
from agentcache.ports.tokenizer import Tokenizer
from agentcache.rendering import PromptBuilder
from agentcache.roots import Codecs, Roots
from agentcache.tiers import Tiers
from agentcache.writer import Writer

HOT_SHARE = 0.5
LEAST_SHARED = 64


@frozen
class Budgets:
    """Bytes of memory for live sequences and encoded segments together, and of disk.

    Of the memory, `reading` bytes are kept ready for what is read. `disk_floor` bytes of the disk
    stay free, whoever fills it.
    """

    memory: int
    disk: int
    disk_floor: int = 0
    reading: int = 0

    @property
    def hot(self) -> int:
        """Bytes for the caches of live sequences."""
        return int(self.memory * HOT_SHARE)

    @property
    def warm(self) -> int:
        """Bytes for encoded segments in RAM."""
        return self.memory - self.hot - self.reading

    def blocks(self, spec: CacheSpec) -> int:
        """How many blocks of the pool the hot bytes are: enough for the shortest sequence."""
        return max(price(spec)(BLOCK_TOKENS), self.hot // _block_bytes(spec))


@frozen(eq=False)
class Assembly:
    """The parts of a conductor. Called on the engine thread, with what posts calls to it."""

    load_engine: Callable[[], Engine]
    load_tokenizer: Callable[[], Tokenizer]
    codecs: Codecs
    segments: SegmentStore
    sessions: SessionStore
    clock: Clock
    telemetry: Telemetry
    budgets: Budgets
    limits: Limits
    durable: bool = True
    least_shared: int = LEAST_SHARED
    free_bytes: Callable[[], int] = boundless
    idle_ttl: float | None = None
    open_grammars: Callable[[Tokenizer, ModelCard], Grammars] | None = None
    canary: bool = False

    def __call__(self, post: Post) -> Conductor:
        """Open the home, load the model, take in what is remembered.

        Raises what the stores and the loaders raise; nothing is left open then.
        """
        with ExitStack() as undo:
            writer = Writer(self.segments, self.sessions)
            undo.callback(writer.close)
            catalogue, salt = writer.open()
            tokenizer = self.load_tokenizer()
            engine = self.load_engine()
            undo.callback(engine.close)
            keeper = self._keeper(engine.card.spec, writer, post)
            keeper.open(catalogue)
            conductor = self._conductor(engine, tokenizer, keeper, salt, post)
            undo.pop_all()
        return conductor

    def succeed(self, keeper: Keeper, salt: bytes, post: Post) -> Conductor:
        """Load the model where another one was; what `keeper` keeps, and its home, stay open.

        Raises what the loaders raise; nothing of the model is left open, and `keeper` is as it was
        then.
        """
        with ExitStack() as undo:
            tokenizer = self.load_tokenizer()
            engine = self.load_engine()
            undo.callback(engine.close)
            conductor = self._conductor(engine, tokenizer, keeper, salt, post)
            undo.pop_all()
        keeper.serve(engine.card.spec)
        return conductor

    def _conductor(
        self, engine: Engine, tokenizer: Tokenizer, keeper: Keeper, salt: bytes, post: Post
    ) -> Conductor:
        roots = Roots(engine.card, salt, self.codecs)
        return Conductor(
            engine=engine,
            planner=self._planner(roots, keeper),
            keeper=keeper,
            fetcher=Fetcher(engine.card.spec, self.segments),
            tokenizer=tokenizer,
            builder=PromptBuilder(tokenizer),
            clock=self.clock,
            telemetry=self.telemetry,
            post=post,
            roots=roots,
            durable=self.durable,
            idle_ttl=self.idle_ttl,
            grammars=self.open_grammars and self.open_grammars(tokenizer, engine.card),
        )

    def _keeper(self, spec: CacheSpec, writer: Writer, post: Post) -> Keeper:
        outbox = Outbox(Lineage(spec, self.least_shared), SessionRegistry(), writer, post)
        tiers = Tiers(outbox, self.telemetry, self.budgets.warm)
        room = DiskRoom(tiers, self.budgets.disk, self.budgets.disk_floor, self.free_bytes)
        return Keeper(spec, tiers, room)

    def _planner(self, roots: Roots, keeper: Keeper) -> Planner:
        card = roots.card
        hot = HotTier(BlockPool(self.budgets.blocks(card.spec)), price(card.spec))
        limits = evolve(
            self.limits,
            in_flight=card.in_flight,
            context=min(card.context, self.limits.context),
        )
        canaries = Canaries(self._tolerance(roots))
        return Planner(keeper.lineage, hot, keeper.registry, card.ends, limits, canaries)

    def _tolerance(self, roots: Roots) -> Callable[[bytes], float | None]:
        """How far rows of a root may be from what they were; None where nobody looks."""
        if not self.canary:
            return lambda _root: None
        return lambda root: tolerance(roots.codec_name(root), roots.card.spec.dtype)


def price(spec: CacheSpec) -> Callable[[int], int]:
    """How many blocks of the pool a sequence takes that has room for so many tokens."""
    block = _block_bytes(spec)
    return lambda tokens: -(-spec.live_bytes(tokens) // block)


def _block_bytes(spec: CacheSpec) -> int:
    """The bytes of a block: what its tokens add, or where they add nothing, what is always held."""
    added = spec.live_bytes(BLOCK_TOKENS) - spec.live_bytes(0)
    return max(1, added or spec.state_bytes)
