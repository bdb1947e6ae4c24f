"""What a home holds, read from its files by themselves: the tables, and the segment files.

Nothing of the home is changed by looking: the catalogue is read from a copy.
"""

import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen

from agentcache.adapters.disk.segment_file import read_segment
from agentcache.domain.segment import Segment
from agentcache.domain.tokens import Tokens, from_bytes, tokens

_SEGMENTS = "SELECT key, root, parent, start, ids, nbytes, follows FROM segment"
_SESSIONS = "SELECT id, name, segment, row FROM session"
_SPANS = "SELECT ids FROM span WHERE session = ? ORDER BY position"


@frozen
class Remembered:
    """A session: the segments from the root to its cursor, and the ids of these rows and of all
    that was said."""

    name: str
    path: tuple[Segment, ...]
    rows: "Tokens[int]"
    said: "Tokens[int]"


@frozen
class Remains:
    """The content of a home that no process has open."""

    home: Path
    segments: dict[bytes, Segment]
    sessions: dict[str, Remembered]

    @classmethod
    def of(cls, home: Path) -> "Remains":
        """What is in `home`."""
        with TemporaryDirectory() as copy:
            for file in home.glob("catalogue.sqlite3*"):
                shutil.copy(file, copy)
            with closing(sqlite3.connect(Path(copy) / "catalogue.sqlite3")) as db:
                segments = {
                    key: Segment(key, root, parent, start, from_bytes(ids), nbytes, follows)
                    for key, root, parent, start, ids, nbytes, follows in db.execute(_SEGMENTS)
                }
                sessions = [
                    _session(db, number, bytes(name).decode(), segment, row, segments)
                    for number, name, segment, row in db.execute(_SESSIONS)
                ]
        return cls(home, segments, {session.name: session for session in sessions})

    def files(self) -> set[Path]:
        """Everything in the folder of segment files."""
        return {path for path in (self.home / "segments").rglob("*") if path.is_file()}

    def file(self, segment: Segment) -> Path:
        """Where the file of a segment belongs."""
        name = segment.key.hex()
        return self.home / "segments" / name[:2] / f"{name}.safetensors"

    def file_bytes(self, segments: Iterable[Segment]) -> int:
        """What the files of these segments take."""
        return sum(self.file(segment).stat().st_size for segment in segments)

    def check(self) -> None:
        """Fail unless every segment's file is whole and sound, and there is no other file."""
        assert self.files() == {self.file(segment) for segment in self.segments.values()}
        for segment in self.segments.values():
            read_segment(self.file(segment), segment)
        for session in self.sessions.values():
            assert session.rows == session.said[: len(session.rows)], session.name


def _session(
    db: sqlite3.Connection,
    number: int,
    name: str,
    segment: bytes | None,
    row: int | None,
    segments: dict[bytes, Segment],
) -> Remembered:
    path: list[Segment] = []
    rows, stop, at = tokens(), row, segment
    while at is not None:
        assert stop is not None
        found = segments[at]
        rows = found.ids[: stop - found.start] + rows
        path.insert(0, found)
        at, stop = found.parent, found.start
    said = tokens()
    for (ids,) in db.execute(_SPANS, (number,)):
        said.extend(from_bytes(ids))
    return Remembered(name, tuple(path), rows, said)
