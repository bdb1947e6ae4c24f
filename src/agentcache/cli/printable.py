"""Texts of others on a terminal."""


def printable(text: str) -> str:
    """`text` so that it cannot steer a terminal, nor be taken for more than one line."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return shown.encode("utf-8", "backslashreplace").decode()
