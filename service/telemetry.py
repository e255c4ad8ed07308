"""Every metric, declared once: what it counts, its unit, and every value that its labels can have.

Names end in their unit, seconds or bytes; what has none is a number of things. The values of a label are a closed set,
given where the metric is declared; there is no series for another one, and asking for it is an error (`KeyError` or
`ValueError`), so no id, name or text of a caller can become one. Series exist from the start, at 0, so that the first
event is an increase; only those by route, of which most never come about, are made when they are first needed.

Counting costs about a microsecond: series are found in a dict, or are names of this module.
"""

import contextlib
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal, get_args

from prometheus_client import Counter, Gauge, Histogram, ProcessCollector
from starlette.types import Scope

from service import __version__, families, logs
from service.errors import CODES
from storage.results import StoreBusy, StoreUnavailable
from storage.scripts import READ, VERBS
from storage.turns import Usage

log = logs.log
REGISTRY: Final = families.REGISTRY
METRICS: Final = families.METRICS

Outcome = Literal[
    "complete",
    "incomplete",
    "refused",
    "appended",
    "aborted",
    "removed",
    "superseded",
    "session_gone",
    "not_saved",
    "unknown",
]
Phase = Literal["queue", "begin", "history", "first_event", "answer", "commit", "abort", "turn"]
Token = Literal["input", "output", "cache_read", "cache_written"]
Replay = Literal["replayed", "followed"]
EpochReason = Literal["model", "system", "tools", "thinking", "checkpoint", "refused", "context"]
CheckpointOutcome = Literal["stored", "stale", "held", "failed", "ended"]
Policy = Literal["queue", "reject"]
SessionEnd = Literal["expired", "evicted", "deleted"]
Refusal = Literal["draining", "turns", "followers"]
BodyRefusal = Literal["too_large", "late", "full"]
StoreFailure = Literal["unavailable", "unknown", "busy"]
Fault = Literal["caller", "claude", "store", "baton", "interrupted"]
Kind = Literal["embedded", "standalone", "sentinel", "cluster"]
UPSTREAM_OUTCOMES: Final = (
    *("answered", "given_up", "rate_limited", "overloaded", "unavailable", "timeout", "refused", "nonsense"),
    "invalid_request",
)
"""Of one request to Claude; ``given_up``: no longer wanted, ``invalid_request``: whatever the caller could mend."""

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
ROUTES: Final = (
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/sessions",
    "/v1/sessions/stats",
    "/v1/sessions/{session}",
    "/v1/sessions/import",
    "/v1/sessions/{session}/export",
    "/v1/sessions/{session}/fork",
    "/v1/sessions/{session}/compact",
    "/v1/sessions/{session}/messages",
    "/v1/sessions/{session}/shares",
    "/v1/sessions/{session}/shares/{principal:path}",
    "/v1/sessions/{session}/turns",
    "/v1/sessions/{session}/turns/{turn}",
    "/v1/sessions/{session}/turns/{turn}/cancel",
    "/v1/sessions/{session}/turns/{turn}/events",
    "/v1/models",
    "/v1/models/{model:path}",
    "/v1/admin/keys",
    "/v1/admin/keys/{key}",
    "/v1/admin/keys/{key}/rotate",
    "/livez",
    "/readyz",
    "/health",
    "/version",
    "/metrics",
    "/openapi.json",
    "/",
    "other",
)
"""The paths of the routes (app.py); every other path is ``other``."""
STATUSES: Final = (
    *("200", "201", "202", "204", "499", "529"),
    *sorted({str(code.status) for code in CODES.values()}),
    *("2xx", "3xx", "4xx", "5xx", "none"),
)
"""499: the caller hung up first; ``none``: closed without an answer; ``4xx``: one that only Claude could have said."""

_FROM_5_MS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_FROM_1_MS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)


