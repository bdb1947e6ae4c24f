"""A conversation as a client sends it, before it is rendered."""

from collections.abc import Mapping, Sequence

from attrs import evolve, field, frozen

from agentcache.domain.errors import InvalidRequest

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


@frozen
class ToolCall:
    """A call the model made. `arguments` is the JSON text it wrote."""

    id: str
    name: str
    arguments: str


@frozen
class Outcome:
    """How the turn of an answer went: `finish` is the value of its Finish, what went in and out is
    in tokens. `asked` and `ended` are wall-clock seconds. `cached` of `prompt` were not computed.
    """

    finish: str
    asked: float
    ended: float
    prompt: int
    cached: int
    completion: int


@frozen
class Message:
    """One message. `role` is system, user, assistant or tool (developer is read as system).

    `thought` is what the assistant thought before it spoke. `said` is its answer as the model wrote
    it, where that is more than `content`; `turn` the id of the turn that it is the answer of,
    `outcome` how that went, and `note` what its dialect noted of the request, where they are known.
    """

    role: str
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    thought: str = ""
    said: str | None = None
    turn: str | None = field(default=None, eq=False)
    outcome: Outcome | None = field(default=None, eq=False)
    note: str | None = field(default=None, eq=False)

    def unfindable(self) -> "Message":
        """The same for a conversation, and nobody's answer to look up."""
        return evolve(self, turn=None, outcome=None, note=None)


@frozen
class Conversation:
    """All that is rendered into one prompt. `tools` are JSON objects in the order given.

    `effort` is how much a model that thinks shall do so ("none": not at all), where it can be told.
    Raw `text`, or its token ids, takes the place of all that: the answer goes on after it.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Json], ...] = field(default=())
    effort: str | None = None
    text: str | tuple[int, ...] | None = None


def turn_starts(messages: Sequence[Message]) -> tuple[int, ...]:
    """Where the turns of a conversation begin: at what a user says after somebody else."""
    roles = ["", *(message.role for message in messages)]
    return tuple(
        at for at in range(len(messages)) if roles[at + 1] == "user" and roles[at] != "user"
    )


def encodable(text: str, place: str) -> str:
    """`text` as it is. Raises InvalidRequest, which names `place`, for a lone surrogate in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = (
            f"{place} holds a lone surrogate (U+{ord(text[error.start]):04X}), not a character"
        )
        raise InvalidRequest(problem, place) from error
    return text
