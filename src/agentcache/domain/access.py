"""Who may do what: what a key, or its absence, lets a client do."""

import re

from attrs import field, frozen

from agentcache.domain.errors import InvalidRequest
from agentcache.domain.session import DEFAULT_TENANT

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@frozen
class Access:
    """What a client may do: work on the memory of `tenant`; as `admin`, also swap and delete.

    `key` is the public id of the key that says so, empty where there are no keys.
    """

    tenant: str = field(default=DEFAULT_TENANT)
    admin: bool = False
    key: str = ""

    @tenant.validator
    def _plain(self, _attribute: object, value: str) -> None:
        if _TENANT.fullmatch(value) is None:
            problem = (
                f"{value[:80]!r} cannot name a tenant: take 1 to 64 letters, digits, '.', '_', '-'"
            )
            raise InvalidRequest(problem, "tenant")


OWNER = Access(admin=True)  # whoever reaches a server without keys, which only listens to loopback
