"""Keys in eight bits, values in four: keys choose what is attended to, and bear less rounding."""

from agentcache.adapters.codecs.kept import Odd
from agentcache.adapters.codecs.q4 import Q4Codec
from agentcache.adapters.codecs.q8 import Q8Codec
from agentcache.adapters.codecs.rowwise import RowwiseCodec
from agentcache.adapters.codecs.tensors import Role
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import RowArray


class K8V4Codec(RowwiseCodec):
    """The roles of keys as `q8` encodes them, those of values as `q4` does: 0.21 of float32."""

    name = "k8v4"
    _keys = Q8Codec()
    _values = Q4Codec()

    def role_nbytes(self, role: Role, rows: int) -> int:
        """Bytes of `rows` finite rows of `role`."""
        return self._of(role).role_nbytes(role, rows)

    def tensor_names(self, role: Role) -> tuple[str, ...]:
        """The four tensors of a role."""
        return self._of(role).tensor_names(role)

    def encode_role(self, role: Role, array: RowArray, start: int) -> dict[str, Tensor]:
        """Encode `array`, [layers, heads, rows, dim]."""
        return self._of(role).encode_role(role, array, start)

    def decode_role(
        self, role: Role, payload: Payload, stored: int, first: int, out: RowArray
    ) -> None:
        """Restore rows from `first` on into `out`, [layers, heads, rows, dim]."""
        self._of(role).decode_role(role, payload, stored, first, out)

    def odd(self, role: Role, payload: Payload, stored: int) -> Odd | None:
        """Those of the codec of the role."""
        return self._of(role).odd(role, payload, stored)

    def _of(self, role: Role) -> RowwiseCodec:
        return self._keys if role.keys else self._values
