"""Metrics: declared once with closed labels, and scraped as declared. Log fields: declared, and safe to read."""

import ast
import json
import logging
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service import __version__, logs, telemetry
from service.app import build
from service.conflict import ON_CONFLICT
from service.epoch import CONTEXT, PARTS, REFUSED
from service.errors import CODES
from service.settings import Settings
from service.telemetry import METRICS, PROCESS, REGISTRY
from storage.scripts import VERBS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("service", "storage") for path in (ROOT / folder).rglob("*.py")]
_LOGS = re.compile(r"(telemetry\.)?log\.(debug|info|warning|error|critical|log)")
_SUFFIXES = re.compile(r"_(total|bucket|sum|count|created)$")


def test_a_metric_ends_in_its_unit_and_says_what_it_is() -> None:
    for metric in METRICS.values():
        assert re.fullmatch(r"baton_[a-z_]+[a-z]", metric.name)
        assert (
            not re.search(r"_(total|bucket|sum|count)$", metric.name)
            and len(metric.help) > 10
            and metric.help.endswith((".", ")"))
        )
        assert not re.search(r"_(ms|millis\w*|minutes|hours|kb|mb|kib|mib|percent)(_|$)", metric.name)
        last = metric.name.rpartition("_")[2]
        assert (metric.unit or None) == (last if last in ("seconds", "bytes") else None)
        if metric.type == "histogram":
            assert metric.unit == "seconds"


def test_the_registry_holds_what_is_declared_and_the_process() -> None:
    names = {family.name for family in REGISTRY.collect()}
    of_process = {_SUFFIXES.sub("", name) for name in PROCESS} if sys.platform == "linux" else set()
    assert names == METRICS.keys() | of_process


def test_the_values_of_labels_are_closed_sets() -> None:
    told = list(REGISTRY.collect())
    seen = 0
    for family in told:
        declared = METRICS.get(family.name)
        for sample in family.samples:
            for label, value in sample.labels.items():
                seen += 1
                assert label == "le" or (declared is not None and value in declared.labels[label])
    assert seen > 100


def ours() -> list[bytes]:
    """What is scraped, without what the process itself changes all the time."""
    return [line for line in generate_latest(REGISTRY).splitlines() if line.startswith(b"baton_")]


def test_a_value_that_is_not_declared_is_refused() -> None:
    for family in (telemetry.TURNS, telemetry.EPOCHS, telemetry.STORE_SECONDS, telemetry.UPSTREAM_REQUESTS):
        with pytest.raises(KeyError):
            family["my secret"]
    before = ours()
    for labels in (("GET", "/v1/sessions/my-secret", "200"), ("BREW", "/", "200"), ("GET", "/", "299"), ("GET", "/")):
        with pytest.raises(ValueError, match="not declared"):
            telemetry.REQUESTS[labels]
    assert ours() == before


def test_what_callers_send_falls_into_the_closed_sets() -> None:
    assert telemetry.route_of({"path": "/secret"}) == telemetry.method_of({"method": "SECRET"}) == "other"
    assert [telemetry.status_of(status) for status in (200, 418, 0, 999, 529)] == ["200", "4xx", "none", "none", "529"]


def test_every_route_of_the_application_is_one_of_the_label(tmp_path: Path) -> None:
    settings = Settings.model_validate({"anthropic_base_url": "http://127.0.0.1:1", "secret": "x" * 16})
    application = build(settings, "redis://127.0.0.1:1/0", "x" * 16, on_refused=lambda error: None)
    paths = {route.path for route in application.asgi._app.routes}  # type: ignore[attr-defined]
    assert paths | {"other"} == set(telemetry.ROUTES), "telemetry.ROUTES names the routes of app.py"


def test_the_sets_are_those_of_the_code() -> None:
    assert set(get_args(telemetry.EpochReason)) == {*PARTS, REFUSED, CONTEXT}
    assert set(get_args(telemetry.Policy)) == set(ON_CONFLICT)
    assert telemetry.STORE_SECONDS.keys() == {*VERBS, "read"}
    for code in CODES:
        assert telemetry.fault_of(code) in get_args(telemetry.Fault)
        assert telemetry.upstream_outcome(code) in telemetry.UPSTREAM_OUTCOMES
        assert telemetry.status_of(CODES[code].status) == str(CODES[code].status)
    faults = {code: telemetry.fault_of(code) for code in CODES}
    assert faults["invalid_json"] == faults["upstream_invalid_request"] == faults["turn_in_progress"] == "caller"
    assert faults["upstream_rate_limited"] == faults["turn_timeout"] == "claude"
    assert faults["store_unavailable"] == faults["session_not_saved"] == "store"
    assert faults["internal_error"] == faults["overloaded"] == "baton"


