"""The service in a real systemd, in a container: everything that `make test-systemd` shows."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from scripts.booted.checks import boot, carry_out
from scripts.booted.machine import NoMachine, why_not
from scripts.gpus.row import broken
from supervisor.embedded import Embedded
from tests.fakes.chimera import ROOT


@pytest.mark.timeout(1500)  # it is a whole life: six starts, a watchdog that is waited for, two removals
def test_every_row_is_as_expected(embedded: Embedded) -> None:
    assert embedded.ollama_path.exists()
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    # not below /tmp, where systemd-nspawn mounts one of the container's own
    with TemporaryDirectory(prefix="chimera-systemd-", dir="/var/tmp") as folder:
        try:
            machine = boot(Path(folder), ROOT)
        except NoMachine as error:
            pytest.skip(f"no container can be booted here: {error}")
        try:
            rows = carry_out(machine, os.environ, print)
        finally:
            machine.close()
    assert broken(rows) == []
