"""Faults on demand and pacing: how an answer goes wrong, and how slowly it comes.

Faults wait in a queue. A request to `/v1/messages` that the rules accepted takes the first one whose `match` it
satisfies, so a refused request uses none up; each request takes one at most. In a stream and in a JSON answer:

    kind              stream                                   JSON
    rate_limit        429 rate_limit_error, with `retry-after` if `retry_after_s` is given
    overloaded        529 overloaded_error
    error             500 api_error
    error_mid_stream  an `error` event of `error_type`         the error with its own status
                      behind `after_deltas` deltas
    cut               the connection closes in the middle      half the body, then the connection closes
    clean_end         a proper end, but no `message_stop`      half the body as if it were whole
    slow_first_byte   nothing for `delay_ms`
    slow_deltas       `delay_ms` ahead of each delta           the sum of these ahead of the body
    refusal           stop reason `refusal`, no content
    hang              nothing at all until the client leaves
    garbage           200 with an HTML page

`after_deltas` counts `content_block_delta` events of every kind; an answer that has fewer is interrupted ahead
of its `message_delta`, so an interrupted answer never looks complete.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import orjson

from service.simulator.errors import STATUS_BY_TYPE, ApiError

TIMES_MAX = 10_000
QUEUE_MAX = 10_000
DELAY_MS_MAX = 3_600_000
AFTER_DELTAS_MAX = 1_000_000

FIELDS_BY_KIND: dict[str, frozenset[str]] = {
    "rate_limit": frozenset({"retry_after_s"}),
    "overloaded": frozenset(),
    "error": frozenset(),
    "error_mid_stream": frozenset({"after_deltas", "error_type"}),
    "cut": frozenset({"after_deltas"}),
    "clean_end": frozenset({"after_deltas"}),
    "slow_first_byte": frozenset({"delay_ms"}),
    "slow_deltas": frozenset({"delay_ms"}),
    "refusal": frozenset(),
    "hang": frozenset(),
    "garbage": frozenset(),
}
COMMON_FIELDS = frozenset({"kind", "times", "match"})


@dataclass(slots=True, eq=False)
class Fault:
    """One entry of the queue; `times` counts down as requests take it. Two alike are still two."""

    kind: str
    times: int = 1
    match: str | None = None
    after_deltas: int = 1
    delay_ms: float = 0
    retry_after_s: float | None = None
    error_type: str = "overloaded_error"

    @property
    def interrupts(self) -> bool:
        """Whether it ends an answer that has begun."""
        return self.kind in ("error_mid_stream", "cut", "clean_end")

    def error(self) -> ApiError | None:
        """Return the error it answers with instead of a message, if it is one of that sort."""
        if self.kind == "rate_limit":
            retry_after = {} if self.retry_after_s is None else {"retry-after": f"{self.retry_after_s:g}"}
            message = "This request would exceed your organization's rate limit. Please try again later."
            return ApiError("rate_limit_error", message, headers=retry_after)
        if self.kind == "overloaded":
            return ApiError("overloaded_error", "Overloaded")
        if self.kind == "error":
            return ApiError("api_error", "Internal server error")
        return None


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast answers come: the wait ahead of the first byte, and ahead of each delta. 0 is at once."""

    first_byte_ms: float = 0
    delta_ms: float = 0


def parse_fault(fields: Any) -> Fault:
    """Read a fault from the JSON of the control surface.

    Raises:
        ValueError: with a sentence for the caller, for an unknown kind or field or a value out of bounds.
    """
    if not isinstance(fields, dict):
        raise ValueError("a fault is a JSON object")
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in FIELDS_BY_KIND:
        raise ValueError(f"unknown kind {kind!r}; there are: {', '.join(FIELDS_BY_KIND)}")
    if unknown := sorted(fields.keys() - COMMON_FIELDS - FIELDS_BY_KIND[kind]):
        raise ValueError(f"{kind} takes no field {unknown[0]!r}")
    fault = Fault(**fields)
    _whole("times", fault.times, 1, TIMES_MAX)
    _whole("after_deltas", fault.after_deltas, 0, AFTER_DELTAS_MAX)
    _number("delay_ms", fault.delay_ms, DELAY_MS_MAX)
    if fault.retry_after_s is not None:
        _number("retry_after_s", fault.retry_after_s, DELAY_MS_MAX)
    if fault.match is not None and (not isinstance(fault.match, str) or not fault.match):
        raise ValueError("match must be a non-empty string")
    if not isinstance(fault.error_type, str) or fault.error_type not in STATUS_BY_TYPE:
        raise ValueError(f"unknown error_type {fault.error_type!r}; there are: {', '.join(STATUS_BY_TYPE)}")
    return fault


def parse_pace(fields: Any, present: Pace) -> Pace:
    """Read a change of pace; what it does not name stays as it is.

    Raises:
        ValueError: with a sentence for the caller.
    """
    if not isinstance(fields, dict):
        raise ValueError("a pace is a JSON object")
    if unknown := sorted(fields.keys() - {"first_byte_ms", "delta_ms"}):
        raise ValueError(f"unknown field {unknown[0]!r}; there are: first_byte_ms, delta_ms")
    for name, value in fields.items():
        _number(name, value, DELAY_MS_MAX)
    return Pace(fields.get("first_byte_ms", present.first_byte_ms), fields.get("delta_ms", present.delta_ms))


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}")


def _number(name: str, value: Any, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise ValueError(f"{name} must be a number from 0 to {high}")


class FaultQueue:
    """The faults that are waiting, first in first out; at most `QUEUE_MAX` entries."""

    def __init__(self) -> None:
        self._waiting: deque[Fault] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, fault: Fault) -> None:
        """Add a fault behind the others.

        Raises:
            ValueError: the queue is full.
        """
        if len(self._waiting) >= QUEUE_MAX:
            raise ValueError(f"{QUEUE_MAX} faults are waiting already")
        self._waiting.append(fault)

    def clear(self) -> None:
        """Forget all that are waiting; requests that took one already keep it."""
        self._waiting.clear()

    def take(self, body: dict[str, Any]) -> Fault | None:
        """Take the first fault that is meant for a request, or `None`.

        A fault with `match` is meant for requests whose body holds that string, either inside one of its strings
        or as a piece of compact JSON such as `"stream":true`. Cost: none of it is done while nothing waits.
        """
        text: str | None = None
        for fault in self._waiting:
            if fault.match is not None:
                if text is None:
                    text = orjson.dumps(body).decode()
                escaped = orjson.dumps(fault.match).decode()[1:-1]
                if fault.match not in text and escaped not in text:
                    continue
            fault.times -= 1
            if fault.times == 0:
                self._waiting.remove(fault)  # safe while iterating, as the iteration ends here
            return fault
        return None
