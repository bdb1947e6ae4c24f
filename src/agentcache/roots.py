"""Which rows are whose: a root for each tenant and codec of the model that is served.

Every agent keeps its rows with a codec of its own, so a home holds the rows of several. What one
codec left behind is never read by another: each has its roots, from which no path leads to others.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from attrs import define, field

from agentcache.domain.errors import AdapterError, InvalidRequest
from agentcache.domain.segment import root_key
from agentcache.ports.codec import Codec
from agentcache.ports.engine import ModelCard

_LONGEST_TOLD = 64


@define(eq=False)
class Codecs:
    """The codecs that rows can be kept with, by name: the `default` one, and `others`.

    Others are made when they are first asked for. For any thread.
    """

    default: Codec
    others: Mapping[str, Callable[[], Codec]] = MappingProxyType({})
    names: tuple[str, ...] = field(init=False)
    _made: dict[str, Codec] = field(init=False)

    @names.default
    def _default_first(self) -> tuple[str, ...]:
        return (self.default.name, *(one for one in self.others if one != self.default.name))

    @_made.default
    def _only_the_default(self) -> dict[str, Codec]:
        return {self.default.name: self.default}

    def get(self, name: str) -> Codec:
        """The codec called `name`. Raises InvalidRequest when there is none, or none that works."""
        if name in self._made:
            return self._made[name]
        if name not in self.others:
            told, known = name[:_LONGEST_TOLD], ", ".join(self.names)
            raise InvalidRequest(f"there is no codec {told!r}; there are {known}", "codec")
        try:
            return self._made.setdefault(name, self.others[name]())
        except AdapterError as error:  # a plug-in's
            raise InvalidRequest(str(error), "codec") from None


@define(eq=False)
class Roots:
    """The lineage roots of the model that `card` describes, in a home whose secret is `salt`.

    For any thread.
    """

    card: ModelCard
    salt: bytes
    codecs: Codecs
    _tenants: dict[str, dict[str, bytes]] = field(factory=dict, init=False)
    _names: dict[bytes, str] = field(factory=dict, init=False)

    def root(self, tenant: str, codec: str | None = None) -> bytes:
        """Where the tenant's rows start that are kept with `codec`; None: with the default one.

        Raises InvalidRequest for a codec that there is not.
        """
        name = self.codecs.default.name if codec is None else self.codecs.get(codec).name
        return self._of(tenant)[name]

    def of(self, tenant: str) -> tuple[bytes, ...]:
        """All roots of the tenant, that of the default codec first."""
        return tuple(self._of(tenant).values())

    def codec_name(self, root: bytes) -> str:
        """What the codec of a root is called that one of the calls above has returned."""
        return self._names[root]

    def codec(self, root: bytes) -> Codec:
        """The codec of such a root. Raises InvalidRequest when it is a plug-in's that broke."""
        return self.codecs.get(self._names[root])

    def _of(self, tenant: str) -> Mapping[str, bytes]:
        found = self._tenants.get(tenant)
        if found is None:
            found = {name: self._key(name, tenant) for name in self.codecs.names}
            self._names |= {root: name for name, root in found.items()}
            self._tenants[tenant] = found  # last, since others look here without waiting
        return found

    def _key(self, codec: str, tenant: str) -> bytes:
        card = self.card
        return root_key(card.digest, card.spec.dtype, card.epoch, codec, tenant, self.salt)
