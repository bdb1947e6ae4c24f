"""What is said over /v1/agents."""

from typing import Annotated, Literal

import msgspec

from agentcache.adapters.http.openai_types import ChatMessage, ChatRequest, JsonObject
from agentcache.agent_view import AgentView
from agentcache.domain.conversation import Message
from agentcache.domain.request import Tier

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e10)]


class Spoken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A conversation to be computed now and answered later, as for chat completions.

    `system` is short for a first system message.
    """

    messages: list[ChatMessage] = msgspec.field(default_factory=list)
    system: str | None = None
    tools: list[JsonObject] | None = None

    def chat_request(self, model: str) -> ChatRequest:
        """The same as a chat completion request."""
        head = [] if self.system is None else [ChatMessage(role="system", content=self.system)]
        return ChatRequest(model=model, messages=[*head, *self.messages], tools=self.tools)


class NewAgent(Spoken, frozen=True, kw_only=True):
    """An agent to be made, which knows the conversation from the start.

    Its rows are kept with `codec`; null: with the default one.
    """

    name: Name
    codec: str | None = None


class NewName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a fork is to be called."""

    name: Name


class Rewinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many turns to take back."""

    turns: int = 1


class Pinning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to keep the agent, and the seconds from now after which to forget it (null: never).

    What is left out stays as it is.
    """

    pinned: bool | msgspec.UnsetType = msgspec.UNSET
    ttl: Seconds | msgspec.UnsetType | None = msgspec.UNSET


class ToolCallObject(msgspec.Struct, frozen=True):
    """A call as the model made it."""

    id: str
    function: dict[str, str]
    type: Literal["function"] = "function"


class MessageObject(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message, in OpenAI's words."""

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCallObject, ...] = ()
    tool_call_id: str | None = None


class AgentObject(msgspec.Struct, frozen=True):
    """An agent. Times are Unix seconds; `hit_rate` is the share of its prompts that was cached."""

    name: str
    model: str
    codec: str
    tier: Tier
    tokens: int
    messages: int
    turns: int
    bytes: int
    shared_bytes: int
    parent: str | None
    created: float
    used: float
    expires: float | None
    pinned: bool
    hits: int
    prompt_tokens: int
    cached_tokens: int
    hit_rate: float
    object: Literal["agent"] = "agent"
    history: tuple[MessageObject, ...] | msgspec.UnsetType = msgspec.UNSET


class AgentList(msgspec.Struct, frozen=True):
    """A page of agents by name; the next one begins `after` the last of them."""

    data: tuple[AgentObject, ...]
    has_more: bool
    object: Literal["list"] = "list"


class Deleted(msgspec.Struct, frozen=True):
    """The agent is forgotten."""

    name: str
    deleted: Literal[True] = True
    object: Literal["agent.deleted"] = "agent.deleted"


def agent_object(view: AgentView, history: tuple[Message, ...] | None = None) -> AgentObject:
    """The wire form of an agent."""
    return AgentObject(
        name=view.name,
        model=view.model,
        codec=view.codec,
        tier=view.tier,
        tokens=view.tokens,
        messages=view.messages,
        turns=view.turns,
        bytes=view.nbytes,
        shared_bytes=view.shared_bytes,
        parent=view.parent,
        created=view.created,
        used=view.used,
        expires=view.expires,
        pinned=view.pinned,
        hits=view.hits,
        prompt_tokens=view.prompt_tokens,
        cached_tokens=view.cached_tokens,
        hit_rate=round(view.cached_tokens / max(1, view.prompt_tokens), 4),
        history=msgspec.UNSET if history is None else tuple(map(_message_object, history)),
    )


def _message_object(message: Message) -> MessageObject:
    calls = tuple(
        ToolCallObject(call.id, {"name": call.name, "arguments": call.arguments})
        for call in message.tool_calls
    )
    return MessageObject(message.role, message.content, message.name, calls, message.tool_call_id)
