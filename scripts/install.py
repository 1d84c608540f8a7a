"""Puts Chimera in place as a systemd service, or takes it away: ``install.py install|uninstall [--keep]``, as root.

Standard library only, like bootstrap.py, whose ways with pip it uses: locked requirements, every download checked
against its hash. Twice is the same as once. A new version is built beside the old one and takes its place in one
rename, once it has accepted the present configuration (``chimera upgrade-check``).
"""

import argparse
import grp
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Run as a file, Python looks for modules only beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bootstrap import (
    UNFINISHED,
    BootstrapError,
    count_packages,
    ensure_pip,
    explain_os_error,
    quiet,
    read_stamp,
    run_pip,
    write_stamp,
)

REPOSITORY = Path(__file__).resolve().parent.parent
USER = "chimera"
UNITS = ("chimera.socket", "chimera.service")
# What the built package is made of.
SOURCES = ("supervisor", "gateway", "pyproject.toml", "README.md", "LICENSE")
# Who owns the device files of GPUs, where they are not everybody's.
DEVICE_GROUPS = ("video", "render")
# What ProtectHome=yes hides from the service.
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3", *(f"/usr/bin/python3.{minor}" for minor in range(14, 10, -1)))
OURS = "# Chimera's command for the installed service"
COMMAND_TIMEOUT_S = 300


class InstallError(Exception):
    """What keeps Chimera from being installed; its text is the one line to show."""


@dataclass(frozen=True)
class Layout:
    """Where everything belongs. `root` is another folder than / only to try it out: then systemd is left alone."""

    root: Path = Path("/")

    @property
    def real(self) -> bool:
        """Whether this is the machine itself."""
        return self.root == Path("/")

    @property
    def program(self) -> Path:
        """Everything that is not configuration or state: the environments, the CPU build of Ollama."""
        return self.root / "opt/chimera"

    @property
    def current(self) -> Path:
        """The link to the environment that the service runs."""
        return self.program / "current"

    @property
    def share(self) -> Path:
        """XDG_DATA_HOME of the service."""
        return self.program / "share"

    @property
    def env_file(self) -> Path:
        """The settings."""
        return self.root / "etc/chimera/chimera.env"

    @property
    def units(self) -> Path:
        """The folder of the machine's own units."""
        return self.root / "etc/systemd/system"

    @property
    def command(self) -> Path:
        """The operator's `chimera`."""
        return self.root / "usr/local/bin/chimera"

    @property
    def kept(self) -> tuple[Path, ...]:
        """What --keep leaves: settings, state with the models, logs."""
        return (self.root / "etc/chimera", self.root / "var/lib/chimera", self.root / "var/log/chimera")

    @property
    def always_removed(self) -> tuple[Path, ...]:
        """What uninstalling takes away in any case."""
        units = [self.units / name for unit in UNITS for name in (unit, f"{unit}.d")]
        return (*units, self.command, self.program, self.root / "run/chimera")


def wrapper(layout: Layout) -> str:
    """Return the operator's command: the service's own settings and folders, and systemd for its start and stop."""
    return f"""#!/bin/sh
{OURS}; `sudo make uninstall` removes it.
if [ "$#" -eq 1 ]; then
  case "$1" in start|stop|reload) exec systemctl "$1" chimera.service ;; esac
fi
export STATE_DIRECTORY=/var/lib/chimera LOGS_DIRECTORY=/var/log/chimera XDG_DATA_HOME={layout.share}
exec {layout.current}/bin/chimera --env-file {layout.env_file} "$@"
"""


def hidden(path: Path) -> bool:
    """Say whether the service could not see a file, as it lies in somebody's home."""
    return any(path.is_relative_to(home) for home in HOMES)


def is_open(path: Path) -> bool:
    """Say whether any user may run a program: it, and every folder on the way to it."""
    try:
        return all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents))
    except OSError:
        return False


def find_python(first: str, others: Iterable[str] = PYTHONS) -> str:
    """Return a Python that the service's user can run: `first` if it is one. Raises InstallError."""
    for candidate in (first, *others):
        path = Path(candidate)
        real = path.resolve()
        if hidden(path) or hidden(real) or not is_open(real):
            continue
        version = quiet([candidate, "-I", "-c", "import sys, venv; print(sys.version_info >= (3, 11))"])
        if version == "True":
            return candidate
    raise InstallError(
        f"{first} cannot be run by the service's user (it lies in a home, or is older than 3.11), and no other Python "
        "was found: apt-get install python3-venv, or make install PYTHON=/path/of/python3"
    )


