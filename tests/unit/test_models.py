"""The list of models: one question for all who wait, a deadline, and failures that stand for a while."""

import asyncio
from typing import Any, cast

import pytest

from service import models
from service.claude import Claude
from service.errors import BatonError
from service.models import Models

pytestmark = pytest.mark.anyio

REFUSED = BatonError("upstream_refused", "Claude refused this service's own credential or account.")


class FakeClaude:
    """Answers with what it is given, the last again and again, once ``go`` is set."""

    def __init__(self, *answers: list[str] | BatonError) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def models(self) -> list[dict[str, Any]]:
        self.asked += 1
        self.was_asked.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.go.wait()
        if isinstance(answer, BatonError):
            raise answer
        return [{"id": name} for name in answer]


class Clock:
    """In the place of `time`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(models, "time", clock)
    return clock


def over(claude: FakeClaude) -> Models:
    return Models(cast(Claude, claude), {"gpt-4o": "claude-x"})


async def ids(listing: Models) -> list[str]:
    return [model["id"] for model in await listing.list()]


async def code(listing: Models) -> str:
    with pytest.raises(BatonError) as caught:
        await listing.list()
    return caught.value.code


async def test_it_is_asked_again_when_it_is_no_longer_fresh(clock: Clock) -> None:
    listing = over(claude := FakeClaude(["claude-x"], ["claude-y"]))
    assert await ids(listing) == ["claude-x", "gpt-4o"]
    clock.now_s += 299
    assert await ids(listing) == ["claude-x", "gpt-4o"]
    clock.now_s += 2
    assert await ids(listing) == ["claude-y", "gpt-4o"]
    assert claude.asked == 2


async def test_all_who_wait_ask_once() -> None:
    listing = over(claude := FakeClaude(["claude-x"]))
    claude.go.clear()
    waiting = [asyncio.create_task(ids(listing)) for _ in range(20)]
    async with asyncio.timeout(5):
        await claude.was_asked.wait()
        claude.go.set()
        assert await asyncio.gather(*waiting) == [["claude-x", "gpt-4o"]] * 20
    assert claude.asked == 1


async def test_who_goes_away_leaves_the_question_to_the_next() -> None:
    listing = over(claude := FakeClaude(["claude-x"]))
    claude.go.clear()
    first, second = (asyncio.create_task(ids(listing)) for _ in range(2))
    async with asyncio.timeout(5):
        await claude.was_asked.wait()
        first.cancel()
        await asyncio.wait([first])
        claude.go.set()
        assert await second == ["claude-x", "gpt-4o"]
    assert claude.asked == 2


async def test_a_failure_is_told_again_for_a_while_and_then_asked_about(clock: Clock) -> None:
    listing = over(claude := FakeClaude(REFUSED, ["claude-x"]))
    for _ in range(3):
        assert await code(listing) == "upstream_refused"
    assert claude.asked == 1
    clock.now_s += 5
    assert await ids(listing) == ["claude-x", "gpt-4o"]


async def test_the_last_list_stands_while_claude_fails(clock: Clock) -> None:
    listing = over(claude := FakeClaude(["claude-x"], REFUSED))
    await ids(listing)
    clock.now_s += 301
    for _ in range(3):
        assert await ids(listing) == ["claude-x", "gpt-4o"]
    assert claude.asked == 2


async def test_claude_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_DEADLINE_S", 0.01)
    listing = over(claude := FakeClaude(["claude-x"]))
    claude.go.clear()
    async with asyncio.timeout(5):
        assert [await code(listing) for _ in range(3)] == ["upstream_timeout"] * 3
    assert claude.asked == 1
