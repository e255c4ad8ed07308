"""Log lines: one an event, with the ids of its request, session and turn, and never what callers said.

What may be in a line is declared here (`FIELDS`); another field is left out, and its name told. Values cannot forge
lines: whatever is not printable is escaped, and what is long is cut. Of an exception the types and the places are told,
not the words, for those may quote a request; of what libraries log, the place that logged it, for the same reason.

Lines that come as often as requests fail (`SELDOM`) are limited: ten of one event in ten seconds. A later one tells how
many were left out.

A terminal gets readable lines, anything else one JSON object a line.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

import orjson
import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger("baton")
_audit: Any = log

FIELDS: Final = frozenset(
    {
        *("event", "level", "timestamp", "request_id", "session", "turn", "replica", "version"),
        *("method", "route", "status", "dialect", "model", "streamed", "replayed", "outcome"),
        *("duration_ms", "queue_ms", "first_event_ms", "answer_ms", "notice_s", "drain_s"),
        *("input_tokens", "output_tokens", "cache_read_tokens", "cache_written_tokens"),
        *("attempt", "code", "claude_request_id", "unknown", "cause", "warning", "problem", "health"),
        *("action", "by", "by_key", "key", "principal", "mode", "changed"),
        *("bucket", "sessions", "unwritten_bytes", "url", "logger", "where", "exception", "left_out", "undeclared"),
        "covers",
    }
)
SELDOM: Final = frozenset(
    {
        *(
            "abort_unanswered",
            "aborted_late",
            "checkpoint_failed",
            "claude_refused",
            "client_stalled",
            "commit_unanswered",
        ),
        *("delivery_not_noted", "library", "models_not_listed", "session_corrupt"),
        *(
            "store_unreachable",
            "sweep_cut_short",
            "thinking_refused",
            "tokens_not_counted",
            "upstream_failed",
            "upstream_retry",
        ),
    }
)
_SELDOM_MAX: Final = 10
_SELDOM_S: Final = 10.0
_VALUE_CHARACTERS_MAX: Final = 500
_CAUSES_MAX: Final = 8
_FRAMES_MAX: Final = 30
_NUMBERS: Final = frozenset({int, float, bool})
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@contextlib.contextmanager
def of_request(request_id: str) -> Iterator[None]:
    """Every line that is logged within, and by tasks that are begun within, has this request id."""
    before = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(before)


def safe(text: str) -> str:
    """The text on one line, whatever it holds: printable, and not too long."""
    if len(text) > _VALUE_CHARACTERS_MAX:
        text = text[:_VALUE_CHARACTERS_MAX] + "…"
    return text if text.isprintable() else text.encode("unicode_escape", "backslashreplace").decode("ascii")


def in_places(error: BaseException) -> str:
    """An exception and its causes by their types and places, one a line, the innermost place last."""
    lines: list[str] = []
    for one in _causes(error):
        lines.append(f"{type(one).__module__}.{type(one).__qualname__}")
        lines += _places(one.__traceback__)
    return "\n".join(lines)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting = [error]
    while waiting and len(seen) < _CAUSES_MAX:
        one = waiting.pop(0)
        if any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        cause = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        waiting += [cause] if cause is not None else []


def _places(trace: TracebackType | None) -> list[str]:
    places = []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_qualname}")
        trace = trace.tb_next
    return places[-_FRAMES_MAX:]


def _with_request_id(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (request_id := _request_id.get()) is not None:
        event["request_id"] = request_id
    return event


def _with_exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = in_places(error)
    return event


def _declared(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leaves out what is not declared, and makes the rest safe; of an exception every line is."""
    told: dict[str, Any] = {}
    undeclared = []
    for name, value in event.items():
        if name not in FIELDS:
            undeclared.append(name)
        elif type(value) is str:
            told[name] = value if name == "exception" else safe(value)
        elif type(value) in _NUMBERS:
            told[name] = value
        elif value is not None:
            told[name] = safe(str(value))
    if undeclared:
        told["undeclared"] = " ".join(sorted(undeclared))
    return told


class Seldom:
    """The limit on lines that come as often as requests fail; a processor."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}  # event → when its ten seconds began, lines since

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Passes a line on, or drops it."""
        name = event["event"]
        if name not in SELDOM:
            return event
        now = time.monotonic()
        began, lines = self._windows.get(name, (float("-inf"), 0))
        if now - began > _SELDOM_S:
            if lines > _SELDOM_MAX:
                event["left_out"] = lines - _SELDOM_MAX
            began, lines = now, 0
        self._windows[name] = (began, lines + 1)
        if lines >= _SELDOM_MAX:
            raise structlog.DropEvent
        return event


class Libraries(logging.Handler):
    """What libraries log becomes an event of ours that tells where it was logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """One record, one line."""
        told: dict[str, Any] = {"logger": record.name, "where": f"{record.pathname}:{record.lineno}"}
        if record.exc_info:
            told["exc_info"] = record.exc_info
        log.log(record.levelno, "library", **told)


def audit(action: str, *, outcome: str, **told: str) -> None:
    """One line for what an administrator did or tried, whatever the least level that is logged.

    Args:
        action: what.
        outcome: ``done``, or the code of the error that was told.
        told: by whom (principal, key) and of which key; ids and principals only.
    """
    _audit.info("audit", action=action, outcome=outcome, **told)


def audit_line(action: str, *, outcome: str, **told: str) -> bytes:
    """The same as JSON, for a process that has no log of its own."""
    event: MutableMapping[str, Any] = {"event": "audit", "level": "info", "action": action, "outcome": outcome, **told}
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    return orjson.dumps(stamp(None, "info", _declared(None, "info", event)))


def configure(log_format: str, log_level: str) -> None:
    """Sets up logging for the process; the arguments are as in settings."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    processors: list[Any] = [
        Seldom(),
        _with_request_id,
        structlog.processors.add_log_level,
        _with_exception,
        _declared,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(orjson.dumps)
    factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    if not console:
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    global _audit
    _audit = structlog.wrap_logger(
        factory(),
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
    )
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[log_level.upper()]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[Libraries()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    sys.excepthook = lambda _kind, error, _trace: log.critical("crashed", exc_info=error)
    sys.unraisablehook = lambda told: log.error("unraisable", exc_info=told.exc_value)
    threading.excepthook = lambda told: log.error("thread_crashed", exc_info=told.exc_value)
