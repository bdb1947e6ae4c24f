"""What was said in a chat, kept by the client: the server only remembers what it has read."""

import json
import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from attrs import frozen

from agentcache.domain.conversation import Message


@frozen
class Transcript:
    """The messages of one chat, one JSON object a line, in a file that only its owner can read.

    The file is named after a digest of the chat's name, which may be anything.
    """

    path: Path

    @classmethod
    def of(cls, home: Path, name: str) -> "Transcript":
        """The transcript of the chat `name`."""
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return cls(home / "chats" / f"{digest}.jsonl")

    def messages(self) -> tuple[Message, ...]:
        """All that was said so far, without lines that a crash cut off."""
        try:
            lines = self.path.read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return ()
        return tuple(message for line in lines for message in _message(line))

    def append(self, *messages: Message) -> None:
        """Add what was said. Raises OSError."""
        lines = [json.dumps({"role": m.role, "content": m.content}) for m in messages]
        text = "\n".join(["", *lines, ""])  # begins a new line even after one that was cut off
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(self.path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)


def _message(line: str) -> Iterable[Message]:
    try:
        said = json.loads(line)
        yield Message(str(said["role"]), str(said["content"]))
    except (ValueError, KeyError, TypeError):
        return
