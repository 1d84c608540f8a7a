"""Settings of a test's own, by the names of their variables."""

import pytest

from supervisor.config import Settings
from supervisor.config_load import load_settings
from supervisor.errors import BadConfiguration

HOME = {"HOME": "/home/somebody"}
# HTTPS: a certificate and its key.
PAIR = {"TLS_CERT": "/etc/chimera/cert.pem", "TLS_KEY": "/etc/chimera/key.pem"}
SECRET = "hunter2-do-not-tell"


def load(**names: str) -> Settings:
    """Settings with these in the environment."""
    return load_settings(HOME | names, {})


def faults(**names: str) -> list[str]:
    """What is wrong with these."""
    with pytest.raises(BadConfiguration) as refused:
        load(**names)
    return refused.value.faults
