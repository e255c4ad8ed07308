"""Results of old tool calls that are not sent any more: which, what stays, and that Claude takes what is left."""

import math
from typing import Any, cast, get_args

import orjson
import pytest

from service import tool_calls
from service.context import clearing, word
from service.context.clearing import NOTE
from service.context.size import Size, media_of
from service.context.view import POLICIES, SHORTENING, WHOLE, Limit, Policy, View
from service.context.word import Context
from service.errors import BatonError
from service.settings import Settings
from service.transcript import pack
from storage import elements
from tests.unit.narrow import LONG, Narrow
from tests.unit.test_context_compacted import THINKING, TOLD
from tests.unit.test_context_size import PICTURE
from tests.unit.test_prefix import assistant, text, user

Json = dict[str, Any]


def call(number: int) -> Json:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "look", "input": {"at": number}}


def result(number: int, content: Any = LONG, **more: Any) -> Json:
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": content, **more}


def looped(rounds: int, content: Any = LONG) -> list[bytes]:
    """A conversation in which a tool was called so often; the results are messages 2, 4, 6, …"""
    said = [user("Look around.")]
    for number in range(rounds):
        said += [assistant(call(number)), user([result(number, content)])]
    return tool_calls.pack([], [*said, assistant(text("That is all."))], bytes(8))


def noted(stored: list[bytes], cleared: int, begins: int = 0) -> list[Json]:
    sent = [elements.json_of(element) for element in stored]
    return [orjson.loads(one) for one in clearing.noted(sent, stored, View(begins, cleared=cleared), begins)]


def whole(stored: list[bytes]) -> list[Json]:
    return [orjson.loads(elements.json_of(element)) for element in stored]


def size(stored: list[bytes]) -> Size:
    media = media_of(stored)
    return Size(sum(len(one) - elements.HEADER_BYTES for one in stored) - media.size_bytes, media)


def narrowed(
    stored: list[bytes], kept: int, enough: int = 0, *, view: View = WHOLE, new: Any = (), covers: int = 0
) -> View:
    space = clearing.Room(Limit(kept, 1.0, 0), Limit(enough, 1.0, 0))
    of = size([*stored, *new])
    return clearing.narrowed(stored, new, view, space, size=of, head_bytes=0, covers=covers, clears=True)


def test_of_a_cleared_result_nothing_is_changed_but_its_content() -> None:
    content = [result(0, is_error=True), result(1, [text("seen"), PICTURE]), {"type": "text", "text": LONG}, PICTURE]
    stored = pack([user("Go."), assistant(call(0), call(1)), user(content)], bytes(8))
    *before, after = noted(stored, 3)
    assert before == whole(stored)[:2]
    assert after["content"] == [result(0, NOTE, is_error=True), result(1, NOTE), *content[2:]]
    assert noted(stored, 2) == whole(stored), "up to the message in front of it"


@pytest.mark.parametrize(
    "content",
    [
        "seen",
        NOTE,
        [{"type": "text", "text": "seen"}],
        None,
        [*({"type": "tool_reference", "tool_name": f"a_tool_with_a_name_of_its_own_{at}"} for at in range(3))],
    ],
)
def test_what_is_short_or_has_loaded_tools_stays(content: Any) -> None:
    stored = looped(6, content)
    assert noted(stored, len(stored)) == whole(stored)
    assert narrowed(stored, 1).cleared == 0, "nothing can be cleared, and nothing is said to be"


def test_only_users_results_are_cleared() -> None:
    """Not what looks like one: in a call's input, in a result itself, or in a text."""
    odd = {"type": "tool_use", "id": "toolu_0", "name": "look", "input": result(9)}
    stored = pack([user(orjson.dumps(result(9)).decode() * 2), assistant(odd), user([result(0, "seen")])], bytes(8))
    assert noted(stored, 3) == whole(stored)