def fingerprint(repository: Path, python_version: str) -> str:
    """Return what tells one build from another: the sources, the locked requirements, the Python."""
    digest = hashlib.sha256(python_version.encode())
    files = [repository / "requirements" / "run.lock"]
    for name in SOURCES:
        source = repository / name
        files += sorted(source.rglob("*")) if source.is_dir() else [source]
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(repository)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def build(layout: Layout, repository: Path, python: str, environ: Mapping[str, str]) -> Path:
    """Return the environment of this version, made if it is not there whole. Raises BootstrapError, OSError."""
    version = quiet([python, "-I", "-c", "import sys; print(sys.version)"]) or ""
    env = layout.program / f"venv-{fingerprint(repository, version)}"
    if read_stamp(env) == "complete":
        return env
    if env.exists():
        shutil.rmtree(env)
    env.mkdir(parents=True)
    write_stamp(env, UNFINISHED)
    subprocess.run([python, "-I", "-m", "venv", "--without-pip", str(env)], check=True, timeout=COMMAND_TIMEOUT_S)
    ensure_pip(env, environ)
    lock = repository / "requirements" / "run.lock"
    say(f"installing {count_packages(lock.read_text(encoding='utf-8'))} packages into {env}")
    pip = [str(env / "bin" / "python"), "-I", "-m", "pip", "install", "-q"]
    run_pip([*pip, "--require-hashes", "-r", str(lock)], environ)
    with tempfile.TemporaryDirectory() as folder:
        # a build writes beside the sources, which are somebody else's than root's
        for name in SOURCES:
            source = repository / name
            target = Path(folder) / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        run_pip([*pip, "--no-deps", "--no-build-isolation", folder], environ, hush=True)
    write_stamp(env, "complete")
    return env


def say(text: str) -> None:
    """Say what is being done."""
    print(f"install: {text}", flush=True)


def run(*argv: str, check: bool = True) -> str:
    """Run a command of the system; return what it printed. Raises InstallError with its last line."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{argv[0]}: {error}") from error
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise InstallError(f"{' '.join(argv[:3])}: {said}")
    return done.stdout.strip()


def has_user() -> bool:
    """Say whether the service's user is there."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def make_user() -> None:
    """Make the service's user, and let it use the devices of GPUs."""
    if not has_user():
        run("useradd", "--system", "--user-group", "--home-dir", "/var/lib/chimera", "--no-create-home",
            "--shell", "/usr/sbin/nologin", "--comment", "Chimera", USER)  # fmt: skip
    for name in DEVICE_GROUPS:
        try:
            missing = USER not in grp.getgrnam(name).gr_mem
        except KeyError:
            continue
        if missing:
            run("usermod", "--append", "--groups", name, USER)


def write(path: Path, text: str, mode: int = 0o644) -> bool:
    """Write a file in one step, unless it says so already; return whether it was written."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(mode)
    fresh.replace(path)
    return True


def write_settings(layout: Layout, example: str) -> None:
    """Write the settings' file, unless there is one: what the operator wrote is never overwritten."""
    if layout.env_file.exists():
        return
    write(layout.env_file, example, 0o640)  # it may come to hold ADMIN_TOKEN
    layout.env_file.parent.chmod(0o750)
    if layout.real:
        group = grp.getgrnam(USER).gr_gid
        for path in (layout.env_file.parent, layout.env_file):
            os.chown(path, 0, group)
    say(f"settings: {layout.env_file}")


def switch(layout: Layout, env: Path) -> bool:
    """Let `current` be `env`, in one step; return whether it was another."""
    before = layout.current.resolve() if layout.current.is_symlink() else None
    if before == env.resolve():
        return False
    fresh = layout.program / "current.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(env.name)
    fresh.replace(layout.current)
    # The version that still runs stays until the next one comes: it may yet read its own files.
    keep = {env.resolve(), before}
    for old in layout.program.glob("venv-*"):
        if old.resolve() not in keep:
            shutil.rmtree(old)
    return True


