"""The lossless codec: the bytes of the rows as they are."""

import numpy as np

from agentcache.adapters.codecs.rowwise import RowwiseCodec
from agentcache.adapters.codecs.tensors import Role, pack, unpack
from agentcache.domain.spec import ITEM_BYTES
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import NUMPY_DTYPE, RowArray


class NativeCodec(RowwiseCodec):
    """A role becomes one tensor of its own name: [rows, layers, heads * dim], native dtype."""

    name = "native"

    def role_nbytes(self, role: Role, rows: int) -> int:
        """Bytes of `rows` rows of `role`."""
        return rows * role.layers * role.width * ITEM_BYTES[role.dtype]

    def tensor_names(self, role: Role) -> tuple[str, ...]:
        """The role's name itself."""
        return (role.name,)

    def encode_role(self, role: Role, array: RowArray, start: int) -> dict[str, Tensor]:
        """Copy `array`, [layers, heads, rows, dim], with the row first."""
        rows = array.shape[2]
        flat = np.empty((rows, role.layers, role.width), NUMPY_DTYPE[role.dtype])
        for tile in role.tiles(rows):
            np.copyto(role.headed(flat[tile]), array[:, :, tile])
        return {role.name: pack(flat, role.dtype)}

    def decode_role(
        self, role: Role, payload: Payload, stored: int, first: int, out: RowArray
    ) -> None:
        """Copy rows from `first` on into `out`."""
        flat = unpack(payload, role.name, role.dtype, (stored, role.layers, role.width))[first:]
        for tile in role.tiles(out.shape[2]):
            np.copyto(out[:, :, tile], role.headed(flat[tile]))
