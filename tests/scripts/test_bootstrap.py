"""The maker of .venv: stamps, half-done states, a Python without pip, and one clear line for each trouble."""

import errno
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts import bootstrap

SCRIPT = bootstrap.REPOSITORY / "scripts" / "bootstrap.py"


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "not the file that was pinned"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("broken by 'SSLError(... CERTIFICATE_VERIFY_FAILED ...)'\n(from versions: none)", "certificate"),
        ("broken by 'NewConnectionError(Failed to establish a new connection: [Errno 111]", "cannot be reached"),
        ("Temporary failure in name resolution\nERROR: No matching distribution found", "cannot be reached"),
        ("ERROR: Could not find a version ... (from versions: none)\nERROR: No matching", "gave nothing"),
        ("ERROR: Could not find a version ... (from versions: 1.0)\nERROR: No matching distribution", "does not have"),
        ("ERROR: something new", "the reason it gives above"),
    ],
)
def test_what_pip_prints_becomes_one_line(printed: str, said: str) -> None:
    line = bootstrap.explain_pip_failure(printed)
    assert said in line
    assert "\n" not in line


def test_a_refusal_of_the_system_names_the_path() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    denied = PermissionError(errno.EACCES, "Permission denied", "/repo/.venv/x")
    where = Path("/repo/.venv")
    assert bootstrap.explain_os_error(full, where) == (
        "No space left on device (/repo/.venv): free some space, then run again"
    )
    assert bootstrap.explain_os_error(denied, where) == "Permission denied (/repo/.venv/x)"


def test_packages_of_other_systems_are_not_counted() -> None:
    lock = (
        "# a comment with a==b\n"
        "anyio==4.0 \\\n    --hash=sha256:00\n"
        "cffi==2.0 ; os_name == 'nt' \\\n    --hash=sha256:00\n"
        "colorama==0.4 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
        "trio==0.31 ; python_version >= '3.11' \\\n    --hash=sha256:00\n"
    )
    assert bootstrap.count_packages(lock) == 2


def test_an_old_python_gets_one_line_and_no_traceback() -> None:
    pretend = f"import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr == (
        f"bootstrap: Python 3.11 or newer is needed, {sys.executable} is 3.9: install a newer one, "
        "first on PATH as python3\n"
    )


@pytest.mark.parametrize("arguments", [[], ["walk"], ["run", "dev"]])
def test_a_wrong_command_line_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap.main(arguments) == 2
    assert capsys.readouterr().err == "usage: bootstrap.py run|dev\n"


# -- the stamp --------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a repository as small as can be: no packages, and a project that builds itself."""
    (tmp_path / "requirements").mkdir()
    for kind in bootstrap.KINDS:
        (tmp_path / "requirements" / f"{kind}.lock").write_text(f"# for {kind}\n")
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "tiny"\nversion = "1.0"\n'
    )
    (tmp_path / "backend.py").write_text(BACKEND)
    return tmp_path


