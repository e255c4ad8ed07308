"""docs/operations.md has every metric and alert. `python -m tests.unit.test_operations_page` writes the table anew."""

import re
from pathlib import Path

from service.families import Metric
from service.telemetry import METRICS, PROCESS
from tests.unit.test_alert_rules import alerts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
_VALUES_SHOWN_MAX = 40
_ELSEWHERE = {
    "route": "the routes, `other`",
    "status": "the statuses, `none`",
    "code": "the codes of docs/api.md",
    "method": "the methods, `other`",
    "version": "Baton's",
    "python": "Python's",
    "buckets": "1–256",
}


def labels_of(metric: Metric) -> str:
    told = []
    for label, values in metric.labels.items():
        assert label in _ELSEWHERE or len(values) <= _VALUES_SHOWN_MAX
        told.append(f"`{label}`: {_ELSEWHERE.get(label) or ', '.join(f'`{value}`' for value in values)}")
    return "; ".join(told)


def metrics() -> str:
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS.values():
        name = metric.samples()[0] if metric.type == "counter" else metric.name
        lines.append(f"| `{name}` | {metric.type} | {labels_of(metric)} | {metric.help} |")
    lines += [f"| `{name}` | of the process | | {help} |" for name, help in PROCESS.items()]
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    marked = re.compile("(<!-- metrics: begin -->\n).*?(<!-- metrics: end -->\n)", re.DOTALL)
    assert marked.search(text), "the markers of the metrics are gone"
    return marked.sub(lambda found: found[1] + metrics() + found[2], text)


def test_the_metrics_are_those_in_the_code() -> None:
    text = PAGE.read_text("utf-8")
    assert renewed(text) == text, "run: python -m tests.unit.test_operations_page"


def test_every_alert_says_what_to_do() -> None:
    sections = re.findall(
        r"^#### (Baton\w+)\n(\w+)\. (.+?)(?=\n\n|\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    told = {name: severity.lower() for name, severity, what in sections if len(what) > 20}
    assert told == {rule["alert"]: rule["labels"]["severity"] for rule in alerts()}


def test_the_page_names_no_metric_that_is_not_there() -> None:
    known = {name for metric in METRICS.values() for name in (metric.name, *metric.samples())}
    named = set(re.findall(r"`?(baton_[a-z_]+[a-z])\b", PAGE.read_text("utf-8")))
    assert named - known - {"baton_store"} == set()


def test_every_section_is_listed_at_the_top_in_its_order_and_every_link_leads_somewhere() -> None:
    text = PAGE.read_text("utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
    top = text[: text.index("\n## ")]
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert re.findall(r"\]\(#([^)]+)\)", top) == [title.lower().replace(" ", "-") for title in sections]
    for page in PAGE.parents[1].glob("**/*.md"):
        if ".venv" not in page.parts:
            assert set(re.findall(r"operations\.md#([^)]+)\)", page.read_text("utf-8"))) <= anchors, page


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
