"""What is in a home, looked at from outside: nothing is opened for writing, nothing is locked."""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agentcache.adapters.disk import home as homes
from agentcache.adapters.disk import schema
from agentcache.adapters.disk.files import FOLDER_MODE, TEMPORARY, size
from agentcache.adapters.models.default_model import DEFAULT_MODEL
from agentcache.adapters.models.digest import DigestMemo, model_digest
from agentcache.cli.finding import Finding
from agentcache.settings import Bytes, Settings

_MAGIC = b"SQLite format 3\0"
_HEADER = 100
_LITTLE = 1 << 30  # bytes free under which a disk is nearly full
_SEGMENT = re.compile(r"[0-9a-f]{64}\.safetensors")


def check_home(settings: Settings) -> Iterator[Finding]:
    """Whether the home of the settings can be used, by whom it is, and what it holds."""
    path = settings.home.expanduser().absolute()
    try:
        status = path.stat()
    except FileNotFoundError:
        remedy = "Nothing: the first command that needs it makes it"
        yield Finding("home", "note", f"{path} is not there yet", remedy)
        yield from _disk(_existing(path), settings, 0)
        return
    except OSError as error:
        yield Finding("home", "problem", f"{path}: {error.strerror}", "Choose another (--home)")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Finding("home", "problem", f"{path} is no folder", "Choose another (--home)")
        return
    yield Finding("home", "ok", str(path))
    for check in (_rights, _format, _owner, _catalogue, _leftovers, _quarantine):
        yield from _guarded(check(path))
    taken = _taken(path / "segments")
    yield from _guarded(_disk(path, settings, taken))
    yield from _guarded(_model(path, settings))


def _guarded(findings: Iterator[Finding]) -> Iterator[Finding]:
    """A part that cannot be read is a finding, too."""
    try:
        yield from findings
    except OSError as error:
        message = f"{error.filename or 'a file'} cannot be read: {error.strerror or error}"
        yield Finding("home", "problem", message, "Give yourself the right to read it")


