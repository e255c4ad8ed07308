"""One request to Claude and the caller who waits for the answer.

An exchange runs as a task of its own, so that nothing that happens to the caller's connection can stop it in the middle
of a step that must be finished. Its life: *opening* (what must happen before Claude is asked), *relaying* (Claude's
events, to the answer and to the caller), *settling* (what must be certain before the caller is told the end), *told*.

While it opens and relays, one thing can interrupt it: the first of its deadline, the caller hanging up, a cancel, the
loss of its lease or of its key, the replica's drain. Settling is never interrupted; it has its own time limits.

What the caller is shown is rendered here, in the caller's dialect, and handed over as frames. The hand-over has a
bounded size: a slow reader slows Claude down, not us.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, Literal, Protocol, get_args

from service import telemetry
from service.claude import Claude
from service.errors import BatonError, internal_error
from service.events import Event
from service.interrupt import Interrupt, draining
from service.transcript import Answer
from storage.keys import new_turn_id
from storage.tracebacks import let_go

_HANDOVER_BYTES_MAX: Final = 256 * 1024
_CLAUDES_NAME: Final = re.compile(r"claude-[a-z0-9.-]{1,60}")

OnDisconnect = Literal["cancel", "continue"]
ON_DISCONNECT: Final[tuple[OnDisconnect, ...]] = get_args(OnDisconnect)


class Rendering(Protocol):
    """One answer in a caller's dialect; made of an `Answer` that grows meanwhile."""

    def frames(self, events: Sequence[Event]) -> list[bytes]:
        """The server-sent events, whole, that show these events of Claude's; possibly none."""

    def failed(self, error: BatonError) -> bytes:
        """The last server-sent event of a stream that fails."""

    def whole(self) -> bytes:
        """The whole answer as one JSON body."""


Render = Callable[[str, int, Answer], Rendering]
"""Makes the rendering of an answer: turn id, time of creation (seconds since 1970), the answer."""


