"""``/openapi.json`` of a running replica, and the replica's answers held against it."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest

from tests.e2e.by_hand import append, assistant, user
from tests.e2e.caller import CHAT, Answer, Caller, Stream
from tests.instruments.interface import STRUCTURE, Interface
from tests.instruments.json_schema import Checker
from tests.instruments.processes import Fleet, Replica, Simulator

pytestmark = pytest.mark.anyio

MODEL = "claude-sonnet-5-5"
VERSION = {"anthropic-version": "2026-10-21"}
ADMIN = {"x-api-key": "admin-key-of-the-tests-0123456789"}
HELLO = {"messages": [user("Hello.")]}


class Strict(Caller):
    """A caller who takes no answer that is not as the document says.

    Args:
        http, url: as a `Caller`.
        interface: the document.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, interface: Interface) -> None:
        super().__init__(http, url)
        self.interface = interface

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        answer = await super().request(method, path, **options)
        body = answer.json if answer.json is not None else answer.body.decode()
        problems = self.interface.problems_of_answer(method, path, answer.status, answer.headers, body)
        if answer.status < 400:
            headers: Mapping[str, str] = options.get("headers") or {}
            problems += self.interface.problems_of_request(method, path, options.get("json"), headers)
        assert problems == [], f"{method} {path}: {answer.status} {answer.body[:500]!r}"
        return answer

    async def frames(self, said: str, session: str | None = None, **fields: Any) -> list[bytes]:
        """The frames of a streamed turn."""
        async with self.stream(said, session, **fields) as stream:
            return await self._checked("POST", CHAT, stream)

    async def frames_of_messages(self, said: str, session: str) -> list[bytes]:
        """The frames of a streamed turn of Anthropic's."""
        path, headers = "/v1/messages", {"x-session-id": session}
        body = {"model": MODEL, "max_tokens": 100, "stream": True, "messages": [user(said)]}
        async with self.http.post(self.url + path, json=body, headers=headers) as response:
            return await self._checked("POST", path, Stream(response))

    async def followed(self, path: str) -> list[bytes]:
        """The frames of a turn that is followed."""
        async with self.http.get(self.url + path, headers={"Last-Event-ID": "0"}) as response:
            return await self._checked("GET", path, Stream(response))

    async def _checked(self, method: str, path: str, stream: Stream) -> list[bytes]:
        frames = await stream.rest()
        events = [line.removeprefix(b"data: ") for f in frames for line in f.split(b"\n") if line.startswith(b"data: ")]
        parsed = [json.loads(data) if data.startswith(b"{") else data.decode() for data in events]
        assert self.interface.problems_of_stream(method, path, stream.headers, parsed) == []
        return frames


