"""agentcache doctor: every finding, provoked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentcache.adapters.disk import schema
from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home
from agentcache.cli.check_home import check_home
from agentcache.cli.check_settings import check_settings
from agentcache.cli.finding import Finding
from agentcache.settings import Settings, parse_size
from tests.tiny_models import tiny_llama

COMMAND = [sys.executable, "-c", "from agentcache.cli import main; main()", "doctor"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that was opened once."""
    path = tmp_path / "home"
    with Home.open(path) as opened:
        SqliteSessionStore.open(opened.catalogue).close()
    return path


def found(path: Path, **settings: object) -> list[Finding]:
    values: dict[str, object] = {"home": path, "model": "none"} | settings
    return list(check_home(Settings(**values)))  # type: ignore[arg-type]


def worst(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.level, one.about) for one in findings if one.level in ("warning", "problem")]


def the(findings: list[Finding], level: str, about: str, *words: str) -> Finding:
    """The one finding of this level that says `words`."""
    fitting = [
        one
        for one in findings
        if (one.level, one.about) == (level, about) and all(word in one.message for word in words)
    ]
    assert len(fitting) == 1, findings
    return fitting[0]


class TestHome:
    def test_a_sound_home_is_sound_and_stays_as_it_is(self, home: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]}
        assert worst(found(home)) == []
        assert before == {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]}

    def test_a_home_that_is_not_there_is_not_made(self, tmp_path: Path) -> None:
        the(found(tmp_path / "a" / "b"), "note", "home", "not there yet")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        the(found(tmp_path / "file"), "problem", "home", "no folder")

    def test_a_home_that_others_can_read(self, home: Path) -> None:
        home.chmod(0o755)
        assert "chmod 700" in the(found(home), "warning", "home", "755").remedy

    def test_another_format(self, home: Path) -> None:
        (home / "format").write_text("7\n")
        the(found(home), "problem", "home", "format is 7")

    def test_its_owner_with_address_and_process(self, home: Path) -> None:
        with Home.open(home) as opened:
            opened.announce("http://127.0.0.1:1")
            the(found(home), "note", "owner", str(os.getpid()), "http://127.0.0.1:1")

    def test_a_catalogue_that_is_none(self, home: Path) -> None:
        (home / "catalogue.sqlite3").write_bytes(b"x" * 1000)
        the(found(home), "problem", "catalogue", "damaged")

    @pytest.mark.parametrize(
        ("version", "level"), [(schema.VERSION + 1, "problem"), (schema.VERSION - 1, "note")]
    )
    def test_a_catalogue_of_another_version(self, home: Path, version: int, level: str) -> None:
        path = home / "catalogue.sqlite3"
        data = bytearray(path.read_bytes())
        data[60:64] = version.to_bytes(4, "big")
        path.write_bytes(data)
        the(found(home), level, "catalogue", f"schema {version}")

    def test_a_catalogue_that_is_open_for_the_first_time(self, tmp_path: Path) -> None:
        with Home.open(tmp_path / "new") as opened:
            catalogue = SqliteSessionStore.open(opened.catalogue)
            the(found(opened.path), "ok", "catalogue", "log")
            catalogue.close()
        the(found(opened.path), "ok", "catalogue", f"schema {schema.VERSION}")

    def test_a_catalogue_of_another_program(self, home: Path) -> None:
        path = home / "catalogue.sqlite3"
        data = bytearray(path.read_bytes())
        data[68:72] = b"GEOP"
        path.write_bytes(data)
        the(found(home), "problem", "catalogue", "not made by agentcache")

    def test_files_that_were_never_finished(self, home: Path) -> None:
        (home / "segments" / "ab").mkdir(parents=True)
        (home / "segments" / "ab" / ".x.0123.tmp").write_bytes(b"half")
        (home / "models" / ".partial.x.1").mkdir()
        the(found(home), "note", "home", "2 files or folders")

    def test_what_is_in_quarantine(self, home: Path) -> None:
        (home / "quarantine").mkdir()
        (home / "quarantine" / "000000000000-x").write_bytes(b"bad")
        the(found(home), "warning", "quarantine", "1 damaged files, 3B")

    def test_more_than_the_cap(self, home: Path) -> None:
        (home / "segments" / "ab").mkdir(parents=True)
        (home / "segments" / "ab" / f"{'ab' * 32}.safetensors").write_bytes(bytes(1_500_000))
        the(found(home, disk_cap=parse_size("1MB")), "warning", "disk", "more than the cap")

    def test_a_cap_that_the_disk_has_no_room_for(self, home: Path) -> None:
        the(found(home, disk_cap=parse_size("900TB")), "note", "disk", "fewer than the cap")

    def test_a_link_that_leads_nowhere(self, home: Path) -> None:
        (home / "format").unlink()
        (home / "format").symlink_to(home / "format")
        the(found(home), "problem", "home", "cannot be read")

    def test_a_model_that_is_there_and_one_that_is_not(self, home: Path, tmp_path: Path) -> None:
        model = tiny_llama(tmp_path / "tiny", seed=1)
        the(found(home, model=str(model)), "ok", "model", "digest")
        the(found(home, model="elsewhere"), "note", "model", "not converted here")

    def test_a_damaged_model(self, home: Path, tmp_path: Path) -> None:
        model = tiny_llama(tmp_path / "tiny", seed=1)
        (model / "config.json").write_text("{")
        the(found(home, model=str(model)), "problem", "model", "damaged")


