"""Give MLX's CPU backend a fast BLAS: OpenBLAS, loaded with global symbols before MLX is.

The Linux wheel of MLX links the reference BLAS. A library that is already in the process's global
scope answers first when libmlx binds `cblas_sgemm`, so `load()` has to run before the first import
of `mlx.core`. This module therefore imports neither MLX nor numpy.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from attrs import frozen

from agentcache.adapters.mlx.shared_library import installed_file, load_gfortran

_THREAD_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"

Flavour = Literal["openblas", "reference", "accelerate"]


@frozen
class BlasStatus:
    """Which BLAS answers MLX's CPU matmuls, and what to do when it is the slow one.

    `library` is the file that stands in the global scope and `libgfortran` where its Fortran
    runtime came from ("preloaded" when somebody else loaded both); None when nothing was loaded.
    `remedy` is None when there is nothing to improve.
    """

    flavour: Flavour
    message: str
    library: Path | None = None
    libgfortran: Literal["system", "bundled", "preloaded"] | None = None
    remedy: str | None = None


_loaded: tuple[ctypes.CDLL, BlasStatus] | None = None
_asked_threads: int | None = None
_asked_kernels: int | None = None


def load(*, enabled: bool = True, cache_dir: Path | None = None) -> BlasStatus:
    """Load OpenBLAS into the global scope once; after a success every call returns its status.

    `cache_dir` keeps a patched copy (3 MB) of MLX's libgfortran where the system has none; default
    is the user's cache folder. Never raises: whatever stood in the way is in the status.
    """
    global _loaded  # noqa: PLW0603  (a process has one global scope)
    if _loaded is None:
        outcome = _refusal(enabled) or _preloaded() or _load_wheel(cache_dir)
        if isinstance(outcome, BlasStatus):
            return outcome
        _loaded = outcome
    return _loaded[1]


def set_threads(n: int, kernels: int | None = None) -> None:
    """Let MLX's matmuls use `n` threads from their next call on, and the CPU kernels `kernels`
    (default: `n`), which share their work out themselves.
    """
    global _asked_threads, _asked_kernels
    if n < 1:
        raise ValueError(f"a matmul needs at least one thread, not {n}")
    _asked_threads, _asked_kernels = n, kernels
    if _loaded is not None:
        _loaded[0].openblas_set_num_threads(n)


def thread_count() -> int:
    """What `set_threads` said last; before that OpenBLAS's own choice, or the cores at hand."""
    if _asked_threads is not None:
        return _asked_threads
    if _loaded is not None:
        return int(_loaded[0].openblas_get_num_threads())
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def kernel_threads() -> int:
    """How many threads the CPU kernels use."""
    return _asked_kernels or thread_count()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use `n` threads inside the block and the former numbers after it."""
    before, kernels = thread_count(), _asked_kernels
    set_threads(n)
    try:
        yield
    finally:
        set_threads(before, kernels)


def set_numpy_threads(n: int) -> int | None:
    """Set the threads of the OpenBLAS inside numpy's wheel; the former number, None if not found.

    It is a second library with a pool of its own: where work is spread over threads already, its
    threads only get in the way.
    """
    try:
        library = _numpys_blas()
        before = int(library.scipy_openblas_get_num_threads64_())
        library.scipy_openblas_set_num_threads64_(n)
    except (OSError, AttributeError):
        return None
    return before


def numpy_kernels() -> str | None:
    """For which processor the OpenBLAS inside numpy's wheel chose its kernels; None if unknown."""
    try:
        name = _numpys_blas().scipy_openblas_get_corename64_
    except (OSError, AttributeError):
        return None
    name.restype = ctypes.c_char_p
    return str(name().decode())


def _numpys_blas() -> ctypes.CDLL:
    """The library as numpy has loaded it. Raises OSError where there is none."""
    path = installed_file("numpy", "libscipy_openblas*")
    if sys.platform != "linux" or path is None:
        raise OSError("numpy has no OpenBLAS of its own")
    return ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)


def _refusal(enabled: bool) -> BlasStatus | None:
    if sys.platform == "darwin":
        return BlasStatus("accelerate", "MLX uses Apple's Accelerate here; nothing to load.")
    if sys.platform != "linux":
        return BlasStatus("reference", f"OpenBLAS is not loaded on {sys.platform}.")
    if not enabled:
        return BlasStatus(
            "reference",
            "The CPU path is turned off: MLX keeps the BLAS it was linked with.",
            remedy="Turn the CPU path on in the settings.",
        )
    return None


def _preloaded() -> tuple[ctypes.CDLL, BlasStatus] | BlasStatus | None:
    """An OpenBLAS that LD_PRELOAD or the program put into the global scope, if there is one."""
    program = ctypes.CDLL(None)
    if hasattr(program, "openblas_set_num_threads") and hasattr(program, "cblas_sgemm"):
        path = _file_of(program.cblas_sgemm)
        return program, BlasStatus("openblas", _describe(program), path, "preloaded")
    if "mlx.core" in sys.modules:
        return BlasStatus(
            "reference",
            "MLX was imported before OpenBLAS could be loaded: its matmuls stay slow.",
            remedy="Call load() before anything imports mlx.",
        )
    return None


def _load_wheel(cache_dir: Path | None) -> tuple[ctypes.CDLL, BlasStatus] | BlasStatus:
    path = installed_file("cmeel-openblas", "libopenblas.so*")
    if path is None:
        return BlasStatus(
            "reference",
            "OpenBLAS is not installed: MLX's matmuls run some fifty times slower than they could.",
            remedy="pip install cmeel-openblas",
        )
    try:
        source = load_gfortran(cache_dir)
        with _short_spins():
            handle = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except (OSError, RuntimeError) as error:
        return BlasStatus(
            "reference",
            f"OpenBLAS is installed but could not be loaded, so MLX's matmuls stay slow: {error}",
            remedy="Install libgfortran.so.5 (apt install libgfortran5, dnf install libgfortran), "
            "or make sure that the cache folder can be written.",
        )
    return handle, BlasStatus("openblas", _describe(handle), path, source)


@contextmanager
def _short_spins() -> Iterator[None]:
    """Let OpenBLAS's idle threads sleep after 2^20 ticks, unless the environment says otherwise.

    By default they spin for 2^26, and take a third of the cores from the numpy work between two
    matmuls (prefill of 2,333 tokens: 4.7 s for 6.0 s). OpenBLAS reads the variable when loaded.
    """
    chosen = _THREAD_TIMEOUT not in os.environ
    if chosen:
        os.environ[_THREAD_TIMEOUT] = "20"
    try:
        yield
    finally:
        if chosen:
            del os.environ[_THREAD_TIMEOUT]


def _describe(library: ctypes.CDLL) -> str:
    library.openblas_get_config.restype = ctypes.c_char_p
    return f"MLX's matmuls use {library.openblas_get_config().decode().strip()}."


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _file_of(function: object) -> Path | None:
    """The file that a loaded function comes from (dladdr(3))."""
    info = _DlInfo()
    address = ctypes.cast(function, ctypes.c_void_p)  # type: ignore[arg-type]
    found = ctypes.CDLL(None).dladdr(address, ctypes.byref(info))
    return Path(os.fsdecode(info.file)) if found and info.file else None
