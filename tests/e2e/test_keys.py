"""Keys, scopes and acting for others, over two replicas that ask for keys."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from service import api_key
from tests.e2e.caller import Answer, Caller, chunks_of, eventually, text_of
from tests.faults.test_counts import sent_since
from tests.instruments.processes import Fleet

pytestmark = pytest.mark.anyio

ADMIN = "admin-key-of-the-tests-0123456789"
WITHIN_S = 4.0
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
async def keyed(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    env = {"BATON_ADMIN_KEY": ADMIN}
    async with Fleet(tmp_path_factory.mktemp("keyed"), replicas=2, env=env, redis_stalls=(1,)) as fleet:
        yield fleet


@pytest.fixture
async def calm(keyed: Fleet) -> AsyncIterator[Fleet]:
    yield keyed
    await keyed.simulator.clear_faults()
    await keyed.simulator.pace(first_byte_ms=0, delta_ms=0)


@pytest.fixture
def first(calm: Fleet, http: aiohttp.ClientSession) -> Caller:
    return Caller(http, calm.replicas[0].url)


@pytest.fixture
def second(calm: Fleet, http: aiohttp.ClientSession) -> Caller:
    return Caller(http, calm.replicas[1].url)


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in more.items()}}


async def administer(caller: Caller, method: str, path: str = "", body: Any = None) -> Answer:
    return await caller.request(method, f"/v1/admin/keys{path}", json=body, headers=bearer(ADMIN))


async def made(caller: Caller, principal: str, **fields: Any) -> Any:
    answer = await administer(caller, "POST", body={"principal": principal, **fields})
    assert answer.status == 201, answer.body
    return answer.json


def code_of(found: Answer) -> tuple[int, str]:
    return (200, "") if found.status == 200 else (found.status, found.code)


async def refused(caller: Caller, headers: dict[str, str]) -> tuple[int, str]:
    """What a list of sessions is refused with, in both dialects; not while that may change."""
    found = await caller.request("GET", "/v1/sessions", headers=headers)
    if found.status == 200:
        return 200, ""
    theirs = await caller.request("POST", "/v1/messages", json={}, headers=headers)
    assert theirs.status == found.status
    assert theirs.json["error"]["details"]["error_code"] == found.code
    if found.status == 401:
        assert theirs.json["error"]["type"] == "authentication_error"
        assert found.headers["www-authenticate"].startswith('Bearer realm="baton"')
    return code_of(found)


async def comes_to_tell(caller: Caller, key: str, wanted: tuple[int, str]) -> None:
    """A change of a key reaches a replica; it may do so between any two requests."""

    async def seen() -> bool:
        return code_of(await caller.request("GET", "/v1/sessions", headers=bearer(key))) == wanted

    await eventually(seen, f"{wanted}", WITHIN_S)
    assert await refused(caller, bearer(key)) == wanted


async def test_a_key_may_what_its_scopes_say_on_every_replica(first: Caller, second: Caller, name: str) -> None:
    key = await made(first, name)
    assert key["scopes"] == ["chat", "sessions:read", "sessions:write"]
    assert key["key"].startswith("baton_" + key["id"].removeprefix("key_"))
    for caller in (first, second):
        turn = await caller.chat("My name is Ada.", name, headers=bearer(key["key"]))
        assert turn.status == 200
        assert turn.headers["cache-control"] == "no-store"
    listed = await second.request("GET", "/v1/sessions", headers={"x-api-key": key["key"]})
    assert [one["owner"] for one in listed.json["sessions"]] == [name]
    forbidden = await first.request("GET", "/v1/admin/keys", headers=bearer(key["key"]))
    assert (forbidden.status, forbidden.code) == (403, "insufficient_scope")
    assert "`admin`" in forbidden.json["error"]["message"]


async def test_every_scope_is_needed_where_the_document_says_so(first: Caller, name: str) -> None:
    document = (await first.get("/openapi.json")).json
    keys = {
        scope: (await made(first, name, scopes=[scope]))["key"]
        for scope in ("chat", "sessions:read", "sessions:write", "admin", "act-for")
    }
    seen = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            needed = operation["security"][0]["bearer"][0] if operation["security"] else ""
            seen.add(needed)
            for scope, key in keys.items():
                target = path.replace("{session}", "none").replace("{turn}", "1").replace("{model}", "m")
                target = target.replace("{key}", "key_" + "a" * 26)
                answer = await first.request(method.upper(), target, json={}, headers=bearer(key))
                refusal = answer.status == 403
                assert refusal == (bool(needed) and scope != needed), (method, path, scope, answer.body)
                if refusal:
                    assert f'scope="{needed}"' in answer.headers["www-authenticate"]
    assert seen == {"", "chat", "sessions:read", "sessions:write", "admin"}


async def test_each_way_to_be_refused_has_a_code(first: Caller, name: str) -> None:
    key = await made(first, name)
    text = key["key"]
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    passing = await made(first, name, expires_at=soon)
    stranger = api_key.issue("key_" + "a" * 26)
    other_secret = api_key.issue(key["id"])
    assert await refused(first, bearer(text)) == (200, "")
    assert await refused(first, {}) == (401, "missing_api_key")
    for bad in (text[:-1], text + "a", text.upper(), "sk-ant-api03-x", "é" * 73, "x" * 5000, text[:-1] + "1"):
        assert await refused(first, {"x-api-key": bad}) == (401, "malformed_api_key"), bad
    for bad in ("Basic abc", "Bearer", f"Token {text}", text):
        assert await refused(first, {"authorization": bad}) == (401, "malformed_api_key"), bad
    for bad in (stranger, other_secret):
        assert await refused(first, bearer(bad)) == (401, "invalid_api_key")
    assert await refused(first, bearer(text, x_api_key=text)) == (200, "")
    assert await refused(first, bearer(text, x_api_key=other_secret)) == (400, "invalid_value")
    assert (await administer(first, "PATCH", f"/{key['id']}", {"disabled": True})).json["disabled"] is True
    assert await refused(first, bearer(text)) == (401, "disabled_api_key")
    await asyncio.sleep(2)
    assert await refused(first, bearer(passing["key"])) == (401, "expired_api_key")
    assert (await administer(first, "DELETE", f"/{key['id']}")).json["deleted"] is True
    assert await refused(first, bearer(text)) == (401, "invalid_api_key")


async def test_a_turn_with_a_key_that_was_seen_asks_the_store_for_nothing_more(
    calm: Fleet, first: Caller, second: Caller, name: str
) -> None:
    headers = bearer((await made(first, name))["key"])
    replica = calm.replicas[1]
    assert replica.redis_stall is not None
    before = len(replica.redis_stall.commands)
    await second.chat("My name is Ada.", name, headers=headers)
    cold = [argv[0] for argv in sent_since(replica, before)]
    assert cold.count(b"HGETALL") == 1  # the key
    before = len(replica.redis_stall.commands)
    assert (await second.chat("What is my name?", name, headers=headers)).text == "Your name is Ada."
    assert [argv[0] for argv in sent_since(replica, before)] == [b"EVALSHA", b"LRANGE", b"HMGET", b"EVALSHA"]


async def test_a_change_reaches_the_other_replica_within_seconds(first: Caller, second: Caller, name: str) -> None:
    key = await made(first, name)
    text, path = key["key"], f"/{key['id']}"

    assert await refused(second, bearer(text)) == (200, "")
    await administer(first, "PATCH", path, {"disabled": True})
    await comes_to_tell(second, text, (401, "disabled_api_key"))
    await administer(first, "PATCH", path, {"disabled": False})
    await comes_to_tell(second, text, (200, ""))
    await administer(first, "PATCH", path, {"scopes": ["admin"]})
    await comes_to_tell(second, text, (403, "insufficient_scope"))
    await administer(first, "PATCH", path, {"scopes": ["sessions:read", "chat"]})
    await comes_to_tell(second, text, (200, ""))
    rotated = (await administer(first, "POST", f"{path}/rotate", {"overlap_seconds": 60})).json
    assert await refused(second, bearer(rotated["key"])) == (200, "")  # at once: who shows it knows of it
    assert await refused(second, bearer(text)) == (200, "")
    again = (await administer(first, "POST", f"{path}/rotate", {"overlap_seconds": 1})).json
    for old in (text, rotated["key"]):  # the oldest at once, the other after its second
        await comes_to_tell(second, old, (401, "invalid_api_key"))
    assert await refused(second, bearer(again["key"])) == (200, "")
    await administer(first, "DELETE", path)
    await comes_to_tell(second, again["key"], (401, "invalid_api_key"))


@pytest.mark.parametrize("change", ["disable", "delete", "expire"])
async def test_a_running_stream_ends_with_its_key(first: Caller, second: Caller, calm: Fleet, change: str) -> None:
    name = f"stream-{change}"
    key = await made(first, name)
    headers = bearer(key["key"])
    await calm.simulator.pace(delta_ms=100)
    async with second.stream("Count to 300", name, headers=headers) as stream:
        await stream.words(2)
        turns = await second.request("GET", f"/v1/sessions/{name}/turns", headers=headers)
        followed = f"{second.url}/v1/sessions/{name}/turns/{turns.json['turns'][0]['id']}/events"
        async with second.http.get(followed, headers=headers) as follower:
            await follower.content.readuntil(b"\n\n")
            started = time.monotonic()
            match change:
                case "disable":
                    await administer(first, "PATCH", f"/{key['id']}", {"disabled": True})
                case "delete":
                    await administer(first, "DELETE", f"/{key['id']}")
                case "expire":
                    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1.5))
                    await administer(first, "PATCH", f"/{key['id']}", {"expires_at": soon})
            frames = await stream.rest()
            assert time.monotonic() - started < WITHIN_S + 1
            rest = await follower.content.read()
    assert chunks_of(frames)[-1]["error"]["code"] == "revoked_api_key"
    assert b"[DONE]" not in b"".join(frames)
    assert b"revoked_api_key" in rest and b"[DONE]" not in rest
    # The turn is kept as far as it was shown, as if the caller had hung up.
    heir = bearer((await made(first, name))["key"])
    (turn,) = (await first.request("GET", f"/v1/sessions/{name}/turns", headers=heir)).json["turns"]
    assert turn["verdict"] == "incomplete"
    said = (await first.request("GET", f"/v1/sessions/{name}/messages", headers=heir)).json["messages"][-1]["content"]
    assert said[0]["text"].startswith(text_of(frames)[:4])


async def test_a_turn_that_is_not_streamed_is_told_it_with_its_status(
    first: Caller, second: Caller, calm: Fleet
) -> None:
    key = await made(first, "json-revoked")
    await calm.simulator.pace(delta_ms=100)
    said = "Count to 300 [json-revoked]"
    asking = asyncio.create_task(second.chat(said, "json-revoked", headers=bearer(key["key"])))
    await eventually(lambda: calm.simulator.asked("[json-revoked]"), "the question")
    await administer(first, "DELETE", f"/{key['id']}")
    answer = await asking
    assert (answer.status, answer.code) == (401, "revoked_api_key")
    heir = bearer((await made(first, "json-revoked"))["key"])
    gone = await first.request("GET", "/v1/sessions/json-revoked", headers=heir)
    assert gone.status == 404


async def test_an_application_acts_for_its_users(first: Caller, second: Caller, name: str) -> None:
    app = (await made(first, name, scopes=["chat", "sessions:read", "act-for"]))["key"]
    plain = (await made(first, name))["key"]
    for user in ("ada", "bob@example.org"):
        said = await first.chat(f"My name is {user[:3].capitalize()}.", "chat", headers=bearer(app, x_baton_user=user))
        assert said.status == 200
    ada = bearer(app, x_baton_user="ada")
    assert (await second.chat("What is my name?", "chat", headers=ada)).text == "Your name is Ada."
    shown = (await second.request("GET", "/v1/sessions/chat", headers=ada)).json
    assert shown["owner"] == f"{name}/ada"
    foreign = await first.request(
        "GET", f"/v1/sessions/{shown['id']}", headers=bearer(app, x_baton_user="bob@example.org")
    )
    unknown = await first.request("GET", "/v1/sessions/sess_00" + "a" * 26, headers=ada)
    assert (foreign.status, foreign.json) == (404, unknown.json)
    assert (await first.request("GET", f"/v1/sessions/{shown['id']}", headers=bearer(app))).status == 404
    denied = await first.request("GET", "/v1/sessions", headers=bearer(plain, x_baton_user="ada"))
    assert (denied.status, denied.code) == (403, "insufficient_scope")
    assert "`act-for`" in denied.json["error"]["message"]
    stranger = await first.request("GET", "/v1/sessions", headers={"x-baton-user": "a/b"})
    assert (stranger.status, stranger.code) == (401, "missing_api_key"), "who it is comes first"
    for bad in ("a/b", "", "a b", "é", "x" * 129, "-a"):
        answer = await first.request("GET", "/v1/sessions", headers=bearer(app, x_baton_user=bad))
        assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, "invalid_value", "X-Baton-User"), (
            bad
        )


async def test_the_sdks_send_keys_and_know_the_refusals(calm: Fleet, first: Caller, name: str) -> None:
    key = (await made(first, name))["key"]
    url = calm.replicas[0].url
    asked: Any = {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Count to 2"}]}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        assert (await client.chat.completions.create(**asked)).choices[0].message.content == "1 2"
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.with_options(api_key="sk-wrong").chat.completions.create(**asked)
        assert caught.value.code == "malformed_api_key"
    async with anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as theirs:
        assert (await theirs.messages.create(max_tokens=100, **asked)).content[0].text == "1 2"
        with pytest.raises(anthropic.AuthenticationError):
            await theirs.with_options(api_key="sk-wrong").messages.create(max_tokens=100, **asked)


async def test_keys_are_listed_shown_and_checked(first: Caller, name: str) -> None:
    ids = [(await made(first, name, labels={"n": str(n)}))["id"] for n in range(3)]
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await administer(first, "GET", f"?principal={name}&limit=2&cursor={cursor}")).json
        assert all("key" not in one for one in page["keys"])
        found += [one["id"] for one in page["keys"]]
        cursor = page["next_cursor"]
    assert sorted(found) == sorted(ids)
    assert (await administer(first, "GET", f"/{ids[1]}")).json["labels"] == {"n": "1"}
    for method, change in (("GET", None), ("PATCH", {"disabled": True}), ("DELETE", None)):
        for unknown in ("key_" + "a" * 26, "x", "%0aaudit"):
            assert (await administer(first, method, f"/{unknown}", change)).code == "key_not_found"
    wrong: list[tuple[Any, str]] = [
        ({}, "principal"),
        ({"principal": "a/b"}, "principal"),
        ({"principal": "x" * 101}, "principal"),
        ({"principal": "a", "scopes": []}, "scopes"),
        ({"principal": "a", "scopes": ["root"]}, "scopes"),
        ({"principal": "a", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"principal": "a", "expires_at": 5}, "expires_at"),
        ({"principal": "a", "labels": {"a": 1}}, "labels"),
        ({"principal": "a", "color": 1}, "color"),
    ]
    for body, param in wrong:
        answer = await administer(first, "POST", body=body)
        assert (answer.status, answer.json["error"]["param"]) == (400, param), body


async def test_what_administrators_do_is_in_the_log_and_no_key_is(calm: Fleet, first: Caller, name: str) -> None:
    key = await made(first, name, labels={"secret-label": "x"})
    rotated = (await administer(first, "POST", f"/{key['id']}/rotate")).json
    await administer(first, "PATCH", f"/{key['id']}", {"disabled": "yes"})
    await administer(first, "DELETE", f"/{key['id']}")
    await first.request("GET", "/v1/admin/keys", headers=bearer("made-up-key"))
    lines = calm.replicas[0].events("audit")
    about = [(line["action"], line["outcome"]) for line in lines if line.get("key") == key["id"]]
    assert about == [
        ("create_key", "done"),
        ("rotate_key", "done"),
        ("patch_key", "invalid_value"),
        ("delete_key", "done"),
    ]
    assert {line["by"] for line in lines if line.get("key") == key["id"]} == {"admin"}
    assert {line["by_key"] for line in lines if line.get("key") == key["id"]} == {"BATON_ADMIN_KEY"}
    assert ("GET /v1/admin/keys", "malformed_api_key") in [(line["action"], line["outcome"]) for line in lines]
    log = calm.replicas[0].log()
    for secret in (key["key"], rotated["key"], key["key"][33:65], ADMIN, "secret-label", "made-up"):
        assert secret not in log


async def test_a_refused_attempt_to_administer_tells_whose_key_it_was(calm: Fleet, first: Caller, name: str) -> None:
    key = await made(first, name)
    assert (await first.request("GET", "/v1/admin/keys", headers=bearer(key["key"]))).status == 403
    (line,) = [line for line in calm.replicas[0].events("audit") if line.get("by_key") == key["id"]]
    assert (line["action"], line["outcome"], line["by"]) == ("GET /v1/admin/keys", "insufficient_scope", name)
    path, change = f"/{key['id']}", {"labels": {}, "disabled": True}
    assert (await administer(first, "PATCH", path, change)).status == 200
    lines = [line for line in calm.replicas[0].events("audit") if line.get("key") == key["id"]]
    line = next(line for line in lines if line["action"] == "patch_key")
    assert (line["changed"], line.get("undeclared")) == ("disabled labels", None)


async def test_a_body_that_takes_its_time_does_not_outlive_its_key(first: Caller, second: Caller, name: str) -> None:
    """Else whoever has stolen an administrator's key could make itself another one after it was disabled."""
    key = await made(first, name, scopes=["admin", "sessions:read"])
    headers, begun = bearer(key["key"]), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"principal": '
        begun.set()

        await comes_to_tell(second, key["key"], (401, "disabled_api_key"))
        yield b'"%s-heir"}' % name.encode()

    asking = asyncio.create_task(second.request("POST", "/v1/admin/keys", data=body(), headers=headers))
    await begun.wait()

    async def admitted() -> bool:
        return b"\nbaton_bodies_bytes 0.0\n" not in (await second.get("/metrics")).body

    await eventually(admitted, "the beginning of the body")
    assert (await administer(first, "PATCH", f"/{key['id']}", {"disabled": True})).status == 200
    answer = await asking
    assert (answer.status, answer.code) == (401, "revoked_api_key")
    assert (await administer(first, "GET", f"?principal={name}-heir")).json["keys"] == []


