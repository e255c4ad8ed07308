"""Requests for each operation of the document, as Hypothesis strategies: sound ones, and ones bent in every way."""

import json
import re
from copy import deepcopy
from typing import Any, Final
from urllib.parse import quote

from hypothesis import strategies as st

from tests.fuzz.values import ANYTHING, TEXTS, Fitting, Values, mutated
from tests.instruments.interface import Interface
from tests.instruments.json_schema import Schema, resolve
from tests.instruments.wire import Sent

SEEDED: Final = "fuzz-seeded"
"""The name of a session that has a turn in every dialect, whatever happened to it before."""

FRIEND: Final = "fuzz-friend"
"""With whom that session is shared, whatever happened before."""

SEEDED_KEY: Final = "key_" + "s" * 26
"""Stands in a path for the id of a key that is there; the wire puts that in its place."""

_KEYS: Final = st.sampled_from([*[SEEDED_KEY] * 9, "key_" + "a" * 26, "key_", "a b"])
_SESSIONS: Final = st.sampled_from([*[SEEDED] * 9, "fuzz-unknown", "sess_00" + "a" * 26, "new", "stats", "a b"])
_TURNS: Final = st.sampled_from([*"1234" * 2, *"4444", "0", "01", "9" * 13, "turn_" + "0" * 26, "-1", "١"])
_MODELS: Final = ["claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-4-5"]
_USER: Final = {"role": "user", "content": "What is my name?"}
_SAID: Final = {"role": "assistant", "content": "Your name is Ada."}
_CHATS: Final[list[Any]] = [
    [_USER],
    [_USER, _SAID, _USER],
    [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}, _USER],
    [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}], "name": "Ada"}],
    [
        _USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ],
]
_MESSAGES: Final[list[Any]] = [
    [_USER],
    [_USER, _SAID, _USER],
    [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}],
    [_USER, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}],
    [
        _USER,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "7"}]},
    ],
]
_LIKELY: Final[dict[str, dict[str, list[Any]]]] = {
    "/v1/chat/completions": {"messages": _CHATS},
    "/v1/messages": {"messages": _MESSAGES, "max_tokens": [20, 50]},
    "/v1/messages/count_tokens": {"messages": _MESSAGES},
}
"""What a body mostly has in fields that are hard to make up."""

_METHODS: Final = [
    b"GET",
    b"POST",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"QUERY",
    b"get",
    b"ZZZ",
]
_BYTES: Final = st.binary(max_size=20).map(lambda raw: re.sub(rb"[\r\n]", b"", raw))
_HEADER_TEXTS: Final = TEXTS.map(lambda text: re.sub(r"[\r\n\x00]", "", text[:400]).encode()) | _BYTES
_ODD_HEADERS: Final = st.sampled_from(
    [
        (b"Content-Type", b"text/plain"),
        (b"Content-Type", b"application/json; charset=utf-16"),
        (b"Content-Type", b"multipart/form-data; boundary=x"),
        (b"Content-Encoding", b"gzip"),
        (b"Accept", b"image/png;q=0.1"),
        (b"Accept-Encoding", b"br, zstd"),
        (b"Authorization", b"Basic \xff\xfe"),
        (b"Cookie", b"a=" + b"x" * 500),
        (b"Expect", b"200-maybe"),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"close, upgrade"),
        (b"Range", b"bytes=9-1"),
        (b"X-HTTP-Method-Override", b"DELETE"),
        (b"X-Forwarded-For", b"::1, \xff"),
        (b"X-Request-Id", b"\xe9\t"),
        (b"anthropic-version", b"2023-06-01"),
        (b"anthropic-version", b"\xe9"),
        (b"anthropic-beta", b"a,b"),
    ]
)
_ODD_PARTS: Final = [
    *("/", "//", "/.", "/..", "/%2e%2e", "%2F", "%00", "%ff", "%C3%A9", "%", "%zz", ";a=b", "\\", "*", "~", "."),
    *(
        "?",
        "??",
        "?limit=%ff",
        "?limit=1&limit=1",
        "?limit=",
        "?%00=%00",
        "?metadata[]=a",
        "?a[b][c]=d",
        "?" + "a=b&" * 300,
    ),
]
_RAW_BODIES: Final = [
    *(
        b"",
        b"{",
        b"nonsense",
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":01}',
        b"\xef\xbb\xbf{}",
    ),
    *(
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":"\xff"}',
        b'{"a":"\x01"}',
        b'{"a":1,}',
        b"{}{}",
        b"\x00",
        b"[]",
        b"null",
    ),
    *(b"[" * 20_000, b'{"a":' * 20_000, b"[" * 900 + b"]" * 900, b'"' + b"a" * 90_000 + b'"', b" " * 5_000 + b"{}"),
    *(b"-" + b"9" * 5_000, b'{"a":' + b"9" * 400 + b"}", b"1" + b"0" * 400 + b".5", b"x" * 300_000),
]