# A build backend of the project's own: an editable install needs nothing from any index.
BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("tiny_installed.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return name

build_wheel = build_editable
"""


def make_environment(repository: Path, stamp: str) -> Path:
    """Lay out what counts in a .venv, without making one."""
    env = repository / ".venv"
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").symlink_to(sys.executable)
    (env / "pyvenv.cfg").touch()
    bootstrap.write_stamp(env, stamp)
    return env


@pytest.mark.parametrize(
    ("made_for", "asked_for", "current"),
    [("run", "run", True), ("dev", "dev", True), ("dev", "run", True), ("run", "dev", False)],
)
def test_an_environment_for_dev_also_does_for_run(
    repository: Path, made_for: str, asked_for: str, current: bool
) -> None:
    make_environment(repository, bootstrap.stamp_key(repository, made_for, bootstrap.python_tag()))
    assert bootstrap.is_current(repository, asked_for) is current


@pytest.mark.parametrize("stamp", [bootstrap.UNFINISHED, bootstrap.OUTDATED, "", "something else"])
def test_no_other_stamp_counts(repository: Path, stamp: str) -> None:
    assert not bootstrap.is_current(repository, "run")
    make_environment(repository, stamp)
    assert not bootstrap.is_current(repository, "run")


def test_a_finished_environment_whose_python_is_gone_does_not_count(repository: Path) -> None:
    env = make_environment(repository, bootstrap.stamp_key(repository, "run", bootstrap.python_tag()))
    (env / "bin" / "python").unlink()
    (env / "bin" / "python").symlink_to("/nonexistent/python3")
    assert not bootstrap.is_current(repository, "run")


def test_the_stamp_follows_all_that_decides_what_is_installed(repository: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "requirements").mkdir(parents=True)
    for file in ("requirements/run.lock", "pyproject.toml"):
        (elsewhere / file).write_bytes((repository / file).read_bytes())
    keys = [bootstrap.stamp_key(repository, "run", "cpython-311")]
    keys.append(bootstrap.stamp_key(repository, "dev", "cpython-311"))
    keys.append(bootstrap.stamp_key(repository, "run", "cpython-313"))
    keys.append(bootstrap.stamp_key(elsewhere, "run", "cpython-311"))
    for file in ("requirements/run.lock", "pyproject.toml"):
        with (repository / file).open("a") as changed:
            changed.write("# changed\n")
        keys.append(bootstrap.stamp_key(repository, "run", "cpython-311"))
    assert len(set(keys)) == len(keys)


# -- what is kept, what is built anew -----------------------------------------------------------------------------


def test_an_environment_somebody_else_made_is_kept(repository: Path) -> None:
    env = make_environment(repository, "x")
    (env / bootstrap.STAMP_NAME).unlink()
    assert bootstrap.why_rebuild(env) is None


@pytest.mark.parametrize("stamp", [bootstrap.OUTDATED, "the key of an older lock file"])
def test_a_sound_environment_is_brought_up_to_date_in_place(repository: Path, stamp: str) -> None:
    assert bootstrap.why_rebuild(make_environment(repository, stamp)) is None


def test_an_interrupted_one_is_built_anew(repository: Path) -> None:
    env = make_environment(repository, bootstrap.UNFINISHED)
    assert bootstrap.why_rebuild(env) == "the last run was interrupted"


def test_one_whose_python_does_not_start_is_built_anew(repository: Path) -> None:
    env = make_environment(repository, "x")
    (env / "bin" / "python").unlink()
    assert bootstrap.why_rebuild(env) == "its python does not start"


def test_one_of_another_python_is_built_anew(repository: Path) -> None:
    env = make_environment(repository, "x")
    (env / "bin" / "python").unlink()
    (env / "bin" / "python").write_text("#!/bin/sh\necho cpython-399\n")
    (env / "bin" / "python").chmod(0o755)
    assert bootstrap.why_rebuild(env) == f"it is for cpython-399, python3 is now {bootstrap.python_tag()}"


def test_an_empty_folder_is_nothing_to_speak_of(tmp_path: Path) -> None:
    assert bootstrap.why_rebuild(tmp_path) == ""


def test_a_folder_that_is_no_environment_is_not_touched(repository: Path) -> None:
    (repository / ".venv").mkdir()
    (repository / ".venv" / "thesis.txt").write_text("years of work")
    with pytest.raises(bootstrap.BootstrapError, match="is not a virtual environment: move it away"):
        bootstrap.install(repository, "run", {})
    assert (repository / ".venv" / "thesis.txt").read_text() == "years of work"


# -- from nothing to a working environment, with the real venv and pip ----------------------------------------------


def offline(index: Path) -> dict[str, str]:
    """Environment in which pip knows no other index than the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return kept | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}


def works(repository: Path) -> bool:
    return bootstrap.quiet([repository / ".venv" / "bin" / "python", "-c", "import tiny_installed"]) is not None


