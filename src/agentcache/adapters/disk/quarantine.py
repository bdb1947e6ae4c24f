"""Where corrupt files are kept for inspection, the newest of them, within a cap."""

import re
from collections import deque
from pathlib import Path

from attrs import define, field

from agentcache.adapters.disk.files import remove, size
from agentcache.domain.errors import IntegrityError

_NAME = re.compile(r"\d{12}-.+")


@define(eq=False)
class Quarantine:
    """Files in `folder`, at most `cap` bytes; their names begin with their number of arrival."""

    folder: Path
    cap: int
    _files: deque[tuple[Path, int]] = field(factory=deque)
    nbytes: int = 0

    @classmethod
    def open(cls, folder: Path, cap: int) -> "Quarantine":
        """What is in `folder`, without what `cap` has no room for."""
        paths = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
        files = deque((path, size(path)) for path in paths)
        aside = cls(folder, cap, files, sum(taken for _, taken in files))
        aside._make_room(0)
        return aside

    def take(self, path: Path, taken: int) -> bool:
        """Move `path`, a file of `taken` bytes, in here; returns whether it was there.

        One that `cap` has no room for at all is removed.
        """
        if taken > self.cap:
            return remove(path)
        self._make_room(taken)
        number = int(self._files[-1][0].name[:12]) + 1 if self._files else 0
        target = self.folder / f"{number:012d}-{path.name}"
        try:
            path.rename(target)
        except (FileNotFoundError, NotADirectoryError):
            return False
        self._files.append((target, taken))
        self.nbytes += taken
        return True

    def check_integrity(self) -> None:
        """Raise IntegrityError unless what is counted is what is there, within the cap."""
        taken = sum(size(path) for path, _ in self._files)
        if taken != self.nbytes or taken > self.cap:
            raise IntegrityError(
                f"{self.nbytes} bytes in quarantine, {taken} there, cap {self.cap}"
            )

    def _make_room(self, needed: int) -> None:
        while self.nbytes + needed > self.cap:
            path, taken = self._files[0]
            remove(path)
            self._files.popleft()
            self.nbytes -= taken
