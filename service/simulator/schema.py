"""The rules on the JSON schema of `output_config.format`, and pure: the smallest value that satisfies one.

What Claude's structured outputs refuse is refused: an object that does not say `additionalProperties: false`, a schema
that holds itself, a reference to elsewhere, bounds on numbers and lengths. Of what they take, `pattern` is not looked
at and `allOf` is refused. A string that may be anything is what the answer would have been in words, so that it still
is evidence of what was received.
"""

from collections.abc import Iterator
from typing import Any

from service.simulator.errors import invalid

UNSUPPORTED = {
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength"),
    "array": ("maxItems", "uniqueItems"),
    "object": ("minProperties", "maxProperties", "patternProperties"),
}
PLAIN: dict[str, Any] = {"null": None, "boolean": True, "integer": 1, "number": 1.5}
FORMATS = {
    "date-time": "2026-10-21T00:00:00Z",
    "time": "00:00:00Z",
    "date": "2026-10-21",
    "duration": "P1D",
    "email": "ada@example.com",
    "hostname": "example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
TYPES = frozenset({*PLAIN, "string", "array", "object"})
REFERENCES = ("#/$defs/", "#/definitions/")
CHOICES = ("anyOf", "oneOf")
DEPTH_MAX = 50
PATH = "output_config.format.schema"


def check_schema(schema: Any) -> None:
    """Judge a schema.

    Raises:
        ApiError: 400 naming what is wrong.
    """
    if not isinstance(schema, dict):
        raise invalid(f"{PATH}: Input should be an object")
    _check(schema, schema, ())


def _check(schema: Any, root: dict[str, Any], opened: tuple[str, ...]) -> None:
    """Judge one schema inside `root`; `opened` are the references that lead here, and "" for each other step."""
    if len(opened) > DEPTH_MAX:
        raise invalid(f"{PATH}: schemas nested deeper than {DEPTH_MAX} are not supported")
    if not isinstance(schema, dict):
        raise invalid(f"{PATH}: each schema should be an object")
    if "$ref" in schema:
        reference = schema["$ref"]
        if reference in opened:
            raise invalid(f"{PATH}: Circular reference detected: {reference}")
        return _check(_resolve(reference, root), root, (*opened, reference))
    for kind in _types(schema):
        for keyword in UNSUPPORTED.get(kind, ()):
            if keyword in schema:
                raise invalid(f"{PATH}: For '{kind}' type, property '{keyword}' is not supported")
        if kind == "object" and schema.get("additionalProperties") is not False:
            raise invalid(f"{PATH}: For 'object' type, 'additionalProperties' must be explicitly set to false")
    if "allOf" in schema:
        raise invalid(f"{PATH}: allOf is more than the simulator can satisfy")
    if schema.get("minItems", 0) not in (0, 1):
        raise invalid(f"{PATH}: For 'array' type, 'minItems' values other than 0 or 1 are not supported")
    _check_enum(schema)
    for inner in _inner(schema):
        _check(inner, root, (*opened, ""))


def _check_enum(schema: dict[str, Any]) -> None:
    if "enum" not in schema:
        return
    values = schema["enum"]
    if not isinstance(values, list) or not values:
        raise invalid(f"{PATH}: enum should be a non-empty list")
    if any(isinstance(value, list | dict) for value in values):
        raise invalid(f"{PATH}: enum values should be strings, numbers, booleans or null")


def _types(schema: dict[str, Any]) -> list[str]:
    kinds = schema.get("type", "object" if "properties" in schema else [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if unknown := [kind for kind in kinds if not isinstance(kind, str) or kind not in TYPES]:
        raise invalid(f"{PATH}: {unknown[0]!r} is not a type")
    return kinds


def _inner(schema: dict[str, Any]) -> Iterator[Any]:
    """Yield the schemas right inside one."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise invalid(f"{PATH}: properties should be an object, and required a list")
    if missing := [name for name in required if not isinstance(name, str) or name not in properties]:
        raise invalid(f"{PATH}: required names {missing[0]!r}, which is not in properties")
    yield from properties.values()
    if "items" in schema:
        yield schema["items"]
    for word in CHOICES:
        if word in schema:
            if not isinstance(schema[word], list) or not schema[word]:
                raise invalid(f"{PATH}: {word} should be a non-empty list")
            yield from schema[word]


def _resolve(reference: Any, root: dict[str, Any]) -> Any:
    for start in REFERENCES:
        if isinstance(reference, str) and reference.startswith(start):
            defined = root.get(start[2:-1])
            name = reference.removeprefix(start)
            if isinstance(defined, dict) and name in defined:
                return defined[name]
    raise invalid(f"{PATH}: the reference {reference!r} leads nowhere")


def instance(schema: dict[str, Any], said: str) -> Any:
    """Build the smallest value that satisfies an accepted schema.

    Args:
        schema: as judged.
        said: what a string is that may be anything.
    """
    return _build(schema, schema, said)


def _build(schema: dict[str, Any], root: dict[str, Any], said: str) -> Any:
    if "$ref" in schema:
        return _build(_resolve(schema["$ref"], root), root, said)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for word in CHOICES:
        if word in schema:
            return _build(schema[word][0], root, said)
    kind = next(iter(_types(schema)), "string")
    if kind == "object":
        return {name: _build(schema["properties"][name], root, said) for name in schema.get("required", [])}
    if kind == "array":
        return [_build(schema.get("items", {}), root, said)] * schema.get("minItems", 0)
    return FORMATS.get(str(schema.get("format")), said) if kind == "string" else PLAIN[kind]
