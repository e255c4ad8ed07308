"""Checkpoints: a session that has grown large is summarized, off the request path, while its turns go on.

After a commit the replica knows all: the messages, and from Claude's usage how large they are. Over 80 % of the model's
window (policy ``compact``), or over the session's own target, it starts a task that lives beside the turns:

| line                                 | in the store           | if the replica dies here                           |
|--------------------------------------|------------------------|----------------------------------------------------|
| 1 plan: which messages, a cut        | nothing                | the next commit sees it is over the threshold       |
| 2 claim executed                     | a claim, for its time  | the claim runs out; the next commit then claims    |
| 3 summary asked for, tokens spent    | the same               | the same                                           |
| 4 stored, by compare-and-set         | the checkpoint         | nothing: it is there                               |

Nothing in that waits for a turn, and no turn waits for it: a turn reads the checkpoint with the history, in one and
the same round trip, and the one that runs meanwhile goes on with what it has read. But a turn that would not fit
without one does wait (`in_turn`): it claims as above, at the head that it has the lease for, and goes on with what was
stored. If somebody else has the claim, it looks for their checkpoint until it is there or the claim is over; and what
this replica makes for the session already it just waits for. What it
waits for is a task like any other, and is not lost if the turn ends first, as when its caller hangs up: the next turn
finds the checkpoint, or the claim. If the replica dies, the lines above are true, and beside them those of turn.py.

A replica that drains lets tasks
that run finish with its turns; what is left is ended, and leaves its claim. So does a summary that fails: its claim
keeps everybody from paying for another at once, and the next commit after its end tries again.

There is a bound on how many run at once. Nothing is queued behind it: a session that is over its threshold says so
again with its next turn.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service import telemetry
from service.claude import Claude
from service.context import compacted, summary
from service.context.compacted import KEPT_TURNS_MIN, Plan
from service.context.size import size_of_messages
from service.context.summarizing import summarized
from service.context.view import policy
from service.errors import BatonError, internal_error, role_too_small, session_not_found, store_unavailable
from service.interrupt import Interrupt, draining
from service.model_table import Model
from storage.checkpoints import Checkpoint, Checkpoints, Wishes
from storage.keys import SessionRef, new_nonce
from storage.results import Claimed, Covered, Denied, Gone, Held, Moved, StoreUnavailable
from storage.tracebacks import let_go

THRESHOLD: Final = 0.8
"""Of the window."""
_KEPT: Final = 0.3
"""Of the threshold, that the turns may have which are kept."""
_GAIN_MIN: Final = 0.1
"""Of the context, system prompt and tools and all, that must be newly covered, or of what one summary takes. Less is
not worth it: what stays may be over a session's own target by itself, and each turn would begin an epoch."""
_OF_WINDOW: Final = 0.5
"""Of the summarizing model's window, that the transcript may have. What is beyond is left to the next checkpoint."""
_BYTES_A_TOKEN: Final = 2
"""Cautious: of whatever was not counted."""
_CLAIM: Final = 1.25
"""Of the deadline: how long a claim holds. It decides nothing but whether another replica pays, too."""
_POLL_S: Final = 0.5
"""How often a turn looks for a checkpoint that somebody else makes."""

Made = Checkpoint | BatonError | None
"""What became of a checkpoint: it is there, it failed, or what it was to stand for has changed."""


