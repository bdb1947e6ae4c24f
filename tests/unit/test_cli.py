"""The command line: options, and how it fails."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import structlog
from click.testing import CliRunner

from agentcache.cli import logs, main
from agentcache.cli.options import with_settings
from agentcache.settings import Settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("agentcache")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], _, _ = before
    root.setLevel(before[1])
    ours.setLevel(before[2])
    structlog.reset_defaults()


@click.command()
@with_settings
def show(settings: Settings) -> None:
    """Print some settings."""
    click.echo(f"{settings.port} {settings.max_batch} {settings.max_queue} {settings.threads}")


def _shown(*options: str) -> str:
    result = CliRunner().invoke(show, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_an_option_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("port = 1\nmax_batch = 1\nmax_queue = 1\nthreads = 1\n")
    monkeypatch.setenv("AGENTCACHE_PORT", "2")
    monkeypatch.setenv("AGENTCACHE_MAX_BATCH", "2")
    assert _shown("--config", str(config), "--port", "3") == "3 2 1 1"


def test_a_number_that_is_not_set_by_default_can_be_set_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _shown() == "8080 8 64 None"
    monkeypatch.setenv("AGENTCACHE_THREADS", "2")
    assert _shown() == "8080 8 64 2"


@pytest.mark.parametrize("command", [[], ["serve"], ["chat"], ["models"], ["models", "pull"]])
def test_every_command_explains_itself_whatever_the_environment(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCACHE_PORT", "nonsense")
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_every_setting_has_an_option_with_help() -> None:
    output = CliRunner().invoke(main, ["serve", "--help"]).output
    for name in Settings.__annotations__:
        assert f"--{name.replace('_', '-')} " in output


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.startswith("agentcache, version 0.")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port", "99999"], "port is 99999: set it to 0 up to 65535"),
        (["--disk-cap", "2XB"], "write it like 512MB"),
        (["--durability", "never"], "'never' is not one of"),
        (["--config", "/nowhere.toml"], "'/nowhere.toml' does not exist"),
        (["--nonsense"], "No such option"),
    ],
)
def test_misuse_is_told_and_exits_with_2(options: list[str], told: str) -> None:
    result = CliRunner().invoke(main, ["serve", *options])
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_a_wrong_variable_is_misuse_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCACHE_CODEC", "q3")
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 2
    assert "Error: codec is 'q3': set it to one of native, f16, q8, q4, k8v4" in result.output


def test_a_model_that_is_not_kept_cannot_be_removed_and_that_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["models", "rm", "nothing", "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: model 'nothing': ")
    assert result.output.count("\n") == 1


def test_a_new_home_has_no_models(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["models", "ls", "--home", str(tmp_path)])
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize("name", ["", "x" * 257])
def test_a_name_that_is_none_is_refused_before_anything_is_loaded(name: str) -> None:
    result = CliRunner().invoke(main, ["chat", name])
    assert result.exit_code == 1
    assert "1 to 256 characters" in result.output


@pytest.mark.usefixtures("_logging_as_it_was")
@pytest.mark.parametrize("style", ["human", "json"])
def test_a_log_line_under_an_error_has_the_trace_but_no_variables(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(style, "info")
    try:
        prompt = "xyzzy " + "plugh"
        raise ValueError(len(prompt))
    except ValueError:
        structlog.get_logger("agentcache.http").exception("failed")
        logging.getLogger("agentcache.loop").exception("failed")
    told = capsys.readouterr().err
    assert told.count("ValueError: 11") == 2
    assert "xyzzy plugh" not in told


@pytest.mark.usefixtures("_logging_as_it_was")
def test_json_log_lines_are_json_whoever_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    structlog.get_logger("agentcache.http").info("request", status=200)
    logging.getLogger("uvicorn.error").error("odd: %s", "x")
    logging.getLogger("uvicorn.error").info("not for us")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("request", "info"),
        ("odd: x", "error"),
    ]
