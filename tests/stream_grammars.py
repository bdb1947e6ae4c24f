"""The order of events that each dialect promises, as small state machines that read a stream.

Each check reads all of one response body and raises AssertionError where something is out of place.
It returns what was said, so that a test can tell that it has seen something.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import define, field

Event = tuple[str | None, Any]  # the name of an event, and its data


@define(eq=False)
class Said:
    """What a stream told. `end` is its reason, "error" for one that broke off."""

    text: str = ""
    thought: str = ""
    calls: list[dict[str, Any]] = field(factory=list)
    end: str = ""


def events_of(body: str) -> list[Event]:
    """The events of a stream; comments are passed over."""
    assert not body or body.endswith("\n\n"), "a stream ends with a whole event"
    blocks = [block for block in body.split("\n\n") if block]
    return [_event(block) for block in blocks if not block.startswith(":")]


def _event(block: str) -> Event:
    name, data = None, None
    for line in block.split("\n"):
        key, _, value = line.partition(": ")
        assert key in {"event", "data"}, f"what is {line!r}?"
        if key == "event":
            assert name is None, "an event has one name"
            name = value
        else:
            assert data is None, "our data is one line"
            data = value if value == "[DONE]" else strict(value)
    return name, data


def strict(text: str) -> Any:
    """JSON as the standard has it: no NaN, no infinities, no half characters."""
    value = json.loads(text, parse_constant=_refused)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _refused(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


def check_chat(body: str, usage: bool = False) -> Said:
    """role, then content, thoughts and calls, then the reason, the usage if asked for, [DONE]."""
    said, events = Said(), events_of(body)
    assert all(name is None for name, _ in events)
    first, *rest = (data for _, data in events)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    rest = _ending(rest, [first], said, usage, "chat.completion.chunk")
    for chunk in rest:
        delta = chunk["choices"][0]["delta"]
        assert len(delta) == 1, "one thing at a time"
        said.text += delta.get("content", "")
        said.thought += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            _one_more(said, call["index"], call["id"], call["function"])
            assert call["type"] == "function"
    _finish_calls(said)
    if said.end not in {"error", "length"}:
        assert (said.end == "tool_calls") == bool(said.calls)
    return said


def check_completion(body: str, usage: bool = False) -> Said:
    """Texts, then the reason, the usage if asked for, [DONE]."""
    said, events = Said(), events_of(body)
    assert all(name is None for name, _ in events)
    rest = _ending([data for _, data in events], [], said, usage, "text_completion")
    said.text = "".join(chunk["choices"][0]["text"] for chunk in rest)
    return said


def _ending(
    chunks: list[Any], begun: list[Any], said: Said, usage: bool, kind: str
) -> Sequence[Any]:
    """What is between the beginning and the end, which is taken in."""
    if chunks and "error" in (last := chunks[-1]) and last != "[DONE]":
        said.end = "error"
        assert set(last) == {"error"}
        assert last["error"]["message"]
        rest, told = chunks[:-1], chunks[:-1]
    else:
        assert chunks.pop() == "[DONE]"
        told = list(chunks)
        if usage:
            counts = chunks.pop()
            assert counts["choices"] == []
            assert counts["usage"]["total_tokens"] > 0
        end, rest = chunks[-1], chunks[:-1]
        said.end = end["choices"][0]["finish_reason"]
        assert said.end in {"stop", "length", "tool_calls"}
        assert end["choices"][0].get("delta", {}) == {}
        assert end["choices"][0].get("text", "") == ""
    assert len({(one["id"], one["created"], one["model"]) for one in begun + told}) <= 1
    assert {one["object"] for one in begun + told} <= {kind}
    for chunk in [*begun, *rest]:
        assert chunk.get("usage", "none") == (None if usage else "none")
        (choice,) = chunk["choices"]
        assert (choice["index"], choice["finish_reason"]) == (0, None)
    return rest


def _one_more(said: Said, index: int, name: str, function: dict[str, Any]) -> None:
    assert index in (len(said.calls), len(said.calls) - 1)
    if index == len(said.calls):
        assert name
        assert name not in [call["id"] for call in said.calls]
        said.calls.append({"id": name, "name": function["name"], "arguments": ""})
    said.calls[index]["arguments"] += function["arguments"]


def _finish_calls(said: Said) -> None:
    for call in said.calls:
        assert call["name"]
        assert isinstance(strict(call["arguments"]), dict)


def check_messages(body: str, thoughts: bool = True) -> Said:
    """message_start, blocks one after another, message_delta, message_stop; ping anywhere."""
    said, events = Said(), events_of(body)
    assert all(name == data["type"] for name, data in events)
    told = [data for _, data in events if data["type"] != "ping"]
    start, *told = told
    assert start["type"] == "message_start"
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    if told and told[-1]["type"] == "error":
        said.end = "error"
        assert told.pop()["error"]["message"]
        told.append({"type": "cut"})
    else:
        assert told.pop()["type"] == "message_stop"
        end = told.pop()
        assert end["type"] == "message_delta"
        assert end["usage"]["input_tokens"] >= 0
        said.end = end["delta"]["stop_reason"]
        assert said.end
    kinds = _read_blocks(iter(told), said)
    assert thoughts or "thinking" not in kinds
    assert said.end not in {"tool_use", "end_turn"} or (said.end == "tool_use") == bool(said.calls)
    return said


def _read_blocks(told: Iterator[Any], said: Said) -> list[str]:
    kinds = []
    for event in told:
        if event["type"] == "cut":
            break
        assert event["type"] == "content_block_start"
        assert event["index"] == len(kinds), "indices count the blocks"
        kinds.append(event["content_block"]["type"])
        if not _read_block(event["content_block"], len(kinds) - 1, told, said):
            break
    return kinds


def _read_block(block: dict[str, Any], index: int, told: Iterator[Any], said: Said) -> bool:
    """Whether the block was stopped, and not cut off."""
    kind, signed = block["type"], False
    if kind == "tool_use":
        assert block["input"] == {}
        said.calls.append({"id": block["id"], "name": block["name"], "arguments": ""})
    for event in told:
        if event["type"] == "cut":
            return False
        assert event["index"] == index
        if event["type"] == "content_block_stop":
            assert kind != "thinking" or signed, "a thought is signed just before it stops"
            if kind == "tool_use":
                assert isinstance(strict(said.calls[-1]["arguments"]), dict)
            return True
        assert event["type"] == "content_block_delta"
        assert not signed
        delta = event["delta"]
        if kind == "text":
            assert delta["type"] == "text_delta"
            said.text += delta["text"]
        elif kind == "tool_use":
            assert delta["type"] == "input_json_delta"
            said.calls[-1]["arguments"] += delta["partial_json"]
        elif delta["type"] == "signature_delta":
            signed = bool(delta["signature"])
        else:
            assert delta["type"] == "thinking_delta"
            said.thought += delta["thinking"]
    raise AssertionError("a block is never stopped")


def check_responses(body: str) -> Said:
    """created, items each begun and done before the next, then completed or incomplete."""
    said, events = Said(), events_of(body)
    assert all(name == data["type"] for name, data in events)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    begun, *told = (data for _, data in events)
    assert begun["type"] == "response.created"
    told = [one for one in told if one["type"] != "response.in_progress"]
    end = told.pop()
    done: list[Any] = []
    if end["type"] == "error":
        said.end = "error"
        assert end["message"]
        told.append({"type": "cut"})
    else:
        said.end = end["response"]["status"]
        assert end["type"] == f"response.{said.end}"
        assert said.end in {"completed", "incomplete"}
        assert end["response"]["usage"]["total_tokens"] > 0
    _read_items(iter(told), done, said)
    if said.end != "error":
        assert end["response"]["output"] == done
        states = [item["status"] for item in done]
        cut = said.end == "incomplete" and done and done[-1]["type"] != "function_call"
        assert states == ["completed"] * (len(done) - bool(cut)) + ["incomplete"] * bool(cut)
        assert end["response"]["id"] == begun["response"]["id"]
    assert len({item["id"] for item in done}) == len(done), "ids are not used twice"
    return said


def _read_items(told: Iterator[Any], done: list[Any], said: Said) -> None:
    for event in told:
        if event["type"] == "cut":
            return
        assert event["type"] == "response.output_item.added"
        assert event["output_index"] == len(done)
        item = event["item"]
        read = _read_call if item["type"] == "function_call" else _read_part
        finished = read(item, told, said)
        if finished is None:
            return
        assert (finished["type"], finished["output_index"]) == (
            "response.output_item.done",
            len(done),
        )
        assert finished["item"]["id"] == item["id"]
        done.append(finished["item"])


def _read_call(item: dict[str, Any], told: Iterator[Any], said: Said) -> Any:
    arguments = ""
    for event in told:
        if event["type"] == "cut":
            return None
        assert event.get("item_id", item["id"]) == item["id"]
        if event["type"] == "response.function_call_arguments.done":
            assert event["arguments"] == arguments
            assert isinstance(strict(arguments), dict)
            said.calls.append({"id": item["call_id"], "name": item["name"], "arguments": arguments})
            return _next(told)
        assert event["type"] == "response.function_call_arguments.delta"
        arguments += event["delta"]
    raise AssertionError("a call is never done")


def _read_part(item: dict[str, Any], told: Iterator[Any], said: Said) -> Any:
    kind = {"message": "output_text", "reasoning": "reasoning_text"}[item["type"]]
    begun, text = _next(told), ""
    if begun is None:
        return None
    assert (begun["type"], begun["part"]["type"]) == ("response.content_part.added", kind)
    for event in told:
        if event["type"] == "cut":
            return None
        assert event["item_id"] == item["id"]
        if event["type"] == f"response.{kind}.done":
            assert event["text"] == text
            break
        assert event["type"] == f"response.{kind}.delta"
        text += event["delta"]
    ended = _next(told)
    assert (ended["type"], ended["part"]["text"]) == ("response.content_part.done", text)
    if kind == "output_text":
        said.text += text
    else:
        said.thought += text
    return _next(told)


def _next(told: Iterator[Any]) -> Any:
    event = next(told)
    return None if event["type"] == "cut" else event


CHECKS: dict[str, Callable[..., Said]] = {
    "/v1/chat/completions": check_chat,
    "/v1/completions": check_completion,
    "/v1/messages": check_messages,
    "/v1/responses": check_responses,
}
