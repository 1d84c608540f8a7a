"""The maker of .venv: stamps, half-done states, a Python without pip, and one clear line for each trouble."""

import errno
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from base64 import b64encode
from collections.abc import Iterator
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


def test_it_installs_refuses_recovers_and_repeats_at_no_cost(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Where Python comes without pip, pip itself has to come from the index.
    environ = offline(repository) if bootstrap.has_ensurepip() else {**os.environ, "PIP_FIND_LINKS": str(repository)}
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


WHEEL = "pip-1.0-py3-none-any.whl"
CONTENT = b"what the wheel holds"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Index(http.server.BaseHTTPRequestHandler):
    """A package index with one wheel, at /simple for everybody and at /closed for those who know the password."""

    def do_GET(self) -> None:
        expected = "Basic " + b64encode(b"ann:s@cret").decode()
        if self.path.startswith("/closed/") and self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.end_headers()
            return
        pages = {
            "/simple/pip/": f'<a href="pip-0.9-py3-none-any.whl">x</a> <a href="../../files/{WHEEL}#sha256=00">y</a>',
            "/closed/pip/": f'<a href="/closed/files/{WHEEL}">y</a>',
            "/empty/pip/": '<a href="pip-0.9-py3-none-any.whl">x</a>',
        }
        found = CONTENT if self.path.endswith(f"/files/{WHEEL}") else pages.get(self.path, "").encode()
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        """Keep the tests' output clean."""


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    """Serve the index on a free port of the loopback; its address without a scheme."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def with_index(url: str) -> dict[str, str]:
    return {"PIP_INDEX_URL": url, "PIP_CONFIG_FILE": os.devnull, "HOME": "/nonexistent"}


@pytest.mark.parametrize("path", ["{}/simple", "{}/simple/", "ann:s%40cret@{}/closed"])
def test_pip_is_fetched_from_the_index_that_pip_is_told_to_use(tmp_path: Path, index: str, path: str) -> None:
    environ = with_index("http://" + path.format(index))
    assert bootstrap.fetch_pip(tmp_path, environ, WHEEL, SHA256).read_bytes() == CONTENT


def test_pip_is_taken_from_a_folder_of_wheels(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / WHEEL).write_bytes(CONTENT)
    environ = with_index("http://127.0.0.1:1/simple") | {"PIP_FIND_LINKS": f"/nowhere {tmp_path}/wheels"}
    assert bootstrap.fetch_pip(tmp_path, environ, WHEEL, SHA256) == tmp_path / WHEEL


def test_without_an_index_a_missing_wheel_is_named(tmp_path: Path) -> None:
    with pytest.raises(bootstrap.BootstrapError, match=f"PIP_NO_INDEX is set .* {WHEEL}: put it there"):
        bootstrap.fetch_pip(tmp_path, offline(tmp_path), WHEEL, SHA256)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{}/empty", f"/empty does not have {WHEEL}: install python3-venv"),
        ("{}/nowhere", "/nowhere answers 404 Not Found: is it the right index?"),
        ("ann:guess@{}/closed", "/closed answers 401 Unauthorized"),
        ("127.0.0.1:1/simple", "/simple: .*Connection refused"),
    ],
)
def test_an_index_that_has_no_pip_is_one_clear_line(tmp_path: Path, index: str, path: str, said: str) -> None:
    with pytest.raises(bootstrap.BootstrapError, match=said) as caught:
        bootstrap.fetch_pip(tmp_path, with_index("http://" + path.format(index)), WHEEL, SHA256)
    assert "guess" not in str(caught.value)  # no password on the terminal
    assert list(tmp_path.iterdir()) == []


def test_a_pip_that_is_not_the_pinned_one_is_refused(tmp_path: Path, index: str) -> None:
    with pytest.raises(bootstrap.BootstrapError, match=r"not the file that was pinned \(sha256 differs\)"):
        bootstrap.fetch_pip(tmp_path, with_index(f"http://{index}/simple"), WHEEL, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_file_that_is_not_there_is_named(tmp_path: Path, index: str) -> None:
    environ = with_index(f"http://{index}/simple") | {"PIP_CERT": "/nowhere/ca.pem"}
    with pytest.raises(bootstrap.BootstrapError, match=r"/nowhere/ca\.pem, which is not there: check PIP_CERT"):
        bootstrap.fetch_pip(tmp_path, environ, WHEEL, SHA256)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "https://install.example/simple"),
        ({"PIP_INDEX_URL": "https://env.example/simple"}, "https://env.example/simple"),
        ({"PIP_CONFIG_FILE": "{}/other.conf"}, "https://other.example/simple"),
    ],
)
def test_settings_are_looked_up_as_pip_does(tmp_path: Path, environ: dict[str, str], expected: str) -> None:
    config = tmp_path / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text(
        "[global]\nindex-url = https://global.example/simple\n[install]\nindex-url = https://install.example/simple\n"
    )
    (tmp_path / "other.conf").write_text("[install]\nindex-url = https://other.example/simple\n")
    found = bootstrap.pip_setting(
        "index-url", {name: value.format(tmp_path) for name, value in environ.items()} | {"HOME": str(tmp_path)}
    )
    assert found == expected
