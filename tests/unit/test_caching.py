"""Where a session's requests are marked for the prompt cache, and for how long; against the stand-in's own cache."""

from typing import Any

import orjson
import pytest

from service.context import caching
from service.context.caching import Caching, Markers
from service.model_table import NEWEST
from service.prefix import continued, last_digest
from service.simulator import rules
from service.simulator.cache import Cache, InputUsage
from service.transcript import pack
from storage.results import Begun
from storage.turns import History
from tests.unit.test_prefix import EMPTY, Session, asking, assistant, text, user

Json = dict[str, Any]
FIVE: Json = {"type": "ephemeral"}
HOUR: Json = {"type": "ephemeral", "ttl": "1h"}
MODEL = "claude-sonnet-5-5"
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
MINUTE_MS = 60_000


@pytest.mark.parametrize(
    ("setting", "idle_ms", "life"),
    [
        ("auto", None, "5m"),
        ("auto", 5 * MINUTE_MS - 1, "5m"),
        ("auto", 5 * MINUTE_MS, "1h"),
        ("auto", 60 * MINUTE_MS - 1, "1h"),
        ("auto", 60 * MINUTE_MS, "5m"),
        ("1h", None, "1h"),
        ("5m", 10 * MINUTE_MS, "5m"),
    ],
)
def test_the_life_follows_the_rhythm_unless_it_is_set(setting: Any, idle_ms: int | None, life: str) -> None:
    assert caching.life(setting, idle_ms) == life


def system_with(*controls: Json | None) -> bytes:
    return orjson.dumps([{"type": "text", "text": "S", "cache_control": control} for control in controls])


NOBODYS = b'[{"type":"text","text":"say \\"cache_control\\" twice"}]'


@pytest.mark.parametrize(
    ("system", "tools", "params", "wanted", "markers"),
    [
        (b"", b"", {}, "5m", Markers(FIVE, FIVE)),
        (b'"S"', b"", {}, "1h", Markers(HOUR, HOUR)),
        (NOBODYS, b"", {}, "1h", Markers(HOUR, HOUR)),
        (system_with(None), b"", {}, "1h", Markers(HOUR, HOUR)),
        # What is kept for an hour stands in front of what is kept for five minutes.
        (system_with(FIVE), b"", {}, "1h", Markers(FIVE, FIVE)),
        (system_with(HOUR), b"", {}, "1h", Markers(HOUR, HOUR)),
        (system_with(HOUR), system_with(FIVE), {}, "1h", Markers(FIVE, FIVE)),
        # Four at most, the caller's first.
        (system_with(FIVE, FIVE), b"", {}, "5m", Markers(FIVE, FIVE)),
        (system_with(FIVE, FIVE), system_with(FIVE), {}, "5m", Markers(FIVE, None)),
        (system_with(FIVE, FIVE), system_with(FIVE, FIVE), {}, "5m", Markers(None, None)),
        # The caller's word about the end stands.
        (b"", b"", {"cache_control": HOUR}, "5m", Markers(None, HOUR)),
        (b"", b"", {"cache_control": None}, "5m", Markers(None, None)),
        (system_with(HOUR, HOUR), system_with(HOUR), {"cache_control": HOUR}, "5m", Markers(None, None)),
    ],
)
def test_the_callers_markers_come_first(
    system: bytes, tools: bytes, params: Json, wanted: Any, markers: Markers
) -> None:
    assert caching.markers(system, tools, params, wanted) == markers


def test_an_anchor_is_set_on_the_last_block_that_can_have_one() -> None:
    def marked(message: Json) -> Any:
        return orjson.loads(caching.anchored(orjson.dumps(message), FIVE))

    assert marked(user("Hi")) == user([{**text("Hi"), "cache_control": FIVE}])
    assert marked(user([text("a"), text("b")])) == user([text("a"), {**text("b"), "cache_control": FIVE}])
    assert marked(assistant(text("a"), THOUGHT)) == assistant({**text("a"), "cache_control": FIVE}, THOUGHT)
    assert marked(assistant(THOUGHT)) == assistant(THOUGHT)
    assert marked(user([{**text("a"), "cache_control": HOUR}])) == user([{**text("a"), "cache_control": HOUR}])


