"""How errors look on the wire: one table from error to status, one shape for all of them."""

import math
from typing import Literal

import msgspec
import structlog
from attrs import frozen
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agentcache.domain.errors import (
    AgentBusy,
    AgentExists,
    Forbidden,
    InvalidRequest,
    ModelError,
    Overloaded,
    PromptTooLong,
    StoreFull,
    TurnCancelled,
    TurnFailed,
    Unauthenticated,
    Unavailable,
    UnknownAgent,
    UnknownAnswer,
)

_log: structlog.stdlib.BoundLogger = structlog.get_logger("agentcache.http")
ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "overloaded_error",
    "server_error",
]


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong. `param` names the offending field as a path (`messages[0].content`)."""

    message: str
    type: ErrorType
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success, as OpenAI clients read it."""

    error: ErrorDetail


class AnthropicErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong, in Anthropic's dialect."""

    type: str
    message: str


class AnthropicErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success, as Anthropic clients read it."""

    error: AnthropicErrorDetail
    type: Literal["error"] = "error"


_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@frozen
class _Row:
    status: int
    type: ErrorType
    code: str | None = None


TABLE: dict[type[Exception], _Row] = {
    InvalidRequest: _Row(400, "invalid_request_error"),
    PromptTooLong: _Row(400, "invalid_request_error", "context_length_exceeded"),
    Unauthenticated: _Row(401, "authentication_error", "invalid_api_key"),
    Forbidden: _Row(403, "permission_error"),
    ModelError: _Row(404, "not_found_error", "model_not_found"),
    UnknownAgent: _Row(404, "not_found_error", "agent_not_found"),
    UnknownAnswer: _Row(404, "not_found_error", "previous_response_not_found"),
    AgentExists: _Row(409, "invalid_request_error", "agent_exists"),
    AgentBusy: _Row(409, "invalid_request_error", "agent_busy"),
    Overloaded: _Row(429, "rate_limit_error", "overloaded"),
    Unavailable: _Row(503, "overloaded_error", "unavailable"),
    StoreFull: _Row(503, "overloaded_error", "no_room"),
    TurnCancelled: _Row(503, "overloaded_error", "turn_cancelled"),
    TurnFailed: _Row(500, "server_error", "turn_failed"),
}
INTERNAL = ErrorBody(
    ErrorDetail(
        "the server failed on this request; its log says why", "server_error", None, "internal"
    )
)


def reported(error: Exception) -> ErrorBody:
    """The wire form of `error`. One that is not in the table is logged, and nothing of it told."""
    row = _row(error)
    if row is None:
        _log.error("request failed", exc_info=error)
        return INTERNAL
    param = error.param if isinstance(error, InvalidRequest) else None
    return ErrorBody(ErrorDetail(str(error), row.type, param, row.code))


def reported_to_anthropic(error: Exception) -> AnthropicErrorBody:
    """The wire form of `error` in Anthropic's dialect."""
    row = _row(error)
    return _for_anthropic(reported(error), row.status if row else 500)


async def answer_error(request: Request, error: Exception) -> Response:
    """The response to any error; 500 for one that is not in the table."""
    row = _row(error)
    status = row.status if row else 500
    return _error_response(request, status, reported(error), _retry_headers(error))


async def answer_http_error(request: Request, error: Exception) -> Response:
    """The response to what Starlette and the body reader refuse: 404, 405, 413, 415."""
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code in {404, 405}:
        message = f"there is no {request.method} {request.url.path}"
    kind: ErrorType = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    body = ErrorBody(ErrorDetail(message, kind))
    return _error_response(request, error.status_code, body, dict(error.headers or {}))


def _error_response(
    request: Request, status: int, body: ErrorBody, headers: dict[str, str]
) -> Response:
    """An error in the dialect of whoever asked."""
    told = _for_anthropic(body, status) if _is_anthropic(request) else body
    return Response(msgspec.json.encode(told), status, headers, "application/json")


def _is_anthropic(request: Request) -> bool:
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    return "anthropic-version" in request.headers or path.startswith("/v1/messages")


def _for_anthropic(body: ErrorBody, status: int) -> AnthropicErrorBody:
    kind = _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return AnthropicErrorBody(AnthropicErrorDetail(kind, body.error.message))


def _row(error: Exception) -> _Row | None:
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), None)


def _retry_headers(error: Exception) -> dict[str, str]:
    if isinstance(error, AgentExists):
        return {"x-should-retry": "false"}  # SDKs retry every 409 otherwise
    if isinstance(error, Overloaded | Unavailable | AgentBusy):
        seconds = max(error.retry_after, 0.001)
    elif isinstance(error, TurnCancelled | StoreFull):
        seconds = 1.0
    elif isinstance(error, Unauthenticated):
        return {"www-authenticate": "Bearer"}
    else:
        return {}
    return {
        "retry-after": str(math.ceil(seconds)),
        "retry-after-ms": str(math.ceil(seconds * 1000)),
    }
