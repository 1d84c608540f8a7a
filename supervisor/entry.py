"""What the command `chimera` begins with.

Reading the program takes Python the better part of a second. Who thinks better of it meanwhile (Ctrl-C) is not told in
what line of whose file that was: until all is read the signal ends the process, as it does where nobody catches it
(signal(7)). Where it is ignored, as after nohup(1), it stays so.
"""

import signal


def main() -> None:
    """Read the program, and do what the command line says."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from supervisor.cli import main as commands

    signal.signal(signal.SIGINT, before)
    commands()