@pytest.mark.system  # it makes an environment: half a minute
def test_it_installs_refuses_recovers_and_repeats_at_no_cost(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = offline(repository)
    env = repository / ".venv"
    bootstrap.install(repository, "run", environ)
    assert works(repository)
    assert bootstrap.is_current(repository, "run")
    assert capsys.readouterr().out.endswith("bootstrap: installing 0 packages into .venv\n")

    bootstrap.install(repository, "run", environ)
    assert capsys.readouterr().out == ""

    # A lock file that asks for something else than the index has: pip's own words, one line, and no stamp.
    with zipfile.ZipFile(repository / "tiny_other-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("other.py", "")
    lock = repository / "requirements" / "run.lock"
    lock.write_text(f"tiny-other==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(bootstrap.BootstrapError, match="a download is not the file that was pinned"):
        bootstrap.install(repository, "run", environ)
    assert "DO NOT MATCH THE HASHES" in capsys.readouterr().err
    assert bootstrap.read_stamp(env) == bootstrap.OUTDATED
    assert works(repository)  # and what worked before still does

    lock.write_text("# mended\n")
    bootstrap.install(repository, "run", environ)
    assert bootstrap.is_current(repository, "run")


def test_building_anew_leaves_nothing_of_the_old_one(repository: Path) -> None:
    env = make_environment(repository, bootstrap.UNFINISHED)
    (env / "lib" / "half-unpacked").mkdir(parents=True)
    (env / "link").symlink_to(repository)
    bootstrap.rebuild(env)
    assert not (env / "link").is_symlink()
    assert not (env / "lib" / "half-unpacked").exists()
    assert (repository / "pyproject.toml").exists()
    assert bootstrap.quiet([env / "bin" / "python", "-c", "print('starts')"]) == "starts"
    assert bootstrap.read_stamp(env) == bootstrap.UNFINISHED  # until all of it is installed


# -- a Python without ensurepip ---------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["raise ImportError('cut out by the distribution')", "# an empty shell"])
def test_a_python_whose_ensurepip_was_cut_out_is_recognised(tmp_path: Path, content: str) -> None:
    (tmp_path / "ensurepip").mkdir()
    (tmp_path / "ensurepip" / "__init__.py").write_text(content)
    ask = f"import runpy; print(runpy.run_path({str(SCRIPT)!r})['has_ensurepip']())"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ask], env=environ, capture_output=True, text=True, timeout=30)
    assert done.stdout == "False\n", done.stderr


APT = """#!/bin/sh
[ "$*" = "-qq download python3-pip-whl" ] || exit 9
{apt}
"""
DPKG = """#!/bin/sh
[ "$1" = --extract ] && [ -f "$2" ] || exit 9
mkdir -p usr/share/python-wheels
{dpkg}
"""
GIVES, HAS_PIP = ": > python3-pip-whl_1_all.deb", ": > usr/share/python-wheels/pip-1.0-py3-none-any.whl"


def machine(folder: Path, apt: str = GIVES, dpkg: str = HAS_PIP) -> dict[str, str]:
    """An environment whose apt-get and dpkg-deb do as the scripts say."""
    folder.mkdir()
    for name, script in (("apt-get", APT.format(apt=apt)), ("dpkg-deb", DPKG.format(dpkg=dpkg))):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_pip_is_taken_from_debians_own_package_without_installing_it(tmp_path: Path) -> None:
    environ = machine(tmp_path / "bin")
    (tmp_path / "folder").mkdir()
    wheel = bootstrap.fetch_pip(tmp_path / "folder", environ)
    assert wheel == tmp_path / "folder/usr/share/python-wheels/pip-1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("apt", "dpkg", "said"),
    [
        ("echo 'E: Unable to locate package' >&2; exit 100", HAS_PIP, r"apt gives none \(E: Unable .*python3-venv$"),
        (GIVES, "echo 'dpkg-deb: no space' >&2; exit 2", r"\(dpkg-deb: no space\)"),
        (GIVES, ":", "python3-pip-whl has no pip: run .* install python3-venv$"),
        ("exit 1", HAS_PIP, "no reason given"),
    ],
)
def test_an_apt_that_gives_no_pip_is_one_clear_line(tmp_path: Path, apt: str, dpkg: str, said: str) -> None:
    environ = machine(tmp_path / "bin", apt, dpkg)
    (tmp_path / "folder").mkdir()
    with pytest.raises(bootstrap.BootstrapError, match=said):
        bootstrap.fetch_pip(tmp_path / "folder", environ)


def test_without_apt_a_python_without_pip_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(bootstrap.BootstrapError, match="no pip and no ensurepip"):
        bootstrap.fetch_pip(tmp_path, {"PATH": str(tmp_path)})