@dataclass(frozen=True, slots=True)
class Occasion:
    """A session as it is behind a commit, or as somebody has just read it.

    Attributes:
        ref: as who acts addresses it.
        head: its last turn.
        elements: its messages.
        checkpoint: that stands for the oldest of them.
        wishes: of the session.
        tokens: of the context, with the last answer; 0 if nobody has counted.
        rate: tokens that a byte of its text takes.
    """

    ref: SessionRef
    head: str
    elements: Sequence[bytes]
    checkpoint: Checkpoint | None
    wishes: Wishes
    tokens: int = 0
    rate: float = 0.0

    @property
    def covered(self) -> int:
        """How many messages the checkpoint covers."""
        return self.checkpoint.covers if self.checkpoint is not None else 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What a replica's settings say about checkpoints.

    Attributes:
        model: that summarizes.
        deadline_s: of a summary.
        running_max: checkpoints at once.
        automatic: whether a window that fills is a reason for one; a session's own target is in any case.
        model_of: what is known of a model.
    """

    model: str
    deadline_s: float
    running_max: int
    automatic: bool
    model_of: Callable[[str], Model]

    @property
    def claim_ms(self) -> int:
        """How long a claim holds."""
        return round(1000 * self.deadline_s * _CLAIM)


class Compaction:
    """Makes checkpoints.

    Args:
        claude: who summarizes.
        checkpoints: the store.
        rules: of this replica.
    """

    def __init__(self, claude: Claude, checkpoints: Checkpoints, rules: Rules) -> None:
        self._claude = claude
        self._checkpoints = checkpoints
        self._rules = rules
        self._tasks: dict[asyncio.Task[Made], str] = {}  # and the sessions that they are for
        self._claiming: set[asyncio.Task[Any]] = set()
        self._asked_for = 0  # that have their place, and no claim yet
        self._draining = False

    @property
    def running(self) -> int:
        """How many checkpoints are being made."""
        return len(self._tasks) + self._asked_for

    def drain(self) -> None:
        """From now on none is begun."""
        self._draining = True

    async def aclose(self) -> None:
        """Ends those that run; each leaves a claim that runs out."""
        self._draining = True
        ending = {*self._tasks, *self._claiming}
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    def after_commit(self, occasion: Occasion, model: str) -> None:
        """Begins a checkpoint if the session is over its threshold. Never raises, and nothing is waited for.

        Args:
            occasion: the session behind the commit.
            model: that was asked; its window counts.
        """
        threshold = self._threshold(occasion.wishes, model)
        if threshold and occasion.tokens > threshold and not self._draining and self.running < self._rules.running_max:
            self._start(occasion.ref.id, self._automatic(occasion, threshold))

    async def on_demand(self, read: Callable[[], Awaitable[Occasion]]) -> bool:
        """Begins a checkpoint of all but the last turns; whether one is being made now, by whoever.

        Args:
            read: reads the session, which may be large; not called where there is no room for another checkpoint.

        Raises:
            BatonError: overloaded, draining, turn_in_progress (the session goes on at this moment), session_not_found,
                role_too_small, store_unavailable.
        """
        with self._place():
            occasion = await read()
            plan = await asyncio.to_thread(self._plan, occasion, 0)
            if plan is None:
                return False
            answer = await self._claim(occasion, plan)
            if isinstance(answer, Claimed):
                self._start(occasion.ref.id, self._made(occasion, plan, answer))
        match answer:
            case Moved():
                raise BatonError("turn_in_progress", "Other turns keep coming first; try again.", retry_after_s=1)
            case Covered():
                return False
            case Denied(role):
                raise role_too_small(role, "writer")
            case Gone():
                raise session_not_found()
            case Claimed() | Held():
                return True

    async def plan_for_turn(self, occasion: Occasion, keep_bytes: int) -> Plan | None:
        """What is to be covered for a turn that would not fit; None if nothing can be.

        Args:
            occasion: the session, as the turn goes on from it.
            keep_bytes: so much of its end is kept, and the last turn in any case.
        """
        if not self._rules.running_max:
            return None
        return await asyncio.to_thread(self._plan, occasion, keep_bytes, kept_turns=1)

    async def in_turn(
        self, occasion: Occasion, plan: Plan, read: Callable[[], Awaitable[Checkpoint | None]]
    ) -> Checkpoint | None:
        """A checkpoint that a turn waits for; None if there is none that covers more than the last.

        Args:
            occasion: the session; its head is that of the turn which has the lease.
            plan: what is to be covered.
            read: reads the session's checkpoint as it is by now.

        Raises:
            BatonError: overloaded, draining; turn_superseded, role_too_small, session_not_found; why it failed.
            StoreUnavailable: the store does not answer.
        """
        while True:
            if beside := [task for task, session in self._tasks.items() if session == occasion.ref.id]:
                await asyncio.wait(beside)
                if newer := _newer(await read(), occasion):
                    return newer
            claiming = asyncio.create_task(self._claim_and_start(occasion, plan))
            self._claiming.add(claiming)
            claiming.add_done_callback(self._claiming.discard)
            match await asyncio.shield(claiming):  # who goes meanwhile leaves no claim that nobody makes use of
                case asyncio.Task() as making:
                    return _newer(await _result(making) or await read(), occasion)
                case Held(remaining_ms):
                    if newer := await _awaited(remaining_ms, read, occasion):
                        return newer
                case Covered():
                    return _newer(await read(), occasion)
                case Moved():
                    raise Interrupt.LEASE_LOST.told()
                case Denied(role):
                    raise role_too_small(role, "writer")
                case Gone():
                    raise session_not_found()

    async def _claim_and_start(
        self, occasion: Occasion, plan: Plan
    ) -> asyncio.Task[Made] | Held | Covered | Moved | Denied | Gone:
        """The task that makes what was claimed; or why nothing was."""
        with self._place():
            answer = await self._claim(occasion, plan)
            if not isinstance(answer, Claimed):
                return answer
            return self._start(occasion.ref.id, self._made(occasion, plan, answer))

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """One of the places for checkpoints, until the task has it that makes one.

        Raises:
            BatonError: overloaded, draining.
        """
        if self._draining:
            raise draining()
        if self.running >= self._rules.running_max:
            raise BatonError("overloaded", "This replica makes all the checkpoints it may; try again.", retry_after_s=5)
        self._asked_for += 1
        try:
            yield
        finally:
            self._asked_for -= 1

    def _threshold(self, wishes: Wishes, model: str) -> int:
        """Tokens beyond which a session is compacted; 0 if nothing says so, or the window is not known yet."""
        window = self._rules.model_of(model).input_tokens_max
        automatic = policy(wishes.context_policy, "compact" if self._rules.automatic else "error") == "compact"
        bounds = [wishes.tokens_target, round(THRESHOLD * window) if window and automatic else 0]
        return min(filter(None, bounds), default=0)

    def _plan(self, occasion: Occasion, keep_bytes: int, kept_turns: int = KEPT_TURNS_MIN) -> Plan | None:
        return compacted.plan(
            occasion.elements,
            occasion.covered,
            keep_bytes=keep_bytes,
            cover_bytes_max=self._transcript_bytes_max,
            kept_turns=kept_turns,
        )

    @property
    def _transcript_bytes_max(self) -> int:
        window = self._rules.model_of(self._rules.model).window_tokens
        return min(round(_OF_WINDOW * window * _BYTES_A_TOKEN), summary.TRANSCRIPT_BYTES_MAX)

    def _worthwhile(self, occasion: Occasion, threshold: int) -> Plan | None:
        """What an automatic checkpoint would cover, if that is worth it."""
        sent_bytes = compacted.text_bytes(occasion.elements[occasion.covered :])
        plan = self._plan(occasion, round(_KEPT * threshold * sent_bytes / occasion.tokens))
        if plan is None:
            return None
        size = size_of_messages(occasion.elements[plan.begins : plan.covers])
        gain = occasion.rate * size.text_bytes + size.media.tokens
        least = _GAIN_MIN * min(occasion.tokens, occasion.rate * self._transcript_bytes_max)
        return plan if gain >= least else None

    def _start(self, session: str, making: Coroutine[Any, Any, Checkpoint | None]) -> asyncio.Task[Made]:
        task = asyncio.create_task(self._watched(session, making))
        self._tasks[task] = session
        task.add_done_callback(self._tasks.pop)
        return task

    async def _watched(self, session: str, making: Coroutine[Any, Any, Checkpoint | None]) -> Made:
        with telemetry.CHECKPOINTS_RUNNING.track_inprogress():
            try:
                return await making
            except asyncio.CancelledError:
                _count("ended")
                raise
            except Exception as error:
                _count("failed")
                told = _as_told(error)
                if told.code == "internal_error":
                    telemetry.log.error("checkpoint_broken", session=session, exc_info=error)
                else:
                    telemetry.log.warning("checkpoint_failed", session=session, code=told.code)
                let_go(told)
                return told

    async def _automatic(self, occasion: Occasion, threshold: int) -> Checkpoint | None:
        plan = await asyncio.to_thread(self._worthwhile, occasion, threshold)
        if plan is None:
            return None
        match await self._claim(occasion, plan):
            case Claimed() as claimed:
                return await self._made(occasion, plan, claimed)
            case Held():
                _count("held")
            case _:  # the session has gone on, or is gone; its next commit sees what is to be done
                _count("stale")
        return None

    async def _claim(self, occasion: Occasion, plan: Plan) -> Claimed | Held | Covered | Moved | Denied | Gone:
        return await self._checkpoints.claim(
            occasion.ref,
            new_nonce(),
            head=occasion.head,
            covers=plan.covers,
            claim_ms=self._rules.claim_ms,
            kept=len(occasion.elements),
        )

    async def _made(self, occasion: Occasion, plan: Plan, claimed: Claimed) -> Checkpoint | None:
        """Has the summary made, and stores it; None if what it stands for has changed."""
        before = occasion.checkpoint.summary if occasion.checkpoint is not None else b""
        covered = occasion.elements[plan.begins : plan.covers]
        wish = occasion.wishes.instructions
        bytes_max = self._transcript_bytes_max
        body = await asyncio.to_thread(
            summary.request, self._rules.model, before, covered, wish, transcript_bytes_max=bytes_max
        )
        async with asyncio.timeout(self._rules.deadline_s):
            text, cost = await summarized(self._claude, body)
        version = await self._checkpoints.store(occasion.ref, claimed, text, cost)
        _count("stale" if version is None else "stored")
        if version is None:
            return None
        telemetry.log.info("checkpoint", session=occasion.ref.id, version=version, covers=plan.covers)
        return Checkpoint(version, plan.covers, text)


def _newer(found: Checkpoint | None, occasion: Occasion) -> Checkpoint | None:
    """What was found, if it covers more than the session's checkpoint did."""
    return found if found is not None and found.covers > occasion.covered else None


