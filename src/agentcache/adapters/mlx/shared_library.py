"""Shared libraries inside installed wheels: where they are, and a libgfortran for OpenBLAS.

OpenBLAS asks the loader for `libgfortran.so.5`. Where the system has none, MLX's own wheel carries
one under a name that auditwheel made unique; the loader accepts it once its SONAME is the plain one
again and it is in the process before OpenBLAS is.
"""

import ctypes
import os
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal

_PLAIN_NAME = "libgfortran.so.5"


def installed_file(distribution: str, pattern: str) -> Path | None:
    """The file of an installed distribution whose name matches `pattern` (shortest name first)."""
    found = installed_files(distribution, pattern)
    return found[0] if found else None


def installed_files(distribution: str, pattern: str) -> list[Path]:
    """All files of an installed distribution whose names match `pattern`, shortest name first."""
    try:
        listed = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    paths = [Path(str(file.locate())) for file in listed if file.match(pattern)]
    return sorted((path for path in paths if path.is_file()), key=lambda path: len(path.name))


def load_gfortran(cache_dir: Path | None = None) -> Literal["system", "bundled"]:
    """Bring libgfortran.so.5 into the process, from the system or from MLX's wheel.

    The patched copy is kept in `cache_dir`, or else in the user's cache folder. Raises OSError
    when neither source can be loaded.
    """
    with suppress(OSError):
        ctypes.CDLL(_PLAIN_NAME)
        return "system"
    bundled = installed_file("mlx-cpu", f"libgfortran-*{_PLAIN_NAME.removeprefix('libgfortran')}*")
    if bundled is None:
        raise OSError(f"neither the system nor mlx-cpu has a {_PLAIN_NAME}")
    # Loaded by path first, so that the copy finds libquadmath by SONAME from wherever it lies.
    for companion in installed_files("mlx-cpu", "libquadmath-*"):
        ctypes.CDLL(str(companion))
    ctypes.CDLL(str(_renamed_copy(bundled, cache_dir or _user_cache_dir())))
    return "bundled"


def _renamed_copy(library: Path, folder: Path) -> Path:
    """A copy of `library` in `folder` whose SONAME is the plain one; written only if it differs."""
    wanted = _rename_soname(library.read_bytes(), library.name, _PLAIN_NAME)
    copy = folder / library.name
    if not copy.is_file() or copy.read_bytes() != wanted:
        _write_atomically(copy, wanted)
    return copy


def _rename_soname(elf: bytes, old: str, new: str) -> bytes:
    """Overwrite a name in the string table in place (auditwheel's SONAME is the file's name)."""
    entry = b"\0" + old.encode() + b"\0"
    if elf.count(entry) != 1:
        raise OSError(f"{old} does not carry its own name exactly once")
    return elf.replace(entry, (b"\0" + new.encode()).ljust(len(entry), b"\0"))


def _write_atomically(path: Path, content: bytes) -> None:
    # Several processes may start at once: each renames a whole file of its own into place.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        whole = Path(file.name)
        try:
            file.write(content)
            file.flush()
            whole.replace(path)
        except BaseException:
            whole.unlink()
            raise


def _user_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "agentcache"
