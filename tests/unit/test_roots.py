"""Whose rows are whose: a model, a tenant and a codec never take those of another."""

import pytest

from agentcache.agent_view import views
from agentcache.domain.errors import AgentBusy, AgentExists, InvalidRequest
from agentcache.domain.request import Miss, Tier
from agentcache.domain.turn import TurnState
from tests.frail import CountingCodec, OtherCodec
from tests.stress.operating import change
from tests.talks import Said, Talk
from tests.world import World

LONG = "tell " * 40
NATIVE, OTHER = CountingCodec.name, OtherCodec.name


def world_of_two(**more: object) -> World:
    return World(other_codecs=(OtherCodec,), **more)  # type: ignore[arg-type]


def codec_of(world: World, name: str) -> str:
    (view,) = (one for one in views(world.conductor, "default") if one.name == name)
    return view.codec


def told(said: Said) -> tuple[bool, Miss]:
    return said.admitted.cached > 0, said.admitted.miss


def encoded_with(world: World, name: str) -> bool:
    codec = world.conductor.roots.codecs.get(name)
    assert isinstance(codec, CountingCodec)
    return bool(codec.encoded)


def test_a_model_never_takes_the_rows_of_another_of_its_shape() -> None:
    with World() as world:
        assert world.say(Talk("ada"), LONG).admitted.cached == 0
        world.digest = b"other"
        world.restart()
        said = world.say(Talk("ada"), LONG)
        assert (said.admitted.cached, said.admitted.tier) == (0, Tier.NONE)
        world.rest_hot()
        world.digest = b"memory"
        world.restart()
        assert world.say(Talk("ada"), LONG).admitted.cached > 0


def test_a_tenant_never_takes_the_rows_of_another() -> None:
    with World() as world:
        world.say(Talk("ada"), LONG)
        said = world.say(Talk("ada", tenant="other"), LONG)
        assert (said.admitted.cached, said.admitted.tier) == (0, Tier.NONE)


def test_a_codec_never_takes_the_rows_of_another() -> None:
    with world_of_two() as world:
        world.say(Talk("ada"), LONG)
        said = world.say(Talk("bob"), LONG, codec=OTHER)
        assert (said.admitted.cached, said.admitted.tier) == (0, Tier.NONE)
        assert world.say(Talk("eve"), LONG, codec=OTHER).admitted.cached > 0
        assert not world.telemetry.problems


