"""Identity at the edge: which header or field names the agent, and how strictly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from agentcache.adapters.http.identity import identify
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import Identity

# As in the table of precedence: each of these wins over all that follow it.
RANKED = [
    "X-Agent-ID",
    "X-Claude-Code-Session-Id",
    "session-id",
    "session_id",
    "X-Session-Id",
    "x-session-affinity",
]


@pytest.mark.parametrize("rank", range(len(RANKED)))
def test_the_first_header_of_the_table_wins(rank: int) -> None:
    headers = Headers({name: f"from {name}" for name in reversed(RANKED[rank:])})
    identity = identify(headers, prompt_cache_key="from the body")
    assert identity.name == f"from {RANKED[rank]}"


def test_only_x_agent_id_is_exclusive() -> None:
    assert [identify(Headers({name: "a"})).exclusive for name in RANKED] == [True] + [False] * 5
    assert not identify(Headers({}), prompt_cache_key="a").exclusive


def test_a_body_field_is_the_last_resort() -> None:
    assert identify(Headers({}), prompt_cache_key=None, user_id="u").name == "u"
    assert identify(Headers({}), prompt_cache_key="k", user_id="u").name == "k"


def test_nobody_in_particular_has_no_name() -> None:
    assert identify(Headers({}), prompt_cache_key=None) == Identity()


def test_a_subagent_of_claude_code_is_told_from_its_parent() -> None:
    parent = {"X-Claude-Code-Session-Id": "s1"}
    child = parent | {"X-Claude-Code-Agent-Id": "explore"}
    assert identify(Headers(parent)).name == "s1"
    assert identify(Headers(child)).name == "s1/explore"


def test_the_agent_id_of_a_subagent_names_nobody_by_itself() -> None:
    assert identify(Headers({"X-Claude-Code-Agent-Id": "explore"})) == Identity()


def test_an_empty_hint_is_passed_over() -> None:
    headers = Headers({"session-id": "", "X-Session-Id": "s"})
    assert identify(headers, prompt_cache_key="").name == "s"
    assert identify(Headers({}), prompt_cache_key="") == Identity()


@pytest.mark.parametrize("name", ["", "x" * 257])
def test_an_exclusive_name_that_is_empty_or_too_long_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        identify(Headers({"X-Agent-ID": name}))
    assert caught.value.param == "x-agent-id"


def test_a_hint_that_is_too_long_is_refused_by_its_own_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        identify(Headers({"session_id": "x" * 257}))
    assert caught.value.param == "session_id"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=64))
def test_a_name_arrives_as_it_was_written(name: str) -> None:
    headers = Headers(raw=[(b"x-agent-id", name.encode())])
    assert identify(headers).name == name


def test_a_name_that_is_not_utf_8_is_read_as_latin_1() -> None:
    assert identify(Headers(raw=[(b"x-agent-id", b"Andr\xe9")])).name == "André"


def test_a_name_that_looks_like_a_path_is_just_a_name() -> None:
    assert identify(Headers({"X-Agent-ID": "../../etc/passwd"})).name == "../../etc/passwd"
