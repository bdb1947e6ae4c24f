"""Packages with entry points, made on the spot and found as installed ones are."""

from collections.abc import Mapping
from pathlib import Path

import pytest

Entries = Mapping[str, Mapping[str, str]]


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, source: str, entries: Entries
) -> None:
    """A package `name` 1.0 of one module; `entries` are its entry points by group."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    write_entry_points(folder, name, entries)
    monkeypatch.syspath_prepend(folder)


def write_entry_points(folder: Path, name: str, entries: Entries) -> None:
    """What an installer leaves in `folder` of the package `name` 1.0 beside its modules."""
    folder.mkdir(parents=True, exist_ok=True)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, offered in entries.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in offered.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