@pytest.fixture
async def strict(fleet: Fleet, http: aiohttp.ClientSession) -> AsyncIterator[Strict]:
    """Asks the first replica."""
    url = fleet.replicas[0].url
    answer = await Caller(http, url).get("/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    yield Strict(http, url, Interface(answer.json))


@pytest.fixture(scope="session")
async def asking(anyio_backend: str, fleet: Fleet) -> Replica:
    """A replica that asks for keys, in a namespace of its own, so that the others need not."""
    return await fleet.add_replica(env={"BATON_ADMIN_KEY": ADMIN["x-api-key"], "BATON_NAMESPACE": "asking"})


async def administered(strict: Strict, asking: Replica) -> None:
    """Every operation on keys."""
    admin = Strict(strict.http, asking.url, strict.interface)
    keys = "/v1/admin/keys"
    asked = {"principal": "ada", "labels": {"a": "b"}, "expires_at": "2999-01-31T12:00:00Z", "scopes": ["chat"]}
    made = [await admin.request("POST", keys, json=asked, headers=ADMIN) for _ in range(2)]
    assert [one.status for one in made] == [201, 201]
    page = await admin.request("GET", f"{keys}?limit=1&principal=ada", headers=ADMIN)
    assert (await admin.request("GET", f"{keys}?cursor={page.json['next_cursor']}", headers=ADMIN)).json["keys"]
    key = f"{keys}/{made[0].json['id']}"
    assert (await admin.request("GET", key, headers=ADMIN)).status == 200
    stopped: dict[str, Any] = {"disabled": True, "expires_at": None, "scopes": ["admin"], "labels": {}}
    assert (await admin.request("PATCH", key, json=stopped, headers=ADMIN)).json["expires_at"] is None
    assert (await admin.request("POST", f"{key}/rotate", json={"overlap_seconds": 5}, headers=ADMIN)).json["key"]
    assert (await admin.request("DELETE", key, headers=ADMIN)).json["deleted"]
    assert (await admin.request("GET", key, headers=ADMIN)).code == "key_not_found"
    assert (await admin.get("/v1/sessions")).code == "missing_api_key"


async def test_every_replica_serves_the_same_sound_document(one: Caller, two: Caller) -> None:
    first, second = await one.get("/openapi.json"), await two.get("/openapi.json")
    assert first.body == second.body
    assert Checker({}).problems(first.json, STRUCTURE) == []
    assert "/openapi.json" in (await one.get("/")).body.decode()


async def test_every_operation_answers_as_the_document_says(strict: Strict, asking: Replica, name: str) -> None:
    await administered(strict, asking)
    for path in ("/", "/health", "/livez", "/readyz", "/metrics", "/version", "/openapi.json"):
        assert (await strict.get(path)).status == 200, path
    for path in ("/v1/models", "/v1/models?limit=1", f"/v1/models/{MODEL}"):
        for headers in ({}, VERSION):
            assert (await strict.request("GET", path, headers=headers)).status == 200, path

    session = f"/v1/sessions/{name}"
    labels = {"title": "A title", "metadata": {"team": name}}
    asked = {"name": name, "model": MODEL, "system_prompt": "Be brief.", "max_turns": 9, "ttl_seconds": 600, **labels}
    made = await strict.request("POST", "/v1/sessions", json={**asked, "absolute_expires_at": "2999-01-31T12:00:00Z"})
    assert made.status == 201
    bare = await strict.request("POST", "/v1/sessions", json={"model": MODEL})
    seen = await strict.get(f"/v1/sessions/{bare.json['id']}")
    assert seen.json["name"] is None
    changes = {"title": "Another", "max_turns": None}
    changed = await strict.request("PATCH", session, json=changes, headers={"if-match": made.headers["etag"]})
    assert changed.json["title"] == "Another"

    assert (await append(strict, name, user("a"), assistant("b"))).status == 200
    assert (await append(strict, name)).json["turn_id"] is None
    told = await strict.chat("Hello.", name, temperature=0, headers={"x-session-mode": "continue"})
    assert told.headers["x-baton-ignored"] == "temperature"
    assert (await strict.chat("Hello.")).status == 200
    frames = await strict.frames("count to 5", name, stream_options={"include_usage": True})
    assert frames[-1] == b"data: [DONE]"
    asked = {"model": MODEL, "max_tokens": 100, "messages": [user("Hello.")]}
    for session_headers in ({}, {"x-session-id": f"{name}-messages"}):
        answer = await strict.request("POST", "/v1/messages", json=asked, headers=session_headers)
        assert answer.json["type"] == "message"
        counted = {"model": MODEL, "messages": [user("Hello.")]}
        answer = await strict.request("POST", "/v1/messages/count_tokens", json=counted, headers=session_headers)
        assert answer.json["input_tokens"] > 0

    page = await strict.get(f"/v1/sessions?limit=1&title_prefix=An&metadata[team]={name}")
    assert [one["name"] for one in page.json["sessions"]] == [name]
    page = await strict.get("/v1/sessions?limit=1")
    assert (await strict.get(f"/v1/sessions?limit=1&cursor={page.json['next_cursor']}")).json["sessions"]
    assert (await strict.get("/v1/sessions/stats")).json["total_sessions"] >= 2
    assert (await strict.get(f"{session}/messages?offset=1&limit=2")).json["total"] == 6
    turns = (await strict.get(f"{session}/turns?limit=3&before=9")).json["turns"]
    assert [turn["dialect"] for turn in turns] == ["chat", "chat", "append"]
    for address in (turns[0]["id"], "1"):
        assert (await strict.get(f"{session}/turns/{address}")).json["messages"]
    assert await strict.followed(f"{session}/turns/{turns[0]['id']}/events") == frames
    assert (await strict.request("POST", f"{session}/turns/1/cancel")).json["cancel_requested"] is False
    assert (await strict.request("POST", f"{session}/compact")).json["status"] in ("running", "done")
    assert (await strict.request("POST", f"{session}/fork", json={"message_count": 2})).status == 201
    assert (await strict.get(f"{session}/export")).body.endswith(b'{"type":"end"}\n')
    imported = {"model": MODEL, "messages": [user("a"), assistant("b")]}
    assert (await strict.request("POST", "/v1/sessions/import", json=imported)).status == 201
    for status in (201, 200):
        assert (await strict.request("PUT", f"{session}/shares/ada", json={"role": "viewer"})).status == status
    assert (await strict.get(f"{session}/shares")).json["shares"] == [(await strict.get(f"{session}/shares/ada")).json]
    assert (await strict.request("DELETE", f"{session}/shares/ada")).json["deleted"]
    assert (await strict.request("DELETE", session)).json["deleted"]

    answered = {(method, path) for method, path, status in strict.interface.seen if status < 300}
    assert answered == strict.interface.operations().keys(), "an operation that this test does not know"


async def test_a_request_that_is_sent_twice_is_answered_as_described(strict: Strict, name: str) -> None:
    keyed = {"idempotency-key": name}
    made = [await strict.request("POST", "/v1/sessions", json={"model": MODEL}, headers=keyed) for _ in range(2)]
    assert [(answer.status, answer.json["id"]) for answer in made] == [
        (201, made[0].json["id"]),
        (200, made[0].json["id"]),
    ]
    other = await strict.request("POST", "/v1/sessions", json={"model": MODEL, "title": "T"}, headers=keyed)
    assert (other.status, other.code) == (422, "idempotency_key_reused")
    told = [await strict.chat("Hello.", name, headers=keyed) for _ in range(2)]
    assert told[0].json["id"] == told[1].json["id"]
    assert (await strict.chat("Other.", name, headers=keyed)).code == "idempotency_key_reused"
    turn = told[0].headers["x-turn-id"]
    assert (await append(strict, name, user("a"), headers={"x-expect-turn": turn})).status == 200
    assert (await append(strict, name, user("a"), headers={"x-expect-turn": turn})).code == "history_moved"
    assert (await strict.chat("Hello.", name, headers={"x-expect-turn": turn})).code == "history_moved"
    assert (await strict.get(f"/v1/sessions/{name}/turns/{turn}/events")).code == "events_not_found"


async def test_a_turn_of_messages_is_described_wherever_it_is_shown(strict: Strict, name: str) -> None:
    frames = await strict.frames_of_messages("count to 5", name)
    (turn,) = (await strict.get(f"/v1/sessions/{name}/turns")).json["turns"]
    assert turn["dialect"] == "messages"
    assert await strict.followed(f"/v1/sessions/{name}/turns/1/events") == frames


async def test_what_cannot_be_a_sessions_name_is_not_described(strict: Strict) -> None:
    for name in ("new", "stats", "import"):
        assert (await strict.get(f"/v1/sessions/{name}/turns")).code == "invalid_session_id"
        assert strict.interface.problems_of_request("GET", f"/v1/sessions/{name}/turns", None, {})


async def test_turns_in_every_state_are_as_described(
    strict: Strict, two: Caller, simulator: Simulator, name: str
) -> None:
    await strict.chat("Hello.", name)
    await simulator.fault("rate_limit", retry_after_s=30)
    assert (await strict.chat("Fail.", name)).code == "upstream_rate_limited"
    await simulator.fault("refusal")
    await strict.chat("Refuse.", name)
    await simulator.pace(delta_ms=20)
    async with two.stream("count to 400", name) as stream:
        await stream.words(1)
        turns = (await strict.get(f"/v1/sessions/{name}/turns")).json["turns"]
        refused = await strict.chat("Hello.", name, headers={"x-session-on-conflict": "reject"})
        assert (refused.code, refused.headers["x-turn-id"]) == ("turn_in_progress", turns[0]["id"])
        refused = await append(strict, name, user("a"), headers={"x-session-on-conflict": "reject"})
        assert (refused.code, refused.headers["x-turn-id"]) == ("turn_in_progress", turns[0]["id"])
        assert (await strict.get(f"/v1/sessions/{name}")).json["status"] == "busy"
        stopped = await strict.request("POST", f"/v1/sessions/{name}/turns/{turns[0]['id']}/cancel")
        assert (stopped.status, stopped.json["cancel_requested"]) == (202, True)
        await stream.rest()
    assert [turn["verdict"] for turn in turns] == ["pending", "refused", "aborted", "committed"]


@pytest.mark.parametrize(
    ("method", "path", "code", "options"),
    [
        ("POST", CHAT, "invalid_json", {"data": b"{"}),
        ("POST", CHAT, "missing_value", {"json": {}}),
        ("POST", CHAT, "unknown_field", {"json": {**HELLO, "colour": "red"}}),
        ("POST", CHAT, "unsupported", {"json": {**HELLO, "n": 2}}),
        ("POST", CHAT, "invalid_session_id", {"json": {**HELLO, "session_id": "a b"}}),
        ("POST", CHAT, "session_id_conflict", {"json": {**HELLO, "session_id": "a"}, "headers": {"x-session-id": "b"}}),
        ("POST", CHAT, "session_not_found", {"json": {**HELLO, "session_id": "sess_00" + "a" * 26}}),
        ("POST", CHAT, "upstream_invalid_request", {"json": {**HELLO, "max_tokens": 999_999_999}}),
        ("POST", "/v1/sessions", "invalid_session_id", {"json": {"model": MODEL, "name": "new"}}),
        ("POST", "/v1/sessions", "invalid_value", {"json": {"model": ""}}),
        ("GET", "/v1/sessions?limit=0", "invalid_value", {}),
        ("GET", "/v1/sessions?colour=red", "unknown_field", {}),
        ("GET", "/v1/sessions/a%20b", "invalid_session_id", {}),
        ("PATCH", "/v1/sessions/none", "session_not_found", {"json": {}}),
        ("DELETE", "/v1/sessions/none", "session_not_found", {}),
        ("GET", "/v1/sessions/none/messages?offset=x", "invalid_value", {}),
        ("POST", "/v1/sessions/none/messages", "missing_value", {"json": {}}),
        ("GET", "/v1/sessions/none/turns/1", "session_not_found", {}),
        ("GET", "/v1/models/none", "model_not_found", {}),
    ],
)
async def test_refusals_are_as_described(strict: Strict, method: str, path: str, code: str, options: Any) -> None:
    assert (await strict.request(method, path, **options)).code == code


async def test_refusals_in_anthropics_shape_are_as_described(strict: Strict) -> None:
    for path, status in (("/v1/models/none", 404), ("/v1/models?after_id=none", 400), ("/v1/models?lifecycle=x", 400)):
        refused = await strict.request("GET", path, headers=VERSION)
        assert (refused.status, refused.json["type"]) == (status, "error")


async def test_errors_of_a_session_are_as_described(strict: Strict, simulator: Simulator, name: str) -> None:
    session = f"/v1/sessions/{name}"
    made = await strict.request("POST", "/v1/sessions", json={"name": name, "model": MODEL, "max_turns": 1})
    assert (await strict.request("POST", "/v1/sessions", json={"name": name, "model": MODEL})).code == "session_exists"
    assert (await strict.request("PATCH", session, json={"title": "T"})).status == 200
    lost = await strict.request("PATCH", session, json={}, headers={"if-match": made.headers["etag"]})
    assert (lost.code, lost.headers["etag"]) == ("revision_conflict", '"2"')
    assert (await strict.chat("Hello.", name)).status == 200
    assert (await strict.chat("Hello.", name)).code == "max_turns_reached"
    assert (await strict.chat("Hello.", name, headers={"x-session-mode": "create"})).code == "session_exists"
    assert (await strict.get(f"{session}/turns/9")).code == "turn_not_found"
    await strict.request("PATCH", session, json={"max_turns": None})
    other = {"messages": [user("Other."), assistant("Answer."), user("More.")], "session_id": name}
    assert (await strict.request("POST", CHAT, json=other)).code == "history_mismatch"
    await simulator.fault("overloaded", times=9)
    failed = await strict.chat("Hello.", name)
    assert (failed.code, failed.headers["x-session-id"]) == ("upstream_overloaded", made.json["id"])
    await simulator.clear_faults()
    await simulator.pace(delta_ms=100)
    await simulator.fault("error_mid_stream", after_deltas=2)
    assert json.loads((await strict.frames("count to 5", name))[-1][6:])["error"]["code"] == "upstream_overloaded"


async def test_numbers_of_a_query_have_the_bounds_that_the_document_gives(
    strict: Strict, asking: Replica, name: str
) -> None:
    strict = Strict(strict.http, asking.url, strict.interface)
    await strict.request("POST", "/v1/sessions", json={"name": name, "model": MODEL}, headers=ADMIN)
    tried = set()
    for (method, path), operation in strict.interface.operations().items():
        for parameter in operation["parameters"]:
            if parameter.get("schema", {}).get("type") == "integer":
                low, high = parameter["schema"]["minimum"], parameter["schema"]["maximum"]
                for number, status in ((low, 200), (high, 200), (low - 1, 400), (high + 1, 400)):
                    target = f"{path.format(session=name)}?{parameter['name']}={number}"
                    # Models come in pages in Anthropic's shape only.
                    assert (await strict.request(method, target, headers=VERSION | ADMIN)).status == status, target
                tried.add(parameter["name"])
    assert tried == {"limit", "offset", "before"}


async def test_headers_take_what_the_document_offers(strict: Strict, name: str) -> None:
    bodies = {CHAT: {**HELLO, "session_id": name}, f"/v1/sessions/{name}/messages": {"messages": []}}
    offered = {"X-Session-Mode": ["continue", "create"], "X-Session-Input": ["delta", "full"]}
    parameters = strict.interface.document["components"]["parameters"]
    choices = {one: parameters[one]["schema"]["enum"] for one in parameters if "enum" in parameters[one]["schema"]}
    assert offered.items() <= choices.items()
    await strict.request("POST", "/v1/sessions", json={"name": name, "model": MODEL})
    for path, body in bodies.items():
        operation = strict.interface.operation("POST", path)[1]
        named = [one["$ref"].rpartition("/")[2] for one in operation["parameters"]]
        for header in set(named) & choices.keys():
            for choice in choices[header]:
                answer = await strict.request("POST", path, json=body, headers={header: choice})
                assert answer.status == 200 or answer.code == "session_exists", f"{header}: {choice}"
            answer = await strict.request("POST", path, json=body, headers={header: "nonsense"})
            assert (answer.code, answer.json["error"]["param"]) == ("invalid_value", header)
