"""Which BLAS answers MLX, tried in fresh interpreters: a library can be loaded only once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentcache.adapters.mlx.shared_library import _renamed_copy, installed_file, installed_files
from tests.tiny_models import tiny_llama

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="OpenBLAS is loaded on Linux only")

# Run before anything else: the loader finds no libgfortran by its plain name.
NO_SYSTEM_GFORTRAN = """
import ctypes
class CDLL(ctypes.CDLL):
    def __init__(self, name, *args, **options):
        if name == "libgfortran.so.5":
            raise OSError("libgfortran.so.5: hidden by the test")
        super().__init__(name, *args, **options)
ctypes.CDLL = CDLL
"""
HIDE_WHEEL = """
from importlib import metadata
files = metadata.files
def listed(distribution):
    if distribution == "{}":
        raise metadata.PackageNotFoundError(distribution)
    return files(distribution)
metadata.files = listed
"""
LOAD = """
import json, sys
from pathlib import Path
import attrs
from agentcache.adapters.mlx import blas
def answer(**more):
    print(json.dumps({**attrs.asdict(status), **more}, default=str))
status = blas.load(cache_dir=Path(sys.argv[1]))
"""
MATMUL = """
import mlx.core as mx
product = (mx.arange(6.0).reshape(2, 3) @ mx.arange(6.0).reshape(3, 2)).tolist()
"""
# As the server loads it, whose tokenizer comes first.
SERVED = """
from pathlib import Path
from agentcache.container import Container
from agentcache.settings import Settings
container = Container(settings=Settings(home=Path({home!r}), model={model!r}))
loaded = container.{first}()
import mlx.core as mx
product = (mx.arange(6.0).reshape(2, 3) @ mx.arange(6.0).reshape(3, 2)).tolist()
print("{{}}")
"""


def start(script: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    return subprocess.Popen(
        [sys.executable, "-c", script, str(cache)],
        env=inherited | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def answer_of(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """What the script printed as JSON, and its stderr."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out), err


def ask(script: str, cache: Path, **environment: str) -> dict[str, Any]:
    return answer_of(start(script, cache, **environment))[0]


def bindings_of(script: str, cache: Path) -> set[str]:
    """The names of the libraries that libmlx's cblas_sgemm was bound to (ld.so(8), LD_DEBUG)."""
    _, log = answer_of(start(script, cache, LD_DEBUG="bindings"))
    found = re.findall(r"libmlx\.so \[0\] to (\S+) \[0\]: normal symbol `cblas_sgemm'", log)
    return {Path(file).name.split(".")[0].split("-")[0] for file in found}


def test_mlx_binds_its_matmuls_to_openblas_when_that_was_loaded_first(tmp_path: Path) -> None:
    assert bindings_of(LOAD + MATMUL + "answer()", tmp_path) == {"libopenblas"}


@pytest.mark.parametrize("first", ["load_tokenizer", "load_engine"])
def test_whatever_of_a_model_is_loaded_first_mlx_is_bound_to_openblas(
    tmp_path: Path, first: str
) -> None:
    model = tiny_llama(tmp_path / "model", 1)
    loaded = SERVED.format(home=str(tmp_path / "home"), model=str(model), first=first)
    assert bindings_of(loaded, tmp_path) == {"libopenblas"}


def test_mlx_binds_its_matmuls_to_the_reference_blas_otherwise(tmp_path: Path) -> None:
    assert bindings_of(MATMUL + "print('{}')", tmp_path) == {"libblas"}


def test_a_matmul_is_right_and_the_status_names_the_library_that_is_mapped(tmp_path: Path) -> None:
    maps = "answer(product=product, maps=Path('/proc/self/maps').read_text())"
    said = ask(LOAD + MATMUL + maps, tmp_path)
    assert said["flavour"] == "openblas"
    assert said["remedy"] is None
    assert "OpenBLAS 0.3" in said["message"]
    assert said["library"] in said["maps"]
    assert said["product"] == [[10, 13], [28, 40]]


