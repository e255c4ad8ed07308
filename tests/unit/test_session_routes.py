"""Turns that end while they are looked at."""

from typing import Any, cast

import orjson
import pytest

from service.exchange import Exchanges
from service.routes.turns import TurnRoutes
from storage.keys import Keyspace
from storage.log import Log
from storage.results import Fate
from storage.sessions import Sessions
from storage.turns import Turns

PENDING: dict[str, Any] = {
    **{"id": "turn_x", "state": "pending", "model": "m", "replica": "r", "dialect": "chat", "framing": "chat"},
    "started_at": "2026-11-26T00:00:00.000+00:00",
}


class EndsBetweenTwoReads:
    """A turn that is committed after its record was read, and before its verdict is."""

    def __init__(self) -> None:
        self.records_by_read = [PENDING, {**PENDING, "state": "complete", "from": 0, "to": 2}]

    async def records(self, *_: Any) -> list[bytes]:
        return [orjson.dumps(self.records_by_read.pop(0))]

    async def fates(self, *_: Any) -> list[Fate]:
        return [Fate("committed", 1, delivered=False)]

    async def cuts(self, *_: Any) -> list[Any]:
        return []


@pytest.mark.anyio
async def test_a_turn_that_ends_while_it_is_read_is_told_whole() -> None:
    turns = cast(Turns, EndsBetweenTwoReads())
    routes = TurnRoutes(
        cast(Sessions, None), turns, cast(Log, None), {}, Exchanges(1), followers_max=1, status_wait_s=1.0
    )
    keyspace = Keyspace("test", 1, b"sixteen bytes or more")
    (turn,) = await routes._turns(keyspace.session(keyspace.issue(), "ada"), 1, 1)
    assert (turn["verdict"], turn["message_range"]) == ("committed", {"from": 0, "to": 2})
