"""Settings: sizes, limits, and where values come from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typed_settings.exceptions import TsError

from agentcache.settings import (
    Bytes,
    Settings,
    default_config,
    load,
    parse_size,
    problems,
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000", 10**6),
        ("512MB", 512 * 10**6),
        ("512 mb", 512 * 10**6),
        ("2GiB", 2 * 2**30),
        ("2G", 2 * 2**30),
        ("1.5KB", 1500),
        ("3T", 3 * 2**40),
        ("7b", 7),
    ],
)
def test_a_size_is_read_in_powers_of_1000_or_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1", "1 000", "1e9", "2XB", "1.MB", "٣MB", "nan", "1MBB"]
)
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 512MB"):
        parse_size(text)


@given(st.integers(0, 2**50))
def test_a_printed_size_reads_back_to_within_its_four_digits(size: int) -> None:
    assert parse_size(str(Bytes(size))) == pytest.approx(size, rel=5e-4)


def test_a_size_may_be_given_as_a_number() -> None:
    assert Settings(disk_cap=5_000_000).disk_cap == 5_000_000


def test_a_tilde_in_home_is_the_users_folder(tmp_path: Path) -> None:
    assert Settings().home == tmp_path / ".agentcache"
    assert Settings(home="~/elsewhere").home == tmp_path / "elsewhere"


def test_the_default_memory_budget_is_a_quarter_of_a_smaller_containers_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("agentcache.settings._CGROUP_LIMIT", limit)
    limit.write_text("40000000\n")
    assert Settings().memory_budget == 10_000_000
    limit.write_text("max\n")
    assert Settings().memory_budget > 10_000_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": 65_536},
        {"host": " "},
        {"model": ""},
        {"codec": "q3"},
        {"memory_budget": 0},
        {"disk_cap": "1KB"},
        {"max_queue": 0},
        {"max_batch": 0},
        {"queue_timeout": -0.1},
        {"queue_timeout": float("nan")},
        {"durability": "never"},
        {"prefill_chunk": 0},
        {"max_body": "10"},
        {"threads": 0},
        {"context": 0},
        {"log_format": "xml"},
        {"log_level": "loud"},
        {"shutdown_timeout": float("inf")},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_value_that_cannot_work_is_refused_by_name_with_what_to_do(
    wrong: dict[str, object],
) -> None:
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"^{name} is .*: (set it to|give it)|^{name} is empty"):
        Settings(**wrong)  # type: ignore[arg-type]


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default_config().parent.mkdir(parents=True)
    default_config().write_text('port = 1111\nmax-batch = 3\nmemory_budget = "64MB"\n')
    monkeypatch.setenv("AGENTCACHE_PORT", "2222")
    settings = load()
    assert (settings.port, settings.max_batch, settings.max_queue) == (2222, 3, 64)
    assert settings.memory_budget == 64_000_000


def test_a_named_file_is_read_instead_of_the_default_one(tmp_path: Path) -> None:
    default_config().parent.mkdir(parents=True)
    default_config().write_text("port = 1111\nmax_batch = 3\n")
    named = tmp_path / "mine.conf"
    named.write_text("port = 2222\n")
    assert (load(named).port, load(named).max_batch) == (2222, 8)


def test_a_tilde_is_understood_in_the_environment_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENTCACHE_HOME", "~/there")
    assert load().home == tmp_path / "there"


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("DISK_CAP", "2XB", "disk_cap cannot be '2XB': '2XB' is not a size: write it like"),
        ("PORT", "99999", "port is 99999: set it to 0 up to 65535"),
        ("PORT", "http", "port cannot be 'http': "),
        ("CPU_PATH", "perhaps", "cpu_path cannot be 'perhaps': "),
        ("LOG_FORMAT", "xml", "log_format cannot be 'xml': "),
    ],
)
def test_a_wrong_variable_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(f"AGENTCACHE_{variable}", value)
    with pytest.raises(TsError) as caught:
        load()
    told = problems(caught.value)
    assert told.startswith(problem)
    assert "\n" not in told


def test_every_wrong_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCACHE_PORT", "http")
    monkeypatch.setenv("AGENTCACHE_DISK_CAP", "much")
    with pytest.raises(TsError) as caught:
        load()
    assert [line.split()[0] for line in problems(caught.value).splitlines()] == ["port", "disk_cap"]


def test_an_unknown_name_in_the_file_is_told(tmp_path: Path) -> None:
    (config := tmp_path / "config.toml").write_text("prot = 80\n")
    with pytest.raises(TsError) as caught:
        load(config)
    assert "prot" in problems(caught.value)
