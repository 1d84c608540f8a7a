"""A real systemd that boots in a container (systemd-nspawn) over an overlay of this machine's root file system.

Nothing of it is kept: the overlay's upper layer is a tmpfs in a mount namespace of its own, which ends with the
container. The network is this machine's; without CAP_NET_ADMIN, which systemd-nspawn takes away, nothing can be changed
about it there.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from scripts.faults.load import wait_until

# What pip, and the libraries that it asks with, read.
PASSED_ON = ("PIP_", "SSL_", "REQUESTS_", "HTTPS_")
# Where the container has the repository, whatever file system it lies on.
SOURCE = "/srv/chimera-source"
BOOT_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
COMMAND_TIMEOUT_S = 600.0
# They would wait for a network that is there already, or look after hardware that is not the container's.
MASKED = (
    "systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service", "networking.service",
    "NetworkManager.service", "NetworkManager-wait-online.service", "systemd-resolved.service",
    "systemd-timesyncd.service", "systemd-udevd.service", "ifupdown-wait-online.service",
)  # fmt: skip
# In a mount namespace of its own. A machine that was not booted with systemd may have cgroups of an older kind
# mounted: then those of version 2, which have no controllers there, are mounted in their place.
BOOT = """
mount -t tmpfs -o size=6g,mode=755 chimera-test "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
keep=
if [ ! -d /run/systemd/system ]; then
  keep=--keep-unit
  if [ ! -f /sys/fs/cgroup/cgroup.controllers ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
  fi
fi
rm -f "$1/root/etc/fstab" "$1/root/etc/machine-id"
: > "$1/root/etc/machine-id"
for unit in $3; do ln -sf /dev/null "$1/root/etc/systemd/system/$unit"; done
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --register=no $keep --directory="$1/root" \\
  --machine="$4" --boot --console=pipe --resolv-conf=off --timezone=off --link-journal=no \\
  --bind-ro="$2:$5" systemd.unit=basic.target
"""


class NoMachine(Exception):
    """No container can be booted here; the text says why, and what would help."""


def why_not() -> str | None:
    """Return why no container can be booted here, None where nothing speaks against it."""
    if os.geteuid() != 0:
        return "root is needed to boot a container: sudo make test-systemd"
    missing = [tool for tool in ("systemd-nspawn", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install systemd-container util-linux"
    return None


class Machine:
    """The container. `folder` is where its layers lie; `log` what its console printed."""

    def __init__(self, folder: Path, repository: Path, environ: Mapping[str, str]) -> None:
        """`environ` is what commands in it get besides a plain PATH."""
        self.folder = folder
        self.name = f"chimera-test-{os.getpid()}"
        self.log = folder.with_name("console.log")
        self._repository = repository
        self._environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self._environ |= environ
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self) -> None:
        """Boot it; returns when systemd says that it runs. Raises NoMachine."""
        self.folder.mkdir(parents=True)
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-eu", "-c", BOOT, "sh"]
        argv += [str(self.folder), str(self._repository), " ".join(MASKED), self.name, SOURCE]
        with self.log.open("wb") as log:
            self._nspawn = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if not wait_until(self._running, BOOT_TIMEOUT_S, 0.2):
            said = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            self.close()
            raise NoMachine(f"systemd did not come up in a container within {BOOT_TIMEOUT_S:g} s: {' / '.join(said)}")

    def _running(self) -> bool:
        assert self._nspawn is not None  # noqa: S101 - started by `boot`
        if self._nspawn.poll() is not None:
            raise NoMachine(f"systemd-nspawn: {self.log.read_text(errors='replace').strip()}")
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text().strip() != "systemd":
            return False
        self._leader = int(children[0])
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def run(
        self, *argv: str, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in it, as root. Raises CalledProcessError, TimeoutExpired."""
        return subprocess.run(
            self.inside(*argv), env=self._environ, capture_output=True, text=True, check=check, timeout=timeout_s
        )

    def inside(self, *argv: str) -> list[str]:
        """Return a command that runs another one in it."""
        enter = ["nsenter", "--target", str(self._leader), "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--"]
        return [*enter, *argv]

    def path(self, inside: str) -> Path:
        """Return a file of the container, as it is seen from here."""
        return Path(f"/proc/{self._leader}/root") / inside.lstrip("/")

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit, as systemctl shows them."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def processes(self, user: str) -> list[tuple[int, str]]:
        """Return the processes of a user in it: number (the container's own) and command."""
        listed = self.run("ps", "-o", "pid=,args=", "-u", user, check=False).stdout.splitlines()
        return [(int(pid), text) for pid, _, text in (line.strip().partition(" ") for line in listed)]

    def close(self) -> None:
        """Power it off, and take away what systemd-nspawn leaves on this machine."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            # once: power off; twice: at once
            for _ in range(2):
                self._nspawn.send_signal(signal.SIGTERM)
                try:
                    self._nspawn.wait(STOP_TIMEOUT_S)
                    break
                except subprocess.TimeoutExpired:
                    continue
            else:
                self._nspawn.kill()
                self._nspawn.wait()
        left = Path("/run/systemd/nspawn/propagate") / self.name
        if left.is_dir():
            shutil.rmtree(left)


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of this environment a pip in the container needs: its index, its certificates, its proxy."""
    return {name: text for name, text in environ.items() if name.upper().startswith(PASSED_ON)}
