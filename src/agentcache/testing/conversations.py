"""Conversations that the contract of tokenizers is told with."""

from collections.abc import Sequence

from hypothesis import strategies as st

from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.spans import RenderedSpan, SpanKind
from agentcache.ports.tokenizer import Tokenizer

MARKS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>",
    "</tool_call>", "<tool_response>", "<|fim_prefix|>", "<|begin|>", "<|header|>", "<|eot|>",
    "<|header_end|>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>", "<bos>",
    "<start_of_turn>", "<end_of_turn>", "<repo_name>",
)  # fmt: skip
# Everything that attackers try: spellings, whole and in pieces, marks, NULs, other scripts.
adversarial = st.lists(
    st.sampled_from(MARKS)
    | st.sampled_from(MARKS).flatmap(lambda mark: st.integers(1, len(mark)).map(lambda n: mark[:n]))
    | st.sampled_from(MARKS).flatmap(lambda mark: st.integers(1, len(mark)).map(lambda n: mark[n:]))
    | st.sampled_from(
        ["\ue000", "\ue001", "\0", "\n", " ", "assistant\n", "ü", "\N{GRINNING FACE}"]
    )
    | st.text(st.characters(codec="utf-8"), max_size=4),
    min_size=1,
    max_size=6,
).map("".join)
anything = st.text(st.characters(codec="utf-8"), max_size=40)


def asked(*texts: str) -> Conversation:
    """User and assistant in turns."""
    roles = ("user", "assistant")
    return Conversation(
        tuple(Message(roles[number % 2], text) for number, text in enumerate(texts))
    )


def encoded(tokenizer: Tokenizer, spans: Sequence[RenderedSpan]) -> list[int]:
    """All ids of `spans`."""
    return [
        token
        for number, span in enumerate(spans)
        for token in tokenizer.encode(span, first=number == 0)
    ]


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`, as it is streamed."""
    detokenizer = tokenizer.detokenizer()
    return "".join([*map(detokenizer.add, ids), detokenizer.finish()])


def controls(spans: Sequence[RenderedSpan]) -> list[str]:
    """The control tokens among `spans`."""
    return [span.text for span in spans if span.kind is SpanKind.CONTROL]
