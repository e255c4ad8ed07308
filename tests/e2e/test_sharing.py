"""Sessions that are shared, over two replicas that ask for keys: what grantees may do, and what revoking ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.e2e.caller import Answer, Caller, chunks_of, eventually
from tests.e2e.test_keys import ADMIN, bearer, made
from tests.instruments.processes import Fleet

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def keyed(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("shared"), replicas=2, env={"BATON_ADMIN_KEY": ADMIN}) as fleet:
        yield fleet


class Stage:
    """Ada's session, and others who ask for it on the other replica."""

    def __init__(self, fleet: Fleet, http: aiohttp.ClientSession, mark: str) -> None:
        self.fleet = fleet
        self.here, self.there = (Caller(http, replica.url) for replica in fleet.replicas)
        self.mark = mark
        self.keys: dict[str, dict[str, str]] = {}
        self.id = ""

    def principal(self, who: str) -> str:
        return f"{self.mark}-{who}"

    async def as_(self, who: str) -> dict[str, str]:
        """The headers of one of them."""
        if who not in self.keys:
            self.keys[who] = bearer((await made(self.here, self.principal(who)))["key"])
        return self.keys[who]

    async def ask(self, who: str, method: str, path: str, body: Any = None, *, here: bool = False) -> Answer:
        caller = self.here if here else self.there
        return await caller.request(method, path, json=body, headers=await self.as_(who))

    async def share(self, who: str, role: str | None, *, by: str = "ada") -> Answer:
        """Shares Ada's session with somebody, or takes the share away."""
        path = f"{self.path}/shares/{self.principal(who)}"
        body = {"role": role} if role else None
        return await self.ask(by, "PUT" if role else "DELETE", path, body, here=True)

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.id}"


@pytest.fixture
async def stage(keyed: Fleet, http: aiohttp.ClientSession, name: str) -> AsyncIterator[Stage]:
    stage = Stage(keyed, http, name)
    turn = await stage.here.chat("My word is plover.", "mine", headers=await stage.as_("ada"))
    stage.id = turn.headers["x-session-id"]
    yield stage
    await keyed.simulator.pace(first_byte_ms=0, delta_ms=0)


