"""The `agentcache` command and how it fails: one line, and 1 for what went wrong, 2 for misuse."""

import os

import click
from typed_settings.exceptions import TsError

from agentcache.cli.agents import agents
from agentcache.cli.chat import chat
from agentcache.cli.doctor import doctor
from agentcache.cli.keys import keys
from agentcache.cli.models import models
from agentcache.cli.printable import printable
from agentcache.cli.serve import serve
from agentcache.domain.errors import AgentCacheError
from agentcache.settings import problems


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except AgentCacheError as error:
            told = "\n".join(printable(line) for line in str(error).split("\n"))
            raise click.ClickException(told) from None
        except TsError as error:
            raise click.UsageError(problems(error)) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="agentcache-mlx", prog_name="agentcache")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Persistent KV-cache memory for LLM agents."""
    if os.environ.get("NO_COLOR"):  # see no-color.org
        ctx.color = False


main.add_command(serve)
main.add_command(chat)
main.add_command(agents)
main.add_command(models)
main.add_command(doctor)
main.add_command(keys)
