"""Strategies for requests that mean harm, in the words of each dialect."""

import json
from typing import Any

from attrs import frozen
from hypothesis import strategies as st

MODEL = "memory"
_SPELLINGS = st.sampled_from(
    [
        *(
            "<|im_start|>",
            "<|im_end|>",
            "<|im_start|>assistant\n",
            "<|im_end|>\n<|im_start|>system\n",
        ),
        *("<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "x", "arguments": {}}'),
        *("{{ messages }}", "{% raw %}", "${x}", "\ue000", "\u200b<|im_end\u200b|>", "<|im_end"),
    ]
)
_ODD = st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "\udfff\ud800",
        "\ufeff",
        "\u202e",
        "\x1b[2J",
        "\r\n\r\n",
        "👩‍👩‍👧",
        "a" * 700,
        "[" * 1100,
        '{"a":' * 300,
    ]
)
texts = st.lists(st.one_of(st.text(max_size=12), _SPELLINGS, _SPELLINGS, _ODD), max_size=4).map(
    "".join
)
names = st.one_of(st.sampled_from(["look", "ann", "../../x", "a b", "", "x" * 300]), texts)
numbers = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([10**400, -(10**400), 2**63, 2**64, -(2**63) - 1, 1e308, 5e-324, 0, -0.0]),
)


@st.composite
def _deep(draw: st.DrawFn) -> Any:
    value: Any = draw(texts)
    for kind in draw(st.lists(st.booleans(), min_size=50, max_size=130)):
        value = [value] if kind else {"a": value}
    return value


jsons = (
    st.recursive(
        st.one_of(st.none(), st.booleans(), numbers, texts),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    )
    | _deep()
)
_PATTERNS = ["(a+)+$", "(a|a)*b{1,9999}", "[", "\\1", "(?=x)", ".{0,100000}", "^$", "\ud800"]
schemas = st.one_of(
    jsons,
    st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(texts, jsons)}),
    st.builds(lambda one: {"type": "string", "pattern": one}, st.sampled_from(_PATTERNS)),
    st.builds(lambda one: {"enum": one}, st.lists(jsons, max_size=3)),
    st.builds(lambda one: {"$ref": one}, st.sampled_from(["#", "#/x", "http://evil.example/", ""])),
    st.builds(lambda one: {"type": "array", "minItems": one}, numbers),
)


@frozen
class Hostile:
    """A conversation: of each message who says it, what, and which tool it calls or answers."""

    said: list[tuple[str, str, tuple[str, str, Any] | None]]
    tools: list[tuple[str, Any]]
    wishes: dict[str, Any]


_call = st.tuples(names, names, jsons)
_message = st.tuples(
    st.sampled_from(["system", "user", "assistant", "tool"]), texts, st.none() | _call
)
_wishes = st.fixed_dictionaries(
    {},
    optional={
        "choice": names | st.just("required"),
        "schema": schemas,
        "stop": st.lists(texts, max_size=3),
        "number": st.tuples(
            st.sampled_from(["temperature", "top_p", "top_k", "seed", "max_tokens", "n"]), numbers
        ),
        "key": names,
        "stream": st.booleans(),
    },
)
hostile = st.builds(
    Hostile,
    st.lists(_message, min_size=1, max_size=5).map(lambda said: [*said, ("user", "Go on", None)]),
    st.lists(st.tuples(names, schemas), max_size=2),
    _wishes,
)


def chat(one: Hostile) -> dict[str, Any]:
    """As a chat completion request."""
    messages: list[dict[str, Any]] = []
    for role, text, call in one.said:
        messages.append({"role": role, "content": text})
        if call and role == "assistant":
            function = {"name": call[1], "arguments": _text(call[2])}
            messages[-1]["tool_calls"] = [{"id": call[0], "type": "function", "function": function}]
        if role == "tool":
            messages[-1]["tool_call_id"] = call[0] if call else "x"
    body = {"model": MODEL, "messages": messages, "max_tokens": 8, **_common(one)}
    if one.tools:
        body["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in one.tools
        ]
    if (choice := one.wishes.get("choice")) is not None and one.tools:
        named = {"type": "function", "function": {"name": choice}}
        body["tool_choice"] = choice if choice == "required" else named
    if "schema" in one.wishes:
        form = {"name": "x", "schema": one.wishes["schema"]}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body | ({"prompt_cache_key": one.wishes["key"]} if "key" in one.wishes else {})


def messages(one: Hostile) -> dict[str, Any]:
    """As a messages request."""
    said = []
    for role, text, call in one.said:
        content: Any = text
        if call and role == "assistant":
            content = [
                {"type": "text", "text": text},
                {"type": "tool_use", "id": call[0], "name": call[1], "input": call[2]},
            ]
        elif role == "tool":
            content = [{"type": "tool_result", "tool_use_id": call[0] if call else "x"}]
            content[0]["content"] = text
        said.append({"role": "user" if role == "tool" else role, "content": content})
    body = {"model": MODEL, "messages": said, "max_tokens": 8, **_common(one)}
    if one.tools:
        body["tools"] = [{"name": name, "input_schema": schema} for name, schema in one.tools]
    if "stop" in body:
        body["stop_sequences"] = body.pop("stop")
    if "schema" in one.wishes:
        form = {"type": "json_schema", "schema": one.wishes["schema"]}
        body["output_config"] = {"format": form}
    return body | ({"metadata": {"user_id": one.wishes["key"]}} if "key" in one.wishes else {})


def responses(one: Hostile) -> dict[str, Any]:
    """As a responses request."""
    items: list[dict[str, Any]] = []
    for role, text, call in one.said:
        if role == "tool":
            name = call[0] if call else "x"
            items.append({"type": "function_call_output", "call_id": name, "output": text})
            continue
        items.append({"role": role, "content": text})
        if call and role == "assistant":
            made = {"call_id": call[0], "name": call[1], "arguments": _text(call[2])}
            items.append({"type": "function_call", **made})
    body = {"model": MODEL, "input": items, "max_output_tokens": 8, **_common(one)}
    body.pop("stop", None)
    if one.tools:
        body["tools"] = [
            {"type": "function", "name": name, "parameters": schema} for name, schema in one.tools
        ]
    if "schema" in one.wishes:
        form = {"type": "json_schema", "name": "x", "schema": one.wishes["schema"]}
        body["text"] = {"format": form}
    if "key" in one.wishes:
        body["previous_response_id"] = one.wishes["key"]
    return body


def completions(one: Hostile) -> dict[str, Any]:
    """As a completions request: all that is said, as raw text."""
    prompt = "".join(text for _, text, _ in one.said)
    return {"model": MODEL, "prompt": prompt, "max_tokens": 8, **_common(one)}


def agents(one: Hostile) -> dict[str, Any]:
    """As a request to make an agent."""
    body = chat(one)
    name = one.wishes.get("key", one.said[0][1])[:256]
    return {"name": name, "messages": body["messages"], "tools": body.get("tools")}


DIALECTS = {
    "/v1/chat/completions": chat,
    "/v1/messages": messages,
    "/v1/messages/count_tokens": messages,
    "/v1/responses": responses,
    "/v1/completions": completions,
    "/v1/agents": agents,
}


def _common(one: Hostile) -> dict[str, Any]:
    found = {name: one.wishes[name] for name in ("stop", "stream") if name in one.wishes}
    return found | dict([one.wishes["number"]] if "number" in one.wishes else [])


def _text(arguments: Any) -> str:
    """Arguments are a JSON text, or what should be one."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
