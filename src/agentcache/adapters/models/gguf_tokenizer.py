"""The tokenizer of a GGUF, as the files that `transformers` reads.

A GGUF names the rule by which text is cut before merging; the rules are those of the models that
brought them, as llama.cpp lists them. Token types: ggml's docs/gguf.md.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

from attrs import frozen
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from agentcache.adapters.models.gguf_file import BadGguf, Value

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

T = TypeVar("T")


@frozen
class GgufTokenizer:
    """A tokenizer, the text of its special tokens, and the ids that config.json repeats."""

    tokenizer: Tokenizer
    named: Mapping[str, str]
    chat_template: str | None
    config_ids: dict[str, object]

    @classmethod
    def of(cls, metadata: Mapping[str, Value]) -> "GgufTokenizer":
        """Build it from `metadata`. Raises BadGguf for a kind that is not supported."""
        vocab = _Vocab.of(metadata)
        tokenizer, adds_bos = _build(vocab, metadata)
        tokenizer.add_tokens(vocab.added(_USER_DEFINED))
        tokenizer.add_special_tokens(vocab.added(_CONTROL))
        _add_ends(tokenizer, vocab, metadata, adds_bos)
        template = metadata.get("tokenizer.chat_template")
        return cls(
            tokenizer=tokenizer,
            named={
                f"{role}_token": vocab.tokens[token]
                for role, token in vocab.ids.items()
                if role in ("bos", "eos", "unk", "pad")
            },
            chat_template=template if isinstance(template, str) else None,
            config_ids=_config_ids(vocab),
        )

    def write(self, folder: Path, context: int) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            **self.named,
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n")


_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}


@frozen
class _Vocab:
    """The tokens by id, their types, and the ids of those that have a role."""

    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]

    @classmethod
    def of(cls, metadata: Mapping[str, Value]) -> "_Vocab":
        tokens = _listed(metadata, "tokenizer.ggml.tokens", str)
        types = _listed(metadata, "tokenizer.ggml.token_type", int)
        if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
            raise BadGguf("its vocabulary has duplicates, or not one type for each token")
        found = ((role, metadata.get(f"tokenizer.ggml.{key}")) for role, key in _ROLES.items())
        ids = {role: value for role, value in found if isinstance(value, int)}
        if any(not 0 <= value < len(tokens) for value in ids.values()):
            raise BadGguf("a special token's id is outside its vocabulary")
        return cls(tokens, types, ids)

    def table(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def added(self, kind: int) -> list[AddedToken]:
        return [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, its_kind in zip(self.tokens, self.types, strict=True)
            if its_kind == kind and token
        ]


def _listed(metadata: Mapping[str, Value], key: str, kind: type[T]) -> list[T]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise BadGguf(f"its {key} is missing or no list of {kind.__name__}")
    return cast(list[T], value)


def _config_ids(vocab: _Vocab) -> dict[str, object]:
    ends = list(
        dict.fromkeys(vocab.ids[role] for role in ("eos", "eot", "eom") if role in vocab.ids)
    )
    ids: dict[str, object] = {
        f"{role}_token_id": vocab.ids[role] for role in ("bos", "pad") if role in vocab.ids
    }
    if ends:
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return ids


def _build(vocab: _Vocab, metadata: Mapping[str, Value]) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether it begins each text with BOS unless the GGUF says otherwise."""
    match metadata.get("tokenizer.ggml.model"):
        case "gpt2":
            return _byte_level(vocab, metadata)
        case "llama":
            return _sentencepiece(vocab, metadata), True
        case other:
            raise BadGguf(
                f"its tokenizer {str(other)[:40]!r} is not supported (gpt2 and llama are)"
            )


@frozen
class _Cut:
    """How text is cut before merging. Without `step`, by the regex of GPT-2."""

    step: PreTokenizer | None = None
    gpt2_regex: bool = True
    ignore_merges: bool = False
    nfc: bool = False
    adds_bos: bool = False


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _cut(name: str) -> _Cut:
    match name:
        case "default" | "gpt-2":
            return _Cut()
        case "smollm":
            return _Cut(Digits(individual_digits=True))
        case "llama-bpe" | "llama3" | "llama-v3":
            return _Cut(Split(Regex(_LLAMA3), "isolated"), False, ignore_merges=True, adds_bos=True)
        case "qwen2":
            return _Cut(Split(Regex(_QWEN2), "isolated"), False, nfc=True)
        case _:
            raise BadGguf(f"its pre-tokenizer {name[:40]!r} is not supported")


def _byte_level(vocab: _Vocab, metadata: Mapping[str, Value]) -> tuple[Tokenizer, bool]:
    cut = _cut(str(metadata.get("tokenizer.ggml.pre", "default")))
    merges = [_pair(merge) for merge in _listed(metadata, "tokenizer.ggml.merges", str)]
    tokenizer = _bpe(vocab, merges, ignore_merges=cut.ignore_merges)
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    last = ByteLevel(add_prefix_space=False, use_regex=cut.gpt2_regex)
    tokenizer.pre_tokenizer = Steps([cut.step, last]) if cut.step else last
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, cut.adds_bos


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(vocab: _Vocab, metadata: Mapping[str, Value]) -> Tokenizer:
    """SentencePiece BPE: the better a piece's score, the earlier it is merged."""
    scores = _listed(metadata, "tokenizer.ggml.scores", float)
    if len(scores) != len(vocab.tokens) or "tokenizer.ggml.precompiled_charsmap" in metadata:
        raise BadGguf("its SentencePiece model has no score for each piece, or normalises text")
    tokenizer = _bpe(
        vocab,
        _merges_by_score(vocab.table(), scores),
        unk_token=vocab.tokens[vocab.ids.get("unk", 0)],
        fuse_unk=True,
        byte_fallback=True,
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    decode = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
        tokenizer.decoder = decoders.Sequence([*decode, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = replace
        tokenizer.decoder = decoders.Sequence(decode)
    return tokenizer


def _merges_by_score(table: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    ranked: list[tuple[float, int, int]] = []
    names = list(table)
    for piece, number in table.items():
        for cut in range(1, len(piece)):
            left, right = table.get(piece[:cut]), table.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[number], left, right))
    return [(names[left], names[right]) for _, left, right in sorted(ranked)]


def _bpe(
    vocab: _Vocab,
    merges: list[tuple[str, str]],
    *,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> Tokenizer:
    try:
        model = models.BPE(
            vocab.table(),
            merges,
            unk_token=unk_token,
            fuse_unk=fuse_unk,
            byte_fallback=byte_fallback,
            ignore_merges=ignore_merges,
        )
    # The library raises bare Exception for merges of tokens that are not in the vocabulary.
    except Exception as error:
        raise BadGguf(f"its merges and its vocabulary do not fit: {error}") from error
    return Tokenizer(model)


def _add_ends(
    tokenizer: Tokenizer, vocab: _Vocab, metadata: Mapping[str, Value], adds_bos: bool
) -> None:
    """Let `tokenizer` put BOS before and EOS after a text, where the GGUF asks for it."""
    roles = {
        "bos": metadata.get("tokenizer.ggml.add_bos_token", adds_bos),
        "eos": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    ends = {
        role: vocab.tokens[vocab.ids[role]] for role in roles if roles[role] and role in vocab.ids
    }
    if not ends:
        return
    # One piece a token: a template written as text would stumble over a token with a space or `:`.
    before, after = ([ends[role]] if role in ends else [] for role in ("bos", "eos"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{one}:1" for one in before), "$B:1", *after],
        special_tokens=[(ends[role], vocab.ids[role]) for role in ends],
    )