async def test_what_each_role_may_do(stage: Stage) -> None:
    """On every route of a session; none and too small are told apart from nothing but what they may know."""
    message = {"messages": [{"role": "user", "content": "Noted."}]}
    chat = {"model": "claude-sonnet-5-5", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
    routes: list[tuple[str, str, str, Any, int]] = [
        ("viewer", "GET", "", None, 200),
        ("viewer", "GET", "/messages", None, 200),
        ("viewer", "GET", "/turns", None, 200),
        ("viewer", "GET", "/turns/1", None, 200),
        ("writer", "POST", "/messages", message, 200),
        ("writer", "POST", "/messages", {"messages": []}, 200),
        ("writer", "POST", "/turns/1/cancel", None, 200),
        ("writer", "chat", "", chat, 200),
        ("admin", "PATCH", "", {"title": "ours"}, 200),
        ("admin", "GET", "/shares", None, 200),
        ("admin", "PUT", f"/shares/{stage.principal('carol')}", {"role": "viewer"}, 201),
        ("admin", "DELETE", f"/shares/{stage.principal('carol')}", None, 200),
    ]
    rank = {"": 0, "viewer": 1, "writer": 2, "admin": 3}
    for role in rank:
        if role:
            await stage.share("bob", role)
        for needed, method, rest, body, status in routes:
            if method == "chat":
                answer = await stage.ask("bob", "POST", "/v1/chat/completions", {**body, "session_id": stage.id})
            else:
                answer = await stage.ask("bob", method, stage.path + rest, body)
            if rank[role] >= rank[needed]:
                assert answer.status == status, (role, method, rest, answer.body)
            elif role:
                assert (answer.status, answer.code) == (403, "role_too_small"), (role, method, rest)
                assert f"role {needed}" in answer.json["error"]["message"]
            else:
                unknown = f"sess_00{'a' * 26}"
                assert (answer.status, answer.code) == (404, "session_not_found"), (method, rest)
                if method != "chat":
                    other = await stage.ask("bob", method, f"/v1/sessions/{unknown}{rest}", body)
                    assert other.body == answer.body
    assert (await stage.ask("bob", "DELETE", stage.path)).status == 200
    assert (await stage.ask("ada", "GET", stage.path)).status == 404


async def test_a_grantee_sees_it_marked_in_its_list_and_not_the_owners_name(stage: Stage) -> None:
    own = await stage.there.chat("Mine too.", "mine", headers=await stage.as_("bob"))
    assert own.headers["x-session-id"] != stage.id, "one name, two owners, two sessions"
    assert (await stage.share("bob", "viewer")).status == 201
    before = (await stage.ask("bob", "GET", "/v1/sessions/stats")).json
    listed = (await stage.ask("bob", "GET", "/v1/sessions")).json
    marks = [(one["id"], one["name"], one["session_id"], one["role"], one["owner"]) for one in listed["sessions"]]
    assert sorted(marks) == sorted(
        [
            (own.headers["x-session-id"], "mine", "mine", "owner", stage.principal("bob")),
            (stage.id, None, stage.id, "viewer", stage.principal("ada")),
        ]
    )
    assert listed["total"] == 2
    assert (before["total_sessions"], before["total_messages"]) == (1, 2), "only what is its own"
    first = (await stage.ask("bob", "GET", "/v1/sessions?limit=1")).json
    carried = await stage.ask("ada", "GET", f"/v1/sessions?limit=1&cursor={first['next_cursor']}")
    assert (carried.status, carried.code) == (400, "invalid_value"), "a cursor is its caller's"
    assert (await stage.share("bob", None)).status == 200
    listed = (await stage.ask("bob", "GET", "/v1/sessions")).json
    assert [one["role"] for one in listed["sessions"]] == ["owner"]


async def test_what_is_refused_of_shares(stage: Stage) -> None:
    async def told(*asked: Any, by: str = "ada") -> tuple[int, str, str]:
        answer = await stage.share(*asked, by=by)
        return answer.status, answer.code, answer.json["error"]["message"]

    await stage.share("bob", "writer")
    assert (await told("ada", "viewer"))[:2] == (400, "invalid_value")
    assert (await told("carol", "owner"))[:2] == (400, "invalid_value")
    assert (await told("carol", "viewer", by="bob"))[:2] == (403, "role_too_small"), "a share of a share"
    assert (await told("carol", None))[:2] == (404, "share_not_found")
    await stage.share("bob", "admin")
    assert "owner" in (await told("ada", "viewer", by="bob"))[2]
    assert "owner" in (await told("ada", None, by="bob"))[2]
    for body, code in (({}, "missing_value"), ({"role": "viewer", "x": 1}, "unknown_field"), ([], "invalid_value")):
        answer = await stage.ask("ada", "PUT", f"{stage.path}/shares/x", body)
        assert (answer.status, answer.code) == (400, code)
    odd = await stage.ask("ada", "PUT", f"{stage.path}/shares/a%20b", {"role": "viewer"})
    assert (odd.status, odd.code) == (400, "invalid_value")
    for principal in ("an-app/its-user", "an-app%2Fanother"):
        assert (await stage.ask("ada", "PUT", f"{stage.path}/shares/{principal}", {"role": "viewer"})).status == 201
    shares = (await stage.ask("bob", "GET", f"{stage.path}/shares")).json["shares"]
    assert {one["principal"]: one["role"] for one in shares} == {
        stage.principal("bob"): "admin",
        "an-app/its-user": "viewer",
        "an-app/another": "viewer",
    }
    assert (await stage.share("bob", None, by="bob")).status == 200, "one's own share can be given up"
    assert (await stage.ask("bob", "GET", stage.path)).status == 404


async def test_revoking_cuts_who_follows_and_not_the_turn(stage: Stage) -> None:
    await stage.share("bob", "viewer")
    await stage.fleet.simulator.pace(delta_ms=50)
    async with stage.here.stream("Count to 200", "mine", headers=await stage.as_("ada")) as running:
        await running.words(2)
        path = f"{stage.there.url}{stage.path}/turns/2/events"
        async with stage.there.http.get(path, headers=await stage.as_("bob")) as followed:
            assert followed.status == 200
            await followed.content.readuntil(b"\n\n")
            assert (await stage.share("bob", None)).status == 200
            rest = (await followed.read()).decode()
        assert '"code":"session_not_found"' in rest.rpartition("data: ")[2]
        assert "[DONE]" not in rest
        await stage.fleet.simulator.pace(delta_ms=0)
        await running.words(2)
        again = await stage.ask("bob", "GET", f"{stage.path}/turns/2/events")
        assert (again.status, again.code) == (404, "session_not_found")


@pytest.mark.parametrize("role", [None, "viewer"])
async def test_revoking_ends_a_turn_that_runs(stage: Stage, role: str | None) -> None:
    """Its caller is told so in its stream; nothing is stored, and the session is free at once."""
    await stage.share("bob", "writer")
    await stage.fleet.simulator.pace(delta_ms=50)
    async with stage.there.stream("Count to 400", stage.id, headers=await stage.as_("bob")) as running:
        await running.words(2)
        assert (await stage.share("bob", role)).status == 200
        frames = await running.rest()
    assert chunks_of(frames)[-1]["error"]["code"] == "session_not_found"
    assert b"data: [DONE]" not in frames
    await stage.fleet.simulator.pace(delta_ms=0)

    async def aborted() -> bool:
        turn = (await stage.ask("ada", "GET", f"{stage.path}/turns/2", here=True)).json
        return bool(turn["verdict"] == "aborted")

    await eventually(aborted, "the verdict of the turn")
    shown = await stage.ask("ada", "GET", f"{stage.path}/messages", here=True)
    assert shown.json["total"] == 2
    assert (await stage.here.chat("Go on.", "mine", headers=await stage.as_("ada"))).status == 200


async def test_turns_of_two_principals_go_on_with_one_conversation(stage: Stage) -> None:
    await stage.share("bob", "writer")
    theirs = await stage.there.chat("What was said?", stage.id, headers=await stage.as_("bob"))
    assert theirs.json["session_id"] == stage.id
    assert "plover" in str((await stage.fleet.simulator.requests(1))[-1])
    stats = [(await stage.ask(who, "GET", "/v1/sessions/stats")).json["total_messages"] for who in ("ada", "bob")]
    assert stats == [4, 0]


async def test_in_a_storm_of_two_owners_no_word_crosses(stage: Stage) -> None:
    """Both talk at once, under the same names, on both replicas, and ask for what is the other's in between."""
    words = {"ada": f"{stage.mark}-plover", "bob": f"{stage.mark}-magpie"}
    ids: dict[str, set[str]] = {"ada": set(), "bob": set()}

    async def turns(who: str, worker: int) -> None:
        other = "bob" if who == "ada" else "ada"
        for number in range(6):
            caller = (stage.here, stage.there)[(worker + number) % 2]
            headers = await stage.as_(who)
            said = await caller.chat(f"My word is {words[who]}.", f"storm-{worker % 2}", headers=headers)
            assert said.status == 200, said.body
            assert words[other] not in said.body.decode()
            ids[who].add(said.headers["x-session-id"])
            for foreign in list(ids[other]):
                stolen = await caller.chat(f"Mine is {words[who]}.", foreign, headers=headers)
                read = await caller.request("GET", f"/v1/sessions/{foreign}/messages", headers=headers)
                assert (stolen.status, read.status) == (404, 404)

    for who in words:
        await stage.as_(who)
    await asyncio.gather(*(turns(who, worker) for who in words for worker in range(4)))
    assert [len(found) for found in ids.values()] == [2, 2]
    assert not ids["ada"] & ids["bob"]
    sent = [json.dumps(record) for record in stage.fleet.simulator.records()]
    assert sum(words["ada"] in one for one in sent) >= 24
    assert not [one for one in sent if all(word in one for word in words.values())]
    for who in words:
        stats = (await stage.ask(who, "GET", "/v1/sessions/stats")).json
        assert stats["total_messages"] == 48 + (2 if who == "ada" else 0), "the stage has a turn of Ada's"
