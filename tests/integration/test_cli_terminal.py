"""Commands as they are typed: at a terminal, with its keys."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import define, field
from click.testing import CliRunner

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.cli import main
from agentcache.cli.progress import progress_bar
from tests.servers import SECONDS, Server, served
from tests.tiny_models import tiny_llama

CTRL_C, CTRL_D = "\x03", "\x04"
# What a terminal does: a session of its own, with its standard input for the keyboard.
# Who starts tests in the background has them ignore Ctrl-C, and all that they start.
ATTACHED = (
    "import fcntl, os, signal, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from agentcache.cli import main; sys.argv[0] = 'agentcache'; main()"
)


@define(eq=False)
class Terminal:
    """A command at a terminal of its own."""

    process: "subprocess.Popen[bytes]"
    keyboard: int
    _ahead: str = field(default="", init=False)

    def type(self, keys: str) -> None:
        os.write(self.keyboard, keys.encode())

    def until(self, pattern: str) -> str:
        """Read on until `pattern` comes; returns what came up to its end."""
        while (found := re.search(pattern, self._ahead)) is None:
            assert self._read(), f"it ended before {pattern!r} came: {self._ahead!r}"
        told, self._ahead = self._ahead[: found.end()], self._ahead[found.end() :]
        return told

    def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        while self._read():
            pass
        return self.process.wait(SECONDS)

    def rest(self) -> str:
        """What was written after that."""
        return self._ahead

    def _read(self) -> bool:
        ready, _, _ = select.select([self.keyboard], [], [], SECONDS)
        assert ready, self._ahead
        try:
            piece = os.read(self.keyboard, 4096)
        except OSError:  # nobody has the other side any more
            return False
        self._ahead += piece.decode(errors="replace")
        return bool(piece)


@contextmanager
def terminal(*words: object) -> Iterator[Terminal]:
    keyboard, screen = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ATTACHED, *map(str, words)],
        stdin=screen,
        stdout=screen,
        stderr=screen,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(screen)
    try:
        yield Terminal(process, keyboard)
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its greedy answers go on for very long."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    return tiny_llama(folder, seed=1, context=500_000, eos_token_id=1)


@pytest.fixture(params=["alone", "with a server"])
def chat(
    request: pytest.FixtureRequest, model: Path, tmp_path: Path
) -> Iterator[tuple[Terminal, Server | None]]:
    with ExitStack() as stack:
        server = None
        if request.param == "with a server":
            server = stack.enter_context(served(tmp_path, model))
        words = ("chat", "ann", "--home", tmp_path, "--model", model, "--temperature", "0")
        yield stack.enter_context(terminal(*words)), server


class TestChat:
    def test_ctrl_c_stops_an_answer_and_not_the_chat_and_ctrl_d_ends_it(
        self, chat: tuple[Terminal, Server | None], tmp_path: Path
    ) -> None:
        at, server = chat
        for _ in range(2):
            at.until("> ")
            at.type("Tell me all\r")
            at.until(r"Tell me all\r\n")
            at.until(r"[^\r\n]")  # the answer has begun
            at.type(CTRL_C)
            assert "Traceback" not in at.until("stopped")
        at.until("> ")
        at.type(CTRL_D)
        assert at.ended() == 0
        if server is not None:
            deadline = time.monotonic() + SECONDS
            while _cancelled(server) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert _cancelled(server) == 2
            server.stop()
        sessions = SqliteSessionStore.open(tmp_path / "catalogue.sqlite3")
        assert "ann" not in [one.name for one in sessions.load().sessions]  # no whole answer
        sessions.close()

    def test_ctrl_c_at_the_prompt_ends_the_chat_in_order(
        self, chat: tuple[Terminal, Server | None]
    ) -> None:
        at, _ = chat
        at.until("> ")
        at.type(CTRL_C)
        assert at.ended() == 0
        assert "Traceback" not in at.rest()


def _cancelled(server: Server) -> float:
    """Turns that were cut off, before they got their place or after."""
    before = server.metric("refused_total", reason="cancelled")
    return before + server.metric("turns_total", finish="cancelled")


class TestProgress:
    @pytest.fixture(autouse=True)
    def _at_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")

    def test_a_model_that_is_fetched_is_shown_by_stages_and_gone_at_the_end(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress_bar("some/model") as progress:
            progress(10, 100, "downloading")
            progress(100, 100, "downloading")
            progress(1, None, "converting")
        told = capsys.readouterr()
        assert told.out == ""
        assert "downloading some/model" in told.err
        assert "converting some/model" in told.err
        assert "100/100 bytes" in told.err
        assert told.err.endswith(("\x1b[2K", "\r\x1b[1A\x1b[2K", "\x1b[1A\x1b[2K"))

    def test_nothing_is_shown_when_there_is_nothing_to_do(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress_bar("some/model"):
            pass
        assert capsys.readouterr().err == ""

    def test_what_goes_wrong_leaves_no_bar_behind(self, capsys: pytest.CaptureFixture[str]) -> None:
        def interrupted() -> None:
            with progress_bar("some/model") as progress:
                progress(10, 100, "downloading")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert capsys.readouterr().err.endswith("\x1b[2K")


@pytest.mark.parametrize(("value", "coloured"), [("", True), ("1", False)])
def test_no_color_is_heeded(tmp_path: Path, value: str, coloured: bool) -> None:
    words = ["doctor", "--home", str(tmp_path / "home")]
    told = CliRunner().invoke(main, words, color=True, env={"NO_COLOR": value})
    assert ("\x1b[" in told.stdout) is coloured
