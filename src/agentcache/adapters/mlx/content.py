"""Encodes content: text in which no control token is ever found, whatever it spells."""

import re
from collections.abc import Mapping
from copy import deepcopy

from attrs import frozen
from tokenizers import AddedToken, Tokenizer

from agentcache.domain.tokens import Tokens, tokens

_UNK = re.compile(r"\W*unk(nown)?\W*", re.IGNORECASE)
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@frozen(eq=False)
class ContentEncoder:
    """The model of a tokenizer without its control tokens.

    `leading` is for text at the very beginning of a prompt, `plain` for all other text: some
    tokenizers put a space before the former. `ids` maps what differs from the original ids.
    `control` are the ids that content must never have, `spelled` finds their spellings.
    """

    leading: Tokenizer
    plain: Tokenizer
    ids: Mapping[int, int]
    control: frozenset[int]
    spelled: re.Pattern[str] | None

    @classmethod
    def of(
        cls, backend: Tokenizer, text_tokens: Mapping[int, AddedToken], control: Mapping[int, str]
    ) -> "ContentEncoder":
        """Share the model of `backend`; of its added tokens, know only `text_tokens`."""
        leading = _bare(backend, text_tokens)
        ids = {
            found: token
            for token, added in text_tokens.items()
            if (found := leading.token_to_id(added.content)) is not None and found != token
        }
        later = _never_first(backend)
        plain = leading if later is None else _bare(later, text_tokens)
        spellings = sorted(filter(None, control.values()), key=len, reverse=True)
        spelled = re.compile("|".join(map(re.escape, spellings))) if spellings else None
        # <unk> stands for what the vocabulary lacks and steers nothing.
        steering = frozenset(token for token, text in control.items() if not _UNK.fullmatch(text))
        return cls(leading, plain, ids, steering, spelled)

    def encode(self, text: str, first: bool = False) -> "Tokens[int]":
        """The ids of `text`, none of them in `control`. `first`: it begins the prompt."""
        encoder = self.leading if first else self.plain
        ids = self._encode(encoder, text)
        if self.control.isdisjoint(ids):
            return tokens(ids)
        return tokens(self._apart(encoder, text))

    def _encode(self, encoder: Tokenizer, text: str) -> list[int]:
        ids = encoder.encode(text, add_special_tokens=False).ids
        return [self.ids.get(token, token) for token in ids] if self.ids else ids

    def _apart(self, encoder: Tokenizer, text: str) -> list[int]:
        """Vocabularies that hold a spelling as an ordinary piece too: cut each one in two."""
        cuts = [match.start() + 1 for match in self.spelled.finditer(text)] if self.spelled else []
        ids: list[int] = []
        for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            found = self._encode(encoder if start == 0 else self.plain, text[start:stop])
            ids += found if self.control.isdisjoint(found) else self._one_by_one(text[start:stop])
        return ids

    def _one_by_one(self, text: str) -> list[int]:
        """The last resort: characters that have no clean encoding of their own are replaced."""
        unknown = self._encode(self.plain, _UNKNOWN)
        found = (self._encode(self.plain, char) for char in text)
        clean = (ids if self.control.isdisjoint(ids) else unknown for ids in found)
        return [token for ids in clean for token in ids if token not in self.control]


def _bare(backend: Tokenizer, text_tokens: Mapping[int, AddedToken]) -> Tokenizer:
    bare = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer"):
        if (step := getattr(backend, part)) is not None:
            setattr(bare, part, step)
    bare.add_tokens(list(text_tokens.values()))
    return bare


def _never_first(backend: Tokenizer) -> Tokenizer | None:
    """A tokenizer that puts no space before a text, where `backend` does so at the beginning."""
    step = backend.pre_tokenizer
    if step is None:
        return None
    first, never = b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'
    state = step.__getstate__()
    if first not in state:
        return None
    changed = deepcopy(step)
    changed.__setstate__(state.replace(first, never))
    copy = Tokenizer(backend.model)
    if backend.normalizer is not None:
        copy.normalizer = backend.normalizer
    copy.pre_tokenizer = changed
    return copy
