"""Every error agentcache raises on purpose. Each carries fields, and says what to do.

AgentCacheError
├── InvalidRequest          the caller's input is wrong; the same request never works
│   └── PromptTooLong       more tokens than the model or the memory can ever hold
├── Unauthenticated         no key, or one that is not in force
├── Forbidden               the key does not allow this
├── UnknownAgent            no agent of this name
├── UnknownAnswer           no answer of this id
├── AgentExists             an agent of this name is there already
├── AgentBusy               the agent is answering; what was asked for has to wait until it has
├── Overloaded              refused now, worth a retry after `retry_after` seconds
├── Closed                  what is asked was closed before
├── Unavailable             starting, swapping or draining; retry after `retry_after` seconds
├── TurnCancelled           the client went away
├── TurnFailed              the engine failed on this sequence (and on no other)
├── ModelError              a model reference that cannot be resolved or loaded
├── AdapterError            a plug-in that is not there, or does not work
├── HomeError               the home directory cannot be used
│   └── HomeLocked          another process owns it
├── SegmentUnusable         a stored segment that must be treated as a miss
│   ├── SegmentMissing      no such file
│   └── SegmentCorrupt      checksum, layout, count or key do not add up
├── CatalogueConflict       a commit that refers to rows that are not there
├── CommitInDoubt           a commit that failed, and may be found made after a crash
├── StoreFull               no room on disk, even after eviction
└── IntegrityError          an invariant of ours does not hold: a bug, never the caller's fault
"""

from attrs import frozen


class AgentCacheError(Exception):
    """Base of all errors that agentcache raises on purpose."""


@frozen(str=False)
class InvalidRequest(AgentCacheError):
    """Input that can never work. `param` names the offending field, where there is one."""

    problem: str
    param: str | None = None

    def __str__(self) -> str:
        return self.problem


@frozen(str=False)
class PromptTooLong(InvalidRequest):
    """`tokens` were asked for, at most `limit` fit."""

    problem: str = ""
    param: str | None = "messages"
    tokens: int = 0
    limit: int = 0

    def __str__(self) -> str:
        return (
            f"prompt is too long: {self.tokens} tokens > {self.limit} maximum"
            f"{': ' + self.problem if self.problem else ''}"
        )


@frozen(str=False)
class Unauthenticated(AgentCacheError):
    """The request has no key, or one that is not in force (`problem`)."""

    problem: str

    def __str__(self) -> str:
        return self.problem


@frozen(str=False)
class Forbidden(AgentCacheError):
    """What was asked for takes other rights, or another way in (`problem`)."""

    problem: str

    def __str__(self) -> str:
        return self.problem


@frozen(str=False)
class UnknownAgent(AgentCacheError):
    """No agent called `name` for this tenant and model."""

    name: str

    def __str__(self) -> str:
        return f"there is no agent called {self.name!r}"


@frozen(str=False)
class AgentExists(AgentCacheError):
    """There is an agent called `name` already, which is not replaced."""

    name: str

    def __str__(self) -> str:
        return f"there is an agent called {self.name!r} already; choose another name, or delete it"


@frozen(str=False)
class AgentBusy(AgentCacheError):
    """A turn of the agent `name` runs or waits, so its conversation cannot be changed now."""

    name: str
    retry_after: float = 1.0

    def __str__(self) -> str:
        return f"agent {self.name!r} is answering; try again when it has, or cancel the answer"


@frozen(str=False)
class UnknownAnswer(AgentCacheError):
    """No answer of the turn `turn` is remembered: not stored, deleted, or evicted."""

    turn: str

    def __str__(self) -> str:
        return f"there is no stored answer {self.turn!r}"


@frozen(str=False)
class Overloaded(AgentCacheError):
    """Too much is asked (`reason`: queue_full, queue_timeout, rate_limit).

    `retry_after` is in seconds.
    """

    problem: str
    retry_after: float = 1.0
    reason: str = "overloaded"

    def __str__(self) -> str:
        return f"{self.problem}; retry in {self.retry_after:.0f} s"


