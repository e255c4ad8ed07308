"""The prompt cache in sessions: what is billed at full price, for how long prefixes are kept, why one was missed."""

from typing import Any

import pytest
import redis.asyncio

from storage.keys import Keyspace
from tests.e2e.caller import Answer, Caller
from tests.instruments.processes import SECRET, Fleet, Simulator

pytestmark = pytest.mark.anyio

Json = dict[str, Any]
MODEL = "claude-sonnet-5-5"
FACT = "Of what is said here a good part was said before, and is only read again. " * 20  # about 400 tokens
TURNS = 30
TOOL: Json = {"name": "look", "input_schema": {"type": "object"}}


async def turn(caller: Caller, name: str, said: Any, **fields: Any) -> Answer:
    body = {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": said}], **fields}
    answer = await caller.request("POST", "/v1/messages", json=body, headers={"x-session-id": name})
    assert answer.status == 200, answer.body
    return answer


async def last_turn(caller: Caller, name: str) -> Any:
    answer = await caller.get(f"/v1/sessions/{name}/turns?limit=1")
    return answer.json["turns"][0]


async def last_body(simulator: Simulator) -> Any:
    (request,) = await simulator.requests(1)
    return request["body"]


def read_of(usage: Json) -> int:
    """All that Claude read of one request."""
    return sum(int(usage[f"{kind}input_tokens"]) for kind in ("", "cache_read_", "cache_creation_"))


async def test_a_long_conversation_is_read_from_the_cache(one: Caller, two: Caller, name: str) -> None:
    naive = full_price = 0
    for number in range(TURNS):
        usage = (await turn((one, two)[number % 2], name, f"{name} {number}: {FACT}")).json["usage"]
        naive += read_of(usage)
        full_price += usage["input_tokens"] + usage["cache_creation_input_tokens"]
    assert full_price <= 0.12 * naive, (full_price, naive)
    usage = (await one.session(name))["usage"]
    assert usage["sent_tokens"] == naive
    assert usage["full_price_tokens"] == full_price
    assert usage["saved_tokens"] == naive - full_price
    record = await last_turn(one, name)
    assert (record["cache_miss"], record["sent"]["cached_for"]) == (None, "5m")


async def test_what_was_cached_is_told_in_both_dialects(one: Caller, two: Caller, name: str) -> None:
    written = (await turn(one, name, name + FACT * 4)).json["usage"]["cache_creation_input_tokens"]
    assert written > 1024
    chat = (await two.chat("And now?", name, model=MODEL)).json["usage"]
    assert chat["prompt_tokens_details"]["cached_tokens"] == written
    assert chat["prompt_tokens_details"]["cache_write_tokens"] > 0
    assert (await turn(one, name, "And then?")).json["usage"]["cache_read_input_tokens"] > written


async def test_a_turn_of_many_blocks_is_anchored_where_the_last_request_ended(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    first = (await turn(one, name, name + FACT * 4)).json["usage"]
    blocks = [{"type": "text", "text": f"{number}"} for number in range(40)]
    usage = (await turn(two, name, blocks)).json["usage"]
    assert usage["cache_read_input_tokens"] == first["cache_creation_input_tokens"]
    marked = (await last_body(simulator))["messages"][0]["content"]
    assert marked == [{"type": "text", "text": name + FACT * 4, "cache_control": {"type": "ephemeral"}}]
    assert (await one.messages(name))[0]["content"] == name + FACT * 4
    assert (await turn(one, name, "On.")).json["usage"]["cache_read_input_tokens"] > usage["cache_read_input_tokens"]


async def test_a_session_that_pauses_is_kept_for_an_hour(
    one: Caller, two: Caller, fleet: Fleet, simulator: Simulator, name: str
) -> None:
    await turn(one, name, name + FACT * 4)
    ref = Keyspace("baton", 1, SECRET.encode()).session((await one.session(name))["id"], "open")
    store: Any
    async with redis.asyncio.from_url(fleet.valkey.url) as store:
        await store.hincrby(ref.keys[0], "ca", -10 * 60_000)
    usage = (await turn(two, name, FACT)).json["usage"]
    assert (await last_body(simulator))["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert usage["cache_creation"]["ephemeral_1h_input_tokens"] > 0
    assert (await last_turn(one, name))["sent"]["cached_for"] == "1h"
    await turn(one, name, "At once.")
    assert (await last_body(simulator))["cache_control"] == {"type": "ephemeral"}


async def test_a_turn_tells_why_its_prefix_was_not_found(one: Caller, two: Caller, name: str) -> None:
    first = (await turn(one, name, name + FACT * 4)).json["usage"]
    assert (await last_turn(two, name))["cache_miss"] is None
    await turn(two, name, "And now?", tools=[TOOL])
    missed = {"reason": "tools_changed", "tokens": read_of(first)}
    assert (await last_turn(one, name))["cache_miss"] == missed
    await turn(one, name, "And then?")
    assert (await last_turn(one, name))["cache_miss"] is None


async def test_a_gateway_that_knows_no_diagnostics_is_not_sent_any(
    fleet: Fleet, one: Caller, simulator: Simulator, name: str
) -> None:
    replica = await fleet.add_replica(env={"BATON_CACHE_DIAGNOSTICS": "false", "BATON_CACHE_TTL": "1h"})
    await turn(Caller(one.http, replica.url), name, "Hi")
    body = await last_body(simulator)
    assert "diagnostics" not in body
    assert body["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    await turn(one, name, "Hi again")
    assert (await last_body(simulator))["diagnostics"]["previous_message_id"].startswith("msg_")
