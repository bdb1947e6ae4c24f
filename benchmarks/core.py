"""What the core alone costs, without a model: decisions of the planner, matches of the lineage,
operations of the pool and the registry, beside 10, 1,000 and 10,000 idle sessions.

Nothing here may grow with the sessions that are idle. CPU time of this process, microseconds; and
bytecode instructions, which no neighbour and no cache of the processor changes: where time grows
and they do not, it is the memory that is further away. `--talking` says how many sessions talk.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from types import FrameType

from attrs import define
from recording import parsed, write_results

from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.domain.hot import HotTier
from agentcache.domain.lineage import Lineage
from agentcache.domain.notices import Limits
from agentcache.domain.plan import Sampled, StepPlan, StepResult
from agentcache.domain.planner import Planner
from agentcache.domain.pool import BlockPool, blocks_for
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Identity, Prompt, Tier, TurnRequest
from agentcache.domain.segment import Segment
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.tokens import Tokens, tokens

ROOT = b"r" * 32
SYSTEM = 500  # tokens that all sessions begin with
TURNS, TURN = 4, 200  # segments of a session after that, and their tokens
BATCH = 8
ROUNDS = 5
COUNTED = 50  # times that something is done to count its instructions
LONGEST = 20_000  # tokens of a sequence that decodes all the time


@define(eq=False)
class Idle:
    """`count` sessions, in the lineage and the registry, some of them hot; `talking` ones talk."""

    count: int
    talking: int
    lineage: Lineage
    registry: SessionRegistry
    planner: Planner
    prompts: "list[Tokens[int]]"
    chance: random.Random

    def talker(self) -> int:
        """One of the sessions that talk, which lie anywhere among the others."""
        return self.chance.randrange(self.talking) * (self.count // self.talking)


def idle(count: int, talking: int) -> Idle:
    """Make them. Every session holds SYSTEM + TURNS * TURN tokens."""
    lineage, registry = Lineage(hash_spec(), least_shared=64), SessionRegistry()
    system = Segment.following(ROOT, None, 0, tokens(range(1, SYSTEM + 1)), SYSTEM)
    lineage.add(system, Tier.WARM, Tier.COLD)
    blocks = blocks_for(SYSTEM + TURNS * TURN) * count + BATCH * blocks_for(LONGEST)
    hot = HotTier(BlockPool(blocks))
    planner = Planner(lineage, hot, limits=Limits(batch=BATCH, queue=10**6, reserve=1))
    made = Idle(count, min(count, talking), lineage, registry, planner, [], random.Random(1))
    for number in range(count):
        _add_session(made, system, number)
    return made


def _add_session(made: Idle, system: Segment, number: int) -> None:
    ids, parent = tokens(system.ids), system.key
    for turn in range(TURNS):
        said = ((number * 7919 + turn * 104_729 + one) % 50_000 for one in range(TURN - 3))
        new = tokens([1, 2, 3, *said])  # every turn begins as a template has it
        segment = Segment.following(ROOT, parent, len(ids), new, TURN)
        made.lineage.add(segment, Tier.WARM, Tier.COLD)
        ids, parent = ids + new, segment.key
    key = SessionKey("default", ROOT, f"agent{number}")
    spans = (
        Span(SpanKind.CONTENT, "system", "be good", ids[:SYSTEM]),
        Span(SpanKind.CONTENT, "user", f"I am number {number}", ids[SYSTEM:-TURN]),
        Span(SpanKind.CONTENT, "assistant", f"hello {number}", ids[-TURN:]),
    )
    made.registry.put(Session(key, spans))
    made.prompts.append(ids)
    sequence = made.planner.hot.make(ROOT, ids[:], len(ids))
    assert sequence is not None
    sequence.rows = sequence.planned = sequence.kept = len(ids)
    made.planner.hot.rest(sequence, key)


# -- what is measured ----------------------------------------------------------------------------


def decode_steps(made: Idle, times: int) -> None:
    """Steps of BATCH turns that decode: plan, apply, take the notices."""
    while made.planner.running < BATCH:
        _turn(made, made.talker(), max_tokens=100_000)
    _decode(made.planner, times)


def turns(made: Idle, times: int) -> None:
    """Whole turns of one token, of sessions that come back, from the queue to the end."""
    for _ in range(times):
        _turn(made, made.talker(), max_tokens=1)
        while made.planner.turns:
            _step(made.planner)


def matches(made: Idle, times: int) -> None:
    """Matches of a whole conversation of a session, and a touch of its path."""
    for _ in range(times):
        ids = made.prompts[made.talker()]
        found = made.lineage.match(ROOT, ids)
        assert found.length == len(ids)
        made.lineage.touch(found.keys)


def new_segments(made: Idle, times: int) -> None:
    """A new segment on a session, and the eviction of the coldest one of RAM."""
    for number in range(times):
        ids = made.prompts[made.talker()]
        path = made.lineage.match(ROOT, ids)
        new = tokens([60_000 + number % 1000] * 40)
        last = path.steps[-1].segment
        made.lineage.add(Segment.following(ROOT, last.key, last.stop, new, 40), Tier.COLD)
        coldest = made.lineage.coldest(Tier.WARM)
        assert coldest is not None
        made.lineage.leave(coldest.key, Tier.WARM)
        made.lineage.add(coldest, Tier.WARM)


def reservations(made: Idle, times: int) -> None:
    """A reservation in the pool, and its release."""
    pool = made.planner.hot.pool
    for _ in range(times):
        assert pool.reserve(-1, 1)
        pool.release(-1)


def gives_way(made: Idle, times: int) -> None:
    """A place for a sequence that a resting one has to give way for."""
    hot = made.planner.hot
    filler = hot.make(ROOT, tokens([1]), hot.pool.free * 256) if hot.pool.free else None
    for number in range(times):
        made_now = hot.make(ROOT, tokens([1]), 1300)
        assert made_now is not None
        hot.rest(made_now, SessionKey("default", ROOT, f"new{number}"))
    if filler is not None:
        hot.drop(filler)
    hot.take_dropped()


def recognitions(made: Idle, times: int) -> None:
    """A conversation recognised by what was said, and its session replaced by its successor."""
    for _ in range(times):
        number = made.talker()
        known = made.registry.get(SessionKey("default", ROOT, f"agent{number}"))
        assert known is not None
        assert made.registry.recognise("default", (ROOT,), known.spans) is known  # type: ignore[arg-type]
        made.registry.put(known.succeeded(known.spans, None, b"", 1.0))


def waiting_steps(made: Idle, times: int) -> None:
    """Steps of BATCH turns that decode, while as many turns wait as there are idle sessions."""
    while made.planner.running < BATCH:
        _turn(made, made.talker(), max_tokens=100_000)
    while made.planner.waiting < made.count:
        _turn(made, made.planner.waiting, max_tokens=1, place=False)
    _decode(made.planner, times)


def _decode(planner: Planner, times: int) -> None:
    while times:
        times -= _step(planner) == BATCH


def _turn(made: Idle, session: int, max_tokens: int, place: bool = True) -> None:
    key = SessionKey("default", ROOT, f"agent{session}")
    prompt = Prompt((), made.prompts[session] + tokens([9, 9, 9]), SYSTEM)
    asked = TurnRequest("1", Identity(), ROOT, prompt, max_tokens=max_tokens, session=key)
    turn = made.planner.enqueue(asked, 0.0)
    while place and turn.sequence is None:
        _step(made.planner)


def _step(planner: Planner) -> int:
    """A round of the conductor, with everything that the planner asks for done at once; returns how
    many decoded.
    """
    plan = planner.plan(0.0)
    for park in plan.park:
        if park.turn is not None:
            planner.parked(park.turn, planner.turns[park.turn].request.session, 0.0)
    for start in plan.start:
        if start.restore:
            planner.fetched(start.turn)
    if plan.step is not None:
        planner.apply(_result(plan.step), 0.01)
        planner.take_notices()
    return len(plan.step.decode) if plan.step is not None else 0


def _result(step: StepPlan) -> StepResult:
    ended = [chunk.sequence for chunk in step.prefill if chunk.sampling is not None]
    return StepResult(step.number, tuple(Sampled(one, 5) for one in (*ended, *step.decode)))


# (what, unit of work, how many at a time)
MEASURED: tuple[tuple[str, Callable[[Idle, int], None], int], ...] = (
    ("step of 8 that decode", decode_steps, 2000),
    ("step of 8 that decode, as many waiting as idle", waiting_steps, 2000),
    ("turn of a session that comes back", turns, 300),
    ("match of a conversation of 1,300 tokens", matches, 2000),
    ("new segment, and an eviction", new_segments, 500),
    ("reservation in the pool", reservations, 20_000),
    ("place that a resting sequence gives up", gives_way, 1000),
    ("conversation recognised and replaced", recognitions, 1000),
)


def measured(count: int, talking: int, only: str) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of each, the median of ROUNDS, beside `count` sessions; and its instructions."""
    seconds, instructions = {}, {}
    for name, work, times in MEASURED:
        if only not in name:
            continue
        made = idle(count, talking)
        work(made, max(1, times // 10))
        seconds[name] = statistics.median(_seconds(made, work, times) for _ in range(ROUNDS)) * 1e6
        instructions[name] = _instructions(made, work)
    return seconds, instructions


def _instructions(made: Idle, work: Callable[[Idle, int], None]) -> float:
    """Bytecode instructions that are run for it once."""
    count = 0

    def traced(frame: FrameType, event: str, _argument: object) -> Callable[..., object]:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return traced

    sys.settrace(traced)
    try:
        work(made, COUNTED)
    finally:
        sys.settrace(None)
    return count / COUNTED


def _seconds(made: Idle, work: Callable[[Idle, int], None], times: int) -> float:
    began = time.process_time()
    work(made, times)
    return (time.process_time() - began) / times


def table(found: dict[int, dict[str, float]], what: str = "microseconds") -> str:
    """`what` by sessions, and how it grows."""
    fewest, most = min(found), max(found)
    head = "".join(f"{count:>12,}" for count in found)
    lines = [f"{what + ' beside idle sessions':50}{head}{'growth':>9}"]
    for name in found[most]:
        row = "".join(f"{found[count][name]:12.1f}" for count in found)
        growth = found[most][name] / found[fewest][name]
        lines.append(f"{name:50}{row}{growth:8.2f}x")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[10, 1_000, 10_000])
    parser.add_argument("--only", default="", help="part of the name of what is to be measured")
    parser.add_argument("--talking", type=int, default=10, help="how many of the sessions talk")
    options = parsed(parser, sessions=[10, 100])
    both = {one: measured(one, options.talking, options.only) for one in options.sessions}
    found = {count: seconds for count, (seconds, _) in both.items()}
    counted = {count: instructions for count, (_, instructions) in both.items()}
    if not options.only:
        results = {
            "microseconds": {str(count): one for count, one in found.items()},
            "instructions": {str(count): one for count, one in counted.items()},
            "talking": options.talking,
        }
        write_results("core", results, options.quick)
    print(table(found))
    print()
    print(table(counted, "bytecode instructions"))


if __name__ == "__main__":
    main()
