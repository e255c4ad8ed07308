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
the same round trip, and the one that runs meanwhile goes on with what it has read. A replica that drains lets tasks
that run finish with its turns; what is left is ended, and leaves its claim. So does a summary that fails: its claim
keeps everybody from paying for another at once, and the next commit after its end tries again.

There is a bound on how many run at once. Nothing is queued behind it: a session that is over its threshold says so
again with its next turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from service import telemetry
from service.claude import Claude
from service.context import compacted, summary
from service.context.compacted import Plan
from service.context.view import policy
from service.errors import BatonError, role_too_small, session_not_found
from service.model_table import Model
from service.transcript import Answer
from storage.checkpoints import Checkpoint, Checkpoints, Cost, Wishes
from storage.keys import SessionRef, new_nonce
from storage.results import Claimed, Covered, Denied, Gone, Held, Moved, StoreUnavailable
from storage.turns import Usage

THRESHOLD: Final = 0.8
"""Of the window."""
_KEPT: Final = 0.3
"""Of the threshold, that the turns may have which are kept."""
_GAIN_MIN: Final = 0.1
"""Of what is sent, that must be newly covered, or of what one summary takes; less is not worth it."""
_OF_WINDOW: Final = 0.5
"""Of the summarizing model's window, that the transcript may have. What is beyond is left to the next checkpoint."""
_BYTES_A_TOKEN: Final = 2
"""Cautious: of whatever was not counted."""
_CLAIM: Final = 1.25
"""Of the deadline: how long a claim holds. It decides nothing but whether another replica pays, too."""


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
    """

    ref: SessionRef
    head: str
    elements: Sequence[bytes]
    checkpoint: Checkpoint | None
    wishes: Wishes
    tokens: int

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
        self._tasks: set[asyncio.Task[None]] = set()
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
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

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
            BatonError: overloaded, turn_in_progress (the session goes on at this moment), session_not_found,
                role_too_small, store_unavailable.
        """
        if self._draining or self.running >= self._rules.running_max:
            raise BatonError("overloaded", "This replica makes all the checkpoints it may; try again.", retry_after_s=5)
        self._asked_for += 1
        try:
            occasion = await read()
            plan = await asyncio.to_thread(self._plan, occasion, 0)
            if plan is None:
                return False
            answer = await self._claim(occasion, plan)
        finally:
            self._asked_for -= 1
        match answer:
            case Claimed() as claimed:
                self._start(occasion.ref.id, self._made(occasion, plan, claimed))
            case Moved():
                raise BatonError("turn_in_progress", "Other turns keep coming first; try again.", retry_after_s=1)
            case Covered():
                return False
            case Denied(role):
                raise role_too_small(role, "writer")
            case Gone():
                raise session_not_found()
            case Held():
                pass
        return True

    def _threshold(self, wishes: Wishes, model: str) -> int:
        """Tokens beyond which a session is compacted; 0 if nothing says so, or the window is not known yet."""
        window = self._rules.model_of(model).input_tokens_max
        automatic = policy(wishes.context_policy, "compact" if self._rules.automatic else "error") == "compact"
        bounds = [wishes.tokens_target, round(THRESHOLD * window) if window and automatic else 0]
        return min(filter(None, bounds), default=0)

    def _plan(self, occasion: Occasion, keep_bytes: int) -> Plan | None:
        return compacted.plan(
            occasion.elements, occasion.covered, keep_bytes=keep_bytes, cover_bytes_max=self._transcript_bytes_max
        )

    @property
    def _transcript_bytes_max(self) -> int:
        window = self._rules.model_of(self._rules.model).window_tokens
        return min(round(_OF_WINDOW * window * _BYTES_A_TOKEN), summary.TRANSCRIPT_BYTES_MAX)

    def _worthwhile(self, occasion: Occasion, threshold: int) -> Plan | None:
        """What an automatic checkpoint would cover, if that is worth it."""
        sent_bytes = compacted.text_bytes(occasion.elements[occasion.covered :])
        plan = self._plan(occasion, round(_KEPT * threshold * sent_bytes / occasion.tokens))
        least_bytes = _GAIN_MIN * min(sent_bytes, self._transcript_bytes_max)
        worthwhile = plan and compacted.text_bytes(occasion.elements[plan.begins : plan.covers]) >= least_bytes
        return plan if worthwhile else None

    def _start(self, session: str, making: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._watched(session, making))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watched(self, session: str, making: Coroutine[Any, Any, None]) -> None:
        with telemetry.CHECKPOINTS_RUNNING.track_inprogress():
            try:
                await making
            except asyncio.CancelledError:
                _count("ended")
                raise
            except (BatonError, StoreUnavailable, TimeoutError) as error:
                _count("failed")
                code = getattr(error, "code", type(error).__name__)
                telemetry.log.warning("checkpoint_failed", session=session, code=code)
            except Exception as error:
                _count("failed")
                telemetry.log.error("checkpoint_broken", session=session, exc_info=error)

    async def _automatic(self, occasion: Occasion, threshold: int) -> None:
        plan = await asyncio.to_thread(self._worthwhile, occasion, threshold)
        if plan is None:
            return
        match await self._claim(occasion, plan):
            case Claimed() as claimed:
                await self._made(occasion, plan, claimed)
            case Held():
                _count("held")
            case _:  # the session has gone on, or is gone; its next commit sees what is to be done
                _count("stale")

    async def _claim(self, occasion: Occasion, plan: Plan) -> Claimed | Held | Covered | Moved | Denied | Gone:
        return await self._checkpoints.claim(
            occasion.ref,
            new_nonce(),
            head=occasion.head,
            covers=plan.covers,
            claim_ms=self._rules.claim_ms,
        )

    async def _made(self, occasion: Occasion, plan: Plan, claimed: Claimed) -> None:
        """Has the summary made, and stores it."""
        before = occasion.checkpoint.summary if occasion.checkpoint is not None else b""
        covered = occasion.elements[plan.begins : plan.covers]
        wish = occasion.wishes.instructions
        bytes_max = self._transcript_bytes_max
        body = await asyncio.to_thread(
            summary.request, self._rules.model, before, covered, wish, transcript_bytes_max=bytes_max
        )
        async with asyncio.timeout(self._rules.deadline_s):
            answer = await self._asked(body)
        used = answer.tokens()
        text = summary.text_of(answer.content())
        if answer.stop_reason != "end_turn" or not 0 < len(text.encode()) <= summary.BYTES_MAX:
            raise BatonError("upstream_nonsense", f"The summary ended with {answer.stop_reason}.")
        version = await self._checkpoints.store(occasion.ref, claimed, text.encode(), _cost(used))
        _count("stale" if version is None else "stored")
        if version is not None:
            telemetry.log.info("checkpoint", session=occasion.ref.id, version=version, covers=plan.covers)

    async def _asked(self, body: bytes) -> Answer:
        answer = Answer()
        try:
            async with aclosing(self._claude.stream(body)) as batches:
                async for batch in batches:
                    answer.feed(batch)
        finally:
            telemetry.count_tokens(answer.tokens())
        return answer


def _cost(used: Usage) -> Cost:
    return Cost(used.output, used.input + used.cache_read + used.cache_written, used.output)


def _count(outcome: telemetry.CheckpointOutcome) -> None:
    telemetry.CHECKPOINTS[outcome].inc()
