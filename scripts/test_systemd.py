"""Shows the service in a real systemd, booted in a container (make test-systemd); needs root and systemd-container.

Chimera is installed, started, reloaded, restarted under load, killed, stopped dead, stopped and uninstalled, with the
real Ollama. Nothing of it is kept on this machine. Exit status 1 if a row is not as expected, 77 if no container can be
booted here, with the reason.
"""

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

# Run as a file, Python looks for modules only beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.booted.checks import boot, carry_out
from scripts.booted.machine import NoMachine, why_not
from scripts.gpus.row import broken
from scripts.showing import ended, line, table

REPOSITORY = Path(__file__).resolve().parent.parent
NOT_HERE = 77  # what test programs say that cannot run where they are


@click.command()
@click.option("--journal", type=click.Path(path_type=Path), help="Write what the service logged to this file.")
def main(journal: Path | None) -> None:
    """Boot a real systemd and try Chimera as a service in it."""
    signal.signal(signal.SIGTERM, ended)
    if (reason := why_not()) is not None:
        print(f"test-systemd: not here: {reason}", file=sys.stderr)
        raise SystemExit(NOT_HERE)
    console = Console(width=None if sys.stdout.isatty() else 200)
    began = time.monotonic()
    # not below /tmp: systemd-nspawn mounts a /tmp of its own over the container's
    with tempfile.TemporaryDirectory(prefix="chimera-systemd-", dir="/var/tmp") as folder:
        try:
            machine = boot(Path(folder), REPOSITORY)
        except NoMachine as error:
            print(f"test-systemd: not here: {error}", file=sys.stderr)
            raise SystemExit(NOT_HERE) from error
        try:
            rows = carry_out(machine, os.environ, lambda row: console.print(line(row)))
        finally:
            if journal is not None:
                kept = machine.run("journalctl", "--no-pager", check=False)
                journal.write_text(kept.stdout, encoding="utf-8")
            machine.close()
    console.print(table("In a real systemd", rows))
    said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout
    version = said.partition("\n")[0]
    kept_rows = len(rows) - len(broken(rows))
    console.print(
        f"make test-systemd, {datetime.now(UTC):%Y-%m-%d}, {version}, Linux {platform.release()}: {kept_rows} of "
        f"{len(rows)} rows as expected, {time.monotonic() - began:.0f} s in all"
    )
    raise SystemExit(1 if broken(rows) else 0)


if __name__ == "__main__":
    main()
