"""Memory for rows that has been used before.

Writing to a page for the first time costs several times what the bytes do, because the system has
to find and clear it. So buffers are lent out of one mapping; what comes back stays mapped, and some
is made ready while nobody waits.
"""

import mmap
import os
import sys
import weakref
from contextlib import suppress
from math import prod
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TypeVar

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from agentcache.domain.errors import IntegrityError

T = TypeVar("T", bound=np.generic)

PAGE = 256 << 10
RESERVE = 256 << 20
_HUGE = 2 << 20
_WORTH = 1 << 20  # smaller buffers come from numpy
_STEP = 8  # pages made ready at a time, so few that nobody waits for it
_SYSTEM_PAGE = mmap.PAGESIZE
_OVERCOMMIT, _NEVER = Path("/proc/sys/vm/overcommit_memory"), "2"
_NO_SWAP_RESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named since Python 3.13


class _Loan:
    """Memory that is lent as long as any array, or view of one, lies in it."""

    def __init__(
        self, mapping: mmap.mmap, address: int, shape: tuple[int, ...], dtype: "np.dtype[T]"
    ) -> None:
        self._mapping = mapping  # which must not go before
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": shape,
            "typestr": dtype.str,
        }


@define(eq=False)
class MappedMemory:
    """Lends buffers; pages that are free and mapped are spare.

    There are at most `limit` bytes of spare pages and of what is held together, and `reserve` of
    spare ones. Called from any thread; loans may end on any. Without a mapping all comes from
    numpy.
    """

    limit: int
    reserve: int
    _mapping: mmap.mmap | None
    _bytes: NDArray[np.uint8]
    _start: int  # where in the mapping `_bytes` begins
    _lent: bytearray = field(init=False)  # of every page, whether it is
    _mapped: bytearray = field(init=False)
    _loans: dict[int, int] = field(factory=dict, init=False)  # first page, how many
    _ended: "SimpleQueue[int]" = field(factory=SimpleQueue, init=False)
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    @_lent.default
    def _none_lent(self) -> bytearray:
        return bytearray(self._bytes.nbytes // PAGE)

    @_mapped.default
    def _none_mapped(self) -> bytearray:
        return bytearray(self._bytes.nbytes // PAGE)

    @classmethod
    def of(cls, limit: int, reserve: int | None = None) -> "MappedMemory":
        """At most `limit` bytes; `reserve` is an eighth of them, up to RESERVE, if not given."""
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # Addresses cost nothing: twice as many, so that there is room between loans.
        size = min(2 * limit, machine) // _HUGE * _HUGE
        mapping = _mapping(size + _HUGE) if size else None
        if mapping is None:
            return cls.plain()
        whole = np.frombuffer(mapping, np.uint8)
        start = -whole.ctypes.data % _HUGE
        kept = min(limit // 8, RESERVE) if reserve is None else reserve
        return cls(limit, kept, mapping, whole[start : start + size], start)

    @classmethod
    def plain(cls) -> "MappedMemory":
        """Nothing is kept."""
        return cls(0, 0, None, np.empty(0, np.uint8), 0)

    @property
    def spare(self) -> int:
        """Bytes of pages that are mapped and not lent."""
        return (self._mapped.count(1) - self._lent.count(1)) * PAGE

    def empty(self, shape: tuple[int, ...], dtype: "np.dtype[T]") -> NDArray[T]:
        """An uninitialised buffer; its memory comes back with its last view.

        Raises MemoryError.
        """
        nbytes = prod(shape) * dtype.itemsize
        first = self._take(-(-nbytes // PAGE)) if nbytes >= _WORTH else None
        if first is None or self._mapping is None:
            return np.empty(shape, dtype)
        loan = _Loan(self._mapping, self._bytes.ctypes.data + first * PAGE, shape, dtype)
        weakref.finalize(loan, self._ended.put, first).atexit = False
        return np.asarray(loan)

    def settle(self, held: int = 0) -> None:
        """Give spare pages back to the system until the bounds hold, with so many bytes `held`."""
        with self._lock:
            self._settle(held)

    def _settle(self, held: int) -> None:
        self._take_back()
        excess = -((self._most(held) - self.spare) // PAGE)  # rounded up
        if excess <= 0 or self._mapping is None:
            return
        mapped, lent = (np.frombuffer(one, np.bool_) for one in (self._mapped, self._lent))
        pages = np.flatnonzero(mapped & ~lent)[-excess:]  # those that are lent last
        for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
            first, stop = int(run[0]), int(run[-1]) + 1
            at, size = self._start + first * PAGE, (stop - first) * PAGE
            self._mapping.madvise(mmap.MADV_DONTNEED, at, size)
            self._mapped[first:stop] = bytes(stop - first)

    def prepare(self, held: int = 0) -> bool:
        """Map a few more pages, with so many bytes `held`; whether there are more to map."""
        with self._lock:
            return self._prepare(held)

    def _prepare(self, held: int) -> bool:
        self._take_back()
        wanted = (self._most(held) - self.spare) // PAGE
        first = self._mapped.find(0)
        if wanted <= 0 or first < 0:
            return False
        behind = self._mapped.find(1, first)
        last = behind if behind >= 0 else len(self._mapped)
        stop = min(first + min(wanted, _STEP), last)
        self._bytes[first * PAGE : stop * PAGE : _SYSTEM_PAGE] = 0
        self._mapped[first:stop] = b"\1" * (stop - first)
        return True

    def check_integrity(self) -> None:
        """Raise IntegrityError unless what is lent is what was lent, and mapped."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        lent = bytearray(len(self._lent))
        for first, count in self._loans.items():
            if any(lent[first : first + count]):
                raise IntegrityError("a page is lent twice")
            lent[first : first + count] = b"\1" * count
        if lent != self._lent or any(self._lent[n] > one for n, one in enumerate(self._mapped)):
            raise IntegrityError("pages are lent that nobody has, or that are not mapped")

    def _most(self, held: int) -> int:
        return max(0, min(self.reserve, self.limit - held))

    def _take(self, count: int) -> int | None:
        """The first of `count` free neighbours, the lowest, which are the likeliest mapped."""
        with self._lock:
            self._take_back()
            first = self._lent.find(bytes(count))
            if first < 0:
                return None
            self._lent[first : first + count] = self._mapped[first : first + count] = b"\1" * count
            self._loans[first] = count
            return first

    def _take_back(self) -> None:
        while not self._ended.empty():
            first = self._ended.get()
            count = self._loans.pop(first)
            self._lent[first : first + count] = bytes(count)


def _mapping(size: int) -> mmap.mmap | None:
    """So many bytes of addresses, as yet without memory; None where there are no more of them."""
    if sys.platform != "linux" or _addresses_count():
        return None
    try:
        found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON | _NO_SWAP_RESERVED)
    except (OSError, OverflowError):
        return None
    with suppress(OSError):  # a system without huge pages
        found.madvise(mmap.MADV_HUGEPAGE)
    return found


def _addresses_count() -> bool:
    """Whether the system sets memory aside for addresses: then others would lack it."""
    with suppress(OSError):
        return _OVERCOMMIT.read_text().strip() == _NEVER
    return False
