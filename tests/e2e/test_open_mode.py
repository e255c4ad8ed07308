"""Without keys: who is served, what browsers may, and what the first key changes."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from click.testing import CliRunner

from service import api_key, cli
from tests.e2e.caller import Caller, eventually
from tests.instruments.processes import SECRET, Fleet

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
PAGE = "https://app.example.org"


@pytest.fixture(scope="module")
async def listing(anyio_backend: str, fleet: Fleet) -> AsyncIterator[str]:
    """A replica that lists an origin."""
    replica = await fleet.add_replica(env={"BATON_CORS_ORIGINS": f"{PAGE}, http://localhost:5173"})
    yield replica.url


def baton_keys(env: Mapping[str, str], *args: str) -> tuple[int, str, str]:
    """``baton keys``: exit code, stdout, stderr."""
    clean = {name: None for name in os.environ if name.startswith(("BATON_", "ANTHROPIC_"))}
    done = CliRunner().invoke(cli.main, ["keys", *args], env={**clean, **env})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


async def test_any_credential_is_passed_over(one: Caller, name: str) -> None:
    for headers in ({"authorization": "Bearer sk-anything"}, {"x-api-key": "é"}, {"authorization": "Basic x"}):
        assert (await one.chat("Hi", name, headers=headers)).status == 200
    assert (await one.session(name))["owner"] == "open"
    acting = {"x-baton-user": "ada"}
    assert (await one.chat("Hi", name, headers=acting)).status == 200
    assert (await one.request("GET", f"/v1/sessions/{name}", headers=acting)).json["owner"] == "open/ada"


async def test_nobody_administers(one: Caller) -> None:
    answer = await one.get("/v1/admin/keys")
    assert (answer.status, answer.code) == (403, "insufficient_scope")


async def test_it_is_said(fleet: Fleet, one: Caller) -> None:
    ready = (await one.get("/readyz")).json
    assert ready["auth"] == "open"
    assert "not authenticated" in ready["warnings"][0]
    assert fleet.replicas[0].events("open_mode")


async def test_pages_of_other_sites_are_refused(one: Caller) -> None:
    """Simple requests need no leave of CORS: a page could spend money blindly."""
    body = orjson.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    own = one.url.removeprefix("http://")
    for origin in (
        "https://evil.example",
        "null",
        "http://localhost:1",
        f"https://{own}.evil.example",
        "http://[",
        "x",
    ):
        headers = {"origin": origin, "content-type": "text/plain"}
        answer = await one.request("POST", CHAT, data=body, headers=headers)
        assert (answer.status, answer.code) == (403, "origin_refused"), origin
        assert "access-control-allow-origin" not in answer.headers
    assert (await one.request("POST", CHAT, data=body, headers={"origin": one.url})).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "["])
async def test_what_is_addressed_to_another_host_is_refused(one: Caller, host: str) -> None:
    """As after a DNS rebinding, where a foreign page is of the same origin."""
    headers = {"host": host, "origin": f"http://{host}"}
    answer = await one.request("GET", "/v1/sessions", headers=headers)
    assert (answer.status, answer.code) == (403, "origin_refused")
    for ours in ("localhost", "LOCALHOST:80", "127.0.0.1:9", "127.1.2.3", "[::1]:80", "baton.localhost"):
        assert (await one.request("GET", "/v1/sessions", headers={"host": ours})).status == 200, ours


async def test_without_a_list_nothing_is_said_of_cors(one: Caller) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    preflight = await one.request("OPTIONS", CHAT, headers=asked)
    assert preflight.status == 405
    read = await one.request("GET", "/version", headers={"origin": PAGE})
    assert not [name for answer in (preflight, read) for name in answer.headers if "access-control" in name.lower()]


async def test_a_listed_page_may_read_and_send_all_of_ours(http: aiohttp.ClientSession, listing: str) -> None:
    caller = Caller(http, listing)
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    preflight = await caller.request("OPTIONS", CHAT, headers=asked)
    assert (preflight.status, preflight.body) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == PAGE
    may_send = preflight.headers["access-control-allow-headers"].lower()
    assert {"authorization", "x-api-key", "x-session-id", "idempotency-key", "*"} <= set(may_send.split(", "))
    answer = await caller.chat("Hi", headers={"origin": PAGE})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert answer.headers["vary"] == "origin"
    may_read = answer.headers["access-control-expose-headers"].split(", ")
    assert {"X-Session-Id", "X-Turn-Id", "X-Request-Id", "Retry-After", "x-should-retry"} <= set(may_read)
    wrong = await caller.request("POST", CHAT, data=b"{", headers={"origin": PAGE})
    assert (wrong.status, wrong.headers["access-control-allow-origin"]) == (400, PAGE)
    other = await caller.request("OPTIONS", CHAT, headers={**asked, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    refused = await caller.chat("Hi", headers={"origin": "https://evil.example"})
    assert refused.status == 403


async def test_the_first_key_closes_every_replica(tmp_path: Path, name: str) -> None:
    async with Fleet(tmp_path, replicas=2) as fleet, aiohttp.ClientSession() as http:
        callers = [Caller(http, replica.url) for replica in fleet.replicas]
        env = {"BATON_REDIS_URL": fleet.valkey.url, "BATON_SECRET": SECRET}
        for caller in callers:
            assert (await caller.chat("My name is Ada.", name)).status == 200

        code, text, told = await asyncio.to_thread(
            baton_keys, env, "create", "--principal", "open", "--label", "purpose=test"
        )
        assert code == 0, told
        key = text.splitlines()[-1]
        assert key.startswith("baton_") and key not in told
        headers = {"authorization": f"Bearer {key}"}
        for caller in callers:

            async def closed(caller: Caller = caller) -> bool:
                return (await caller.get("/v1/sessions")).status == 401

            await eventually(closed, "401", 4.0)
            # What was made without keys is the principal `open`'s.
            assert (await caller.chat("What is my name?", name, headers=headers)).text == "Your name is Ada."
            assert (await caller.get("/readyz")).json["auth"] == "keys"

        _, listed, _ = await asyncio.to_thread(baton_keys, env, "list", "--json")
        (shown,) = orjson.loads(listed)
        assert shown["labels"] == {"purpose": "test"}
        assert key not in listed
        key_id = shown["id"]
        _, rotated, _ = await asyncio.to_thread(baton_keys, env, "rotate", key_id, "--overlap-s", "0")
        fresh = {"x-api-key": rotated.splitlines()[-1]}
        assert (await callers[0].request("GET", "/v1/sessions", headers=fresh)).status == 200
        code, _, _ = await asyncio.to_thread(baton_keys, env, "disable", key_id)
        assert code == 0

        async def disabled() -> bool:
            return (await callers[1].request("GET", "/v1/sessions", headers=fresh)).status == 401

        await eventually(disabled, "401", 4.0)
        assert "disabled" in (await asyncio.to_thread(baton_keys, env, "list"))[1]
        assert (await asyncio.to_thread(baton_keys, env, "delete", key_id))[0] == 0
        assert (await asyncio.to_thread(baton_keys, env, "show", key_id))[0] == 1
        # Nothing falls open because its last key is gone.
        await asyncio.sleep(1.5)
        assert [(await caller.get("/v1/sessions")).status for caller in callers] == [401, 401]
        wrong: dict[str, Any] = {**env, "BATON_SECRET": "another secret of enough length"}
        assert (await asyncio.to_thread(baton_keys, wrong, "list"))[0] == 78


async def test_keys_while_the_store_is_away(tmp_path: Path, name: str) -> None:
    """A key that was seen is honoured, an unknown one is not called unknown."""
    admin = "admin-key-of-the-tests-0123456789"
    env = {"BATON_ADMIN_KEY": admin, "BATON_STORE_BEGIN_S": "1"}
    async with Fleet(tmp_path, replicas=1, env=env) as fleet, aiohttp.ClientSession() as http:
        caller = Caller(http, fleet.replicas[0].url)
        by_admin = {"authorization": f"Bearer {admin}"}

        async def made() -> dict[str, str]:
            answer = await caller.request("POST", "/v1/admin/keys", json={"principal": name}, headers=by_admin)
            return {"authorization": f"Bearer {answer.json['key']}"}

        seen, not_seen = await made(), await made()
        assert (await caller.chat("Count to 2", headers=seen)).text == "1 2"
        fleet.valkey.kill9()

        async def down() -> bool:
            return bool((await caller.get("/readyz")).json["store"] == "down")

        await eventually(down, "store down")
        assert (await caller.chat("Count to 2", headers=seen)).text == "1 2"
        in_session = await caller.chat("Hi", name, headers=seen)
        assert (in_session.status, in_session.code) == (503, "store_unavailable")
        for unknown in (not_seen, {"x-api-key": api_key.issue("key_" + "a" * 26)}):
            answer = await caller.chat("Count to 2", headers=unknown)
            assert (answer.status, answer.code) == (503, "store_unavailable")
        assert (await caller.chat("Count to 2")).code == "missing_api_key"
        assert (await caller.chat("Count to 2", headers={"x-api-key": "nonsense"})).code == "malformed_api_key"
        fleet.valkey.start()

        async def served() -> bool:
            return (await caller.chat("Count to 2", headers=not_seen)).status == 200

        await eventually(served, "served again")