class HandOver:
    """Frames from the exchange to whoever answers the caller; at most one taker."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._size_bytes = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False
        self._abandoned = False

    @property
    def abandoned(self) -> bool:
        """Whether nobody takes anything any more."""
        return self._abandoned

    async def put(self, frames: bytes) -> None:
        """Hands frames over; waits while too much is untaken. Nobody takes them any more? Then they are dropped."""
        if self._abandoned or not frames:
            return
        self._frames.append(frames)
        self._size_bytes += len(frames)
        self._changed.set()
        while self._size_bytes > _HANDOVER_BYTES_MAX:
            self._room.clear()
            await self._room.wait()

    async def take(self) -> bytes | None:
        """All that is there; None once the exchange has been told its end."""
        while not self._frames:
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        taken = b"".join(self._frames)
        self._clear()
        return taken

    def end(self) -> None:
        """Nothing will be put any more."""
        self._ended = True
        self._changed.set()

    def abandon(self) -> None:
        """Nothing will be taken any more."""
        self._abandoned = True
        self._clear()

    def _clear(self) -> None:
        self._frames.clear()
        self._size_bytes = 0
        self._room.set()


class Exchange:
    """An exchange that stores nothing; turn.py has the one that does.

    Args:
        claude: where it goes.
        body: the Messages request, ready to be sent.
        claude_headers: for Claude, in the place of the SDK's own.
        render: the caller's dialect.
        streamed: whether the caller sees events as they come.
        on_disconnect: what the caller's hanging up means.
        deadline_s: of opening and relaying together.

    Attributes:
        id: of the exchange; a turn's is the turn id.
        created_s: when it was asked for, seconds since 1970.
        answer: Claude's answer as far as it came.
        opened: set once Claude may be asked (or will never be).
        headers: about the exchange, for the response; complete once ``opened`` is set, but for
            what a summary that the exchange waits for leads to.
        error: what the caller is told instead of the end; None after a complete exchange.
        first_event_s: how long Claude took to begin; None as long as it has not.
    """

    def __init__(
        self,
        claude: Claude,
        body: bytes,
        claude_headers: Mapping[str, str],
        *,
        render: Render,
        streamed: bool,
        on_disconnect: OnDisconnect,
        deadline_s: float,
    ) -> None:
        self._claude = claude
        self._body = body
        self._claude_headers = claude_headers
        self._render = render
        self._streamed = streamed
        self._on_disconnect = on_disconnect
        self._deadline_s = deadline_s
        self._scope: asyncio.Timeout | None = None
        self._interrupt: Interrupt | None = None
        self._settling = self._settled = False
        self._hand_over = HandOver()
        self._ended = asyncio.Event()
        self._rendering: Rendering | None = None
        self.id = new_turn_id()
        self.created_s = int(time.time())
        self.answer = Answer()
        self.opened = asyncio.Event()
        self.headers: dict[str, str] = {}
        self.error: BatonError | None = None
        self.first_event_s: float | None = None
        self._answer_s: float | None = None
        if not streamed:
            self._hand_over.abandon()

    # What the caller's side does.

    async def frames(self) -> bytes | None:
        """The next frames to show, all that are there; None at the end, then see ``error``."""
        return await self._hand_over.take()

    async def end(self) -> None:
        """Waits until everything is settled."""
        await self._ended.wait()

    def whole(self) -> bytes:
        """The answer as one JSON body; after an end without ``error``."""
        return self.rendering.whole()

    def failed(self, error: BatonError) -> bytes:
        """The last frame of a stream that ends with this error."""
        return self.rendering.failed(error)

    def hang_up(self) -> None:
        """The caller has gone."""
        self._hand_over.abandon()
        if self._on_disconnect == "cancel":
            self.interrupt(Interrupt.HUNG_UP)

    def interrupt(self, why: Interrupt) -> None:
        """Stops opening or relaying; does nothing once settling has begun. The first reason counts."""
        timed_out = self._scope is not None and self._scope.expired()
        if self._settling or timed_out or self._interrupt is not None:
            return
        self._interrupt = why
        if self._scope is not None:  # else the task has not had its first step; it will find the reason
            self._scope.reschedule(asyncio.get_running_loop().time())

    def leave(self) -> None:
        """The replica ends first: nothing more is handed over, and a caller who was to be told a verdict is told so."""
        if not self._settled:
            unknown = f"This replica had to end; whether turn {self.id} was stored is not known."
            self.error = BatonError("session_save_unknown", unknown, headers=self.headers)
        self._hand_over.end()
        self._ended.set()

    # What the exchange does.

    async def run(self) -> None:
        """The task. Never raises; what went wrong is in ``error``."""
        started = time.perf_counter()
        with telemetry.TURNS_RUNNING.track_inprogress():
            failure = await self._interruptible()
            self._body = b""  # Claude is asked nothing any more, and the caller may take its time
            self.opened.set()
            try:
                self.error = await self._settle(failure)
            except Exception as error:  # the last resort of a task that nobody awaits for its result
                self.error = _fault(error)
            self._settled = True
            self._tell_end(time.perf_counter() - started)
            if self.error is None and self._streamed:
                await self._hand_over_or_gone(self._last_frames())
            elif self.error is not None:
                self.error.headers = self.headers | self.error.headers
            self._hand_over.end()
            self._ended.set()

    def _tell_end(self, duration_s: float) -> None:
        """Counts the exchange, and one line of the log tells it: how it ended, and what it took."""
        telemetry.PHASE_SECONDS["turn"].observe(duration_s)
        usage, error = self.answer.tokens(), self.error
        telemetry.log.info(
            "turn",
            turn=self.id,
            outcome=error.code if error is not None else "complete",
            model=_model_of(self.answer),
            streamed=self._streamed,
            duration_ms=_ms(duration_s),
            first_event_ms=_ms(self.first_event_s),
            answer_ms=_ms(self._answer_s),
            input_tokens=usage.input,
            output_tokens=usage.output,
            cache_read_tokens=usage.cache_read,
            cache_written_tokens=usage.cache_written,
            **self._facts(),
        )

    def _facts(self) -> dict[str, str | int | float | None]:
        """What else the log tells of this kind of exchange."""
        return {}

    @property
    def rendering(self) -> Rendering:
        """The answer in the caller's dialect; asked for once it is certain whose answer it is."""
        if self._rendering is None:
            self._rendering = self._render(self.id, self.created_s, self.answer)
        return self._rendering

    def _rendered(self, events: Sequence[Event]) -> bytes:
        return b"".join(self.rendering.frames(events))

    def _last_frames(self) -> bytes:
        """The frames that say that the answer is complete."""
        return self._rendered(self.answer.held)

    async def _hand_over_or_gone(self, frames: bytes) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._hand_over.put(frames)
        except TimeoutError:
            self._hand_over.abandon()

    async def _interruptible(self) -> BatonError | None:
        """Opens and relays; returns what stopped it, None if the answer is complete."""
        try:
            async with asyncio.timeout(self._deadline_s) as scope:
                self._scope = scope
                if self._interrupt is not None:
                    raise TimeoutError
                try:
                    await self._converse()
                finally:
                    self._settling = True
        except TimeoutError:
            self._interrupt = self._interrupt or Interrupt.DEADLINE
            if self._interrupt is Interrupt.DRAINING and not self.opened.is_set():
                return draining()
            return self._interrupt.told()
        except BatonError as error:
            let_go(error)
            return error
        except Exception as error:  # reported as ours; the session must be settled all the same
            return _fault(error)
        return None

    async def _converse(self) -> None:
        """Opens and relays; sets ``opened`` in between."""
        self.opened.set()
        await self._relay(self._body)

    async def _relay(self, body: bytes) -> None:
        asked_at = time.perf_counter()
        try:
            async with aclosing(self._claude.stream(body, self._claude_headers)) as batches:
                async for batch in batches:
                    if self.first_event_s is None:
                        self.first_event_s = time.perf_counter() - asked_at
                        telemetry.PHASE_SECONDS["first_event"].observe(self.first_event_s)
                    shown = self.answer.feed(batch)
                    frames = self._shown(shown) if self._streamed else b""
                    # Parsed they are many times as large as their bytes, and the caller may take its time.
                    shown.clear()
                    batch.clear()
                    await self._hand_over.put(frames)
            self._answer_s = time.perf_counter() - asked_at
            telemetry.PHASE_SECONDS["answer"].observe(self._answer_s)
        finally:
            telemetry.count_tokens(self.answer.tokens())

    def _shown(self, events: list[Event]) -> bytes:
        """The frames of events that may be shown at once, of a streamed exchange."""
        return b"" if self._hand_over.abandoned else self._rendered(events)

    async def _settle(self, failure: BatonError | None) -> BatonError | None:
        """Whatever must be certain before the caller is told; returns what it is told."""
        return failure


