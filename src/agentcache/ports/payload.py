"""Encoded segments: named byte tensors, as they lie in RAM and on disk."""

from collections.abc import Mapping

from attrs import field, frozen


@frozen
class Tensor:
    """One encoded tensor: a safetensors dtype tag ("F32", "U8", ...), its shape, its bytes.

    `data` is one contiguous buffer (C order, format "B") that nobody writes to any more.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview = field(eq=False, repr=False)


@frozen
class Payload:
    """The encoded rows of one segment.

    The first axis of every row tensor is the row, so that the beginning of a segment is the
    beginning of its bytes. `codec` names what can decode it.
    """

    codec: str
    rows: int
    tensors: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.data.nbytes for tensor in self.tensors.values())
