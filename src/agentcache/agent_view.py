"""How an agent is seen from outside: its conversation in numbers, and what it holds."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress

from attrs import frozen

from agentcache.conductor import Conductor
from agentcache.domain.conversation import Message, turn_starts
from agentcache.domain.path import Step
from agentcache.domain.request import Tier
from agentcache.domain.session import Session
from agentcache.succession import NAMELESS


@frozen
class AgentView:
    """One agent as it is at the moment. `codec` is what its rows are kept with.

    `turns` is how many can be taken back. `nbytes` are the encoded bytes that it builds on, of
    which others use `shared_bytes` too. `tier` is where its next turn finds its rows. Of all
    `prompt_tokens` that its turns had, `cached_tokens` were not computed again; `hits` turns had
    any of these. Times are wall-clock seconds.
    """

    name: str
    tenant: str
    model: str
    codec: str
    tokens: int
    messages: int
    turns: int
    pinned: bool
    expires: float | None
    parent: str | None
    created: float
    used: float
    tier: Tier
    nbytes: int
    shared_bytes: int
    hits: int
    prompt_tokens: int
    cached_tokens: int


@frozen
class StoredAnswer:
    """An answer by its turn: the conversation up to it, of a session `created` then (wall-clock
    seconds).
    """

    messages: tuple[Message, ...]
    created: float

    @property
    def message(self) -> Message:
        """The answer itself."""
        return self.messages[-1]


def views(conductor: Conductor, tenant: str, nameless: bool = False) -> Iterator[AgentView]:
    """The agents of a tenant that have a name, or all, as they are now. From any thread."""
    roots = conductor.roots.of(tenant)
    registry = conductor.keeper.registry
    sessions = [
        one
        for one in registry
        if one.key.tenant == tenant
        and (last := registry.named(tenant, roots, one.name)) is not None
        and last.key == one.key
    ]
    paths = {one.key: _path(conductor, one) for one in sessions}
    users = Counter(step.segment.key for path in paths.values() for step in path)
    for session in sessions:
        if nameless or not session.name.startswith(NAMELESS):
            yield _view(conductor, session, paths[session.key], users)


def _path(conductor: Conductor, session: Session) -> tuple[Step, ...]:
    """The segments that the session builds on; none if they leave at this very moment."""
    with suppress(KeyError):
        return conductor.keeper.lineage.path(session.cursor).steps if session.cursor else ()
    return ()


def _view(
    conductor: Conductor, session: Session, path: tuple[Step, ...], users: Mapping[bytes, int]
) -> AgentView:
    segments = [step.segment for step in path]
    return AgentView(
        name=session.name,
        tenant=session.key.tenant,
        model=conductor.engine.card.name,
        codec=conductor.roots.codec_name(session.key.root),
        tokens=session.tokens,
        messages=len(session.messages),
        turns=len(turn_starts(session.messages)),
        pinned=session.pinned,
        expires=session.expires,
        parent=session.parent,
        created=session.created,
        used=session.used,
        tier=_tier(conductor, session, path),
        nbytes=sum(one.nbytes for one in segments),
        shared_bytes=sum(one.nbytes for one in segments if users[one.key] > 1),
        hits=session.usage.hits,
        prompt_tokens=session.usage.prompt,
        cached_tokens=session.usage.cached,
    )


def _tier(conductor: Conductor, session: Session, path: tuple[Step, ...]) -> Tier:
    if conductor.planner.hot.resting(session.key) is not None:
        return Tier.HOT
    if not path:
        return Tier.NONE
    lineage = conductor.keeper.lineage
    in_ram = all(lineage.resides(step.segment.key, Tier.WARM) for step in path)
    return Tier.WARM if in_ram else Tier.COLD
