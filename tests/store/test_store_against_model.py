"""Any sequence of verbs, against a model of a few lines: same answers, same history, same numbers."""

import asyncio
import itertools
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from storage.keys import SessionRef, new_nonce, new_turn_id
from storage.results import (
    Begun,
    Busy,
    Created,
    Exists,
    Fenced,
    Gone,
    Lost,
    Patched,
    Renewed,
    RevisionConflict,
    Settled,
)
from storage.sessions import Snapshot
from storage.turns import Request, Rewind
from tests.store.harness import Store, elements, real_redis

T = TypeVar("T")
SESSIONS = [("alice", "a"), ("alice", "b"), ("bob", "a")]
_namespaces = itertools.count()

which = st.sampled_from(SESSIONS)
counts = st.integers(0, 3)


@dataclass
class Known:
    """What the model knows of one session. A turn is open until the model knows its verdict."""

    head: str
    revision: int = 1
    title: str = ""
    turns: int = 0
    numbers: int = 0
    messages: list[bytes] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # how many messages there were after each committed turn
    running: str = ""
    lease_over: bool = False
    verdicts: dict[str, Settled] = field(default_factory=dict)


class Machine(RuleBasedStateMachine):
    """Three sessions of two owners; turns of former sessions stay around and try."""

    def __init__(self, url: str, buckets: int) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: Any = real_redis(url)
        self.store = Store.of(self.redis, f"model{next(_namespaces)}", buckets=buckets)
        self.known: dict[tuple[str, str], Known] = {}
        self.expired: set[tuple[str, str]] = set()  # gone, and still counted
        self.ended = dict.fromkeys(("alice", "bob"), 0), dict.fromkeys(("alice", "bob"), 0)  # expired, deleted
        self.turns: list[tuple[tuple[str, str], str, str, Known]] = []

    def teardown(self) -> None:
        self.wait(self.redis.aclose())
        self.runner.close()

    def wait(self, doing: Awaitable[T]) -> T:
        async def done() -> T:
            return await doing

        return self.runner.run(done())

    def ref(self, session: tuple[str, str]) -> SessionRef:
        return self.store.keyspace.session(self.store.keyspace.named(*session), session[0])

    @rule(session=which)
    def create(self, session: tuple[str, str]) -> None:
        nonce = new_nonce()
        made = self.wait(self.store.create(self.ref(session), nonce))
        if session in self.known:
            assert made == Exists()
            return
        assert made == Created()
        self.swept(session)
        self.known[session] = Known(nonce)

    @rule(session=which)
    def begin(self, session: tuple[str, str]) -> None:
        turn, known = new_turn_id(), self.known.get(session)
        begun = self.wait(self.store.begin(self.ref(session), turn))
        if known is None:
            assert begun == Gone()
        elif known.running and not known.lease_over:
            assert isinstance(begun, Busy)
            assert begun.turn_id == known.running
        else:
            self.dead(known)
            known.numbers += 1
            known.running, known.lease_over = turn, False
            assert isinstance(begun, Begun)
            assert (begun.number, begun.head, begun.turns) == (known.numbers, known.head, known.turns)
            assert (begun.messages, begun.revision) == (len(known.messages), known.revision)
            self.turns.append((session, turn, begun.head, known))

    @precondition(lambda self: self.turns)
    @rule(data=st.data(), count=counts, rewind=st.booleans())
    def commit(self, data: st.DataObject, count: int, rewind: bool) -> None:
        session, turn, head, began_in = data.draw(st.sampled_from(self.turns))
        known, new = self.known.get(session), elements(count, turn)
        kept = data.draw(st.sampled_from([0, *began_in.ends])) if rewind else None
        cut: Rewind | None = None
        if kept is not None and known is began_in and known.running == turn:
            dropped = sum(end > kept for end in known.ends)
            cut = Rewind(kept, sum(map(len, known.messages[:kept])), dropped)
        settled = self.wait(
            self.store.commit(self.ref(session), turn, head, new, revision=0, rewind=cut, record=turn.encode())
        )
        if known is None:
            assert settled == Gone()
        elif turn in known.verdicts:
            assert settled == known.verdicts[turn]
        elif known.running != turn:
            assert settled == Fenced()
        else:
            assert settled == Settled("committed", known.numbers)
            if cut is not None:
                known.messages = known.messages[: cut.messages]
                known.ends = [end for end in known.ends if end <= cut.messages]
                known.turns -= cut.turns_dropped
            known.messages += new
            known.ends.append(len(known.messages))
            known.turns += 1
            known.head, known.running = turn, ""
            known.verdicts[turn] = settled

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def abort_or_renew(self, data: st.DataObject) -> None:
        session, turn, _, began_in = data.draw(st.sampled_from(self.turns))
        known = self.known.get(session)
        if data.draw(st.booleans()):
            renewed = self.wait(self.store.renew(self.ref(session), turn))
            if known is None:
                assert renewed == Gone()
            elif known.running == turn:
                assert renewed == Renewed(cancel=False)
                known.lease_over = False
            else:
                assert renewed == known.verdicts.get(turn, Lost())
            return
        aborted = self.wait(self.store.abort(self.ref(session), turn))
        if known is None:
            assert aborted == Gone()
            return
        number = known.numbers if known.running == turn else 0
        assert aborted == known.verdicts.setdefault(turn, Settled("aborted", number))
        assert number == 0 or known is began_in
        known.running = "" if known.running == turn else known.running

    @rule(session=which, count=st.integers(1, 3), wrong_head=st.booleans())
    def append(self, session: tuple[str, str], count: int, wrong_head: bool) -> None:
        known, turn = self.known.get(session), new_turn_id()
        head = known.head if known and not wrong_head else "head_x"
        new = elements(count, turn)
        settled = self.wait(
            self.store.turns.append(
                self.ref(session), turn, head=head, record=b"{}", turns_max=999, request=Request("append"), elements=new
            )
        )
        if known is None:
            assert settled == Gone()
        elif known.running and not known.lease_over:
            assert isinstance(settled, Busy)
        elif wrong_head:
            assert settled == Fenced()
        else:
            self.dead(known)
            known.numbers += 1
            assert settled == Settled("committed", known.numbers)
            known.messages += new
            known.head = turn
            known.verdicts[turn] = settled

    @rule(session=which, title=st.text("ab", min_size=1, max_size=3), expected=st.none() | st.integers(1, 3))
    def patch(self, session: tuple[str, str], title: str, expected: int | None) -> None:
        known = self.known.get(session)
        patched = self.wait(self.store.sessions.patch(self.ref(session), {"title": title}, expected_revision=expected))
        if known is None:
            assert patched == Gone()
        elif expected not in (None, known.revision):
            assert patched == RevisionConflict(known.revision)
        else:
            known.revision += 1
            known.title = title
            assert patched == Patched(known.revision)

    @rule(session=which)
    def delete(self, session: tuple[str, str]) -> None:
        was_there = self.known.pop(session, None) is not None
        assert self.wait(self.store.sessions.delete(self.ref(session))) is was_there
        self.ended[1][session[0]] += was_there

    @rule(session=which)
    def lease_ends(self, session: tuple[str, str]) -> None:
        known = self.known.get(session)
        if known is not None and known.running:
            self.wait(self.redis.hset(self.ref(session).keys[0], "lx", "1"))
            known.lease_over = True

    @rule(session=which)
    def expire(self, session: tuple[str, str]) -> None:
        if self.known.pop(session, None) is not None:
            ref = self.ref(session)
            self.wait(self.redis.hset(ref.keys[0], mapping={"ttl": "1", "lt": "", "lx": "0"}))
            self.wait(self.store.sessions.touch(ref))
            self.wait(self.store.until_expired(ref))
            self.expired.add(session)

    @rule(session=which)
    def sweep(self, session: tuple[str, str]) -> None:
        was_expired = session in self.expired
        assert self.wait(self.store.capacity.sweep(self.ref(session))) is (session not in self.known)
        self.swept(session)
        assert self.store.ends.count("expired") == sum(self.ended[0].values()) or not was_expired

    def swept(self, session: tuple[str, str]) -> None:
        if session in self.expired:
            self.expired.remove(session)
            self.ended[0][session[0]] += 1

    @staticmethod
    def dead(known: Known) -> None:
        if known.running:
            known.verdicts[known.running] = Settled("dead", known.numbers)
            known.running = ""

    @invariant()
    def sessions_are_as_known(self) -> None:
        for session in SESSIONS:
            ref, known = self.ref(session), self.known.get(session)
            snapshot = self.wait(self.store.sessions.get(ref))
            if known is None:
                assert snapshot == Gone()
                continue
            assert isinstance(snapshot, Snapshot)
            assert (snapshot.head, snapshot.revision, snapshot.title) == (known.head, known.revision, known.title)
            assert (snapshot.turns, snapshot.messages) == (known.turns, len(known.messages))
            assert snapshot.running_turn_id == ("" if known.lease_over else known.running)
            assert self.wait(self.store.turns.count(ref)) == known.numbers
            assert self.wait(self.store.sessions.messages(ref, 0, 99)) == known.messages
            self.wait(self.store.assert_consistent(ref))

    @invariant()
    def numbers_are_exact(self) -> None:
        for owner in ("alice", "bob"):
            counted = self.wait(self.store.index.counts(owner))
            living = [known for session, known in self.known.items() if session[0] == owner]
            unswept = sum(session[0] == owner for session in self.expired)
            assert (counted.total, counted.expired_unswept) == (len(living) + unswept, unswept)
            assert (counted.expired, counted.deleted) == (self.ended[0][owner], self.ended[1][owner])
            if not unswept:
                assert counted.messages == sum(len(known.messages) for known in living)
                assert counted.size_bytes == sum(len(one) for known in living for one in known.messages)
            listed = self.wait(self.store.index.page(owner, None, 10))
            assert len(listed) == counted.total


def drive(url: str, buckets: int) -> None:
    quick = settings(
        max_examples=12,
        stateful_step_count=30,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(cast("type[Machine]", partial(Machine, url, buckets)), settings=quick)


@pytest.mark.timeout(300)  # a failure is made smaller before it is told
def test_any_sequence_of_verbs_does_what_the_model_says(valkey_url: str) -> None:
    drive(valkey_url, 1)


@pytest.mark.timeout(300)  # a failure is made smaller before it is told
def test_any_sequence_of_verbs_does_what_the_model_says_in_sixteen_buckets(valkey_url: str) -> None:
    drive(valkey_url, 16)
