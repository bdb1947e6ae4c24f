"""What all codecs share: which arrays there are, and what is asked of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from agentcache.adapters.codecs.kept import Odd
from agentcache.adapters.codecs.slices import Slice, joined
from agentcache.adapters.codecs.tensors import (
    Role,
    checked,
    pack_bytes,
    pack_state,
    roles,
    state_arrays,
    unpack_bytes,
    unpack_state,
)
from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import RowArray, Rows


class RowwiseCodec(ABC):
    """A codec that encodes each role by itself, row by row; state arrays stay as they are.

    A subclass says how one role is encoded. All its tensors begin with the row axis, and all of
    one role's names begin with the role's.
    """

    name: str

    @abstractmethod
    def role_nbytes(self, role: Role, rows: int) -> int:
        """Bytes of `rows` finite rows of `role`, none of them a sequence's first."""

    @abstractmethod
    def encode_role(self, role: Role, array: RowArray, start: int) -> dict[str, Tensor]:
        """Encode `array`, [layers, heads, rows, dim], the rows from position `start` on."""

    @abstractmethod
    def decode_role(
        self, role: Role, payload: Payload, stored: int, first: int, out: RowArray
    ) -> None:
        """Decode from row `first` of the `stored` ones into `out`, [layers, heads, rows, dim].

        Raises ValueError when the tensors of `payload` are not those of `stored` rows.
        """

    @abstractmethod
    def tensor_names(self, role: Role) -> tuple[str, ...]:
        """The names of the tensors that make up `role`."""

    def odd(self, role: Role, payload: Payload, stored: int) -> Odd | None:
        """Which of `stored` rows, [rows, layers], lie in `.x`; None without such a tensor."""
        return None

    def nbytes(self, spec: CacheSpec, rows: int) -> int:
        """See `Codec.nbytes`."""
        return sum(self.role_nbytes(role, rows) for role in roles(spec, LayerKind.FULL))

    def encode(self, spec: CacheSpec, rows: Rows) -> Payload:
        """Copy and encode `rows`, the parts of which must be those that `spec` calls for."""
        full, window, state = _parts(spec)
        _same_names("full", rows.full, (role.name for role in full))
        tensors = self._encode(full, rows.full, rows)
        if rows.window:
            _same_names("window", rows.window, (role.name for role in window))
            tensors |= self._encode(window, rows.window, rows)
        if rows.state:
            _same_names("state", rows.state, state)
            tensors |= pack_state(spec, rows.state)
        if rows.whole is not None:
            _same_names("whole", rows.whole, spec.whole)
            tensors |= {name: pack_bytes(array, name) for name, array in rows.whole.items()}
        return Payload(self.name, rows.stop - rows.start, tensors)

    def decode(self, spec: CacheSpec, payload: Payload, out: Rows, first: int = 0) -> None:
        """Decode the rows of `payload` from its row `first` on into the arrays of `out`."""
        self._check(spec, payload, out, first)
        count = out.stop - out.start
        for role in roles(spec, LayerKind.FULL):
            shape = (role.layers, role.heads, count, role.dim)
            array = checked(out.full[role.name], role.name, role.dtype, shape)
            self.decode_role(role, payload, payload.rows, first, array)
        for role in roles(spec, LayerKind.WINDOW) if out.window else ():
            self._decode_window(role, payload, out.window[role.name])
        if out.state:
            unpack_state(spec, payload, out.state)
        if out.whole is not None:
            out.whole.update({name: unpack_bytes(payload, name) for name in spec.whole})

    def join(self, spec: CacheSpec, parts: Sequence[tuple[Payload, int]]) -> Payload:
        """The payload of neighbours, of each its first so many rows. See `Codec.join`."""
        last, count = parts[-1]
        if any(one.codec != self.name or not 0 < n <= one.rows for one, n in parts):
            raise ValueError(f"these are not parts of {self.name} payloads")
        if count != last.rows and not spec.interior_restorable:
            raise ValueError("window and state arrays are those of the last payload's end")
        tensors: dict[str, Tensor] = {}
        for role in roles(spec, LayerKind.FULL):
            tensors |= self._joined(role, [(one, one.rows, 0, n) for one, n in parts])
        for role in roles(spec, LayerKind.WINDOW):
            if any(name in last.tensors for name in self.tensor_names(role)):
                tensors |= self._joined(role, _last_rows(role, parts))
        of_rows = {
            name
            for kind in (LayerKind.FULL, LayerKind.WINDOW)
            for role in roles(spec, kind)
            for name in self.tensor_names(role)
        }
        tensors |= {name: one for name, one in last.tensors.items() if name not in of_rows}
        return Payload(self.name, sum(n for _, n in parts), tensors)

    def _joined(
        self, role: Role, parts: Sequence[tuple[Payload, int, int, int]]
    ) -> dict[str, Tensor]:
        """Of each payload with so many rows of `role` those from a first one to a last one."""
        slices = [
            Slice(one, stored, self.odd(role, one, stored), start, stop)
            for one, stored, start, stop in parts
        ]
        return {name: joined(name, slices) for name in self.tensor_names(role)}

    def _encode(
        self, wanted: tuple[Role, ...], arrays: Mapping[str, RowArray], rows: Rows
    ) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for role in wanted:
            count = role.rows(rows.stop - rows.start)
            shape = (role.layers, role.heads, count, role.dim)
            array = checked(arrays[role.name], role.name, role.dtype, shape)
            tensors |= self.encode_role(role, array, rows.stop - count)
        return tensors

    def _decode_window(self, role: Role, payload: Payload, array: RowArray) -> None:
        stored = role.rows(payload.rows)
        wanted = array.shape[2] if array.ndim == 4 else 0
        checked(array, role.name, role.dtype, (role.layers, role.heads, wanted, role.dim))
        if wanted > stored:
            raise ValueError(f"{role.name} has {stored} rows, not {wanted}")
        self.decode_role(role, payload, stored, stored - wanted, array)

    def _check(self, spec: CacheSpec, payload: Payload, out: Rows, first: int) -> None:
        count = out.stop - out.start
        if payload.codec != self.name:
            raise ValueError(f"the payload is {payload.codec}, not {self.name}")
        if not 0 <= first <= first + count <= payload.rows:
            raise ValueError(f"rows [{first}, {first + count}) of {payload.rows} do not exist")
        at_end = out.window or out.state or out.whole is not None
        if at_end and first + count != payload.rows:
            raise ValueError("window and state arrays are those of the payload's end")
        full, window, state = _parts(spec)
        _same_names("full", out.full, (role.name for role in full))
        if out.window:
            _same_names("window", out.window, (role.name for role in window))
        if out.state:
            _same_names("state", out.state, state)
        known = {name for role in (*full, *window) for name in self.tensor_names(role)}
        if strange := payload.tensors.keys() - known - set(state) - set(spec.whole):
            raise ValueError(f"the payload has tensors that are not the model's: {sorted(strange)}")


def _parts(spec: CacheSpec) -> tuple[tuple[Role, ...], tuple[Role, ...], tuple[str, ...]]:
    state = tuple(name for name, _, _ in state_arrays(spec))
    return roles(spec, LayerKind.FULL), roles(spec, LayerKind.WINDOW), state


def _same_names(part: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    if set(found) != (names := set(wanted)):
        raise ValueError(f"the {part} arrays are {sorted(found)}, not {sorted(names)}")


def _last_rows(
    role: Role, parts: Sequence[tuple[Payload, int]]
) -> list[tuple[Payload, int, int, int]]:
    """Where the last rows of a window lie: as many as it holds, in neighbours from the last on."""
    found: list[tuple[Payload, int, int, int]] = []
    wanted = role.rows(sum(count for _, count in parts))
    for payload, count in reversed(parts):
        if count != payload.rows:
            raise ValueError("the rows of a window are those of a payload's end")
        stored = role.rows(payload.rows)
        taken = min(stored, wanted)
        if taken:
            found.append((payload, stored, stored - taken, stored))
        wanted -= taken
    return found[::-1]
