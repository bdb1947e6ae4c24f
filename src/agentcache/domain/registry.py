"""The session registry: every agent's memory by name, and by what was said."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from attrs import define, field

from agentcache.domain.conversation import Message
from agentcache.domain.errors import IntegrityError
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.spans import RenderedSpan, Span, chain, chains

# (tenant, root, chain) -> all sessions that said it, the last one to do so last
_ByChain = dict[tuple[str, bytes, bytes], tuple[SessionKey, ...]]
# (tenant, root, id of a tool call) -> the message that called it, and how many sessions have it
_ByCall = dict[tuple[str, bytes, str], tuple[Message, int]]
# (tenant, root, turn) -> all sessions that have the turn's answer, the last one used last
_ByTurn = dict[tuple[str, bytes, str], tuple[SessionKey, ...]]


@define(eq=False)
class SessionRegistry:
    """All sessions, the least recently used first.

    Sessions are frozen values, replaced as a whole; `get` and `recognise` may be called from any
    thread while the owner changes the registry.
    """

    _sessions: "OrderedDict[SessionKey, Session]" = field(factory=OrderedDict, init=False)
    _by_chain: _ByChain = field(factory=dict, init=False)
    _chains: dict[SessionKey, tuple[bytes, ...]] = field(factory=dict, init=False)
    _by_call: _ByCall = field(factory=dict, init=False)
    _by_turn: _ByTurn = field(factory=dict, init=False)
    _at_segment: dict[bytes, set[SessionKey]] = field(factory=dict, init=False)
    _roots: dict[tuple[str, str], frozenset[bytes]] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def get(self, key: SessionKey) -> Session | None:
        """The session of this name."""
        return self._sessions.get(key)

    def named(self, tenant: str, roots: Iterable[bytes], name: str) -> Session | None:
        """The session of this name under one of `roots`; of several, the last one used."""
        found = self.all_named(tenant, roots, name)
        return max(found, key=lambda one: one.used) if found else None

    def all_named(self, tenant: str, roots: Iterable[bytes], name: str) -> tuple[Session, ...]:
        """The sessions of this name, one under each of `roots` that has one."""
        known = self._roots.get((tenant, name), frozenset())
        keys = (SessionKey(tenant, root, name) for root in roots if root in known)
        return tuple(one for key in keys if (one := self._sessions.get(key)) is not None)

    def recognise(
        self, tenant: str, roots: Sequence[bytes], rendered: Sequence[RenderedSpan]
    ) -> Session | None:
        """The session that said the longest beginning of `rendered`, whatever its name.

        Of several, one under the first of `roots` that has any, the last one to say it.
        """
        for link in reversed(chains(rendered)):
            for root in roots:
                for key in reversed(self._by_chain.get((tenant, root, link), ())):
                    session = self._sessions.get(key)
                    if session is not None:
                        return session
        return None

    def caller(self, tenant: str, roots: Iterable[bytes], call_id: str) -> Message | None:
        """The answer that made the tool call of this id, as some session remembers it."""
        found = (self._by_call.get((tenant, root, call_id)) for root in roots)
        return next((one[0] for one in found if one), None)

    def answered(self, tenant: str, roots: Iterable[bytes], turn: str) -> tuple[Session, ...]:
        """The sessions that have the answer of this turn (forks and branches do, too), those under
        the first of `roots` first, the last one used first.
        """
        by_root = (self._by_turn.get((tenant, root, turn), ()) for root in roots)
        keys = (key for found in by_root for key in reversed(found))
        return tuple(one for key in keys if (one := self._sessions.get(key)) is not None)

    def is_elsewhere(self, tenant: str, roots: Iterable[bytes], name: str) -> bool:
        """Whether a session of this name exists under none of `roots`: that of another model."""
        return bool(self._roots.get((tenant, name), frozenset()).difference(roots))

    def put(self, session: Session) -> Session | None:
        """Add the session or replace the one of its key, which is returned."""
        key, before = session.key, self._sessions.get(session.key)
        self._move_cursor(key, before, session)
        self._sessions[key] = session
        self._sessions.move_to_end(key)
        named = (key.tenant, key.name)
        self._roots[named] = self._roots.get(named, frozenset()) | {key.root}
        self._index_chains(session, before)
        self._index_answers(session, before)
        return before

    def remove(self, key: SessionKey) -> Session | None:
        """Take the session out; None when there is none."""
        session = self._sessions.pop(key, None)
        if session is None:
            return None
        self._move_cursor(key, session, None)
        named = (key.tenant, key.name)
        self._roots[named] -= {key.root}
        if not self._roots[named]:
            del self._roots[named]
        self._drop_chains(key, self._chains.pop(key))
        self._drop_answers(key, session.messages)
        return session

    def touch(self, key: SessionKey) -> None:
        """The session was used."""
        if key in self._sessions:
            self._sessions.move_to_end(key)

    def at_segment(self, segment: bytes) -> tuple[Session, ...]:
        """The sessions whose cursor is in this segment."""
        return tuple(self._sessions[key] for key in self._at_segment.get(segment, ()))

    def idle(self) -> Iterator[Session]:
        """Sessions that may be forgotten, the least recently used first; pinned ones may not."""
        return (session for session in self if not session.pinned)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every index tells what the sessions tell."""
        cursors = {
            (session.cursor.key, key)
            for key, session in self._sessions.items()
            if session.cursor is not None
        }
        indexed = {(at, key) for at, keys in self._at_segment.items() for key in keys}
        if cursors != indexed:
            raise IntegrityError("the index by segment is not that of the cursors")
        for key, session in self._sessions.items():
            if session.key != key or self._chains.get(key) != chains(session.spans):
                raise IntegrityError(f"session {key.name!r} is filed wrongly")
        named = {(key.tenant, key.name, key.root) for key in self._sessions}
        if named != {(*name, root) for name, roots in self._roots.items() for root in roots}:
            raise IntegrityError("the index by name is not that of the sessions")
        if self._chains.keys() != self._sessions.keys():
            raise IntegrityError("chains of a session that is not there")
        said = {
            (key.tenant, key.root, link, key)
            for key, session in self._sessions.items()
            for span, link in zip(session.spans, self._chains[key], strict=True)
            if span.role == "assistant"
        }
        calls = Counter(
            (key.tenant, key.root, call.id)
            for key, session in self._sessions.items()
            for message in session.messages
            for call in message.tool_calls
        )
        if calls != {at: users for at, (_, users) in self._by_call.items()}:
            raise IntegrityError("the index by call is not that of the messages")
        turns = Counter(
            (key.tenant, key.root, message.turn, key)
            for key, session in self._sessions.items()
            for message in session.messages
            if message.turn is not None
        )
        if turns != Counter((*at, key) for at, keys in self._by_turn.items() for key in keys):
            raise IntegrityError("the index by turn is not that of the messages")
        found = [(*link, key) for link, keys in self._by_chain.items() for key in keys]
        if len(found) != len(said) or set(found) != said:
            raise IntegrityError("the index by chain is not what the sessions said")

    def _index_answers(self, session: Session, before: Session | None) -> None:
        old = before.messages if before else ()
        same = sum(1 for _ in takewhile(_is_same, zip(old, session.messages, strict=False)))
        self._drop_answers(session.key, old[same:])
        key = session.key
        for message in session.messages[same:]:
            for call in message.tool_calls:
                at = (key.tenant, key.root, call.id)
                self._by_call[at] = (message, self._by_call.get(at, (message, 0))[1] + 1)
            if message.turn is not None:
                turn = (key.tenant, key.root, message.turn)
                self._by_turn[turn] = (*self._by_turn.get(turn, ()), key)

    def _drop_answers(self, key: SessionKey, messages: Sequence[Message]) -> None:
        for call in (call for message in messages for call in message.tool_calls):
            at = (key.tenant, key.root, call.id)
            message, users = self._by_call.pop(at)
            if users > 1:
                self._by_call[at] = (message, users - 1)
        for turn in (message.turn for message in messages if message.turn is not None):
            said = (key.tenant, key.root, turn)
            left = list(self._by_turn.pop(said))
            left.remove(key)
            if left:
                self._by_turn[said] = tuple(left)

    def _move_cursor(self, key: SessionKey, before: Session | None, after: Session | None) -> None:
        if before is not None and before.cursor is not None:
            there = self._at_segment[before.cursor.key]
            there.discard(key)
            if not there:
                del self._at_segment[before.cursor.key]
        if after is not None and after.cursor is not None:
            self._at_segment.setdefault(after.cursor.key, set()).add(key)

    def _index_chains(self, session: Session, before: Session | None) -> None:
        old = self._chains.pop(session.key, ())
        same = _same_spans(before.spans if before else (), session.spans)
        links = list(old[:same])
        for span in session.spans[same:]:
            links.append(chain(links[-1] if links else b"", span))
        self._drop_chains(session.key, old[same:])
        self._chains[session.key] = tuple(links)
        for span, link in zip(session.spans[same:], links[same:], strict=True):
            if span.role == "assistant":
                at = (session.key.tenant, session.key.root, link)
                self._by_chain[at] = (*self._by_chain.get(at, ()), session.key)

    def _drop_chains(self, key: SessionKey, links: Sequence[bytes]) -> None:
        for link in links:
            at = (key.tenant, key.root, link)
            others = tuple(one for one in self._by_chain.get(at, ()) if one != key)
            if others:
                self._by_chain[at] = others
            else:
                self._by_chain.pop(at, None)


def _is_same(pair: tuple[Message, Message]) -> bool:
    one, other = pair
    return one is other or (one == other and one.turn == other.turn)


def _same_spans(before: Sequence[Span], after: Sequence[Span]) -> int:
    for count, (old, new) in enumerate(zip(before, after, strict=False)):
        if old is not new and not _files_alike(old, new):
            return count
    return min(len(before), len(after))


def _files_alike(old: Span, new: Span) -> bool:
    return (old.kind, old.role, old.text) == (new.kind, new.role, new.text)
