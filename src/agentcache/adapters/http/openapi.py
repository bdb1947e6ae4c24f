"""GET /openapi.json: what the routes take and answer, from the types that they work with."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import msgspec
from attrs import define
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentcache.adapters.http.errors import AnthropicErrorBody, ErrorBody
from agentcache.adapters.http.gate import is_open
from agentcache.adapters.http.operations import OPERATIONS, QUERY, TURN_HEADERS, Operation
from agentcache.adapters.http.sse import DONE

_SCHEMAS = "#/components/schemas/"
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
Described = tuple[str, str, Operation]  # method, path, what it is


@define(eq=False, slots=False)
class Description:
    """OpenAPI 3.2 of `routes`, made when it is asked for first."""

    routes: Sequence[Route]

    async def get(self, _request: Request) -> Response:
        """The description as JSON."""
        return Response(self._encoded, media_type="application/json")

    @cached_property
    def _encoded(self) -> bytes:
        """Types of one name are told apart by their modules, whose package nobody has to know."""
        text = msgspec.json.encode(_document(tuple(described(self.routes))))
        return text.replace(f"{__package__}.".encode(), b"")


def described(routes: Iterable[Route]) -> Iterator[Described]:
    """The operations of `routes`, each of which has to have some."""
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            found = [
                (method, path, operation)
                for path, operation in _of_method(method)
                if route.path_regex.fullmatch(path)
            ]
            assert found, f"operations.py does not tell what {method} {route.path} is"
            yield from found


def _of_method(method: str) -> Iterator[tuple[str, Operation]]:
    for key, operation in OPERATIONS.items():
        name, _, path = key.partition(" ")
        if name == method:
            yield path, operation


def _document(operations: Sequence[Described]) -> dict[str, Any]:
    refs, schemas = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for method, path, operation in operations:
        told = _Teller(path, operation, refs)
        paths.setdefault(path, {})[method.lower()] = told.operation(method)
    return {
        "openapi": "3.2.0",
        "info": {"title": "agentcache", "version": version("agentcache-mlx")},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _KEYS},
        "security": [{}, *({name: []} for name in _KEYS)],
    }


def _schemas(operations: Sequence[Described]) -> tuple[dict[type, Any], dict[str, Any]]:
    """A reference to each type, and the components."""
    types: list[type] = [ErrorBody, AnthropicErrorBody]
    for _, _, one in operations:
        types += [each for each in (one.answer, one.body, *one.events) if _is_struct(each)]
    types = list(dict.fromkeys(types))
    refs, schemas = msgspec.json.schema_components(types, ref_template=_SCHEMAS + "{name}")
    return dict(zip(types, refs, strict=True)), schemas


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


@define
class _Teller:
    """One operation in OpenAPI's words."""

    path: str
    of: Operation
    refs: dict[type, Any]

    def operation(self, method: str) -> dict[str, Any]:
        words = re.findall(r"\w+", f"{method.lower()} {self.path}")
        told: dict[str, Any] = {
            "operationId": "_".join(words),
            "summary": self.of.summary,
            "parameters": [*self._parameters()],
            "responses": self._responses(),
        }
        if self.of.admin:
            told["description"] = "Takes admin rights where there are keys."
        if self.of.body is not None:
            told["requestBody"] = {"required": True, "content": self._content(self.of.body)}
        if is_open(self.path):
            told["security"] = []
        return told

    def _parameters(self) -> Iterator[dict[str, Any]]:
        for name in re.findall(r"{(\w+)}", self.path):
            yield {**_parameter(name, "path", {"type": "string", "minLength": 1}), "required": True}
        for name in self.of.query:
            yield _parameter(name, "query", QUERY[name])
        for name in TURN_HEADERS if self.of.turn else ():
            yield _parameter(name, "header", TURN_HEADERS[name])

    def _responses(self) -> dict[str, Any]:
        done = self._content(self.of.answer)
        if self.of.events:
            done["text/event-stream"] = {"itemSchema": self._event()}
        told = {str(self.of.status): {"description": self.of.summary, "content": done}}
        if self.path.startswith("/health"):
            return {**told, "503": {"description": "It is not so", "content": done}}
        return {**told, "4XX": self._refusal("Refused"), "5XX": self._refusal("Not now")}

    def _event(self) -> dict[str, Any]:
        """One event of a stream; an error in mid-stream is one, too."""
        kinds = [*self.of.events, *self._dialects()]
        told = {"contentMediaType": "application/json"}
        data = {**told, "contentSchema": {"anyOf": [self.refs[kind] for kind in kinds]}}
        ends = {"const": DONE.decode().removeprefix("data: ").strip()}
        properties = {"event": {"type": "string"}, "data": {"anyOf": [ends, data]}}
        return {"type": "object", "properties": properties, "required": ["data"]}

    def _refusal(self, description: str) -> dict[str, Any]:
        content = {"schema": {"anyOf": [self.refs[dialect] for dialect in self._dialects()]}}
        return {"description": description, "content": {"application/json": content}}

    def _dialects(self) -> Sequence[type]:
        """Whoever sends `anthropic-version` is refused in that dialect on every path."""
        if self.path.startswith("/v1/messages"):
            return (AnthropicErrorBody,)
        return (ErrorBody, AnthropicErrorBody)

    def _content(self, kind: Any) -> dict[str, Any]:
        if kind is bytes:
            return {"application/octet-stream": {}}
        if kind is str:
            return {"text/plain": {"schema": {"type": "string"}}}
        schema = self.refs[kind] if _is_struct(kind) else {"type": "object"}
        return {"application/json": {"schema": schema}}


def _parameter(name: str, place: str, schema: Any) -> dict[str, Any]:
    return {"name": name, "in": place, "schema": dict(schema)}
