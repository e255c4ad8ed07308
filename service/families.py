"""How a metric is declared (telemetry.py does it): name, unit, a sentence, and every value that its labels can have.

There is no series for another value, and asking for one is an error (`KeyError` or `ValueError`). Series exist from the
start, at 0, so that the first event is an increase; only `Made` ones, of which most never come about, are made when
they are first needed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

_Value = TypeVar("_Value", bound=str)
_Series = TypeVar("_Series", bound=MetricWrapperBase)
_Labels = Mapping[str, Collection[str]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it was declared.

    Attributes:
        name: without what its type adds (``_total``, ``_bucket``, …).
        type: counter, gauge or histogram.
        unit: seconds or bytes; "" for a number of things.
        help: one sentence or two.
        labels: every value of each.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    unit: Literal["", "seconds", "bytes"]
    help: str
    labels: _Labels

    def samples(self) -> list[str]:
        """The names under which it is scraped."""
        match self.type:
            case "counter":
                return [f"{self.name}_total"]
            case "histogram":
                return [f"{self.name}_{part}" for part in ("bucket", "sum", "count")]
        return [self.name]


disable_created_metrics()  # type: ignore[no-untyped-call]  # when each series began: as many series again
REGISTRY = CollectorRegistry()
METRICS: Final[dict[str, Metric]] = {}
_NO_LABELS: Final[_Labels] = {}


def _declare(made: type[_Series], name: str, help: str, labels: _Labels, **options: object) -> _Series:
    unit: Literal["", "seconds", "bytes"] = ""
    if name.endswith("_seconds"):
        unit = "seconds"
    elif name.endswith("_bytes"):
        unit = "bytes"
    kind: Literal["counter", "gauge", "histogram"] = (
        "counter" if made is Counter else "gauge" if made is Gauge else "histogram"
    )
    METRICS[name] = Metric(name, kind, unit, help, {label: tuple(values) for label, values in labels.items()})
    return made(name, help, list(labels), registry=REGISTRY, **options)  # type: ignore[arg-type]


def counter(name: str, help: str) -> Counter:
    """A counter without labels."""
    return _declare(Counter, name, help, _NO_LABELS)


def gauge(name: str, help: str) -> Gauge:
    """A gauge without labels."""
    return _declare(Gauge, name, help, _NO_LABELS)


def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
    """A histogram without labels; ``buckets`` in its unit."""
    return _declare(Histogram, name, help, _NO_LABELS, buckets=buckets)


def counters(name: str, help: str, label: str, values: Collection[_Value]) -> dict[_Value, Counter]:
    """A counter for each value of its one label."""
    family = _declare(Counter, name, help, {label: values})
    return {value: family.labels(value) for value in values}


def histograms(
    name: str, help: str, label: str, values: Collection[_Value], buckets: tuple[float, ...]
) -> dict[_Value, Histogram]:
    """A histogram for each value of its one label; ``buckets`` in its unit."""
    family = _declare(Histogram, name, help, {label: values}, buckets=buckets)
    return {value: family.labels(value) for value in values}


class Made(dict[tuple[str, ...], _Series]):
    """Series that are made when they are first needed, by the values of their labels in the order of declaration."""

    def __init__(self, made: type[_Series], name: str, help: str, labels: _Labels, **options: object) -> None:
        super().__init__()
        self._family = _declare(made, name, help, labels, **options)
        self._closed = list(labels.values())

    def __missing__(self, values: tuple[str, ...]) -> _Series:
        """Makes the series.

        Raises:
            ValueError: a label cannot have this value.
        """
        if len(values) != len(self._closed) or not all(map(_contains, self._closed, values)):
            raise ValueError("a label has a value that is not declared")
        self[values] = series = self._family.labels(*values)
        return series


def _contains(closed: Collection[str], value: str) -> bool:
    return value in closed
