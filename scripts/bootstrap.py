"""Makes the repository's ``.venv`` on a machine that has nothing but python3: ``bootstrap.py run|dev``.

Standard library only, because it runs before anything is installed. ``run`` installs what Chimera needs to
work, ``dev`` that and what its tests need; both from lock files, every download checked against its hash.
A stamp in .venv makes a second call return at once. An interrupted call is repaired by the next one.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  an older Python comes this far, and no further
    found = "{} is {}.{}".format(sys.executable, *sys.version_info[:2])
    sys.exit(f"bootstrap: Python 3.11 or newer is needed, {found}: install a newer one, first on PATH as python3")

REPOSITORY = Path(__file__).resolve().parent.parent
KINDS = ("run", "dev")
STAMP_NAME = "bootstrap.stamp"
LOCK_NAME = "bootstrap.lock"
UNFINISHED = "unfinished"  # written before .venv is changed: what a killed run leaves is not trusted
OUTDATED = "outdated"  # pip said no and tidied up: sound, but not everything is there

# Debian keeps pip's wheel in a package of its own, which is what its python3-venv takes pip from.
PIP_PACKAGE = "python3-pip-whl"
FETCH_TIMEOUT_S = 120
START_TIMEOUT_S = 60

# What pip prints, and what to tell people about it. The first that fits wins: a dead network also makes pip
# say that it found no matching distribution.
PIP_FAULTS = (
    (
        "DO NOT MATCH THE HASHES",
        "a download is not the file that was pinned: the mirror or a cache is wrong (pip cache purge)",
    ),
    ("No space left on device", "the disk is full: free some space, then run again"),
    ("Disk quota exceeded", "the disk quota is used up: free some space, then run again"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the package index's certificate is not trusted here: install ca-certificates or set PIP_CERT",
    ),
    ("ProxyError", "the proxy does not let pip through: check HTTPS_PROXY, then run again"),
    ("establish a new connection", "the package index cannot be reached: check the network, then run again"),
    ("name resolution", "the package index cannot be reached: check the network, then run again"),
    ("timed out", "the package index answers too slowly: check the network, then run again"),
    ("Connection aborted", "the connection to the package index broke: check the network, then run again"),
    ("Permission denied", "a file may not be written (see above): who owns this folder?"),
    (
        "(from versions: none)",
        "the package index gave nothing for that name: check the network, PIP_INDEX_URL and PIP_CERT, then run again",
    ),
    ("No matching distribution", "the package index does not have that version for this Python and machine"),
)


class BootstrapError(Exception):
    """Something the user has to know; its text is the one line to show."""


def explain_pip_failure(output: str) -> str:
    """Say in one line what made pip fail, given what it printed."""
    for sign, meaning in PIP_FAULTS:
        if sign in output:
            return meaning
    return "pip failed for the reason it gives above"


def explain_os_error(error: OSError, where: Path) -> str:
    """Say in one line what the operating system refused; `where` stands in for a path it did not name."""
    hint = ": free some space, then run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{error.strerror or error} ({error.filename or where}){hint}"


def count_packages(lock_text: str) -> int:
    """Count the packages of a lock file that belong on Linux."""
    lines = (line for line in lock_text.splitlines() if "==" in line and not line.startswith((" ", "#")))
    return sum("== 'nt'" not in line and "== 'win32'" not in line for line in lines)


def stamp_key(repository: Path, kind: str, python_tag: str) -> str:
    """Return a digest of all that decides what a finished .venv of this kind holds.

    pyproject.toml counts because it names the packages and commands that the project itself installs.
    """
    digest = hashlib.sha256()
    for part in (kind.encode(), python_tag.encode(), os.fsencode(repository)):
        digest.update(part + b"\0")
    for file in (repository / "requirements" / f"{kind}.lock", repository / "pyproject.toml"):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def is_current(repository: Path, kind: str) -> bool:
    """Tell whether .venv already holds all that `kind` asks for; one made for dev also does for run."""
    env = repository / ".venv"
    stamp = read_stamp(env)
    python = env / "bin" / "python"
    if stamp in (None, UNFINISHED, OUTDATED) or not os.access(python, os.X_OK):
        return False
    return any(stamp == stamp_key(repository, k, python_tag()) for k in KINDS[KINDS.index(kind) :])


def python_tag() -> str:
    """Name the running Python as far as installed packages care, such as cpython-311."""
    return str(sys.implementation.cache_tag)


def read_stamp(env: Path) -> str | None:
    """Return what the last run noted in `env`, None if no run did."""
    try:
        return (env / STAMP_NAME).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_stamp(env: Path, stamp: str) -> None:
    """Note `stamp` in `env`; a reader sees the old one or the new one, never half of it."""
    fresh = env / (STAMP_NAME + ".new")
    fresh.write_text(stamp + "\n", encoding="utf-8")
    fresh.replace(env / STAMP_NAME)


@contextlib.contextmanager
def locked(env: Path) -> Iterator[None]:
    """Let one bootstrap at a time work on `env`; a second one waits for the first."""
    env.mkdir(parents=True, exist_ok=True)
    with (env / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("bootstrap: another run is preparing .venv, waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def quiet(argv: Sequence[str | Path]) -> str | None:
    """Run a short command; return its output, None if it failed or could not be started."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def why_rebuild(env: Path) -> str | None:
    """Say why `env` has to be made anew: empty if there is nothing yet, None if it can be kept.

    BootstrapError if something else than an environment is there.
    """
    if read_stamp(env) == UNFINISHED:
        return "the last run was interrupted"
    present = {entry.name for entry in env.iterdir()} - {LOCK_NAME}
    if not present:
        return ""
    if "pyvenv.cfg" not in present and STAMP_NAME not in present:
        raise BootstrapError(f"{env} is not a virtual environment: move it away, then run again")
    tag = quiet([env / "bin" / "python", "-I", "-c", "import sys; print(sys.implementation.cache_tag)"])
    if tag is None:
        return "its python does not start"
    return None if tag == python_tag() else f"it is for {tag}, python3 is now {python_tag()}"


