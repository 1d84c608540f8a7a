"""The W3C trace context, with the specification's own examples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.traceparent import TraceParent, parent_of, with_parent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"
PARENT = TraceParent(int(TRACE, 16), int(SPAN, 16), sampled=True)


@pytest.mark.parametrize(
    ("value", "parent"),
    [
        (GIVEN, PARENT),
        (f"00-{TRACE}-{SPAN}-00", TraceParent(PARENT.trace_id, PARENT.span_id, sampled=False)),
        (f"cc-{TRACE}-{SPAN}-01-what-will-come", PARENT),  # a later version: what is known of it counts
        (f"00-{TRACE}-{SPAN}-01-what-will-come", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (GIVEN.upper(), None),
        (GIVEN[:-1], None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("cc-" + GIVEN[3:] + "-" + "x" * 1000, None),
        ("", None),
    ],
)
def test_a_parent_counts_if_it_is_written_as_agreed(value: str, parent: TraceParent | None) -> None:
    assert parent_of([(b"traceparent", value.encode())]) == parent


def test_two_parents_are_none() -> None:
    assert parent_of([(b"traceparent", GIVEN.encode())] * 2) is None
    assert parent_of([]) is None


@given(st.binary())
def test_whatever_a_client_writes_there_is_an_answer(value: bytes) -> None:
    parent_of([(b"traceparent", value)])


def test_a_workers_request_names_our_span() -> None:
    own = TraceParent(PARENT.trace_id, 7, sampled=True)
    headers = [(b"a", b"b"), (b"traceparent", GIVEN.encode()), (b"tracestate", b"vendor=1")]
    named = (b"traceparent", f"00-{TRACE}-0000000000000007-01".encode())
    assert with_parent(headers, own, continued=True) == [(b"a", b"b"), (b"tracestate", b"vendor=1"), named]
    assert with_parent(headers, own, continued=False) == [(b"a", b"b"), named]
    assert parent_of([named]) == own
