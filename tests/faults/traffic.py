"""Traffic for the failure matrix: clients that take turns in a few sessions, and the verdict on what became of them.

The clients only ask and write down; what must hold is judged by `tests.instruments.history` from what they saw, what
the simulator received and what the store holds. ``FAULTS_TURNS`` says how many turns a row of the matrix takes at
least; the default is for every run, ``make test-faults`` asks for many more.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from tests.faults.places import Place
from tests.faults.store_view import StoreView, store_view
from tests.faults.storm import Turn
from tests.instruments.history import ClientTurn, Message, Received, TurnRecord, check, marked
from tests.instruments.processes import Fleet, Replica

TURNS = int(os.environ.get("FAULTS_TURNS") or 24)
LEASE_MS = 900
# How long anything may take: see docs/operations.md; and what a busy machine may add to it.
BEGIN_S, SETTLE_S, ABORT_S, SLACK_S = 2.5, 4.0, 1.5, 2.0
ENV = {
    "BATON_LEASE_MS": str(LEASE_MS),
    "BATON_QUEUE_WAIT_S": "5",
    "BATON_STORE_BEGIN_S": str(BEGIN_S),
    "BATON_STORE_SETTLE_S": str(SETTLE_S),
}
_CALM_S = 20.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told of one turn, and how long that took; ``turn_id`` also where it failed, if it was told."""

    turn: ClientTurn
    code: str | None
    took_s: float
    turn_id: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store holds of some sessions."""

    messages: dict[str, list[Message]]
    records: dict[str, list[TurnRecord]]
    broken: list[str]


class Traffic:
    """Clients of some replicas, in sessions of their own.

    Attributes:
        told: every turn so far.
        sessions: their names.
    """

    _numbers = itertools.count()

    def __init__(self, fleet: Fleet, replicas: Sequence[Replica], http: aiohttp.ClientSession, sessions: int) -> None:
        run = next(self._numbers)
        self.fleet = fleet
        self._names = _names(fleet, f"traffic-{run}")
        self.sessions = [next(self._names) for _ in range(sessions)]
        self.told: list[Told] = []
        self._replicas = itertools.cycle(replicas)
        self._http = http
        self._marks = itertools.count()

    def another(self) -> str:
        """The name of one more session, which counts from now on."""
        self.sessions.append(next(self._names))
        return self.sessions[-1]

    async def turn(
        self,
        session: str | None = None,
        *,
        text: str = "Count to 5.",
        replica: Replica | None = None,
        headers: Mapping[str, str] = {},
    ) -> Told:
        """One turn; in any session, on any replica, streamed every other time."""
        number = next(self._marks)
        session = session or self.sessions[number % len(self.sessions)]
        turn = Turn(
            "client", session, f"{session}/{number}", marked(f"{session}/{number}", text), stream=number % 3 > 0
        )
        replica = replica or next(self._replicas)
        assert await turn.send(self._http, replica.url, headers), "nobody listens there"
        seen = turn.seen()
        assert seen.finished_at is not None
        told = Told(seen, turn.code, seen.finished_at - seen.sent_at, turn.turn_id)
        self.told.append(told)
        return told

    async def turns(self, count: int, clients: int = 6) -> list[Told]:
        """So many turns, by several clients at once."""
        before, left = len(self.told), itertools.count()

        async def client() -> None:
            while next(left) < count:
                await self.turn()

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        return self.told[before:]

    @asynccontextmanager
    async def flowing(self, clients: int = 6) -> AsyncIterator[None]:
        """Clients go on asking until the block ends; then each ends the turn that it is in."""
        over = False

        async def client() -> None:
            while not over:
                await self.turn()

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
            try:
                yield
            finally:
                over = True

    async def until_told(self, count: int, outcome: str = "complete") -> None:
        """Waits until so many more turns have ended so."""
        wanted = count + sum(one.turn.outcome == outcome for one in self.told)
        async with asyncio.timeout(_CALM_S):
            while sum(one.turn.outcome == outcome for one in self.told) < wanted:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)

    async def keys(self) -> list[str]:
        """The first key of each session."""
        async with store_view(self.fleet.store_url) as view:
            return [view.ref(name).keys[0] for name in self.sessions]

    async def stored(self) -> Stored:
        """What is stored, once nothing runs any more."""
        async with store_view(self.fleet.store_url) as view:
            async with asyncio.timeout(_CALM_S):
                while await self._busy(view):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
            there = [name for name in self.sessions if await view.client.exists(view.ref(name).keys[0])]
            return Stored(
                {name: await view.messages(name) for name in there},
                {name: await view.records(name) for name in there},
                [line for name in there for line in await view.invariants(name)],
            )

    async def _busy(self, view: StoreView) -> bool:
        running = (await self.fleet.simulator.stats())["running"]
        return bool(running) or any([await view.lease_ms(session) for session in self.sessions])

    async def assert_kept(self, lost: Sequence[str] = ()) -> None:
        """Nothing acknowledged is lost, doubled, mixed or out of order; but for turns whose loss is known, by mark."""
        stored = await self.stored()
        received = [Received.from_record(record) for record in self.fleet.simulator.records()]
        turns = [one.turn for one in self.told if one.turn.mark not in lost]
        assert check(turns, received, stored.messages, stored.records) == []
        assert stored.broken == []

    def outcomes(self, told: Sequence[Told] | None = None) -> set[tuple[str, str | None]]:
        """How turns ended: outcome and code."""
        return {(one.turn.outcome, one.code) for one in (self.told if told is None else told)}


def _names(fleet: Fleet, prefix: str) -> Iterator[str]:
    """Of sessions that live where harm is done."""
    if isinstance(fleet.store, Place):
        return fleet.store.names(prefix)
    return (f"{prefix}-{number}" for number in itertools.count(1))


@asynccontextmanager
async def traffic(fleet: Fleet, *replicas: Replica, sessions: int = 3) -> AsyncIterator[Traffic]:
    """Traffic on these replicas, or on all of the fleet's."""
    timeout = aiohttp.ClientTimeout(total=40)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        yield Traffic(fleet, replicas or fleet.replicas, http, sessions)


COMPLETE = {("complete", None)}
UNAVAILABLE = {("error", "store_unavailable")}
