"""agentcache keys, and what a server does about them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agentcache.cli import main
from agentcache.cli.keys import keyring
from agentcache.domain.access import Access
from agentcache.domain.errors import HomeError
from agentcache.settings import Settings


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTCACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("AGENTCACHE_API_KEY", raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_made_key_is_shown_once_and_then_in_force(tmp_path: Path) -> None:
    made = run("keys", "add", "acme")
    assert made.exit_code == 0
    secret = made.stdout.strip()
    found = keyring(Settings(home=tmp_path / "home"))
    assert found is not None
    access = found.access(secret)
    assert access is not None
    assert (access.tenant, access.admin) == ("acme", False)
    assert secret not in run("keys", "ls").output


def test_a_rotated_key_keeps_its_tenant_and_rights() -> None:
    key = json.loads(run("keys", "add", "acme", "--admin", "--json").stdout)
    other = json.loads(run("keys", "rotate", key["id"], "--json").stdout)
    listed = json.loads(run("keys", "ls", "--json").stdout)
    assert [(one["id"], one["tenant"], one["admin"]) for one in listed] == [
        (other["id"], "acme", True)
    ]
    assert other["secret"] != key["secret"]
    assert "digest" not in listed[0]


def test_a_removed_key_is_gone_and_cannot_be_removed_again() -> None:
    key = json.loads(run("keys", "add", "acme", "--json").stdout)
    assert run("keys", "rm", key["id"]).exit_code == 0
    again = run("keys", "rm", key["id"])
    assert again.exit_code == 1
    assert "there is no key" in again.output


def test_a_bad_tenant_is_refused_with_a_reason() -> None:
    answer = run("keys", "add", "../acme")
    assert answer.exit_code == 1
    assert "cannot name a tenant" in answer.output


def test_without_a_file_there_are_no_keys(tmp_path: Path) -> None:
    assert keyring(Settings(home=tmp_path)) is None


def test_a_key_file_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="no such key file"):
        keyring(Settings(home=tmp_path, api_keys=tmp_path / "none.json"))


def test_the_environment_may_hold_the_one_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENTCACHE_API_KEY", "s3cret")
    found = keyring(Settings(home=tmp_path))
    assert found is not None
    assert found.access("s3cret") == Access(admin=True, key="environment")
    assert found.access("other") is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com"])
def test_a_server_that_others_can_reach_does_not_start_without_keys(host: str) -> None:
    answer = run("serve", "--host", host)
    assert answer.exit_code == 2
    assert "there are no API keys" in answer.output


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rate-limit", "lots"),
        ("--agent-rate-limit", "5"),
        ("--cors-origins", "*"),
        ("--cors-origins", "https://a.example,b.example"),
        ("--cors-origins", "https://a.example/path"),
    ],
)
def test_a_limit_or_origin_that_is_none_is_refused(option: str, value: str) -> None:
    answer = run("serve", option, value)
    assert answer.exit_code == 2
    assert "write" in answer.output
