"""The loop that leaps: waits last exactly as long as they say, by its clock, and end in the order of their ends."""

import asyncio

import pytest

from tests.instruments.clock import LeapingLoop

HOUR_S = 3600.0


@pytest.mark.leaping
async def test_time_passes_only_while_everything_waits() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, LeapingLoop)
    ended: list[tuple[str, float]] = []

    async def wait(name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        ended.append((name, loop.time()))

    async with asyncio.TaskGroup() as group:
        for name, delay_s in (("third", 100 * HOUR_S), ("first", 0.5), ("second", HOUR_S)):
            group.create_task(wait(name, delay_s))
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert (ended, loop.time()) == ([], 0.0)
    assert ended == [("first", 0.5), ("second", HOUR_S), ("third", 100 * HOUR_S)]


def test_a_wait_without_an_end_is_told_at_once() -> None:
    with (
        pytest.raises(RuntimeError, match="never happen"),
        asyncio.Runner(loop_factory=LeapingLoop) as runner,
    ):
        runner.run(asyncio.Event().wait())
