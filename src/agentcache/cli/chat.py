"""agentcache chat: talk to an agent that remembers."""

import select
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import click

from agentcache.cli.options import with_settings
from agentcache.cli.progress import progress_bar
from agentcache.cli.voices import Cost, Local, Remote, Voice
from agentcache.domain.errors import AgentCacheError, TurnCancelled
from agentcache.settings import Settings
from agentcache.succession import check_name

# What a model says must not steer the terminal: all control characters but line feed and tab.
_UNPRINTABLE = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})


_LOOK_SECONDS = 0.2


@click.command()
@click.argument("name")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@with_settings
def chat(settings: Settings, name: str, temperature: float, max_tokens: int | None) -> None:
    """Talk to the agent NAME, who remembers what was said before, also after a restart.

    Ctrl-C stops an answer, Ctrl-D ends the chat. If a server is running, it is the one that
    answers.
    """
    from agentcache.cli import logs

    logs.configure(settings.log_format, "warning")
    check_name(name)  # before anything is loaded
    with _voice(settings, name, temperature, max_tokens) as voice:
        for said in _said_by_user():
            _exchange(voice, said)


@contextmanager
def _voice(
    settings: Settings, name: str, temperature: float, max_tokens: int | None
) -> Iterator[Voice]:
    from agentcache.adapters.disk import home

    owner = home.owner(settings.home)
    if owner is not None and owner.address is not None:
        yield Remote(owner.address, name, temperature, max_tokens)
        return
    from agentcache.library.opening import Running
    from agentcache.library.synchronous import AgentCache

    with AgentCache(Running.open(settings, {}, progress_bar)) as cache:
        yield Local(cache.agent(name), temperature, max_tokens)


def _said_by_user() -> Iterator[str]:
    """Lines from stdin, until it ends or Ctrl-C is pressed at the prompt."""
    asking = sys.stdin.isatty()
    while True:
        try:
            line = (_typed() if asking else input()).strip()
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
        if line:
            yield line


def _typed() -> str:
    """A line from the terminal. Ctrl-C that comes just before the read blocks is seen, too."""
    click.echo("> ", nl=False)
    while not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
        pass
    return input()


def _exchange(voice: Voice, said: str) -> None:
    """One question and its answer; only a whole answer is remembered."""
    cost: Cost | None = None
    try:
        with closing(voice.answer(said)) as answer:
            for piece in answer:
                if isinstance(piece, Cost):
                    cost = piece
                else:
                    click.echo(piece.translate(_UNPRINTABLE), nl=False)
        if cost is None:
            raise TurnCancelled("cut off")
    except KeyboardInterrupt:
        click.secho("\nstopped", err=True, dim=True)
    except AgentCacheError as error:
        if not sys.stdin.isatty():
            raise
        click.secho(f"\n{error}", err=True, fg="red")
    else:
        click.secho(f"\n{cost.cached} of {cost.prompt} tokens remembered", err=True, dim=True)
