"""agentcache agents: through a server, and over a home that nobody has."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from click.testing import CliRunner

from agentcache.cli import main
from tests.servers import Server, served
from tests.tiny_models import tiny_llama

COMMAND = [sys.executable, "-c", "from agentcache.cli import main; main()"]
STRANGE = "ann 😀 \x1b[31mred\n2nd"


@frozen
class Done:
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@frozen
class Shell:
    """Commands over one home; `in_process` where they only talk to a server."""

    home: Path
    model: Path

    in_process: bool = False

    def run(self, *arguments: object) -> "Done":
        command, *rest = map(str, arguments)
        words = ["agents", command, "--home", str(self.home), "--model", str(self.model), *rest]
        if self.in_process:
            told = CliRunner().invoke(main, words, env={"COLUMNS": "200"})
            return Done(told.exit_code, told.stdout, told.stderr)
        done = subprocess.run(
            [*COMMAND, *words],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            env=os.environ | {"COLUMNS": "200"},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def json(self, *arguments: object) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def names(self) -> list[str]:
        return [one["name"] for one in self.json("ls")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", seed=1)


def say(server: Server, name: str, *texts: str) -> None:
    messages = []
    for text in texts:
        messages.append({"role": "user", "content": text})
        body = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0}
        headers = {"x-agent-id": name.encode()}
        answer = server.client.post("/v1/chat/completions", json=body, headers=headers)
        said = answer.raise_for_status().json()["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": said})


@pytest.fixture(scope="module")
def shells(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, Shell]:
    """The commands, with a server and then without, each in a home where ada and bob live."""
    folder = tmp_path_factory.mktemp("homes")
    return Shell(folder / "served", model, in_process=True), Shell(folder / "resting", model)


@pytest.fixture(scope="module")
def asking(shells: tuple[Shell, Shell]) -> Iterator[Shell]:
    """Commands that ask a server."""
    with served(shells[0].home, shells[0].model) as server:
        say(server, "ada", "one", "two", "three")
        say(server, "bob", "one")
        yield shells[0]


@pytest.fixture(scope="module")
def alone(shells: tuple[Shell, Shell]) -> Shell:
    """Commands over a home that nobody has."""
    with served(shells[1].home, shells[1].model) as server:
        say(server, "ada", "one", "two", "three")
        say(server, "bob", "one")
    return shells[1]


@pytest.fixture(params=["asking", "alone"])
def shell(request: pytest.FixtureRequest) -> Shell:
    found: Shell = request.getfixturevalue(request.param)
    return found


def test_agents_are_listed_and_shown(shell: Shell) -> None:
    assert {"ada", "bob"} <= set(shell.names())
    shown = shell.json("show", "ada", "--messages")
    assert (shown["turns"], shown["messages"], len(shown["history"])) == (3, 6, 6)
    assert "ada" in shell.run("ls").stdout
    assert "one" in shell.run("show", "ada", "--messages").stdout


def test_an_agent_is_forked_rewound_pinned_and_removed(shell: Shell) -> None:
    assert shell.json("fork", "ada", "eve")["parent"] == "ada"
    assert shell.json("rewind", "eve", 2)["turns"] == 1
    assert shell.json("pin", "eve", "--ttl", 1000)["pinned"]
    unpinned = shell.json("unpin", "eve")
    assert (unpinned["pinned"], unpinned["expires"]) == (False, None)
    assert shell.json("rm", "eve") == {"name": "eve", "deleted": True}
    assert "eve" not in shell.names()
    assert shell.json("show", "ada")["turns"] == 3


def test_an_agent_is_exported_and_imported(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "ada.agent"
    told = shell.json("export", "ada", file)
    assert told["bytes"] == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o600
    assert shell.run("export", "ada", file).returncode == 2
    refused = shell.run("import", file)
    assert (refused.returncode, "already" in refused.stderr) == (1, True)
    assert shell.json("import", file, "--replace")["turns"] == 3
    assert shell.json("import", file, "--as", "twin")["turns"] == 3
    assert shell.json("rm", "twin")["deleted"]


def test_a_file_that_does_not_add_up_is_refused(asking: Shell, tmp_path: Path) -> None:
    file = tmp_path / "ada.agent"
    asking.json("export", "ada", file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused = asking.run("import", file, "--as", "x")
    assert (refused.returncode, "cannot be imported" in refused.stderr) == (1, True)
    assert "x" not in asking.names()


def test_misuse_is_told_without_a_traceback(asking: Shell, tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "such" / "folder" / "ada"
    for words, status, told in (
        (["ls", "--model", ""], 2, "model is empty"),
        (["export", "ada", "-"], 2, "not to standard output"),
        (["export", "ada", nowhere], 1, f"{nowhere}: No such file"),
        (["import", tmp_path], 2, "is a directory"),
        (["rewind", "ada", 0], 2, "0 is not in the range"),
    ):
        done = asking.run(*words)
        assert (done.returncode, told in done.stderr.replace("\n", "")) == (status, True), done
        assert done.stdout == ""
        assert "Traceback" not in done.stderr


def test_an_unknown_agent_is_one_line_and_status_1(asking: Shell) -> None:
    done = asking.run("show", "nobody")
    assert done.returncode == 1
    assert "there is no agent called 'nobody'" in done.stderr
    assert "Traceback" not in done.stderr


def test_names_cannot_steer_the_terminal(asking: Shell) -> None:
    asking.json("fork", "bob", STRANGE)
    for told in (asking.run("ls"), asking.run("show", STRANGE), asking.run("rm", STRANGE)):
        assert told.returncode == 0, told.stderr
        assert "\x1b" not in told.stdout
        assert "😀" in told.stdout
        assert "\\x1b[31mred\\n2nd" in told.stdout


def test_an_agent_of_one_home_goes_on_in_another_from_its_rows(
    alone: Shell, tmp_path: Path
) -> None:
    file, other = tmp_path / "ada.agent", Shell(tmp_path / "other", alone.model)
    alone.json("export", "ada", file)
    history = alone.json("show", "ada", "--messages")["history"]
    assert other.json("import", file)["turns"] == 3
    with served(other.home, other.model) as server:
        messages = [*history, {"role": "user", "content": "four"}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 4}
        answer = server.client.post(
            "/v1/chat/completions", json=body, headers={"x-agent-id": "ada"}
        )
        usage = answer.raise_for_status().json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] // 2


def test_a_home_that_is_not_there_is_told(tmp_path: Path, model: Path) -> None:
    done = Shell(tmp_path / "none", model).run("ls")
    assert (done.returncode, "no such folder" in done.stderr) == (1, True)
    assert not (tmp_path / "none").exists()


def test_looking_at_a_home_fetches_no_model(tmp_path: Path) -> None:
    done = Shell(tmp_path, Path("smollm2-135m")).run("ls")
    assert done.returncode == 1
    assert "agentcache models pull smollm2-135m" in done.stderr
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]
