"""The port to the API keys that are in force."""

from typing import Protocol

from agentcache.domain.access import Access


class Keyring(Protocol):
    """Knows keys by their secrets. Safe to call from any thread."""

    def access(self, secret: str) -> Access | None:
        """What the bearer of `secret` may do; None for one that is not (or no longer) in force.

        How long it takes does not tell how much of a secret is right. Raises HomeError when the
        keys cannot be read: nobody may do anything then.
        """
        ...