# Requests.
_BY_ROUTE: Final = {"method": METHODS, "route": ROUTES}
REQUESTS = families.Made(Counter, "baton_requests", "HTTP requests answered.", {**_BY_ROUTE, "status": STATUSES})
REQUEST_SECONDS = families.Made(
    Histogram,
    "baton_request_seconds",
    "From the end of a request's headers to the end of its answer; of a stream, its length.",
    _BY_ROUTE,
    buckets=_FROM_5_MS,
)
REQUESTS_RUNNING = families.gauge("baton_requests_running", "HTTP requests that are being answered.")
ERRORS = families.Made(
    Counter,
    "baton_errors",
    "Errors that callers were told, also in streams, by code (docs/api.md) and by whose fault it was.",
    {"route": ROUTES, "code": tuple(CODES), "fault": get_args(Fault)},
)
REFUSALS = families.counters(
    "baton_refusals",
    "Requests refused before they began: the replica drains, or has all the turns or followers that it may have.",
    "reason",
    get_args(Refusal),
)
REVOKED = families.counter("baton_requests_revoked", "Running requests that ended because their key was taken away.")
BODIES_REFUSED = families.counters(
    "baton_bodies_refused",
    "Request bodies refused: too large, late, or beyond what the replica may hold.",
    "reason",
    get_args(BodyRefusal),
)
BODIES_BYTES = families.gauge("baton_bodies_bytes", "Request bodies that this replica holds.")
BODIES_MAX_BYTES = families.gauge("baton_bodies_max_bytes", "Request bodies that it may hold (BATON_BODIES_BYTES_MAX).")
STREAMS_RUNNING = families.gauge(
    "baton_streams_running", "Streams of events to callers: of their turns, and followed ones."
)
KEEPALIVES = families.counter("baton_keepalives", "Keep-alives sent into silent streams.")
CLIENTS_STALLED = families.counter(
    "baton_clients_stalled", "Connections closed because the caller took nothing any more."
)

# Turns.
TURNS = families.counters("baton_turns", "Turns settled, by what became of them.", "outcome", get_args(Outcome))
PHASE_SECONDS = families.histograms(
    "baton_turn_phase_seconds",
    "Phases of a turn: waiting for another one, begin, history, Claude's first event (with retries), the whole answer, "
    "commit, abort; and the turn from begin to its end. Of requests without a session the phases that they have.",
    "phase",
    get_args(Phase),
    _FROM_5_MS,
)
TURNS_RUNNING = families.gauge(
    "baton_turns_running", "Exchanges with Claude under way, those that wait for one included."
)
TURNS_RUNNING_MAX = families.gauge("baton_turns_running_max", "Exchanges that there may be (BATON_TURNS_RUNNING_MAX).")
TURNS_WAITING = families.gauge("baton_turns_waiting", "Turns waiting for another of their session.")
CONFLICTS = families.counters("baton_conflicts", "Turns that found their session busy.", "policy", get_args(Policy))
DEAD_TURNS_FOUND = families.counter("baton_dead_turns_found", "Turns of vanished replicas declared dead.")
REPLAYS = families.counters(
    "baton_replays", "Requests that were earlier turns sent again: replayed or followed.", "how", get_args(Replay)
)
FOLLOWERS = families.gauge("baton_followers", "Callers who follow a turn by its events.")
EPOCHS = families.counters(
    "baton_epochs", "Epochs that began within a session, by what was changed.", "reason", get_args(EpochReason)
)
CHECKPOINTS = families.counters(
    "baton_checkpoints",
    "Checkpoints, by how making one ended: stale: the session was rewound meanwhile, or had gone on before it began; "
    "held: another replica makes it; ended: this replica's end came first.",
    "outcome",
    get_args(CheckpointOutcome),
)
CHECKPOINTS_RUNNING = families.gauge("baton_checkpoints_running", "Checkpoints that are being made.")
CANCELS = families.counter("baton_cancels", "Turns that were asked to stop.")
DELIVERIES_WAITING = families.gauge("baton_deliveries_waiting", "Answers whose delivery is still to be noted.")

