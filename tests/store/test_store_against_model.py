"""Any sequence of verbs, against a model of a few lines: same answers, same history, same numbers."""

import asyncio
import itertools
from collections.abc import Awaitable
from functools import partial
from hashlib import sha256
from typing import Any, Literal, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage.checkpoints import Checkpoint, Cost
from storage.keys import SessionRef, new_nonce, new_turn_id
from storage.log import Tail
from storage.results import (
    Begun,
    Busy,
    Cancelling,
    Claimed,
    Covered,
    Created,
    Denied,
    Exists,
    Fenced,
    Gone,
    Held,
    Live,
    Lost,
    Moved,
    Over,
    Patched,
    Renewed,
    RevisionConflict,
    Running,
    Settled,
    Shared,
    UnknownTurn,
)
from storage.sessions import Snapshot
from storage.shares import ROLES, Role
from storage.turns import Request, Rewind, Shown
from tests.store.harness import Store, attached, elements, real_redis, shown
from tests.store.model import Begin, Known, Logged, Session, stored_bytes

T = TypeVar("T")
SESSIONS: list[Session] = [("alice", "a"), ("alice", "b"), ("bob", "a")]
_namespaces = itertools.count()

which = st.sampled_from([*SESSIONS[:1] * 4, *SESSIONS[1:]])  # one of them has a longer history than the others
counts = st.integers(0, 3)
GRANTEES = ("carol", "dave")
grantees = st.sampled_from(GRANTEES)
BIG = [letter * 65_537 for letter in "xy"]
attachments = st.sampled_from([*[[]] * 4, [attached(BIG[0])], [attached(*BIG, "small", BIG[0])]])


REQUESTS = [
    *(Request(what, key) for what in "pq" for key in ("k1", "k2")),
    *(Request(what, retried=True) for what in "pq"),
]
requests = st.sampled_from([*REQUESTS, Request("p"), Request("q")])


