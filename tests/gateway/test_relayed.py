"""What is seen of an answer while it passes."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.ollama import ERROR_BYTES
from gateway.relayed import Relayed
from gateway.slots import WorkerSlots


def a_worker() -> WorkerSlots:
    return WorkerSlots("w1", 1, 11500, 1, frozenset())


def test_of_an_answer_that_comes_at_once_all_its_time_counts() -> None:
    relayed = Relayed(None, asked_at=10.0)
    relayed.came(b"x", 13.0)
    assert (relayed.chunks, relayed.waited_s) == (1, 3.0)


def test_of_a_stream_the_time_from_its_first_part_to_its_last_counts_but_not_its_clients() -> None:
    relayed = Relayed(None, asked_at=10.0)
    for at in (50.0, 51.0, 53.0):
        relayed.came(b"x", at)
    relayed.waits_from(60.0)  # the client took its time
    relayed.came(b"x", 60.5)
    assert (relayed.chunks, relayed.waited_s, relayed.last_at) == (4, 3.5, 60.5)


def test_a_workers_progress_is_its_last_part() -> None:
    worker = a_worker()
    Relayed(worker, asked_at=1.0).came(b"x", 7.0)
    assert worker.progress_at == 7.0


@given(st.lists(st.binary(min_size=1, max_size=3 * ERROR_BYTES), min_size=1, max_size=8))
def test_its_end_is_kept_and_not_much_more(chunks: list[bytes]) -> None:
    relayed = Relayed(None, asked_at=0.0)
    for chunk in chunks:
        relayed.came(chunk, 1.0)
    whole = b"".join(chunks)
    assert whole.endswith(bytes(relayed.tail))
    assert min(len(whole), ERROR_BYTES) <= len(relayed.tail) <= 2 * ERROR_BYTES
