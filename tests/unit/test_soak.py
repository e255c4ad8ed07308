"""What the long runs of `bench` call a failure."""

from collections import Counter
from dataclasses import replace

import pytest

from bench.soak import Sample, leaks
from bench.streams import held

IDLE = Sample(0, [60.0, 60.0], [20, 20], connections=4, keys=1, store_mb=2.0)
RUN = [replace(IDLE, turns=100 * number, resident_mb=[80.0, 80.0]) for number in range(1, 13)]
END = replace(RUN[-1], connections=10)


def found(**end: object) -> list[str]:
    return leaks(IDLE, RUN, replace(END, **end), Counter(), 0)  # type: ignore[arg-type]


def test_a_run_that_leaves_nothing_is_fine() -> None:
    assert leaks(IDLE, RUN, END, Counter(), 0) == []


def test_memory_of_a_replica_that_grows_is_told() -> None:
    grown = [*RUN[:-1], replace(RUN[-1], resident_mb=[80.0, 89.0])]
    assert leaks(IDLE, grown, END, Counter(), 0) == ["replica 1 grew from 80.0 to 89.0 MB"]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ({"descriptors": [20, 60]}, "replica 1 had 20 descriptors open before, and 60 after"),
        ({"connections": 40}, "there were 4 connections to the store before, and 40 after"),
        ({"store_mb": 9.0}, "the empty store grew from 2.0 to 9.0 MB"),
    ],
)
def test_what_is_still_there_is_told(end: dict[str, object], said: str) -> None:
    assert found(**end) == [said]


def test_a_lease_and_a_key_that_are_left_are_told() -> None:
    assert leaks(IDLE, RUN, END, Counter(), 2) == ["2 sessions have a holder, and no turn runs"]
    assert leaks(IDLE, RUN, END, Counter({"s": 3}), 0) == ["keys are left: {'s': 3}"]


def test_streams_hold_if_all_came_whole_and_none_stood_still() -> None:
    assert held({"whole": 10, "stalls": 0}, 10)
    assert not held({"whole": 9, "stalls": 0}, 10)
    assert not held({"whole": 10, "stalls": 1}, 10)
