"""Every metric and log field, declared once.

Metrics: names end in their unit, labels have closed sets of values, no id is ever a label. Logs: one line an event,
with request, session and turn ids; never content, keys or names that callers chose. A terminal gets readable lines,
anything else JSON.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Scope

log: structlog.stdlib.BoundLogger = structlog.get_logger("baton")
_audit: Any = structlog.get_logger("baton")

REGISTRY = CollectorRegistry()
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUESTS = Counter("baton_requests", "HTTP requests answered.", ["route", "status"], registry=REGISTRY)
TURNS = Counter("baton_turns", "Turns settled: committed, incomplete, aborted, …", ["outcome"], registry=REGISTRY)
TURNS_RUNNING = Gauge("baton_turns_running", "Exchanges with Claude under way.", registry=REGISTRY)
TURNS_WAITING = Gauge("baton_turns_waiting", "Turns waiting for another of their session.", registry=REGISTRY)
CONFLICTS = Counter("baton_conflicts", "Turns that found their session busy.", ["policy"], registry=REGISTRY)
DEAD_TURNS_FOUND = Counter("baton_dead_turns_found", "Turns of vanished replicas declared dead.", registry=REGISTRY)
PHASE_SECONDS = Histogram(
    "baton_turn_phase_seconds", "Phases of a turn.", ["phase"], buckets=_SECONDS, registry=REGISTRY
)
# Children of the hot path, looked up once.
QUEUE_SECONDS = PHASE_SECONDS.labels("queue")
BEGIN_SECONDS = PHASE_SECONDS.labels("begin")
HISTORY_SECONDS = PHASE_SECONDS.labels("history")
FIRST_EVENT_SECONDS = PHASE_SECONDS.labels("first_event")
COMMIT_SECONDS = PHASE_SECONDS.labels("commit")
REPLAYS = Counter(
    "baton_replays", "Requests that were earlier turns sent again: replayed or followed.", ["how"], registry=REGISTRY
)
FOLLOWERS = Gauge("baton_followers", "Callers who follow a turn by its events.", registry=REGISTRY)
EPOCHS = Counter(
    "baton_epochs", "Epochs that began within a session, by what was changed.", ["reason"], registry=REGISTRY
)
CANCELS = Counter("baton_cancels", "Turns that were asked to stop.", registry=REGISTRY)
UPSTREAM_RETRIES = Counter("baton_upstream_retries", "Requests to Claude sent again.", registry=REGISTRY)
TOKENS = Counter("baton_tokens", "Tokens as Claude counted them.", ["kind"], registry=REGISTRY)
TOKENS_BY_KIND = {kind: TOKENS.labels(kind) for kind in ("input", "output", "cache_read", "cache_written")}
SESSIONS_CREATED = Counter("baton_sessions_created", "Sessions created here.", registry=REGISTRY)
SESSIONS_ENDED = Counter(
    "baton_sessions_ended", "Sessions taken out here: expired, evicted, deleted.", ["reason"], registry=REGISTRY
)
SESSIONS_INDEXED = Gauge(
    "baton_sessions_indexed", "Sessions in all indexes, as last counted by this replica.", registry=REGISTRY
)
BUCKETS_SWEPT = Counter("baton_buckets_swept", "Buckets that this replica swept.", registry=REGISTRY)
STORE_UP = Gauge("baton_store_up", "1 while the store takes writes.", registry=REGISTRY)
BREAKER_OPEN = Gauge(
    "baton_store_breaker_open",
    "1 while the store does not answer and requests that need it are refused.",
    registry=REGISTRY,
)
BREAKER_OPEN.set(1)  # until first contact
BREAKER_OPENINGS = Counter("baton_store_breaker_openings", "Times that the store was found away.", registry=REGISTRY)
STORE_BUSY = Counter(
    "baton_store_busy",
    "Calls that found all connections to the store in use for the whole wait, while it answered others.",
    registry=REGISTRY,
)
REFUSED = Counter("baton_requests_refused", "Requests that the gate refused, by code.", ["code"], registry=REGISTRY)
REVOKED = Counter(
    "baton_requests_revoked", "Running requests that ended because their key was taken away.", registry=REGISTRY
)


@contextlib.contextmanager
def request(request_id: str) -> Iterator[None]:
    """Binds the request id to every log line within."""
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        yield


def request_done(scope: Scope, status: int, duration_s: float) -> None:
    """Counts and logs one finished request. Status 499: the caller hung up first; 0: closed without an answer."""
    endpoint = scope.get("endpoint")
    route = getattr(endpoint, "__qualname__", type(endpoint).__name__) if endpoint else "none"
    REQUESTS.labels(route, str(status)).inc()
    log.debug("request", route=route, status=status, duration_ms=round(duration_s * 1000, 1))


def audit(action: str, *, outcome: str, **told: str) -> None:
    """One line for what an administrator did or tried, whatever the least level that is logged.

    Args:
        action: what.
        outcome: ``done``, or the code of the error that was told.
        told: by whom (principal, key) and of which key; ids and principals only.
    """
    _audit.info("audit", action=action, outcome=outcome, **told)


class _Libraries(logging.Handler):
    """What libraries log becomes an event like ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """One record, one line."""
        told = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            told["exc_info"] = record.exc_info  # type: ignore[assignment]
        log.log(record.levelno, "library", **told)


def configure(log_format: str, log_level: str) -> None:
    """Sets up logging for the process; `log_format` as in settings."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    # Plain tracebacks: the pretty ones print local variables, and those hold what callers said.
    pretty = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = pretty if console else structlog.processors.JSONRenderer()
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not console:
        processors.append(structlog.processors.format_exc_info)
    global _audit
    _audit = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
    )
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[log_level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)