def test_no_more_is_cleared_than_is_needed_and_the_last_rounds_never() -> None:
    stored = looped(8)
    freed = size(stored).text_bytes - size(clearing.as_sent(stored, 0, 3)).text_bytes
    total = size(stored).text_bytes
    assert narrowed(stored, total - freed) == View(0, moved=True, cleared=3)
    assert narrowed(stored, total - freed - 1) == View(0, moved=True, cleared=5)
    assert narrowed(stored, total - 4 * freed - 1, enough=total) == View(0, moved=True, cleared=11), "five of eight"
    # What is cleared already frees nothing once more, nor does what is not sent.
    again = View(0, cleared=5)
    of = size(clearing.as_sent(stored, 0, 5))
    space = clearing.Room(Limit(of.text_bytes - freed, 1.0, 0), Limit(0, 1.0, 0))
    assert clearing.narrowed(stored, [], again, space, size=of, head_bytes=0, covers=0, clears=True).cleared == 7
    assert narrowed(stored, total - freed, view=View(4)).cleared == 5
    assert narrowed(stored, total - freed, covers=4).cleared == 5


def test_results_of_one_answer_are_one_round_and_those_of_the_turn_count() -> None:
    said = [user("Look."), assistant(call(0), call(1)), user([result(0)])]
    stored = tool_calls.pack([], [*said, user("Never mind the other."), *whole(looped(3))[1:]][:3], bytes(8))
    assert len(stored) == 4, "the result that Baton gives, and the real one"
    more = [assistant(call(number)) if not at else user([result(number)]) for number in (2, 3, 4) for at in (0, 1)]
    stored += pack(more, bytes(8))
    assert narrowed(stored, 1, enough=10**6) == View(0, moved=True, cleared=4), "both messages of the first round"
    new = stored[-1:]
    assert narrowed(stored[:-1], 1, enough=10**6, new=new).cleared == 4
    assert narrowed(stored[:-2], 1).cleared == 0, "three rounds are kept"
    loop = looped(6)
    assert narrowed(loop[:3], 1, new=loop[3:]).cleared == 3, "what a turn brings is sent whole"
    parted = pack([user("Look."), assistant(call(8), call(9)), user([result(8)])], bytes(8))  # as a fork may end
    assert narrowed(parted, 1, new=pack([user([result(9)])], bytes(8)) + loop[1:]) == WHOLE


def test_media_in_results_are_freed_with_them() -> None:
    stored = looped(5, [PICTURE])
    assert size(stored).media.tokens == 5 * 1_600
    space = clearing.Room(Limit(4 * 1_600, 0.0, 0), Limit(0, 1.0, 0))
    view = clearing.narrowed(stored, [], WHOLE, space, size=size(stored), head_bytes=0, covers=0, clears=True)
    assert view.cleared == 3
    assert media_of(clearing.as_sent(stored, 0, 3)).tokens == 4 * 1_600
    space = clearing.Room(Limit(math.inf, 0.0, 0, 4 * 310_000), Limit(math.inf, 0.0, 0, 0))
    view = clearing.narrowed(stored, [], WHOLE, space, size=size(stored), head_bytes=0, covers=0, clears=True)
    assert view.cleared == 3, "bytes count, too"


def test_where_clearing_is_not_enough_the_oldest_exchanges_leave_the_view() -> None:
    said = [message for number in range(6) for message in (user(f"{number} {LONG}"), assistant(text("ok")))]
    stored = looped(5) + pack(said, bytes(8))
    total, after = size(stored).text_bytes, size(clearing.as_sent(stored, 0, 5)).text_bytes
    assert narrowed(stored, after - 1, enough=after) == View(0, moved=True, cleared=5)
    less = narrowed(stored, after - 1, enough=after - 1)
    assert less == View(12, moved=True, cleared=5), "behind the loop"
    assert narrowed(stored, total, enough=total, view=View(12, cleared=5)) == View(14, moved=True, cleared=5)
    assert narrowed(stored[:3], 1) == WHOLE
    assert narrowed(stored, total, covers=14) == View(16, moved=True), "what is covered has left already"


