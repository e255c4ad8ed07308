"""A storm: many clients on few sessions, while replicas are killed and frozen and replies of the store are lost.

Everything random comes from one seed, which is printed; the timing is the machine's own. The storm only causes and
records; whether promises were kept is judged by `tests.instruments.history` from what clients saw, what the simulator
received and what Valkey holds.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from service.resend import was_rewound
from storage.elements import HEADER_BYTES
from storage.keys import Keyspace, SessionRef
from storage.scripts import SCRIPTS
from storage.turns import Cut
from tests.faults.sdk_client import AnthropicClient, OpenAiClient, SdkClient
from tests.instruments.balancer import Balancer
from tests.instruments.history import ClientTurn, Message, Outcome, TurnRecord, marked, text_of
from tests.instruments.processes import SECRET, Fleet, Replica

LEASE_MS = 900
MODEL = "claude-sonnet-5-5"
_CLIENT_PATIENCE_S = 30.0
_VERDICT_STATES = {b"C": "committed", b"A": "aborted", b"D": "dead"}
_UNKNOWN_CODES = {"session_save_unknown", "internal_error"}


@dataclass
class Plan:
    """How hard it blows: at least this many turns, kills and freezes; it goes on until it had them all.

    With ``sdk`` the clients are stock SDKs, openai's and anthropic's by turns, behind a balancer, impatient, with their
    own retries; without, they ask a replica themselves, once.
    """

    turns: int
    seed: int
    kills: int = 2
    freezes: int = 4
    clients: int = 16
    sessions: int = 6
    hang_up_share: float = 0.05
    lost_replies_share: float = 0.03
    sdk: bool = False
    on_disconnect: str = "cancel"


@dataclass
class Log:
    """What the storm saw and did."""

    turns: list[ClientTurn] = field(default_factory=list)
    kills: int = 0
    freezes: int = 0
    lost_replies: int = 0

    def outcomes(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for turn in self.turns:
            counts[turn.outcome] = counts.get(turn.outcome, 0) + 1
        return counts


class Storm:
    """One storm over one fleet."""

    def __init__(self, fleet: Fleet, plan: Plan) -> None:
        self.fleet = fleet
        self.plan = plan
        self.log = Log()
        self.sessions = [f"storm-{number}" for number in range(plan.sessions)]
        self._random = random.Random(plan.seed)
        self._numbers = itertools.count()
        self._standing: list[Replica] = list(fleet.replicas)
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until there was enough of everything and every replica stands again."""
        names = [f"client-{number}" for number in range(self.plan.clients)]
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http,
            Balancer(lambda: [port_of(replica) for replica in self._standing]) as balancer,
        ):
            trouble = [asyncio.create_task(self._kill_and_freeze()), asyncio.create_task(self._lose_replies())]
            if self.plan.sdk:
                url = f"http://127.0.0.1:{balancer.port}"
                kinds = itertools.cycle((OpenAiClient, AnthropicClient))
                clients = [kind(name, url, self.plan.on_disconnect) for kind, name in zip(kinds, names, strict=False)]
                await asyncio.gather(*map(self._sdk_client, clients))
            else:
                await asyncio.gather(*(self._client(name, http) for name in names))
            self._over.set()
            await asyncio.gather(*trouble)
        await self._calm()

    # Clients.

    def _next(self) -> tuple[str, str, str, bool]:
        """What a client says next: session, mark, text, and whether streamed."""
        number = next(self._numbers)
        session = self._random.choice(self.sessions)
        mark = f"{session}/{number}"
        text = marked(mark, "count to 12" if self._random.random() < 0.5 else f"Note {number}.")
        return session, mark, text, self._random.random() < 0.6

    async def _sdk_client(self, client: SdkClient) -> None:
        while not self._enough():
            session, mark, text, stream = self._next()
            self.log.turns.append(await client.ask(session, mark, text, model=MODEL, stream=stream))
        await client.aclose()

    async def _client(self, name: str, http: aiohttp.ClientSession) -> None:
        while not self._enough():
            session, mark, text, stream = self._next()
            turn = Turn(name, session, mark, text, stream=stream)
            turn.hangs_up = turn.stream and self._random.random() < self.plan.hang_up_share
            for _ in range(3000):
                if await turn.send(http, self._random.choice(self._standing).url):
                    break
                await asyncio.sleep(0.02)  # nobody listens there: nothing was sent
            self.log.turns.append(turn.seen())

    def _enough(self) -> bool:
        log, plan = self.log, self.plan
        had = len(log.turns) >= plan.turns and log.kills >= plan.kills and log.freezes >= plan.freezes
        return had or len(log.turns) >= 20 * plan.turns

    # Trouble.

    async def _pause(self, low_s: float, high_s: float) -> bool:
        """Waits a while; False once the storm is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.uniform(low_s, high_s)):
                await self._over.wait()
        return not self._over.is_set()

    async def _kill_and_freeze(self) -> None:
        """One trouble at a time; a killed replica is replaced while the next trouble goes on."""
        replacing: list[asyncio.Task[None]] = []
        while await self._pause(0.2, 0.8):
            if len(self._standing) < 2:
                continue
            victim = self._random.choice(self._standing)
            self._standing.remove(victim)
            if self._random.random() < 0.4:
                victim.kill9()
                self.log.kills += 1
                replacing.append(asyncio.create_task(self._replace()))
            else:
                victim.freeze()
                self.log.freezes += 1
                await self._pause(LEASE_MS / 1000 * 0.5, LEASE_MS / 1000 * 2.5)
                victim.thaw()
                self._standing.append(victim)
        await asyncio.gather(*replacing)

    async def _replace(self) -> None:
        self._standing.append(await self.fleet.add_replica(redis_stall=True))

    async def _lose_replies(self) -> None:
        """Cuts connections to the store after a script ran and before its reply arrived: it will be sent again."""
        shas = {SCRIPTS[verb].sha.encode() for verb in ("begin", "renew", "commit", "abort", "create", "delivered")}
        while await self._pause(0.05, 0.3):
            victim = self._random.choice(self._standing)
            if victim.redis_stall is not None and self._random.random() < self.plan.lost_replies_share * 10:
                victim.redis_stall.arm(
                    match=lambda argv: argv[0].upper() == b"EVALSHA" and argv[1] in shas, at="reply", action="cut"
                )
                self.log.lost_replies += 1

    async def _calm(self) -> None:
        """Until Claude is silent and no lease is left."""
        for _ in range(300):
            running = (await self.fleet.simulator.stats())["running"]
            async with self.store() as store:
                live = [await store.lease_ms(session) for session in self.sessions]
            if running == 0 and not any(live):
                return
            await asyncio.sleep(0.1)
        raise AssertionError("the storm did not calm down: something still runs or holds a lease")

    # What is left.

    @asynccontextmanager
    async def store(self) -> AsyncIterator["StoreView"]:
        """A look at what Valkey holds, past every replica."""
        import redis.asyncio

        client = redis.asyncio.Redis.from_url(self.fleet.valkey.url)
        try:
            yield StoreView(client, Keyspace("baton", 1, SECRET.encode()))
        finally:
            await client.aclose()


@dataclass
class StoreView:
    """Sessions as they lie in Valkey."""

    client: Any
    keyspace: Keyspace
    owner: str = "open"

    def ref(self, name: str) -> SessionRef:
        return self.keyspace.session(self.keyspace.named(self.owner, name), self.owner)

    async def lease_ms(self, name: str) -> int:
        """What is left of the session's lease by the server's clock."""
        seconds, micros = await self.client.time()
        turn, ends = await self.client.hmget(self.ref(name).keys[0], "lt", "lx")
        return max(0, int(ends or 0) - seconds * 1000 - micros // 1000) if turn else 0

    async def messages(self, name: str) -> list[Message]:
        raw = await self.client.lrange(self.ref(name).keys[1], 0, -1)
        parsed = [orjson.loads(element[HEADER_BYTES:]) for element in raw]
        return [Message(one["role"], text_of(one["content"])) for one in parsed]

    async def records(self, name: str) -> list[TurnRecord]:
        """Turn records with the verdict that the store holds for each; a turn id never begun has no record.

        A turn that a later one took the place of is ``rewound`` and holds no messages any more.
        """
        keys = self.ref(name).keys
        raw = [orjson.loads(record) for record in await self.client.lrange(keys[2], 0, -1)]
        verdicts = await self.client.hgetall(keys[3])
        cuts = [Cut(*map(int, cut.split())) for cut in await self.client.lrange(keys[5], 0, -1)]
        records = []
        for number, record in enumerate(raw, start=1):
            verdict = verdicts.get(record["id"].encode(), b"")
            state = _VERDICT_STATES.get(verdict[:1], "pending")
            if verdict:
                assert int(verdict[1:].removesuffix(b"d")) == number, f"verdict {verdict!r} of turn {number}"
            start, end = record.get("from", 0), record.get("to", 0)
            if state == "committed" and was_rewound(number, end, cuts):
                state, start, end = "rewound", 0, 0
            records.append(TurnRecord(record["id"], number, state, start, end))
        return records

    async def invariants(self, name: str) -> list[str]:
        """What must hold of any session at rest, whatever happened to it."""
        keys = self.ref(name).keys
        session = await self.client.hgetall(keys[0])
        listed = await self.client.llen(keys[1])
        broken = []
        if int(session[b"n"]) != listed:
            broken.append(f"{name}: n={session[b'n']!r}, {listed} messages listed")
        size = (await self.client.hget(keys[13], self.ref(name).id)).split()
        parts = await self.client.lrange(keys[1], 0, -1) + await self.client.hvals(keys[7])
        stored_bytes = sum(map(len, parts))
        if [int(size[1]), int(size[2])] != [stored_bytes, listed] or int(session[b"b"]) != stored_bytes:
            broken.append(f"{name}: size record {size}, really {stored_bytes} bytes in {listed} messages")
        expires = {await self.client.pexpiretime(key) for key in keys[:8]} - {-2}
        scores = {int(await self.client.zscore(key, self.ref(name).id)) for key in (keys[9], keys[12])}
        if expires != scores or len(expires) != 1:
            broken.append(f"{name}: native expiry {expires}, indexes {scores}")
        committed = [one for one in await self.records(name) if one.state in ("committed", "rewound")]
        head = committed[-1].turn_id if committed else session[b"nonce"].decode()
        if session[b"head"].decode() != head:
            broken.append(f"{name}: head {session[b'head']!r}, last committed {head}")
        return broken


def port_of(replica: Replica) -> int:
    """Where it listens."""
    port = urlsplit(replica.url).port
    assert port is not None
    return port


class Turn:
    """One request of a client's, and what it saw."""

    _ids = itertools.count()

    def __init__(self, client: str, session: str, mark: str, text: str, *, stream: bool) -> None:
        self.client, self.session, self.mark, self.text, self.stream = client, session, mark, text, stream
        self.hangs_up = False
        self.sent_at = 0.0
        self.outcome: Outcome = "unknown"
        self.shown = ""
        self.turn_id: str | None = None
        self.status: int | None = None
        self.code: str | None = None

    async def send(self, http: aiohttp.ClientSession, url: str, headers: Mapping[str, str] = {}) -> bool:
        """Sends it once; False if there was nobody to send it to."""
        body = {"model": MODEL, "stream": self.stream, "messages": [{"role": "user", "content": self.text}]}
        named = {**headers, "x-session-id": self.session}
        self.sent_at = time.monotonic()
        try:
            async with asyncio.timeout(_CLIENT_PATIENCE_S):
                async with http.post(f"{url}/v1/chat/completions", json=body, headers=named) as answer:
                    self.status = answer.status
                    self.turn_id = answer.headers.get("x-turn-id")
                    await (self._read_stream(answer) if self._is_stream(answer) else self._read_json(answer))
        except aiohttp.ClientConnectorError:
            return False
        except TimeoutError:
            self.outcome = "incomplete" if self.shown else "unknown"
        except aiohttp.ClientError:
            self.outcome = "unknown"
        return True

    @staticmethod
    def _is_stream(answer: aiohttp.ClientResponse) -> bool:
        return answer.content_type == "text/event-stream"

    async def _read_json(self, answer: aiohttp.ClientResponse) -> None:
        body = orjson.loads(await answer.read())
        if "error" in body:
            self._failed(body["error"]["code"])
        else:
            self.shown = body["choices"][0]["message"]["content"]
            self.outcome = "complete"

    async def _read_stream(self, answer: aiohttp.ClientResponse) -> None:
        finished = False
        async for line in answer.content:
            payload = line.strip().removeprefix(b"data: ")
            if payload == b"[DONE]":
                assert finished, "a [DONE] without a finish_reason"
                self.outcome = "complete"
            elif payload.startswith(b"{"):
                chunk = orjson.loads(payload)
                if "error" in chunk:
                    self._failed(chunk["error"]["code"])
                    return
                choice = chunk["choices"][0]
                self.shown += choice["delta"].get("content") or ""
                finished = finished or choice["finish_reason"] is not None
            if self.hangs_up and self.shown:
                self.outcome = "incomplete"
                return

    def _failed(self, code: str) -> None:
        self.code = code
        self.outcome = "unknown" if code in _UNKNOWN_CODES else "error"

    def seen(self) -> ClientTurn:
        told = self.turn_id if self.outcome in ("complete", "incomplete") else None
        return ClientTurn(
            client=self.client,
            session=self.session,
            mark=self.mark,
            sent_at=self.sent_at,
            finished_at=time.monotonic(),
            outcome=self.outcome,
            answer_text=self.shown,
            turn_id=told,
            http_status=self.status,
        )
