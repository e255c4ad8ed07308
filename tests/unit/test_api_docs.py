"""The tables of docs/api.md are those in the code. `python -m tests.unit.test_api_docs` writes them anew."""

import re
from pathlib import Path

import orjson

from service.dialects import chat
from service.errors import CODES

API = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def parameters() -> str:
    rows = [(name, "mapped", "") for name in chat.MAPPED]
    told = chat.TOLD | chat.TOLD_WITHIN
    rows += [(name, "told", orjson.dumps(value).decode()) for name, value in told.items()]
    rows += [(name, "refused", orjson.dumps(value).decode()) for name, value in chat.REFUSED.items()]
    lines = ["| parameter | what becomes of it | asks for nothing |", "|---|---|---|"]
    lines += [f"| `{name}` | {fate} | {f'`{value}`' if value else ''} |" for name, fate, value in sorted(rows)]
    return "\n".join(lines) + "\n"


def codes() -> str:
    lines = ["| code | status | retry | meaning |", "|---|---|---|---|"]
    for name, code in sorted(CODES.items(), key=lambda item: (item[1].status, item[0])):
        lines.append(f"| `{name}` | {code.status} | {'yes' if code.retry else 'no'} | {code.meaning} |")
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    for name, table in (("parameters", parameters()), ("codes", codes())):
        marked = re.compile(f"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->\n)", re.DOTALL)
        assert marked.search(text), f"the markers of {name} are gone"
        text = marked.sub(lambda found, table=table: found[1] + table + found[2], text)  # type: ignore[misc]
    return text


def test_the_tables_are_those_in_the_code() -> None:
    text = API.read_text("utf-8")
    assert renewed(text) == text, "run: python -m tests.unit.test_api_docs"


def test_no_parameter_has_two_fates() -> None:
    assert not chat.MAPPED & chat.TOLD.keys()
    assert not chat.MAPPED & chat.REFUSED.keys()
    assert not chat.TOLD.keys() & chat.REFUSED.keys()


if __name__ == "__main__":
    API.write_text(renewed(API.read_text("utf-8")), "utf-8")
