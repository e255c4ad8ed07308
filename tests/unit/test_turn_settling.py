"""A turn gets its verdict whatever goes wrong on our side; the store is a stand-in that notes what it was told."""

import asyncio
import gc
import tracemalloc
import weakref
from collections.abc import AsyncGenerator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import pytest

from service.addressing import Address
from service.claude import Claude
from service.context.checkpoint import Compaction
from service.context.checkpoint import Rules as Compacting
from service.dialects.chat_out import rendering
from service.events import Event
from service.model_table import ModelTable
from service.opening import Rules, Wish
from service.prefix import Ask
from service.turn import Store, Turn
from storage.checkpoints import Checkpoints
from storage.keys import Keyspace
from storage.log import Log
from storage.replies import UnknownReply
from storage.results import Begun, Corrupt, Gone, Settled, StoreUnavailable
from storage.sessions import Sessions
from storage.turns import History, Request, Turns
from tests.unit.claude_events import answer_events, as_events, text_block

pytestmark = pytest.mark.anyio

KEYSPACE = Keyspace("test", 1, b"sixteen bytes or more")
RULES = Rules(
    replica="r",
    lease_ms=60_000,
    turns_max=10,
    session_ttl_ms=60_000,
    queue_wait_s=1.0,
    deadline_s=5.0,
    max_tokens_default=9,
    cache_life="auto",
    cache_diagnosed=True,
    context_policy="error",
    model_of=ModelTable().model,
)
CHECKPOINTS = Compacting("m", 1.0, 0, automatic=True, model_of=ModelTable().model)


Outcome = Exception | Settled | Gone | Corrupt


class StoreOfOneTurn:
    """Begins any turn; what commit and abort do is up to the test."""

    def __init__(self, commit: Outcome, abort: Outcome) -> None:
        self.answers = {"commit": commit, "abort": abort}
        self.told: list[str] = []
        self.beginning = self.running = nullcontext

    async def begin(self, *_: Any, **__: Any) -> Begun:
        return Begun(1, "head_x", 0, 0, 0, "", "", 0, 1, "")

    async def history(self, *_: Any, **__: Any) -> History:
        return History([], b"", b"")

    async def commit(self, *_: Any) -> Any:
        return self._answer("commit")

    async def abort(self, *_: Any, **__: Any) -> Any:
        return self._answer("abort")

    def _answer(self, verb: str) -> Any:
        self.told.append(verb)
        answer = self.answers[verb]
        if isinstance(answer, Exception):
            raise answer
        return answer


class WholeAnswer:
    async def stream(self, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[list[Event], None]:
        yield as_events(answer_events(text_block(0, "Hi")))

    async def whole(self, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        return b'{"input_tokens":250000}'


async def settled(store: StoreOfOneTurn, said: str = "Hi") -> Turn:
    turn = Turn(
        cast(Claude, WholeAnswer()),
        Store(cast(Sessions, None), cast(Turns, store), cast(Log, None)),
        Compaction(cast(Claude, None), cast(Checkpoints, None), CHECKPOINTS),
        RULES,
        wish=Wish(
            Address(KEYSPACE.session(KEYSPACE.issue(), "ada"), "", "continue"), Request("print"), on_conflict="reject"
        ),
        ask=Ask("m", [{"role": "user", "content": said}], None, {"max_tokens": 1}),
        dialect="chat",
        claude_headers={},
        render=partial(rendering, session=None, include_usage=False),
        resent=False,
        framing=None,
        on_disconnect="cancel",
    )
    async with asyncio.timeout(5):
        await turn.run()
    return turn


COMMITTED, ABORTED = Settled("committed", 1), Settled("aborted", 1)
LOST = StoreUnavailable("TimeoutError", outcome_unknown=True)
NEVER_SENT = StoreUnavailable("ConnectionError", outcome_unknown=False)


@pytest.mark.parametrize(
    ("commit", "abort", "code", "told"),
    [
        (COMMITTED, ABORTED, None, ["commit"]),
        (LOST, ABORTED, "session_not_saved", ["commit", "abort"]),
        (LOST, COMMITTED, None, ["commit", "abort"]),
        (LOST, LOST, "session_save_unknown", ["commit", "abort"]),
        (NEVER_SENT, NEVER_SENT, "session_not_saved", ["commit", "abort"]),
        (LOST, Gone(), "session_not_found", ["commit", "abort"]),
        (LOST, Settled("dead", 1), "turn_superseded", ["commit", "abort"]),
        (Settled("dead", 1), ABORTED, "turn_superseded", ["commit"]),
        (Gone(), ABORTED, "session_not_found", ["commit"]),
        (Corrupt(), ABORTED, "session_corrupt", ["commit", "abort"]),
        (UnknownReply([b"HUH"]), ABORTED, "internal_error", ["commit", "abort"]),
        (UnknownReply([b"HUH"]), LOST, "internal_error", ["commit", "abort"]),
    ],
)
async def test_what_became_of_the_commit(commit: Outcome, abort: Outcome, code: str | None, told: list[str]) -> None:
    store = StoreOfOneTurn(commit, abort)
    turn = await settled(store)
    assert (turn.error.code if turn.error else None) == code
    assert store.told == told
    if code == "session_save_unknown":
        assert turn.error is not None
        assert turn.id in turn.error.message


@pytest.mark.parametrize("commit", [COMMITTED, Gone()])
async def test_nothing_large_outlives_the_verdict_nor_the_turn_its_last_holder(commit: Outcome) -> None:
    """Its caller may take its time to read the answer. No part of a turn holds the turn."""
    gc.disable()
    tracemalloc.start()
    try:
        turn = await settled(StoreOfOneTurn(commit, ABORTED), "x" * 1_000_000)
        assert tracemalloc.get_traced_memory()[0] < 500_000
        gone = weakref.ref(turn)
        del turn
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        tracemalloc.stop()
        gc.enable()