class Requests:
    """Strategies for the operations of an interface.

    Args:
        interface: the document.
    """

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._fitting = Fitting(interface.document)

    def of(self, method: str, template: str) -> st.SearchStrategy[Sent]:
        """Requests for an operation, of which one in three or so is sound."""
        operation = self._interface.operations()[method, template]
        sound = self._sound(method, template, operation)
        kinds = {"sound": 7, "headers": 2, "target": 2, "method": 1}
        made = {
            "headers": _with_odd_headers(sound),
            "target": _with_odd_target(sound),
            "method": _with_odd_method(sound),
        }
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            kinds |= {"bent": 5, "other": 1, "raw": 2}
            made["bent"] = _with_body(sound, mutated(self.bodies(template, schema)))
            made |= {"other": _with_body(sound, ANYTHING), "raw": _with_raw_body(sound)}
        weighted = [kind for kind, weight in kinds.items() for _ in range(weight)]
        return st.sampled_from(weighted).flatmap(lambda kind: made.get(kind, sound))

    def bodies(self, template: str, schema: Schema) -> Values:
        """Bodies that fit a schema that is referred to, most with a known model and messages that make sense."""
        known = resolve(self._interface.document, schema["$ref"])["properties"]
        likely = {"model": _MODELS} if "model" in known else {}
        likely |= _LIKELY.get(template, {})

        @st.composite
        def made(draw: st.DrawFn) -> Any:
            plain = len(likely) > 1 and draw(st.booleans())  # where Claude judges, too, few other bodies pass
            body = {} if plain else draw(self._fitting.values(schema))
            for name, values in likely.items():
                if plain or draw(st.integers(0, 7)):
                    body[name] = deepcopy(draw(st.sampled_from(values)))
            return body

        return made()

    def _sound(self, method: str, template: str, operation: dict[str, Any]) -> st.SearchStrategy[Sent]:
        described = self._interface.parameters(operation)
        in_path = {one["name"]: self._in_path(one) for one in described if one["in"] == "path"}
        headers = [self._header(one) for one in described if one["in"] == "header"]
        query = [self._query(one) for one in described if one["in"] == "query"]
        body: Values = st.none()
        if "requestBody" in operation:
            body = self.bodies(template, operation["requestBody"]["content"]["application/json"]["schema"])

        @st.composite
        def made(draw: st.DrawFn) -> Sent:
            path = template
            for name, values in in_path.items():
                path = path.replace(f"{{{name}}}", quote(draw(values), safe=""))
            asked = [draw(pair) for pair in draw(st.lists(st.sampled_from(query), max_size=3))] if query else []
            if asked:
                path += "?" + "&".join(f"{quote(name, safe='[]')}={quote(value)}" for name, value in asked)
            chosen = draw(st.just([]) | st.lists(st.sampled_from(headers), max_size=2, unique=True)) if headers else []
            pairs = tuple(draw(pair) for pair in chosen)
            sent = None if "requestBody" not in operation else encoded(draw, draw(body))
            return Sent(method.encode(), path.encode(), pairs, sent, chunked=draw(st.integers(0, 5)) == 0)

        return made()

    def _in_path(self, parameter: dict[str, Any]) -> st.SearchStrategy[str]:
        known = {
            "key": _KEYS,
            "session": _SESSIONS,
            "turn": _TURNS,
            "model": st.sampled_from([*_MODELS, "none", "a/b"]),
            "principal": st.sampled_from([*[FRIEND] * 4, "admin", "an-app/its-user", "a b", "/", "a/b/c"]),
        }
        texts = self._fitting.values(parameter["schema"]).filter(lambda text: 0 < len(text) < 300)
        return st.integers(0, 7).flatmap(lambda kind: known[parameter["name"]] if kind else texts)

    def _header(self, parameter: dict[str, Any]) -> st.SearchStrategy[tuple[bytes, bytes]]:
        values = self._fitting.values(parameter["schema"]).map(lambda text: text[:400].encode())
        if parameter["name"] == "X-Session-Id":
            values = st.sampled_from([*[SEEDED.encode()] * 3, b"new"]) | values
        elif parameter["name"] == "anthropic-version":
            values = st.sampled_from([b"2026-10-21", b"2023-06-01"]) | values
        return st.tuples(st.just(parameter["name"].encode()), values.map(lambda raw: re.sub(rb"[\r\n\x00]", b"", raw)))

    def _query(self, parameter: dict[str, Any]) -> st.SearchStrategy[tuple[str, str]]:
        name, schema = parameter["name"], parameter["schema"]
        if schema.get("type") == "object":
            keys = st.text(st.characters(codec="utf-8", exclude_characters="]"), min_size=1, max_size=8)
            return st.tuples(keys.map(lambda key: f"{name}[{key}]"), TEXTS.map(lambda text: text[:200]))
        return st.tuples(st.just(name), self._fitting.values(schema).map(lambda value: str(value)[:400]))


