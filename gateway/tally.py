"""Counters and histograms as plain numbers: to count is to add, and the library makes its text of them at /metrics.

Its own counters look their series up, check and lock at each step; on a request's way that was a tenth of all that is
done for it (docs/performance.md). Here everything happens in one thread, trio's.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter. Series are there from their first count on; one without labels from the beginning."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name, self._text, self._labels = name, text, labels
        self.counts: defaultdict[Labels, float] = defaultdict(float)
        if not labels:
            self.counts[()] = 0.0

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Count; `labels` in the order in which they were named."""
        self.counts[labels] += amount

    def remove(self, *labels: str) -> None:
        """Show a series no more."""
        self.counts.pop(labels, None)

    def collect(self) -> Iterator[Metric]:
        """As the library asks for it."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in self.counts.items():
            family.add_metric(labels, count)
        yield family


class Spread(Collector):
    """A histogram, with one label or none."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> None:
        """`bounds` are the upper ends of its buckets, in rising order; there is one more, for all above."""
        self._name, self._text, self._labels = name, text, labels
        self._bounds = tuple(bounds)
        self._buckets: dict[Labels, list[int]] = {}
        self._sums: defaultdict[Labels, float] = defaultdict(float)
        if not labels:
            self._buckets[()] = self._empty()

    def observe(self, value: float, *labels: str) -> None:
        """Count a value into its bucket."""
        buckets = self._buckets.get(labels)
        if buckets is None:
            buckets = self._buckets[labels] = self._empty()
        buckets[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def _empty(self) -> list[int]:
        return [0] * (len(self._bounds) + 1)

    def collect(self) -> Iterator[Metric]:
        """As the library asks for it: each bucket with all below it."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        ends = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for labels, counts in self._buckets.items():
            rows, below = [], 0
            for end, count in zip(ends, counts, strict=True):
                below += count
                rows.append((end, float(below)))
            family.add_metric(labels, rows, self._sums[labels])
        yield family


class Moment(Collector):
    """A gauge without labels that is asked for when Prometheus asks, and is absent while there is nothing to tell."""

    def __init__(self, name: str, text: str, told: Callable[[], float | None]) -> None:
        """`told` returns its value; None: it is absent."""
        self._name, self._text, self._told = name, text, told

    def collect(self) -> Iterator[Metric]:
        """As the library asks for it."""
        value = self._told()
        if value is not None:
            yield GaugeMetricFamily(self._name, self._text, value=value)
