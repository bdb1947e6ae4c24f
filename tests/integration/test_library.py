"""The library as programs use it: from one thread, from several, from inside an event loop."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import agentcache
from agentcache import AgentCache, Finish, Message, Miss, Tier
from agentcache.domain.errors import (
    AgentExists,
    Closed,
    HomeLocked,
    InvalidRequest,
    TurnCancelled,
    UnknownAgent,
)
from tests.tiny_models import END, tiny_llama

SYSTEM = "You are brief. " * 10
SHORT = {"max_tokens": 6, "temperature": 0.0}
LONG = {"temperature": 0.0, "logit_bias": {END: -1000.0}}  # until there is no room
SECONDS = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="module")
def cache(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentCache]:
    home = tmp_path_factory.mktemp("home")
    with agentcache.open(model=str(model), home=home, memory_budget="64MB") as cache:
        yield cache


class TestTalking:
    def test_an_answer_tells_what_it_took_and_what_memory_was_worth(
        self, cache: AgentCache
    ) -> None:
        agent = cache.agent("ada", system=SYSTEM)
        first = agent.say("one", **SHORT)
        second = agent.say("two", **SHORT)
        assert (first.usage.completion_tokens, first.finish) == (6, Finish.LENGTH)
        assert (first.cache.cached_tokens, first.cache.tier) == (0, Tier.NONE)
        assert second.cache.cached_tokens > first.usage.prompt_tokens - 20
        assert (second.cache.tier, second.cache.miss) == (Tier.HOT, Miss.NONE)
        assert second.usage.total_tokens == second.usage.prompt_tokens + 6
        assert str(second) == second.text

    def test_the_history_is_what_was_said(self, cache: AgentCache) -> None:
        agent = cache.agent("historian", system=SYSTEM)
        assert agent.history == ()
        answer = agent.say("one", **SHORT)
        assert agent.history == (
            Message("system", SYSTEM),
            Message("user", "one"),
            Message("assistant", answer.text),
        )

    def test_the_pieces_of_a_stream_are_the_answer(self, cache: AgentCache) -> None:
        agent = cache.agent("streamer")
        with agent.stream("one", **SHORT) as stream:
            pieces = list(stream)
        assert "".join(pieces) == stream.answer.text == agent.history[-1].content
        assert list(stream) == []

    def test_the_answer_of_a_stream_is_there_at_its_end(self, cache: AgentCache) -> None:
        with cache.agent("early").stream("one", **LONG) as stream:
            next(stream)
            with pytest.raises(RuntimeError, match="iterate over the stream to its end"):
                _ = stream.answer

    def test_a_stream_closed_early_is_cancelled_and_not_remembered(self, cache: AgentCache) -> None:
        agent = cache.agent("interrupted")
        with agent.stream("one", **LONG) as stream:
            next(stream)
        assert agent.history == ()
        with pytest.raises(TurnCancelled):
            _ = stream.answer
        assert list(stream) == []

    def test_a_stream_that_nobody_holds_any_more_is_cancelled(self, cache: AgentCache) -> None:
        agent = cache.agent("abandoned")
        stream = agent.stream("one", **LONG)
        next(stream)
        del stream
        agent.say("two", **SHORT)  # is answered after it
        assert agent.history[0].content == "two"

    def test_an_agent_answers_while_another_stream_of_its_is_not_read(
        self, cache: AgentCache
    ) -> None:
        agent = cache.agent("patient")
        with agent.stream("one", **SHORT) as unread:
            agent.say("two", **SHORT)
            assert [m.content for m in agent.history[::2]] == ["one", "two"]
            assert len("".join(unread)) == len(agent.history[1].content)

    def test_a_stop_text_may_be_one_or_several(self, cache: AgentCache) -> None:
        whole = cache.agent("s1").say("one", max_tokens=20, temperature=0.0).text
        cut = whole[5:7]
        for name, stop in (("s2", cut), ("s3", [cut, "never said"])):
            answer = cache.agent(name).say("one", max_tokens=20, temperature=0.0, stop=stop)
            assert (answer.text, answer.stop) == (whole[: whole.index(cut)], cut)

    def test_what_is_not_stored_is_not_remembered(self, cache: AgentCache) -> None:
        agent = cache.agent("secretive")
        agent.say("one", store=False, **SHORT)
        assert agent.history == ()

    def test_what_is_prefilled_is_not_computed_again(self, cache: AgentCache) -> None:
        agent = cache.agent("prepared", system="You know a lot of things by heart. " * 10)
        done = agent.prefill()
        assert (done.text, done.usage.completion_tokens) == ("", 0)
        assert [message.role for message in agent.history] == ["system"]
        assert agent.say("one", **SHORT).cache.cached_tokens >= done.usage.prompt_tokens - 1

    @pytest.mark.parametrize("text", ["", "\ud800"])
    def test_what_cannot_be_said_is_refused(self, cache: AgentCache, text: str) -> None:
        with pytest.raises(InvalidRequest):
            cache.agent("ada").say(text)

    @pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": "high"}, {"stop": ""}])
    def test_an_option_that_cannot_be_is_refused(
        self, cache: AgentCache, options: dict[str, object]
    ) -> None:
        with pytest.raises(InvalidRequest):
            cache.agent("ada").say("one", **options)

    def test_what_is_no_option_or_no_text_is_a_type_error(self, cache: AgentCache) -> None:
        with pytest.raises(TypeError, match="no option temprature; there are: temperature"):
            cache.agent("ada").say("one", temprature=1)
        with pytest.raises(TypeError, match="told text, not bytes"):
            cache.agent("ada").say(b"one")

    def test_what_does_not_fit_is_refused_and_nothing_is_lost(self, cache: AgentCache) -> None:
        agent = cache.agent("small")
        agent.say("one", **SHORT)
        before = agent.history
        with pytest.raises(InvalidRequest, match="too long"):
            agent.say("x" * 10_000)
        assert agent.history == before


class TestHandles:
    def test_two_handles_on_an_agent_see_the_same_memory(self, cache: AgentCache) -> None:
        one, other = cache.agent("shared"), cache.agent("shared")
        one.say("one", **SHORT)
        assert other.say("two", **SHORT).cache.miss is Miss.NONE
        assert one.history == other.history
        assert len(one.history) == 4

    def test_another_system_prompt_replaces_that_of_the_conversation(
        self, cache: AgentCache
    ) -> None:
        cache.agent("actor", system=SYSTEM).say("one", **SHORT)
        after = cache.agent("actor", system="You are somebody else.").say("two", **SHORT)
        assert after.cache.miss is Miss.SYSTEM_CHANGED
        history = cache.agent("actor").history
        assert history[0].content == "You are somebody else."
        assert [message.role for message in history] == ["system", *("user", "assistant") * 2]

    def test_a_handle_without_a_system_prompt_keeps_the_one_there_is(
        self, cache: AgentCache
    ) -> None:
        cache.agent("keeper", system=SYSTEM).say("one", **SHORT)
        assert cache.agent("keeper").say("two", **SHORT).cache.miss is Miss.NONE
        assert cache.agent("keeper").history[0] == Message("system", SYSTEM)

    @pytest.mark.parametrize("name", ["", "~x", "x" * 257])
    def test_what_can_be_no_name_is_refused(self, cache: AgentCache, name: str) -> None:
        with pytest.raises(InvalidRequest):
            cache.agent(name)

    def test_a_fork_goes_its_own_way(self, cache: AgentCache) -> None:
        agent = cache.agent("parent", system=SYSTEM)
        agent.say("one", **SHORT)
        fork = agent.fork("child")
        assert fork.history == agent.history
        assert fork.say("two", **SHORT).cache.cached_tokens > 100
        assert len(agent.history) == 3
        assert fork.info.parent == "parent"
        with pytest.raises(AgentExists):
            agent.fork("child")

    def test_turns_can_be_taken_back(self, cache: AgentCache) -> None:
        agent = cache.agent("hesitant", system=SYSTEM)
        agent.say("one", **SHORT)
        before = agent.history
        agent.say("two", **SHORT)
        agent.rewind()
        assert agent.history == before
        assert agent.say("not two", **SHORT).cache.miss is Miss.NONE
        with pytest.raises(InvalidRequest, match="2 turns"):
            agent.rewind(3)

    def test_an_agent_can_be_pinned_given_an_end_and_deleted(self, cache: AgentCache) -> None:
        agent = cache.agent("mortal")
        agent.say("one", **SHORT)
        agent.pin()
        agent.expire(1000)
        assert agent.info.pinned
        assert agent.info.expires is not None
        assert "mortal" in [view.name for view in cache.agents()]
        agent.delete()
        assert "mortal" not in [view.name for view in cache.agents()]
        assert agent.history == ()

    def test_a_new_agent_cannot_be_changed_before_it_has_spoken(self, cache: AgentCache) -> None:
        agent = cache.agent("unborn", system=SYSTEM)
        for change in (agent.delete, agent.pin, agent.rewind, lambda: agent.fork("x")):
            with pytest.raises(UnknownAgent):
                change()
        with pytest.raises(UnknownAgent):
            _ = agent.info


class TestCodecs:
    def test_an_agent_keeps_the_codec_that_it_was_made_with(
        self, model: Path, tmp_path: Path
    ) -> None:
        options = {"model": str(model), "home": tmp_path, "memory_budget": "64MB"}
        with agentcache.open(**options) as cache:
            cache.agent("ada", system=SYSTEM, codec="q8").say("one", **SHORT)
            cache.agent("bob", system=SYSTEM, codec="f16").say("one", **SHORT)
        with agentcache.open(codec="q4", **options) as cache:
            answers = [cache.agent(name).say("two", **SHORT) for name in ("ada", "bob")]
            assert all(one.cache.cached_tokens > len(SYSTEM) for one in answers)
            assert {one.name: one.codec for one in cache.agents()} == {"ada": "q8", "bob": "f16"}

    def test_it_is_q8_unless_somebody_says_otherwise(self, cache: AgentCache) -> None:
        agent = cache.agent("plain", system=SYSTEM)
        agent.say("one", **SHORT)
        assert agent.info.codec == "q8"

    def test_another_one_computes_the_conversation_anew_and_keeps_it(
        self, cache: AgentCache
    ) -> None:
        cache.agent("mover", system=SYSTEM).say("one", **SHORT)
        moved = cache.agent("mover", codec="f16").say("two", **SHORT)
        assert (moved.cache.cached_tokens, moved.cache.miss) == (0, Miss.CODEC_CHANGED)
        mover = cache.agent("mover")
        assert [one.role for one in mover.history] == ["system", *["user", "assistant"] * 2]
        assert mover.fork("moved").info.codec == mover.info.codec == "f16"

    def test_one_that_there_is_not_is_refused_at_once(self, cache: AgentCache) -> None:
        with pytest.raises(InvalidRequest, match="there is no codec 'zip'; there are"):
            cache.agent("ada", codec="zip")


class TestThreads:
    def test_agents_answer_from_several_threads_at_once(self, cache: AgentCache) -> None:
        def talk(number: int) -> list[str]:
            agent = cache.agent(f"worker {number}")
            return [agent.say(f"{text} {number}", **SHORT).text for text in ("one", "two")]

        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(talk, range(4)))
        for number, answers in enumerate(said):
            history = cache.agent(f"worker {number}").history
            assert [message.content for message in history[1::2]] == answers

    def test_what_several_threads_tell_one_agent_is_all_remembered(self, cache: AgentCache) -> None:
        texts = [f"text {number}" for number in range(6)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda text: cache.agent("busy").say(text, **SHORT), texts))
        history = cache.agent("busy").history
        assert sorted(m.content for m in history if m.role == "user") == texts

    def test_it_works_from_inside_a_running_event_loop(self, cache: AgentCache) -> None:
        async def story() -> str:
            return cache.agent("inside").say("one", **SHORT).text

        assert asyncio.run(story()) == cache.agent("inside").history[-1].content


class TestOpening:
    def test_a_home_is_opened_once(self, cache: AgentCache, model: Path) -> None:
        home = cache.agent("ada").cache.service  # it is open
        assert home is not None
        with pytest.raises(HomeLocked):
            agentcache.open(model=str(model), home=home_of(cache))

    def test_an_agent_remembers_after_closing_and_opening(
        self, model: Path, tmp_path: Path
    ) -> None:
        with agentcache.open(model=str(model), home=tmp_path) as cache:
            cache.agent("ada", system=SYSTEM).say("one", **SHORT)
            before = cache.agent("ada").history
        with agentcache.open(model=str(model), home=tmp_path) as cache:
            assert cache.agent("ada").history == before
            answer = cache.agent("ada").say("two", **SHORT)
        assert (answer.cache.tier, answer.cache.miss) == (Tier.COLD, Miss.NONE)

    def test_what_is_used_after_closing_says_so(self, model: Path, tmp_path: Path) -> None:
        with agentcache.open(model=str(model), home=tmp_path) as cache:
            agent = cache.agent("ada")
            agent.say("one", **SHORT)
            stream = agent.stream("two", **LONG)
            next(stream)
        stream.close()
        cache.close()  # twice is once
        for use in (lambda: agent.say("x"), cache.agents, agent.delete, lambda: agent.history):
            with pytest.raises(Closed, match="open it again"):
                use()
        with pytest.raises((Closed, TurnCancelled)):
            list(agent.stream("x"))

    def test_a_setting_that_cannot_work_is_a_value_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="write it like 512MB"):
            agentcache.open(home=tmp_path, memory_budget="much")
        with pytest.raises(TypeError, match="memory"):
            agentcache.open(home=tmp_path, memory="1GB")
        with pytest.raises(TypeError, match="no part 'engine'"):
            agentcache.open(home=tmp_path, adapters={"engine": object})

    def test_environment_variables_are_heeded(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AGENTCACHE_MODEL", str(model))
        monkeypatch.setenv("AGENTCACHE_HOME", str(tmp_path / "named"))
        with agentcache.open() as cache:
            assert cache.model.name == "tiny"
        assert (tmp_path / "named").is_dir()

    def test_importing_it_imports_nothing_heavy(self) -> None:
        heavy = {"mlx", "numpy", "starlette", "transformers", "attrs", "asyncio", "sqlite3"}
        before = "before = set(sys.modules)"  # coverage, where it runs, brings sqlite3 along
        code = (
            f"import sys; {before}; import agentcache; print({heavy} & (set(sys.modules) - before))"
        )
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        assert told.stdout.strip() == "set()"


def test_ctrl_c_cancels_the_turn_and_the_agent_can_be_talked_to_again(
    cache: AgentCache, request: pytest.FixtureRequest
) -> None:
    # Workers that run tests in parallel ignore the signal otherwise.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    agent, planner = cache.agent("stopped"), cache.service._loop.conductor.planner

    def press_when_it_answers() -> None:
        while not planner.running:
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    pressing = threading.Thread(target=press_when_it_answers)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        agent.say("one", **LONG)
    pressing.join()
    agent.say("two", **SHORT)
    assert [m.content for m in agent.history if m.role == "user"] == ["two"]


def home_of(cache: AgentCache) -> Path:
    store = cache.service._loop.conductor.keeper.outbox.writer.sessions
    return Path(store.path).parent
