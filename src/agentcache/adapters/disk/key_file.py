"""API keys in a file of their own: hashed, for their owner alone, replaced as a whole.

A secret has 256 random bits, so one round of SHA-256 is as good as a slow hash: nobody can guess.
"""

import hmac
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Self

import msgspec
from attrs import define, field, frozen

from agentcache.adapters.disk.files import FOLDER_MODE, locked, write_durably
from agentcache.domain.access import Access
from agentcache.domain.errors import HomeError, InvalidRequest
from agentcache.ports.clock import Clock

FORMAT = 1
MOST_BYTES = 4 << 20
_PREFIX = "ac_"
_NOBODY = sha256(secrets.token_bytes(32)).hexdigest()


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key as the file has it: `id` begins its secret, `digest` is the SHA-256 of all of it.

    Times are wall-clock seconds; `expires` is None for one that stays in force until it is removed.
    """

    id: str
    tenant: str
    admin: bool
    digest: str
    created: float
    expires: float | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    keys: tuple[Key, ...]


_decoder = msgspec.json.Decoder(_File)


@frozen
class _Read:
    """The keys of the file when its stamp was `stamp`."""

    stamp: tuple[int, int, int] | None = None
    keys: dict[str, Key] = field(factory=dict, repr=False)


@define(eq=False)
class KeyFile:
    """The keys in the file `path`; implements `ports.keyring.Keyring`.

    Another process may change the file at any time: the next look-up goes by what it says then.
    """

    path: Path
    clock: Clock
    _read: _Read = field(factory=_Read, init=False)

    @classmethod
    def existing(cls, path: Path, clock: Clock) -> Self:
        """The file, which has to be there. Raises HomeError, also for one that is none of keys."""
        keys = cls(path, clock)
        if not path.exists():
            remedy = "make it with `agentcache keys add TENANT`"
            raise HomeError(str(path), "no such key file", remedy)
        keys.listed()  # a damaged file is told of now, not with the first request
        return keys

    def access(self, secret: str) -> Access | None:
        """See `Keyring.access`."""
        key = self._current().get(_id(secret))
        digest = sha256(secret.encode(errors="surrogatepass")).hexdigest()
        same = hmac.compare_digest(digest, key.digest if key else _NOBODY)
        if key is None or not same or self._is_over(key):
            return None
        return Access(key.tenant, key.admin, key.id)

    def listed(self) -> tuple[Key, ...]:
        """All keys, the oldest first. Raises HomeError when the file is not one of keys."""
        return tuple(self._current().values())

    def add(self, tenant: str, admin: bool = False) -> tuple[Key, str]:
        """A new key, and its secret, which is not kept. Raises InvalidRequest, HomeError."""
        Access(tenant)  # refuses what can name no tenant
        with self._changing() as keys:
            key, secret = self._made(tenant, admin)
            keys[key.id] = key
        return key, secret

    def rotate(self, name: str, grace: float = 0.0) -> tuple[Key, str]:
        """A new key with the rights of the key `name`, which stays in force for `grace` seconds."""
        with self._changing() as keys:
            old = _known(keys, name)
            key, secret = self._made(old.tenant, old.admin)
            over = self.clock.wall() + grace
            if old.expires is None or over < old.expires:
                keys[old.id] = msgspec.structs.replace(old, expires=over)
            if not grace:
                del keys[old.id]
            keys[key.id] = key
        return key, secret

    def remove(self, name: str) -> Key:
        """Put the key `name` out of force. Raises InvalidRequest when there is none."""
        with self._changing() as keys:
            return keys.pop(_known(keys, name).id)

    # -- inside ------------------------------------------------------------------------------

    def _made(self, tenant: str, admin: bool) -> tuple[Key, str]:
        name = secrets.token_hex(6)
        secret = f"{_PREFIX}{name}_{secrets.token_urlsafe(32)}"
        digest = sha256(secret.encode()).hexdigest()
        return Key(name, tenant, admin, digest, self.clock.wall()), secret

    def _is_over(self, key: Key) -> bool:
        return key.expires is not None and key.expires <= self.clock.wall()

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Key]]:
        """The keys, to be changed and written; one process at a time."""
        with self._telling():
            self.path.parent.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        with self._telling(), locked(self.path.with_name(f"{self.path.name}.lock")):
            keys = dict(self._load().keys)
            yield keys
            living = tuple(key for key in keys.values() if not self._is_over(key))
            write_durably(
                self.path, [msgspec.json.format(msgspec.json.encode(_File(FORMAT, living)))]
            )

    def _current(self) -> dict[str, Key]:
        """The keys; read again only when the file has another stamp."""
        with self._telling():
            if _stamp(self.path) != self._read.stamp or self._read.stamp is None:
                self._read = self._load()
        return self._read.keys

    def _load(self) -> _Read:
        stamp = _stamp(self.path)  # before the content: a change in between is seen the next time
        if stamp is None:
            return _Read()
        if stamp[2] > MOST_BYTES:
            raise HomeError(str(self.path), f"{stamp[2]} bytes are no key file")
        try:
            file = _decoder.decode(self.path.read_bytes())
        except (msgspec.MsgspecError, UnicodeError) as error:
            remedy = "restore it, or delete it and add keys anew"
            raise HomeError(str(self.path), f"not a key file: {error}", remedy) from None
        if file.format != FORMAT:
            problem = f"key file of format {file.format}, this agentcache knows {FORMAT}"
            raise HomeError(str(self.path), problem, "use the agentcache that wrote it")
        return _Read(stamp, {key.id: key for key in file.keys})

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HomeError(str(self.path), error.strerror or str(error)) from error


def _known(keys: dict[str, Key], name: str) -> Key:
    if name not in keys:
        raise InvalidRequest(f"there is no key {name!r}; `agentcache keys ls` lists them", "id")
    return keys[name]


def _id(secret: str) -> str:
    return secret.removeprefix(_PREFIX).partition("_")[0]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever the file is replaced; None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
