"""Rows of encoded tensors cut out and put together, without looking at a number."""

from collections.abc import Sequence

import numpy as np
from attrs import frozen

from agentcache.adapters.codecs.kept import Odd
from agentcache.ports.payload import Payload, Tensor

KEPT = ".x"


@frozen(eq=False)
class Slice:
    """Rows [start, stop) of the `stored` ones of a role in `payload`; `odd` are those in `.x`."""

    payload: Payload
    stored: int
    odd: Odd | None
    start: int
    stop: int

    def of(self, name: str) -> tuple[Tensor, int, int]:
        """The tensor called `name`, and where in its first axis the rows lie.

        Raises ValueError when it is not there, or has other rows.
        """
        tensor = self.payload.tensors.get(name)
        if tensor is None:
            raise ValueError(f"the payload has no tensor {name}")
        rows, start, stop = self.stored, self.start, self.stop
        if self.odd is not None and name.endswith(KEPT):
            counts = [np.count_nonzero(self.odd[:row]) for row in (rows, start, stop)]
            rows, start, stop = (int(count) for count in counts)
        if not tensor.shape or tensor.shape[0] != rows or len(tensor.data) % max(1, rows):
            raise ValueError(f"{name} is {tensor.shape}, not of {rows} rows")
        return tensor, start, stop


def joined(name: str, slices: Sequence[Slice]) -> Tensor:
    """The tensor called `name` of all `slices`, one after another."""
    found = [one.of(name) for one in slices]
    dtype, width = found[0][0].dtype, found[0][0].shape[1:]
    if any((tensor.dtype, tensor.shape[1:]) != (dtype, width) for tensor, _, _ in found):
        raise ValueError(f"the payloads have different kinds of {name}")
    pieces = [_bytes(*place) for place in found]
    data = np.empty(sum(len(piece) for piece in pieces), np.uint8)
    at = 0
    for piece in pieces:
        data[at : at + len(piece)] = piece
        at += len(piece)
    rows = sum(stop - start for _, start, stop in found)
    return Tensor(dtype, (rows, *width), data.data.toreadonly())


def _bytes(tensor: Tensor, start: int, stop: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    size = len(tensor.data) // tensor.shape[0] if tensor.shape[0] else 0
    flat = np.frombuffer(tensor.data, np.uint8)
    return flat[start * size : stop * size]
