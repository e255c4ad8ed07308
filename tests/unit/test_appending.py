"""An append whose answer was lost: what became of it is told only once the store has said so."""

from typing import Any, cast

import orjson
import pytest

from service import transcript
from service.appending import Appending
from service.errors import BatonError
from storage.elements import FIRST_DIGEST, pack, unpack
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

    def __init__(self, *answers: Any, abort: Any = None, stored: list[bytes] | None = None) -> None:
        self.answers = list(answers)
        self.stored = stored or [pack(b"{}", FIRST_DIGEST)]
        self.read: list[tuple[int, int]] = []
        self.aborted = abort
        self.asked: list[dict[str, Any]] = []
        self.role = "owner"

    async def get(self, *_: Any) -> Snapshot:
        fields = dict.fromkeys(Snapshot.__slots__, 0)
        return Snapshot(
            **cast(
                Any,
                fields
                | {"messages": len(self.stored), "head": f"head_{len(self.asked)}", "name": "chat", "role": self.role},
            )
        )

    async def outlines(self, _: Any, start: int, count: int) -> list[bytes]:
        self.read.append((start, count))
        return self.stored[start : start + count]

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


async def append(store: Scripted, wait_s: float = 5.0, *messages: dict[str, Any]) -> int:
    sessions, turns = cast(Sessions, store), cast(Turns, store)
    appending = Appending(sessions, turns, replica="r1", turns_max=9, queue_wait_s=wait_s, draining=lambda: False)
    return (await appending.append(REF, list(messages) or [USER], "queue", request=Request("print"))).messages


async def code_of(store: Scripted, wait_s: float = 5.0) -> str:
    with pytest.raises(BatonError) as caught:
        await append(store, wait_s)
    return caught.value.code


async def test_a_lost_answer_is_asked_for() -> None:
    assert await append(Scripted(LOST, abort=Settled("committed", 1))) == 2
    assert await code_of(Scripted(LOST, abort=Settled("aborted", 0))) == "session_not_saved"
    assert await code_of(Scripted(LOST, abort=LOST)) == "session_save_unknown"
    assert await code_of(Scripted(LOST, abort=Gone())) == "session_not_found"


async def test_a_question_that_was_not_answered_leaves_nothing_unknown() -> None:
    """Whether the same request was answered before: nothing is stored by asking, so there is nothing to settle."""
    store = Scripted(LOST, abort=AssertionError("there is nothing to abort"))
    sessions, turns = cast(Sessions, store), cast(Turns, store)
    appending = Appending(sessions, turns, replica="r1", turns_max=9, queue_wait_s=5, draining=lambda: False)
    with pytest.raises(BatonError) as caught:
        await appending.append(REF, [USER], "queue", request=Request("print", key="key"))
    assert caught.value.code == "store_unavailable"


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


# Tool calls.

CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}}]}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1"}]}


def calling() -> Scripted:
    """A session that ends in an open call, and takes one append."""
    return Scripted(Settled("committed", 2), stored=transcript.pack([USER, CALL], FIRST_DIGEST))


async def test_a_plain_append_reads_the_last_message_only() -> None:
    store = Scripted(Settled("committed", 2), stored=transcript.pack([USER, USER, USER], FIRST_DIGEST))
    assert await append(store) == 4
    assert store.read == [(2, 1)]


async def test_an_open_call_is_answered_or_closed() -> None:
    store = calling()
    assert await append(store, 5.0, RESULT) == 3
    assert store.read == [(1, 1), (0, 2)]
    (told,) = store.asked
    assert [orjson.loads(element[9:]) for element in told["elements"]] == [RESULT]
    store = calling()
    assert await append(store) == 4
    (told,) = store.asked
    assert [unpack(element).synthetic for element in told["elements"]] == [True, False]
    assert orjson.loads(told["record"])["to"] == 4


async def test_a_result_without_its_call_is_not_appended() -> None:
    answered = transcript.pack([USER, CALL, RESULT, CALL | {"content": "done"}], FIRST_DIGEST)
    for stored, code in ((transcript.pack([USER], FIRST_DIGEST), "invalid_value"), (answered, "tool_call_closed")):
        store = Scripted(stored=stored)
        with pytest.raises(BatonError) as caught:
            await append(store, 5.0, RESULT)
        assert (caught.value.code, store.asked) == (code, [])


# Roles and keys.


async def test_a_viewer_is_told_so_whatever_it_appends() -> None:
    """Nothing, or what could not be appended by anybody: neither is judged before the role."""
    for messages in ([], [USER], [RESULT]):
        store = Scripted(Settled("committed", 2))
        store.role = "viewer"
        sessions, turns = cast(Sessions, store), cast(Turns, store)
        appending = Appending(sessions, turns, replica="r1", turns_max=9, queue_wait_s=5, draining=lambda: False)
        with pytest.raises(BatonError) as caught:
            await appending.append(REF, messages, "queue", request=Request("print"))
        assert (caught.value.code, store.asked, store.read) == ("role_too_small", [], [])


async def test_who_waits_and_loses_its_key_appends_nothing() -> None:
    store = Scripted(*[Busy("turn_x", 20_000)] * 3, Settled("committed", 2))
    sessions, turns = cast(Sessions, store), cast(Turns, store)
    appending = Appending(sessions, turns, replica="r1", turns_max=9, queue_wait_s=5, draining=lambda: False)
    with pytest.raises(BatonError) as caught:
        await appending.append(REF, [USER], "queue", request=Request("print"), revoked=lambda: len(store.asked) == 2)
    assert (caught.value.code, len(store.asked)) == ("revoked_api_key", 2)
