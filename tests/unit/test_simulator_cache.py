"""The stand-in's prompt cache: the rules on markers, and what is read and written."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.simulator import rules
from service.simulator.cache import ENTRIES_MAX, LOOKBACK_BLOCKS, Cache, InputUsage
from service.simulator.errors import ApiError
from service.simulator.models import MODELS
from tests.unit.simulated import CALL, LOOK, RESULT, TEXT, Json, assistant, message_to, request, user

FIVE: Json = {"type": "ephemeral"}
HOUR: Json = {"type": "ephemeral", "ttl": "1h"}
LONG = "x" * 8000  # 2,000 tokens
TOKENS = 2000


def text(said: str, control: Json | None = None) -> Json:
    return {"type": "text", "text": said, "cache_control": control}


def used(body: Json, cache: Cache) -> InputUsage:
    accepted = rules.check_create(body)
    return cache.use(accepted.prompt, accepted.markers, accepted.model)


def refused(body: Json) -> str:
    with pytest.raises(ApiError) as caught:
        rules.check_create(body)
    assert caught.value.status == 400
    return caught.value.message


# --- markers ---------------------------------------------------------------------------------------------------

CONTROLS: list[tuple[Any, str]] = [
    ("5m", ": Input should be an object"),
    ({}, ".type: Input should be 'ephemeral'"),
    ({"type": "persistent"}, ".type: Input should be 'ephemeral'"),
    ({**FIVE, "ttl": "10m"}, ".ttl: Input should be '5m' or '1h'"),
    ({**FIVE, "ttl": None}, ".ttl: Input should be '5m' or '1h'"),
    ({**FIVE, "ttl": []}, ".ttl: Input should be '5m' or '1h'"),
    ({**FIVE, "scope": "global"}, ".scope: Extra inputs are not permitted"),
]
PLACES: list[tuple[str, Callable[[Any], Json]]] = [
    ("cache_control", lambda control: request(cache_control=control)),
    ("tools.0.cache_control", lambda control: request(tools=[{"type": "bash_20250124", "cache_control": control}])),
    ("system.0.cache_control", lambda control: request(system=[text("s", control)])),
    ("messages.0.content.0.cache_control", lambda control: request(user([text("x", control)]))),
    (
        "messages.2.content.0.tool_result.content.0.cache_control",
        lambda control: request(
            user("x"), assistant([CALL]), user([{**RESULT, "content": [text("x", control)]}]), tools=[LOOK]
        ),
    ),
]


@pytest.mark.parametrize(("control", "message"), CONTROLS)
@pytest.mark.parametrize(("path", "place"), PLACES)
def test_a_wrong_marker_is_refused(control: Any, message: str, path: str, place: Callable[[Any], Json]) -> None:
    assert refused(place(control)) == path + message


def test_thinking_takes_no_marker() -> None:
    thought = {"type": "thinking", "thinking": "", "signature": "", "cache_control": FIVE}
    assert refused(request(user("x"), assistant([thought]), user("y"))).endswith(
        ".cache_control: Extra inputs are not permitted"
    )


def marked(count: int, **fields: Any) -> Json:
    return request(user([text(str(number), FIVE) for number in range(count)]), **fields)


def test_there_are_four_markers_at_most_the_automatic_one_among_them() -> None:
    most = "A maximum of 4 blocks with cache_control may be provided. Found 5."
    rules.check_create(marked(4))
    assert refused(marked(5)) == most
    assert refused(marked(3, system=[text("s", FIVE)], tools=[{**LOOK, "cache_control": FIVE}])) == most
    behind = marked(4)
    behind["messages"][0]["content"].append(TEXT)
    assert refused({**behind, "cache_control": FIVE}) == most
    rules.check_create(marked(4, cache_control=FIVE))  # the last block has one that says the same


def test_a_marker_in_a_result_is_one_too() -> None:
    result = {**RESULT, "cache_control": FIVE, "content": [text("a", FIVE), text("b", FIVE)]}
    turn = user([result, text("x", FIVE), text("y", FIVE)])
    assert refused(request(user("x"), assistant([CALL]), turn, tools=[LOOK])).endswith("Found 5.")


def test_an_hour_stands_ahead_of_five_minutes() -> None:
    message = refused(request(user([text("x", FIVE), text("y", HOUR)])))
    assert message.startswith(
        "messages.0.content.1.cache_control.ttl: a ttl='1h' cache_control block must not come after"
    )
    assert refused(request(user("x"), system=[text("s", FIVE)], cache_control=HOUR)).startswith("messages.0.content.")
    assert refused(request(user([text("x", FIVE)]), cache_control=HOUR)).startswith("cache_control.ttl: ")
    rules.check_create(request(user([text("x", HOUR), text("y", FIVE)]), cache_control=FIVE))


def test_the_automatic_marker_is_on_the_last_block_that_can_have_one() -> None:
    first = request(model="claude-opus-4-5", max_tokens=1025, thinking={"type": "enabled", "budget_tokens": 1024})
    thought = message_to(first)["content"][0]
    body = {**first, "messages": [*first["messages"], assistant([TEXT, thought])], "cache_control": FIVE}
    assert [marker.index for marker in rules.check_create(body).markers] == [1]


# --- what is read and written ----------------------------------------------------------------------------------


def test_a_conversation_is_read_as_far_as_it_was_written() -> None:
    cache = Cache()
    body = request(user(LONG), cache_control=FIVE)
    assert used(body, cache) == InputUsage(0, written_5m=TOKENS)
    assert used(body, cache) == InputUsage(0, read=TOKENS)
    more = request(user(LONG), assistant("y" * 400), user("z" * 40), cache_control=FIVE)
    assert used(more, cache) == InputUsage(0, read=TOKENS, written_5m=110)
    assert used(more, cache) == InputUsage(0, read=TOKENS + 110)


def test_the_usage_of_a_message_says_so_whole_and_streamed() -> None:
    cache = Cache()
    body = request(user([text(LONG, HOUR), text("y" * 400, FIVE), TEXT]))
    usage = message_to(body, cache)["usage"]
    assert {name: usage[name] for name in usage if "input" in name or "cache" in name} == {
        "input_tokens": 1,
        "cache_creation_input_tokens": TOKENS + 100,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": TOKENS},
    }
    again = message_to(body, cache)["usage"]
    assert (again["input_tokens"], again["cache_read_input_tokens"]) == (1, TOKENS + 100)
    assert again["cache_creation_input_tokens"] == 0
    counted = rules.check_count({name: body[name] for name in ("model", "messages")})
    assert counted == 1 + TOKENS + 100


def test_without_a_marker_nothing_is_kept() -> None:
    cache = Cache()
    for _ in range(2):
        assert used(request(user(LONG)), cache) == InputUsage(TOKENS)
    assert len(cache) == 0


@pytest.mark.parametrize("model", sorted(MODELS))
def test_below_the_models_minimum_nothing_is_kept(model: str) -> None:
    least = MODELS[model].cache_tokens_min
    for tokens, kept in ((least - 1, False), (least, True)):
        cache = Cache()
        body = request(user("x" * 4 * tokens), model=model, cache_control=FIVE)
        assert used(body, cache) == (InputUsage(0, written_5m=tokens) if kept else InputUsage(tokens))
        assert used(body, cache).read == (tokens if kept else 0)


def test_a_short_prefix_of_a_long_prompt_is_not_kept() -> None:
    cache = Cache()
    body = request(user([text("short", FIVE), text(LONG)]))
    assert [used(body, cache) for _ in range(2)] == [InputUsage(2002)] * 2


@pytest.mark.parametrize(("control", "life_s"), [(FIVE, 300.0), (HOUR, 3600.0)])
def test_a_prefix_lives_on_while_it_is_used(control: Json, life_s: float) -> None:
    now_s = 0.0
    cache = Cache(lambda: now_s)
    body = request(user(LONG), cache_control=control)
    used(body, cache)
    for _ in range(3):
        now_s += life_s - 1
        assert used(body, cache).read == TOKENS
    now_s += life_s
    assert used(body, cache).read == 0


def test_who_reads_a_prefix_on_the_way_to_a_longer_one_keeps_it_alive() -> None:
    now_s = 0.0
    cache = Cache(lambda: now_s)
    short = request(user(LONG), cache_control=FIVE)
    used(short, cache)
    now_s = 299.0
    assert used(request(user(LONG), assistant("y"), user("z"), cache_control=FIVE), cache).read == TOKENS
    now_s = 598.0
    assert used(short, cache).read == TOKENS


CHANGES: list[tuple[str, Json, int]] = [
    ("nothing", {}, 6000),
    ("the markers", {"system": LONG}, 6000),
    ("the tools", {"tools": [{**LOOK, "description": "y" + LONG[1:]}]}, 0),
    ("the system", {"system": [text("y" + LONG[1:], FIVE)]}, 2000),
    ("the messages", {"messages": [user([text("y" + LONG[1:], FIVE)])]}, 4000),
    ("the model", {"model": "claude-haiku-5-5"}, 0),
]


@pytest.mark.parametrize(("change", "read"), [pytest.param(c, r, id=i) for i, c, r in CHANGES])
def test_a_change_is_read_up_to_itself(change: Json, read: int) -> None:
    """Tools, system, messages: what comes first takes all behind it along."""
    cache = Cache()
    body = request(
        user([text(LONG, FIVE)]),
        system=[text(LONG, FIVE)],
        tools=[{**LOOK, "description": LONG, "cache_control": FIVE}],
    )
    beside = rules.check_create(body).prompt.tokens - 6000
    used(body, cache)
    after = used({**body, **change}, cache)
    assert after.read == (read + beside if read else 0)
    assert after.uncached + after.read + after.written_5m == 6000 + beside


@pytest.mark.parametrize(("behind", "found"), [(LOOKBACK_BLOCKS - 1, True), (LOOKBACK_BLOCKS, False)])
def test_a_marker_looks_back_twenty_blocks(behind: int, found: bool) -> None:
    cache = Cache()
    used(request(user([text(LONG)]), cache_control=FIVE), cache)
    more = request(user([text(LONG), *(text("xxxx") for _ in range(behind))]), cache_control=FIVE)
    assert used(more, cache) == (InputUsage(0, TOKENS, behind) if found else InputUsage(0, 0, TOKENS + behind))
    marked = request(user([text(LONG, FIVE), *(text("yyyy") for _ in range(behind))]), cache_control=FIVE)
    assert used(marked, cache) == InputUsage(0, TOKENS, behind)


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    cache = Cache(entries_max=2)
    one, two, three = (request(user(LONG + letter), cache_control=FIVE) for letter in "abc")
    for body in (one, two, one, three):
        used(body, cache)
    assert [used(body, cache).read > 0 for body in (one, three)] == [True, True]
    assert used(two, cache).read == 0
    assert len(cache) == 2 < ENTRIES_MAX


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans(), st.booleans()), min_size=1, max_size=5))
def test_the_parts_add_up_and_a_repeat_writes_nothing(turns: list[tuple[int, bool, bool]]) -> None:
    cache = Cache()
    said: list[Json] = []
    for size, hour, same in turns:
        said = said if same and said else [*said, text("x" * (4 * size + 4))]
        control = HOUR if hour else FIVE
        body = request(user(said), cache_control=control)
        total = rules.check_create(body).prompt.tokens
        first, second = used(body, cache), used(body, cache)
        for usage in (first, second):
            assert usage.uncached + usage.read + usage.written_5m + usage.written_1h == total
            assert min(usage.uncached, usage.read, usage.written_5m, usage.written_1h) >= 0
        assert (second.written_5m, second.written_1h) == (0, 0)
        assert second.read >= first.read
