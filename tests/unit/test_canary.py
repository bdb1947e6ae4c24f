"""Whether what was restored is compared with what it said before, and what comes of it."""

from collections.abc import Iterator
from math import inf, log, nan

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.domain.canary import TOLERANCE, divergence, tolerance
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish, Miss, Sampling, Tier
from agentcache.domain.segment import Segment
from agentcache.domain.trace import TOP, TRACED, Top, Trace
from agentcache.domain.turn import TurnState
from agentcache.ports.payload import Payload, Tensor
from agentcache.succession import forked, rewound
from tests.talks import Said, Talk
from tests.world import World

SYSTEM = "You are an agent among others, and all of you have been told the same, at some length."
SYSTEM_TOKENS = 50  # or a few more
TOPS: tuple[Top, ...] = (((5, -0.5), (9, -2.0)), ((1, -0.1), (2, -4.0)))


@pytest.fixture(params=[1, 2], ids=["one step in flight", "two steps in flight"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with World(limits=Limits(chunk=16, busy_chunk=8), in_flight=request.param, canary=True) as it:
        yield it


def mixed_up(payload: Payload) -> Payload:
    """The same bytes, but every row is that of the one before: any checksum of them is right."""

    def turned(tensor: Tensor) -> Tensor:
        row = tensor.data.nbytes // tensor.shape[0]
        data = bytes(tensor.data)
        return evolve(tensor, data=memoryview(data[-row:] + data[:-row]))

    return evolve(payload, tensors={key: turned(one) for key, one in payload.tensors.items()})


def spoil(world: World, segment: Segment) -> None:
    """Let the home hold other rows as those of `segment`, and RAM nothing."""
    world.settle()
    world.go_cold()
    kept = world.disk.segments._kept
    kept[segment.key] = kept[segment.key][0], mixed_up(kept[segment.key][1])


def reach_ready(world: World, said: Said) -> None:
    """Go on until what it goes on from is restored, and no further."""
    world.reach(said, TurnState.FETCHING)
    while world.conductor.planner.turns[said.number].state is TurnState.FETCHING:
        world.wait()
        world._inbox.run()


def last_segment(world: World, name: str) -> Segment:
    session = world.session(name)
    assert session is not None
    assert session.cursor is not None
    return world.conductor.keeper.lineage[session.cursor.key]


def returning(world: World, max_tokens: int = 6) -> Talk:
    """An agent that had a turn before a restart."""
    talk = Talk("ada", system=SYSTEM)
    world.say(talk, "one", max_tokens=max_tokens)
    world.restart()
    return talk


def misremembered(world: World) -> Talk:
    """The same, of which the home has other rows than were written."""
    talk = returning(world)
    spoil(world, last_segment(world, "ada"))
    return talk


def forwarded(world: World, talk: Talk, text: str) -> tuple[Said, int]:
    """A whole turn, and how many tokens of its prompt were passed to the model."""
    telemetry = world.telemetry
    before = telemetry.tokens_forwarded - telemetry.tokens_decoded
    said = world.say(talk, text)
    return said, telemetry.tokens_forwarded - telemetry.tokens_decoded - before


class TestARestoredSession:
    def test_it_is_compared_once_after_a_restart(self, world: World) -> None:
        talk = returning(world)
        said, passed = forwarded(world, talk, "two")
        assert said.admitted.tier is Tier.COLD
        assert passed == said.admitted.prompt - said.admitted.cached + TRACED
        world.go_cold()
        said, passed = forwarded(world, talk, "three")
        assert passed == said.admitted.prompt - said.admitted.cached
        assert world.telemetry.comparisons == [True]

    def test_a_hot_one_is_not_compared(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        assert world.say(talk, "two").admitted.tier is Tier.HOT
        assert world.telemetry.comparisons == []

    def test_one_whose_rows_are_others_is_prefilled_and_answers_right(self, world: World) -> None:
        talk = misremembered(world)
        said, passed = forwarded(world, talk, "two")  # which checks the answer
        assert (said.admitted.cached, said.admitted.miss) == (0, Miss.CORRUPT)
        assert passed == TRACED + world.limits.chunk + said.admitted.prompt
        assert world.telemetry.comparisons == [False]
        assert world.telemetry.problems
        assert world.disk.segments._aside  # it is in quarantine

    def test_what_was_computed_instead_is_what_it_goes_on_from(self, world: World) -> None:
        talk = misremembered(world)
        world.say(talk, "two")
        world.restart()
        assert world.say(talk, "three").admitted.cached > SYSTEM_TOKENS
        assert world.telemetry.comparisons == [False, True]

    def test_without_the_canary_nobody_would_have_noticed(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        world.canary = False
        world.restart()
        spoil(world, last_segment(world, "ada"))
        said = world.begin(talk.ask("two", max_tokens=6))
        world.settle()
        assert said.text != world.truth(said.request)[0]

    def test_nothing_is_told_before_it_was_compared(self, world: World) -> None:
        talk = returning(world)
        said = world.begin(talk.ask("two"))
        reach_ready(world, said)
        assert said.events == []

    def test_its_sampling_seed_and_log_probabilities_are_as_without(self, world: World) -> None:
        sampling = Sampling(temperature=0.8, seed=3, logprobs=2)
        talk = returning(world)
        world.say(talk, "two", sampling=sampling)
        assert world.telemetry.comparisons == [True]

    def test_a_turn_of_one_token_leaves_one_position_to_compare(self, world: World) -> None:
        talk = returning(world, max_tokens=1)
        said, passed = forwarded(world, talk, "two")
        assert passed == said.admitted.prompt - said.admitted.cached + 1
        assert world.telemetry.comparisons == [True]

    def test_one_that_was_only_prefilled_is_not_compared(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.begin(talk.ask("one", max_tokens=0))
        world.settle()
        talk.take_back()
        world.restart()
        world.say(talk, "one")
        assert world.telemetry.comparisons == []

    def test_one_that_is_only_to_be_prefilled_is_compared_all_the_same(self, world: World) -> None:
        talk = misremembered(world)
        said = world.begin(talk.ask("two", max_tokens=0))
        world.settle()
        talk.take_back()
        assert said.ended.finish is Finish.LENGTH
        assert world.telemetry.comparisons == [False]
        world.say(talk, "two")

    def test_one_whose_client_says_something_else_is_not_compared(self, world: World) -> None:
        returning(world)
        other = Talk("ada", system=SYSTEM)
        world.say(other, "another one")
        assert world.telemetry.comparisons == []


class TestTheWayThere:
    def test_it_may_be_cancelled_before_it_ran(self, world: World) -> None:
        talk = returning(world)
        said = world.begin(talk.ask("two"))
        reach_ready(world, said)
        world.cancel(said)
        world.settle()
        talk.take_back()
        assert said.ended.finish is Finish.CANCELLED
        world.say(talk, "three")

    def test_what_was_cancelled_while_it_ran_keeps_no_row_of_doubtful_ones(
        self, world: World
    ) -> None:
        talk = misremembered(world)
        said = world.begin(talk.ask("two", max_tokens=50))
        reach_ready(world, said)
        planner = world.conductor.planner
        world.conductor._carry_out(planner.plan(world.clock.monotonic()))
        assert planner.flying == 1
        world.cancel(said)
        world.settle()
        talk.take_back()
        assert said.ended.finish is Finish.CANCELLED
        assert world.telemetry.comparisons == [False]
        world.say(talk, "three")  # right, though it begins with the same words

    def test_a_step_that_fails_ends_the_turn_and_not_the_session(self, world: World) -> None:
        talk = returning(world)
        said = world.begin(talk.ask("two"))
        reach_ready(world, said)
        world.engine.frailty.fail("submit", RuntimeError("no memory"))
        world.settle()
        talk.take_back()
        assert said.ended.finish is Finish.FAILED
        assert world.telemetry.comparisons == []
        assert world.say(talk, "three").admitted.cached > SYSTEM_TOKENS
        assert world.telemetry.comparisons == [True]

    def test_others_go_on_meanwhile(self, world: World) -> None:
        ada, bob = Talk("ada", system=SYSTEM), Talk("bob")
        world.say(ada, "one")
        world.restart()
        spoil(world, last_segment(world, "ada"))
        busy = world.begin(bob.ask("go on", max_tokens=60))
        world.reach(busy, TurnState.DECODING)
        said = world.begin(ada.ask("two", max_tokens=6))
        world.settle()
        world.check_answer(busy)
        world.check_answer(said)
        assert said.admitted.miss is Miss.CORRUPT


class TestWhoIsToBlame:
    def test_a_shared_beginning_that_another_session_was_sound_with_stays(
        self, world: World
    ) -> None:
        ada, bob = Talk("ada", system=SYSTEM), Talk("bob", system=SYSTEM)
        world.say(ada, "one")
        world.say(bob, "another")
        world.restart()
        spoil(world, last_segment(world, "bob"))
        world.say(ada, "two")
        said = world.say(bob, "three")
        assert said.admitted.miss is Miss.CORRUPT
        assert said.admitted.cached >= SYSTEM_TOKENS
        assert world.telemetry.comparisons == [True, False]

    def test_whoever_runs_on_the_same_rows_writes_none_of_them(self, world: World) -> None:
        ada, bob = Talk("ada", system=SYSTEM), Talk("bob", system=SYSTEM)
        world.say(ada, "one")
        path = world.conductor.keeper.lineage.path
        session = world.session("ada")
        assert session is not None
        assert session.cursor is not None
        first = path(session.cursor).steps[0].segment
        world.restart()
        spoil(world, first)
        wrong = world.begin(bob.ask("go on", max_tokens=60))  # no session: nothing to compare
        world.reach(wrong, TurnState.DECODING)
        assert wrong.admitted.cached > SYSTEM_TOKENS / 2
        world.say(ada, "two")
        world.settle()
        world.go_cold()
        said = world.say(Talk("eve", system=SYSTEM), "one")
        assert said.admitted.cached > SYSTEM_TOKENS / 2  # of what ada computed anew


class TestWhatIsRemembered:
    def test_it_is_of_the_last_rows_that_are_kept(self, world: World) -> None:
        world.say(Talk("ada", system=SYSTEM), "one")
        session = world.session("ada")
        assert session is not None
        assert session.trace is not None
        assert session.cursor is not None
        assert session.trace.stop == session.cursor.row

    def test_a_fork_remembers_it_and_so_does_a_session_that_was_rewound(self, world: World) -> None:
        world.say(Talk("ada", system=SYSTEM), "one")
        session = world.session("ada")
        assert session is not None
        assert forked(session, "bob", 1.0).trace == session.trace
        assert rewound(session, 1, 2, session.cursor, 1.0).trace == session.trace

    def test_a_fork_is_compared_for_itself(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        ada = world.session("ada")
        assert ada is not None
        assert ada.cursor is not None
        path = world.conductor.keeper.lineage.path(ada.cursor)
        world.conductor.keeper.write(path, forked(ada, "bob", 1.0))
        world.settle()
        world.least_shared = 20  # else ada goes on from the words before bob's next ones, too
        world.restart()
        world.say(Talk("bob", system=SYSTEM, history=list(talk.history)), "two")
        world.go_cold()
        world.say(talk, "three")
        assert world.telemetry.comparisons == [True, True]

    def test_nothing_is_where_nobody_is_to_compare_it(self, world: World) -> None:
        world.canary = False
        world.restart()
        world.say(Talk("ada", system=SYSTEM), "one")
        session = world.session("ada")
        assert session is not None
        assert session.trace is None

    def test_it_is_not_where_a_sequence_cannot_continue_at_any_row(self) -> None:
        with World(spec=hash_spec(2, window=8), canary=True) as world:
            talk = Talk("ada", system=SYSTEM)
            world.say(talk, "one")
            world.restart()
            world.say(talk, "two")
            assert world.telemetry.comparisons == []

    def test_the_trace_survives_the_home(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        before = world.session("ada")
        world.restart()
        after = world.session("ada")
        assert before is not None
        assert after is not None
        assert before.trace == after.trace
        assert after.trace is not None
        assert [len(top) for top in after.trace.tops] == [TOP] * TRACED


class TestDivergence:
    def test_what_is_the_same_does_not_differ(self) -> None:
        assert divergence(TOPS, [[-0.5, -2.0], [-0.1, -4.0]]) == pytest.approx(0, abs=1e-9)

    def test_it_is_that_of_the_tokens_and_of_all_others_as_one(self) -> None:
        top: Top = ((1, log(0.5)), (2, log(0.25)))
        found = [log(0.25), log(0.25)]
        expected = 0.5 * log(2) + 0.25 * log(0.25 / 0.5)
        assert divergence((top,), [found]) == pytest.approx(expected)

    @given(
        st.lists(st.floats(-20, -1e-3), min_size=1, max_size=8),
        st.lists(st.floats(-20, -1e-3), min_size=8, max_size=8),
    )
    def test_it_is_never_much_below_nothing(self, told: list[float], now: list[float]) -> None:
        total = sum(2.718281828**one for one in told)
        share = log(max(total, 1.0)) + 1e-9
        top = tuple((n, one - share) for n, one in enumerate(told))
        spread = log(sum(2.718281828**one for one in now[: len(told)]) + 1)
        found = [one - spread for one in now[: len(told)]]
        assert divergence((top,), [found]) >= -1e-4

    @pytest.mark.parametrize(
        "found",
        [[], [[-0.5, -2.0]], [[-0.5], [-0.1, -4.0]], [[nan, -2.0], [-0.1, -4.0]],
         [[-inf, -2.0], [-0.1, -4.0]], [[5.0, -2.0], [-0.1, -4.0]]],
    )  # fmt: skip
    def test_what_cannot_be_compared_differs_infinitely(self, found: list[list[float]]) -> None:
        assert divergence(TOPS, found) == inf

    def test_more_is_allowed_to_codecs_that_lose_more(self) -> None:
        assert list(TOLERANCE.values()) == sorted(TOLERANCE.values())
        assert tolerance("q8", "bfloat16") > tolerance("q8", "float32")  # type: ignore[operator]
        assert tolerance("a plug-in's", "float32") is None


class TestTrace:
    def test_only_what_is_before_a_row_is_told(self) -> None:
        trace = Trace(10, TOPS)
        assert trace.before(10) == TOPS
        assert trace.before(9) == TOPS[:1]
        assert trace.before(8) == trace.before(11) == ()

    @pytest.mark.parametrize(("stop", "tops"), [(1, TOPS), (5, ())])
    def test_positions_that_there_are_not_are_refused(
        self, stop: int, tops: tuple[Top, ...]
    ) -> None:
        with pytest.raises(ValueError, match="positions"):
            Trace(stop, tops)
