"""Tries grammars out, in a process of its own that may come to harm. Run as a script.

Each is a line of JSON on standard input; the answer is a line: null, or what is wrong with it.
The vocabulary is the bytes, and the control token `TOKEN`. Each may take so many seconds of the
processor, and the process so many bytes, as its arguments say; beyond that the system ends it.
"""

import json
import math
import resource
import sys
from contextlib import suppress

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

TOKEN = 256


class _Bytes:
    """What TokenizerWrapper looks for."""

    eos_token_id = TOKEN
    bos_token_id = None
    special_token_ids = (TOKEN,)
    tokens = (*(bytes([n]) for n in range(TOKEN)), b"<end>")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def problem_of(tokenizer: LLTokenizer, grammar: str) -> str | None:
    """What is wrong with `grammar`, if anything."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error() or None


def main(seconds: int, nbytes: int) -> None:
    """Answer until there are no more lines."""
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()), eos_token=TOKEN)
    with suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        sys.stdout.write(json.dumps(problem_of(tokenizer, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
