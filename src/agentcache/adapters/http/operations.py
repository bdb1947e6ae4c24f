"""What can be asked for over HTTP, with the types that endpoints decode and encode."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

from attrs import frozen

from agentcache.adapters.http.admin import Swapped, SwapRequest
from agentcache.adapters.http.agent_types import (
    AgentList,
    AgentObject,
    NewAgent,
    NewName,
    Pinning,
    Rewinding,
    Spoken,
)
from agentcache.adapters.http.agent_types import Deleted as DeletedAgent
from agentcache.adapters.http.anthropic_types import (
    CountRequest,
    Message,
    MessagesRequest,
    StreamEvent,
    TokenCount,
)
from agentcache.adapters.http.completion_types import Completion, CompletionRequest
from agentcache.adapters.http.health import HealthReport
from agentcache.adapters.http.models import ModelList, ModelObject
from agentcache.adapters.http.openai_types import ChatChunk, ChatCompletion, ChatRequest
from agentcache.adapters.http.responses_types import Deleted as DeletedResponse
from agentcache.adapters.http.responses_types import Response, ResponsesRequest
from agentcache.adapters.http.responses_types import StreamEvent as ResponseStreamEvent


@frozen
class Operation:
    """One operation. Of bodies, `bytes` are files and `str` is text; all else is JSON.

    An `answer` comes with `status`, or if it was asked for, as a stream of `events`. A `turn` takes
    the headers that say how it shall be treated. `query` names parameters in `QUERY`.
    """

    summary: str
    answer: Any
    body: Any = None
    status: int = 200
    events: tuple[type, ...] = ()
    query: tuple[str, ...] = ()
    turn: bool = False
    admin: bool = False


QUERY: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
        "after": {"type": "string"},
        "nameless": {"type": "boolean"},
        "messages": {"type": "boolean"},
        "replace": {"type": "boolean"},
    }
)
TURN_HEADERS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "X-Agent-ID": {"type": "string", "minLength": 1, "maxLength": 256},
        "X-Agent-Busy": {"enum": ["wait", "fork"]},
        "X-Agent-Priority": {"type": "integer", "minimum": -10, "maximum": 10},
        "X-Agent-Timeout": {"type": "number", "minimum": 0},
        "X-Agent-Cache": {"enum": ["store", "no-store"]},
        "X-Agent-Codec": {"type": "string", "minLength": 1},
    }
)

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "POST /v1/chat/completions": Operation(
            "Answer a conversation, as OpenAI's chat completions",
            ChatCompletion,
            ChatRequest,
            events=(ChatChunk,),
            turn=True,
        ),
        "POST /v1/completions": Operation(
            "Go on from raw text, as OpenAI's completions",
            Completion,
            CompletionRequest,
            events=(Completion,),
            turn=True,
        ),
        "POST /v1/responses": Operation(
            "Answer a conversation, as OpenAI's responses",
            Response,
            ResponsesRequest,
            events=get_args(ResponseStreamEvent),
            turn=True,
        ),
        "GET /v1/responses/{id}": Operation("A stored response", Response),
        "DELETE /v1/responses/{id}": Operation("Forget a stored response", DeletedResponse),
        "POST /v1/messages": Operation(
            "Answer a conversation, as Anthropic's messages",
            Message,
            MessagesRequest,
            events=get_args(StreamEvent),
            turn=True,
        ),
        "POST /v1/messages/count_tokens": Operation(
            "How many tokens a prompt would have", TokenCount, CountRequest
        ),
        "GET /v1/models": Operation("The model that answers, and others that could", ModelList),
        "GET /v1/models/{model}": Operation("One model", ModelObject),
        "GET /v1/agents": Operation(
            "A page of agents", AgentList, query=("limit", "after", "nameless")
        ),
        "POST /v1/agents": Operation(
            "A new agent that knows a conversation", AgentObject, NewAgent, 201
        ),
        "GET /v1/agents/{name}": Operation("One agent", AgentObject, query=("messages",)),
        "DELETE /v1/agents/{name}": Operation("Forget an agent", DeletedAgent, admin=True),
        "POST /v1/agents/{name}/fork": Operation(
            "A new agent that remembers the same", AgentObject, NewName, 201
        ),
        "POST /v1/agents/{name}/rewind": Operation("Take turns back", AgentObject, Rewinding),
        "POST /v1/agents/{name}/pin": Operation(
            "Keep an agent, or forget it later", AgentObject, Pinning
        ),
        "POST /v1/agents/{name}/prefill": Operation(
            "Compute a conversation now, answer later", AgentObject, Spoken
        ),
        "GET /v1/agents/{name}/export": Operation("An agent as a file", bytes),
        "POST /v1/agents/{name}/import": Operation(
            "An agent from a file", AgentObject, bytes, 201, query=("replace",)
        ),
        "POST /v1/admin/model": Operation("Serve another model", Swapped, SwapRequest, admin=True),
        "GET /health": Operation("Whether turns are taken", HealthReport),
        "GET /health/live": Operation("Whether the process does its work", HealthReport),
        "GET /health/ready": Operation("Whether turns are taken", HealthReport),
        "GET /health/startup": Operation("Whether the model was loaded once", HealthReport),
        "GET /metrics": Operation("Metrics, in Prometheus' text format", str),
        "GET /openapi.json": Operation("This description", dict),
    }
)
