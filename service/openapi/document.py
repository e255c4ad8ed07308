"""The OpenAPI 3.1 document, put together from the tables; pure."""

from collections.abc import Iterable
from typing import Any, Final

import orjson

from service import __version__, access, headers
from service.errors import CODES
from service.openapi import completions, messages, schemas
from service.openapi.operations import ANYWHERE, OPERATIONS, Answer, Operation, Query
from service.openapi.schemas import Schema, one_or_another, ref

_DESCRIPTION: Final = (
    "Keeps conversations with Claude in Redis, so that any replica can carry them on. Every GET answers HEAD too. An "
    "unknown path is `route_not_found` (404), an unknown method of a known one `method_not_allowed` (405)."
)
_EVERY_ERROR: Final = ("X-Request-Id", "x-should-retry", "Retry-After")
_GUARDED: Final = (
    *("missing_api_key", "malformed_api_key", "invalid_api_key", "expired_api_key", "disabled_api_key"),
    *("revoked_api_key", "insufficient_scope", "origin_refused", "invalid_value", "store_unavailable"),
)
"""Codes of any operation that needs a scope."""
_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer <key>`"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_SCHEMAS: Final = completions.SCHEMAS | messages.SCHEMAS | schemas.SCHEMAS
_ALWAYS: Final = frozenset({"X-Request-Id", "x-should-retry"})


def document() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for tag, operations in OPERATIONS.items():
        for operation in operations:
            paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, tag)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Baton",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in OPERATIONS],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "parameters": _parameters(),
            "headers": {name: _header(name) for name in headers.at("answer", "error")},
            "securitySchemes": _SECURITY,
        },
    }


def rendered() -> bytes:
    """The document as it is served."""
    return orjson.dumps(document())


def _parameters() -> dict[str, Any]:
    in_path = {
        name: {"name": name, "in": "path", "required": True, "schema": schema, "description": meaning}
        for name, (schema, meaning) in schemas.PATH_PARAMETERS.items()
    }
    in_head = {
        name: {"name": name, "in": "header", "schema": schemas.REQUEST_HEADERS.get(name, schemas.TEXT)}
        | {"description": header.meaning}
        for name, header in headers.at("request").items()
    }
    return in_path | in_head


def _header(name: str) -> dict[str, Any]:
    return {
        "description": headers.at("answer", "error")[name].meaning,
        "required": name in _ALWAYS,
        "schema": schemas.RESPONSE_HEADERS.get(name, schemas.TEXT),
    }


def _operation(operation: Operation, tag: str) -> dict[str, Any]:
    in_path = [name for name in schemas.PATH_PARAMETERS if f"{{{name}}}" in operation.path]
    scope = access.needed(operation.method, operation.path)
    named = [*in_path, *operation.headers, *(("X-Baton-User",) if scope else ()), "X-Request-Id"]
    told: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [tag],
        "summary": operation.summary,
        "parameters": [*map(_query, operation.query), *({"$ref": f"#/components/parameters/{name}"} for name in named)],
    }
    # OpenAPI 3.1 lets schemes that are no OAuth name roles: here it is the scope. Open mode asks for none of it.
    told["security"] = [{name: [scope]} for name in _SECURITY] if scope else []
    if operation.details:
        told["description"] = operation.details
    if operation.body:
        content: dict[str, Any] = {"application/json": {"schema": ref(operation.body)}}
        if operation.lines:
            content[operation.lines] = {"schema": {"type": "string"}}
        # Where every field of what is made may be absent, so may the body.
        required = operation.method != "POST" or "required" in _SCHEMAS[operation.body]
        told["requestBody"] = {"required": required, "content": content}
    told["responses"] = {str(answer.status): _answer(answer) for answer in operation.answers} | _errors(operation)
    return told


def _query(query: Query) -> dict[str, Any]:
    told = {"name": query.name, "in": "query", "schema": query.schema, "description": query.meaning}
    # An object in a query string is written `name[key]=value`.
    return told | {"style": "deepObject", "explode": True} if query.schema.get("type") == "object" else told


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "description": answer.what,
        "headers": _headers(("X-Request-Id", *answer.headers)),
        "content": {media: {"schema": schema} for media, schema in answer.content.items()},
    }


def _errors(operation: Operation) -> dict[str, Any]:
    """The error responses by status, each with its codes."""
    guarded = _GUARDED if access.needed(operation.method, operation.path) else ()
    codes = sorted({*operation.errors, *ANYWHERE, *guarded}, key=lambda code: (CODES[code].status, code))
    by_status: dict[str, list[str]] = {}
    for code in codes:
        by_status.setdefault(str(CODES[code].status), []).append(code)
    names = (*_EVERY_ERROR, *operation.error_headers)
    if operation.error_shapes == ("AnthropicError",):
        by_status["529"] = ["upstream_overloaded"]  # as Claude says it
    return {
        status: {
            "description": " ".join(f"`{code}`: {CODES[code].meaning}" for code in alike),
            "headers": _headers((*names, "WWW-Authenticate") if status in ("401", "403") else names),
            "content": {"application/json": {"schema": _error(alike, operation.error_shapes)}},
        }
        for status, alike in by_status.items()
    }


def _error(codes: list[str], shapes: tuple[str, ...]) -> Schema:
    """Any of the shapes; OpenAI's tells a code."""
    only = {"properties": {"code": {"enum": codes}}, "additionalProperties": True}
    coded = {"allOf": [ref("Error"), {"properties": {"error": only}}]}
    return one_or_another([coded if shape == "Error" else ref(shape) for shape in shapes])


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