def test_the_policies_are_those_of_the_settings() -> None:
    assert get_args(Settings.model_fields["context_policy"].annotation) == POLICIES
    assert set(SHORTENING) < set(POLICIES)


@pytest.mark.parametrize(
    ("cleared", "messages", "epoch_start", "kept"),
    [(5, 12, 10, 5), (5, 11, 10, 5), (5, 10, 10, 0), (5, 4, 4, 0), (5, 4, 3, 0), (5, 5, 4, 5)],
)
def test_behind_the_step_a_rewind_brings_results_back(cleared: int, messages: int, epoch_start: int, kept: int) -> None:
    left = Context(11, 12, 0, cleared, 100, 400)
    assert word.behind_cut(left, messages, epoch_start).cleared == kept


def test_what_was_not_sent_is_told() -> None:
    assert View(0, cleared=5).told(0) == ["clear_tool_results; cleared=5"]
    assert View(4, cleared=5).told(0) == ["clear_tool_results; cleared=5", "truncate; left_out=4"]
    assert View(6, cleared=5).told(0) == ["truncate; left_out=6"]
    assert View(6, cleared=5).told(6) == View(6).told(7) == [], "a summary stands for it"
    assert View(0, cleared=5).told(5) == WHOLE.told(3) == []


def test_a_loop_of_calls_is_not_lost_and_its_prefix_seldom_changes() -> None:
    """Of forty results of which six fill the window the last are sent, and the first words of the user, too."""
    for model in THINKING:
        talk = Narrow(model, "clear_tool_results", window=3_000)
        talk.turn(TOLD)
        talk.turn("call look")
        moves = 0
        for number in range(40):
            talk.content = f"[mark:{number}] {LONG}"
            body = talk.turn([result(0) | {"tool_use_id": one} for one in talk.waiting()] + [text("call look")])
            assert talk.composed is not None
            moves += talk.composed.fitted.view.moved
            said = orjson.dumps(body["messages"]).decode()
            assert TOLD in said or talk.composed.fitted.view.begins
            for recent in range(max(0, number - 2), number + 1):
                assert f"[mark:{recent}]" in said
        assert 0 < moves < 20
        assert talk.composed is not None and talk.composed.fitted.view.cleared


def test_without_a_known_window_bytes_are_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("service.context.fit", "service.context.view"):
        monkeypatch.setattr(f"{module}.CLAUDE_BYTES_MAX", 20_000)
    for policy, cleared in (("truncate", False), ("clear_tool_results", True)):
        talk = Narrow("claude-haiku-4-5", cast(Policy, policy), window=10**9)
        talk.turn("call look")
        for _ in range(30):
            body = talk.turn([result(0) | {"tool_use_id": one} for one in talk.waiting()] + [text("call look")])
            assert len(orjson.dumps(body)) <= 20_000
            talk.turn("Never mind.")
            talk.turn("call look")
        assert talk.composed is not None
        assert (talk.composed.fitted.view.begins > 0, talk.composed.fitted.view.cleared > 0) == (True, cleared)
    talk = Narrow("claude-haiku-4-5", "truncate", window=10**9)
    with pytest.raises(BatonError) as caught:
        talk.turn(LONG * 30)
    assert caught.value.code == "request_too_large"


def test_the_media_of_a_request_are_those_that_are_sent() -> None:
    talk = Narrow("claude-haiku-4-5", "clear_tool_results", window=12_000)
    talk.content = [PICTURE]
    talk.turn("call look")
    for _ in range(20):
        body = talk.turn([result(0) | {"tool_use_id": one} for one in talk.waiting()] + [text("call look")])
        assert talk.composed is not None
        assert talk.composed.fitted.size.media.tokens == 1_600 * orjson.dumps(body).count(b"image/png")
    assert talk.composed is not None and talk.composed.fitted.view.cleared