# Claude.
UPSTREAM_REQUESTS = families.counters(
    "baton_upstream_requests", "Requests sent to Claude, retries too, by how they ended.", "outcome", UPSTREAM_OUTCOMES
)
UPSTREAM_FIRST_BYTE_SECONDS = families.histogram(
    "baton_upstream_first_byte_seconds",
    "From sending a request to Claude to the first of its answer, each attempt by itself.",
    _FROM_5_MS,
)
UPSTREAM_RETRIES = families.counter("baton_upstream_retries", "Requests to Claude sent again.")
TOKENS = families.counters(
    "baton_tokens",
    "Tokens as Claude counted them, whatever became of the answer; not of what is passed through without a session.",
    "kind",
    get_args(Token),
)

# Sessions.
SESSIONS_CREATED = families.counter("baton_sessions_created", "Sessions created here.")
SESSIONS_ENDED = families.counters(
    "baton_sessions_ended", "Sessions taken out here: expired, evicted, deleted.", "reason", get_args(SessionEnd)
)
SESSIONS_INDEXED = families.gauge("baton_sessions_indexed", "Sessions in all indexes, as last counted by this replica.")
SESSIONS_MAX = families.gauge("baton_sessions_max", "Sessions that there may be in all (BATON_SESSIONS_MAX).")
BUCKETS_SWEPT = families.counter("baton_buckets_swept", "Buckets that this replica swept.")
SWEPT_TIMESTAMP_SECONDS = families.gauge(
    "baton_swept_timestamp_seconds", "When this replica last swept a bucket, or began to wait for its first one."
)
SWEEP_INTERVAL_SECONDS = families.gauge(
    "baton_sweep_interval_seconds", "How often each bucket is to be swept by somebody."
)

# The store.
STORE_UP = families.gauge("baton_store_up", "1 while the store takes writes.")
BREAKER_OPEN = families.gauge(
    "baton_store_breaker_open", "1 while the store does not answer and requests that need it are refused."
)
BREAKER_OPEN.set(1)  # until first contact
BREAKER_OPENINGS = families.counter("baton_store_breaker_openings", "Times that the store was found away.")
STORE_BUSY = families.counter(
    "baton_store_busy",
    "Calls that found all connections to the store in use for the whole wait, while it answered others.",
)
STORE_SECONDS = families.histograms(
    "baton_store_seconds",
    "Calls of the store by verb, with what was sent again; `read` takes no script: the history of a turn above all.",
    "verb",
    (*VERBS, READ),
    _FROM_1_MS,
)
STORE_FAILURES = families.counters(
    "baton_store_failures",
    "Calls of the store that failed: not answered or refused, of unknown outcome, or without a free connection.",
    "kind",
    get_args(StoreFailure),
)
STORE_MEMORY_BYTES = families.gauge("baton_store_memory_bytes", "Memory of the fullest primary of the store.")
STORE_MEMORY_MAX_BYTES = families.gauge("baton_store_memory_max_bytes", "What that primary may use; 0 without a limit.")
STORE_APPEND_ONLY = families.gauge("baton_store_append_only", "1 if every primary has an append-only file.")
STORE_REPLICAS = families.gauge("baton_store_replicas", "Replicas of all primaries of the store.")
STORE_REPLICAS_BEHIND = families.gauge("baton_store_replicas_behind", "Those of them that are not in step.")
STORE_CLOCK_AHEAD_SECONDS = families.gauge(
    "baton_store_clock_ahead_seconds", "How far the store's clock is ahead of this replica's; negative if behind."
)

