"""What callers of the two ancestors relied on, or stumbled over: sessions, their histories, their ends.

Each test names the idea that it takes over; see test_ancestors.py. What one replica does the other one shows.
"""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from tests.e2e.by_hand import append, assistant, create, user
from tests.e2e.caller import CHAT, Answer, Caller, eventually, text_of
from tests.e2e.test_ancestors import MODEL, NO_SUCH_PATH, error
from tests.e2e.test_ancestors_turns import sent
from tests.instruments.processes import Fleet, Simulator

pytestmark = pytest.mark.anyio

BAD_ID = (
    "A session is named by its issued id (sess_…), by `new`, or by a name of your own: 1-200 characters out of "
    "letters, digits and . _ : @ + -, beginning with a letter or digit; `stats` and `import` are reserved."
)
MOVING = ("last_accessed_at", "expires_at")


def still(session: Any) -> Any:
    """A session without what every look at it moves."""
    return {key: value for key, value in session.items() if key not in MOVING}


async def whole(caller: Caller, name: str) -> Any:
    """The session as its list shows it, which does not touch it: found by its title, which is its name."""
    (found,) = (await caller.get(f"/v1/sessions?title_prefix={name}")).json["sessions"]
    return found


# Names.


async def test_an_empty_id_names_no_session_and_no_list(one: Caller, two: Caller, name: str) -> None:
    """One ancestor made a session named "" that nothing could address; DELETE without an id must not reach any."""
    await create(one, name=name)
    unrouted = error(NO_SUCH_PATH, None, "route_not_found", "not_found_error")
    for caller in (one, two):
        for method in ("GET", "PATCH", "DELETE"):
            for path in ("/v1/sessions/", "/v1/sessions//messages", "/v1/sessions//turns"):
                answer = await caller.request(method, path, json={"title": "N"})
                assert (answer.status, answer.json) == (404, unrouted)
        in_body = await caller.chat("Hi", "")
        told = error("session_id must be a non-empty string.", "session_id", "invalid_session_id")
        assert (in_body.status, in_body.json) == (400, told)
        in_header = await caller.chat("Hi", headers={"X-Session-Id": ""})
        assert (in_header.status, in_header.json) == (400, error(BAD_ID, "session_id", "invalid_session_id"))
        created = await caller.request("POST", "/v1/sessions", json={"model": MODEL, "name": ""})
        assert (created.status, created.json) == (
            400,
            error("`name` must be a non-empty string.", "name", "invalid_value"),
        )
        assert (await caller.session(name))["title"] is None


@pytest.mark.parametrize("bad", ["n" * 201, "a%20b", "a%00", "%C3%A9", "-a", "a%0Ab", "new"])
async def test_an_id_too_long_or_of_other_characters_is_refused_whatever_is_asked_of_it(
    one: Caller, two: Caller, bad: str
) -> None:
    told = error(BAD_ID, "session_id", "invalid_session_id")
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"title": "N"}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("POST", "/messages", {"messages": []}),
        ("GET", "/turns", None),
        ("GET", "/turns/1", None),
    ):
        for caller in (one, two):
            answer = await caller.request(method, f"/v1/sessions/{bad}{path}", json=body)
            assert (answer.status, answer.json) == (400, told), (method, path)


async def test_the_longest_id_works_everywhere(one: Caller, two: Caller, name: str) -> None:
    longest = name + "." * (200 - len(name))
    assert (await one.chat("My name is Ada.", longest)).text
    assert (await two.chat("What is my name?", headers={"X-Session-Id": longest})).text == "Your name is Ada."
    assert (await one.session(longest))["name"] == longest
    assert (await two.request("DELETE", f"/v1/sessions/{longest}")).status == 200


# Turns in a session.


async def test_every_turn_adds_two_messages_streamed_or_not(one: Caller, two: Caller, name: str) -> None:
    for number in range(1, 5):
        caller, other = (one, two) if number % 2 else (two, one)
        if number < 3:
            await caller.chat("Hi", name)
        else:
            async with caller.stream("Hi", name) as stream:
                await stream.rest()
        seen = await other.session(name)
        assert (seen["message_count"], seen["turn_count"], len(await other.messages(name))) == (
            *(2 * number, number),
            2 * number,
        )