async def _awaited(
    wait_ms: int, read: Callable[[], Awaitable[Checkpoint | None]], occasion: Occasion
) -> Checkpoint | None:
    """What somebody else has claimed; None if it is not there when their claim is over."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + wait_ms / 1000
    while (left_s := ends - loop.time()) > 0:
        await asyncio.sleep(min(_POLL_S, left_s))
        if newer := _newer(await read(), occasion):
            return newer
    return None


async def _result(making: asyncio.Task[Made]) -> Checkpoint | None:
    """What the task makes, which goes on if nobody waits for it any more."""
    await asyncio.wait({making})
    if making.cancelled():
        raise draining()
    made = making.result()
    if isinstance(made, BatonError):
        made.message = (
            f"The conversation has outgrown the window, and summarizing its oldest part failed: {made.message}"
        )
        made.claude_said = None  # it was about the summary
        raise made
    return made


def _as_told(error: Exception) -> BatonError:
    match error:
        case BatonError():
            return error
        case StoreUnavailable():
            return store_unavailable(error)
        case TimeoutError():
            return BatonError("upstream_timeout", "The summary did not come in time.")
    return internal_error()


def _count(outcome: telemetry.CheckpointOutcome) -> None:
    telemetry.CHECKPOINTS[outcome].inc()
