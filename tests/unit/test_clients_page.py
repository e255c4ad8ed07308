"""What docs/clients.md shows is what `make test-clients` runs.

`python -m tests.unit.test_clients_page` writes its table anew.
"""

import re
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.table import CLIENTS, CODEX

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
BEGIN, END = "<!-- clients: begin -->\n", "<!-- clients: end -->\n"
SNIPPETS = re.findall(r"<!-- of: (\S+) -->\n```\w+\n(.*?)```\n", PAGE.read_text("utf-8"), re.DOTALL)


def table() -> str:
    rows = ["| client | version | what it did | result |", "|---|---|---|---|"]
    for client in CLIENTS:
        result = "works" if client is not CODEX else "does not work: it needs `/v1/responses`"
        rows.append(f"| {client.name} | {client.versions} | {client.did} | {result} |")
    return "\n".join(rows) + "\n"


def renewed(page: str) -> str:
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, "the markers are gone"
    return before + begin + table() + end + after


def test_the_page_lists_the_clients_as_they_are_pinned() -> None:
    page = PAGE.read_text("utf-8")
    assert renewed(page) == page, "run: python -m tests.unit.test_clients_page"


@pytest.mark.parametrize(("program", "snippet"), SNIPPETS)
def test_a_snippet_is_a_part_of_its_program(program: str, snippet: str) -> None:
    assert snippet in (environments.HERE / program).read_text("utf-8")


def test_every_client_is_shown() -> None:
    assert {client.program for client in CLIENTS} - {program for program, _ in SNIPPETS} == {CODEX.program}


def test_no_pin_names_a_place() -> None:
    files = [*environments.HERE.glob("requirements/*"), *environments.HERE.glob("javascript/*.json")]
    assert len(files) == 10
    for file in files:
        assert not re.search(r'@ |--|"resolved"|registry', file.read_text("utf-8")), file


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