async def test_what_was_streamed_is_known_to_the_next_turn(sdks: list[AsyncOpenAI], name: str) -> None:
    for number, (first, second) in enumerate((sdks, sdks[::-1])):
        options: dict[str, Any] = {"model": MODEL, "extra_headers": {"X-Session-Id": f"{name}-{number}"}}
        stream = await first.chat.completions.create(
            messages=[{"role": "user", "content": "My name is Ada."}], stream=True, **options
        )
        told = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        answer = await second.chat.completions.create(
            messages=[{"role": "user", "content": "What is my name?"}], **options
        )
        assert answer.choices[0].message.content == "Your name is Ada."
        assert told == 'You said: "My name is Ada.". I received 1 message.'


async def test_no_message_of_a_long_history_is_dropped(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    """One ancestor kept the last hundred and lost the system prompt with the rest. Here Claude gets them all."""
    history = [user("My name is Ada.") if not n else (assistant, user)[n % 2 == 0](f"{n}") for n in range(250)]
    await create(one, name=name, system_prompt="Be brief.")
    for at in range(0, 250, 50):
        assert (await append((one, two)[at % 100 == 0], name, *history[at : at + 50])).status == 200
    assert (await two.chat("What is my name?", name)).text == "Your name is Ada."
    body = await sent(simulator)
    assert body["messages"] == [*history, user("What is my name?")]
    assert body["system"] == "Be brief."
    pages = [
        (await caller.get(f"/v1/sessions/{name}/messages?limit=100&offset={at}")).json["messages"]
        for caller, at in ((one, 0), (two, 100), (one, 200))
    ]
    stored = [message for page in pages for message in page]
    assert stored[:251] == body["messages"]
    assert len(stored) == 252


async def test_turns_appends_and_patches_at_once_lose_nothing(one: Caller, two: Caller, name: str) -> None:
    """The ancestors' locks were none: what came at once overwrote or interleaved."""
    await create(one, name=name, title="0")

    async def turn(n: int) -> int:
        return (await (one, two)[n % 2].chat(f"turn {n}", name)).status

    async def by_hand(n: int) -> int:
        return (await append((two, one)[n % 2], name, user(f"hand {n}"), assistant(f"answer {n}"))).status

    async def patch(n: int) -> int:
        metadata = {f"{key}": f"{n}" for key in range(4)}
        return (await (one, two)[n % 2].request("PATCH", f"/v1/sessions/{name}", json={"metadata": metadata})).status

    statuses = await asyncio.gather(*(act(n) for n in range(6) for act in (turn, by_hand, patch)))
    assert statuses == [200] * 18
    stored = await two.messages(name)
    pairs = [(text(asked), text(answered)) for asked, answered in zip(stored[::2], stored[1::2], strict=True)]
    assert sorted(asked for asked, _ in pairs) == sorted(f"{kind} {n}" for kind in ("hand", "turn") for n in range(6))
    for asked, answered in pairs:
        kind, n = asked.split()
        assert answered.startswith(f"answer {n}" if kind == "hand" else f'You said: "turn {n}".')
    seen = await one.session(name)
    assert (seen["message_count"], seen["turn_count"], len(set(seen["metadata"].values()))) == (24, 6, 1)
    assert (await one.get(f"/v1/sessions/{name}")).headers["etag"] == '"7"'


def text(message: Any) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


# Messages by hand.

TEXT: dict[str, Any] = {"type": "text", "text": "My name is Ada."}
ACCEPTED: list[tuple[list[Any], list[Any]]] = [
    ([user("a")], [user("a")]),
    ([user("a"), assistant("b")], [user("a"), assistant("b")]),
    ([user("a"), user("b"), user("c")], [user("a"), user("b"), user("c")]),
    ([user("a"), assistant("b"), assistant("c")], [user("a"), assistant("b"), assistant("c")]),
    ([user(" é🎈\n\n\t\u0000x ")], [user(" é🎈\n\n\t\u0000x ")]),
    ([{"role": "user", "content": [TEXT, TEXT]}], [{"role": "user", "content": [TEXT, TEXT]}]),
    (
        [user("a"), {"role": "assistant", "content": [{"citations": None, **TEXT}, {**TEXT, "citations": []}]}],
        [user("a"), {"role": "assistant", "content": [TEXT, TEXT]}],
    ),
    ([user("x" * 200_000)], [user("x" * 200_000)]),
]


@pytest.mark.parametrize(("given", "kept"), ACCEPTED, ids=range(len(ACCEPTED)))
async def test_text_of_every_form_that_claudes_history_has_is_appended_and_reaches_claude(
    one: Caller, two: Caller, simulator: Simulator, name: str, given: list[Any], kept: list[Any]
) -> None:
    await create(one, name=name)
    answer = await append(two, name, *given)
    assert answer.status == 200
    assert answer.json == {"session_id": name, "message_count": len(kept), "turn_id": answer.json["turn_id"]}
    assert await one.messages(name) == kept
    assert (await one.chat("Hi", name)).status == 200
    assert (await sent(simulator))["messages"] == [*kept, user("Hi")]


async def test_a_history_read_from_one_session_is_appended_to_another_as_it_is(
    one: Caller, two: Caller, name: str
) -> None:
    await one.chat("My name is Ada.", name)
    await two.chat("Count to 3", name)
    history = await one.messages(name)
    await create(two, name=f"{name}-copy")
    assert (await append(one, f"{name}-copy", *history)).json["message_count"] == 4
    assert await two.messages(f"{name}-copy") == history
    assert (await two.chat("What is my name?", f"{name}-copy")).text == "Your name is Ada."


REFUSED: list[tuple[Any, str, str, str]] = [
    ({}, "`messages` is required.", "messages", "missing_value"),
    ({"messages": None}, "`messages` is required.", "messages", "missing_value"),
    ({"messages": {}}, "`messages` must be a list.", "messages", "invalid_value"),
    ({"messages": "hi"}, "`messages` must be a list.", "messages", "invalid_value"),
    ({"messages": [], "model": MODEL}, "There is no field `model`.", "model", "unknown_field"),
    ({"messages": ["hi"]}, "`messages.0` must be an object.", "messages.0", "invalid_value"),
    *(
        (
            {"messages": [user("a"), {"role": role, "content": "x"}]},
            "`messages.1.role` must be user or assistant.",
            "messages.1.role",
            "invalid_value",
        )
        for role in ("system", "developer", "tool", "robot", None, 7)
    ),
    ({"messages": [{"role": "user"}]}, "`messages.0.content` is required.", "messages.0.content", "missing_value"),
    (
        {"messages": [user("a"), {"role": "assistant", "content": None}]},
        "`messages.1.content` is required.",
        "messages.1.content",
        "missing_value",
    ),
    (
        {"messages": [user(" \n")]},
        "`messages.0.content` must be a string that is not blank.",
        "messages.0.content",
        "invalid_value",
    ),
    (
        {"messages": [user("a"), {"role": "user", "content": [TEXT, {"type": "text", "text": ""}]}]},
        "`messages.1.content.1.text` must be a string that is not blank.",
        "messages.1.content.1.text",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{**TEXT, "cache_control": {"type": "ephemeral"}}]}]},
        "`messages.0.content.0.cache_control` is not supported.",
        "messages.0.content.0.cache_control",
        "unsupported",
    ),
    (
        {"messages": [assistant("I begin.")]},
        "The first message of a session must be a user's.",
        "messages.0.role",
        "invalid_value",
    ),
    (
        {"messages": [{**user("a"), "name": "n"}]},
        "There is no field `messages.0.name`.",
        "messages.0.name",
        "unknown_field",
    ),
]


