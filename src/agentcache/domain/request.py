"""What one turn asks for: who speaks, the prompt as tokens, how to sample, when to stop."""

import math
from collections.abc import Callable
from enum import Enum
from typing import Literal, TypeVar

from attrs import Attribute, evolve, field, frozen

from agentcache.domain.answer import Reading
from agentcache.domain.conversation import Message
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.guide import Guide
from agentcache.domain.session import DEFAULT_TENANT, Cursor, SessionKey
from agentcache.domain.spans import Span
from agentcache.domain.tokens import Tokens
from agentcache.domain.trace import Trace

MAX_AGENT_NAME = 256
MAX_PRIORITY = 10
WhenBusy = Literal["wait", "fork"]
_Number = TypeVar("_Number", int, float)


class Miss(Enum):
    """Why a match ended before the prompt did. NONE: it did not, or nothing was expected."""

    NONE = "none"
    MODEL_CHANGED = "model_changed"
    CODEC_CHANGED = "codec_changed"
    SYSTEM_CHANGED = "system_changed"
    TOOLS_CHANGED = "tools_changed"
    MESSAGES_CHANGED = "messages_changed"
    EVICTED = "evicted"
    CORRUPT = "corrupt"
    NO_SESSION = "no_session"


class Tier(Enum):
    """Where the rows that a turn did not have to compute came from."""

    HOT = "hot"
    WARM = "warm"
    COLD = "cold"
    NONE = "none"


class Finish(Enum):
    """Why a turn ended."""

    STOP = "stop"  # the model's end token, or a stop sequence
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"


def _within(low: float, high: float) -> "Callable[[object, Attribute[_Number], _Number], None]":
    def check(_instance: object, attribute: "Attribute[_Number]", value: _Number) -> None:
        name = attribute.name
        if not low <= value <= high:  # nor is NaN
            raise InvalidRequest(f"{name} must be between {low:g} and {high:g}, not {value}", name)

    return check


@frozen
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 filter nothing.

    With a `seed`, the same tokens are drawn again, whoever else is in the batch.
    `presence_penalty` is taken off the logits of tokens that were sampled before in this turn,
    `frequency_penalty` once for each time; `logit_bias` (token, number) is added. With `logprobs`,
    it is told how likely tokens were: the chosen one, and as many of the most likely.
    """

    temperature: float = field(default=1.0, validator=_within(0, 100))
    top_p: float = field(default=1.0, validator=_within(0, 1))
    top_k: int = field(default=0, validator=_within(0, 2**31))
    min_p: float = field(default=0.0, validator=_within(0, 1))
    seed: int | None = None
    presence_penalty: float = field(default=0.0, validator=_within(-2, 2))
    frequency_penalty: float = field(default=0.0, validator=_within(-2, 2))
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None


@frozen
class Identity:
    """Whose memory a turn works on.

    An `exclusive` name (X-Agent-ID, a library agent) has one running turn at a time; any other name
    is only a hint where to look first. Without a name the longest known prefix is continued.
    """

    name: str | None = field(default=None)
    tenant: str = DEFAULT_TENANT
    exclusive: bool = field(default=False)

    @exclusive.validator
    def _named(self, _attribute: object, value: bool) -> None:
        if value and self.name is None:
            raise InvalidRequest("only an agent with a name has its memory to itself", "agent")

    @name.validator
    def _usable(self, _attribute: object, value: str | None) -> None:
        if value is not None and not 0 < len(value) <= MAX_AGENT_NAME:
            raise InvalidRequest(f"an agent's name has 1 to {MAX_AGENT_NAME} characters", "agent")


@frozen
class Prompt:
    """A rendered and tokenised prompt.

    `spans` concatenate to `tokens`. `shared` is the number of tokens up to the end of system and
    tools, which agents have in common; `body` the number before the generation prompt. `miss` says
    why fewer spans than the session holds were found again, seen from the text alone. A `raw` one
    is text that the answer goes on with, in the middle of a word if need be.
    """

    spans: tuple[Span, ...]
    tokens: "Tokens[int]" = field(eq=False)
    shared: int = 0
    body: int = 0
    tools_digest: bytes = b""
    miss: Miss = Miss.NONE
    raw: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def before_answer(self) -> "Prompt":
        """Without the generation prompt; as it is where that has no spans of its own."""
        count = self._spans_before_answer()
        if count is None:
            return self
        return evolve(self, spans=self.spans[:count], tokens=self.tokens[: self.body])

    def generation_prompt(self) -> str:
        """What the template makes the answer begin with; "" where it has no spans of its own."""
        count = self._spans_before_answer()
        return "" if count is None else "".join(span.text for span in self.spans[count:])

    def _spans_before_answer(self) -> int | None:
        length = count = 0
        while count < len(self.spans) and length < self.body:
            length += len(self.spans[count].ids)
            count += 1
        return count if count and length == self.body else None


@frozen
class TurnRequest:
    """One turn, ready to be queued.

    `root` is the lineage root of its model, codec and tenant. `session` is the session that it goes
    on from, if one is known, `cursor` where that stood then, and `trace` what its last rows said.
    `deadline` is when it is refused if it still waits, in seconds of the monotonic clock; `asked`
    is when it came, in wall-clock seconds.
    `expected` is how many of its tokens the session's rows should cover. With `store` false it uses
    what is there and leaves nothing behind; unless it is `findable`, its answer is remembered, but
    not found by the turn's id.
    With `max_tokens` 0 its prompt is computed and kept, and nothing is said. Of one tenant's turns
    those of higher `priority` go first. `guide` keeps the answer to a grammar, `reading` says how
    it is read. While another turn of an exclusive agent is not over, the turn waits for it, or
    (`fork`) goes on as an agent of its own. `parent` is whom its agent is forked from. `messages`
    are the conversation as the client sent it, its answers as they are remembered, `tools` the
    canonical JSON text of its tools. `note` is kept with its answer, for whoever looks that up.
    """

    id: str
    identity: Identity
    root: bytes
    prompt: Prompt
    sampling: Sampling = Sampling()
    guide: Guide | None = field(default=None, eq=False)
    reading: Reading = field(factory=Reading)
    max_tokens: int | None = field(default=None)
    stop: tuple[str, ...] = ()
    session: SessionKey | None = None
    cursor: Cursor | None = None
    trace: Trace | None = None
    expected: int = 0
    deadline: float = math.inf
    asked: float = 0.0
    store: bool = True
    findable: bool = True
    priority: int = field(default=0, validator=_within(-MAX_PRIORITY, MAX_PRIORITY))
    when_busy: WhenBusy = field(default="wait")
    parent: str | None = None
    messages: tuple[Message, ...] = ()
    tools: str = ""
    note: str | None = field(default=None, repr=False)

    @max_tokens.validator
    def _not_negative(self, _attribute: object, value: int | None) -> None:
        if value is not None and value < 0:
            raise InvalidRequest(f"max_tokens must be at least 0, not {value}", "max_tokens")

    @when_busy.validator
    def _known(self, _attribute: object, value: str) -> None:
        if value not in ("wait", "fork"):
            raise InvalidRequest(f"when_busy is wait or fork, not {value!r}", "when_busy")
