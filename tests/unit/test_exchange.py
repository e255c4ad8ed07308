"""An exchange: what can interrupt it and when, its hand-over, and the drain. Claude is a generator the test feeds."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from service.claude import Claude
from service.errors import BatonError
from service.events import Event
from service.exchange import _HANDOVER_BYTES_MAX, Exchange, Exchanges, HandOver, OnDisconnect
from service.interrupt import Interrupt
from tests.unit.claude_events import answer_events, as_events, message_start, text_block

pytestmark = pytest.mark.leaping

EVENTS = as_events(answer_events(text_block(0, "Hel", "lo")))
BEGINNING = as_events([message_start(), *text_block(0, "Hel", whole=False)])
DEADLINE_S = 5.0


class Plain:
    """A dialect of one line an event, Claude's own JSON."""

    def __init__(self, *_: Any) -> None:
        pass

    def frames(self, events: Sequence[Event]) -> list[bytes]:
        return [b"%b\n" % event.raw for event in events]

    def failed(self, error: BatonError) -> bytes:
        return b""

    def whole(self) -> bytes:
        return b""


def shown_in(frames: bytes) -> list[Event]:
    return as_events([json.loads(line) for line in frames.splitlines()])


class FakeClaude:
    """Yields the batches it was given; ``None`` among them waits until ``go`` is set."""

    def __init__(self, *batches: list[Event] | None, fails: Exception | None = None) -> None:
        self.batches = batches
        self.fails = fails
        self.go = asyncio.Event()
        self.waiting = asyncio.Event()
        self.bodies: list[bytes] = []
        self.closed = False
        self.may_close = asyncio.Event()
        self.may_close.set()

    async def stream(self, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[list[Event], None]:
        self.bodies.append(body)
        try:
            for batch in self.batches:
                if batch is None:
                    self.waiting.set()
                    await self.go.wait()
                else:
                    yield [*batch]  # it is the taker's
            if self.fails is not None:
                raise self.fails
        finally:
            await self.may_close.wait()
            self.closed = True


class Settling(Exchange):
    """An exchange whose opening and settling the test holds up."""

    opening: Callable[[], Awaitable[None]] | None = None
    settling: Callable[[], Awaitable[None]] | None = None
    failures: list[BatonError | None]

    async def _converse(self) -> None:
        if self.opening is not None:
            await self.opening()
        await super()._converse()

    async def _settle(self, failure: BatonError | None) -> BatonError | None:
        self.failures = [*getattr(self, "failures", []), failure]
        if self.settling is not None:
            await self.settling()
        return failure


def exchange_with(
    claude: FakeClaude,
    *,
    streamed: bool = True,
    on_disconnect: OnDisconnect = "cancel",
    deadline_s: float = DEADLINE_S,
) -> Settling:
    return Settling(
        cast(Claude, claude),
        b"{}",
        {},
        render=Plain,
        streamed=streamed,
        on_disconnect=on_disconnect,
        deadline_s=deadline_s,
    )


def running(exchange: Exchange) -> asyncio.Task[None]:
    return asyncio.create_task(exchange.run())


async def soon(what: Awaitable[Any]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await what


async def all_of(exchange: Exchange) -> list[Event]:
    taken = []
    while (frames := await soon(exchange.frames())) is not None:
        taken += shown_in(frames)
    return taken


async def until_idle() -> None:
    """Lets everything that can go on without time or input go on."""
    for _ in range(20):
        await asyncio.sleep(0)


# The hand-over.


async def test_all_that_is_there_is_taken_at_once() -> None:
    hand_over = HandOver()
    for frame in (b"one ", b"two ", b"three"):
        await soon(hand_over.put(frame))
    hand_over.end()
    assert await soon(hand_over.take()) == b"one two three"
    assert await soon(hand_over.take()) is None
    assert await soon(hand_over.take()) is None


async def test_nothing_is_not_handed_over() -> None:
    hand_over = HandOver()
    await hand_over.put(b"")
    hand_over.end()
    assert await soon(hand_over.take()) is None


async def test_a_taker_waits_for_the_next_frames() -> None:
    hand_over = HandOver()
    taking = asyncio.create_task(hand_over.take())
    await until_idle()
    assert not taking.done()
    await hand_over.put(b"one")
    assert await soon(taking) == b"one"


async def test_a_slow_taker_holds_the_giver_up_by_bytes() -> None:
    """What matters is memory: a few large frames weigh as much as many small ones."""
    for size_bytes in (100, 10_000, _HANDOVER_BYTES_MAX):
        hand_over = HandOver()
        giving = asyncio.create_task(_give(hand_over, size_bytes, in_all_bytes=8 * _HANDOVER_BYTES_MAX))
        await until_idle()
        waits = []
        while (frames := await soon(hand_over.take())) is not None:
            waits.append(len(frames))
            await until_idle()
        assert sum(waits) == await soon(giving) >= 8 * _HANDOVER_BYTES_MAX
        assert max(waits) <= _HANDOVER_BYTES_MAX + size_bytes


async def test_an_abandoned_hand_over_holds_nobody_up_and_keeps_nothing() -> None:
    hand_over = HandOver()
    giving = asyncio.create_task(_give_too_much(hand_over))
    await until_idle()
    assert not giving.done()
    hand_over.abandon()
    await soon(giving)
    await soon(_give_too_much(hand_over))
    hand_over.end()
    assert await soon(hand_over.take()) is None


async def _give_too_much(hand_over: HandOver) -> None:
    await _give(hand_over, 10_000, in_all_bytes=2 * _HANDOVER_BYTES_MAX)


async def _give(hand_over: HandOver, size_bytes: int, *, in_all_bytes: int) -> int:
    given = 0
    while given < in_all_bytes:
        await hand_over.put(b"x" * size_bytes)
        given += size_bytes
    hand_over.end()
    return given


# One exchange.


async def test_a_whole_exchange_shows_everything_and_the_end_last() -> None:
    claude = FakeClaude(EVENTS[:2], EVENTS[2:])
    exchange = exchange_with(claude)
    task = running(exchange)
    assert await all_of(exchange) == EVENTS
    await soon(task)
    assert exchange.error is None
    assert exchange.opened.is_set()
    assert (claude.bodies, claude.closed) == ([b"{}"], True)


async def test_the_end_is_told_only_after_settling() -> None:
    settle = asyncio.Event()

    async def hold() -> None:
        await settle.wait()

    exchange = exchange_with(FakeClaude(EVENTS))
    exchange.settling = hold
    task = running(exchange)
    shown = shown_in(await soon(exchange.frames()))
    assert [event.type for event in shown][-1] == "content_block_stop"
    waiting = asyncio.create_task(exchange.frames())
    await until_idle()
    assert not waiting.done()
    settle.set()
    assert [event.type for event in shown_in(await soon(waiting))] == ["message_delta", "message_stop"]
    await soon(task)


async def test_what_is_not_streamed_is_only_waited_for() -> None:
    exchange = exchange_with(FakeClaude(*[[event] for event in EVENTS]), streamed=False)
    task = running(exchange)
    await soon(exchange.end())
    assert exchange.answer.text() == "Hello"
    assert await soon(exchange.frames()) is None
    await soon(task)


async def test_an_error_of_claudes_is_told_after_what_was_shown() -> None:
    failed = BatonError("upstream_nonsense", "Broke off.")
    exchange = exchange_with(FakeClaude(BEGINNING, fails=failed))
    exchange.headers["x-turn-id"] = exchange.id
    task = running(exchange)
    assert await all_of(exchange) == BEGINNING
    await soon(task)
    assert exchange.error is failed
    assert failed.headers == {"x-turn-id": exchange.id}


async def test_headers_of_the_error_itself_stand() -> None:
    failed = BatonError("turn_in_progress", "Wait.", headers={"x-turn-id": "turn_other"})
    exchange = exchange_with(FakeClaude(fails=failed))
    exchange.headers |= {"x-turn-id": exchange.id, "x-session-id": "sess_x"}
    await soon(running(exchange))
    assert exchange.error is not None
    assert exchange.error.headers == {"x-turn-id": "turn_other", "x-session-id": "sess_x"}


async def test_a_fault_of_ours_is_told_without_its_words() -> None:
    exchange = exchange_with(FakeClaude(fails=RuntimeError("secret words")))
    await soon(running(exchange))
    assert exchange.error is not None
    assert exchange.error.code == "internal_error"
    assert "secret" not in str(exchange.error)
    assert exchange.failures == [exchange.error]


async def test_a_fault_in_settling_is_told_too() -> None:
    async def fail() -> None:
        raise RuntimeError("secret words")

    exchange = exchange_with(FakeClaude(EVENTS))
    exchange.settling = fail
    task = running(exchange)
    shown = await all_of(exchange)
    await soon(task)
    assert "message_stop" not in [event.type for event in shown]
    assert exchange.error is not None
    assert exchange.error.code == "internal_error"


@pytest.mark.parametrize("why", list(Interrupt))
async def test_an_interrupt_stops_claude_and_is_told(why: Interrupt) -> None:
    claude = FakeClaude(BEGINNING, None)
    exchange = exchange_with(claude)
    task = running(exchange)
    await soon(claude.waiting.wait())
    exchange.interrupt(why)
    exchange.interrupt(Interrupt.DEADLINE)  # the first reason counts
    assert await all_of(exchange) == BEGINNING
    await soon(task)
    assert claude.closed
    assert exchange.error is not None
    assert (exchange.error.code, exchange.error.message) == (why.told().code, why.told().message)


async def test_an_interrupt_while_opening_asks_claude_nothing() -> None:
    claude = FakeClaude(EVENTS)
    exchange = exchange_with(claude)
    opening = asyncio.Event()
    exchange.opening = _never(opening)
    task = running(exchange)
    await soon(opening.wait())
    assert not exchange.opened.is_set()
    exchange.interrupt(Interrupt.DRAINING)
    await soon(task)
    assert claude.bodies == []
    assert exchange.opened.is_set()
    assert exchange.error is not None


async def test_an_interrupt_before_the_first_step_counts() -> None:
    claude = FakeClaude(EVENTS)
    exchange = exchange_with(claude)
    task = running(exchange)
    exchange.interrupt(Interrupt.DRAINING)
    await soon(task)
    assert claude.bodies == []
    assert exchange.error is not None
    assert exchange.error.code == "draining"


async def test_settling_is_not_interrupted() -> None:
    settling, settle = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        settling.set()
        await settle.wait()

    exchange = exchange_with(FakeClaude(EVENTS))
    exchange.settling = hold
    task = running(exchange)
    await soon(settling.wait())
    exchange.hang_up()
    exchange.interrupt(Interrupt.DRAINING)
    await until_idle()
    assert not task.done()
    settle.set()
    await soon(task)
    assert exchange.error is None
    assert exchange.failures == [None]


async def test_an_interrupt_after_the_end_changes_nothing() -> None:
    exchange = exchange_with(FakeClaude(EVENTS))
    task = running(exchange)
    taken = await all_of(exchange)
    await soon(task)
    exchange.interrupt(Interrupt.CANCELLED)
    exchange.hang_up()
    assert (taken, exchange.error) == (EVENTS, None)


async def test_the_deadline() -> None:
    claude = FakeClaude(BEGINNING, None)
    exchange = exchange_with(claude, deadline_s=0.05)
    await soon(running(exchange))
    assert exchange.error is not None
    assert exchange.error.code == "turn_timeout"
    assert claude.closed


async def test_after_the_deadline_no_other_reason_counts() -> None:
    claude = FakeClaude(BEGINNING, None)
    claude.may_close.clear()
    exchange = exchange_with(claude, deadline_s=0.02)
    task = running(exchange)
    await soon(claude.waiting.wait())
    await asyncio.sleep(0.05)  # the deadline has passed, and the connection to Claude is being closed
    exchange.hang_up()
    claude.may_close.set()
    await soon(task)
    assert exchange.error is not None
    assert exchange.error.code == "turn_timeout"


async def test_a_caller_who_hangs_up_stops_claude() -> None:
    claude = FakeClaude(BEGINNING, None)
    exchange = exchange_with(claude)
    task = running(exchange)
    await soon(claude.waiting.wait())
    exchange.hang_up()
    await soon(task)
    assert claude.closed
    assert exchange.error is not None
    assert exchange.error.code == "turn_interrupted"


async def test_a_caller_who_hangs_up_may_want_the_answer_all_the_same() -> None:
    claude = FakeClaude(BEGINNING, None, EVENTS[3:])
    exchange = exchange_with(claude, on_disconnect="continue")
    task = running(exchange)
    await soon(claude.waiting.wait())
    exchange.hang_up()
    claude.go.set()
    await soon(task)
    assert exchange.error is None
    assert exchange.answer.text() == "Hello"


async def test_a_reader_who_is_too_slow_is_interrupted_where_it_waits() -> None:
    pieces = as_events([message_start(), *text_block(0, *["x" * 10_000] * 100)])
    claude = FakeClaude(*[[event] for event in pieces])
    exchange = exchange_with(claude)
    task = running(exchange)
    await until_idle()
    assert not task.done()
    exchange.interrupt(Interrupt.DRAINING)
    await soon(task)
    handed = sum(len(event.raw) for event in await all_of(exchange))
    assert _HANDOVER_BYTES_MAX < handed < _HANDOVER_BYTES_MAX + 20_000
    assert exchange.error is not None


# All exchanges of a replica.


def _never(reached: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        reached.set()
        await asyncio.Event().wait()

    return wait


async def test_no_more_exchanges_than_allowed() -> None:
    exchanges = Exchanges(running_max=2)
    held = FakeClaude(None, EVENTS)
    for _ in range(2):
        exchanges.admit()
        exchanges.start(exchange_with(held))
    for refused in (exchanges.admit, lambda: exchanges.start(exchange_with(held))):
        with pytest.raises(BatonError) as caught:
            refused()
        assert caught.value.code == "overloaded"
        assert caught.value.response_headers()["retry-after"] == "1"
    held.go.set()
    await none_runs(exchanges)


async def test_a_drain_refuses_new_exchanges_and_lets_running_ones_finish() -> None:
    exchanges = Exchanges(running_max=10)
    claude = FakeClaude(BEGINNING, None, EVENTS[3:])
    exchange = exchange_with(claude)
    exchanges.start(exchange)
    await soon(claude.waiting.wait())
    exchanges.drain()
    assert exchanges.draining
    for refused in (exchanges.admit, lambda: exchanges.start(exchange_with(claude))):
        with pytest.raises(BatonError) as caught:
            refused()
        assert caught.value.code == "draining"
    await until_idle()
    assert exchanges.running == 1
    claude.go.set()
    await none_runs(exchanges)
    assert exchange.error is None


async def test_a_drain_stops_at_once_what_has_not_asked_claude_yet() -> None:
    exchanges = Exchanges(running_max=10)
    opening = asyncio.Event()
    waiter = exchange_with(FakeClaude(EVENTS))
    waiter.opening = _never(opening)
    exchanges.start(waiter)
    fresh = exchange_with(FakeClaude(EVENTS))
    await soon(opening.wait())
    exchanges.start(fresh)  # has not had its first step when the drain begins
    exchanges.drain()
    await none_runs(exchanges)
    for exchange in (waiter, fresh):
        assert exchange.error is not None
        assert exchange.error.code == "draining"
        assert exchange.error.status == 503


async def test_what_runs_is_ended_by_an_interrupt() -> None:
    exchanges = Exchanges(running_max=10)
    claude = FakeClaude(BEGINNING, None)
    exchange = exchange_with(claude)
    exchanges.start(exchange)
    await soon(claude.waiting.wait())
    exchanges.drain()
    exchanges.interrupt()
    await none_runs(exchanges)
    assert claude.closed
    assert exchange.error is not None
    assert exchange.error.message == Interrupt.DRAINING.told().message


async def settling(exchanges: Exchanges) -> tuple[Settling, asyncio.Event]:
    """An exchange of these whose settling waits for the event."""
    begun, settle = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        begun.set()
        await settle.wait()

    exchange = exchange_with(FakeClaude(EVENTS))
    exchange.settling = hold
    exchanges.start(exchange)
    await soon(begun.wait())
    return exchange, settle


async def test_an_interrupt_does_not_touch_settling() -> None:
    exchanges = Exchanges(running_max=10)
    exchange, settle = await settling(exchanges)
    exchanges.interrupt()
    await until_idle()
    assert exchanges.running == 1
    settle.set()
    await none_runs(exchanges)
    assert exchange.error is None


async def test_a_caller_is_told_of_a_verdict_that_is_left_behind() -> None:
    exchanges = Exchanges(running_max=10)
    exchange, _ = await settling(exchanges)
    exchanges.leave()
    await soon(exchange.end())
    await none_runs(exchanges)
    assert exchange.error is not None
    assert exchange.error.code == "session_save_unknown"
    assert exchange.id in exchange.error.message


async def test_an_answer_that_is_settled_is_left_as_it_is_though_nobody_takes_it() -> None:
    frames = Plain().frames(as_events(answer_events(text_block(0, ""))))
    full = as_events(answer_events(text_block(0, "x" * (_HANDOVER_BYTES_MAX - sum(map(len, frames)) + 1))))
    exchanges = Exchanges(running_max=10)
    exchange = exchange_with(FakeClaude(full))
    exchanges.start(exchange)
    await until_idle()
    assert exchange.failures == [None]
    assert exchanges.running == 1  # its last frames do not fit
    exchanges.leave()
    await none_runs(exchanges)
    assert exchange.error is None
    assert await all_of(exchange) == full


async def none_runs(exchanges: Exchanges) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while exchanges.running:
            await until_idle()
