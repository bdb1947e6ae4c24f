"""Who is let in: the Host that a browser was sent to, and the key that a client shows.

A page of another site can make a browser send requests to a server on the loopback interface, under
a name that resolves to it (DNS rebinding). Its requests say that name in Host, and are refused.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from attrs import define
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from agentcache.domain.access import OWNER, Access
from agentcache.domain.errors import Forbidden, Unauthenticated
from agentcache.ports.keyring import Keyring

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN = ("/health", "/openapi.json")  # told to everybody who gets through to the server
_ACCESS = "agentcache.access"
Counted = Callable[[], AbstractContextManager[None]]


@define(eq=False)
class Gate:
    """ASGI middleware. Without a `keyring` everybody is the owner; without `hosts` any Host does.

    `hosts` are names without ports. What is refused is `counted`. Raises Unauthenticated or
    Forbidden.
    """

    app: ASGIApp
    keyring: Keyring | None = None
    hosts: frozenset[str] = frozenset()
    counted: Counted = nullcontext

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with self.counted():
                self._let_in(scope, Headers(scope=scope))
        await self.app(scope, receive, send)

    def _let_in(self, scope: Scope, headers: Headers) -> None:
        self._check_host(headers.get("host", ""))
        if self.keyring is not None and not is_open(_path(scope)):
            scope[_ACCESS] = _access(self.keyring, headers)

    def _check_host(self, host: str) -> None:
        if self.hosts and _without_port(host).lower() not in self.hosts:
            raise Forbidden(
                f"this server does not answer to the host {host[:256]!r}: name it in allowed_hosts"
            )


def access_of(scope: Scope) -> Access:
    """What whoever sent this request may do."""
    access: Access = scope.get(_ACCESS, OWNER)
    return access


def is_open(path: str) -> bool:
    """Whether `path` is told to those without a key."""
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in OPEN)


def require_admin(scope: Scope) -> None:
    """Raise Forbidden unless the request comes with admin rights."""
    if not access_of(scope).admin:
        raise Forbidden("this takes a key with admin rights: see `agentcache keys add --admin`")


def _access(keyring: Keyring, headers: Headers) -> Access:
    secret = _secret(headers)
    if secret is None:
        problem = "send an API key, as `Authorization: Bearer KEY` or `x-api-key: KEY`"
        raise Unauthenticated(problem)
    access = keyring.access(secret)
    if access is None:
        raise Unauthenticated("this API key is not in force here: `agentcache keys ls` lists them")
    return access


def _secret(headers: Headers) -> str | None:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return headers.get("x-api-key") or None


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
