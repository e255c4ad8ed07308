"""The list of models: one question for all who wait, a deadline, failures that stand; and what is known meanwhile."""

import asyncio
from typing import Any, cast

import pytest

from service import models, telemetry
from service.claude import Claude
from service.errors import BatonError
from service.model_table import NEWEST, TABLE, Model, ModelTable
from service.models import Models
from service.simulator.models import MODELS

pytestmark = pytest.mark.anyio

REFUSED = BatonError("upstream_refused", "Claude refused this service's own credential or account.")


class FakeClaude:
    """Answers with what it is given, the last again and again, once ``go`` is set. A name stands for a model."""

    def __init__(self, *answers: list[Any] | Exception) -> None:
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
        if isinstance(answer, Exception):
            raise answer
        return [{"id": told} if isinstance(told, str) else told for told in answer]


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
    return Models(cast(Claude, claude), {"gpt-4o": "claude-x"}, ModelTable())


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


async def until_idle(listing: Models) -> None:
    """Waits for what runs in the background."""
    if listing._refreshing is not None:
        await asyncio.wait([listing._refreshing])


async def test_an_alias_is_told_as_its_model_is() -> None:
    told = {"id": "claude-x", "display_name": "Claude X", "max_tokens": 5, "new": [1]}
    listing = over(FakeClaude([told, "claude-y"]))
    assert await listing.list() == [told, {"id": "claude-y"}, {**told, "id": "gpt-4o"}]
    assert told["id"] == "claude-x"


async def test_an_alias_hides_a_model_of_its_name_and_may_lead_to_one_that_is_not_listed() -> None:
    claude = cast(Claude, FakeClaude(["claude-x", "claude-y"]))
    listing = Models(claude, {"claude-y": "claude-x", "old": "claude-0"}, ModelTable())
    unlisted = {"type": "model", "display_name": "claude-0", "created_at": "1970-01-01T00:00:00Z"}
    assert await listing.list() == [
        {"id": "claude-x"},
        {"id": "claude-y"},
        {"id": "old", "lifecycle": "active", **unlisted},
    ]


async def test_of_a_model_is_known_what_the_api_and_the_table_tell() -> None:
    listing = over(FakeClaude([MODELS["claude-haiku-4-5"].info(), MODELS["claude-sonnet-5-5"].info()]))
    assert listing.of("claude-haiku-4-5") == Model(TABLE["claude-haiku-4-5"])  # not told yet
    await until_idle(listing)
    haiku = Model(TABLE["claude-haiku-4-5"], 64_000, 200_000, frozenset({"enabled", "disabled"}))
    assert listing.of("claude-haiku-4-5") == haiku
    assert listing.of("claude-sonnet-5-5").thinking_types == frozenset({"adaptive", "between_tools"})
    assert listing.of("claude-opus-5") == Model(TABLE["claude-opus-5"])
    assert listing.of("gpt-4o") == Model(NEWEST)  # aliases are for others


async def test_the_operator_says_the_windows_that_the_api_does_not() -> None:
    table = ModelTable(windows={"told": 1_000, "untold": 2_000, "unlisted": 3_000})
    known = Models(cast(Claude, FakeClaude([{"id": "told", "max_input_tokens": 9_000}, "untold-20260101"])), {}, table)
    assert known.of("untold").input_tokens_max == 2_000
    await known.list()
    found = {name: known.of(name).input_tokens_max for name in ("told", "untold-20260101", "unlisted", "other")}
    assert found == {"told": 9_000, "untold-20260101": 2_000, "unlisted": 3_000, "other": None}


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"max_tokens": None, "max_input_tokens": None, "capabilities": None},
        {"max_tokens": 0, "max_input_tokens": -1, "capabilities": []},
        {"max_tokens": "9", "max_input_tokens": True, "capabilities": {"thinking": {"supported": False}}},
        {"max_tokens": 1.5, "max_input_tokens": [], "capabilities": {"thinking": {"types": None}}},
    ],
    ids=str,
)
async def test_what_the_api_does_not_tell_is_not_known(told: dict[str, Any]) -> None:
    listing = over(FakeClaude([{"id": "claude-x", **told}]))
    await listing.list()
    assert listing.of("claude-x") == Model(NEWEST, None, None, None)


async def test_a_type_of_thinking_counts_if_it_is_said_to_be_supported() -> None:
    types = {"adaptive": {"supported": True}, "disabled": {"supported": False}, "enabled": {}, "new": None}
    listing = over(FakeClaude([{"id": "claude-x", "capabilities": {"thinking": {"types": types}}}]))
    await listing.list()
    assert listing.of("claude-x").thinking_types == frozenset({"adaptive"})


def test_an_answer_is_no_longer_than_the_model_can_make_it() -> None:
    assert Model(NEWEST).answer_tokens(32_000) == 32_000
    assert Model(NEWEST, output_tokens_max=64_000).answer_tokens(32_000) == 32_000
    assert Model(NEWEST, output_tokens_max=8_192).answer_tokens(32_000) == 8_192


async def test_an_old_list_is_used_while_it_is_asked_for_anew_once(clock: Clock) -> None:
    listing = over(claude := FakeClaude([{"id": "claude-x", "max_tokens": 1}], [{"id": "claude-x", "max_tokens": 2}]))
    await listing.list()
    clock.now_s += 299
    assert listing.of("claude-x").output_tokens_max == 1
    await asyncio.sleep(0)
    assert claude.asked == 1
    clock.now_s += 2
    claude.go.clear()
    claude.was_asked.clear()
    for _ in range(20):
        assert listing.of("claude-x").output_tokens_max == 1
        await asyncio.sleep(0)
    await claude.was_asked.wait()
    waiting = asyncio.create_task(listing.list())
    claude.go.set()
    assert [model.get("max_tokens") for model in await waiting] == [2, 2]
    assert listing.of("claude-x").output_tokens_max == 2
    assert claude.asked == 2


async def test_while_somebody_asks_nobody_does_so_in_the_background() -> None:
    listing = over(claude := FakeClaude(["claude-x"]))
    claude.go.clear()
    waiting = asyncio.create_task(listing.list())
    await claude.was_asked.wait()
    listing.of("claude-x")
    assert listing._refreshing is None
    claude.go.set()
    await waiting
    assert claude.asked == 1


async def test_a_failure_in_the_background_is_harmless_and_stands_as_any(clock: Clock) -> None:
    listing = over(claude := FakeClaude(REFUSED, ["claude-x"]))
    for _ in range(3):
        assert listing.of("claude-x") == Model(NEWEST)
        await until_idle(listing)
    assert claude.asked == 1
    assert await code(listing) == "upstream_refused"
    clock.now_s += 5
    listing.of("claude-x")
    await until_idle(listing)
    assert await ids(listing) == ["claude-x", "gpt-4o"]
    assert claude.asked == 2


async def test_a_surprise_in_the_background_is_logged_and_stands_as_a_failure_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(telemetry.log, "error", lambda event, **_: logged.append(event))
    listing = over(claude := FakeClaude(ZeroDivisionError()))
    for _ in range(3):
        listing.of("claude-x")
        await until_idle(listing)
    assert logged == ["models_refresh_failed"]
    assert claude.asked == 1


async def test_nothing_runs_on_when_it_is_closed() -> None:
    listing = over(claude := FakeClaude(["claude-x"]))
    claude.go.clear()
    listing.refresh()
    await claude.was_asked.wait()
    before = asyncio.all_tasks()
    await listing.aclose()
    assert len(before - asyncio.all_tasks()) == 1
    await listing.aclose()
