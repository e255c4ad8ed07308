"""Sessions as they lie in the store, past every replica, whichever kind of Redis it is; and what must hold of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from service.resend import was_rewound
from storage import address
from storage.connect import Deadlines, connect
from storage.elements import HEADER_BYTES
from storage.keys import Keyspace, SessionRef
from storage.turns import Cut
from tests.instruments.history import Message, TurnRecord, text_of
from tests.instruments.processes import SECRET

_VERDICT_STATES = {b"C": "committed", b"A": "aborted", b"D": "dead"}
_CONNECTIONS_MAX = 4


@dataclass
class StoreView:
    """Sessions of one owner."""

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


@asynccontextmanager
async def store_view(url: str) -> AsyncIterator[StoreView]:
    """A look at what the store at a URL holds; on a cluster each session is read where it lives."""
    client = connect(url, connections_max=_CONNECTIONS_MAX, deadlines=Deadlines())
    try:
        yield StoreView(client, Keyspace("baton", address.BUCKETS[address.read(url).kind], SECRET.encode()))
    finally:
        await client.aclose()
