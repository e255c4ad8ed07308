"""What an answer to any request has to be, by the document."""

import re
from typing import Any, Final
from urllib.parse import quote, unquote, unquote_to_bytes

import orjson

from service.dialects.errors import is_anthropic
from tests.instruments.interface import Interface
from tests.instruments.json_schema import Checker
from tests.instruments.wire import Got, Sent

_REFUSED: Final = frozenset({"invalid_value", "unknown_field", "missing_value", "invalid_session_id"})
"""Codes that say: the request is not as the document wants it."""

_ANYWHERE: Final = {"invalid_http": 400, "headers_too_large": 431, "route_not_found": 404, "method_not_allowed": 405}
"""Told where no operation is asked for, or before it is known which."""

_ANY_COUNTS: Final = ("x-request-id", "anthropic-beta", "anthropic-version")  # or not, as it happens

_MODELS: Final = "/v1/models/"
_OF_MESSAGES: Final = (
    *("must not end with an assistant message", "no tool call that waits", "must name one of the tools"),
    *("asks for a call, and there are no tools", "must answer every tool call before anything else"),
    # Without a session it is Claude who judges them.
    *("anthropic-version: sessions speak", "anthropic-version is a date", "anthropic-beta is a list"),
)
_UNSAID: Final = {
    "/v1/chat/completions": (
        *("must begin with a user or tool message", "must end with a user or tool message"),
        *("must name a call", "must have different ids", "must be another than that of the tools before"),
        *(
            "must name one of the tools",
            "no tool call that waits",
            "asks for a call, and there are no tools",
            "less than 240",
            "must be a data URL",
        ),
    ),
    "/v1/messages": _OF_MESSAGES,
    "/v1/messages/count_tokens": _OF_MESSAGES,
    "/v1/models": ("must be the id of a model that is listed", "cannot go with after_id"),
    "/v1/sessions": (
        "must be in the future",
        "given twice",
        "There is no parameter",
        "cursor is not one of",
        "`metadata\\.",
    ),
    "/v1/sessions/[^/]+/shares/.+": ("`principal` is you", "is the session's owner"),
    "/v1/admin/keys": ("must be in the future", "must be the `next_cursor` of a page"),
    "/v1/admin/keys/[^/]+": ("must be in the future",),
    "/v1/sessions/[^/]+/fork": ("`message_count` both say where", "more than the session has"),
    "/v1/sessions/import": ("must be in the future", r'"param":"messages', "The first message must be"),
    "/v1/sessions/[^/]+/messages": (
        *("must be sound base64", r"must be an http\(s\) URL", "no tool call that waits", "less than 240"),
        *("a second tool call with the id", "must answer every tool call before anything else"),
        "first message of a session must be",
    ),
}
"""What a schema cannot say, by path: how the messages of such refusals are worded."""

_UNSAID_OF_HEADERS: Final = (
    "X-Session-Mode needs a session",
    "X-Expect-Turn needs a session",
    "`new` cannot be",
    "differ",
)


