"""What a doctor finds."""

from typing import Literal

from attrs import frozen

Level = Literal["ok", "note", "warning", "problem"]


@frozen
class Finding:
    """One thing that was looked at: how bad it is, and `remedy`, what to do about it."""

    about: str
    level: Level
    message: str
    remedy: str = ""
