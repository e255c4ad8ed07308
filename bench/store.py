"""Sessions of a given length for the measurements, and what begin and commit cost the server itself."""

import statistics
from collections.abc import Awaitable, Callable
from typing import Any, Final

from service import api_key
from storage import elements
from storage.api_keys import ApiKeys
from storage.capacity import Capacity
from storage.connect import Deadlines, connect
from storage.first_contact import first_contact
from storage.index import Index
from storage.keys import Keyspace, SessionRef, new_nonce, new_turn_id
from storage.results import Begun, Created, Settled
from storage.sessions import NewSession, Sessions
from storage.turns import Commit, Request, Turns, Usage

_TTL_MS: Final = 3_600_000
_TEXT: Final = "A message that is stored is about as long as this one, two hundred and some bytes with its JSON. " * 2


def _history(messages: int) -> list[bytes]:
    roles = ("user", "assistant")
    return [
        elements.pack(b'{"role":"%s","content":"%s"}' % (roles[i % 2].encode(), _TEXT.encode()), elements.FIRST_DIGEST)
        for i in range(messages)
    ]


def _commit(begun: Begun, messages: list[bytes]) -> Commit:
    return Commit(
        head=begun.head,
        record=b"r" * 400,
        model="bench-plain",
        epoch_hash="",
        epoch_start=0,
        revision=begun.revision,
        system_json=b"",
        preamble=b"",
        usage=Usage(input=25, output=60),
        elements=messages,
    )


def capacity(redis: Any, keyspace: Keyspace, *, per_owner_max: int = 1_000_000, total_max: int = 1_000_000) -> Capacity:
    """The caps of a replica; none that matters unless told so."""
    return Capacity(
        redis,
        Index(redis, keyspace, budget_s=10),
        keyspace,
        per_owner_max=per_owner_max,
        total_max=total_max,
        budget_s=10,
        on_end=lambda _: None,
    )


class Store:
    """One namespace, as the measured processes use it."""

    def __init__(self, url: str, namespace: str, secret: str, owner: str) -> None:
        self._redis: Any = connect(url, connections_max=16, deadlines=Deadlines(command_s=10))
        self._keyspace = Keyspace(namespace, 1, secret.encode())
        self._sessions = Sessions(self._redis, self._keyspace, capacity(self._redis, self._keyspace), budget_s=10)
        self._turns = Turns(self._redis, begin_budget_s=10, settle_budget_s=10)
        self._owner = owner

    async def open(self) -> None:
        """Claims the namespace."""
        await first_contact(self._redis, self._keyspace, eviction_allowed=False, deadline_s=10)

    async def key(self) -> str:
        """The text of a new key of the owner's."""
        keys = ApiKeys(self._redis, self._keyspace, budget_s=10)
        key_id = self._keyspace.issue_key_id(self._owner)
        text = api_key.issue(key_id)
        digest = self._keyspace.key_digest(text)
        scopes = ("chat", "sessions:read", "sessions:write")
        assert await keys.create(key_id, digest, principal=self._owner, scopes=scopes, expires_ms=0, labels_json=b"{}")
        return text

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def session(self, messages: int) -> SessionRef:
        """A new session that holds so many messages."""
        ref = self._keyspace.session(self._keyspace.issue(), self._owner)
        assert await self._sessions.create(ref, NewSession(new_nonce(), _TTL_MS)) == Created()
        turn, begun = await self._begin(ref)
        await self._settle(ref, turn, begun, _history(messages))
        return ref

    async def _begin(self, ref: SessionRef) -> tuple[str, Begun]:
        turn = new_turn_id()
        begun = await self._turns.begin(
            ref, turn, replica="bench", lease_ms=20_000, record=b"r" * 200, turns_max=100_000, request=Request("bench")
        )
        assert isinstance(begun, Begun), begun
        return turn, begun

    async def _settle(self, ref: SessionRef, turn: str, begun: Begun, messages: list[bytes]) -> None:
        settled = await self._turns.commit(ref, turn, _commit(begun, messages))
        assert settled == Settled("committed", begun.number), settled

    async def server_times(self, lengths: list[int], *, sessions: int, rounds: int) -> dict[int, dict[str, float]]:
        """Server time of begin and of commit (2 messages) at each length of history.

        Valkey counts time per command, not per script, so each script has its own span between two looks at the
        counters; lengths take turns.

        Returns:
            length → script → microseconds, the median of the rounds' means.
        """
        refs = {length: [await self.session(length) for _ in range(sessions)] for length in lengths}
        samples: dict[int, dict[str, list[float]]] = {length: {"begin": [], "commit": []} for length in lengths}
        for _ in range(rounds):
            for length in lengths:
                begun: list[tuple[str, Begun]] = []
                two = _history(2)

                async def begin(length: int = length, begun: list[tuple[str, Begun]] = begun) -> None:
                    begun += [await self._begin(ref) for ref in refs[length]]

                async def commit(
                    length: int = length, begun: list[tuple[str, Begun]] = begun, two: list[bytes] = two
                ) -> None:
                    for ref, (turn, at) in zip(refs[length], begun, strict=True):
                        await self._settle(ref, turn, at, two)

                samples[length]["begin"].append(await self._us_per_script(begin))
                samples[length]["commit"].append(await self._us_per_script(commit))
        return {
            length: {verb: statistics.median(times) for verb, times in of.items()} for length, of in samples.items()
        }

    async def _us_per_script(self, work: Callable[[], Awaitable[None]]) -> float:
        before = await self._evalsha()
        await work()
        after = await self._evalsha()
        return (after["usec"] - before["usec"]) / (after["calls"] - before["calls"])

    async def _evalsha(self) -> dict[str, float]:
        stats: dict[str, dict[str, float]] = await self._redis.info("commandstats")
        return stats["cmdstat_evalsha"]