def rebuild(env: Path) -> None:
    """Replace all of `env` by an environment without pip."""
    write_stamp(env, UNFINISHED)
    for entry in env.iterdir():
        if entry.name in (STAMP_NAME, LOCK_NAME):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    venv.create(env, with_pip=False, symlinks=True)


def has_ensurepip() -> bool:
    """Tell whether this Python can install pip from its own files; Debian's cannot without python3-venv."""
    try:
        import ensurepip

        ensurepip.version()
    except (ImportError, AttributeError, OSError):  # cut out whole, to an empty folder, without its wheels
        return False
    return True


def ensure_pip(env: Path, environ: Mapping[str, str]) -> None:
    """Give `env` a pip: the one that came with Python, else the one that Debian keeps beside it."""
    python = env / "bin" / "python"
    if quiet([python, "-I", "-m", "pip", "--version"]) is not None:
        return
    if has_ensurepip() and quiet([python, "-I", "-m", "ensurepip", "--upgrade", "--default-pip"]) is not None:
        return
    print("bootstrap: this Python gives no pip (python3-venv is missing?), fetching pip itself", flush=True)
    with tempfile.TemporaryDirectory(dir=env) as folder:
        wheel = fetch_pip(Path(folder), environ)
        install = ("install", "-q", "--no-index", "--no-deps")
        run_pip([str(python), "-I", str(wheel / "pip"), *install, str(wheel)], environ)


def fetch_pip(folder: Path, environ: Mapping[str, str]) -> Path:
    """Unpack pip's wheel into `folder` and return its path; nothing is installed, so nobody need be root.

    apt checks what it downloads. BootstrapError when there is no apt, or it does not give the package.
    """
    advice = "apt-get update && apt-get install python3-venv"
    if not (shutil.which("apt-get", path=environ.get("PATH")) and shutil.which("dpkg-deb", path=environ.get("PATH"))):
        raise BootstrapError("this Python has no pip and no ensurepip: install both from where Python came from")
    for argv in (["apt-get", "-qq", "download", PIP_PACKAGE], ["sh", "-c", "dpkg-deb --extract *.deb ."]):
        try:
            done = subprocess.run(
                argv,
                cwd=folder,
                env=dict(environ),
                capture_output=True,
                text=True,
                timeout=FETCH_TIMEOUT_S,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BootstrapError(f"apt gave no {PIP_PACKAGE} within {FETCH_TIMEOUT_S} s: check the network") from error
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise BootstrapError(f"this Python has no pip, and apt gives none ({said}): run {advice}")
    wheels = sorted(folder.glob("usr/share/python-wheels/pip-*.whl"))
    if not wheels:
        raise BootstrapError(f"{PIP_PACKAGE} has no pip: run {advice}")
    return wheels[-1]


def run_pip(argv: Sequence[str], environ: Mapping[str, str], *, hush: bool = False) -> None:
    """Run a pip command. BootstrapError if it fails.

    What it prints is passed on as it comes (on a bad network pip tells of its retries); with `hush` only if it
    fails: a build prints warnings that say nothing to the user.
    """
    # A user-wide "user = true" or a PIP_TARGET would send the packages elsewhere.
    env = {k: v for k, v in environ.items() if k not in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")}
    env |= {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    tail: deque[str] = deque(maxlen=200)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as pip:
        assert pip.stdout is not None  # noqa: S101  a pipe was asked for
        for line in pip.stdout:
            if not hush:
                sys.stderr.write(line)
            tail.append(line)
    if pip.returncode != 0:
        if hush:
            sys.stderr.writelines(tail)
        raise BootstrapError(explain_pip_failure("".join(tail)))


def install(repository: Path, kind: str, environ: Mapping[str, str]) -> None:
    """Bring .venv to what `kind` asks for, whatever state it is in. BootstrapError, OSError: it failed."""
    env = repository / ".venv"
    with locked(env):
        if is_current(repository, kind):
            return
        reason = why_rebuild(env)
        if reason is not None:
            if reason:
                print(f"bootstrap: building .venv anew, {reason}", flush=True)
            rebuild(env)
        write_stamp(env, UNFINISHED)
        lock = repository / "requirements" / f"{kind}.lock"
        packages = count_packages(lock.read_text(encoding="utf-8"))
        pip = [str(env / "bin" / "python"), "-I", "-m", "pip", "install", "-q"]
        try:
            ensure_pip(env, environ)
            print(f"bootstrap: installing {packages} packages into .venv", flush=True)
            run_pip([*pip, "--require-hashes", "-r", str(lock)], environ)
            run_pip([*pip, "--no-deps", "--no-build-isolation", "-e", str(repository)], environ, hush=True)
        except BootstrapError:
            write_stamp(env, OUTDATED)
            raise
        write_stamp(env, stamp_key(repository, kind, python_tag()))


def main(argv: Sequence[str]) -> int:
    """Run the command line; the result is the exit status."""
    if len(argv) != 1 or argv[0] not in KINDS:
        print("usage: bootstrap.py run|dev", file=sys.stderr)
        return 2
    try:
        if not is_current(REPOSITORY, argv[0]):
            install(REPOSITORY, argv[0], os.environ)
    except BootstrapError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"bootstrap: {explain_os_error(error, REPOSITORY / '.venv')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bootstrap: interrupted; the next run starts .venv anew", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
