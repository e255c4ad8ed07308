"""A storm: many clients on few sessions, while replicas are killed and frozen and the store loses replies or moves.

What is said, and what is done in which order, comes from one seed, which is printed; the timing, and so whom it meets,
is the machine's own. The storm only causes and records; whether promises were kept is judged by
`tests.instruments.history` from what clients saw, what the simulator received and what the store holds.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
import orjson

from storage.scripts import SCRIPTS
from tests.faults.sdk_client import AnthropicClient, OpenAiClient, SdkClient
from tests.faults.store_view import store_view
from tests.faults.stores import Upsets
from tests.instruments.balancer import Balancer
from tests.instruments.history import ClientTurn, Outcome, marked
from tests.instruments.processes import Fleet, Replica

LEASE_MS = 900
MODEL = "claude-sonnet-5-5"
_CLIENT_PATIENCE_S = 30.0
_REFUSED_WAIT_S = 0.2
_UNKNOWN_CODES = {"session_save_unknown", "internal_error"}


@dataclass
class Plan:
    """How hard it blows: at least this many turns, and of each trouble so many; it goes on until it had them all.

    With ``minutes`` it blows for just so long instead. With ``sdk`` the clients are stock SDKs, openai's and
    anthropic's by turns, behind a balancer, impatient, with their own retries; without, they ask a replica themselves,
    once.
    """

    turns: int
    seed: int
    least: Mapping[str, int] = field(default_factory=dict)
    minutes: float = 0.0
    clients: int = 16
    sessions: int = 6
    hang_up_share: float = 0.05
    lost_replies_share: float = 0.03
    sdk: bool = False
    on_disconnect: str = "cancel"


@dataclass
class Log:
    """What the storm saw.

    Attributes:
        turns: as their clients saw them.
        done: how often it did what: kills, freezes, lost_replies, cuts, failovers, migrations.
        codes: of errors, as those clients were told who are no SDKs.
    """

    turns: list[ClientTurn] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    codes: Counter[str | None] = field(default_factory=Counter)

    def outcomes(self) -> Counter[str]:
        return Counter(turn.outcome for turn in self.turns)


class Storm:
    """One storm over one fleet.

    Args:
        fleet: whose replicas are killed and frozen.
        plan: how hard.
        upsets: of its store; None if replicas reach it through proxies, which lose replies.
    """

    def __init__(self, fleet: Fleet, plan: Plan, upsets: Upsets | None = None) -> None:
        self.fleet = fleet
        self.plan = plan
        self.log = Log()
        self.sessions = [f"storm-{number}" for number in range(plan.sessions)]
        self._upsets = upsets
        # One for each who does something: else what comes of a seed would hang on who came first.
        self._random, *chances = (random.Random(f"{plan.seed}/{number}") for number in range(5))
        self._of_routes, self._of_replicas, self._of_connections, self._of_store = chances
        self._numbers = itertools.count()
        self._standing: list[Replica] = list(fleet.replicas)
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until there was enough of everything and every replica stands again."""
        names = [f"client-{number}" for number in range(self.plan.clients)]
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http,
            Balancer(lambda: [port_of(replica) for replica in self._standing]) as balancer,
            asyncio.TaskGroup() as trouble,
        ):
            trouble.create_task(self._kill_and_freeze())
            if self._upsets is None:
                trouble.create_task(self._lose_replies())
            else:
                trouble.create_task(self._cut_connections(self._upsets))
                trouble.create_task(self._upset(self._upsets))
            self._ends_at = time.monotonic() + self.plan.minutes * 60
            if self.plan.sdk:
                url = f"http://127.0.0.1:{balancer.port}"
                kinds = itertools.cycle((OpenAiClient, AnthropicClient))
                clients = [kind(name, url, self.plan.on_disconnect) for kind, name in zip(kinds, names, strict=False)]
                await asyncio.gather(*map(self._sdk_client, clients))
            else:
                await asyncio.gather(*(self._client(name, http) for name in names))
            self._over.set()
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
                if await turn.send(http, self._of_routes.choice(self._standing).url):
                    break
                await asyncio.sleep(0.02)  # nobody listens there: nothing was sent
            self.log.turns.append(turn.seen())
            self.log.codes[turn.code] += turn.code is not None
            if turn.code == "store_unavailable":
                await asyncio.sleep(_REFUSED_WAIT_S)

    def _enough(self) -> bool:
        log, plan = self.log, self.plan
        if plan.minutes:
            return time.monotonic() >= self._ends_at
        had = len(log.turns) >= plan.turns and log.done >= Counter(plan.least)
        return had or len(log.turns) >= 20 * plan.turns

    # Trouble.

    async def _pause(self, chance: random.Random, low_s: float, high_s: float) -> bool:
        """Waits a while; False once the storm is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(low_s, high_s)):
                await self._over.wait()
        return not self._over.is_set()

    async def _kill_and_freeze(self) -> None:
        """One trouble at a time; a killed replica is replaced while the next trouble goes on."""
        replacing: list[asyncio.Task[None]] = []
        chance = self._of_replicas
        for kind in _rounds(chance, "kills", "freezes"):
            if not await self._pause(chance, 0.2, 0.8):
                break
            if len(self._standing) < 2:
                continue
            victim = chance.choice(self._standing)
            self._standing.remove(victim)
            if kind == "kills":
                victim.kill9()
                replacing.append(asyncio.create_task(self._replace()))
            else:
                victim.freeze()
                await self._pause(chance, LEASE_MS / 1000 * 0.5, LEASE_MS / 1000 * 2.5)
                victim.thaw()
                self._standing.append(victim)
            self.log.done[kind] += 1
        await asyncio.gather(*replacing)

    async def _replace(self) -> None:
        self._standing.append(await self.fleet.add_replica(redis_stall=self._upsets is None))

    async def _lose_replies(self) -> None:
        """Cuts connections to the store after a script ran and before its reply arrived: it will be sent again."""
        shas = {SCRIPTS[verb].sha.encode() for verb in ("begin", "renew", "commit", "abort", "create", "delivered")}
        chance = self._of_connections
        while await self._pause(chance, 0.05, 0.3):
            victim = chance.choice(self._standing)
            if victim.redis_stall is not None and chance.random() < self.plan.lost_replies_share * 10:
                victim.redis_stall.arm(
                    match=lambda argv: argv[0].upper() == b"EVALSHA" and argv[1] in shas, at="reply", action="cut"
                )
                self.log.done["lost_replies"] += 1

    async def _cut_connections(self, upsets: Upsets) -> None:
        """The same from the store's side, whatever is on its way."""
        while await self._pause(self._of_connections, 0.3, 1.5):
            await asyncio.to_thread(upsets.cut, self._of_connections)
            self.log.done["cuts"] += 1

    async def _upset(self, upsets: Upsets) -> None:
        """One upset of the store at a time."""
        async with store_view(upsets.url) as view:
            keys = [view.ref(session).keys[0] for session in self.sessions]
        for kind in _rounds(self._of_store, *upsets.kinds):
            if not await self._pause(self._of_store, 0.3, 1.5):
                return
            await asyncio.to_thread(upsets.upset, kind, self._of_store, keys)
            self.log.done[kind] += 1

    async def _calm(self) -> None:
        """Until Claude is silent and no lease is left."""
        for _ in range(300):
            running = (await self.fleet.simulator.stats())["running"]
            async with store_view(self.fleet.store_url) as store:
                live = [await store.lease_ms(session) for session in self.sessions]
            if running == 0 and not any(live):
                return
            await asyncio.sleep(0.1)
        raise AssertionError("the storm did not calm down: something still runs or holds a lease")


def _rounds(chance: random.Random, *kinds: str) -> Iterator[str]:
    """Each kind as often as it is named, in an order of chance; and again."""
    while True:
        yield from chance.sample(kinds, len(kinds))


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
