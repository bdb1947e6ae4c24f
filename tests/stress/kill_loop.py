"""Kills a process that several agents talk to, again and again, and looks at what it leaves.

    python -m tests.stress.kill_loop --rounds 1000 --seed 7

After every kill, every turn that the process had told to have ended must be in the home, and every
row of it must be what the engine computes from nothing. Ends with exit code 1 at the first loss.
"""

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NoReturn

import msgspec
from attrs import define, field

from agentcache.adapters.codecs import codec
from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.memory.hash_model import HashModel, hash_spec
from agentcache.adapters.memory.tokenizer import END, VOCABULARY
from agentcache.assembly import LEAST_SHARED
from agentcache.domain.segment import Segment
from agentcache.domain.session import Session
from agentcache.domain.tokens import Tokens, tokens
from agentcache.outbox import FILE_OVERHEAD
from agentcache.ports.payload import Payload
from agentcache.ports.rows import empty_rows
from agentcache.ports.session_store import Catalogue
from tests.stress.kill_worker import Turn, work

AGENTS = ("ann", "bob", "cleo")
ROUNDS_A_HOME = 20  # conversations grow, and with them the time that a look takes
ROOMY = 1 << 30
TIGHT = 60 * (FILE_OVERHEAD + 5_000)
SPECIAL = ("<|im_start|>", "<|im_end|>")
LONGEST_LIFE = 80  # lines, among which the one to kill after is drawn


@define
class Statistics:
    """What was done."""

    kills: int = 0
    turns: int = 0
    checks: int = 0
    unfinished: int = 0
    after: "Counter[str]" = field(factory=Counter)

    def __str__(self) -> str:
        phases = ", ".join(f"{what} {times}" for what, times in self.after.most_common())
        return (
            f"{self.kills} kills; {self.turns} turns acknowledged, looked for {self.checks} times;"
            f" {self.unfinished} kills left files that no commit speaks of\nkilled after: {phases}"
        )


@define
class Household:
    """A home, its agents, and the turns that they were told to be kept.

    Where `cap` is tight, rows may be evicted; what was said may not be forgotten for all that.
    """

    home: Path
    cap: int
    chance: Random
    done: Statistics
    talks: dict[str, list[Turn]] = field(factory=lambda: {name: [] for name in AGENTS})

    def live_and_die(self) -> None:
        """Start a process, and kill it after some line of what it tells."""
        lines, seed = self.chance.randint(1, LONGEST_LIFE), self.chance.getrandbits(32)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _die_of(lambda: work(self.home, self.cap, self.talks, seed, writing))
        os.close(writing)
        with os.fdopen(reading) as pipe:
            try:
                last = [self._hear(pipe.readline()) for _ in range(lines)][-1]
            finally:
                os.kill(child, signal.SIGKILL)
            for line in pipe:  # what it told before it was dead
                last = self._hear(line)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        self.done.kills += 1
        self.done.after[last] += 1

    def look(self) -> None:
        """Every turn that was told is there, and what is there is whole."""
        with Home.open(self.home) as home:
            segments = DiskSegmentStore.open(home.segments, home.quarantine, helpers=0)
            with closing(SqliteSessionStore.open(home.catalogue)) as sessions:
                found = sessions.load()
            known = {one.key: one for one in found.segments}
            self.done.unfinished += bool(segments.sweep(known))
            segments.check_integrity()
            files = {one.name[:64] for one in home.segments.rglob("*") if one.is_file()}
            assert files == {key.hex() for key in known}
            assert segments.nbytes() <= self.cap
            for segment in found.segments:
                segments.read(segment)
            for name, turns in self.talks.items():
                if turns:
                    self._look_for(_session(found, name), turns, known, segments)

    def _hear(self, line: str) -> str:
        assert line.endswith("\n"), f"the process has ended by itself: {line!r}"
        if not line.startswith("{"):
            return line.strip()
        turn = msgspec.json.decode(line, type=Turn)
        before = self.talks[turn.agent]
        if before and self.cap == ROOMY:
            found = turn.cached + LEAST_SHARED  # what was said before it may be told otherwise
            assert found > before[-1].prompt, f"{turn} has forgotten {before[-1]}"
        before.append(turn)
        self.done.turns += 1
        return "answering"

    def _look_for(
        self,
        session: Session,
        turns: list[Turn],
        known: dict[bytes, Segment],
        segments: DiskSegmentStore,
    ) -> None:
        said, at = "".join(one.text for one in session.spans), 0
        for token in SPECIAL:  # where the engine says one, it is not part of the answer
            said = said.replace(token, "")
        for turn in turns:
            for told in (f"user\n{turn.question}", f"assistant\n{turn.answer}"):
                at = said.find(told, at)
                assert at >= 0, f"{turn} is not in {said!r}"
                at += len(told)
        self.done.checks += len(turns)
        ids = tokens(one for span in session.spans for one in span.ids)
        rows = session.cursor.row if session.cursor else 0
        if self.cap == ROOMY:  # the row of the last id may never have been computed
            assert rows >= max(turns[-1].prompt, len(ids) - 1), f"{rows} rows of {turns[-1]}"
        key, stop = session.cursor.key if session.cursor else None, rows
        while key is not None:
            segment = known[key]
            assert segment.ids[: stop - segment.start] == ids[segment.start : stop]
            right = _encoded(ids[: segment.start] + segment.ids, segment)
            assert _content(segments.read(segment)) == _content(right), segment
            key, stop = segment.parent, segment.start


def _encoded(ids: "Tokens[int]", segment: Segment) -> Payload:
    """The payload of `segment`, worked out from nothing: `ids` are all up to its end."""
    spec = hash_spec()
    model = HashModel(spec, VOCABULARY, frozenset({END}), 0.0)
    rows = model.rows(empty_rows(spec, 0, 0), ids)
    return codec("native").encode(spec, rows.part(segment.start, segment.stop))


def _content(payload: Payload) -> dict[str, bytes]:
    return {name: bytes(one.data) for name, one in payload.tensors.items()}


def _session(found: Catalogue, name: str) -> Session:
    (session,) = (one for one in found.sessions if one.name == name)
    return session


def _die_of(life: Callable[[], None]) -> NoReturn:
    """A forked process never returns to what its parent was doing."""
    try:
        life()
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(1)


def kill(rounds: int, seed: int, scratch: Path) -> Statistics:
    """Kill so many processes, over one home after another in `scratch`."""
    done = Statistics()
    for number in range(0, rounds, ROUNDS_A_HOME):
        chance = Random(f"{seed} {number}")
        cap = TIGHT if number // ROUNDS_A_HOME % 3 == 2 else ROOMY
        with TemporaryDirectory(dir=scratch) as folder:
            household = Household(Path(folder) / "home", cap, chance, done)
            for _ in range(min(ROUNDS_A_HOME, rounds - number)):
                household.live_and_die()
                household.look()
    return done


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        done = kill(options.rounds, options.seed, Path(scratch))
    sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    main()
