"""/v1/completions with the openai package over the whole service."""

from typing import Any

import openai
import pytest

from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.domain.spans import RenderedSpan, SpanKind
from tests.integration.test_http_service import sdk
from tests.whole_service import whole_service

pytestmark = pytest.mark.anyio
SAID = "Once upon a time, "
THINK, IM_END = (
    MemoryTokenizer().encode(RenderedSpan(SpanKind.CONTROL, "", text))[0]
    for text in ("<think>", "<|im_end|>")
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def asking(**fields: Any) -> dict[str, Any]:
    return {"model": "memory", "prompt": SAID, "max_tokens": 40, "temperature": 0} | fields


async def completed(**fields: Any) -> Any:
    with whole_service(end_rate=0) as whole:
        async with sdk(whole.service) as client:
            return await client.completions.create(**asking(**fields))


async def refused(**fields: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        await completed(**fields)
    return caught.value


async def streamed(client: Any, **fields: Any) -> list[Any]:
    stream = await client.completions.create(**asking(stream=True, **fields))
    return [chunk async for chunk in stream]


def only(token: int) -> dict[str, Any]:
    """What lets nothing but `token` be sampled."""
    return {"logit_bias": {str(one): -100 for one in range(VOCABULARY) if one != token}}


def ids_of(text: str) -> list[int]:
    return list(MemoryTokenizer().encode(RenderedSpan(SpanKind.CONTENT, "user", text)))


async def test_a_stream_adds_up_to_what_a_whole_completion_says() -> None:
    with whole_service(end_rate=0) as whole:
        async with sdk(whole.service) as client:
            completion = await client.completions.create(**asking())
            chunks = await streamed(client, stream_options={"include_usage": True})
    *said, last = chunks
    assert "".join(chunk.choices[0].text for chunk in said) == completion.choices[0].text != ""
    assert [c.choices[0].finish_reason for c in said if c.choices[0].finish_reason] == ["length"]
    assert last.choices == []
    assert last.usage.completion_tokens == completion.usage.completion_tokens == 40
    assert completion.usage.prompt_tokens == len(ids_of(SAID))
    assert completion.choices[0].finish_reason == "length"


async def test_a_text_that_goes_on_is_served_from_the_cache() -> None:
    prompt = SAID * 20
    with whole_service(end_rate=0) as whole:
        async with sdk(whole.service) as client:
            first = await client.completions.create(**asking(prompt=prompt))
            more = prompt + first.choices[0].text + " And then."
            second = await client.completions.create(**asking(prompt=more))
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1


async def test_an_agents_text_goes_on_from_its_sampled_ids() -> None:
    headers = {"X-Agent-ID": "ann"}
    with whole_service(end_rate=0) as whole:
        async with sdk(whole.service) as client:
            # letters: the tokenizer would choose pairs of them
            first = await client.completions.create(**asking(max_tokens=60), extra_headers=headers)
            more = SAID + first.choices[0].text.rstrip() + " and then."
            second = await client.completions.create(**asking(prompt=more), extra_headers=headers)
    assert first.choices[0].text[-1:].strip()
    old = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.prompt_tokens_details.cached_tokens == old - 1


async def test_the_default_is_sixteen_tokens() -> None:
    completion = await completed(max_tokens=openai.omit)
    assert completion.usage.completion_tokens == 16


async def test_nothing_is_said_when_no_token_is_asked_for() -> None:
    completion = await completed(max_tokens=0, echo=True)
    assert completion.choices[0].text == SAID
    assert completion.usage.completion_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_is_the_prompt_before_its_completion(stream: bool) -> None:
    with whole_service(end_rate=0) as whole:
        async with sdk(whole.service) as client:
            plain = (await client.completions.create(**asking())).choices[0].text
            if stream:
                chunks = await streamed(client, echo=True)
                echoed = "".join(chunk.choices[0].text for chunk in chunks)
            else:
                echoed = (await client.completions.create(**asking(echo=True))).choices[0].text
    assert echoed == SAID + plain


async def test_token_ids_are_taken_as_they_are() -> None:
    with whole_service(end_rate=0) as whole:
        async with sdk(whole.service) as client:
            asked = list(SAID.encode())  # one id a byte: never what the tokenizer would choose
            letters = await client.completions.create(**asking(prompt=asked, echo=True))
            again = await client.completions.create(**asking(prompt=[asked]))
            text = await client.completions.create(**asking())
            same = await client.completions.create(**asking(prompt=ids_of(SAID)))
    assert letters.usage.prompt_tokens == len(SAID)
    assert letters.choices[0].text == SAID + again.choices[0].text
    assert again.choices[0].text != text.choices[0].text == same.choices[0].text
    assert again.usage.prompt_tokens_details.cached_tokens == len(SAID) - 1


async def test_control_tokens_can_be_spelled_in_the_text() -> None:
    completion = await completed(prompt="<|im_start|>user\nHi<|im_end|>")
    assert completion.usage.prompt_tokens == 2 + len(ids_of("user\nHi"))
    assert (await completed(prompt=[IM_END, IM_END])).usage.prompt_tokens == 2


async def test_what_looks_like_a_thought_is_text() -> None:
    with whole_service(end_rate=0) as whole:
        async with sdk(whole.service) as client:
            completion = await client.completions.create(**asking(**only(THINK), max_tokens=2))
    assert completion.choices[0].text == "<think><think>"


async def test_logprobs_have_the_legacy_shape() -> None:
    choice = (await completed(logprobs=3)).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 40
    assert all(len(top) <= 3 for top in told.top_logprobs)
    parts, whole = zip(told.text_offset, told.tokens, strict=True), SAID + choice.text
    assert told.text_offset[0] == len(SAID)
    assert all(whole.startswith(part, at) for at, part in parts)


async def test_offsets_count_from_the_beginning_of_a_prompt_of_token_ids_too() -> None:
    told = (await completed(prompt=list("é, b".encode()), logprobs=0)).choices[0].logprobs
    assert told.text_offset[0] == len("é, b")


async def test_offsets_of_a_stream_count_from_the_beginning_of_its_prompt() -> None:
    with whole_service(end_rate=0) as whole:
        async with sdk(whole.service) as client:
            whole_one = await client.completions.create(**asking(logprobs=0))
            chunks = await streamed(client, logprobs=0)
    found = [at for c in chunks for at in (c.choices[0].logprobs or _none()).text_offset]
    assert found == whole_one.choices[0].logprobs.text_offset


def _none() -> Any:
    return openai.types.completion_choice.Logprobs(text_offset=[])


async def test_sampling_is_as_it_is_asked_for() -> None:
    greedy = (await completed()).choices[0].text
    for fields in (
        {"temperature": 2, "seed": 1},
        {"frequency_penalty": 2},
        {"presence_penalty": 2},
        only(97),
    ):
        assert (await completed(**fields)).choices[0].text != greedy, fields
    first, second = [await completed(temperature=2, seed=2**70) for _ in range(2)]
    assert first.choices[0].text == second.choices[0].text


async def test_a_stop_sequence_ends_it_and_is_not_told() -> None:
    text = (await completed()).choices[0].text
    stop = text[5:8]
    choice = (await completed(stop=stop)).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")


async def test_an_end_token_ends_it() -> None:
    choice = (await completed(**only(END))).choices[0]
    assert (choice.text, choice.finish_reason) == ("", "stop")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [999_999]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert (await refused(**fields)).param == param


async def test_a_prompt_longer_than_the_context_says_so() -> None:
    error = await refused(prompt="a b" * 9000)
    assert error.code == "context_length_exceeded"
