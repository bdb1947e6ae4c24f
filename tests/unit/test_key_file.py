"""API keys in their file: whose secret opens what, what the file tells, who may read it."""

import json
import multiprocessing
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.disk.key_file import KeyFile
from agentcache.adapters.memory.clock import ManualClock
from agentcache.domain.access import Access
from agentcache.domain.errors import HomeError, InvalidRequest


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(tmp_path: Path, clock: ManualClock) -> KeyFile:
    return KeyFile(tmp_path / "keys.json", clock)


def test_a_secret_opens_what_its_key_allows(keys: KeyFile) -> None:
    key, secret = keys.add("acme", admin=True)
    assert keys.access(secret) == Access("acme", admin=True, key=key.id)


def test_a_secret_that_differs_in_one_character_opens_nothing(keys: KeyFile) -> None:
    _, secret = keys.add("acme")
    for at in range(len(secret)):
        wrong = secret[:at] + ("x" if secret[at] != "x" else "y") + secret[at + 1 :]
        assert keys.access(wrong) is None


@given(st.text())
def test_no_text_opens_an_empty_ring(text: str) -> None:
    assert KeyFile(Path("/nowhere/keys.json"), ManualClock()).access(text) is None


def test_the_file_does_not_hold_the_secret_and_is_for_its_owner_alone(keys: KeyFile) -> None:
    _, secret = keys.add("acme")
    written = keys.path.read_text()
    assert secret not in written
    assert secret.split("_")[2] not in written
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600


def test_a_rotated_key_keeps_the_tenant_and_its_old_secret_for_the_grace(
    keys: KeyFile, clock: ManualClock
) -> None:
    key, old = keys.add("acme", admin=True)
    made, new = keys.rotate(key.id, grace=60)
    assert keys.access(new) == Access("acme", admin=True, key=made.id)
    assert keys.access(old) is not None
    clock.advance(61)
    assert keys.access(old) is None
    assert keys.access(new) is not None


def test_without_a_grace_the_old_secret_is_out_at_once(keys: KeyFile) -> None:
    key, old = keys.add("acme")
    keys.rotate(key.id)
    assert keys.access(old) is None
    assert [key.tenant for key in keys.listed()] == ["acme"]


def test_a_key_that_is_replaced_twice_does_not_live_longer(
    keys: KeyFile, clock: ManualClock
) -> None:
    key, old = keys.add("acme")
    keys.rotate(key.id, grace=60)
    keys.rotate(key.id, grace=600)
    clock.advance(61)
    assert keys.access(old) is None


def test_a_running_server_notices_what_another_process_changed(
    keys: KeyFile, clock: ManualClock
) -> None:
    key, secret = keys.add("acme")
    served = KeyFile(keys.path, clock)
    assert served.access(secret) is not None
    keys.remove(key.id)
    assert served.access(secret) is None
    _, other = keys.add("acme")
    assert served.access(other) is not None


def test_a_file_that_went_away_lets_nobody_in(keys: KeyFile) -> None:
    _, secret = keys.add("acme")
    assert keys.access(secret)
    keys.path.unlink()
    assert keys.access(secret) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b'{"format": 1}',
        b'{"format": 2, "keys": []}',
        b'{"format": 1, "keys": [{"id": 7}]}',
        b'{"format": 1, "keys": [], "more": 1}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(keys: KeyFile, content: bytes) -> None:
    keys.path.write_bytes(content)
    with pytest.raises(HomeError, match="key file"):
        keys.access("ac_x_y")
    with pytest.raises(HomeError, match="key file"):
        keys.add("acme")
    assert keys.path.read_bytes() == content


def test_a_huge_file_is_not_read(keys: KeyFile) -> None:
    with keys.path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(HomeError, match="no key file"):
        keys.listed()


def test_a_key_that_is_not_there_cannot_be_changed(keys: KeyFile) -> None:
    with pytest.raises(InvalidRequest, match="no key 'nobody'"):
        keys.rotate("nobody")
    with pytest.raises(InvalidRequest, match="no key 'nobody'"):
        keys.remove("nobody")


@pytest.mark.parametrize("tenant", ["", "a/b", "x" * 65, "-", "a b", "ä", "a\n"])
def test_a_tenant_has_a_plain_name(keys: KeyFile, tenant: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot name a tenant"):
        keys.add(tenant)
    assert not keys.path.exists()


def _add_five(path: Path) -> None:
    for _ in range(5):
        KeyFile(path, ManualClock()).add("acme")


def test_processes_that_add_keys_at_once_lose_none(keys: KeyFile) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_five, args=(keys.path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(json.loads(keys.path.read_text())["keys"]) == 15