def ask_chimera(env: Path, layout: Layout, *words: str) -> None:
    """Run the new version's own command with the service's settings. Raises InstallError with its lines."""
    environ = dict(os.environ) | {
        "XDG_DATA_HOME": str(layout.share), "STATE_DIRECTORY": "/var/lib/chimera", "LOGS_DIRECTORY": "/var/log/chimera",
    }  # fmt: skip
    argv = [str(env / "bin" / "chimera"), "--env-file", str(layout.env_file), *words]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise InstallError(f"chimera {words[0]}: {done.stderr.strip() or done.stdout.strip()}")


def install(layout: Layout, repository: Path, python: str, environ: Mapping[str, str]) -> None:
    """Put everything in place. Raises InstallError, BootstrapError, OSError; what was there before then still works."""
    env = build(layout, repository, find_python(python), environ)
    if layout.real:
        make_user()
    write_settings(layout, (repository / ".env.example").read_text(encoding="utf-8"))
    if layout.real:
        ollama = [str(env / "bin" / "python"), str(repository / "scripts" / "embedded.py"), "install"]
        if subprocess.run(ollama, env={**environ, "XDG_DATA_HOME": str(layout.share)}, check=False).returncode != 0:
            raise InstallError("there is no ollama for the service (see above)")
        ask_chimera(env, layout, "upgrade-check")
    if layout.command.exists() and OURS not in layout.command.read_text(encoding="utf-8", errors="replace"):
        raise InstallError(f"{layout.command} is another program: move it away, then run again")
    changed = switch(layout, env)
    for unit in UNITS:
        text = (repository / "systemd" / unit).read_text(encoding="utf-8")
        changed |= write(layout.units / unit, text)
    ask_chimera(env, layout, "units", "--write", "--into", str(layout.units))
    write(layout.command, wrapper(layout), 0o755)
    if not layout.real:
        return
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", *UNITS)
    if run("systemctl", "is-active", "chimera.service", check=False) != "active":
        say("done; start it with: systemctl start chimera")
    elif changed:
        say("done; the new version runs after: systemctl restart chimera (connections wait meanwhile)")
    else:
        say("done; nothing has changed")


def uninstall(layout: Layout, *, keep: bool) -> None:
    """Take everything away; `keep`: but settings, state and logs, and the user that owns them. Raises InstallError."""
    if layout.real:
        known = [unit for unit in UNITS if (layout.units / unit).exists()]
        if known:
            run("systemctl", "disable", "--now", *reversed(known))
    for path in (*layout.always_removed, *(() if keep else layout.kept)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if layout.real:
        run("systemctl", "daemon-reload")
        run("systemctl", "reset-failed", *UNITS, check=False)
        if not keep and has_user():
            run("userdel", USER)  # and the group of its name
    left = [str(path) for path in layout.kept if path.exists()]
    say(f"removed; kept: {', '.join(left)}" if left else "removed")


def refuse_without_systemd(layout: Layout) -> None:
    """Raise InstallError where a service cannot be installed."""
    if not layout.real:
        return
    if os.geteuid() != 0:
        raise InstallError("this changes the system: run it as root (sudo make install)")
    if not Path("/run/systemd/system").is_dir():
        raise InstallError("this machine was not booted with systemd: `make start-all` runs Chimera without it")


def main(argv: Sequence[str]) -> int:
    """Run the command line; the result is the exit status."""
    parser = argparse.ArgumentParser(prog="install.py", description="Install Chimera as a systemd service.")
    parser.add_argument("what", choices=("install", "uninstall"))
    parser.add_argument("--keep", action="store_true", help="uninstall: leave settings, state and logs")
    parser.add_argument("--root", type=Path, default=Path("/"), help="put it below this folder, to try it out")
    parser.add_argument("--python", default=sys.executable, help="the Python of the environment")
    options = parser.parse_args(argv)
    layout = Layout(options.root.resolve())
    os.umask(0o022)
    try:
        refuse_without_systemd(layout)
        if options.what == "install":
            install(layout, REPOSITORY, options.python, os.environ)
        else:
            uninstall(layout, keep=options.keep)
    except (InstallError, BootstrapError) as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"install: {explain_os_error(error, layout.program)}", file=sys.stderr)
        return 1
    except subprocess.SubprocessError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