def test_without_the_systems_libgfortran_the_one_of_mlx_is_used(tmp_path: Path) -> None:
    maps = "answer(maps=Path('/proc/self/maps').read_text())"
    said = ask(NO_SYSTEM_GFORTRAN + LOAD + MATMUL + maps, tmp_path)
    assert (said["flavour"], said["libgfortran"]) == ("openblas", "bundled")
    (copy,) = tmp_path.iterdir()
    assert str(copy) in said["maps"]


def test_the_systems_libgfortran_is_preferred_and_nothing_is_written(tmp_path: Path) -> None:
    bundled = installed_file("mlx-cpu", "libgfortran-*")
    assert bundled is not None
    system, cache = tmp_path / "system", tmp_path / "cache"
    _renamed_copy(bundled, system).rename(system / "libgfortran.so.5")
    for companion in installed_files("mlx-cpu", "libquadmath-*"):
        (system / companion.name).symlink_to(companion)
    said = ask(LOAD + MATMUL + "answer(product=product)", cache, LD_LIBRARY_PATH=str(system))
    assert (said["flavour"], said["libgfortran"]) == ("openblas", "system")
    assert not cache.exists()


def test_no_libgfortran_at_all_leaves_the_reference_blas_and_says_what_to_install(
    tmp_path: Path,
) -> None:
    script = HIDE_WHEEL.format("mlx-cpu") + NO_SYSTEM_GFORTRAN + LOAD + MATMUL
    said = ask(script + "answer(product=product)", tmp_path)
    assert (said["flavour"], said["library"]) == ("reference", None)
    assert "neither the system nor mlx-cpu" in said["message"]
    assert "libgfortran5" in said["remedy"]
    assert said["product"] == [[10, 13], [28, 40]]


def test_without_an_installed_openblas_the_status_says_how_to_get_it(tmp_path: Path) -> None:
    said = ask(HIDE_WHEEL.format("cmeel-openblas") + LOAD + "answer()", tmp_path)
    assert (said["flavour"], said["remedy"]) == ("reference", "pip install cmeel-openblas")


