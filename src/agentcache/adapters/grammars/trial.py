"""Whether a grammar can be compiled at all, found out where it does no harm.

What llguidance spends on a grammar is bounded while an answer is sampled, but not while it is
compiled: a dozen patterns that a text has to fit at once take gigabytes, and then the process. So
each is compiled in another process first, over a vocabulary of bytes.
"""

import json
import re
import subprocess
import sys
import weakref
from pathlib import Path
from threading import Lock

from attrs import define, field

from agentcache.domain.errors import InvalidRequest

SECONDS = 2  # of the processor; the largest grammars that fit take one
NBYTES = 2**30  # of address space, a third of which the interpreter takes
_SCRIPT = Path(__file__).with_name("trial_process.py")
_COSTLY = ("allOf", "oneOf", "pattern", "patternProperties", "multipleOf", "maxLength", "maxItems")
_TOKEN_IDS = re.compile(r"<\[\d+\]>")
_A_TOKEN = "<[256]>"  # the one that there is


@define(eq=False)
class Trial:
    """Begins its process when it is first asked, and another one when that has ended."""

    _seconds: int = SECONDS
    _process: "subprocess.Popen[str] | None" = field(default=None, init=False)
    _lock: Lock = field(factory=Lock, init=False)

    def check(self, grammar: str) -> None:
        """Raise InvalidRequest for a grammar that is wrong, or takes too much. For any thread."""
        line = json.dumps(_TOKEN_IDS.sub(_A_TOKEN, grammar))
        with self._lock:
            process = self._running()
            answer = _asked(process, line)
            if not answer:
                process.kill()
                process.communicate()
                self._process = None
        if not answer:
            raise InvalidRequest(
                f"the schema cannot be used: it takes too much time or memory{_suspects(grammar)}"
            )
        if (problem := json.loads(answer)) is not None:
            raise InvalidRequest(f"the schema cannot be used: {first_line(problem)}")

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self._process = _begun(self._seconds)
            weakref.finalize(self, _end, self._process)
        return self._process


def _suspects(grammar: str) -> str:
    """Those keywords of the schemas in `grammar` that can cost much."""
    found = [word for word in _COSTLY if re.search(rf'"{word}\\*"\s*:', grammar)]
    return f" (what can cost much in it: {', '.join(found)})" if found else ""


def first_line(problem: str) -> str:
    """What follows in a problem of llguidance are the grammar and the answer."""
    return problem.partition("\n")[0][:300]


def _begun(seconds: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", str(_SCRIPT), str(seconds), str(NBYTES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is not for it: it ends when its input does
    )


def _asked(process: "subprocess.Popen[str]", line: str) -> str:
    """The answer; "" when the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
        process.communicate()
