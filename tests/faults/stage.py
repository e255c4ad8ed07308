"""The stage of the crash tests: a victim behind stalling proxies, a survivor with a straight line, and the store.

Nothing in the product helps here. A proxy holds one command, reply, request or event, which stops the victim at a line
of the crash table; the test then kills or freezes it; what is left is read from the store by a client of the test's
own, and what the caller saw from the caller's own socket. Time is the server's clock, polled.

Every user message carries a mark, and the simulator names in each answer the mark it was asked with and the mark that
stood before it. So each stored answer tells which history it was given to.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from storage.connect import Deadlines, connect
from storage.elements import unpack
from storage.keys import SessionRef
from storage.scripts import SCRIPTS
from tests.faults.call import Call, Seen, assert_complete
from tests.faults.places import Place, now_ms, scripts_executed
from tests.instruments.history import text_of
from tests.instruments.processes import Fleet, Replica
from tests.instruments.proxy import Trap
from tests.instruments.resp import Argv
from tests.instruments.stall import HttpRequest

LEASE_MS = 800
WAIT_S = 10.0
_POLL_S = 0.01
_CONNECTIONS_MAX = 4
_QUESTIONS = {
    "first": "My name is Ada.",
    "victim": "Please count to 20.",
    "other": "Count to 3.",
    "again": "Count to 4.",
    "long": "Count to 1000.",
}
_QUESTION = "What is my name?"


@dataclass(frozen=True, slots=True)
class Books:
    """A session as the store holds it at one instant.

    Attributes:
        holder: the turn that holds the lease, or held it last without a verdict; "" if none.
        lease_ends_ms: by the server's clock; 0 without a holder.
        counted: the number of messages by the session's own account.
        messages: role and text, oldest first.
        records: the turn records, oldest first.
        verdicts: by turn id: a letter and the turn's number.
    """

    holder: str
    lease_ends_ms: int
    counted: int
    messages: tuple[tuple[str, str], ...]
    records: tuple[dict[str, Any], ...]
    verdicts: dict[str, str]

    @property
    def story(self) -> str:
        """One letter a turn, in order: Committed, Aborted, Dead, or ``.`` for none yet."""
        return "".join(self.verdicts.get(record["id"], ".")[0] for record in self.records)

    def assert_holds(self, *marks: str) -> None:
        """The history is the turns of these marks, each one whole, once, and answered on what stands before it."""
        assert self.counted == len(self.messages) == 2 * len(marks)
        expected = []
        for before, mark in zip(("none", *marks), marks, strict=False):
            expected += [("user", f"{question(mark)} [mark:{mark}]"), ("assistant", answer(mark, before))]
        assert list(self.messages) == expected
        for record in self.records:
            verdict = self.verdicts.get(record["id"], ".")
            assert record["state"] == ("complete" if verdict[0] == "C" else "pending")
        kept = [record for record in self.records if record["state"] == "complete"]
        assert [(one["from"], one["to"]) for one in kept] == [(2 * n, 2 * n + 2) for n in range(len(marks))]
        numbers = [
            int(self.verdicts[one["id"]][1:].removesuffix("d")) for one in self.records if one["id"] in self.verdicts
        ]
        assert numbers == [n for n, one in enumerate(self.records, 1) if one["id"] in self.verdicts]


def question(mark: str) -> str:
    """What a turn of this mark asks."""
    return _QUESTIONS.get(mark, _QUESTION)


def answer(mark: str, before: str) -> str:
    """What the simulator answers to a turn of this mark, if the turn in front of it is ``before``."""
    counts = {"victim": 20, "other": 3, "again": 4, "long": 1000}
    if mark == "first":
        said = 'You said: "My name is Ada. [mark:first]". I received 1 message.'
    elif mark in counts:
        said = " ".join(map(str, range(1, counts[mark] + 1)))
    else:
        said = "Your name is Ada."
    return f"{said} [seen:{mark}] [after:{before}]"


class Scene:
    """One session of a stage, and the traps for what happens in it."""

    def __init__(self, stage: "Stage", name: str, ref: SessionRef) -> None:
        self.stage = stage
        self.name = name
        self.ref = ref

    def ask(self, replica: Replica, mark: str, *, reads: bool = True, streamed: bool = True, **headers: str) -> Call:
        """Send a turn; ``headers`` in Python's spelling."""
        message = {"role": "user", "content": f"{question(mark)} [mark:{mark}]"}
        body = {"model": "claude-sonnet-5-5", "messages": [message], "stream": streamed, "session_id": self.name}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Call(replica.url, body, named, reads=reads)

    async def told(self, replica: Replica, mark: str, *, after: str) -> Seen:
        """A turn that must be complete, with the one of mark ``after`` in front of it."""
        seen = await self.ask(replica, mark).ended()
        assert_complete(seen, answer(mark, after))
        return seen

    async def books(self) -> Books:
        """The session, read in one transaction."""
        async with self.stage.store.pipeline(transaction=True) as batch:
            batch.hgetall(self.ref.keys[0])
            batch.lrange(self.ref.keys[1], 0, -1)
            batch.lrange(self.ref.keys[2], 0, -1)
            batch.hgetall(self.ref.keys[3])
            fields, elements, records, verdicts = await batch.execute()
        messages = [json.loads(unpack(element).json) for element in elements]
        return Books(
            fields.get(b"lt", b"").decode(),
            int(fields.get(b"lx", b"0")),
            int(fields.get(b"n", b"0")),
            tuple((message["role"], text_of(message["content"])) for message in messages),
            tuple(json.loads(record) for record in records),
            {turn.decode(): verdict.decode() for turn, verdict in verdicts.items()},
        )

    async def until(self, condition: Callable[[Books], bool]) -> Books:
        """Poll the store until the session is so."""
        give_up = time.monotonic() + WAIT_S
        while not condition(books := await self.books()):
            assert time.monotonic() < give_up, books
            await asyncio.sleep(_POLL_S)
        return books

    async def lease_over(self) -> None:
        """Wait, by the server's clock, until nobody holds the lease; with none held, as long as one lasts."""
        ends = (await self.books()).lease_ends_ms or await self.stage.now_ms() + LEASE_MS
        await self.stage.until_ms(ends)

    def is_script(self, verb: str) -> Callable[[Argv], bool]:
        """Matches the calls of a script for this session."""
        call, key = (b"EVALSHA", SCRIPTS[verb].sha.encode()), self.ref.keys[0].encode()
        return lambda argv: argv[:2] == call and argv[3:4] == (key,)

    def at_request(self, replica: Replica, verb: str) -> Trap[Argv]:
        """Holds the next call of a script on its way to the store."""
        assert replica.redis_stall is not None
        return replica.redis_stall.arm(self.is_script(verb), at="request")

    def at_reply(self, replica: Replica, verb: str) -> Trap[Argv]:
        """Holds the answer to the next call of a script."""
        assert replica.redis_stall is not None
        return replica.redis_stall.arm(self.is_script(verb), at="reply")

    def at_history(self, replica: Replica) -> Trap[Argv]:
        """Holds the answer to the next read of the history."""
        assert replica.redis_stall is not None
        wanted = (b"LRANGE", self.ref.keys[1].encode())
        return replica.redis_stall.arm(lambda argv: argv[:2] == wanted, at="reply")

    def at_claude(self, replica: Replica, event: int | str | None = None, *, head: bool = False) -> Trap[HttpRequest]:
        """Holds the next turn at Claude: its request, the head of its response, or the response from an event on."""
        assert replica.http_stall is not None
        at = "head" if head else "request" if event is None else "event"
        return replica.http_stall.arm(_is_turn, at=at, event=event)  # type: ignore[arg-type]  # one of the three