class TestAnAgentsCodec:
    def test_it_goes_on_with_the_one_that_it_has_when_none_is_named(self) -> None:
        with world_of_two() as world:
            talk = Talk("ada")
            world.say(talk, LONG, codec=OTHER)
            assert not encoded_with(world, NATIVE)
            world.go_cold()
            assert told(world.say(talk, "more")) == (True, Miss.NONE)
            assert codec_of(world, "ada") == OTHER
            assert not encoded_with(world, NATIVE)

    def test_it_is_found_with_its_rows_after_a_restart(self) -> None:
        with world_of_two() as world:
            talk = Talk("ada")
            world.say(talk, LONG, codec=OTHER)
            world.restart()
            said = world.say(talk, "more")
            assert (told(said), said.admitted.tier) == ((True, Miss.NONE), Tier.COLD)
            assert codec_of(world, "ada") == OTHER

    def test_all_are_found_when_the_default_is_another_one(self) -> None:
        with world_of_two() as world:
            ada, nameless, hinting = Talk("ada"), Talk(), Talk("hint", exclusive=False)
            for talk in (ada, nameless, hinting):
                world.say(talk, LONG + str(talk.name))
            world.settle()
            world.close()
            world.codec, world.other_codecs = OtherCodec(), (CountingCodec,)
            world.open()
            for talk in (ada, nameless, hinting):
                assert told(world.say(talk, "more")) == (True, Miss.NONE)
            assert not encoded_with(world, OTHER)
            assert codec_of(world, "ada") == NATIVE
            world.say(Talk("bob"), LONG)
            assert codec_of(world, "bob") == OTHER

    def test_another_one_begins_anew_and_says_so(self) -> None:
        with world_of_two() as world:
            talk = Talk("ada")
            world.say(talk, LONG)
            assert told(world.say(talk, "more", codec=OTHER)) == (False, Miss.CODEC_CHANGED)
            assert told(world.say(talk, "and more")) == (True, Miss.NONE)
            assert codec_of(world, "ada") == OTHER

    def test_what_was_kept_with_the_one_before_is_given_up(self) -> None:
        with world_of_two() as world:
            talk = Talk("ada")
            world.say(talk, LONG)
            before = {one.key for one in world.segments(Tier.COLD)}
            world.say(talk, "more", codec=OTHER)
            world.settle()
            assert len(world.stored()) == 1
            assert not before & {one.key for one in world.segments(Tier.COLD)}

    def test_it_stays_what_it_was_when_the_turn_that_names_another_is_cancelled(self) -> None:
        with world_of_two(end_rate=0.0) as world:
            talk = Talk("ada")
            world.say(talk, LONG)
            said = world.begin(talk.ask("more", codec=OTHER, max_tokens=100))
            world.reach(said, TurnState.DECODING)
            world.cancel(said)
            world.settle()
            talk.take_back()
            assert codec_of(world, "ada") == NATIVE
            assert told(world.say(talk, "again")) == (True, Miss.NONE)

    def test_it_stays_what_it_was_when_the_new_rows_cannot_be_written(self) -> None:
        with world_of_two() as world:
            talk = Talk("ada")
            world.say(talk, LONG)
            world.disk.fail("commit", [OSError("gone")] * 2)
            world.say(talk, "more", codec=OTHER)
            world.kill()
            assert codec_of(world, "ada") == NATIVE

    def test_pins_times_and_what_it_took_stay_with_it(self) -> None:
        with world_of_two() as world:
            talk = Talk("ada")
            world.say(talk, LONG)
            change(world, lambda agents: agents.pin("default", "ada"))
            before = world.session("ada")
            world.say(talk, "more", codec=OTHER)
            after = world.session("ada")
            assert before is not None
            assert after is not None
            assert (after.pinned, after.created) == (True, before.created)
            assert after.usage.prompt > before.usage.prompt
            change(world, lambda agents: agents.pin("default", "ada", False))

    def test_a_fork_keeps_it(self) -> None:
        with world_of_two() as world:
            talk = Talk("ada")
            world.say(talk, LONG, codec=OTHER)
            change(world, lambda agents: agents.fork("default", "ada", "eve"))
            assert codec_of(world, "eve") == OTHER
            assert world.say(Talk("eve", history=talk.history[:]), "more").admitted.cached > 0

    def test_two_agents_of_one_name_cannot_be_made_by_naming_another(self) -> None:
        with world_of_two() as world:
            world.say(Talk("ada"), LONG)
            world.say(Talk("eve"), LONG, codec=OTHER)
            with pytest.raises(AgentExists):
                change(world, lambda agents: agents.fork("default", "ada", "eve"))

    def test_an_agent_that_is_deleted_leaves_nothing_under_any(self) -> None:
        with world_of_two() as world:
            talk = Talk("ada")
            world.say(talk, LONG)
            world.disk.fail("commit", [OSError("gone")] * 2)
            world.say(talk, "more", codec=OTHER)  # and so it is known twice
            assert len(world.names()) == 2
            change(world, lambda agents: agents.forget("default", "ada"))
            assert (world.names(), world.stored()) == ([], {})

    def test_it_is_not_deleted_while_it_answers_under_another(self) -> None:
        with world_of_two(end_rate=0.0) as world:
            talk = Talk("ada")
            world.say(talk, LONG)
            said = world.begin(talk.ask("more", codec=OTHER, max_tokens=50))
            world.reach(said, TurnState.DECODING)
            with pytest.raises(AgentBusy):
                change(world, lambda agents: agents.forget("default", "ada"))

    def test_one_that_there_is_not_is_refused_with_those_that_there_are(self) -> None:
        with world_of_two() as world:
            with pytest.raises(InvalidRequest, match="no codec 'zip'; there are native, other"):
                world.begin(Talk("ada").ask("hello", codec="zip"))
            with pytest.raises(InvalidRequest, match=r"there is no codec 'z{64}';"):
                world.begin(Talk("ada").ask("hello", codec="z" * 10_000))

    @pytest.mark.parametrize("talk", [Talk(), Talk("hint", exclusive=False)])
    def test_it_takes_an_agent_of_ones_own_to_choose_one(self, talk: Talk) -> None:
        with world_of_two() as world, pytest.raises(InvalidRequest, match="X-Agent-ID"):
            world.begin(talk.ask("hello", codec=OTHER))

    def test_turns_of_one_agent_that_name_several_leave_one_agent(self) -> None:
        with world_of_two() as world:
            talks = [Talk("ada") for _ in range(4)]
            turns = [
                world.begin(talk.ask(LONG, codec=codec, max_tokens=4))
                for talk, codec in zip(talks, (OTHER, None, NATIVE, OTHER), strict=True)
            ]
            world.settle()
            for said in turns:
                world.check_answer(said)
            assert world.names() == ["ada"]
            assert codec_of(world, "ada") == OTHER
