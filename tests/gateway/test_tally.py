"""Counters and histograms, next to the library's own."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from gateway.tally import Moment, Spread, Tally

BOUNDS = (0.1, 1, 5)
LABELS = st.sampled_from(["a", "b"])


def lines(registry: CollectorRegistry) -> list[str]:
    """What Prometheus reads; when each series was made is the library's own affair."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(LABELS, st.floats(0, 1e6))))
def test_a_tally_is_told_as_the_librarys_counter(counted: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally, counter = Tally("chimera_x_total", "X", "of"), Counter("chimera_x_total", "X", ["of"], registry=theirs)
    ours.register(tally)
    for label, amount in counted:
        tally.add(label, amount=amount)
        counter.labels(label).inc(amount)
    assert lines(ours) == lines(theirs)


@given(st.lists(st.tuples(LABELS, st.sampled_from([0.0, 0.05, 0.1, 0.100001, 1, 4.9, 5, 5.1, 1e9]))))
def test_a_spread_is_told_as_the_librarys_histogram(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    spread = Spread("chimera_y_seconds", "Y", BOUNDS, "of")
    histogram = Histogram("chimera_y_seconds", "Y", ["of"], buckets=BOUNDS, registry=theirs)
    ours.register(spread)
    for label, value in observed:
        spread.observe(value, label)
        histogram.labels(label).observe(value)
    assert lines(ours) == lines(theirs)


def test_without_labels_they_are_there_from_the_beginning() -> None:
    registry = CollectorRegistry()
    registry.register(Tally("chimera_x_total", "X"))
    registry.register(Spread("chimera_y_seconds", "Y", BOUNDS))
    assert {"chimera_x_total 0.0", 'chimera_y_seconds_bucket{le="+Inf"} 0.0', "chimera_y_seconds_sum 0.0"} <= {
        *lines(registry)
    }


def test_a_series_that_is_removed_is_shown_no_more() -> None:
    tally = Tally("chimera_x_total", "X", "of")
    tally.add("a")
    tally.remove("a")
    tally.remove("never there")
    (family,) = tally.collect()
    assert family.samples == []


def test_a_moment_is_absent_while_there_is_none() -> None:
    at: float | None = None
    registry = CollectorRegistry()
    registry.register(Moment("chimera_z_timestamp_seconds", "Z", lambda: at))
    assert [line for line in lines(registry) if not line.startswith("#")] == []
    at = 1.5
    assert "chimera_z_timestamp_seconds 1.5" in lines(registry)