def test_build_info_is_one_series() -> None:
    telemetry.told_build("cluster", 64)
    telemetry.told_build("standalone", 1)
    [family] = [one for one in REGISTRY.collect() if one.name == "baton_build_info"]
    labels = {"version": __version__, "python": platform.python_version(), "topology": "standalone", "buckets": "1"}
    assert [(sample.labels, sample.value) for sample in family.samples] == [(labels, 1)]


def test_what_is_scraped_can_be_read() -> None:
    families = {family.name for family in text_string_to_metric_families(generate_latest(REGISTRY).decode())}
    assert families >= METRICS.keys()
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: what is scraped was read by Prometheus's Python parser only")
    found = subprocess.run([promtool, "check", "metrics"], input=generate_latest(REGISTRY), capture_output=True)
    assert (found.returncode, found.stdout + found.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("content", "limit"), [("268435456\n", 268435456), ("max\n", 0), ("9223372036854771712\n", 0), (None, 0)]
)
def test_the_containers_memory_is_read(tmp_path: Path, content: str | None, limit: int) -> None:
    file = tmp_path / "memory.max"
    if content is not None:
        file.write_text(content)
    assert telemetry.memory_max_bytes([tmp_path / "none", file]) == limit


# Logs.


def _logged() -> Iterator[ast.Call]:
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _LOGS.fullmatch(ast.unparse(node.func)):
                yield node


def test_every_field_that_is_logged_is_declared() -> None:
    calls = list(_logged())
    events = {one.args[-1].value for one in calls if one.args and isinstance(one.args[-1], ast.Constant)}
    fields = {keyword.arg for one in calls for keyword in one.keywords if keyword.arg}
    assert len(calls) > 20
    assert fields - {"exc_info"} <= logs.FIELDS
    assert events >= logs.SELDOM
    assert {"session", "dialect", "queue_ms", "replayed", "route"} <= logs.FIELDS  # of `_facts`


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Configures logging and reads what was logged."""
    before, hooks = structlog.get_config(), (sys.excepthook, sys.unraisablehook)
    handlers, level = logging.root.handlers[:], logging.root.level

    def read(log_format: str, log_level: str = "debug") -> Any:
        structlog.reset_defaults()
        logs.configure(log_format, log_level)
        monkeypatch.setattr(
            logs, "log", structlog.get_logger("baton")
        )  # the other may be bound already, or be for ever
        return logs.log, lambda: capsys.readouterr().err

    yield read
    sys.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)
    logging.root.handlers, logging.root.level = handlers, level
    structlog.configure(**before)


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("forged", ["a\nlevel=critical", "a\r\n{}", "a\x1b[31mred", "a\u2028b", "a\x00b", "a\u202eb"])
def test_a_value_cannot_forge_a_line(lines: Any, log_format: str, forged: str) -> None:
    log, read = lines(log_format)
    log.info("event", cause=forged, session="sess_1")
    text = read()
    assert len(text.splitlines()) == 1
    assert forged not in text and (log_format == "console" or forged not in json.loads(text)["cause"])


def test_a_field_that_is_not_declared_is_left_out(lines: Any) -> None:
    log, read = lines("json")
    log.info("event", content="SECRET", session="s" * 5000)
    told = json.loads(read())
    assert told["undeclared"] == "content" and len(told["session"]) < 600 and "SECRET" not in str(told)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_exception_is_told_without_its_words(lines: Any, log_format: str) -> None:
    log, read = lines(log_format)
    secret = "SECRET"
    try:
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise ExceptionGroup(secret, [ValueError(secret)]) from error
    except ExceptionGroup as error:
        log.error("failed", exc_info=error)
        logging.getLogger("asyncio").error("Task %s", secret, exc_info=error)
        logging.getLogger("other").warning("It is " + secret)  # noqa: G003
    text = read()
    assert secret not in text
    assert text.count("builtins.KeyError") == text.count("builtins.ValueError") == 2
    assert "test_metrics.py:" in text and "test_an_exception_is_told_without_its_words" in text


def test_a_level_leaves_out_what_is_below_it(lines: Any) -> None:
    log, read = lines("json", "warning")
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)("event")
    assert [json.loads(line)["level"] for line in read().splitlines()] == ["warning", "error"]


def test_trouble_that_comes_again_and_again_is_told_seldom(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log, read = lines("json")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(100):
        log.warning("upstream_failed", code="upstream_timeout")
        log.info("turn")
    now[0] = 11.0
    log.warning("upstream_failed", code="upstream_timeout")
    told = [json.loads(line) for line in read().splitlines()]
    assert sum(line["event"] == "turn" for line in told) == 100
    assert [line.get("left_out") for line in told if line["event"] == "upstream_failed"] == [None] * 10 + [90]