def _model_of(answer: Answer) -> str | None:
    """The model as Claude named it; any other name may be a text of the caller's that a gateway tells again."""
    named = answer.message.get("model")
    return named if named is None or _CLAUDES_NAME.fullmatch(named) else "other"


def _ms(duration_s: float | None) -> float | None:
    return None if duration_s is None else round(duration_s * 1000, 1)


def _fault(error: Exception) -> BatonError:
    telemetry.log.error("exchange_failed", exc_info=error)
    let_go(error)
    return internal_error()


class Exchanges:
    """All exchanges of this replica: how many there may be, and how they end with it (life.py)."""

    def __init__(self, running_max: int) -> None:
        self._running_max = running_max
        self._running: dict[asyncio.Task[None], Exchange] = {}
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether new exchanges are refused."""
        return self._draining

    @property
    def running(self) -> int:
        """How many there are."""
        return len(self._running)

    def admit(self) -> None:
        """Refuses early, before anything was read or paid for.

        Raises:
            BatonError: draining or overloaded.
        """
        if self._draining:
            telemetry.REFUSALS["draining"].inc()
            raise draining()
        if len(self._running) >= self._running_max:
            telemetry.REFUSALS["turns"].inc()
            raise BatonError("overloaded", "This replica runs all the turns it may; try again.", retry_after_s=1)

    def start(self, exchange: Exchange, on_end: Callable[[], object] = lambda: None) -> None:
        """Runs an exchange as a task that outlives its request; calls ``on_end`` when it is settled.

        Raises:
            BatonError: as `admit`, for what has changed since the request was admitted.
        """
        self.admit()
        task = asyncio.create_task(exchange.run())
        self._running[task] = exchange
        task.add_done_callback(lambda done: self._running.pop(done, None))
        task.add_done_callback(lambda _: on_end())

    def drain(self) -> None:
        """From now on none is begun, and those that have not asked Claude yet end: another replica can serve them."""
        self._draining = True
        for exchange in list(self._running.values()):
            if not exchange.opened.is_set():
                exchange.interrupt(Interrupt.DRAINING)

    def interrupt(self) -> None:
        """Stops all that run; each is settled, keeping what it can."""
        for exchange in list(self._running.values()):
            exchange.interrupt(Interrupt.DRAINING)

    def leave(self) -> None:
        """Settles no more: callers who still wait are told so, and what has no verdict is as after a crash."""
        for task, exchange in list(self._running.items()):
            exchange.leave()
            task.cancel()