def _rights(path: Path) -> Iterator[Finding]:
    status = path.stat()
    if status.st_mode & 0o777 != FOLDER_MODE:
        message = f"others may get at it: its mode is {status.st_mode & 0o777:o}"
        yield Finding("home", "warning", message, f"chmod 700 {path}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK) or _is_read_only(path):
        message = "it cannot be written by you"
        yield Finding("home", "problem", message, "Make it yours, or choose another (--home)")


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _format(path: Path) -> Iterator[Finding]:
    try:
        with (path / "format").open("rb", buffering=0) as file:
            found = file.read(20).strip()
    except FileNotFoundError:
        yield Finding("home", "note", "it was never opened: it has no format yet")
        return
    if found == str(homes.FORMAT).encode():
        yield Finding("home", "ok", f"format {homes.FORMAT}")
        return
    told = found.decode("ascii", "backslashreplace")
    message = f"its format is {told}, this agentcache knows {homes.FORMAT}"
    remedy = "Use the agentcache that made it, or another home"
    yield Finding("home", "problem", message, remedy)


def _owner(path: Path) -> Iterator[Finding]:
    owner = homes.owner(path)
    if owner is None:
        yield Finding("owner", "ok", "nobody has it open")
        return
    remedy = "Nothing, if it is meant to run; `agentcache agents` asks it"
    yield Finding("owner", "note", f"{owner} has it open", remedy)


def _catalogue(path: Path) -> Iterator[Finding]:
    """From the file's header alone: whoever has the catalogue open locks it."""
    try:
        with (path / "catalogue.sqlite3").open("rb", buffering=0) as file:
            header = file.read(_HEADER)
    except FileNotFoundError:
        yield Finding("catalogue", "note", "there is none yet")
        return
    version, made_by = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    aside = "Move catalogue.sqlite3 aside to start with an empty memory, or put a backup back"
    if not header:
        yield Finding("catalogue", "note", "it is empty")
    elif not header.startswith(_MAGIC) or len(header) < _HEADER:
        yield Finding("catalogue", "problem", "it is damaged: no SQLite file", aside)
    elif made_by not in (schema.APPLICATION, 0):
        yield Finding("catalogue", "problem", "it was not made by agentcache", aside)
    elif version > schema.VERSION:
        message = f"it has schema {version}, this agentcache knows {schema.VERSION}"
        yield Finding("catalogue", "problem", message, "Use the newer agentcache that made it")
    elif version < schema.VERSION and size(path / "catalogue.sqlite3-wal"):
        yield Finding("catalogue", "ok", "its newest changes are in its log yet")
    elif version < schema.VERSION:
        message = f"schema {version} becomes {schema.VERSION} when it is opened next"
        yield Finding("catalogue", "note", message)
    else:
        yield Finding("catalogue", "ok", f"schema {version}")


def _leftovers(path: Path) -> Iterator[Finding]:
    """What is left of writes that were cut off; who owns the home may just be writing."""
    folders = (path, path / "segments", *_shards(path / "segments"))
    found = [each for folder in folders for each in folder.glob(f".*{TEMPORARY}")]
    partial = list((path / "models").glob(".partial.*"))
    if (found or partial) and homes.owner(path) is None:
        message = f"{len(found) + len(partial)} files or folders were never finished"
        remedy = "Nothing: they are swept away when it is opened next"
        yield Finding("home", "note", message, remedy)


def _shards(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (each for each in folder.iterdir() if each.is_dir())


def _quarantine(path: Path) -> Iterator[Finding]:
    folder = path / "quarantine"
    found = [each for each in folder.iterdir() if each.is_file()] if folder.is_dir() else []
    if found:
        taken = Bytes(sum(each.lstat().st_size for each in found))
        message = f"{len(found)} damaged files, {taken}, were set aside in {folder}"
        remedy = "Check the disk (smartctl, the system's log); the files may be deleted"
        yield Finding("quarantine", "warning", message, remedy)
    else:
        yield Finding("quarantine", "ok", "empty")


def _taken(folder: Path) -> int:
    taken = 0
    for shard in _shards(folder):
        taken += sum(
            each.lstat().st_size for each in shard.iterdir() if _SEGMENT.fullmatch(each.name)
        )
    return taken


def _disk(path: Path, settings: Settings, taken: int) -> Iterator[Finding]:
    cap, free = settings.disk_cap, shutil.disk_usage(path).free
    if taken > cap:
        message = f"agents take {Bytes(taken)}, more than the cap of {cap}"
        remedy = "Raise --disk-cap, or the least used are forgotten when it is opened next"
        yield Finding("disk", "warning", message, remedy)
    else:
        yield Finding("disk", "ok", f"agents take {Bytes(taken)} of {cap}")
    if free < _LITTLE:
        message = f"only {Bytes(free)} are free on the disk of {path}"
        yield Finding("disk", "problem", message, "Free some, or choose another disk (--home)")
    elif free < cap - taken:
        message = f"{Bytes(free)} are free, fewer than the cap lets agents take"
        yield Finding("disk", "note", message, f"Lower --disk-cap to {Bytes(taken + free // 2)}")
    else:
        yield Finding("disk", "ok", f"{Bytes(free)} are free")


def _existing(path: Path) -> Path:
    return next(each for each in path.parents if each.is_dir())


def _model(path: Path, settings: Settings) -> Iterator[Finding]:
    """Whether the model is there; its digest, told without leaving a note of it."""
    ref, own = settings.model, Path(settings.model).expanduser()
    folder = own if own.is_dir() else path / "models" / ref
    if not (folder / "config.json").is_file():
        ways = "Nothing: it is fetched when it is needed; or now: agentcache models pull"
        kind = "default " if ref == DEFAULT_MODEL else ""
        yield Finding("model", "note", f"the {kind}model {ref} is not converted here", ways)
        return
    with tempfile.TemporaryDirectory(prefix="agentcache-doctor-") as scratch:
        memo = Path(scratch) / "digests.json"
        if (path / "models" / memo.name).is_file():
            shutil.copyfile(path / "models" / memo.name, memo)
        try:
            digest = model_digest(folder, DigestMemo(memo))
        except ValueError as error:
            message = f"{folder} is damaged: {error}"
            yield Finding("model", "problem", message, f"agentcache models rm {ref}")
            return
    yield Finding("model", "ok", f"{ref} in {folder}, digest {digest.hex()[:16]}")