async def test_what_cannot_be_history_is_refused_by_place_and_changes_nothing(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    """Missing, no list, of another role, without content. An empty list is in order, and changes nothing either."""
    await create(one, name=name, title=name)
    before, asked = await whole(one, name), await simulator.total()
    for number, (body, message, param, code) in enumerate(REFUSED):
        caller = (one, two)[number % 2]
        answer = await caller.request("POST", f"/v1/sessions/{name}/messages", json=body)
        assert (answer.status, answer.json) == (400, error(message, param, code)), param
    many = io.BytesIO(json.dumps({"messages": [user("a")] * 100_001}).encode())
    answer = await one.request("POST", f"/v1/sessions/{name}/messages", data=many)
    told = error("`messages` may hold at most 100000 messages.", "messages", "invalid_value")
    assert (answer.status, answer.json) == (400, told)
    for caller in (one, two):
        answer = await append(caller, name)
        assert (answer.status, answer.json) == (200, {"session_id": name, "message_count": 0, "turn_id": None})
    assert await whole(two, name) == before
    assert await simulator.total() == asked


# Lives.


async def test_what_extends_a_life_and_what_does_not(one: Caller, two: Caller, name: str) -> None:
    """A look, a turn, a change do; being listed, counted, or refused a change does not."""
    await create(one, name=name, title=name)
    path = f"/v1/sessions/{name}"

    async def ask(method: str, path: str, status: int, body: Any = None, **headers: str) -> None:
        for caller in (one, two):
            answer = await caller.request(method, path, json=body, headers=headers)
            assert answer.status == status, answer.body

    stale = {"If-Match": '"99"'}
    for method, at, status, body, headers in (
        ("GET", "/v1/sessions?limit=100", 200, None, {}),
        ("GET", "/v1/sessions/stats", 200, None, {}),
        ("PATCH", path, 400, {"title": 7}, {}),
        ("PATCH", path, 409, {"title": "N"}, stale),
        ("POST", f"{path}/messages", 400, {"messages": [{"role": "user"}]}, {}),
        ("POST", f"{path}/messages", 200, {"messages": []}, {}),
        ("POST", CHAT, 400, {"messages": [], "session_id": name}, {}),
    ):
        before = await whole(one, name)
        await ask(method, at, status, body, **headers)
        assert await whole(two, name) == before, (method, at)
    hello = {"messages": [user("Hi")]}
    uses: list[tuple[str, str, Any]] = [
        ("GET", path, None),
        ("HEAD", path, None),
        ("GET", f"{path}/messages", None),
        ("GET", f"{path}/turns", None),
        ("PATCH", path, {"max_turns": 100}),
        ("POST", f"{path}/messages", hello),
        ("POST", CHAT, {**hello, "session_id": name}),
    ]
    for method, at, body in uses:
        before = await whole(one, name)

        async def extended(method: str = method, at: str = at, body: Any = body, before: Any = before) -> bool:
            await ask(method, at, 200, body)
            after = await whole(two, name)
            return bool(after["expires_at"] > before["expires_at"] and after["created_at"] == before["created_at"])

        await eventually(extended, f"a longer life by {method} {at}")


async def test_a_session_outlives_every_process_that_knew_it(tmp_path: Path, name: str) -> None:
    """Made and used by two replicas in turn; then these and the store are killed, and two others find all of it."""
    async with Fleet(tmp_path, replicas=2) as fleet, aiohttp.ClientSession() as http:
        one, two = (Caller(http, replica.url) for replica in fleet.replicas)
        made = await create(one, name=name, title="T", metadata={"a": "1"}, system_prompt="Be brief.")
        await append(two, name, user("My name is Ada."), assistant("Hello Ada."))
        await one.chat("Count to 3", name)
        async with two.stream("Count to 4", name) as stream:
            assert text_of(await stream.rest()) == "1 2 3 4"
        await one.request("PATCH", f"/v1/sessions/{name}", json={"title": "N"}, headers={"If-Match": '"1"'})
        other = await create(two, title="other")
        gone = await create(one)
        assert (await two.request("DELETE", f"/v1/sessions/{gone['id']}")).status == 200
        known = [await memory(caller, name) for caller in (one, two)]
        assert known[0] == known[1]

        for replica in fleet.replicas:
            replica.kill9()
            await replica.wait()
        fleet.valkey.kill9()
        fleet.valkey.start()
        third, fourth = [Caller(http, (await fleet.add_replica()).url) for _ in range(2)]
        assert [await memory(caller, name) for caller in (fourth, third)] == known
        assert (await third.session(made["id"]))["title"] == "N"
        assert (await fourth.get(f"/v1/sessions/{gone['id']}")).status == 404
        assert (await third.session(other["id"]))["title"] == "other"
        again = await fourth.request("PATCH", f"/v1/sessions/{name}", json={"title": "T"}, headers={"If-Match": '"2"'})
        assert (again.status, again.headers["etag"]) == (200, '"3"')
        assert (await third.chat("What is my name?", name)).text == "Your name is Ada."
        assert (await fourth.session(name))["message_count"] == 8


async def memory(caller: Caller, name: str) -> Any:
    """All that can be seen of a session and its like."""
    listed = (await caller.get("/v1/sessions")).json
    stats = (await caller.get("/v1/sessions/stats")).json
    answers: list[Answer] = [
        await caller.get(f"/v1/sessions/{name}{path}") for path in ("/messages", "/turns", "/turns/1", "/turns/3")
    ]
    assert [answer.status for answer in answers] == [200] * 4
    counted = {key: value for key, value in stats.items() if key not in ("average_session_age_minutes", "cleanup_runs")}
    sessions = sorted((still(session) for session in listed["sessions"]), key=lambda session: str(session["id"]))
    return sessions, listed["total"], counted, [answer.json for answer in answers], still(await caller.session(name))
