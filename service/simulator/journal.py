"""What was asked and what was answered: the evidence tests and checkers work with.

In memory are the last `KEPT` requests to the two message endpoints, each with its body as received and the text
sent so far. With a log file each *finished* request to `/v1/messages` also becomes one JSON line, for checkers
that need all of them: `{n, model, messages, answer, outcome}`. A line is one write to a file opened for
appending, so lines of concurrent requests, or of two simulators sharing a file, never tear.

Outcomes: `running`, then one of `complete` (the whole answer was sent, a refusal too), `error` (an error was
answered, or sent in the stream, or a page of garbage), `cut` (a fault ended the answer early), `disconnected`
(the client left, or the simulator was stopped, first).
"""

import os
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

KEPT = 256
BODY_BYTES_KEPT_MAX = 1024 * 1024
HIDDEN_HEADERS = frozenset({"authorization", "x-api-key"})
LOGGED_PATH = "/v1/messages"


@dataclass(slots=True)
class Entry:
    """One request, while it runs and after.

    Attributes:
        n: counts from 1 in the order requests arrived.
        body: JSON as received, a note where it was too long to keep, `null` where it was none.
        parsed: the same as an object, until the request has finished.
        sent: the answer's text as far as it went out.
    """

    n: int
    at: str
    path: str
    headers: dict[str, str]
    body: bytes = b"null"
    parsed: dict[str, Any] | None = None
    sent: list[str] = field(default_factory=list)
    outcome: str = "running"

    def read(self, raw: bytes, parsed: dict[str, Any]) -> None:
        """Keep a body that proved to be JSON: as bytes, since few are ever looked at."""
        if len(raw) <= BODY_BYTES_KEPT_MAX:
            self.body = raw
        else:
            self.body = orjson.dumps(f"left out: {len(raw)} bytes")
        self.parsed = parsed

    def render(self) -> dict[str, Any]:
        """Return the object `GET /simulator/requests` shows; its body is a fragment for orjson."""
        return {
            "n": self.n,
            "at": self.at,
            "path": self.path,
            "headers": self.headers,
            "body": orjson.Fragment(self.body),
            "outcome": self.outcome,
            "answer": _bounded("".join(self.sent)),
        }


def _bounded(text: str) -> str:
    return text if len(text) <= BODY_BYTES_KEPT_MAX else f"left out: {len(text)} characters"


class Journal:
    """The requests this process has seen.

    Args:
        log_path: file to append a line to per finished request; its directory must exist.
    """

    def __init__(self, log_path: Path | None) -> None:
        self._log_path = log_path
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self.total = 0
        self.running = 0

    def begin(self, path: str, headers: dict[str, str]) -> Entry:
        """Note the arrival of a request; its credential is not kept."""
        self.total += 1
        self.running += 1
        shown = {name: value for name, value in headers.items() if name not in HIDDEN_HEADERS}
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = Entry(self.total, at, path, shown)
        self._entries.append(entry)
        return entry

    def finish(self, entry: Entry, outcome: str) -> None:
        """Note how a request ended, and append its line; of several calls for one entry the first counts."""
        if entry.outcome != "running":
            return
        self.running -= 1
        entry.outcome = outcome
        entry.sent = ["".join(entry.sent)]
        if self._log_path is not None and entry.path == LOGGED_PATH:
            self._append(entry, self._log_path)
        entry.parsed = None

    def last(self, limit: int) -> list[dict[str, Any]]:
        """Return the last `limit` requests, newest last."""
        return [entry.render() for entry in list(self._entries)[-limit:]]

    def _append(self, entry: Entry, path: Path) -> None:
        body = entry.parsed or {}
        line = orjson.dumps(
            {
                "n": entry.n,
                "model": body.get("model"),
                "messages": body.get("messages"),
                "answer": entry.sent[0],
                "outcome": entry.outcome,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        # Opened for each line: nothing to close at the end, and a file moved away is not written to for ever.
        target = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(target, line)
        finally:
            os.close(target)
