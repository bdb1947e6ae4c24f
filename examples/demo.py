"""Three agents, one kill -9: what a restart costs with a memory.

Starts the server on the default model, gives three agents different long contexts, lets each answer
twice, kills the server with SIGKILL, starts it again and asks each agent once more. What counts as
cached is judged by the tokens that the server passed to the model (its own counter, read from
/metrics before and after each question), not by what its answers claim.

Exits with 1 when an agent did not come back from its cache.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from attrs import define, evolve, field, frozen
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

MODEL = "smollm2-135m"
ANSWER_TOKENS = 12
CAME_BACK = 0.98  # of the tokens of an agent's last turn
READY_SECONDS = 180
READY = re.compile(r"ready on (http://\S+)")
NOTES = {
    "historian": "The archive of {place} holds {n} ledgers from the year {year}, in red leather.",
    "botanist": "Specimen {n} was gathered near {place} in {year}; its leaves are narrow and pale.",
    "engineer": "Bridge {n} at {place} was built in {year} and carries {n} carriages an hour.",
}
PLACES = ("Aldwick", "Brannoch", "Corvale", "Dunmere", "Esterly", "Farrow", "Glenmoor", "Hartsea")
QUESTIONS = {  # by the moment in which they are asked
    "cold": "Name one place from your notes.",
    "hot": "Name another one.",
    "after kill -9": "Which of the two did you name first?",
}
console = Console(highlight=False)


@frozen
class Answer:
    """One turn: tokens of the prompt, tokens passed to the model for it, seconds to the first."""

    prompt: int
    completion: int
    passed: int
    first: float


@define
class Agent:
    """An agent as a client sees it: a name and the messages so far."""

    name: str
    messages: list[ChatCompletionMessageParam]
    answers: list[Answer] = field(factory=list)

    def came_back(self) -> bool:
        """Whether the last turn's beginning was restored instead of being computed again."""
        before, last = self.answers[-2:]
        return last.prompt - last.passed >= CAME_BACK * (before.prompt + before.completion)


def main() -> int:
    """Run the demonstration; returns the exit code."""
    options = _options()
    subprocess.run([*_agentcache(), "models", "pull", MODEL, "--home", options.models], check=True)
    folder = Path(options.models) / "models" / MODEL
    agents = [Agent(name, [_system(name, options.notes)]) for name in NOTES]
    with tempfile.TemporaryDirectory(prefix="agentcache-demo-") as home:
        with _server(home, folder, signal.SIGKILL) as url:
            _ask_all(agents, url, "cold")
            _ask_all(agents, url, "hot")
        console.print("\n[dim]kill -9, and the server is started again[/]")
        if options.between:
            subprocess.run(options.between.format(home=home), shell=True, check=True)
        with _server(home, folder, signal.SIGTERM) as url:
            _ask_all(agents, url, "after kill -9")
    console.print(_table(agents))
    if lost := [agent.name for agent in agents if not agent.came_back()]:
        console.print(f"[red]Computed again instead of restored: {', '.join(lost)}.[/]")
        return 1
    console.print("[green]After kill -9 every agent went on from its cache.[/]")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=".cache/home", help="home that keeps the model")
    parser.add_argument("--notes", type=int, default=40, help="lines in each agent's context")
    parser.add_argument(
        "--between", help="shell command to run after the kill; {home} is filled in"
    )
    return parser.parse_args()


def _agentcache() -> list[str]:
    return [str(Path(sys.executable).with_name("agentcache"))]


def _system(name: str, lines: int) -> ChatCompletionMessageParam:
    notes = (
        NOTES[name].format(n=7 * n + 3, place=PLACES[n % len(PLACES)], year=1700 + 3 * n)
        for n in range(lines)
    )
    return {"role": "system", "content": f"You are a {name}. Your notes:\n" + "\n".join(notes)}


@contextmanager
def _server(home: str, model: Path, ending: signal.Signals) -> Iterator[str]:
    """A server process of our own, ended by the signal `ending`."""
    command = [*_agentcache(), "serve", "--home", home, "--model", str(model), "--port", "0"]
    log = Path(home).with_suffix(".log")
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors) as process:
        try:
            yield _address(process, log)
        finally:
            process.send_signal(ending)
            process.wait()
            log.unlink()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Where the server listens, as it says itself, once it takes turns."""
    until = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < until:
        found = READY.search(log.read_text())
        if found and httpx.get(f"{found[1]}/health/ready", timeout=READY_SECONDS).is_success:
            return found[1]
        time.sleep(0.1)
    sys.exit(f"the server did not start:\n{log.read_text()}")


def _ask_all(agents: list[Agent], url: str, moment: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    console.print(f"\n[bold]{moment}[/]: {QUESTIONS[moment]}")
    for agent in agents:
        agent.messages.append({"role": "user", "content": QUESTIONS[moment]})
        before = _passed(url)
        answer, text = _ask(client, agent)
        passed = _passed(url) - before - (answer.completion - 1)  # a decode step passes one each
        agent.answers.append(evolve(answer, passed=passed))
        agent.messages.append({"role": "assistant", "content": text})
        said = f"  [cyan]{agent.name:9}[/] {escape(' '.join(text.split()))}"
        console.print(said, no_wrap=True, overflow="ellipsis")


def _ask(client: OpenAI, agent: Agent) -> tuple[Answer, str]:
    started, first, text, usage = time.perf_counter(), None, "", None
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=agent.messages,
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"X-Agent-ID": agent.name},
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.perf_counter() - started
                text += choice.delta.content
    assert usage is not None
    return Answer(usage.prompt_tokens, usage.completion_tokens, 0, first or 0.0), text


def _passed(url: str) -> int:
    """Tokens that were passed to the model since the server started."""
    metrics = httpx.get(f"{url}/metrics", timeout=READY_SECONDS).text
    found = re.search(r"^agentcache_model_tokens_total (\S+)", metrics, re.MULTILINE)
    return round(float(found[1])) if found else 0


def _table(agents: list[Agent]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))  # fits into 80 columns
    table.add_column("agent")
    table.add_column("moment")
    for figure in ("prompt tokens", "passed to the model", "first token (s)"):
        table.add_column(figure, justify="right")
    for agent in agents:
        for moment, one in zip(QUESTIONS, agent.answers, strict=True):
            figures = (f"{one.prompt}", f"{one.passed}", f"{one.first:.2f}")
            table.add_row(agent.name if moment == "cold" else "", moment, *figures)
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main())
