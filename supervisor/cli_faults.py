"""How every command tells what is wrong: one clear line each on standard error, and the exit status that says so.

0 done; 1 refused or failed; 2 usage (click's own); 78 bad configuration (EX_CONFIG of sysexits.h: systemd does not
restart on it).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from supervisor import output
from supervisor.errors import BadConfiguration, SupervisorError
from supervisor.notify import notifier_of, one_line

EX_CONFIG = 78


class Refused(click.ClickException):
    """A refusal as one line on standard error, status 1."""

    def show(self, file: Any = None) -> None:
        """Print it."""
        click.echo(f"chimera: {self.format_message()}", err=True)


@contextmanager
def faults_told() -> Iterator[None]:
    """Turn errors into one line each and the right exit status; a whole command may be decorated with it.

    systemd, if it started us, shows them as the service's status.
    """
    try:
        yield
    except BadConfiguration as error:
        for fault in error.faults:
            click.echo(f"chimera: bad configuration: {fault}", err=True)
        notifier_of(os.environ).say(STATUS=one_line("bad configuration: " + "; ".join(error.faults)))
        sys.exit(EX_CONFIG)
    except SupervisorError as error:
        notifier_of(os.environ).say(STATUS=one_line(str(error)))
        raise Refused(str(error)) from error
    except KeyboardInterrupt as error:
        raise Refused("interrupted") from error
    except OSError as error:
        if not output.is_full(error):
            raise
        output.forget(sys.stdout)
        raise Refused(f"standard output cannot be written: {error.strerror}") from error
