"""Byte-level BPE written for clarity, with llama.cpp's regexes: what GGUF tokenizers must equal."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import regex

# One regex after the other cuts the pieces that the one before left (llama.cpp's llama-vocab.cpp).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CUTS = {
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "llama-bpe": (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "qwen2": (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}


def encode(text: str, cut: str, table: Mapping[str, int], merges: Sequence[str]) -> list[int]:
    """The ids of `text`; bytes that the vocabulary lacks are dropped, as they are there."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    pieces = [text]
    for pattern in CUTS[cut]:
        pieces = [part for piece in pieces for part in _cut(pattern, piece)]
    tokens = [token for piece in pieces for token in _merge(piece, ranks)]
    return [table[token] for token in tokens if token in table]


def _cut(pattern: str, text: str) -> list[str]:
    parts, at = [], 0
    for match in regex.finditer(pattern, text):
        parts += [text[at : match.start()], match.group()]
        at = match.end()
    return [part for part in (*parts, text[at:]) if part]


def _merge(piece: str, ranks: Mapping[str, int]) -> list[str]:
    parts = [_BYTES[byte] for byte in piece.encode()]
    while len(parts) > 1:
        pairs = [f"{left} {right}" for left, right in pairwise(parts)]
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_characters() -> list[str]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spelled, others = [], 0
    for byte in range(256):
        spelled.append(chr(byte if byte in printable else 256 + others))
        others += byte not in printable
    return spelled


_BYTES = _byte_characters()