def encoded(draw: st.DrawFn, value: Any) -> bytes:
    """JSON in one of the ways to write it."""
    return json.dumps(
        value,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, None, 1])),
        sort_keys=False,
        allow_nan=False,
    ).encode("utf-8", "surrogatepass")


@st.composite
def _with_body(draw: st.DrawFn, sound: st.SearchStrategy[Sent], bodies: Values) -> Sent:
    sent, raw = draw(sound), encoded(draw, draw(bodies))
    if draw(st.integers(0, 9)) == 0 and raw.startswith(b"{") and len(raw) > 2:  # each of its keys twice
        raw = raw.rstrip()[:-1] + b"," + raw.lstrip()[1:]
    return Sent(sent.method, sent.target, sent.headers, raw, sent.chunked)


@st.composite
def _with_raw_body(draw: st.DrawFn, sound: st.SearchStrategy[Sent]) -> Sent:
    sent = draw(sound)
    assert sent.body is not None
    if draw(st.booleans()):
        raw = draw(st.sampled_from(_RAW_BODIES))
    else:  # one byte of it is another, or it ends early
        at = draw(st.integers(0, len(sent.body) - 1))
        raw = (
            sent.body[:at] + draw(st.binary(max_size=2)) + sent.body[at + 1 :]
            if draw(st.booleans())
            else sent.body[:at]
        )
    return Sent(sent.method, sent.target, sent.headers, raw, sent.chunked)


@st.composite
def _with_odd_headers(draw: st.DrawFn, sound: st.SearchStrategy[Sent]) -> Sent:
    sent = draw(sound)
    named = [name for name, _ in sent.headers] or [b"X-Session-Id"]
    own = st.tuples(st.sampled_from(named), _HEADER_TEXTS)
    more = draw(st.lists(_ODD_HEADERS | own, min_size=1, max_size=3))
    if draw(st.integers(0, 15)) == 0:
        more.append((b"X-Long", b"x" * 70_000))
    return Sent(sent.method, sent.target, (*sent.headers, *more), sent.body, sent.chunked)


@st.composite
def _with_odd_target(draw: st.DrawFn, sound: st.SearchStrategy[Sent]) -> Sent:
    sent = draw(sound)
    at = draw(st.integers(1, len(sent.target)))
    odd = draw(st.sampled_from(_ODD_PARTS).map(str.encode) | _BYTES)
    target = sent.target[:at] + odd + (sent.target[at:] if draw(st.booleans()) else b"")
    if draw(st.integers(0, 9)) == 0:
        target = draw(
            st.sampled_from([b"*", b"http://x/v1/models", b"//x/y", b"x:1", b"/" + b"a" * 70_000, b"/%41" * 99])
        )
    return Sent(sent.method, target, sent.headers, sent.body, sent.chunked)


@st.composite
def _with_odd_method(draw: st.DrawFn, sound: st.SearchStrategy[Sent]) -> Sent:
    sent = draw(sound)
    return Sent(draw(st.sampled_from(_METHODS)), sent.target, sent.headers, sent.body, sent.chunked)