class Judge:
    """Holds requests and their answers against a document.

    Args:
        interface: the document.
    """

    def __init__(self, interface: Interface) -> None:
        self.interface = interface
        self._checker = Checker(interface.document, closed=True)

    def problems(self, sent: Sent, got: Got) -> list[str]:
        """What is wrong with an answer."""
        found = [f"a fault: {got.status} {code_of(got)}"] if got.status >= 500 else []
        method = sent.method.decode("latin-1")
        asked = "GET" if method == "HEAD" else method
        target = _path(sent.target)
        if method == "HEAD" and got.body:
            found.append("an answer to HEAD has a body")
        if code_of(got) in _ANYWHERE or (method == "HEAD" and got.status in _ANYWHERE.values()):
            return found + ([] if method == "HEAD" else self._problems_of_error(sent, target, got))
        try:
            self.interface.operation(asked, target)
        except AssertionError:
            return [*found, f"nothing is described that could answer {got.status}"]
        if method == "HEAD":
            body: Any = None
            head = self.interface.problems_of_head(asked, target, got.status, got.headers)
            return found + head
        if got.headers["content-type"].startswith("text/event-stream"):
            found += self.interface.problems_of_stream(asked, target, got.headers, got.events())
        else:
            body = got.json if got.json is not None else got.body.decode()
            found += self.interface.problems_of_answer(asked, target, got.status, got.headers, body)
        return found + self._problems_of_request(asked, target, sent, got)

    def _problems_of_error(self, sent: Sent, target: str, got: Got) -> list[str]:
        anthropic = is_anthropic({"path": unquote(target.partition("?")[0]), "headers": _lower(sent)})
        if code_of(got) == "invalid_http":  # of no path, if it is the request's first line
            anthropic = "type" in got.json
        schema = {"$ref": "#/components/schemas/" + ("AnthropicError" if anthropic else "Error")}
        found = self._checker.problems(got.json, schema)
        if got.status != _ANYWHERE[code_of(got)]:
            found.append(f"{code_of(got)} is told with {got.status}")
        if got.headers.get("x-should-retry") != "false" or "x-request-id" not in got.headers:
            found.append("an error without x-should-retry or x-request-id")
        return found

    def _problems_of_request(self, method: str, target: str, sent: Sent, got: Got) -> list[str]:
        """Whether the service and the document take the same requests."""
        against = self.against(method, target, sent)
        if got.status < 300 and against:
            return ["was taken, though " + problem for problem in against]
        words = [one for path, some in _UNSAID.items() if re.fullmatch(path, target.partition("?")[0]) for one in some]
        unsaid = any(re.search(one, got.body.decode()) for one in (*words, *_UNSAID_OF_HEADERS))
        if code_of(got) in _REFUSED and not against and not unsaid:
            return [f"was refused, though the document has nothing against it: {got.body.decode()}"]
        return []

    def against(self, method: str, target: str, sent: Sent) -> list[str]:
        """What the document has against a request."""
        operation = self.interface.operation(method, target)[1]
        read = {one["name"].lower() for one in self.interface.parameters(operation) if one["in"] == "header"}
        headers: dict[str, str] = {}
        for name, value in sent.headers:
            lower, text = name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")
            if lower in read and headers.setdefault(lower, text) != text and lower not in _ANY_COUNTS:
                return [f"{lower} is there twice"]
        try:
            body = None if sent.body is None else orjson.loads(sent.body)
        except orjson.JSONDecodeError:
            return ["the body is no JSON"]
        if target.startswith("/v1/models?") and not is_anthropic({"path": "/v1/models", "headers": _lower(sent)}):
            target = "/v1/models"  # OpenAI's has no pages
        return self.interface.problems_of_request(method, target, body if "requestBody" in operation else None, headers)


def _lower(sent: Sent) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in sent.headers]


def code_of(got: Got) -> str:
    """The code of an error, in either dialect; "" of anything else."""
    error = got.json.get("error") if got.status >= 400 and isinstance(got.json, dict) else None
    if not isinstance(error, dict):
        return ""
    return str(error.get("code") or (error.get("details") or {}).get("error_code", ""))


def _path(target: bytes) -> str:
    """The target as the service routes it: without fragment, its path escaped in one way."""
    path, mark, query = re.sub(rb"^https?://[^/]*", b"", target).partition(b"#")[0].partition(b"?")
    plain = unquote_to_bytes(path).decode("utf-8", "replace")
    if plain.startswith(_MODELS):  # whose names may have slashes
        return _MODELS + quote(plain.removeprefix(_MODELS), safe="")
    if shared := re.fullmatch(r"(/v1/sessions/[^/]+/shares/)(.+)", plain, re.DOTALL):  # and so may principals
        return quote(shared[1]) + quote(shared[2], safe="") + (mark + query).decode("latin-1")
    return quote(plain) + (mark + query).decode("latin-1")
