"""What can go wrong in the supervisor: one class per fault, one sentence of contract each."""


class SupervisorError(Exception):
    """Base of all errors below; its text is one line that a person can act on."""


class BadConfiguration(SupervisorError):
    """The settings cannot be used; `faults` has one line per fault, each starting with the variable's name.

    The command line ends with status 78 (EX_CONFIG, sysexits.h), on which systemd does not restart.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class StartRefused(SupervisorError):
    """Chimera cannot start here and now: a port is taken, another Chimera runs, there is no ollama."""


class StartFailed(SupervisorError):
    """A worker's process did not become ready: it exited, did not answer in time, or is not the port's owner."""


class UnknownGpu(SupervisorError):
    """The operator named a GPU that does not exist; the text lists those that do."""


class UnknownWorker(SupervisorError):
    """The operator named a worker that does not exist; the text lists those that do."""


class NoRoom(SupervisorError):
    """The operator asked for something that the present state does not allow, such as a quarantined GPU."""


class NotUnderstood(SupervisorError):
    """The operator's request has a value that makes no sense, such as a negative count."""


class ModelUnavailable(SupervisorError):
    """A required model is not in the store and could not be brought there; the text has Ollama's reason."""


class NotAChatModel(SupervisorError):
    """One token cannot be asked of a model: it does not generate text (it only embeds), or has left the store."""