@frozen(str=False)
class Closed(AgentCacheError):
    """The cache was closed, by this program itself."""

    def __str__(self) -> str:
        return "this cache is closed: open it again with agentcache.open"


@frozen(str=False)
class Unavailable(AgentCacheError):
    """Not serving at the moment (`reason`: starting, swapping, draining, failed)."""

    reason: str
    retry_after: float = 1.0

    def __str__(self) -> str:
        return f"the server is {self.reason}; retry in {self.retry_after:.0f} s"


@frozen(str=False)
class TurnCancelled(AgentCacheError):
    """The client went away, or the turn's deadline passed (`reason`)."""

    reason: str = "cancelled"

    def __str__(self) -> str:
        return f"the turn was {self.reason}"


@frozen(str=False)
class TurnFailed(AgentCacheError):
    """The engine could not go on with this turn; what it had computed is kept."""

    problem: str

    def __str__(self) -> str:
        return f"the turn failed: {self.problem}"


@frozen(str=False)
class ModelError(AgentCacheError):
    """The model `ref` cannot be used because of `problem`; `remedy` says what to do."""

    ref: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"model {self.ref!r}: {self.problem}{'. ' + self.remedy if self.remedy else ''}"


@frozen(str=False)
class AdapterError(AgentCacheError):
    """The adapter `name` of `port` cannot be used because of `problem`."""

    port: str
    name: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        told = f"{self.port} {self.name!r}: {self.problem}"
        return f"{told}. {self.remedy}" if self.remedy else told


@frozen(str=False)
class HomeError(AgentCacheError):
    """The home directory `path` cannot be used because of `problem`."""

    path: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"home {self.path}: {self.problem}{'. ' + self.remedy if self.remedy else ''}"


@frozen(str=False)
class HomeLocked(HomeError):
    """Another process (`owner`: its pid, and its address if it serves) owns the home."""

    owner: str = ""


@frozen(str=False)
class SegmentUnusable(AgentCacheError):
    """A stored segment that must not be used: a miss, never a wrong hit."""

    key: bytes
    problem: str

    def __str__(self) -> str:
        return f"segment {self.key.hex()[:16]}: {self.problem}"


@frozen(str=False)
class SegmentMissing(SegmentUnusable):
    """The segment is not in the store."""

    problem: str = "not in the store"


@frozen(str=False)
class SegmentCorrupt(SegmentUnusable):
    """Checksum, layout, count or key do not add up."""


@frozen(str=False)
class CatalogueConflict(AgentCacheError):
    """A commit refers to the segment `key`, which the catalogue does not hold."""

    key: bytes

    def __str__(self) -> str:
        return f"the catalogue does not hold segment {self.key.hex()[:16]}"


@frozen(str=False)
class CommitInDoubt(AgentCacheError):
    """A commit failed because of `cause`, and whoever opens the home may find it made.

    The next commit that changes something rules that out.
    """

    cause: Exception

    def __str__(self) -> str:
        return f"a commit is in doubt: {self.cause}"


@frozen(str=False)
class StoreFull(AgentCacheError):
    """`needed` bytes do not fit on the disk."""

    needed: int

    def __str__(self) -> str:
        return f"no room on disk for {self.needed} more bytes"


class IntegrityError(AgentCacheError):
    """An invariant of ours does not hold."""


_REFUSALS = (
    (PromptTooLong, "too_long"),
    (InvalidRequest, "invalid"),
    (Unauthenticated, "unauthenticated"),
    (Forbidden, "forbidden"),
    (Unavailable, "unavailable"),
    (TurnCancelled, "cancelled"),
)


def refusal(error: AgentCacheError) -> str:
    """In one word why a turn that ended with `error` got no place."""
    if isinstance(error, Overloaded):
        return error.reason
    return next((word for kind, word in _REFUSALS if isinstance(error, kind)), "other")