async def test_the_numbers_of_everybody_are_an_administrators(first: Caller, second: Caller, name: str) -> None:
    """Of one who acts for nobody; everybody else is told of its own."""
    own = await made(first, name, scopes=["chat", "sessions:read"])
    assert (await first.chat("Hi", name, headers=bearer(own["key"]))).status == 200
    both = await made(first, f"{name}-admin", scopes=["sessions:read", "admin", "act-for"])

    async def messages(**headers: str) -> tuple[int, int]:
        stats = (await second.request("GET", "/v1/sessions/stats", headers=headers)).json
        return stats["total_sessions"], stats["total_messages"]

    assert await messages(**bearer(own["key"])) == (1, 2)
    everybody = await messages(**bearer(ADMIN))
    assert everybody >= (1, 2)
    assert await messages(**bearer(both["key"])) == everybody
    assert await messages(**bearer(both["key"], x_baton_user="ada")) == (0, 0)
    assert await messages(**bearer(ADMIN, x_baton_user="ada")) == (0, 0)


async def test_what_is_refused_is_refused_before_its_body_is_read(first: Caller) -> None:
    """And the connection is good for the next request, whatever was sent."""
    for headers in ({}, bearer("nonsense"), bearer("x" * 60_000)):
        answer = await first.request("POST", CHAT, data=io.BytesIO(b"x" * 5_000_000), headers=headers)
        assert answer.status == 401
    assert (await first.get("/livez")).status == 200


async def test_operations_are_open_to_everybody(first: Caller) -> None:
    for path in ("/", "/livez", "/readyz", "/health", "/version", "/metrics", "/openapi.json"):
        assert (await first.request("GET", path, headers=bearer("nonsense"))).status == 200
    ready = (await first.get("/readyz")).json
    assert (ready["auth"], ready["warnings"]) == ("keys", [])
    page = await first.get("/")
    assert page.headers["x-frame-options"] == "DENY"
    assert page.body.count(b"Bearer $BATON_KEY") == 2, "what to try works here"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "baton_errors_total" in (await first.get("/metrics")).body.decode()


def test_a_key_that_was_mistyped_is_told_from_one_that_is_unknown() -> None:
    text = api_key.issue("key_" + "a" * 26)
    assert len(text) == api_key.CHARS
    assert api_key.key_id_of(text) == "key_" + "a" * 26
    for at in range(len(text)):
        other = "b" if text[at] != "b" else "c"
        assert api_key.key_id_of(text[:at] + other + text[at + 1 :]) is None
    assert api_key.key_id_of(text + "\n") is None
    assert json.dumps(text) == f'"{text}"'