def _is_turn(request: HttpRequest) -> bool:
    """And not the question for the list of models, which replicas ask by themselves."""
    return request.method == "POST"


class Stage:
    """A fleet of a survivor, ``replicas[0]``, and victims behind stalls of their own; see ``stage``.

    Attributes:
        place: the store, and ``server`` who holds the sessions of all scenes.
        store: a client of the test's own.
    """

    _runs = itertools.count()

    def __init__(self, fleet: Fleet, place: Place) -> None:
        self.fleet = fleet
        self.place = place
        self.server = place.primary()
        self.store: Any = None
        self.survivor = fleet.replicas[0]
        self._victim: Replica | None = None
        run = next(self._runs)
        self._names = place.names(f"scene-{run}")
        self._elsewhere = place.names(f"scene-{run}", here=False)

    async def connect(self) -> None:
        """Connects anew: not on a connection that a server has left behind."""
        if self.store is not None:
            await self.store.aclose()
        self.store = connect(self.place.url, connections_max=_CONNECTIONS_MAX, deadlines=Deadlines())

    async def victim(self, **env: str) -> Replica:
        """The last victim if it lives and no settings are asked for, else a new one."""
        if self._victim is None or self._victim.returncode is not None or env:
            victim = self._victim = await self.fleet.add_replica(redis_stall=True, http_stall=True, env=env)
            await self.empty_scene().told(victim, "first", after="none")  # what a test stops is no first contact
            return victim
        return self._victim

    async def scene(self) -> Scene:
        """A new session in which one turn is stored."""
        scene = self.empty_scene()
        await scene.told(self.survivor, "first", after="none")
        return scene

    def empty_scene(self) -> Scene:
        """A session that nobody has asked for yet."""
        name = next(self._names)
        return Scene(self, name, self.place.ref(name))

    def scene_elsewhere(self) -> Scene:
        """One that lives on another primary of the cluster."""
        name = next(self._elsewhere)
        return Scene(self, name, self.place.ref(name))

    @asynccontextmanager
    async def script_executed(self) -> AsyncIterator[None]:
        """What happens inside makes the server execute a script; wait until it has."""
        before = await self.scripts_executed()
        yield

        async def executed() -> bool:
            return await self.scripts_executed() > before

        await until(executed)

    async def scripts_executed(self) -> int:
        """How many the server has executed."""
        return scripts_executed(self.server)

    async def now_ms(self) -> int:
        """The server's clock."""
        return now_ms(self.server)

    async def until_ms(self, instant_ms: int) -> None:
        """Wait for the server's clock."""
        await until(lambda: self._reached(instant_ms))

    async def _reached(self, instant_ms: int) -> bool:
        return await self.now_ms() >= instant_ms

    def deaths_told(self, turn_id: str) -> int:
        """How often a replica has told that it declared this turn dead."""
        return sum(record["turn"] == turn_id for one in self.fleet.replicas for record in one.events("dead_turn_found"))


@asynccontextmanager
async def stage(
    directory: Path, place: Place, lease_ms: int = LEASE_MS, env: Mapping[str, str] = {}
) -> AsyncIterator[Stage]:
    """A stage with a survivor; every script is known to the servers, so that each call of one is one EVALSHA."""
    async with Fleet(directory, 1, store=place, env={**env, "BATON_LEASE_MS": str(lease_ms)}) as fleet:
        one = Stage(fleet, place)
        await one.connect()
        try:
            for server in place.servers:
                for script in SCRIPTS.values():
                    server.command("SCRIPT", "LOAD", script.source)
            yield one
        finally:
            await one.store.aclose()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll; fails after ``WAIT_S``."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110  # what is waited for happens in another process
            await asyncio.sleep(_POLL_S)


async def metric(replica: Replica, sample: str) -> float:
    """One sample of a replica's metrics, such as ``baton_turns_total{outcome="complete"}``; 0 if it is not there."""
    async with aiohttp.ClientSession() as session, session.get(f"{replica.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == sample), 0.0)
