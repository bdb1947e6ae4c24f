"""The page on security, held against a home, a server's log, and the limits as they are."""

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

import agentcache
from agentcache.adapters.disk.key_file import KeyFile
from agentcache.adapters.grammars.llguidance import MOST_CHARACTERS
from agentcache.adapters.grammars.trial import NBYTES, SECONDS
from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.body import DEEPEST, LEAST_RATE, PATIENCE
from agentcache.adapters.http.compression import CODINGS
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.gate import LOOPBACK, OPEN
from agentcache.adapters.memory.clock import ManualClock
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.domain.access import Access
from agentcache.settings import Settings
from tests.tiny_models import tiny_llama
from tests.whole_service import whole_service

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
SECRET = "the-moon-is-made-of-cheese"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of an agent that was told a secret, and of a key."""
    folder = tmp_path_factory.mktemp("security")
    model = tiny_llama(folder / "model", seed=3)
    with agentcache.open(str(model), folder / "home", memory_budget="64MB") as cache:
        cache.agent("ada").say(SECRET, max_tokens=4)
    KeyFile(folder / "home" / "keys.json", ManualClock()).add("acme", admin=False)
    return folder / "home"


def _everything(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")


def test_a_home_is_for_its_owner_alone(home: Path) -> None:
    for path in _everything(home):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_the_page_names_all_that_is_in_a_home(home: Path) -> None:
    rows = re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", PAGE.split("| in the home |")[1], re.M)
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    found = {path.name for path in home.iterdir()}
    assert {name.removesuffix("-wal").removesuffix("-shm") for name in found} <= named


def test_what_is_said_is_in_plain_text_where_the_page_says(home: Path) -> None:
    holding = {
        path.relative_to(home).parts[0]
        for path in home.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    }
    assert {name.removesuffix("-wal") for name in holding} == {"catalogue.sqlite3"}


def test_the_log_holds_no_text_of_prompts_or_answers_and_no_key() -> None:
    keys = MemoryKeyring({"s3cret-key": Access("acme")})
    said = [{"role": "user", "content": SECRET}]
    body = {"model": "memory", "messages": said, "max_tokens": 4}
    with whole_service() as whole, capture_logs() as lines:
        app = create_app(Edge(whole.service, 100_000), door=Door(keys))
        with TestClient(app) as client:
            for key in ("s3cret-key", "s3cret-guess"):
                headers = {"x-api-key": key, "x-agent-busy": "wait"}
                for more in ({}, {"stream": True}, {"n": 5}, {"model": SECRET}, {"stop": SECRET}):
                    client.post("/v1/chat/completions", json=body | more, headers=headers)
                client.post("/v1/messages", json=body, headers=headers)
    assert len(lines) == 12
    assert not re.search(f"{SECRET}|s3cret", repr(lines))
    assert {name for line in lines for name in line} == {
        *("event", "log_level", "method", "path", "status", "seconds"),
    }


def test_the_limits_are_those_of_the_page() -> None:
    told = Settings()
    assert f"`--max-body` ({told.max_body})".replace("16MB", "16 MB") in PAGE
    assert f"`--max-messages` ({told.max_messages:,})" in PAGE
    assert f"| its levels of arrays and objects | {DEEPEST} |" in PAGE
    assert f"{PATIENCE:.0f} s, and a second more for each {LEAST_RATE // 1000} kB" in PAGE
    assert f"{MOST_CHARACTERS // 1024} KiB as a grammar" in PAGE
    assert f"{SECONDS} s of a processor, {NBYTES >> 30} GB of addresses" in PAGE
    assert f"| {' and '.join(CODINGS)}, once" in PAGE


def test_the_names_and_paths_are_those_of_the_page() -> None:
    names = PAGE.split("On a loopback address only ")[1].split(" are answered to")[0]
    assert set(re.findall(r"`([^`]+)`", names)) == LOOPBACK
    paths = PAGE.split("every route takes one, but ")[1].split(".\n")[0].split("`/metrics`")[0]
    assert set(re.findall(r"`(/[^`]+)`", paths)) == set(OPEN)