class TestSettings:
    @pytest.fixture(autouse=True)
    def bare(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [one for one in os.environ if one.startswith("AGENTCACHE_")]:
            monkeypatch.delenv(name)

    def test_an_unknown_key_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text('disk_cp = "1GB"\nport = 1\n')
        finding = the(list(check_settings(tmp_path / "config.toml")), "warning", "settings")
        assert "'disk_cp'" in finding.message
        assert "did you mean disk_cap?" in finding.remedy

    def test_an_unknown_variable(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("AGENTCACHE_MODLE", "x")
        monkeypatch.setenv("AGENTCACHE_MODEL", "x")
        finding = the(list(check_settings(tmp_path / "none")), "warning", "settings")
        assert finding.message.startswith("AGENTCACHE_MODLE")
        assert "AGENTCACHE_MODEL?" in finding.remedy

    def test_a_file_that_is_no_toml(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text("= 1")
        the(list(check_settings(tmp_path / "config.toml")), "problem", "settings", "cannot be read")


class TestCommand:
    """In a process of its own, where other packages can be put beside ours."""

    @staticmethod
    def run(home: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, "--home", str(home), *words],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            env=os.environ | environment,
        )

    @staticmethod
    def pretend(folder: Path, name: str, version: str) -> None:
        """Have a distribution of this name in `folder`."""
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def test_versions_blas_and_device_are_told_and_all_is_well(self, home: Path) -> None:
        done = self.run(home, "--json")
        assert done.returncode == 0, done.stdout
        told = [Finding(**one) for one in json.loads(done.stdout)]
        assert {"versions", "BLAS", "device", "home", "owner", "disk", "quarantine"} <= {
            one.about for one in told
        }

    def test_a_package_that_is_installed_twice(self, home: Path, tmp_path: Path) -> None:
        self.pretend(tmp_path / "site", "mlx-lm", "0.1.0")
        done = self.run(home, PYTHONPATH=str(tmp_path / "site"))
        assert (done.returncode, "mlx-lm is installed 2 times" in done.stdout) == (0, True)

    def test_a_backend_of_another_version_is_a_problem(self, home: Path, tmp_path: Path) -> None:
        self.pretend(tmp_path / "site", "mlx-metal", "0.1.0")
        done = self.run(home, PYTHONPATH=str(tmp_path / "site"))
        assert (done.returncode, "mlx-metal is 0.1.0" in done.stdout) == (1, True)

    def test_settings_that_cannot_be(self, home: Path) -> None:
        done = self.run(home, AGENTCACHE_PORT="-1")
        assert (done.returncode, "port" in done.stdout) == (1, True)

    def test_a_slow_blas_has_a_remedy(self, home: Path) -> None:
        done = self.run(home, AGENTCACHE_CPU_PATH="false")
        if sys.platform == "linux":
            assert "Turn the CPU path on" in done.stdout

    def test_how_a_models_caches_are_kept(self, home: Path, tmp_path: Path) -> None:
        model = tiny_llama(tmp_path / "tiny", seed=1)
        done = self.run(home, "--model", str(model))
        assert (done.returncode, "caches (full)" in done.stdout) == (0, True)
        assert "as they were found before" not in done.stdout
        again = self.run(home, "--model", str(model))
        assert "as they were found before" in again.stdout