def test_a_cache_folder_that_cannot_be_written_is_named_in_the_status(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    said = ask(NO_SYSTEM_GFORTRAN + LOAD + "answer()", blocked)
    assert said["flavour"] == "reference"
    assert str(blocked) in said["message"]
    assert "cache folder" in said["remedy"]


def test_a_damaged_copy_in_the_cache_is_replaced(tmp_path: Path) -> None:
    script = NO_SYSTEM_GFORTRAN + LOAD + "answer()"
    ask(script, tmp_path)
    (copy,) = tmp_path.iterdir()
    whole = copy.read_bytes()
    copy.write_bytes(whole[:1000])
    assert ask(script, tmp_path)["flavour"] == "openblas"
    assert copy.read_bytes() == whole


def test_processes_that_start_at_once_share_one_copy_and_leave_no_other_file(
    tmp_path: Path,
) -> None:
    together = [start(NO_SYSTEM_GFORTRAN + LOAD + "answer()", tmp_path) for _ in range(4)]
    flavours = [answer_of(process)[0]["flavour"] for process in together]
    assert flavours == ["openblas"] * 4
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_is_in_the_users_cache_folder_unless_said_otherwise(tmp_path: Path) -> None:
    script = NO_SYSTEM_GFORTRAN + LOAD.replace("cache_dir=Path(sys.argv[1])", "") + "answer()"
    assert ask(script, tmp_path, XDG_CACHE_HOME=str(tmp_path))["flavour"] == "openblas"
    assert [path.name for path in tmp_path.iterdir()] == ["agentcache"]


def test_when_mlx_was_imported_first_the_status_says_so(tmp_path: Path) -> None:
    said = ask("import mlx.core\n" + LOAD + "answer()", tmp_path)
    assert (said["flavour"], said["library"]) == ("reference", None)
    assert "imported before" in said["message"]
    assert "before anything imports mlx" in said["remedy"]


def test_an_openblas_that_was_preloaded_is_used_as_it_is(tmp_path: Path) -> None:
    reload = "import importlib; importlib.reload(blas); status = blas.load(); answer()"
    said = ask(LOAD + MATMUL + reload, tmp_path)
    assert (said["flavour"], said["libgfortran"]) == ("openblas", "preloaded")
    assert Path(said["library"]).name.startswith("libopenblas")


def test_turned_off_it_loads_nothing(tmp_path: Path) -> None:
    off = LOAD.replace("load(", "load(enabled=False, ")
    said = ask(off + "answer(maps=Path('/proc/self/maps').read_text())", tmp_path)
    assert said["flavour"] == "reference"
    assert "turned off" in said["message"]
    assert "openblas" not in said["maps"]


@pytest.mark.parametrize(("system", "flavour"), [("darwin", "accelerate"), ("win32", "reference")])
def test_elsewhere_than_on_linux_it_loads_nothing(
    tmp_path: Path, system: str, flavour: str
) -> None:
    script = LOAD.replace("status =", f"sys.platform = '{system}'; status =") + "answer()"
    said = ask(script, tmp_path)
    assert (said["flavour"], said["library"]) == (flavour, None)


def test_a_second_load_returns_the_first_status(tmp_path: Path) -> None:
    again = "answer(same=blas.load() is status, off=blas.load(enabled=False) is status)"
    said = ask(LOAD + again, tmp_path)
    assert (said["same"], said["off"]) == (True, True)


def test_threads_are_set_inside_the_block_and_put_back_after_it(tmp_path: Path) -> None:
    script = """
import ctypes
count = ctypes.CDLL(None).openblas_get_num_threads
blas.set_threads(1)
seen = [count(), blas.thread_count()]
try:
    with blas.threads(2):
        seen += [count(), blas.thread_count()]
        raise KeyError
except KeyError:
    seen += [count(), blas.thread_count()]
answer(seen=seen)
"""
    assert ask(LOAD + script, tmp_path)["seen"] == [1, 1, 2, 2, 1, 1]


def test_the_kernels_have_as_many_threads_as_matmuls_unless_they_are_given_more(
    tmp_path: Path,
) -> None:
    script = """
seen = []
for asked in ((1,), (1, 2)):
    blas.set_threads(*asked)
    seen += [blas.thread_count(), blas.kernel_threads()]
with blas.threads(3):
    seen += [blas.thread_count(), blas.kernel_threads()]
answer(seen=[*seen, blas.thread_count(), blas.kernel_threads()])
"""
    assert ask(LOAD + script, tmp_path)["seen"] == [1, 1, 1, 2, 3, 3, 1, 2]


def test_the_environment_decides_the_threads_until_somebody_sets_them(tmp_path: Path) -> None:
    said = ask(LOAD + "answer(n=blas.thread_count())", tmp_path, OPENBLAS_NUM_THREADS="1")
    assert said["n"] == 1


def test_no_threads_at_all_are_refused(tmp_path: Path) -> None:
    script = """
try:
    blas.set_threads(0)
except ValueError as error:
    answer(error=str(error))
"""
    assert "not 0" in ask(LOAD + script, tmp_path)["error"]


def test_the_threads_of_numpys_own_blas_are_set_apart(tmp_path: Path) -> None:
    script = """
import numpy
answer(before=blas.set_numpy_threads(1), then=blas.set_numpy_threads(2), ours=blas.thread_count())
"""
    said = ask(LOAD + "blas.set_threads(2)" + script, tmp_path)
    assert (said["then"], said["ours"]) == (1, 2)


def test_loading_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    script = "answer(left=[name for name in __import__('os').environ if 'OPENBLAS' in name])"
    assert ask(LOAD + script, tmp_path)["left"] == []