class Cached(Session):
    """A session whose requests are judged by the stand-in's rules and read through its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache()
        self.use = Caching()

    def turn_of(self, blocks: int, answer: int = 1, **fields: Any) -> tuple[InputUsage, bytes]:
        """A turn of so many blocks of a user's, answered with so many; what of it was in the cache, and its body."""
        ask = asking("", model=MODEL, **fields)
        content = [text(f"{number} {'x' * 400}") for number in range(blocks)]
        ask.messages[0] = user(content)
        new = pack(ask.messages, last_digest(self.history))
        prepared = continued(ask, self.begun, self.history, new, NEWEST, self.use)
        self.use = Caching(asked=self.begun.messages + len(prepared.elements))
        accepted = rules.check_create(orjson.loads(prepared.body))
        before = self.history
        self.turn(ask, *(text(f"a{number}") for number in range(answer)))
        assert self.history.elements[: len(before.elements)] == before.elements
        return self.cache.use(accepted.prompt, accepted.markers, accepted.model), prepared.body


@pytest.mark.parametrize(("blocks", "answer", "anchors"), [(1, 1, 0), (18, 1, 0), (19, 1, 1), (1, 30, 1), (60, 3, 1)])
def test_a_turn_of_many_blocks_finds_the_old_prefix_all_the_same(blocks: int, answer: int, anchors: int) -> None:
    session = Cached()
    first, _ = session.turn_of(15, answer)
    second, body = session.turn_of(blocks)
    assert first.written_5m > 1000
    assert second.read == first.written_5m
    assert body.partition(b'"messages":')[2].count(b'"cache_control"') == anchors
    third, _ = session.turn_of(1)
    assert third.read == second.read + second.written_5m


def test_an_anchor_is_not_set_where_nothing_is_known_or_there_is_no_room() -> None:
    session = Cached()
    session.turn_of(15)
    session.use = Caching()
    assert session.turn_of(60)[1].count(b'"cache_control"') == 1
    full = [{**text("S"), "cache_control": FIVE} for _ in range(3)]
    assert session.turn_of(60, system=full)[1].count(b'"cache_control"') == 4


def test_why_a_prefix_was_not_found_is_told_in_known_words() -> None:
    def miss(reason: Any) -> Any:
        return caching.miss({"cache_miss_reason": reason})

    assert caching.miss(None) is None
    changed = {"type": "tools_changed", "cache_missed_input_tokens": 12}
    assert miss(changed) == {"reason": "tools_changed", "tokens": 12}
    assert miss({"type": "unavailable"}) == {"reason": "unavailable", "tokens": None}
    assert miss(None) == {"reason": "pending", "tokens": None}
    assert miss({"type": "a caller's text", "cache_missed_input_tokens": "12"}) == {"reason": "other", "tokens": None}


def test_a_session_without_an_answer_asks_why_for_the_next_time() -> None:
    def diagnostics(use: Caching, **params: Any) -> Any:
        standing: Begun = EMPTY
        new = pack([user("Hi")], bytes(8))
        body = continued(asking("Hi", **params), standing, History([], b"", b""), new, NEWEST, use).body
        return orjson.loads(body).get("diagnostics", "absent")

    assert diagnostics(Caching()) == "absent"
    assert diagnostics(Caching(diagnosed=True)) == {"previous_message_id": None}
    assert diagnostics(Caching(diagnosed=True, message_id="msg_1")) == {"previous_message_id": "msg_1"}
    own = {"previous_message_id": "msg_own"}
    assert diagnostics(Caching(diagnosed=True, message_id="msg_1"), diagnostics=own) == own
