"""What is installed, and what MLX computes with."""

import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from agentcache.cli.finding import Finding

_SHOWN = ("agentcache-mlx", "mlx", "mlx-lm")
_BACKENDS = ("mlx-cpu", "mlx-metal", "mlx-cuda-12", "mlx-cuda-13")
_MAPS = Path("/proc/self/maps")
_AGAIN = "Install into a fresh environment, or: pip install --force-reinstall agentcache-mlx"


def check_machine(cpu_path: bool) -> Iterator[Finding]:
    """Versions, mixed installs, the BLAS, the device."""
    installed = [(_plain(one.name), one.version) for one in metadata.distributions() if one.name]
    yield from _versions(dict(reversed(installed)))
    yield from _mixed(installed)
    yield from _blas(cpu_path)
    yield from _device()
    yield from _libraries()


def _versions(installed: dict[str, str]) -> Iterator[Finding]:
    where = f"Python {platform.python_version()}, {platform.platform()}"
    yield Finding("versions", "ok", where)
    for name in _SHOWN:
        if name in installed:
            yield Finding("versions", "ok", f"{name} {installed[name]}")
        else:
            yield Finding("versions", "problem", f"{name} is not installed", _AGAIN)


def _mixed(installed: list[tuple[str, str]]) -> Iterator[Finding]:
    """Parts that do not belong together."""
    several = Counter(name for name, _ in installed)
    for name in (*_SHOWN, *_BACKENDS, "numpy", "cmeel-openblas"):
        if several[name] > 1:
            found = ", ".join(sorted(version for one, version in installed if one == name))
            message = f"{name} is installed {several[name]} times ({found})"
            yield Finding("installation", "warning", message, _AGAIN)
    versions = dict(reversed(installed))
    wanted = versions.get("mlx")
    for name in _BACKENDS:
        if wanted and versions.get(name, wanted) != wanted:
            message = f"mlx is {wanted}, but {name} is {versions[name]}"
            yield Finding("installation", "problem", message, f"pip install {name}=={wanted}")


def _blas(cpu_path: bool) -> Iterator[Finding]:
    from agentcache.adapters.mlx import blas

    with tempfile.TemporaryDirectory(prefix="agentcache-doctor-") as scratch:
        status = blas.load(enabled=cpu_path, cache_dir=Path(scratch))
    if status.remedy:
        yield Finding("BLAS", "warning", status.message, status.remedy)
    else:
        yield Finding("BLAS", "ok", status.message)


def _device() -> Iterator[Finding]:
    try:
        core = import_module("mlx.core")
        yield Finding("device", "ok", str(core.default_device()))
    except (ImportError, RuntimeError) as error:
        yield Finding("device", "problem", f"MLX cannot be loaded: {error}", _AGAIN)


def _libraries() -> Iterator[Finding]:
    """Libraries that a process should have once; numpy's own OpenBLAS has a name of its own."""
    if sys.platform != "linux":
        return
    mapped = {line.split()[-1] for line in _MAPS.read_text().splitlines() if "/" in line}
    for name in ("libopenblas", "libgfortran"):
        found = sorted(path for path in mapped if Path(path).name.startswith(f"{name}."))
        if len(found) > 1:
            message = f"{name} is loaded {len(found)} times: {', '.join(found)}"
            yield Finding("libraries", "warning", message, "Unset LD_PRELOAD and LD_LIBRARY_PATH")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
