"""An append whose answer was lost: what became of it is told only once the store has said so."""

from typing import Any, cast

import pytest

from service.appending import Appending
from service.errors import BatonError
from storage.elements import FIRST_DIGEST, pack
from storage.keys import Keyspace
from storage.results import Busy, Corrupt, Fenced, Gone, Settled, StoreUnavailable, TurnsFull
from storage.sessions import Sessions, Snapshot
from storage.turns import Request, Turns

pytestmark = pytest.mark.anyio

KEYSPACE = Keyspace("baton", 1, b"0123456789abcdef")
REF = KEYSPACE.session(KEYSPACE.issue(), "alice")
USER = {"role": "user", "content": "a"}
LOST = StoreUnavailable("TimeoutError", outcome_unknown=True)
REFUSED = StoreUnavailable("OutOfMemoryError", outcome_unknown=False)


class Scripted:
    """A store that answers as it was told to, in both of its parts."""

    def __init__(self, *answers: Any, abort: Any = None) -> None:
        self.answers = list(answers)
        self.aborted = abort
        self.asked: list[dict[str, Any]] = []

    async def get(self, *_: Any) -> Snapshot:
        fields = dict.fromkeys(Snapshot.__slots__, 0)
        return Snapshot(**cast(Any, fields | {"messages": 1, "head": f"head_{len(self.asked)}", "name": "chat"}))

    async def messages(self, *_: Any) -> list[bytes]:
        return [pack(b"{}", FIRST_DIGEST)]

    async def append(self, *_: Any, **told: Any) -> Any:
        self.asked.append(told)
        return self._answer(self.answers.pop(0))

    async def abort(self, *_: Any) -> Any:
        return self._answer(self.aborted)

    @staticmethod
    def _answer(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer


async def append(store: Scripted, wait_s: float = 5.0) -> int:
    sessions, turns = cast(Sessions, store), cast(Turns, store)
    appending = Appending(sessions, turns, replica="r1", turns_max=9, queue_wait_s=wait_s)
    return (await appending.append(REF, [USER], "queue", request=Request("print"))).messages


async def code_of(store: Scripted, wait_s: float = 5.0) -> str:
    with pytest.raises(BatonError) as caught:
        await append(store, wait_s)
    return caught.value.code


async def test_a_lost_answer_is_asked_for() -> None:
    assert await append(Scripted(LOST, abort=Settled("committed", 1))) == 2
    assert await code_of(Scripted(LOST, abort=Settled("aborted", 0))) == "session_not_saved"
    assert await code_of(Scripted(LOST, abort=LOST)) == "session_save_unknown"
    assert await code_of(Scripted(LOST, abort=Gone())) == "session_not_found"


async def test_a_refusal_is_told_at_once() -> None:
    assert await code_of(Scripted(REFUSED)) == "store_unavailable"
    assert await code_of(Scripted(TurnsFull())) == "max_turns_reached"
    assert await code_of(Scripted(Corrupt())) == "session_corrupt"
    assert await code_of(Scripted(Settled("dead", 1))) == "session_not_saved"


async def test_a_moved_head_is_read_again() -> None:
    store = Scripted(Fenced(), Fenced(), Settled("committed", 3))
    assert await append(store) == 2
    assert [told["head"] for told in store.asked] == ["head_0", "head_1", "head_2"]
    assert await code_of(Scripted(*[Fenced()] * 64)) == "turn_in_progress"


async def test_a_busy_session_is_waited_for_until_patience_ends() -> None:
    busy = Busy("turn_x", 20_000)
    assert await append(Scripted(busy, busy, Settled("committed", 2))) == 2
    assert await code_of(Scripted(busy, busy), wait_s=0.0) == "turn_in_progress"
