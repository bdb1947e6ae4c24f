"""The command line: serve, chat, models."""

from agentcache.cli.commands import main

__all__ = ["main"]
