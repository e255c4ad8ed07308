"""A turn of conversation: begin → history → Claude → commit, and only then the end is told.

The answer's last events (from the one that carries the stop reason) are held back until the commit succeeded, so what
a caller saw complete is stored. Correctness is the compare-and-set on the session's head in commit.lua; the lease,
renewed every third of its length, only keeps others from paying for a second answer meanwhile.

What a crash of this replica leaves, line by line (killed, or frozen beyond its lease and thawed later):

| line                              | in the store            | the caller sees         | cleaned up by        |
|-----------------------------------|-------------------------|-------------------------|----------------------|
| 1 begin not yet sent              | nothing                 | connection lost         | nobody               |
| 2 begin executed, reply not read  | pending record, lease   | connection lost         | next begin, as below |
| 3 history read, Claude not asked  | the same                | connection lost         | next begin           |
| 4 Claude asked, nothing shown     | the same; tokens spent  | connection lost         | next begin           |
| 5 answer partly shown             | the same                | a stream without an end | next begin           |
| 6 answer whole, commit not sent   | the same                | a stream without an end | next begin           |
| 7 commit executed, reply not read | the turn, committed     | a stream without an end | nobody: it is stored |
| 8 commit known, end not told      | the turn, committed     | a stream without an end | nobody: it is stored |
| 9 abort executed, error not told  | verdict aborted         | connection lost         | nobody               |

In lines 2-6 the history is what it was before; the next begin that finds the lease over declares the turn dead, in
the same script. A frozen replica that thaws at lines 2-6 finds, at its next renew or at
its commit, either its lease still unclaimed (and goes on: nobody else began) or the verdict `dead`: it stops Claude,
writes nothing and tells its caller ``turn_superseded``. Thawed at 7-9 it reads the verdict that is already written.

A request that was sent before (idempotency.py) is no new turn. While the earlier one runs its verdict is waited for, or
its log followed where the caller wants the same stream and said so with a key; once it is committed its answer is told
again (replay.py). An earlier turn that is incomplete is replaced while it is the last: the commit rewinds it. One that
was aborted or has died is as if it had never been, and the request becomes a turn of its own.

What a streamed caller is shown has ordinals, and goes into the session's log as it is shown (lease.py), so that it can
be followed from any replica; the last frames go with the commit or the abort, in the same script.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service import replay, telemetry, turn_record
from service.claude import Claude
from service.composing import Composed, Composing, permitted
from service.context import word
from service.context.checkpoint import Compaction, Occasion
from service.context.size import rate_of
from service.errors import BatonError, internal_error
from service.events import Event
from service.exchange import Exchange, OnDisconnect, Render
from service.following import Following
from service.interrupt import Interrupt
from service.lease import Lease
from service.opening import Opening, Rules, Wish
from service.prefix import Ask, Prepared
from service.settling import Settlement, Status, count
from service.stored import stored
from service.transcript import pack
from service.turn_record import Provenance
from storage.elements import unpack
from storage.log import Log
from storage.results import Answered, Begun, Running
from storage.sessions import Sessions
from storage.turns import NOTHING_SHOWN, Commit, Rewind, Shown, Turns

_KEEPING: Final = (Interrupt.HUNG_UP, Interrupt.CANCELLED, Interrupt.DRAINING, Interrupt.REVOKED)
"""What keeps of a streamed turn what was shown."""
_CONTEXT: Final = "x-baton-context"
_POLL_S: Final = 0.25  # how often it is asked whether the earlier turn that a request is has its verdict


@dataclass(frozen=True, slots=True)
class Store:
    """The parts of the store that a turn uses."""

    sessions: Sessions
    turns: Turns
    log: Log


class Turn(Exchange):
    """An exchange that becomes part of a session, or leaves it as it was; or an earlier one of the session told again.

    Args:
        claude: where it goes.
        store: what it becomes a part of.
        compaction: sees to it when it has become large.
        rules: of this replica.
        wish: which session, which request, and what to do about other turns.
        ask: what the caller asks.
        dialect: the caller's, for the turn record.
        framing: how a stream of it is framed, which a follower must want the same; None if it is not streamed.
        render: the same, for the answer.
        claude_headers: for Claude, in the place of the SDK's own.
        resent: the request holds the whole conversation, not only what is new.
        on_disconnect: what the caller's hanging up means.
    """

    def __init__(
        self,
        claude: Claude,
        store: Store,
        compaction: Compaction,
        rules: Rules,
        *,
        wish: Wish,
        ask: Ask,
        dialect: str,
        framing: str | None,
        render: Render,
        claude_headers: Mapping[str, str],
        resent: bool,
        on_disconnect: OnDisconnect,
    ) -> None:
        super().__init__(
            claude,
            b"",
            claude_headers,
            render=render,
            streamed=framing is not None,
            on_disconnect=on_disconnect,
            deadline_s=rules.deadline_s,
        )
        self._sessions, self._turns, self._log = store.sessions, store.turns, store.log
        self._compaction = compaction
        self._rules = rules
        self._wish = wish
        self._ref = wish.address.ref
        self._ask = ask
        self._framing = framing
        self._resent = resent
        self._provenance = Provenance(self.id, datetime.now(UTC), dialect, framing, rules.replica)
        self.created_s = int(self._provenance.started.timestamp())  # what is recorded, so that a replay says the same
        self._turn_id = self.id  # ours; `id` is what the caller is told, an earlier turn's if the request is that
        self._ordinal = 0  # of the last frame shown
        self._held: list[bytes] | None = None
        self._standing: Begun | None = None  # the session as it is, whatever this turn means to rewind
        self._composed: Composed | None = None
        self._opening = Opening(
            store.sessions,
            store.turns,
            rules,
            wish,
            turn_id=self.id,
            model=ask.model,
            streamed=self._streamed,
        )
        self._lease = Lease(
            store.turns,
            self._ref,
            self.id,
            lease_ms=rules.lease_ms,
            usage=self.answer.tokens,
            interrupt=self.interrupt,
        )
        self._settlement = Settlement(
            store.turns,
            self._ref,
            self.id,
            abort_later_s=rules.lease_ms / 1000,
        )
        self.headers["x-turn-id"] = self.id

    def _facts(self) -> dict[str, str | int | float | None]:
        return {
            "session": self._ref.id,
            "dialect": self._provenance.dialect,
            "queue_ms": round(self._opening.waited_s * 1000, 1),
            "replayed": self.id != self._turn_id,
        }

    # Opening: the lease, the history, the request; or the earlier turn that the request is.

    async def _converse(self) -> None:
        replaced: replay.Stored | None = None
        while True:
            request = self._wish.request
            if replaced is not None:
                request = replace(request, replaces=replaced.record["id"])
            match await self._opening.begin(request, turn_record.pending(self._provenance, self._ask.model)):
                case Begun() as begun:
                    body = await self._opened(begun, replaced)
                    self.opened.set()
                    await self._relay(body)
                    return
                case Answered(turn_id, number):
                    earlier = await stored(replay.read(self._turns, self._sessions, self._ref, number))
                    if not earlier.incomplete:
                        await self._tell_again(turn_id, earlier)
                        return
                    replaced = earlier
                case Running(turn_id, number):
                    if await self._follow(turn_id, number):
                        return

    async def _opened(self, begun: Begun, replaced: replay.Stored | None) -> bytes:
        """The lease is ours: the history, and with it the request."""
        self._standing = begun
        self._lease.keep()
        self._tell_session("continued" if begun.messages or begun.turns else "new")
        composing = Composing(
            self._claude,
            self._claude_headers,
            self._turns,
            self._compaction,
            self._rules,
            self._ref,
            strict=self._wish.strict,
            announce=self._announce,
        )
        try:
            composed = await composing.compose(begun, self._ask, resent=self._resent, replaced=replaced)
        finally:
            self.headers.pop(_CONTEXT, None)  # whatever was announced: nothing has been sent yet
        self._composed, self._ask = composed, composed.ask
        self._tell_composed(composed.rewind, composed.context)
        _count_epoch(composed.fitted.prepared)
        return composed.fitted.prepared.body

    def _announce(self, rewind: Rewind | None, context: str) -> None:
        """Claude will be asked late: the caller may be told by now that the turn is under way."""
        self._tell_composed(rewind, context)
        self.opened.set()

    def _tell_composed(self, rewind: Rewind | None, context: str) -> None:
        if rewind is not None:
            self.headers["x-session-state"] = "rewound"
        self._tell_context(context)

    def _tell_context(self, context: str) -> None:
        if context:
            self.headers[_CONTEXT] = context

    async def _relay(self, body: bytes) -> None:
        """Asks Claude; once more without the thinking of before, if it is refused for a signature in it."""
        try:
            await super()._relay(body)
        except BatonError as error:
            if error.code != "thinking_refused" or self._composed is None:
                raise
            prepared = self._composed.again(refused=True)
            if prepared.body == body:
                raise
            telemetry.log.warning("thinking_refused", session=self._ref.id, turn=self._turn_id)
            self._composed = self._composed.instead(permitted(prepared, strict=self._wish.strict))
            _count_epoch(prepared)
            await super()._relay(prepared.body)

    def _tell_session(self, state: str) -> None:
        self.headers["x-session-id"] = self._ref.id
        self.headers["x-session-state"] = state

    async def _tell_again(self, turn_id: str, earlier: replay.Stored) -> None:
        """The request was answered before: the same answer, under the same id."""
        self._is_earlier(turn_id, earlier.record, "replayed")
        shown = self.answer.feed(replay.events(earlier))
        if self._streamed:
            await self._hand_over.put(self._shown(shown))

    async def _follow(self, turn_id: str, number: int) -> bool:
        """The request is a running turn: follows it where it shows what is wanted; whether the caller saw its end.

        If it has a verdict before anything was shown, or shows something else, the next begin tells what to do.
        """
        found = await stored(self._turns.records(self._ref, number, number))
        record = orjson.loads(found[0]) if found else {}
        if not self._wish.request.key or self._framing is None or record.get("framing") != self._framing:
            await asyncio.sleep(_POLL_S)
            return False
        following = Following(self._log, self._turns, self._ref, turn_id, number)
        begun = False
        async with aclosing(following.frames()) as follow:
            try:
                async for frames in follow:
                    if not begun and following.settled:
                        return False
                    if not begun:
                        self._is_earlier(turn_id, record, "followed")
                        begun = True
                    self._ordinal = following.ordinal
                    await self._hand_over.put(frames)
            except BatonError:
                if begun:
                    raise
                await asyncio.sleep(_POLL_S)
                return False
        return begun

    def _is_earlier(self, turn_id: str, record: dict[str, Any], how: telemetry.Replay) -> None:
        self.id = turn_id
        self.created_s = int(datetime.fromisoformat(record["started_at"]).timestamp())
        self.headers["x-turn-id"] = turn_id
        self._tell_session("continued")
        self._tell_context((record.get("sent") or {}).get("context") or "")
        telemetry.REPLAYS[how].inc()
        self.opened.set()

    # Showing: frames with ordinals, to the caller and to the log.

    def _shown(self, events: list[Event]) -> bytes:
        frames, ordinal = self._numbered(self.rendering.frames(events))
        if frames:
            self._ordinal = ordinal
            if self._standing is not None:
                self._lease.shown(frames, ordinal)
        return frames

    def _numbered(self, frames: Sequence[bytes]) -> tuple[bytes, int]:
        """Frames with the ordinals that they get if they are shown next, and the last of these."""
        numbered = [b"id: %d\n%b" % pair for pair in enumerate(frames, start=self._ordinal + 1)]
        return b"".join(numbered), self._ordinal + len(numbered)

    def failed(self, error: BatonError) -> bytes:
        """The last frame of a stream that ends with this error."""
        return self._numbered([super().failed(error)])[0]

    def _last_frames(self) -> bytes:
        """The frames that say that the answer is complete; of a followed turn they have been shown."""
        return self._numbered(self._held_frames())[0]

    def _held_frames(self) -> list[bytes]:
        """Rendered once: they go to the log with the commit, and to the caller after it."""
        if self._held is None:
            self._held = self.rendering.frames(self.answer.held)
        return self._held

    def _told(self, failure: BatonError | None) -> Shown:
        """How a streamed turn ends, for the log: with Claude's end, or with this error."""
        if not self._streamed:
            return NOTHING_SHOWN
        frames = self._held_frames() if failure is None else [self.rendering.failed(failure)]
        return self._lease.unlogged(*self._numbered(frames))

    # Settling: exactly one verdict, then the caller is told.

    async def _settle(self, failure: BatonError | None) -> BatonError | None:
        try:
            return await self._verdict(failure)
        except Exception:
            # A fault of ours must not leave the session busy until the lease ends.
            await self._settlement.abort(internal_error(), self._told)
            raise
        finally:
            self._lease.stop()
            self._composed = None  # it is large, and the caller may take its time

    async def _verdict(self, failure: BatonError | None) -> BatonError | None:
        told_again = failure is None and self._standing is None
        if told_again or not self._opening.unsettled:
            return failure
        if failure is None:
            refused = self.answer.stop_reason == "refusal"
            assert self._composed is not None
            if refused and self._composed.rewind is not None:  # and so it is not rewound
                self.headers["x-session-state"] = "continued"
            return await self._commit("refused" if refused else "complete", None)
        if self._interrupt in (Interrupt.LEASE_LOST, Interrupt.SESSION_GONE):
            count("superseded" if self._interrupt is Interrupt.LEASE_LOST else "session_gone")
            return failure
        kept = self._interrupt in _KEEPING
        if kept and self._streamed and self._composed is not None and self.answer.content():
            return await self._commit("incomplete", failure) or failure
        await self._settlement.abort(failure, self._told)
        return failure

    async def _commit(self, status: Status, failure: BatonError | None) -> BatonError | None:
        """None if the turn is stored, else what became of it; ``failure`` is what the caller is told if it is."""
        commit = self._as_commit(status, self._told(failure))
        unstored = await self._settlement.commit(commit, status, self._told)
        if unstored is None and status != "refused":
            self._compact(commit)
        return unstored

    def _compact(self, commit: Commit) -> None:
        """The session is as it is now, and may have become large."""
        assert self._composed is not None
        history, used = self._composed.history, self.answer.tokens()
        occasion = Occasion(
            ref=self._ref,
            head=self._turn_id,
            elements=[*history.elements, *commit.elements],
            checkpoint=history.checkpoint,
            wishes=history.wishes,
            tokens=used.input + used.cache_read + used.cache_written + used.output,
            rate=rate_of(word.unpacked(commit.context)),
        )
        self._compaction.after_commit(occasion, self._ask.model)

    def _as_commit(self, status: Status, end: Shown) -> Commit:
        assert self._standing is not None
        assert self._composed is not None
        composed, standing, is_refused = self._composed, self._standing, status == "refused"
        prepared = composed.fitted.prepared
        content = self.answer.content()
        reply = [{"role": "assistant", "content": content}] if content else []
        replied = pack(reply, prepared.digest)
        elements = [] if is_refused else [*prepared.elements, *replied]
        asked = [unpack(element) for element in prepared.elements] if is_refused else []
        first = composed.begun.messages
        record = turn_record.settled(
            self._provenance,
            self._ask.model,
            status,
            self.answer,
            sent={**prepared.summary, "context_tokens": composed.fitted.tokens, "context": composed.context or None},
            queue_s=self._opening.waited_s,
            first_event_s=self.first_event_s,
            span=(first, first + len(elements)),
            refused=[element.digest for element in asked if not element.synthetic],
        )
        ended = self.answer.stop_reason is not None
        left = composed.fitted.left(self.answer.tokens(), replied, self.answer.message.get("id"), whole=ended)
        # A refusal leaves the session as it was, even where the turn would have rewound it or begun an epoch.
        return Commit(
            head=standing.head,
            record=record,
            model=standing.model or self._ask.model if is_refused else self._ask.model,
            epoch_hash=standing.epoch_hash if is_refused else prepared.epoch.hash,
            epoch_start=standing.epoch_start if is_refused else prepared.epoch.start,
            revision=standing.revision,
            system_json=b"" if is_refused else prepared.system_json,
            preamble=b"" if is_refused else prepared.preamble,
            usage=self.answer.tokens(),
            elements=elements,
            rewind=None if is_refused else composed.rewind,
            end=end,
            known=composed.history.attachments,
            context=standing.context if is_refused else left.packed(),
        )


def _count_epoch(prepared: Prepared) -> None:
    for reason in prepared.epoch.reasons:
        telemetry.EPOCHS[reason].inc()
