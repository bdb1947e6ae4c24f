"""Where agents are asked for: the server that owns the home, or the home itself."""

import asyncio
import http.client
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

import msgspec
from attrs import frozen

from agentcache.cli.keys import ONE_KEY
from agentcache.cli.voices import Refused
from agentcache.domain.errors import AgentCacheError

if TYPE_CHECKING:
    from agentcache.service import Service

_SILENCE = 600.0  # seconds; a large agent may take a while
_PIECE = 1 << 20
Shown = dict[str, Any]


class Desk(Protocol):
    """What can be done with agents. They are told as /v1/agents does. Raises AgentCacheError."""

    def all(self, nameless: bool) -> list[Shown]:
        """Every agent, by name."""
        ...

    def one(self, name: str, history: bool = False) -> Shown:
        """One agent, on demand with what was said."""
        ...

    def fork(self, name: str, new: str) -> Shown:
        """A new agent that remembers the same."""
        ...

    def rewind(self, name: str, turns: int) -> Shown:
        """Take turns back."""
        ...

    def pin(self, name: str, change: Shown) -> Shown:
        """Set `pinned`, and `ttl` in seconds from now or None, as far as they are in `change`."""
        ...

    def forget(self, name: str) -> None:
        """Delete the agent."""
        ...

    def export(self, name: str, path: Path) -> int:
        """Write the agent to a file, and return its bytes."""
        ...

    def take_in(self, name: str, path: Path, replace: bool) -> Shown:
        """Import the agent of a file."""
        ...


@frozen
class LocalDesk:
    """The service of this process, over a home that nobody else has."""

    service: "Service"
    tenant: str

    def all(self, nameless: bool) -> list[Shown]:
        """See Desk."""
        from agentcache.adapters.http.agent_types import agent_object

        found = self.service.agents(self.tenant, nameless)
        return [_plain(agent_object(view)) for view in found]

    def one(self, name: str, history: bool = False) -> Shown:
        """See Desk."""
        from agentcache.adapters.http.agent_types import agent_object

        told = self.service.history(self.tenant, name) if history else None
        return _plain(agent_object(self.service.agent(self.tenant, name), told))

    def fork(self, name: str, new: str) -> Shown:
        """See Desk."""
        asyncio.run(self.service.fork(self.tenant, name, new))
        return self.one(new)

    def rewind(self, name: str, turns: int) -> Shown:
        """See Desk."""
        asyncio.run(self.service.rewind(self.tenant, name, turns))
        return self.one(name)

    def pin(self, name: str, change: Shown) -> Shown:
        """See Desk."""
        if "ttl" in change:
            at = None if change["ttl"] is None else time.time() + change["ttl"]
            asyncio.run(self.service.expire(self.tenant, name, at))
        if "pinned" in change:
            asyncio.run(self.service.pin(self.tenant, name, change["pinned"]))
        return self.one(name)

    def forget(self, name: str) -> None:
        """See Desk."""
        asyncio.run(self.service.forget(self.tenant, name))

    def export(self, name: str, path: Path) -> int:
        """See Desk."""
        return self.service.export(self.tenant, name, path)

    def take_in(self, name: str, path: Path, replace: bool) -> Shown:
        """See Desk."""
        return self.one(self.service.take_in(self.tenant, path, name, replace))


@frozen
class RemoteDesk:
    """The server at `address`. Where it takes keys, AGENTCACHE_API_KEY holds one."""

    address: str

    def all(self, nameless: bool) -> list[Shown]:
        """See Desk."""
        found: list[Shown] = []
        while True:
            after = quote(found[-1]["name"], safe="") if found else ""
            page = self._asked("GET", f"?nameless={str(nameless).lower()}&after={after}")
            found += page["data"]
            if not page["has_more"]:
                return found

    def one(self, name: str, history: bool = False) -> Shown:
        """See Desk."""
        return self._asked("GET", f"{_path(name)}{'?messages=true' if history else ''}")

    def fork(self, name: str, new: str) -> Shown:
        """See Desk."""
        return self._asked("POST", f"{_path(name)}/fork", {"name": new})

    def rewind(self, name: str, turns: int) -> Shown:
        """See Desk."""
        return self._asked("POST", f"{_path(name)}/rewind", {"turns": turns})

    def pin(self, name: str, change: Shown) -> Shown:
        """See Desk."""
        return self._asked("POST", f"{_path(name)}/pin", change)

    def forget(self, name: str) -> None:
        """See Desk."""
        self._asked("DELETE", _path(name))

    def export(self, name: str, path: Path) -> int:
        """See Desk. The file appears whole or not at all."""
        from agentcache.adapters.disk.files import write_durably

        with self._response("GET", f"{_path(name)}/export") as response:
            wanted, told = int(response.headers.get("content-length", "-1")), 0

            def pieces() -> Iterator[bytes]:
                nonlocal told
                while piece := response.read(_PIECE):
                    told += len(piece)
                    yield piece
                if told != wanted:
                    raise Refused(self.address, f"the connection broke after {told} bytes")

            write_durably(path, pieces())
        return told

    def take_in(self, name: str, path: Path, replace: bool) -> Shown:
        """See Desk."""
        query = "?replace=true" if replace else ""
        with path.open("rb") as file:
            size = str(os.fstat(file.fileno()).st_size)
            response = self._response(
                "POST", f"{_path(name)}/import{query}", file, {"content-length": size}
            )
        with response:
            return _object(json.load(response))

    def _asked(self, method: str, path: str, body: object = None) -> Shown:
        data = None if body is None else json.dumps(body).encode()
        with self._response(method, path, data) as response:
            return _object(json.load(response))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(self.address, f"the connection broke: {error}") from None

    def _response(
        self, method: str, path: str, body: Any = None, more: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=_SILENCE)
        headers = {"connection": "close", "content-type": "application/json"} | (more or {})
        if key := os.environ.get(ONE_KEY):
            headers["authorization"] = f"Bearer {key}"
        with self._told():
            connection.request(method, f"/v1/agents{path}", body, headers)
            response = connection.getresponse()
        if response.status >= 300:
            with response:
                raise Refused(self.address, _problem(response))
        return response


class _Unusable(AgentCacheError):
    """What a server answers makes no sense."""


def _problem(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.load(response)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"it answers {response.status} {response.reason}"


def _object(value: Any) -> Shown:
    if not isinstance(value, dict):
        raise _Unusable("the server's answer is no JSON object: is it agentcache?")
    return value


def _path(name: str) -> str:
    return f"/{quote(name, safe='')}"


def _plain(value: msgspec.Struct) -> Shown:
    return _object(msgspec.to_builtins(value))
