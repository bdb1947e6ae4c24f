"""What a probe found out about a model, remembered from one start to the next.

A file tells what it was found out with. Where anything of that is different now, or the file is not
whole, the model is probed again: losing it costs time only.
"""

import platform
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex

import mlx.core as mx
import msgspec
from attrs import evolve, frozen

from agentcache.adapters.mlx import blas
from agentcache.adapters.mlx.fitting import Found

_LARGEST = 4 << 20


class _Body(msgspec.Struct):
    made_with: dict[str, str]
    found: Found


class _File(msgspec.Struct):
    check: str  # of the bytes of `body`
    body: msgspec.Raw


@frozen
class ProbeMemory:
    """What was found out about the model of `digest`, in `folder`; with the CPU path, or not."""

    folder: Path
    digest: bytes
    on_cpu: bool

    def recall(self) -> Found | None:
        """What was found out with what is here now; None if that is not known."""
        with suppress(OSError, ValueError, RecursionError):
            if self._path.stat().st_size > _LARGEST:
                return None
            file = msgspec.json.decode(self._path.read_bytes(), type=_File)
            if file.check == _check(file.body):
                body = msgspec.json.decode(file.body, type=_Body)
                return _anew(body.found) if body.made_with == self._made_with() else None
        return None

    def remember(self, found: Found) -> None:
        """Keep it for the next start, if that can be."""
        body = msgspec.json.encode(_Body(self._made_with(), _anew(found)))
        file = _File(_check(body), msgspec.Raw(body))
        fresh = self._path.with_suffix(f".{token_hex(8)}.tmp")
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                fresh.touch(mode=0o600)
                fresh.write_bytes(msgspec.json.encode(file))
                fresh.replace(self._path)
            finally:
                fresh.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.digest.hex()}.json"

    def _made_with(self) -> dict[str, str]:
        """Whatever may change what a forward says, or how it is asked."""
        packages = {name: version(name) for name in ("mlx", "mlx-lm", "numpy")}
        return packages | {
            "agentcache": _our_kernels(),
            "blas": f"{blas.load().flavour} {blas.numpy_kernels()}",
            "device": str(mx.default_device()),
            "machine": platform.machine(),
            "CPU path": str(self.on_cpu),
        }


@cache
def _our_kernels() -> str:
    """A hash of this package's files: they change more often than the version does."""
    digest = blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _check(body: msgspec.Raw | bytes) -> str:
    return blake2b(body, digest_size=16).hexdigest()


def _anew(found: Found) -> Found:
    """`found` and nothing derived from it, past its validators. Raises ValueError."""
    layers = tuple(evolve(layer) for layer in found.spec.layers)
    return evolve(found, spec=evolve(found.spec, layers=layers))
