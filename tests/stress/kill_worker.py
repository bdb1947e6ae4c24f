"""The process that is killed: several agents talk at once to all of agentcache over a home.

It tells a pipe, a line each, what it is about to do to the home, and every turn that has ended.
"""

import asyncio
import os
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from random import Random
from typing import cast

import msgspec
from attrs import define, field

from agentcache.adapters.clock import SystemClock
from agentcache.adapters.codecs import codec
from agentcache.adapters.disk import files
from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.adapters.memory.telemetry import RecordingTelemetry
from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.assembly import Assembly, Budgets
from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.events import Delta, Ended
from agentcache.domain.notices import Limits
from agentcache.domain.request import Identity
from agentcache.domain.segment import Segment
from agentcache.loop import EngineLoop
from agentcache.ports.payload import Payload
from agentcache.ports.session_store import Catalogue, Commit
from agentcache.roots import Codecs
from agentcache.service import Ask, Service

WORDS = ("and", "then", "who", "said", "that", "it", "was", "so", "\N{EURO SIGN}")
SYSTEM = "You are one of several agents who are told the same."


class Turn(msgspec.Struct):
    """A turn that has ended; of the `prompt` tokens `cached` were not run."""

    agent: str
    question: str
    answer: str
    prompt: int
    completion: int
    cached: int


@define(eq=False)
class Pipe:
    """Lines to the one who kills."""

    fd: int

    def tell(self, what: str) -> None:
        """In one write, so that the lines of threads do not mix."""
        os.write(self.fd, f"{what}\n".encode())


@define(eq=False)
class TellingSegments(DiskSegmentStore):
    """Tells what it does."""

    pipe: Pipe = field(default=Pipe(-1))

    def put(self, segment: Segment, payload: Payload) -> int:
        self.pipe.tell("writing a segment")
        return super().put(segment, payload)

    def delete(self, key: bytes) -> None:
        self.pipe.tell("deleting a segment")
        super().delete(key)

    def sweep(self, known: Iterable[bytes]) -> int:
        self.pipe.tell("sweeping")
        return super().sweep(known)


@define(eq=False)
class TellingSessions(SqliteSessionStore):
    """Tells what it does."""

    pipe: Pipe = field(default=Pipe(-1))

    def load(self) -> Catalogue:
        self.pipe.tell("loading")
        return super().load()

    def commit(self, change: Commit) -> None:
        self.pipe.tell("committing")
        super().commit(change)
        self.pipe.tell("committed")


def work(home: Path, disk_cap: int, talks: dict[str, list[Turn]], seed: int, fd: int) -> None:
    """Go on with `talks`, by agent's name, for ever."""
    pipe = Pipe(fd)
    _tell_of_syncs(pipe)
    pipe.tell("opening")
    owned = Home.open(home)
    segments = cast(TellingSegments, TellingSegments.open(owned.segments, owned.quarantine))
    sessions = cast(TellingSessions, TellingSessions.open(owned.catalogue))
    segments.pipe = sessions.pipe = pipe
    assembly = Assembly(
        load_engine=lambda: MemoryEngine.of(
            vocabulary=VOCABULARY, ends=frozenset({END}), end_rate=0.1
        ),
        load_tokenizer=MemoryTokenizer,
        codecs=Codecs(codec("native")),
        segments=segments,
        sessions=sessions,
        clock=SystemClock(),
        telemetry=RecordingTelemetry(),
        budgets=Budgets(memory=64 << 20, disk=disk_cap),
        limits=Limits(),
    )
    loop = EngineLoop(assembly, assembly.clock, assembly.telemetry)
    loop.start()
    loop.wait_open()
    asyncio.run(_talk_all(Service(loop, assembly.clock), talks, seed, pipe))


async def _talk_all(service: Service, talks: dict[str, list[Turn]], seed: int, pipe: Pipe) -> None:
    chances = {name: Random(f"{seed} {name}") for name in talks}
    await asyncio.gather(
        *(_talk(service, name, talks[name], chances[name], pipe) for name in talks)
    )


async def _talk(service: Service, name: str, turns: list[Turn], chance: Random, pipe: Pipe) -> None:
    history = [Message("system", SYSTEM)]
    for turn in turns:
        history += [Message("user", turn.question), Message("assistant", turn.answer)]
    for number in count(len(turns)):
        question = " ".join([f"{number}:", *chance.choices(WORDS, k=chance.randint(1, 30))])
        history.append(Message("user", question))
        ask = Ask(Identity(name, "default", True), Conversation(tuple(history)), max_tokens=12)
        running = await service.begin(ask)
        events = [event async for event in running]
        answer = "".join(event.text for event in events if isinstance(event, Delta))
        ended = events[-1]
        assert isinstance(ended, Ended)
        turn = Turn(name, question, answer, ended.prompt, ended.completion, ended.cached)
        pipe.tell(msgspec.json.encode(turn).decode())
        history.append(Message("assistant", answer))


def _tell_of_syncs(pipe: Pipe) -> None:
    sync = files.sync

    def telling(fd: int) -> None:
        pipe.tell("syncing")
        sync(fd)

    files.sync = telling
