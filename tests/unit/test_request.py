"""What may be asked for, and what is refused before it is queued."""

import math

import pytest

from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import MAX_AGENT_NAME, Identity, Prompt, Sampling, TurnRequest
from agentcache.domain.spans import Span, SpanKind, concatenated
from agentcache.domain.tokens import tokens


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", 100),
        ("top_p", 0),
        ("top_p", 1),
        ("top_k", 0),
        ("top_k", 2**31),
        ("min_p", 1),
    ],
)
def test_sampling_may_go_to_its_bounds(field: str, value: float) -> None:
    assert getattr(Sampling(**{field: value}), field) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 100.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("min_p", -math.inf),
    ],
)
def test_sampling_beyond_its_bounds_names_the_parameter(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} must be between") as refusal:
        Sampling(**{field: value})  # type: ignore[arg-type]
    assert refusal.value.param == field


@pytest.mark.parametrize("name", ["", "x" * (MAX_AGENT_NAME + 1)])
def test_an_agents_name_is_neither_empty_nor_endless(name: str) -> None:
    with pytest.raises(InvalidRequest, match="256 characters") as refusal:
        Identity(name)
    assert refusal.value.param == "agent"


@pytest.mark.parametrize("name", [None, "x", "x" * MAX_AGENT_NAME])
def test_other_names_and_none_are_fine(name: str | None) -> None:
    assert Identity(name).name == name


def test_a_prompt_is_as_long_as_its_tokens() -> None:
    assert len(Prompt((), tokens([1, 2, 3]))) == 3


def test_a_turn_cannot_say_less_than_nothing() -> None:
    with pytest.raises(InvalidRequest, match="at least 0") as refusal:
        _turn(-1)
    assert refusal.value.param == "max_tokens"


@pytest.mark.parametrize(("field", "wrong"), [("priority", 11), ("when_busy", "fight")])
def test_how_a_turn_waits_has_its_limits(field: str, wrong: object) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        TurnRequest("1", Identity(), b"root", Prompt((), tokens([1])), **{field: wrong})  # type: ignore[arg-type]
    assert refusal.value.param == field


def _spans(*lengths: int) -> tuple[Span, ...]:
    return tuple(Span(SpanKind.CONTENT, "user", "x", tokens([7] * one)) for one in lengths)


@pytest.mark.parametrize(
    ("body", "left"), [(0, [3, 4, 2]), (3, [3]), (5, [3, 4, 2]), (7, [3, 4]), (9, [3, 4, 2])]
)
def test_a_prompt_loses_its_generation_prompt_only_where_that_has_its_own_spans(
    body: int, left: list[int]
) -> None:
    spans = _spans(3, 4, 2)
    prompt = Prompt(spans, concatenated(spans), body=body).before_answer()
    assert [len(span.ids) for span in prompt.spans] == left
    assert len(prompt) == sum(left)


def test_a_turn_without_a_bound_says_as_much_as_fits() -> None:
    assert _turn(None).max_tokens is None
    assert _turn(1).max_tokens == 1


def _turn(max_tokens: int | None) -> TurnRequest:
    return TurnRequest("1", Identity(), b"root", Prompt((), tokens([1])), max_tokens=max_tokens)