# The process.
LOOP_LAG_SECONDS = families.histogram(
    "baton_event_loop_lag_seconds", "How late a timer of 250 ms fires: what everything else waits, too.", _FROM_1_MS
)
DRAINING = families.gauge("baton_draining", "1 once this replica has been told to end: /readyz is 503.")
MEMORY_MAX_BYTES = families.gauge("baton_memory_max_bytes", "Memory that the container may use; 0 without a limit.")
ProcessCollector(registry=REGISTRY)
PROCESS: Final = {
    "process_cpu_seconds_total": "CPU time, user and system.",
    "process_max_fds": "File descriptors that it may have.",
    "process_open_fds": "File descriptors that it has.",
    "process_resident_memory_bytes": "Resident memory.",
    "process_start_time_seconds": "When it began, seconds since 1970.",
    "process_virtual_memory_bytes": "Virtual memory.",
}
"""What the library tells of the process, on Linux."""
BUILD_LABELS: Final = ("version", "python", "topology", "buckets")
_BUILD = Gauge("baton_build_info", "Always 1; what this replica is.", BUILD_LABELS, registry=REGISTRY)
METRICS["baton_build_info"] = families.Metric(
    "baton_build_info",
    "gauge",
    "",
    "Always 1; what this replica is: one value of each label for its whole life.",
    {
        "version": (__version__,),
        "python": (platform.python_version(),),
        "topology": get_args(Kind),
        "buckets": tuple(map(str, range(1, 257))),
    },
)


def told_build(topology: Kind, buckets: int) -> None:
    """Says what this replica is, once it is known."""
    _BUILD.clear()
    _BUILD.labels(__version__, platform.python_version(), topology, str(buckets)).set(1)


_CGROUP: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_NO_LIMIT_BYTES: Final = 1 << 60  # version 1 says so much where there is none


def memory_max_bytes(files: Collection[Path] = _CGROUP) -> int:
    """What the kernel lets this container use; 0 if it is not limited, or does not tell."""
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            limit = int(file.read_text("ascii"))
            return limit if limit < _NO_LIMIT_BYTES else 0
    return 0


_OF_STORE: Final = frozenset({"store_unavailable", "session_not_saved", "session_save_unknown", "session_corrupt"})


def fault_of(code: str) -> Fault:
    """Whose fault an error is."""
    if code in _OF_STORE:
        return "store"
    if code == "turn_interrupted":
        return "interrupted"
    if code == "turn_timeout" or (code.startswith("upstream_") and code != "upstream_invalid_request"):
        return "claude"
    return "caller" if CODES[code].status < 500 else "baton"


def upstream_outcome(code: str) -> str:
    """How a request to Claude that failed is counted."""
    outcome = code.removeprefix("upstream_")
    return outcome if outcome in UPSTREAM_OUTCOMES else "invalid_request"


def method_of(scope: Scope) -> str:
    """The method of a request, of the closed set."""
    method = scope.get("method", "other")
    return method if method in METHODS else "other"


def route_of(scope: Scope) -> str:
    """The route that a request was given to, of the closed set."""
    path = getattr(scope.get("route"), "path", "other")
    return path if path in ROUTES else "other"


def status_of(status: int) -> str:
    """A status, of the closed set; 0 is ``none``."""
    exact = str(status) if status else "none"
    return exact if exact in STATUSES else f"{status // 100}xx" if 2 <= status // 100 <= 5 else "none"


def count_tokens(usage: Usage) -> None:
    """Counts what Claude has counted of one answer."""
    for kind, counter in TOKENS.items():
        counter.inc(getattr(usage, kind))


def store_called(verb: str, duration_s: float, failure: StoreUnavailable | None) -> None:
    """Counts one call of the store."""
    STORE_SECONDS[verb].observe(duration_s)
    if failure is not None:
        kind: StoreFailure = "unknown" if failure.outcome_unknown else "unavailable"
        STORE_FAILURES["busy" if isinstance(failure, StoreBusy) else kind].inc()


def error_told(scope: Scope, code: str) -> None:
    """Counts an error that a caller is told, in the place of an answer or in a stream."""
    ERRORS[route_of(scope), code, fault_of(code)].inc()


def request_done(scope: Scope, status: int, duration_s: float) -> None:
    """Counts and logs one finished request. Status 499: the caller hung up first; 0: closed without an answer."""
    method, route = method_of(scope), route_of(scope)
    REQUESTS[method, route, status_of(status)].inc()
    REQUEST_SECONDS[method, route].observe(duration_s)
    log.debug("request", method=method, route=route, status=status, duration_ms=round(duration_s * 1000, 1))
