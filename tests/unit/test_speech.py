"""One turn's tokens on their way to becoming text."""

import pytest
from attrs import define, field

from agentcache.adapters.memory.tokenizer import END, MemoryTokenizer
from agentcache.domain.errors import AgentCacheError, InvalidRequest
from agentcache.domain.events import Admitted, Delta, Event
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.request import Identity, Miss, Prompt, Tier, TurnRequest
from agentcache.domain.tokens import tokens
from agentcache.ports.tokenizer import Detokenizer
from agentcache.speech import Speech


@define(eq=False)
class Late:
    """A detokenizer that is never certain of its last character."""

    _held: str = field(default="", init=False)

    def add(self, token: int) -> str:
        certain, self._held = self._held, chr(token)
        return certain

    def finish(self) -> str:
        return self._held


@define(eq=False)
class Turn:
    """A speech, and what was told of it."""

    stop: tuple[str, ...] = ()
    detokenizer: Detokenizer = field(factory=lambda: MemoryTokenizer().detokenizer())
    events: list[Event | AgentCacheError] = field(factory=list, init=False)
    speech: Speech = field(init=False)

    @speech.default
    def _new_speech(self) -> Speech:
        request = TurnRequest("id", Identity(), b"root", Prompt((), tokens()), stop=self.stop)
        return Speech(request, self.events.append, 1.0, self.detokenizer)

    def say(self, data: bytes) -> list[bool]:
        """Say `data`, a byte a token; whether each of them ends the turn."""
        return [self.speech.say(byte, now=float(at)) for at, byte in enumerate(data, 2)]


def test_every_token_is_told_with_its_text() -> None:
    turn = Turn()
    assert turn.say(b"ab") == [False, False]
    turn.speech.close()
    assert turn.events == [Delta("a", 1), Delta("b", 1)]
    assert (turn.speech.text, list(turn.speech.sampled)) == ("ab", [97, 98])


def test_the_moment_of_the_first_token_is_remembered() -> None:
    turn = Turn()
    assert turn.speech.first_at is None
    turn.say(b"ab")
    assert turn.speech.first_at == 2.0


def test_tokens_without_text_are_told_with_the_next_that_has_some() -> None:
    turn = Turn()
    turn.say("\N{EURO SIGN}".encode())
    assert turn.events == [Delta("\N{EURO SIGN}", 3)]


def test_tokens_whose_text_never_came_are_told_at_the_end() -> None:
    turn = Turn()
    turn.say("a\N{EURO SIGN}".encode()[:-1])
    turn.speech.close()
    assert turn.events == [Delta("a", 1), Delta("", 2)]


def test_an_end_token_counts_but_has_no_text() -> None:
    turn = Turn()
    turn.say(b"a")
    for end in (END, ord("b")):
        assert not turn.speech.say(end, 9.0, is_text=False)
    turn.speech.close()
    assert turn.events == [Delta("a", 1), Delta("", 2)]


def test_what_is_certain_only_at_the_end_is_said_then() -> None:
    turn = Turn(detokenizer=Late())
    turn.say(b"ab")
    turn.speech.close()
    assert turn.events == [Delta("a", 2), Delta("b", 0)]


def test_it_may_complete_a_stop_sequence() -> None:
    turn = Turn(("end",), Late())
    assert turn.say(b"the end") == [False] * 7
    turn.speech.close()
    assert (turn.speech.text, turn.speech.stop) == ("the ", "end")


def test_it_ends_once() -> None:
    turn = Turn()
    turn.say("\N{EURO SIGN}".encode()[:-1])
    turn.speech.close()
    turn.speech.close()
    assert turn.events == [Delta("", 2)]


def test_nothing_of_a_stop_sequence_is_said() -> None:
    turn = Turn(("end",))
    assert turn.say(b"the end") == [False] * 6 + [True]
    turn.speech.close()
    assert (turn.speech.text, turn.speech.stop) == ("the ", "end")
    assert turn.events == [Delta("t", 1), Delta("h", 1), Delta("e ", 2), Delta("", 3)]


def test_what_did_not_become_a_stop_sequence_is_said_after_all() -> None:
    turn = Turn(("end",))
    turn.say(b"then")
    assert turn.speech.text == "th"
    turn.speech.close()
    assert (turn.speech.text, turn.speech.stop) == ("then", None)


def test_an_empty_stop_sequence_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        Turn(("",))


def test_it_knows_whether_its_turn_had_a_place() -> None:
    turn, admitted = Turn(), Admitted(3, 2, Tier.WARM, Miss.NONE)
    assert not turn.speech.admitted
    turn.speech.admit(admitted)
    assert turn.speech.admitted
    assert turn.events == [admitted]


def test_log_probabilities_come_with_the_text_of_their_tokens() -> None:
    turn = Turn(detokenizer=Late())
    turn.speech.say(97, 1.0, logprobs=Logprobs(-1.0))
    turn.speech.say(98, 2.0, logprobs=Logprobs(-2.0))
    turn.speech.say(END, 3.0, is_text=False, logprobs=Logprobs(-3.0))
    turn.speech.close()
    assert turn.events == [
        Delta("a", 2, ((97, Logprobs(-1.0)), (98, Logprobs(-2.0)))),
        Delta("b", 1),
    ]
