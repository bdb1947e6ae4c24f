"""What is known of one agent: its conversation as spans, and its place in the lineage."""

from attrs import evolve, field, frozen

from agentcache.domain.conversation import Message
from agentcache.domain.spans import Span
from agentcache.domain.trace import Trace

DEFAULT_TENANT = "default"


@frozen
class Cursor:
    """A position in the lineage: `row` tokens from the root, the last of them in segment `key`."""

    key: bytes
    row: int


@frozen
class SessionKey:
    """What a session is found by. `root` is the lineage root: model, codec, tenant salt, epoch."""

    tenant: str
    root: bytes
    name: str


@frozen
class Usage:
    """What turns took, all together: `cached` of the `prompt` tokens were not computed again.

    `hits` are the turns that had any row to go on from.
    """

    hits: int = 0
    prompt: int = 0
    cached: int = 0

    def plus(self, prompt: int, cached: int) -> "Usage":
        """With one turn more."""
        return Usage(self.hits + (cached > 0), self.prompt + prompt, self.cached + cached)


@frozen
class Session:
    """One agent's memory. Values never change; a turn replaces the session by its successor.

    `spans` is the whole conversation as the model saw it, `cursor` the last row that is kept.
    `messages` is the same as clients told it and heard it, `tools` their canonical JSON text.
    Times are wall-clock seconds; from `expires` on it is to be forgotten. `generation` grows with
    each successor. `trace` is what the last rows said, as far as there are rows of these positions.
    """

    key: SessionKey
    spans: tuple[Span, ...] = ()
    cursor: Cursor | None = None
    tools_digest: bytes = b""
    parent: str | None = None
    pinned: bool = False
    created: float = 0.0
    used: float = 0.0
    generation: int = 0
    messages: tuple[Message, ...] = ()
    tools: str = ""
    expires: float | None = None
    usage: Usage = Usage()
    trace: Trace | None = None
    name: str = field(init=False)

    @name.default
    def _name(self) -> str:
        return self.key.name

    @property
    def tokens(self) -> int:
        """Length of the conversation in tokens."""
        return sum(len(span.ids) for span in self.spans)

    def succeeded(
        self,
        spans: tuple[Span, ...],
        cursor: Cursor | None,
        tools_digest: bytes,
        now: float,
        messages: tuple[Message, ...] = (),
        tools: str = "",
        trace: Trace | None = None,
    ) -> "Session":
        """The session after a turn."""
        return evolve(
            self,
            spans=spans,
            cursor=cursor,
            tools_digest=tools_digest,
            messages=messages,
            tools=tools,
            used=now,
            trace=trace,
            generation=self.generation + 1,
        )
