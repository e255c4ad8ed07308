"""A checker for the part of JSON Schema (2020-12) that our document of the interface is written in.

Stricter than the standard in three ways, because it is there to find mistakes: a keyword that it does not know is an
error of the schema, not an annotation; ``format`` is checked; and while it checks what the service says, an object may
have no property that its schema does not name (``closed``), unless the schema says ``additionalProperties``.
"""

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final

Schema = dict[str, Any]

ANNOTATIONS: Final = {"description", "default", "x-events"}

_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and value == int(value),
    "number": lambda value: _is_number(value),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_DATE_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


class UnknownKeyword(Exception):
    """The schema says something that this checker cannot check."""


def resolve(document: Any, reference: str) -> Any:
    """What a ``$ref`` within the document points to.

    Raises:
        KeyError: nothing.
    """
    assert reference.startswith("#/"), f"{reference} points out of the document"
    found = document
    for step in reference[2:].split("/"):
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return found


class Checker:
    """Checks values against schemas.

    Args:
        document: where references point into.
        closed: see the module's docstring.
    """

    def __init__(self, document: Any, *, closed: bool = False) -> None:
        self._document = document
        self._closed = closed

    def problems(self, value: Any, schema: Schema, place: str = "$") -> list[str]:
        """What is wrong with a value, each with its place; empty if it is as the schema says."""
        found = self._met(value, schema, place)
        if self._closed and isinstance(value, dict) and not found:
            known = self._known(schema)
            found = [f"{place}: has {name!r}" for name in value if known is not None and name not in known]
        return found

    def _met(self, value: Any, schema: Schema, place: str) -> list[str]:
        found: list[str] = []
        for keyword, wanted in schema.items():
            if keyword not in ANNOTATIONS:
                look = getattr(self, f"_{keyword.replace('$', '')}", None)
                if look is None:
                    raise UnknownKeyword(f"{keyword} ({place})")
                found += look(value, wanted, place, schema)
        return found

    def _known(self, schema: Schema) -> set[str] | None:
        """The properties that a schema names; None if it leaves them open, or to alternatives, which then say."""
        parts = [*schema.get("allOf", ()), *([resolve(self._document, schema["$ref"])] if "$ref" in schema else ())]
        named = [set(schema["properties"])] if "properties" in schema else []
        more = [self._known(part) for part in parts]
        if "additionalProperties" in schema or None in more or not (named or more):
            return None
        return set().union(*named, *(names for names in more if names is not None))

    # Keywords for any value.

    def _ref(self, value: Any, wanted: str, place: str, _: Schema) -> list[str]:
        return self._met(value, resolve(self._document, wanted), place)

    def _type(self, value: Any, wanted: str | list[str], place: str, _: Schema) -> list[str]:
        names = [wanted] if isinstance(wanted, str) else wanted
        return _unless(any(_TYPES[name](value) for name in names), place, f"{_shown(value)} is not {names}")

    def _enum(self, value: Any, wanted: list[Any], place: str, _: Schema) -> list[str]:
        return _unless(any(_same(value, one) for one in wanted), place, f"{_shown(value)} is none of {wanted}")

    def _const(self, value: Any, wanted: Any, place: str, _: Schema) -> list[str]:
        return _unless(_same(value, wanted), place, f"{_shown(value)} is not {wanted!r}")

    def _allOf(self, value: Any, wanted: list[Schema], place: str, _: Schema) -> list[str]:  # noqa: N802
        return [problem for one in wanted for problem in self._met(value, one, place)]

    def _anyOf(self, value: Any, wanted: list[Schema], place: str, _: Schema) -> list[str]:  # noqa: N802
        return self._of(value, wanted, place, lambda fits: fits > 0)

    def _oneOf(self, value: Any, wanted: list[Schema], place: str, _: Schema) -> list[str]:  # noqa: N802
        return self._of(value, wanted, place, lambda fits: fits == 1)

    def _of(self, value: Any, wanted: list[Schema], place: str, enough: Callable[[int], bool]) -> list[str]:
        each = [self.problems(value, one, place) for one in wanted]
        fits = sum(not problems for problems in each)
        return [] if enough(fits) else [f"{place}: {fits} of {len(wanted)} fit", *(p for some in each for p in some)]

    def _not(self, value: Any, wanted: Schema, place: str, _: Schema) -> list[str]:
        return _unless(bool(self._met(value, wanted, place)), place, f"{_shown(value)} is {wanted}")

    # Keywords for numbers, strings, lists and objects; they say nothing about values of other types.

    def _minimum(self, value: Any, wanted: float, place: str, _: Schema) -> list[str]:
        return _unless(not _is_number(value) or value >= wanted, place, f"{value} is below {wanted}")

    def _maximum(self, value: Any, wanted: float, place: str, _: Schema) -> list[str]:
        return _unless(not _is_number(value) or value <= wanted, place, f"{value} is above {wanted}")

    def _minLength(self, value: Any, wanted: int, place: str, _: Schema) -> list[str]:  # noqa: N802
        return _unless(not isinstance(value, str) or len(value) >= wanted, place, f"has not {wanted} characters")

    def _maxLength(self, value: Any, wanted: int, place: str, _: Schema) -> list[str]:  # noqa: N802
        return _unless(not isinstance(value, str) or len(value) <= wanted, place, f"has over {wanted} characters")

    def _pattern(self, value: Any, wanted: str, place: str, _: Schema) -> list[str]:
        # To ECMAScript, whose patterns these are, `$` is the very end.
        pattern = re.sub(r"(?<!\\)\$", r"\\Z", wanted)
        found = not isinstance(value, str) or re.search(pattern, value)
        return _unless(bool(found), place, f"{_shown(value)} does not match {wanted}")

    def _format(self, value: Any, wanted: str, place: str, _: Schema) -> list[str]:
        if wanted != "date-time":
            raise UnknownKeyword(f"format {wanted} ({place})")
        fine = not isinstance(value, str) or (_DATE_TIME.fullmatch(value) and datetime.fromisoformat(value))
        return _unless(bool(fine), place, f"{_shown(value)} is no instant")

    def _items(self, value: Any, wanted: Schema, place: str, _: Schema) -> list[str]:
        items = value if isinstance(value, list) else []
        return [p for at, item in enumerate(items) for p in self.problems(item, wanted, f"{place}[{at}]")]

    def _minItems(self, value: Any, wanted: int, place: str, _: Schema) -> list[str]:  # noqa: N802
        return _unless(not isinstance(value, list) or len(value) >= wanted, place, f"has not {wanted} items")

    def _maxItems(self, value: Any, wanted: int, place: str, _: Schema) -> list[str]:  # noqa: N802
        return _unless(not isinstance(value, list) or len(value) <= wanted, place, f"has over {wanted} items")

    def _properties(self, value: Any, wanted: dict[str, Schema], place: str, _: Schema) -> list[str]:
        given = [(name, value[name], one) for name, one in wanted.items() if isinstance(value, dict) and name in value]
        return [problem for name, item, one in given for problem in self.problems(item, one, f"{place}.{name}")]

    def _required(self, value: Any, wanted: list[str], place: str, _: Schema) -> list[str]:
        missing = [name for name in wanted if isinstance(value, dict) and name not in value]
        return [f"{place}: has no {name!r}" for name in missing]

    def _additionalProperties(self, value: Any, wanted: Any, place: str, schema: Schema) -> list[str]:  # noqa: N802
        known = schema.get("properties", ())
        others = {name: item for name, item in value.items() if name not in known} if isinstance(value, dict) else {}
        if isinstance(wanted, bool):
            return [] if wanted else [f"{place}: has {name!r}" for name in others]
        return [p for name, item in others.items() for p in self.problems(item, wanted, f"{place}.{name}")]

    def _propertyNames(self, value: Any, wanted: Schema, place: str, _: Schema) -> list[str]:  # noqa: N802
        names = value if isinstance(value, dict) else ()
        return [problem for name in names for problem in self._met(name, wanted, f"{place}.{name} (name)")]

    def _minProperties(self, value: Any, wanted: int, place: str, _: Schema) -> list[str]:  # noqa: N802
        return _unless(not isinstance(value, dict) or len(value) >= wanted, place, f"has not {wanted} properties")

    def _maxProperties(self, value: Any, wanted: int, place: str, _: Schema) -> list[str]:  # noqa: N802
        return _unless(not isinstance(value, dict) or len(value) <= wanted, place, f"has over {wanted} properties")


def unknown_keywords(schema: Schema) -> set[str]:
    """The keywords of a schema and those within it that this checker does not know."""
    known = {
        keyword for keyword in schema if keyword in ANNOTATIONS or hasattr(Checker, f"_{keyword.replace('$', '')}")
    }
    inner = [
        schema[keyword] for keyword in ("items", "additionalProperties", "propertyNames", "not") if keyword in schema
    ]
    inner += schema.get("properties", {}).values()
    inner += [one for keyword in ("allOf", "anyOf", "oneOf") for one in schema.get(keyword, ())]
    unknown = [unknown_keywords(one) for one in inner if isinstance(one, dict)]
    return (schema.keys() - known).union(*unknown)


def references(node: Any) -> Iterator[str]:
    """Every ``$ref`` in a document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def _unless(fine: bool, place: str, problem: str) -> list[str]:
    return [] if fine else [f"{place}: {problem}"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(value: Any, other: Any) -> bool:
    """Whether they are the same JSON; to Python, true is 1."""
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True) or (
        _is_number(value) and _is_number(other) and value == other
    )


def _shown(value: Any) -> str:
    return repr(value)[:80]
