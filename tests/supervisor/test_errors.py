"""Every fault of the supervisor is one class with one sentence, so that the command line can tell it in one line."""

import inspect

import pytest

from supervisor import errors
from supervisor.errors import BadConfiguration, SupervisorError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_the_supervisors_and_says_what_it_means(kind: type[Exception]) -> None:
    assert issubclass(kind, SupervisorError)
    assert kind.__doc__


def test_bad_configuration_keeps_its_faults_apart() -> None:
    error = BadConfiguration(["A: one", "B: two"])
    assert error.faults == ["A: one", "B: two"]
    assert str(error) == "A: one\nB: two"
