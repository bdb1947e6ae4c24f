"""Keys that live as long as the process."""

from collections.abc import Mapping

from attrs import field, frozen

from agentcache.domain.access import Access


@frozen
class MemoryKeyring:
    """The keys given, by secret; implements `ports.keyring.Keyring`."""

    keys: Mapping[str, Access] = field(factory=dict, repr=False)

    def access(self, secret: str) -> Access | None:
        """See `Keyring.access`. A look-up by hash tells nothing of how close a guess came."""
        return self.keys.get(secret)
