"""Texts as BLOBs: UTF-8 that may hold NULs and lone surrogates."""

from typing import Any


def to_blob(text: str) -> bytes:
    """UTF-8 that any `str` survives, lone surrogates among them."""
    return text.encode("utf-8", "surrogatepass")


def from_blob(data: Any) -> str:
    """The inverse of `to_blob`. Raises ValueError, TypeError or AttributeError for other values."""
    return str(data.decode("utf-8", "surrogatepass"))
