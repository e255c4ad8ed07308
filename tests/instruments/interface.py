"""The interface as a replica's ``/openapi.json`` describes it, and whether an answer of a replica is as described.

`STRUCTURE` is what an OpenAPI 3.1 document has to be, as far as ours uses it: the objects of the specification with the
fields that we know, and nothing else.
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.instruments.json_schema import Checker, Schema

PLAIN: Final = frozenset(
    {
        *("cache-control", "connection", "content-length", "content-type", "date", "transfer-encoding"),
        *("content-security-policy", "x-content-type-options"),  # of the page for people
        "x-accel-buffering",  # for proxies
        *("referrer-policy", "x-frame-options"),  # of the page, too
        *("authorization", "x-api-key", "origin", "host"),  # credentials are in securitySchemes
    }
)
"""Headers in lower case that the document need not name."""


def _closed(required: str, optional: str = "", **fields: Any) -> Schema:
    """An object of the specification, by the names of its fields; what is in one is in ``fields``, else anything.

    A field that is called like something of Python's has an underscore at its end there.
    """
    inner = {name.rstrip("_"): schema for name, schema in fields.items()}
    properties = {name: inner.pop(name, {}) for name in (required + " " + optional).split()}
    assert not inner
    return {"type": "object", "required": required.split(), "properties": properties, "additionalProperties": False}


def _map(inner: Schema, **more: Any) -> Schema:
    return {"type": "object", "additionalProperties": inner, **more}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TEXT: Final = {"type": "string", "minLength": 1}
_FLAG: Final = {"type": "boolean"}
_REF: Final = _map({"type": "string", "pattern": "^#/components/[a-z]+/[A-Za-z0-9._-]+$"}, required=["$ref"])
_SCHEMA: Final = {"type": "object"}
_CONTENT: Final = _map(_closed("schema", schema=_SCHEMA), minProperties=1)
_HEADER: Final = _closed("schema description", "required", description=_TEXT, required_=_FLAG, schema=_SCHEMA)
_PARAMETER: Final = _closed(
    "name in schema description",
    "required style explode",
    name=_TEXT,
    in_={"enum": ["path", "query", "header"]},
    description=_TEXT,
    required_=_FLAG,
    schema=_SCHEMA,
    style={"enum": ["deepObject"]},
    explode=_FLAG,
)
_RESPONSE: Final = _closed(
    "description content headers", description=_TEXT, content=_CONTENT, headers=_map({"anyOf": [_REF, _HEADER]})
)
_OPERATION: Final = _closed(
    "operationId tags summary parameters responses security",
    "description requestBody",
    security=_list({"anyOf": [_closed("bearer", bearer=_list(_TEXT)), _closed("apiKey", apiKey=_list(_TEXT))]}),
    operationId={"type": "string", "pattern": "^[a-z][A-Za-z]+$"},
    tags=_list(_TEXT),
    summary=_TEXT,
    description=_TEXT,
    parameters=_list({"anyOf": [_REF, _PARAMETER]}),
    requestBody=_closed("required content", required_={"type": "boolean"}, content=_CONTENT),
    responses=_map(_RESPONSE, propertyNames={"pattern": "^[2-5][0-9][0-9]$"}, minProperties=1),
)
_METHODS: Final = "get put post delete patch"
STRUCTURE: Final = _closed(
    "openapi info servers tags paths components",
    openapi={"type": "string", "pattern": r"^3\.1\.\d+$"},
    info=_closed("title version description license", license=_closed("name identifier")),
    servers=_list(_closed("url", url=_TEXT)),
    tags=_list(_closed("name", name=_TEXT)),
    paths=_map(_closed("", _METHODS, **dict.fromkeys(_METHODS.split(), _OPERATION)), propertyNames={"pattern": "^/"}),
    components=_closed(
        "schemas parameters headers securitySchemes",
        schemas=_map(_SCHEMA),
        parameters=_map(_PARAMETER),
        headers=_map(_HEADER),
        securitySchemes=_map(_closed("type", "description scheme in name")),
    ),
)


class Interface:
    """A document, and what it says of requests and answers.

    Args:
        document: as it was served.

    Attributes:
        seen: (method, path of the document, status) of every answer that was looked at.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.seen: set[tuple[str, str, int]] = set()
        self._asked = Checker(document)
        self._said = Checker(document, closed=True)

    def operations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Every operation by method, in capitals, and path."""
        paths = self.document["paths"].items()
        return {(method.upper(), path): one for path, methods in paths for method, one in methods.items()}

    def operation(self, method: str, target: str) -> tuple[str, dict[str, Any]]:
        """The operation of a request, and its path in the document; the path without parameters goes first."""
        path = urlsplit(target).path
        fitting = []
        for template in self.document["paths"]:
            pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
            if re.fullmatch(pattern, path) and (method, template) in self.operations():
                fitting.append(template)
        assert fitting, f"the document has no {method} {path}"
        template = min(fitting, key=lambda one: one.count("{"))
        return template, self.operations()[method, template]

    def problems_of_request(self, method: str, target: str, body: Any, headers: Mapping[str, str]) -> list[str]:
        """What the document has against a request that a replica has accepted."""
        template, operation = self.operation(method, target)
        named = {name.lower(): value for name, value in headers.items()}
        found = self._problems_of_query(operation, urlsplit(target).query)
        for parameter in self.parameters(operation):
            given = named.get(parameter["name"].lower()) if parameter["in"] == "header" else None
            if parameter["in"] == "path":
                given = _in_path(template, parameter["name"], urlsplit(target).path)
            if given is not None:
                found += self._asked.problems(given, parameter["schema"], parameter["name"])
        if "requestBody" in operation:
            found += self._asked.problems(body, operation["requestBody"]["content"]["application/json"]["schema"])
        elif body is not None:
            found.append("no body is described")
        return found

    def _problems_of_query(self, operation: dict[str, Any], query: str) -> list[str]:
        """Only of what the operation reads: plain parameters, whose numbers are digits."""
        schemas = {one["name"]: one["schema"] for one in self.parameters(operation) if one["in"] == "query"}
        found = []
        for name, value in dict(parse_qsl(query, keep_blank_values=True)).items():  # of two the last counts
            if schemas.get(name, {}).get("type") == "integer":
                is_number = value.isascii() and value.isdecimal()
                found += self._asked.problems(int(value[:20]) if is_number else value, schemas[name], name)
        return found

    def problems_of_answer(
        self, method: str, target: str, status: int, headers: Mapping[str, str], body: Any
    ) -> list[str]:
        """What of an answer is not as the document says. ``body``: JSON if it is such, else text."""
        schema, found = self._head(method, target, status, headers)
        return found if schema is None else found + self._said.problems(body, schema)

    def problems_of_stream(self, method: str, target: str, headers: Mapping[str, str], events: list[Any]) -> list[str]:
        """The same of a stream, by the data of its events: JSON if it is such, else text."""
        schema, found = self._head(method, target, 200, headers)
        return (
            found if schema is None else found + [p for e in events for p in self._said.problems(e, schema["x-events"])]
        )

    def problems_of_head(self, method: str, target: str, status: int, headers: Mapping[str, str]) -> list[str]:
        """The same of an answer without its body, as HEAD gets it."""
        return self._head(method, target, status, headers)[1]

    def _head(
        self, method: str, target: str, status: int, headers: Mapping[str, str]
    ) -> tuple[Schema | None, list[str]]:
        """The schema of the body, and what is wrong with the rest."""
        template, operation = self.operation(method, target)
        self.seen.add((method, template, status))
        response = operation["responses"].get(str(status))
        if response is None:
            return None, [f"{method} {template} does not answer {status}"]
        found = self._problems_of_headers(response["headers"], headers)
        media = headers["content-type"].partition(";")[0]
        if media not in response["content"]:
            return None, [*found, f"{method} {template} does not answer {media}"]
        return response["content"][media]["schema"], found

    def _problems_of_headers(self, described: dict[str, Any], headers: Mapping[str, str]) -> list[str]:
        found = []
        given = {name.lower(): value for name, value in headers.items() if name.lower() not in PLAIN}
        for name, reference in described.items():
            header = self.document["components"]["headers"][reference["$ref"].rpartition("/")[2]]
            value = given.pop(name.lower(), None)
            if value is not None:
                typed = int(value) if header["schema"].get("type") == "integer" else value
                found += self._said.problems(typed, header["schema"], name)
            elif header["required"]:
                found.append(f"the header {name} is absent")
        return found + [f"the header {name} is not described" for name in given]

    def parameters(self, operation: dict[str, Any]) -> list[dict[str, Any]]:
        """What an operation reads of path, query and headers."""
        components = self.document["components"]["parameters"]
        return [components[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in operation["parameters"]]


def _in_path(template: str, name: str, path: str) -> str:
    at = template.split("/").index(f"{{{name}}}")
    return unquote(path.split("/")[at])
