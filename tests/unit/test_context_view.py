"""What is left out of a conversation that does not fit: whatever it holds, Claude takes the rest."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import tool_calls
from service.context.caching import PLAINLY
from service.context.size import Media, Size
from service.context.view import WHOLE, Limit, View, later
from service.model_table import TABLE
from service.prefix import Ask, continued, last_digest
from service.simulator import events, rules
from service.transcript import pack
from storage import elements
from storage.turns import History
from tests.unit.simulated import LOOK, reply_to
from tests.unit.test_prefix import EMPTY, assistant, text, user

Json = dict[str, Any]
CALL: Json = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
RESULT: Json = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "seen"}
IMAGE: Json = {"type": "image", "source": {"type": "url", "url": "https://example.com/ada.png"}}
MODELS = ("claude-sonnet-5-5", "claude-opus-5-5", "claude-opus-4-8", "claude-haiku-4-5", "claude-opus-4-6")
ANYTHING = Limit(10**9, 1.0, 0)
NOTHING = Limit(0, 1.0, 0)


def stored(*messages: Json) -> list[bytes]:
    return tool_calls.pack([], list(messages), bytes(8))


def begins(history: list[bytes], new: list[bytes], limit: Limit = NOTHING, at: int = 0) -> int:
    return later(history, new, at, limit)


def test_a_view_begins_behind_an_answer_and_never_with_a_result() -> None:
    asked, answered = user("a"), assistant(text("b"))
    looped = [asked, assistant(CALL), user([RESULT]), answered]
    assert begins(stored(asked, answered), stored(user("c"))) == 2
    assert begins(stored(*looped), stored(user("c"))) == 4
    # A new result belongs to a call that is stored, and that to what asked for it.
    assert begins(stored(asked, answered, asked, assistant(CALL)), stored_result()) == 2
    assert begins(stored(asked, assistant(CALL)), stored_result()) == 0
    # A call that was left open was closed in front of what went on.
    left_open = stored(asked, assistant(CALL), user("never mind"), answered)
    assert len(left_open) == 5
    assert begins(left_open, stored(user("c"))) == 5
    # Neighbouring messages of the user stay together.
    assert begins(stored(asked, answered, asked, asked, answered), stored(user("c")), Limit(0, 0.0, 0)) == 2


def stored_result() -> list[bytes]:
    return pack([user([RESULT])], bytes(8))


def test_as_much_is_kept_as_fits_and_what_has_left_stays_out() -> None:
    pairs = [message for number in range(10) for message in (user(f"{number}" * 100), assistant(text("ok")))]
    history, new = stored(*pairs), stored(user("x" * 100))
    pair = sum(len(element) - elements.HEADER_BYTES for element in history[:2])
    last = len(new[0]) - elements.HEADER_BYTES
    assert begins(history, new, Limit(3 * pair + last, 1.0, 0)) == 14
    assert begins(history, new, Limit(3 * pair + last - 1, 1.0, 0)) == 16
    assert begins(history, new, Limit(3 * pair + last - 1, 0.5, 0)) == 8
    assert begins(history, new, Limit(3 * pair + last, 1.0, pair)) == 16
    assert begins(history, new, ANYTHING) == 2, "asked to move, it moves"
    assert begins(history, new, ANYTHING, at=6) == 8
    assert begins(history, new, NOTHING, at=20) == 20
    pictures = stored(user([IMAGE]), assistant(text("ok")), user([IMAGE, IMAGE]), assistant(text("ok")))
    assert begins(pictures, new, Limit(1_000, 0.0, 0)) == 4
    assert begins(pictures, new, Limit(3_200, 0.0, 0)) == 2
    assert Limit(10, 1.0, 4).takes(Size(6, Media())) and not Limit(10, 1.0, 5).takes(Size(6, Media()))


class Talk:
    """A conversation with the stand-in, in process: by all its rules, with its thinking and its seals."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.traits = TABLE[model]
        self.begun = EMPTY
        self.history = History([], b"", b"")
        self.waiting: list[str] = []

    def ask(self, content: Any, *, view: View = WHOLE, **params: Any) -> Json:
        """Sends a turn, and keeps its answer; the request as an object."""
        asked = Ask(self.model, [user(content)], None, {"max_tokens": 200, **params}, tools=[LOOK])
        new = tool_calls.pack(self.history.elements, asked.messages, last_digest(self.history))
        prepared = continued(asked, self.begun, self.history, new, self.traits, PLAINLY, view)
        body: Json = orjson.loads(prepared.body)
        accepted = rules.check_create(body)  # the judge: it raises where Claude would refuse
        assert accepted.prompt.parts
        reply = events.message(reply_to(body))
        self.keep(prepared, reply["content"])
        return body

    def keep(self, prepared: Any, content: list[Json]) -> None:
        said = [{"role": "assistant", "content": content}] if content else []
        everything = [*self.history.elements, *prepared.elements, *pack(said, prepared.digest)]
        self.history = History(
            everything,
            prepared.system_json or self.history.system_json,
            prepared.preamble or self.history.preamble,
        )
        self.begun = replace(
            self.begun,
            messages=len(everything),
            epoch_hash=prepared.epoch.hash,
            epoch_start=prepared.epoch.start,
            model=self.model,
        )
        self.waiting = [block["id"] for block in content if block["type"] == "tool_use"]


KINDS = st.sampled_from(["say", "call", "calls", "results", "one result", "never mind", "image", "short"])


def content_of(kind: str, waiting: list[str]) -> tuple[Any, Json]:
    """What a turn says, and with which parameters."""
    results = [{"type": "tool_result", "tool_use_id": call, "content": "seen"} for call in waiting]
    match kind:
        case "call":
            return "call look", {}
        case "calls":
            return "call look, call look", {}
        case "results" if results:
            return [*results, text("call look")], {}
        case "one result" if results:
            return results[:1], {}
        case "image":
            return [IMAGE, text("What is this?")], {}
        case "short":
            return "count to 50", {"max_tokens": 3}  # the answer is cut short
    return "Something else.", {}


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(MODELS),
    kinds=st.lists(KINDS, min_size=1, max_size=12),
    moves=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_whatever_is_left_out_claude_takes_the_rest(model: str, kinds: list[str], moves: list[int]) -> None:
    talk, begins_at = Talk(model), 0
    for kind, move in zip(kinds, moves, strict=False):
        said, params = content_of(kind, talk.waiting)
        was = begins_at
        if move == 0:  # it has to be shorter
            new = tool_calls.pack(talk.history.elements, [user(said)], last_digest(talk.history))
            begins_at = later(talk.history.elements, new, was, Limit(len(kinds) * 20, 0.3, 0))
        if model in ("claude-sonnet-5-5", "claude-opus-4-8"):
            params["thinking"] = {"type": "adaptive"}
        held = list(talk.history.elements)
        body = talk.ask(said, view=View(begins_at, moved=begins_at > was), **params)
        assert talk.history.elements[: len(held)] == held, "what leaves the view stays in the store"
        assert body["messages"][0]["role"] == "user"


@pytest.mark.parametrize("model", MODELS)
def test_a_moved_view_begins_an_epoch(model: str) -> None:
    talk = Talk(model)
    for _ in range(3):
        talk.ask("Hello.")
    body = talk.ask("And now?", view=View(4, moved=True))
    assert len(body["messages"]) == 3
    assert talk.begun.epoch_start == 6
    assert b'"thinking"' not in orjson.dumps(body["messages"])
    after = talk.ask("And then?", view=View(4))
    assert after["messages"][:3] == body["messages"], "the same prefix again"
    assert talk.begun.epoch_start == 6
