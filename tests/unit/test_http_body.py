"""Bodies at the edge: bounded whatever they claim, and no JSON can do harm."""

import json
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.body import DEEPEST
from agentcache.adapters.http.edge import Edge
from tests.scripted_service import ASKED, ScriptedService, app_of, client_of

pytestmark = pytest.mark.anyio
LIMIT = 2_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def _post(
    content: bytes | AsyncIterator[bytes], headers: dict[str, str] | None = None
) -> httpx.Response:
    async with client_of(app_of(ScriptedService(), LIMIT)) as client:
        return await client.post("/v1/chat/completions", content=content, headers=headers)


def _body(size: int) -> bytes:
    empty = json.dumps(ASKED | {"user": ""}).encode()
    return json.dumps(ASKED | {"user": "x" * (size - len(empty))}).encode()


async def test_a_body_of_just_the_limit_is_read_and_one_byte_more_is_refused() -> None:
    assert (await _post(_body(LIMIT))).status_code == 200
    response = await _post(_body(LIMIT + 1))
    assert response.status_code == 413
    assert "larger than 2000 bytes" in response.json()["error"]["message"]


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield b"x" * 500

    assert (await _post(endless())).status_code == 413
    assert taken == 5


@pytest.mark.parametrize("claim", ["5", "-1", "x", "9" * 5_000])
async def test_a_content_length_that_lies_does_not_let_a_large_body_through(claim: str) -> None:
    headers = {"content-length": claim}
    assert (await _post(_body(LIMIT + 1), headers)).status_code == 413


async def test_a_content_length_over_the_limit_is_refused_unread() -> None:
    async def untouched() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async with client_of(app_of(ScriptedService(), LIMIT)) as client:
        request = client.build_request("POST", "/v1/chat/completions", content=b"")
        request.headers["content-length"] = str(LIMIT + 1)
        assert (await client.send(request)).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"{}x",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"user": "\xff"}',
        b'{"user": "\xed\xa0\x80"}',
        b'{"user": "\\ud800"}',
        b'{"user": "\\ud800 x"}',
        b'{"user": "\\udc00\\ud800"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b'{"temperature": -Infinity}',
        b'{"seed": ' + b"9" * 1_900 + b"." + b"9" * 10 + b"}",
        b'{"metadata": ' + b"[" * 1_900 + b"}",
        b'{"unknown": ' + b'{"a":' * 380 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_what_is_not_a_request_is_a_400(body: bytes) -> None:
    response = await _post(body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def _nested(levels: int, text: str = "") -> bytes:
    """A request of so many levels, its own one among them."""
    deep = b"[" * (levels - 2) + json.dumps(text).encode() + b"]" * (levels - 2)
    return json.dumps(ASKED).encode()[:-1] + b', "prediction": {"a": ' + deep + b"}}"


async def test_a_body_of_the_most_levels_is_read_and_one_more_is_refused() -> None:
    assert (await _post(_nested(DEEPEST))).status_code == 200
    refused = await _post(_nested(DEEPEST + 1))
    assert refused.status_code == 400
    assert "more than 100 levels deep" in refused.json()["error"]["message"]


@pytest.mark.parametrize("text", ["[" * 500, '\\"' * 50 + "{" * 500, "\\" * 3 + '"[\n' + "[" * 300])
async def test_brackets_in_texts_are_no_levels(text: str) -> None:
    assert (await _post(_nested(DEEPEST, text))).status_code == 200


async def test_side_by_side_is_not_deep() -> None:
    body = json.dumps(ASKED | {"prediction": {"a": [[[]]] * 200}}).encode()
    assert (await _post(body)).status_code == 200


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
async def test_nesting_without_end_is_a_400_wherever_it_is(opening: bytes) -> None:
    app = app_of(ScriptedService(), 10_000_000)
    for field in (b"metadata", b"tools", b"unknown", b"logit_bias"):
        async with client_of(app) as client:
            body = b'{"' + field + b'": ' + opening * 200_000
            response = await client.post("/v1/chat/completions", content=body)
        assert response.status_code == 400


@pytest.mark.parametrize("number", ["-1", "0", "1e308", "9" * 300, "-" + "9" * 300, "1.5", "true"])
@pytest.mark.parametrize(
    "field", ["max_tokens", "temperature", "top_p", "top_k", "seed", "n", "top_logprobs"]
)
async def test_no_number_in_any_field_is_more_than_a_400(field: str, number: str) -> None:
    body = json.dumps(ASKED)[:-1] + f', "{field}": {number}}}'
    assert (await _post(body.encode())).status_code in {200, 400}


_SAID = [{"role": "user", "content": "Hi"}]
_TALKS = [
    ("/v1/chat/completions", "messages", {}),
    ("/v1/messages", "messages", {"max_tokens": 5}),
    ("/v1/responses", "input", {}),
]


@pytest.mark.parametrize(("path", "name", "fields"), _TALKS)
async def test_as_many_messages_as_may_be_are_read_and_one_more_is_refused(
    path: str, name: str, fields: dict[str, object]
) -> None:
    app = create_app(Edge(ScriptedService(), LIMIT, max_messages=3))
    async with client_of(app) as client:
        for count, status in ((3, 200), (4, 400)):
            body = {"model": "tiny", name: _SAID * count, **fields}
            response = await client.post(path, json=body)
            assert response.status_code == status, response.text
    assert "4 items: at most 3" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/v1/messages/count_tokens", "/v1/agents", "/v1/agents/x/prefill"]
)
async def test_messages_are_counted_wherever_they_are_sent(path: str) -> None:
    names = {"name": "x"} if path == "/v1/agents" else {}
    names |= {"model": "tiny"} if "count" in path else {}
    app = create_app(Edge(ScriptedService(), LIMIT, max_messages=3))
    async with client_of(app) as client:
        response = await client.post(path, json={"messages": _SAID * 4, **names})
    assert response.status_code == 400
    assert "4 items: at most 3" in response.json()["error"]["message"]


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_a_400(body: bytes) -> None:
    async def post() -> int:
        return (await _post(body)).status_code

    assert anyio.run(post) == 400


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_fields = st.sampled_from(
    [
        *("messages", "model", "stream", "stream_options", "stop", "store", "n", "seed"),
        *("tools", "tool_choice", "temperature", "max_tokens", "metadata", "logit_bias"),
    ]
)


@given(st.dictionaries(_fields, _json, max_size=3))
def test_no_value_in_any_field_is_more_than_a_400(fields: dict[str, object]) -> None:
    async def post() -> httpx.Response:
        return await _post(json.dumps(ASKED | fields).encode()[:LIMIT])

    assert anyio.run(post).status_code in {200, 400, 404}
