"""Agents as people read them: whole in a pipe, as much as there is room for in a terminal."""

import re
from typing import Any

import pytest

from agentcache.cli.agent_tables import print_agent, print_agents, value_of

AGENT: dict[str, Any] = {
    "name": "researcher of the harbour",
    "codec": "q8",
    "tier": "warm",
    "tokens": 12345,
    "turns": 7,
    "bytes": 55_300_000,
    "hit_rate": 0.9634,
    "used": 1795845340.98,
    "pinned": True,
    "parent": None,
    "object": "agent",
}
LONG = AGENT | {"name": "x" * 100, "parent": "y" * 60}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Standard output passes for a terminal without colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return monkeypatch


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40, 24])
def test_a_terminal_has_the_columns_that_fit_and_always_whole_names(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    terminal.setenv("COLUMNS", str(width))
    print_agents([AGENT, LONG])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    folded = "".join(line.split("  ")[0].strip() for line in lines[1:])
    assert AGENT["name"].replace(" ", "") in folded.replace(" ", "")
    assert folded.count("x") == 100
    assert ("parent" in lines[0]) is (width == 200)
    assert ("turns" in lines[0]) is (width >= 40)


def test_in_a_pipe_each_agent_is_one_line_with_everything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_agents([AGENT, LONG])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("name", "codec", "tier", "tokens", "turns", "bytes", "hit", "rate", "used", "(UTC)"),
        *("pinned", "parent"),
    ]
    assert first.split("  ")[0] == AGENT["name"]
    assert {"12345", "96%", "yes", "2026-11-28"} <= set(first.split())
    assert {"x" * 100, "y" * 60} <= set(second.split())


def test_no_agents_are_a_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_agents([])
    (head,) = capsys.readouterr().out.splitlines()
    assert head.startswith("name")


def test_one_agent_is_a_line_for_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    said = [{"role": "user", "content": "one\ntwo \x1b[31m"}]
    print_agent(AGENT | {"history": said})
    told = capsys.readouterr().out
    assert "hit rate    96%" in told
    assert "used (UTC)  2026-11-28 05:55" in told
    assert told.endswith("\nuser: one\ntwo \\x1b[31m\n")


def test_a_time_that_is_none_is_told_as_a_number() -> None:
    assert value_of("used", 1e300).startswith("1000")
