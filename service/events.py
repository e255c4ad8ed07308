"""Claude's server-sent events: cut from bytes, parsed once, kept whole; pure.

Source: Messages API, "Streaming"; the format is the WHATWG HTML standard's, "Server-sent events".
"""

import re
from typing import Any, Final, NamedTuple

import orjson

from service.errors import BatonError

_TYPE: Final = re.compile(r"[\w.-]+", re.ASCII)
_EVENT_BYTES_MAX: Final = 64 * 1024 * 1024


class Event(NamedTuple):
    """One server-sent event: its type, its JSON in one line as it came, and the same parsed."""

    type: str
    raw: bytes
    data: dict[str, Any]


class EventReader:
    """Cuts bytes into events, whatever the chunks. Comments and fields other than ``data`` are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._half_line_end = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes, in order.

        Raises:
            BatonError: upstream_nonsense, if an event is not a JSON object with a type, or has no end.
        """
        if self._half_line_end:
            chunk = b"\r" + chunk
        if b"\r" in chunk:
            # A carriage return at the end may be half of a line end: it waits for the other half.
            self._half_line_end = chunk.endswith(b"\r")
            chunk = chunk.removesuffix(b"\r").replace(b"\r\n", b"\n")
        *frames, self._rest = (self._rest + chunk if self._rest else chunk).split(b"\n\n")
        if len(self._rest) > _EVENT_BYTES_MAX:
            raise BatonError("upstream_nonsense", "Claude's stream holds an event without an end.")
        return [event for frame in frames if (event := _event(frame)) is not None]


def _event(frame: bytes) -> Event | None:
    lines = [line[5:].lstrip() for line in frame.split(b"\n") if line.startswith(b"data:")]
    if not lines:
        return None
    raw = lines[0] if len(lines) == 1 else b"\n".join(lines)
    try:
        data = orjson.loads(raw)
        if not _TYPE.fullmatch(data["type"]):
            raise ValueError("no name of an event")
        return Event(data["type"], raw if len(lines) == 1 else orjson.dumps(data), data)
    except (ValueError, KeyError, TypeError):
        raise BatonError("upstream_nonsense", "Claude's stream holds an event that is not JSON.") from None
