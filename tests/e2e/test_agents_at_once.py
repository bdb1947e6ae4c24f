"""Several agents at the same moment: what they share, and what they must not."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from agentcache.domain.tokens import common_prefix
from tests.agents import Agent, at_once, passed, prefilled
from tests.homes import Remains, Remembered
from tests.servers import Server, served

NOTES = " ".join(f"Note {n}: nothing is written on page {n}." for n in range(16))
QUESTION = "{n} is my number: what is on my page?"
SECRETS = {
    "ann": "swordfish-4711",
    "bob": "heliotrope-0815",
    "cleo": "marzipan-2718",
    "dora": "quicksilver-3141",
    "emil": "bergamot-1618",
}


def _confidants() -> list[Agent]:
    """Agents that know the same, and each a secret."""
    return [
        Agent(name, [{"role": "system", "content": f"{NOTES} The secret is {secret}. Keep it."}])
        for name, secret in SECRETS.items()
    ]


def test_agents_that_talk_at_once_share_what_they_have_in_common_and_keep_their_secrets(
    tmp_path: Path, model: Path, undisturbed: Server
) -> None:
    home, agents = tmp_path / "home", _confidants()
    with served(home, model) as server:
        first = at_once(server, agents, "What is the secret?")
        in_common = len(NOTES) + 40
        assert all(answer.cached <= in_common for answer in first)
        assert prefilled(first, passed(server)) == sum(one.prompt - one.cached for one in first)
        before = passed(server)
        second = at_once(server, agents, "Whom may you tell?")
        assert all(
            old.tokens - 8 <= new.cached <= old.tokens + 8
            for old, new in zip(first, second, strict=True)
        )
        fresh = sum(one.prompt - one.cached for one in second)
        assert prefilled(second, passed(server) - before) == fresh
        assert server.stop() == 0
    remains = Remains.of(home)
    remains.check()
    _check_secrets(remains, Tokenizer.from_file(str(model / "tokenizer.json")))
    _check_owners(remains)
    # Together and alone they run in batches of other sizes. The two likeliest tokens are never
    # closer here than 0.006, a hundred times what that changes.
    for agent in agents:
        alone = Agent(agent.name, agent.messages[:1])
        alone.ask(undisturbed, "What is the secret?")
        assert alone.ask(undisturbed, "Whom may you tell?").text == agent.answers[-1].text


def _check_secrets(remains: Remains, tokenizer: Tokenizer) -> None:
    """Fail when a session holds another's secret, or its rows lack its own."""
    for name, session in remains.sessions.items():
        rows = tokenizer.decode(list(session.rows), skip_special_tokens=False)
        said = tokenizer.decode(list(session.said), skip_special_tokens=False)
        assert SECRETS[name] in rows
        for other in SECRETS.keys() - {name}:
            assert SECRETS[other] not in said
            assert SECRETS[other] not in rows


def _check_owners(remains: Remains) -> None:
    """Fail unless every segment is somebody's, and shared only as far as all say the same."""
    owners: dict[bytes, list[tuple[Remembered, int]]] = {key: [] for key in remains.segments}
    for session in remains.sessions.values():
        stops = [child.start for child in session.path[1:]] + [len(session.rows)]
        for segment, stop in zip(session.path, stops, strict=True):
            owners[segment.key].append((session, stop))
    for key, found in owners.items():
        segment = remains.segments[key]
        assert found, f"nobody needs rows {segment.start} to {segment.stop}"
        for session, stop in found:
            same = common_prefix(session.said, segment.start, segment.ids, 0)
            assert segment.start + same >= stop
        assert any(stop == segment.stop for _, stop in found)


@pytest.mark.parametrize("together", [True, False], ids=["at once", "one after another"])
def test_ten_agents_with_one_beginning_keep_and_compute_it_once(
    tmp_path: Path, model: Path, together: bool
) -> None:
    system = {"role": "system", "content": NOTES}
    agents = [Agent(f"agent {n}", [system]) for n in range(10)]
    home = tmp_path / "home"
    with served(home, model) as server:
        if together:
            answers = at_once(server, agents, QUESTION)
        else:
            answers = [one.ask(server, QUESTION.format(n=n)) for n, one in enumerate(agents)]
        computed = prefilled(answers, passed(server))
        assert server.stop() == 0
    remains = Remains.of(home)
    remains.check()
    own = [answer.prompt - len(NOTES) for answer in answers]  # tokens are bytes
    assert computed <= len(NOTES) + sum(own)
    one, *others = (remains.sessions[agent.name] for agent in agents)
    row_bytes = one.path[0].nbytes / len(one.path[0])
    suffixes = sum(len(other.said) - len(NOTES) for other in others) * row_bytes
    written = remains.file_bytes(remains.segments.values())
    assert written <= 1.2 * remains.file_bytes(one.path) + suffixes
