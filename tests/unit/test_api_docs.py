"""The tables of docs/api.md are those in the code. `python -m tests.unit.test_api_docs` writes them anew."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from service import access
from service.dialects import chat_fields
from service.errors import CODES
from service.headers import HEADERS
from service.model_table import NEWEST, TABLE
from service.openapi import completions, messages, schemas
from service.openapi.operations import OPERATIONS, Operation, Query
from tests.unit.test_chat_round_trip import LOSSES

API = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def endpoints() -> str:
    lines = ["| endpoint | for | takes | scope |", "|---|---|---|---|"]
    for operations in OPERATIONS.values():
        for one in operations:
            purpose = "; ".join(filter(None, (one.summary, one.details)))
            lines.append(
                f"| `{one.method} {one.path}` | {purpose} | {', '.join(dict.fromkeys(taken(one)))} | {scope(one)} |"
            )
    return "\n".join(lines) + "\n"


def scope(operation: Operation) -> str:
    """What a key must have for it."""
    needed = access.needed(operation.method, operation.path)
    return f"`{needed}`" if needed else "–"


def taken(operation: Operation) -> Iterator[str]:
    """What may be said in the query, the body and the headers."""
    yield from map(asked_for, operation.query)
    if operation.body in completions.SCHEMAS:
        yield "[its parameters](#parameters-of-a-chat-completion)"
    elif operation.body in messages.SCHEMAS:
        yield "the fields of Anthropic's API"
    elif operation.body:
        yield from (f"`{name}`" for name in schemas.SCHEMAS[operation.body]["properties"])
    yield from (f"`{name}`" for name in operation.headers)


def asked_for(query: Query) -> str:
    """A parameter of the query string, with its bounds and its default if it has one."""
    schema = query.schema
    if schema["type"] == "object":
        return f"`{query.name}[key]=value`"
    if "default" in schema:
        return f"`{query.name}` {schema['minimum']:,}–{schema['maximum']:,} ({schema['default']})"
    return f"`{query.name}`"


def headers() -> str:
    lines = ["| header | on | meaning |", "|---|---|---|"]
    lines += [f"| `{header.name}` | {', '.join(header.on)} | {header.meaning} |" for header in HEADERS]
    return "\n".join(lines) + "\n"


def parameters() -> str:
    rows = [(name, "mapped", becomes) for name, becomes in chat_fields.MAPPED.items()]
    for fate, table in (("told", chat_fields.TOLD), ("refused", chat_fields.REFUSED)):
        rows += [(name, fate, unless(value)) for name, value in table.items()]
    rows += [(name, "passed over", "") for name in chat_fields.PASSED_OVER]
    lines = ["| parameter | what becomes of it | more |", "|---|---|---|"]
    lines += [f"| `{name}` | {fate} | {more} |" for name, fate, more in sorted(rows)]
    return "\n".join(lines) + "\n"


def unless(value: Any) -> str:
    """The value that asks for nothing, but for ``null``, which does so everywhere."""
    return "" if value is None else f"unless `{orjson.dumps(value).decode()}`"


def losses() -> str:
    return "".join(f"- {sentence}\n" for sentence in LOSSES)


def traits() -> str:
    names = list(asdict(NEWEST))
    lines = [f"| model | {' | '.join(f'`{name}`' for name in names)} |", f"|{'---|' * (len(names) + 1)}"]
    for model, row in [*((f"`{model}`", row) for model, row in TABLE.items()), ("any other", NEWEST)]:
        lines.append(f"| {model} | {' | '.join('yes' if has else 'no' for has in asdict(row).values())} |")
    return "\n".join(lines) + "\n"


def codes() -> str:
    lines = ["| code | status | retry | meaning |", "|---|---|---|---|"]
    for name, code in sorted(CODES.items(), key=lambda item: (item[1].status, item[0])):
        lines.append(f"| `{name}` | {code.status} | {'yes' if code.retry else 'no'} | {code.meaning} |")
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    for made in (endpoints, headers, parameters, losses, traits, codes):
        name, table = made.__name__, made()
        marked = re.compile(f"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->\n)", re.DOTALL)
        assert marked.search(text), f"the markers of {name} are gone"
        text = marked.sub(lambda found, table=table: found[1] + table + found[2], text)  # type: ignore[misc]
    return text


def test_the_tables_are_those_in_the_code() -> None:
    text = API.read_text("utf-8")
    assert renewed(text) == text, "run: python -m tests.unit.test_api_docs"


if __name__ == "__main__":
    API.write_text(renewed(API.read_text("utf-8")), "utf-8")
