"""The messages of sessions, one JSON object each, and their tools, one JSON text a session."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Attribute, AttrsInstance, asdict, fields_dict

from agentcache.adapters.disk.chained_table import ChainedTable
from agentcache.adapters.disk.texts import from_blob, to_blob
from agentcache.domain.conversation import Message, Outcome, ToolCall

_TABLE = ChainedTable("message", ("data",))
# Most turns bring the same tools again, which may be long.
_PUT_TOOLS = """
    INSERT INTO tools (session, text) VALUES (?, ?)
    ON CONFLICT DO UPDATE SET text = excluded.text WHERE text != excluded.text"""


def write(db: sqlite3.Connection, session: int, messages: Sequence[Message], tools: str) -> None:
    """Make the stored messages and tools those given; only what differs is written."""
    _TABLE.write(db, session, [(_data(message),) for message in messages])
    db.execute(_PUT_TOOLS, (session, to_blob(tools)))


def read(db: sqlite3.Connection, session: int) -> tuple[tuple[Message, ...], str]:
    """The messages of `session` up to the first that is not what was written, and its tools."""
    found = db.execute("SELECT text FROM tools WHERE session = ?", (session,)).fetchone()
    messages = tuple(_message(json.loads(from_blob(data))) for (data,) in _TABLE.read(db, session))
    return messages, from_blob(found[0]) if found else ""


def _data(message: Message) -> bytes:
    told = asdict(message, filter=_is_told)
    return to_blob(json.dumps(told, ensure_ascii=False, separators=(",", ":")))


def _is_told(attribute: "Attribute[Any]", value: Any) -> bool:
    return bool(value != attribute.default)


def _message(data: Mapping[str, Any]) -> Message:
    """A field that was not known when it was written has its default."""
    known = _known(Message, data)
    if calls := known.pop("tool_calls", ()):
        known["tool_calls"] = tuple(ToolCall(**call) for call in calls)
    if outcome := known.pop("outcome", None):
        known["outcome"] = Outcome(**_known(Outcome, outcome))
    return Message(**known)


def _known(kind: type[AttrsInstance], data: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields that this version knows: a newer one may have written more."""
    return {name: value for name, value in data.items() if name in fields_dict(kind)}
