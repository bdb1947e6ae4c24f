"""Raw text as a prompt: what of it goes on from a session, and what is tokenised."""

import pytest

from agentcache.adapters.memory.tokenizer import MemoryTokenizer
from agentcache.domain.conversation import Conversation
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import Miss, Prompt
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.spans import Span
from agentcache.rendering import PromptBuilder

TOKENIZER = MemoryTokenizer()
BUILDER = PromptBuilder(TOKENIZER)


def prompt_of(text: str | tuple[int, ...], known: tuple[Span, ...] = ()) -> Prompt:
    session = Session(SessionKey("", b"", "ann"), spans=known) if known else None
    return BUILDER.build_recalling(Conversation((), text=text), lambda _: session)


def said(prompt: Prompt, answer: str) -> tuple[Span, ...]:
    """The spans after an answer that was sampled letter by letter."""
    return BUILDER.spans_after(prompt, list(answer.encode()), answer)


@pytest.mark.parametrize("begin", ["the tale", "<|im_start|>user\nthe tale"])
def test_text_goes_on_from_the_sampled_ids(begin: str) -> None:
    first = prompt_of(begin)
    known = said(first, " goes on")
    second = prompt_of(f"{begin} goes on and on", known)
    sampled = [*first.tokens, *b" goes on"]
    assert list(second.tokens[: len(sampled)]) == sampled
    assert second.miss is Miss.NONE
    assert list(prompt_of(f"{begin} goes on and on").tokens[: len(sampled)]) != sampled


@pytest.mark.parametrize(("answer", "more"), [(" go", "es on"), (" goes ", " on")])
def test_where_no_word_ends_the_text_is_tokenised_as_a_whole(answer: str, more: str) -> None:
    text = f"the tale{answer}{more}"
    known = said(prompt_of("the tale"), answer)
    assert prompt_of(text, known).tokens == prompt_of(text).tokens


def test_other_text_than_the_sessions_is_a_miss() -> None:
    known = said(prompt_of("the tale"), " goes on")
    assert prompt_of("a tale goes on and on", known).miss is Miss.MESSAGES_CHANGED


def test_ids_stay_as_they_are_whatever_is_known_of_their_text() -> None:
    known = said(prompt_of("the tale"), " goes on")
    ids = tuple(b"the tale goes on")
    assert tuple(prompt_of(ids, known).tokens) == ids
    assert prompt_of(ids).spans[0].text == "the tale goes on"


def test_control_among_ids_is_control() -> None:
    text = "<|im_start|>user\nHi<|im_end|>\n"
    prompt = prompt_of(text)
    assert prompt_of(tuple(prompt.tokens)).spans == prompt.spans


def test_all_of_it_is_shared_with_what_comes_next() -> None:
    prompt = prompt_of("the tale")
    assert (prompt.body, prompt.generation_prompt()) == (len(prompt), "")
    assert prompt.before_answer().tokens == prompt.tokens


@pytest.mark.parametrize("nothing", ["", ()])
def test_nothing_is_no_prompt(nothing: str | tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompt_of(nothing)
    assert refused.value.param == "prompt"
