"""Alert rules and dashboard: every query parses, and asks for metrics and labels that there are.

What fires each rule, and what does not, is in deploy/prometheus/rules_test.yml; promtool runs it.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from service.telemetry import METRICS, PROCESS

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
RULES_TEST = ROOT / "deploy" / "prometheus" / "rules_test.yml"
DASHBOARD = ROOT / "k8s" / "components" / "monitoring" / "dashboard.json"
_OF_PROMETHEUS = {"job", "instance"}
_OF_GRAFANA = {"$__rate_interval": "5m", "$job": "baton"}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def dashboard_queries() -> list[str]:
    queries = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    for name, value in _OF_GRAFANA.items():
        queries = [query.replace(name, value) for query in queries]
    return queries


SAMPLES: dict[str, dict[str, set[str]]] = {
    "up": {},
    **{name: {} for name in PROCESS},
    **{
        sample: {label: set(values) for label, values in metric.labels.items()} | ({"le": set()} if part else {})
        for metric in METRICS.values()
        for sample in metric.samples()
        for part in [sample.endswith("_bucket")]
    },
}
"""What can be asked for: samples, their labels and the values of these; of ``le`` any."""


def selectors(node: Any) -> Iterator[promql.VectorSelector]:
    """Every selector of a query."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for child in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (below := getattr(node, child, None)) is not None:
            yield from selectors(below)
    for argument in getattr(node, "args", ()):
        yield from selectors(argument)


def grouped(node: Any) -> Iterator[tuple[Any, list[str]]]:
    """Every aggregation by labels, with these."""
    if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        yield node, list(node.modifier.labels)
    for child in ("expr", "lhs", "rhs"):
        if (below := getattr(node, child, None)) is not None:
            yield from grouped(below)
    for argument in getattr(node, "args", ()):
        yield from grouped(argument)


def problems(query: str) -> list[str]:
    """What a query asks for that there is not."""
    parsed, found = promql.parse(query), []
    asked = list(selectors(parsed))
    for one in asked:
        if one.name not in SAMPLES:
            found.append(f"no metric {one.name}")
            continue
        for matcher in one.matchers.matchers:
            values = SAMPLES[one.name].get(matcher.name)
            if values is None and matcher.name not in _OF_PROMETHEUS:
                found.append(f"{one.name} has no label {matcher.name}")
            elif values and matcher.op == promql.MatchOp.Equal and matcher.value not in values:
                found.append(f"{one.name} has no {matcher.name} {matcher.value}")
            elif values and matcher.op == promql.MatchOp.Re and ".*" not in matcher.value:
                missing = set(matcher.value.split("|")) - values
                found += [f"{one.name} has no {matcher.name} {value}" for value in missing]
    for aggregation, labels in grouped(parsed):
        there = _OF_PROMETHEUS.union(*(SAMPLES.get(one.name or "", {}) for one in selectors(aggregation)))
        found += [f"nothing has a label {label} in {query}" for label in labels if label not in there]
    return found if asked else [f"{query} asks for nothing"]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_what_there_is_and_says_what_it_means(rule: dict[str, Any]) -> None:
    assert problems(rule["expr"]) == []
    assert rule["labels"] in ({"severity": "warning"}, {"severity": "critical"})
    told = rule["annotations"]
    assert told.keys() == {"summary", "description", "runbook_url"}
    assert all(text.endswith(".") for text in (told["summary"], told["description"]))
    assert told["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_the_dashboard_asks_for_what_there_is() -> None:
    queries = dashboard_queries()
    assert len(queries) > 40
    assert {query: found for query in queries if (found := problems(query))} == {}


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    asked = {
        one.name
        for query in [*dashboard_queries(), *(rule["expr"] for rule in alerts())]
        for one in selectors(promql.parse(query))
    }
    assert [metric.name for metric in METRICS.values() if not asked.intersection(metric.samples())] == []


def test_the_dashboard_is_in_rows_and_explains_its_panels() -> None:
    rows = [panel["title"] for panel in panels() if panel["type"] == "row"]
    assert rows == ["Traffic", "Turns", "Claude", "Store", "Replicas", "Sessions"]
    shown = [panel for panel in panels() if panel["type"] != "row"]
    assert all(panel["description"].endswith(".") and panel["targets"] for panel in shown)
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken = [
        (x, y)
        for panel in panels()
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(taken) == len(set(taken)) and all(x < 24 for x, _ in taken)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("baton_nothing > 0", "no metric baton_nothing"),
        ("baton_turns > 0", "no metric baton_turns"),
        ('rate(baton_turns_total{result="x"}[5m])', "baton_turns_total has no label result"),
        ('rate(baton_turns_total{outcome="won"}[5m])', "baton_turns_total has no outcome won"),
        ('rate(baton_turns_total{outcome=~"complete|won"}[5m])', "baton_turns_total has no outcome won"),
        ("histogram_quantile(0.9, sum by (le) (rate(baton_nothing_bucket[5m])))", "no metric baton_nothing_bucket"),
        ("sum by (le, verb) (rate(baton_turns_total[5m]))", "nothing has a label le"),
        ("vector(1) and on () max(baton_nothing) > 0", "no metric baton_nothing"),
        ("vector(1) > 0", "asks for nothing"),
    ],
)
def test_a_wrong_query_is_noticed(query: str, problem: str) -> None:
    assert problem in " ".join(problems(query))


def test_a_query_that_is_none_is_noticed() -> None:
    with pytest.raises(ValueError):
        problems("sum by (rate(baton_turns_total[5m])")


def test_every_alert_is_tested_with_what_fires_it_and_what_does_not() -> None:
    tests = yaml.safe_load(RULES_TEST.read_text("utf-8"))["tests"]
    expected = {}
    for test in tests:
        [asked] = test["promql_expr_test"]
        expected[test["name"]] = bool(asked["exp_samples"])
        assert f'alertname="{test["name"].partition(" ")[0]}"' in asked["expr"]
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    assert expected == {f"{name} fires": True for name in names} | {f"{name} stays silent": False for name in names}


def _promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool (of Prometheus) is not installed: the rules were parsed, not run")
    return found


def test_the_rules_do_what_their_tests_say() -> None:
    told = subprocess.run([_promtool(), "test", "rules", RULES_TEST], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_prometheus_reads_the_rules_and_the_dashboards_queries(tmp_path: Path) -> None:
    rules = [{"record": f"baton:query_{at}", "expr": query} for at, query in enumerate(dashboard_queries())]
    queries = tmp_path / "dashboard.yml"
    queries.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for file in (RULES, queries):
        told = subprocess.run([_promtool(), "check", "rules", file], capture_output=True, text=True)
        assert told.returncode == 0, told.stdout + told.stderr
