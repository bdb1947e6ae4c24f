"""Adapters that other packages bring along."""

import re
from pathlib import Path

import pytest

from agentcache.adapters.memory.clock import ManualClock
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.container import Container
from agentcache.domain.errors import AdapterError
from agentcache.plugins import codec, made, offered, parse_choices, plugged
from agentcache.settings import Settings
from tests.plugged import install

GOOD = """
from agentcache.adapters.codecs import NativeCodec
from agentcache.adapters.memory.clock import ManualClock
from agentcache.adapters.memory.segment_store import MemorySegmentStore

class Zip(NativeCodec):
    name = "zip"

class Impostor(NativeCodec):
    name = "native"

class Vault(MemorySegmentStore):
    pass

def store(home):
    made = Vault()
    made.home = home
    return made

def broken():
    raise RuntimeError("no key for the vault")

def engine(folder, settings):
    return (folder, settings)
"""
ENTRIES = {
    "agentcache.codecs": {"zip": "good_ones:Zip", "liar": "good_ones:Impostor"},
    "agentcache.segment_stores": {"vault": "good_ones:store"},
    "agentcache.clocks": {
        "manual": "good_ones:ManualClock",
        "broken": "good_ones:broken",
        "absent": "good_ones:nothing",
        "wrong": "good_ones:store.__name__.upper",
        "gone": "no_such_module:Clock",
    },
    "agentcache.engines": {"mine": "good_ones:engine"},
}


@pytest.fixture(autouse=True)
def good_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "site", "good-ones", GOOD, ENTRIES)


def test_what_is_installed_is_offered_by_name() -> None:
    assert offered("codec") == ("liar", "zip")
    assert offered("tokenizer") == ()


def test_a_codec_is_chosen_by_its_name() -> None:
    assert Settings(codec="zip").codec == "zip"
    assert codec("zip").name == "zip"
    assert codec("q8").name == "q8"


def test_an_unknown_codec_is_refused_with_the_names_of_those_there_are() -> None:
    known = "native, f16, q8, q4, k8v4, liar, zip"
    with pytest.raises(ValueError, match=f"codec is 'lzma': set it to one of {known}"):
        Settings(codec="lzma")
    with pytest.raises(AdapterError, match=f"codec 'lzma': there is none .* There are: {known}"):
        codec("lzma")


def test_a_codec_cannot_pass_for_another_one() -> None:
    with pytest.raises(AdapterError, match=r"it calls itself 'native'.*good-ones 1\.0"):
        codec("liar")


def test_a_store_is_made_for_the_home(tmp_path: Path) -> None:
    container = Container()
    container.settings.override(Settings(home=tmp_path / "home", plugins="segments=vault"))
    with container.home():
        store = container.segments()
    assert isinstance(store, MemorySegmentStore)
    assert store.home == tmp_path / "home"  # type: ignore[attr-defined]
    assert not (tmp_path / "home" / "segments").exists()


def test_several_ports_are_chosen_at_once() -> None:
    container = Container()
    container.settings.override(Settings(plugins=" clock = manual , segments=vault,"))
    assert isinstance(container.clock(), ManualClock)


def test_without_a_choice_the_bundled_adapter_is_used() -> None:
    assert plugged("clock", "segments=vault", lambda: "bundled") == "bundled"


def test_an_engine_is_made_for_a_model_and_the_settings() -> None:
    with pytest.raises(AdapterError, match="engine 'mine': it lacks adopt, card"):
        made("engine", "mine", "folder", "settings")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("broken", "cannot be made: RuntimeError: no key for the vault"),
        ("absent", "cannot be made: AttributeError: "),
        ("gone", "cannot be made: ModuleNotFoundError: No module named 'no_such_module'"),
        ("wrong", "lacks monotonic, wall"),
    ],
)
def test_a_broken_plug_in_is_told_with_its_package(name: str, problem: str) -> None:
    with pytest.raises(AdapterError, match=re.escape(problem)) as refused:
        made("clock", name)
    assert "good-ones 1.0" in refused.value.remedy
    assert name in str(refused.value)


def test_an_unknown_plug_in_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(AdapterError, match=r"There are: absent, broken, gone, manual, wrong$"):
        made("clock", "sundial")
    with pytest.raises(AdapterError, match=r"There are: none installed$"):
        made("tokenizer", "runes")


def test_a_name_that_two_packages_offer_is_nobodys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rivals = {"agentcache.clocks": {"manual": "rivals:Clock"}}
    install(monkeypatch, tmp_path / "other", "rivals", "", rivals)
    with pytest.raises(AdapterError, match=r"good-ones 1\.0 and rivals 1\.0 both offer it"):
        made("clock", "manual")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("segments", "'segments' is no choice: write PORT=NAME"),
        ("segments=", "is no choice"),
        ("=vault", "there is no port ''"),
        ("codec=zip", "there is no port 'codec' to choose for; there are clock, engine"),
        ("disk=vault", "there is no port 'disk'"),
        ("clock=a,clock=b", "clock is chosen twice: 'a' and 'b'"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(text: str, problem: str) -> None:
    for refuse in (parse_choices, lambda given: Settings(plugins=given)):
        with pytest.raises(ValueError, match=re.escape(problem)):
            refuse(text)