class Machine(RuleBasedStateMachine):
    """Three sessions of two owners; turns of former sessions stay around and try."""

    def __init__(self, url: str, buckets: int) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: Any = real_redis(url)
        self.store = Store.of(self.redis, f"model{next(_namespaces)}", buckets=buckets)
        self.known: dict[Session, Known] = {}
        self.expired: set[Session] = set()  # gone, and still counted
        self.ended = dict.fromkeys(("alice", "bob"), 0), dict.fromkeys(("alice", "bob"), 0)  # expired, deleted
        self.shares: dict[Session, dict[str, Role]] = {session: {} for session in SESSIONS}  # of expired ones, too
        self.turns: list[Begin] = []
        self.claims: list[tuple[Session, Claimed]] = []
        self.used = SESSIONS[0]  # by the last step
        self.unused = itertools.cycle(SESSIONS)

    def teardown(self) -> None:
        self.wait(self.redis.aclose())
        self.runner.close()

    def wait(self, doing: Awaitable[T]) -> T:
        async def done() -> T:
            return await doing

        return self.runner.run(done())

    def ref(self, session: Session) -> SessionRef:
        self.used = session
        return self.store.keyspace.session(self.store.keyspace.named(*session), session[0])

    @initialize()
    def create_all(self) -> None:
        for session in SESSIONS:
            self.create(session)

    @rule(session=which)
    def create(self, session: Session) -> None:
        nonce = new_nonce()
        made = self.wait(self.store.create(self.ref(session), nonce))
        if session in self.known:
            assert made == Exists()
            return
        assert made == Created()
        self.swept(session)
        self.known[session] = Known(nonce)

    @rule(
        session=which,
        request=requests,
        streamed=st.sampled_from([True, True, False]),
        expected=st.sampled_from(["", "", "head", "other"]),
    )
    def begin(self, session: Session, request: Request, streamed: bool, expected: str) -> None:
        turn, known, ref = new_turn_id(), self.known.get(session), self.ref(session)
        head = known.head if known and expected == "head" else expected
        begun = self.wait(self.store.begin(ref, turn, request=request, streamed=streamed, expected=head))
        if known is None:
            assert begun == Gone()
        elif earlier := known.earlier(request):
            assert begun == earlier
        elif expected == "other":
            assert begun == Moved(known.head)
        elif known.runs:
            assert isinstance(begun, Busy)
            assert begun.turn_id == known.running
        else:
            known.begins(turn, request, streamed=streamed)
            assert isinstance(begun, Begun)
            assert (begun.number, begun.head, begun.turns) == (known.numbers, known.head, known.turns)
            assert (begun.messages, begun.revision) == (len(known.messages), known.revision)
            self.turns.append(Begin(session, ref, turn, begun.number, begun.head, known))

    def one_turn(self, data: st.DataObject) -> tuple[Begin, Known | None]:
        """A turn that began once, and the session that there is now."""
        began = data.draw(st.sampled_from(self.turns[-3:]) | st.sampled_from(self.turns))
        self.used = began.session
        return began, self.known.get(began.session)

    @staticmethod
    def next_frames(data: st.DataObject, began: Begin) -> Shown:
        """What a caller was shown since, perhaps with frames that are logged already, perhaps nothing."""
        logged = began.known.logs.get(began.turn)
        last = logged.ordinal if logged else 0
        return shown(max(1, last + 1 - data.draw(counts)), last + data.draw(counts))

    @precondition(lambda self: self.turns)
    @rule(data=st.data(), count=counts, rewind=st.booleans())
    def commit(self, data: st.DataObject, count: int, rewind: bool) -> None:
        began, known = self.one_turn(data)
        new = elements(count, began.turn) + data.draw(attachments)
        shown_last = self.next_frames(data, began)
        kept = data.draw(st.sampled_from([0, *began.known.ends])) if rewind else None
        cut: Rewind | None = None
        if kept is not None and known is began.known and known.running == began.turn:
            dropped = sum(end > kept for end in known.ends)
            cut = Rewind(kept, sum(map(stored_bytes, known.messages[kept:])), dropped)
        held = sorted(sha256(one.encode()).hexdigest() for one in known.attachments) if known is began.known else []
        changes: dict[str, Any] = {"known": data.draw(st.sampled_from([[], held]))}
        changes |= {"revision": 0, "rewind": cut, "record": began.turn.encode(), "end": shown_last}
        settled = self.wait(self.store.commit(began.ref, began.turn, began.head, new, **changes))
        if known is None:
            assert settled == Gone()
        elif began.turn in known.verdicts:
            assert settled == known.verdicts[began.turn]
        elif known.running != began.turn:
            assert settled == Fenced()
        else:
            assert settled == Settled("committed", known.numbers)
            if cut is not None:
                known.messages = known.messages[: cut.messages]
                known.rewinds(cut.messages)
                known.ends = [end for end in known.ends if end <= cut.messages]
                known.turns -= cut.turns_dropped
            known.holds(new)
            known.ends.append(len(known.messages))
            known.turns += 1
            known.ends_log(shown_last.ordinal, "told")
            known.head, known.running = began.turn, ""
            known.verdicts[began.turn] = settled

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        began, known = self.one_turn(data)
        new = self.next_frames(data, began)
        renewed = self.wait(self.store.renew(began.ref, began.turn, new))
        if known is None:
            assert renewed == Gone()
        elif known.running != began.turn:
            assert renewed == known.verdicts.get(began.turn, Lost())
        else:
            assert renewed == Renewed(cancel=known.cancelled)
            known.lease_over = False
            if logged := known.logs.get(began.turn):
                logged.goes_on(new.ordinal)

    @precondition(lambda self: self.turns)
    @rule(data=st.data(), mode=st.sampled_from(["holder", "finder"]))
    def abort(self, data: st.DataObject, mode: Literal["holder", "finder"]) -> None:
        began, known = self.one_turn(data)
        end = self.next_frames(data, began) if mode == "holder" else Shown()
        aborted = self.wait(self.store.abort(began.ref, began.turn, mode, end))
        if known is None:
            assert aborted == Gone()
        elif began.turn in known.verdicts:
            assert aborted == known.verdicts[began.turn]
        elif mode == "finder" and known.running != began.turn:
            assert aborted == UnknownTurn()
        elif mode == "finder" and known.runs:
            assert isinstance(aborted, Live)
        elif mode == "finder":
            known.dies()
            assert aborted == known.verdicts[began.turn]
        elif known.running != began.turn:
            known.verdicts[began.turn] = Settled("aborted", 0)
            assert aborted == known.verdicts[began.turn]
        else:
            known.ends_log(end.ordinal, "told")
            known.running = ""
            known.verdicts[began.turn] = Settled("aborted", began.number)
            assert aborted == known.verdicts[began.turn]

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        began, known = self.one_turn(data)
        cancelled = self.wait(self.store.turns.cancel(began.ref, began.turn))
        if known is None:
            assert cancelled == Gone()
        elif known.running != began.turn:
            assert cancelled == known.verdicts.get(began.turn, UnknownTurn())
        elif known.lease_over:
            assert cancelled == Over()
        else:
            assert cancelled == Cancelling(began.number)
            known.cancelled = True

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def delivered(self, data: st.DataObject) -> None:
        began, known = self.one_turn(data)
        fate = known.fate(began.turn) if known else None
        committed = fate is not None and fate.verdict == "committed"
        assert self.wait(self.store.turns.delivered(began.ref, began.turn)) is committed
        if known and committed:
            known.delivered.add(began.turn)

    @precondition(lambda self: self.turns)
    @rule(data=st.data(), after=st.integers(0, 9))
    def tail(self, data: st.DataObject, after: int) -> None:
        began, known = self.one_turn(data)
        if known is not began.known:
            return  # its number may be another turn's by now
        logged = known.logs.get(began.turn, Logged(began.number))
        tail = self.wait(self.store.log.tail(began.ref, began.turn, began.number, after))
        assert tail == Tail(known.fate(began.turn), *logged.after(after), logged.end)

    @rule(session=which, count=st.integers(1, 3), big=attachments, wrong_head=st.booleans(), request=requests)
    def append(self, session: Session, count: int, big: list[bytes], wrong_head: bool, request: Request) -> None:
        known, turn, ref = self.known.get(session), new_turn_id(), self.ref(session)
        head = known.head if known and not wrong_head else "head_x"
        new = elements(count, turn) + big
        fixed: dict[str, Any] = {"head": head, "record": b"{}", "turns_max": 999}
        settled = self.wait(self.store.turns.append(ref, turn, request=request, elements=new, **fixed))
        earlier = known.earlier(request) if known and request.key else None
        if known is None:
            assert settled == Gone()
        elif earlier and not isinstance(earlier, Running):
            assert settled == earlier
        elif known.runs:
            assert isinstance(settled, Busy)
        elif wrong_head:
            assert settled == Fenced()
        else:
            known.appends(turn, request, new)
            assert settled == known.verdicts[turn]

    @rule(session=which, covers=st.integers(0, 8), wrong_head=st.booleans(), short=st.booleans())
    def claim(self, session: Session, covers: int, wrong_head: bool, short: bool) -> None:
        known, nonce, ref = self.known.get(session), new_nonce(), self.ref(session)
        head = known.head if known and not wrong_head else "head_x"
        claim_ms = 1 if short else 600_000
        claimed = self.wait(self.store.checkpoints.claim(ref, nonce, head=head, covers=covers, claim_ms=claim_ms))
        if known is None:
            assert claimed == Gone()
        elif wrong_head:
            assert claimed == Moved(known.head)
        elif not known.covered < covers <= len(known.messages):
            assert claimed == Covered()
        elif known.claim and not known.claim_over:
            assert isinstance(claimed, Held)
        else:
            known.generation += 1
            known.claim, known.claim_over = (nonce, covers), short
            assert claimed == Claimed(nonce, known.version, known.generation)
            self.claims.append((session, claimed))
            if short:
                self.wait(self.store.until_ms(self.wait(self.store.now_ms()) + 2))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        session, claimed = data.draw(st.sampled_from(self.claims))
        known, summary = self.known.get(session), claimed.nonce.encode()
        stored = self.wait(self.store.checkpoints.store(self.ref(session), claimed, summary, Cost(1, 2, 3)))
        if known and known.claim and known.claim[0] == claimed.nonce:
            known.version, known.covered, known.claim = known.version + 1, known.claim[1], None
            known.summary = summary
            assert stored == known.version
        elif (
            known
            and not known.claim
            and (known.version, known.generation)
            == (
                claimed.version + 1,
                claimed.generation,
            )
        ):
            assert stored == known.version
        else:
            assert stored is None

    @rule(session=which, title=st.text("ab", min_size=1, max_size=3), expected=st.none() | st.integers(1, 3))
    def patch(self, session: Session, title: str, expected: int | None) -> None:
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
    def delete(self, session: Session) -> None:
        was_there = self.known.pop(session, None) is not None
        assert self.wait(self.store.sessions.delete(self.ref(session))) is was_there
        if was_there:
            self.shares[session].clear()
        self.ended[1][session[0]] += was_there

    def foreign(self, session: Session, who: str) -> SessionRef:
        """The session as another principal addresses it, on a replica that may not know whose it is."""
        ref = self.ref(session)
        self.store.keyspace.foreign.clear()
        return self.store.keyspace.session(ref.id, who)

    def role(self, session: Session, who: str) -> str:
        return self.shares[session].get(who, "") if session in self.known else ""

    @rule(session=which, by=st.sampled_from(["", "", *GRANTEES]), who=grantees, role=st.sampled_from(ROLES))
    def share(self, session: Session, by: str, who: str, role: Role) -> None:
        ref = self.foreign(session, by) if by else self.ref(session)
        shared = self.wait(self.store.shares.share(ref, who, role))
        held = self.role(session, by) if by else "admin"
        if session not in self.known or not held:
            assert shared == Gone()
        elif held != "admin":
            assert shared == Denied(held)
        else:
            assert shared == Shared(new=who not in self.shares[session])
            self.shares[session][who] = role

    @rule(session=which, by=st.sampled_from(["", *GRANTEES]), who=grantees)
    def unshare(self, session: Session, by: str, who: str) -> None:
        ref = self.foreign(session, by) if by else self.ref(session)
        gone = self.wait(self.store.shares.unshare(ref, who))
        held = self.role(session, by) if by else "admin"
        if session not in self.known or not held:
            assert gone == Gone()
        elif held != "admin" and by != who:
            assert gone == Denied(held)
        else:
            assert gone is (self.shares[session].pop(who, None) is not None)

    @rule(session=which, who=grantees, title=st.text("ab", min_size=1, max_size=3))
    def changed_by_another(self, session: Session, who: str, title: str) -> None:
        known, held = self.known.get(session), self.role(session, who)
        patched = self.wait(
            self.store.sessions.patch(self.foreign(session, who), {"title": title}, expected_revision=None)
        )
        if known is None or not held:
            assert patched == Gone()
        elif held != "admin":
            assert patched == Denied(held)
        else:
            known.revision, known.title = known.revision + 1, title
            assert patched == Patched(known.revision)

    @rule(session=which, who=grantees)
    def deleted_by_another(self, session: Session, who: str) -> None:
        held = self.role(session, who)
        deleted = self.wait(self.store.sessions.delete(self.foreign(session, who)))
        assert deleted == (held == "admin" if held in ("", "admin") else Denied(held))
        if deleted is True:
            del self.known[session]
            self.shares[session].clear()
            self.ended[1][session[0]] += 1

    @rule(session=which)
    def lease_ends(self, session: Session) -> None:
        known = self.known.get(session)
        if known is not None and known.running:
            self.wait(self.redis.hset(self.ref(session).keys[0], "lx", "1"))
            known.lease_over = True

    @rule(session=which)
    def expire(self, session: Session) -> None:
        if self.known.pop(session, None) is not None:
            ref = self.ref(session)
            self.wait(self.redis.hset(ref.keys[0], mapping={"ttl": "1", "lt": "", "lx": "0"}))
            self.wait(self.store.sessions.touch(ref))
            self.wait(self.store.until_expired(ref))
            self.expired.add(session)

    @rule(session=which)
    def sweep(self, session: Session) -> None:
        was_expired = session in self.expired
        assert self.wait(self.store.capacity.sweep(self.ref(session))) is (session not in self.known)
        self.swept(session)
        assert self.store.ends.count("expired") == sum(self.ended[0].values()) or not was_expired

    def swept(self, session: Session) -> None:
        if session in self.expired:
            self.expired.remove(session)
            self.shares[session].clear()
            self.ended[0][session[0]] += 1

    @invariant()
    def everything_is_as_known(self) -> None:
        async def looked_at() -> None:
            for session in {self.used, next(self.unused)}:
                await self.is_as_known(session)
            for owner in ("alice", "bob"):
                await self.numbers_are_exact(owner)
            for who in GRANTEES:
                await self.shares_are_exact(who)

        self.wait(looked_at())

    async def is_as_known(self, session: Session) -> None:
        ref, known = self.ref(session), self.known.get(session)
        snapshot = await self.store.sessions.get(ref)
        if known is None:
            assert snapshot == Gone()
            return
        assert isinstance(snapshot, Snapshot)
        assert (snapshot.head, snapshot.revision, snapshot.title) == (known.head, known.revision, known.title)
        assert (snapshot.turns, snapshot.messages) == (known.turns, len(known.messages))
        assert snapshot.running_turn_id == ("" if known.lease_over else known.running)
        assert await self.store.turns.count(ref) == known.numbers
        assert await self.store.sessions.messages(ref, 0, 99) == known.messages
        assert (snapshot.account.version, snapshot.account.covers) == (known.version, known.covered)
        checkpoint = (await self.store.turns.history(ref, 0)).checkpoint
        stands = Checkpoint(known.version, known.covered, known.summary) if known.covered else None
        assert checkpoint == stands
        assert await self.store.turns.fates(ref, list(known.verdicts)) == [known.fate(turn) for turn in known.verdicts]
        await self.store.assert_consistent(ref)
        not_logged = {one.turn: Logged(one.number) for one in self.turns[-1:] if one.known is known}
        for turn, logged in (not_logged | known.logs).items():
            tail = await self.store.log.tail(ref, turn, logged.number, 0)
            assert tail == Tail(known.fate(turn), *logged.after(0), logged.end)
        for request in REQUESTS:
            told = await self.store.begin(ref, new_turn_id(), request=request, expected="other")
            assert told == (known.earlier(request) or Moved(known.head))

    async def shares_are_exact(self, who: str) -> None:
        """Its list is what is shared with it; of what has gone there is nothing."""
        ids = {self.store.keyspace.named(*session): session for session in SESSIONS}
        listed = [ids[one.session_id] for one in await self.store.index.page(who, None, 10)]
        assert sorted(listed) == sorted(session for session in SESSIONS if who in self.shares[session])
        refs = [self.store.keyspace.session(self.store.keyspace.named(*session), who) for session in SESSIONS]
        seen = [snapshot.role if snapshot else "" for snapshot in await self.store.sessions.snapshots(refs)]
        assert seen == [self.role(session, who) for session in SESSIONS]
        assert (await self.store.index.counts(who)).total == 0
        assert await self.store.index.shared_active(who) == sum(map(bool, seen))

    async def numbers_are_exact(self, owner: str) -> None:
        counted = await self.store.index.counts(owner)
        living = [known for session, known in self.known.items() if session[0] == owner]
        unswept = sum(session[0] == owner for session in self.expired)
        assert (counted.total, counted.expired_unswept) == (len(living) + unswept, unswept)
        assert (counted.expired, counted.deleted) == (self.ended[0][owner], self.ended[1][owner])
        if not unswept:
            assert counted.messages == sum(len(known.messages) for known in living)
            assert counted.size_bytes == sum(known.size_bytes for known in living)
        listed = await self.store.index.page(owner, None, 10)
        assert len(listed) == counted.total


def drive(url: str, buckets: int) -> None:
    quick = settings(
        max_examples=12,
        stateful_step_count=50,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(cast("type[Machine]", partial(Machine, url, buckets)), settings=quick)


@pytest.mark.timeout(300)  # a failure is made smaller before it is told
def test_any_sequence_of_verbs_does_what_the_model_says(valkey_url: str) -> None:
    drive(valkey_url, 1)


@pytest.mark.at_length
@pytest.mark.timeout(300)  # a failure is made smaller before it is told
def test_any_sequence_of_verbs_does_what_the_model_says_in_sixteen_buckets(valkey_url: str) -> None:
    drive(valkey_url, 16)
