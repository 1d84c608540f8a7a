"""Installing as a service, as far as that can be tried below another folder than /; the rest is test-systemd's."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts import install
from scripts.install import (
    InstallError,
    Layout,
    find_python,
    fingerprint,
    hidden,
    is_open,
    main,
    switch,
    wrapper,
    write,
)

ROOT = install.REPOSITORY


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture
def built(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Environments are made without their packages, and their `chimera` only writes down what it is asked."""
    asked: list[tuple[str, ...]] = []

    def build(layout: Layout, repository: Path, *_: object) -> Path:
        env = layout.program / f"venv-{fingerprint(repository, '3')}"
        (env / "bin").mkdir(parents=True, exist_ok=True)
        return env

    monkeypatch.setattr(install, "build", build)
    monkeypatch.setattr(install, "ask_chimera", lambda _env, _layout, *words: asked.append(words))
    return asked


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.stat().st_mtime_ns,
                                        path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }  # fmt: skip


def test_everything_has_its_place_and_twice_is_the_same_as_once(layout: Layout, built: list[tuple[str, ...]]) -> None:
    assert main(["install", "--root", str(layout.root)]) == 0
    assert layout.env_file.stat().st_mode & 0o777 == 0o640
    assert layout.env_file.read_text() == (ROOT / ".env.example").read_text()
    assert {path.name for path in layout.units.iterdir()} == {"chimera.service", "chimera.socket"}
    assert layout.command.stat().st_mode & 0o777 == 0o755
    assert layout.current.is_dir()
    assert built == [("units", "--write", "--into", str(layout.units))]
    before = everything(layout.root)
    assert main(["install", "--root", str(layout.root)]) == 0
    assert everything(layout.root) == before


def test_what_the_operator_wrote_is_never_overwritten(layout: Layout, built: list[tuple[str, ...]]) -> None:
    write(layout.env_file, "GATEWAY_PORT=9000\n")
    assert main(["install", "--root", str(layout.root)]) == 0
    assert layout.env_file.read_text() == "GATEWAY_PORT=9000\n"


def test_another_program_of_that_name_is_left_alone(
    layout: Layout, built: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    write(layout.command, "#!/bin/sh\necho another chimera\n")
    assert main(["install", "--root", str(layout.root)]) == 1
    assert "is another program: move it away" in capsys.readouterr().err
    assert not layout.current.exists()


def test_uninstalling_leaves_nothing_or_what_is_to_be_kept(layout: Layout, built: list[tuple[str, ...]]) -> None:
    for keep in (["--keep"], []):
        assert main(["install", "--root", str(layout.root)]) == 0
        for folder in layout.kept[1:]:
            (folder / "inside").mkdir(parents=True, exist_ok=True)
        (layout.units / "chimera.service.d").mkdir()
        assert main(["uninstall", "--root", str(layout.root), *keep]) == 0
        left = [path for path in layout.root.rglob("*") if "chimera" in str(path.relative_to(layout.root))]
        kept = {path for path in left if any(path.is_relative_to(one) for one in layout.kept)}
        assert set(left) == kept
        assert bool(kept) == bool(keep)


def test_the_version_before_this_one_stays_until_the_next_comes(layout: Layout) -> None:
    envs = [layout.program / f"venv-{name}" for name in "abc"]
    for env in envs:
        env.mkdir(parents=True)
        assert switch(layout, env)
        assert layout.current.resolve() == env
    assert [env.exists() for env in envs] == [False, True, True]
    assert not switch(layout, envs[-1])


def test_the_operators_command_leaves_start_and_stop_to_systemd(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write(layout.command, wrapper(layout), 0o755)
    for path, name in ((layout.current / "bin" / "chimera", "chimera"), (tmp_path / "bin" / "systemctl", "systemctl")):
        write(path, f'#!/bin/sh\necho {name} "$@" "$STATE_DIRECTORY"\n', 0o755)

    def said(*words: str) -> str:
        environ = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        return subprocess.run([layout.command, *words], env=environ, capture_output=True, text=True, check=True).stdout

    assert said("stop") == "systemctl stop chimera.service \n"
    assert said("reload") == "systemctl reload chimera.service \n"
    assert said("restart", "w1") == f"chimera --env-file {layout.env_file} restart w1 /var/lib/chimera\n"
    assert said("stop", "--help") == f"chimera --env-file {layout.env_file} stop --help /var/lib/chimera\n"


def test_a_python_in_a_home_or_a_closed_folder_is_not_the_services(tmp_path: Path) -> None:
    assert hidden(Path("/root/.pyenv/bin/python3"))
    assert not hidden(Path("/usr/bin/python3"))
    closed = tmp_path / "closed"
    write(closed / "python3", "#!/bin/sh\necho True\n", 0o755)
    closed.chmod(0o700)
    assert not is_open(closed / "python3")
    assert not is_open(tmp_path / "none")
    with pytest.raises(InstallError, match="no other Python was found"):
        find_python(str(closed / "python3"), [])


def test_a_python_is_taken_that_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/opt/old": "False", "/opt/new": "True"}
    monkeypatch.setattr(install, "quiet", lambda argv: answers.get(argv[0]))
    monkeypatch.setattr(install, "is_open", lambda _: True)
    assert find_python("/opt/old", ["/opt/broken", "/opt/new"]) == "/opt/new"


def test_one_build_is_told_from_another_by_sources_requirements_and_python(tmp_path: Path) -> None:
    for name in (*install.SOURCES, "requirements/run.lock"):
        write(tmp_path / name / "a.py" if name in ("gateway", "supervisor") else tmp_path / name, name)
    first = fingerprint(tmp_path, "3.11")
    write(tmp_path / "gateway" / "__pycache__" / "a.pyc", "x")
    assert fingerprint(tmp_path, "3.11") == first
    assert fingerprint(tmp_path, "3.12") != first
    write(tmp_path / "gateway" / "a.py", "y")
    second = fingerprint(tmp_path, "3.11")
    write(tmp_path / "requirements" / "run.lock", "y")
    assert len({first, second, fingerprint(tmp_path, "3.11")}) == 3


def test_the_machine_itself_is_changed_by_root_and_where_systemd_runs_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["uninstall"]) == 1
    assert "run it as root" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "is_dir", lambda _: False)
    assert main(["install"]) == 1
    assert "not booted with systemd" in capsys.readouterr().err


def test_what_goes_wrong_is_one_line(
    layout: Layout, built: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    layout.units.parent.mkdir(parents=True)
    layout.units.write_text("a file")
    assert main(["install", "--root", str(layout.root)]) == 1
    assert capsys.readouterr().err.startswith("install: ")
