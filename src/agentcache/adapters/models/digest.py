"""The model digest: a hash of every file that changes KV values, quick to get a second time."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from agentcache.ports.model_source import Progress

# What mlx-lm builds a model and its tokenizer from.
_PATTERNS = (
    "*.safetensors",
    "*.py",
    "hf_quant_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "tiktoken.model",
    "chat_template.*",
)
# Who wrote the config, and from where, changes no value.
_NOTES = frozenset({"_name_or_path", "transformers_version"})
# A file changed again within the file system's clock tick keeps its times; ticks last up to 2 s.
_SETTLED_NS = 2_000_000_000

# By absolute path: the file's identity and its SHA-256.
_Memo = dict[str, list[str]]


class DigestMemo:
    """SHA-256 of files, remembered in the JSON file `path` for as long as a file's stat stays.

    A file younger than `settled_ns` is hashed but not remembered. Losing the memo costs time only.
    """

    def __init__(self, path: Path, settled_ns: int = _SETTLED_NS) -> None:
        self._path = path
        self._settled_ns = settled_ns

    def of(self, files: Sequence[Path], progress: Progress | None = None) -> list[bytes]:
        """The SHA-256 of each of `files`. `progress` is told when one is hashed. Raises OSError."""
        paths = [file.absolute() for file in files]
        ends = list(accumulate(path.stat().st_size for path in paths))
        memo, news, digests = self._read(), _Memo(), list[str]()
        for path, end in zip(paths, ends, strict=True):
            digest = _recall(memo, path)
            if digest is None:
                digest = self._hash(path, news)
                if progress:
                    progress(end, ends[-1], "checking")
            digests.append(digest)
        if news:
            self._write(memo | news)
        return [bytes.fromhex(digest) for digest in digests]

    def _hash(self, path: Path, news: _Memo) -> str:
        before = path.stat()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = path.stat()
        age = time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns)
        if _identity(before) == _identity(after) and age >= self._settled_ns:
            news[str(path)] = [_identity(after), digest]
        return digest

    def _read(self) -> _Memo:
        """What is remembered of files that still exist; nothing, if the memo cannot be read."""
        with suppress(OSError, ValueError):
            memo = json.loads(self._path.read_bytes())
            if isinstance(memo, dict):
                return {path: entry for path, entry in memo.items() if Path(path).exists()}
        return {}

    def _write(self, memo: _Memo) -> None:
        # A rename is atomic; of two processes that write at once one's news are hashed again.
        with suppress(OSError), tempfile.TemporaryDirectory(dir=self._path.parent) as scratch:
            fresh = Path(scratch) / self._path.name
            fresh.write_text(json.dumps(memo, indent=1))
            fresh.chmod(0o600)
            fresh.replace(self._path)


def _recall(memo: _Memo, path: Path) -> str | None:
    match memo.get(str(path)):
        case [identity, str(digest)] if identity == _identity(path.stat()):
            return digest
        case _:
            return None


def _identity(stat: os.stat_result) -> str:
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def model_digest(folder: Path, memo: DigestMemo, progress: Progress | None = None) -> bytes:
    """32 bytes that differ whenever config, weights, adapters or tokenizer of `folder` do.

    The folder's own place and name do not count. Raises OSError or ValueError.
    """
    files = sorted(set(_files(folder)))
    digest = hashlib.sha256(b"agentcache model 1\n")
    digest.update(hashlib.sha256(_canonical_config(folder / "config.json")).digest())
    for file, content in zip(files, memo.of(files, progress), strict=True):
        name = file.name.encode()
        digest.update(len(name).to_bytes(4, "little") + name + content)
    return digest.digest()


def adapter_digest(base: bytes, folder: Path, memo: DigestMemo) -> bytes:
    """32 bytes for the model `base` with the adapter in `folder` over it. Raises OSError."""
    files = sorted(set(_files(folder)))
    digest = hashlib.sha256(b"agentcache adapter 1\n" + base)
    for file, content in zip(files, memo.of(files), strict=True):
        name = file.name.encode()
        digest.update(len(name).to_bytes(4, "little") + name + content)
    return digest.digest()


def _files(folder: Path) -> Iterator[Path]:
    for pattern in _PATTERNS:
        yield from (path for path in folder.glob(pattern) if path.is_file())


def _canonical_config(path: Path) -> bytes:
    config = {
        key: value for key, value in json.loads(path.read_bytes()).items() if key not in _NOTES
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
