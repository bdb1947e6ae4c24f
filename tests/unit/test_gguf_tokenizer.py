"""Tokenizers built from GGUF metadata give the ids that the models were trained with."""

import io
from functools import cache

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.models.gguf_file import BadGguf, Value
from agentcache.adapters.models.gguf_tokenizer import GgufTokenizer
from tests import reference_bpe
from tests.tiny_gguf import MERGES, TOKENS, metadata

TABLE = {token: number for number, token in enumerate(TOKENS)}
TRICKY = st.text(
    st.one_of(
        st.sampled_from("hello wor12\n\r\t '.,!st re LL 'dD\u00a0\u2003<|>"),
        st.sampled_from("éß日本語Ⅷ½٣🙂\u200d\u0301"),
        st.characters(codec="utf-8"),
    ),
    max_size=40,
)


def tiny(**changes: Value) -> GgufTokenizer:
    renamed = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return GgufTokenizer.of({**metadata(), **renamed})


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
@given(text=TRICKY)
def test_byte_level_bpe_gives_the_ids_of_the_definition(pre: str, text: str) -> None:
    tokenizer = _tiny(pre).tokenizer
    tokenizer.encode_special_tokens = True  # the definition knows no control tokens
    if tokenizer.normalizer:
        text = tokenizer.normalizer.normalize_str(text)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == reference_bpe.encode(text, pre, TABLE, MERGES)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@cache
def _tiny(pre: str) -> GgufTokenizer:
    return tiny(pre=pre)


def test_smollm_cuts_numbers_into_digits() -> None:
    assert tiny(pre="smollm").tokenizer.encode("12").tokens == ["1", "2"]
    assert tiny(pre="gpt-2").tokenizer.encode("12").tokens == ["12"]


def test_control_tokens_are_single_tokens_and_are_special() -> None:
    encoding = tiny().tokenizer.encode("<|im_start|>hello<|im_end|>")
    assert encoding.tokens == ["<|im_start|>", "hello", "<|im_end|>"]
    assert tiny().tokenizer.decode(encoding.ids) == "hello"


def test_user_defined_tokens_are_single_tokens_and_are_text() -> None:
    types: Value = [3, 4, 3] + [1] * (len(TOKENS) - 3)
    tokenizer = tiny(token_type=types).tokenizer
    encoding = tokenizer.encode("<|im_start|>hello<|im_end|>")
    assert encoding.tokens == ["<|im_start|>", "hello", "<|im_end|>"]
    assert tokenizer.decode(encoding.ids) == "<|im_start|>hello"


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({"pre": "smollm"}, [TABLE["hello"]]),
        ({"pre": "llama-bpe"}, [1, TABLE["hello"]]),
        ({"pre": "llama-bpe", "add_bos_token": False}, [TABLE["hello"]]),
        ({"add_bos_token": True, "add_eos_token": True}, [1, TABLE["hello"], 2]),
    ],
)
def test_texts_begin_and_end_as_the_metadata_say(changes: dict[str, Value], ids: list[int]) -> None:
    assert tiny(**changes).tokenizer.encode("hello").ids == ids


def test_a_whole_word_of_llama_3_needs_no_merges() -> None:
    assert tiny(pre="llama-bpe", merges=["h e"]).tokenizer.encode("hello").tokens[1:] == ["hello"]
    assert tiny(pre="qwen2", merges=["h e"]).tokenizer.encode("hello").tokens[0] == "he"


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model as Llama 2 has it: byte fallback, no normalisation."""
    text = (
        "The quick brown fox jumps over the lazy dog. hello world, hello there; 12 34 567.\n"
        "  Leading spaces and   runs of spaces stay. Don't stop: can't, won't, shan't!\n"
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines() * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _of_pieces(pieces: sentencepiece.SentencePieceProcessor, **changes: Value) -> GgufTokenizer:
    ids = range(pieces.get_piece_size())
    kinds = (
        (pieces.is_unknown, 2),
        (pieces.is_control, 3),
        (pieces.is_byte, 6),
        (lambda _: True, 1),
    )
    return tiny(
        model="llama",
        tokens=[pieces.id_to_piece(one) for one in ids],
        scores=[pieces.get_score(one) for one in ids],
        token_type=[next(kind for holds, kind in kinds if holds(one)) for one in ids],
        unknown_token_id=0,
        **changes,
    )


@given(text=TRICKY.filter(lambda text: "\u2581" not in text and "\0" not in text))
def test_sentencepiece_models_give_the_ids_of_sentencepiece(
    pieces: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    tokenizer = _of_pieces(pieces).tokenizer
    ids = tokenizer.encode(text).ids
    assert ids == [1, *pieces.encode(text)]
    assert tokenizer.decode(ids) == text


def test_a_sentencepiece_model_without_the_leading_space_adds_none(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    tokenizer = _of_pieces(pieces, add_space_prefix=False).tokenizer
    encoding = tokenizer.encode("hello hello", add_special_tokens=False)
    assert encoding.tokens[0].startswith("h")
    assert tokenizer.decode(encoding.ids) == "hello hello"


def test_a_sentencepiece_model_that_normalises_is_refused(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    with pytest.raises(BadGguf, match="normalises"):
        _of_pieces(pieces, precompiled_charsmap=[1, 2])
