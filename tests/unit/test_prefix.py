"""From stored bytes to a request: the same bytes from turn to turn, and epochs."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest

from service.epoch import unpacked
from service.errors import BatonError
from service.model_table import NEWEST, Traits
from service.prefix import Ask, Prepared, continued, last_digest, stateless
from service.transcript import pack
from storage import elements
from storage.results import Begun
from storage.turns import History

ADD = {"name": "add", "input_schema": {"type": "object"}}
LOOK = {"name": "look", "input_schema": {"type": "object"}}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
EMPTY = Begun(
    number=1,
    head="head_x",
    messages=0,
    size_bytes=0,
    turns=0,
    model="",
    epoch_hash="",
    epoch_start=0,
    revision=1,
    dead_turn_id="",
)


def user(said: Any) -> dict[str, Any]:
    return {"role": "user", "content": said}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def asking(
    said: str, *, system: Any = None, model: str = "m-1", tools: Any = None, choice: Any = None, **params: Any
) -> Ask:
    params = {"max_tokens": 10, **params}
    return Ask(model=model, messages=[user(said)], system=system, params=params, tools=tools, tool_choice=choice)


class Session:
    """What the store would keep of turns that all commit, with models that have these traits."""

    def __init__(self, traits: Traits = NEWEST) -> None:
        self.traits = traits
        self.begun = EMPTY
        self.history = History([], b"", b"")

    def prepare(self, ask: Ask, *, refused: bool = False) -> Prepared:
        new = pack(ask.messages, last_digest(self.history))
        return continued(ask, self.begun, self.history, new, self.traits, refused=refused)

    def turn(self, ask: Ask, *reply: dict[str, Any], refused: bool = False) -> bytes:
        """Runs a turn whose answer has these blocks; returns the body that was sent."""
        prepared = self.prepare(ask, refused=refused)
        new = prepared.elements
        added = new + pack([assistant(*reply)], new[-1][1 : elements.HEADER_BYTES])
        stored = [*self.history.elements, *added]
        self.history = replace(
            self.history,
            elements=stored,
            system_json=prepared.system_json or self.history.system_json,
            preamble=prepared.preamble or self.history.preamble,
        )
        self.begun = replace(
            self.begun,
            messages=len(stored),
            turns=self.begun.turns + 1,
            epoch_hash=prepared.epoch.hash,
            epoch_start=prepared.epoch.start,
        )
        return prepared.body


def messages_bytes(body: bytes) -> bytes:
    """The messages of a body, as bytes, without the closing of list and object."""
    return body.partition(b'"messages":[')[2].removesuffix(b"]}")


def test_a_stateless_request_is_what_was_asked() -> None:
    body = stateless(asking("Hi", system="Be brief.", stop_sequences=["END"]), NEWEST)
    assert orjson.loads(body) == {
        "model": "m-1",
        "max_tokens": 10,
        "stop_sequences": ["END"],
        "stream": True,
        "system": "Be brief.",
        "messages": [user("Hi")],
    }
    assert "system" not in orjson.loads(stateless(asking("Hi"), NEWEST))


def test_only_session_turns_are_cached() -> None:
    assert b"cache_control" not in stateless(asking("Hi"), NEWEST)
    prepared = Session().prepare(asking("Hi"))
    assert orjson.loads(prepared.body)["cache_control"] == {"type": "ephemeral"}


def test_each_request_continues_the_bytes_of_the_one_before() -> None:
    session = Session()
    bodies = [
        session.turn(asking("Hi", system="Be brief."), THOUGHT, text("é 🙂")),
        session.turn(asking("And?"), text("b")),
        session.turn(asking("So?", max_tokens=99), text("c")),
        session.turn(asking("Well?"), text("d")),
    ]
    sent = [messages_bytes(body) for body in bodies]
    for before, after in pairwise(sent):
        assert after.startswith(before + b",")
    assert [len(orjson.loads(body)["messages"]) for body in bodies] == [1, 3, 5, 7]


def test_stored_bytes_are_spliced_and_not_parsed() -> None:
    odd = b'{"content" : [ {"text":"\\u00e9", "type":"text","new":1.50}],"role":"assistant" }'
    element = elements.pack(odd, b"\1" * 8, holds_thinking=True)
    begun = replace(EMPTY, messages=1)
    new = pack([user("Hi")], b"\1" * 8)
    body = continued(asking("Hi"), begun, History([element], b'"S"', b""), new, NEWEST).body
    assert messages_bytes(body).startswith(odd + b",")


def test_an_absent_system_prompt_means_the_stored_one() -> None:
    session = Session()
    session.turn(asking("a", system="Be brief."), text("b"))
    assert orjson.loads(session.turn(asking("c"), text("d")))["system"] == "Be brief."
    assert session.begun.epoch_start == 0


def test_no_system_prompt_at_all() -> None:
    session = Session()
    for said in ("a", "c"):
        assert "system" not in orjson.loads(session.turn(asking(said), text("b")))
    assert session.history.system_json == b""


def test_the_system_prompt_is_written_only_when_it_changes() -> None:
    session = Session()
    assert session.prepare(asking("a", system="S")).system_json == b'"S"'
    session.turn(asking("a", system="S"), text("b"))
    assert session.prepare(asking("c", system="S")).system_json == b""
    assert session.prepare(asking("c")).system_json == b""
    assert session.prepare(asking("c", system="T")).system_json == b'"T"'
    blocks = [text("S"), text("T")]
    assert session.prepare(asking("c", system=blocks)).system_json == orjson.dumps(blocks)


def epochs(change: dict[str, Any]) -> None:
    """A change of the epoch drops older thinking whole, for good, with the same bytes in every later turn."""
    session = Session()
    session.turn(asking("a", system="S"), THOUGHT, text("b"))
    session.turn(asking("c"), THOUGHT)
    before = orjson.loads(session.turn(asking("e"), text("f")))["messages"]
    assert [block["type"] for block in before[1]["content"]] == ["thinking", "text"]

    changed = session.turn(asking("g", **change), THOUGHT, text("h"))
    sent = orjson.loads(changed)["messages"]
    assert session.begun.epoch_start == 6
    assert sent[1]["content"] == [text("b")]
    # The second answer was thinking and nothing else: it is left out whole.
    assert [message["content"] for message in sent[2:4]] == ["c", "e"]

    later = orjson.loads(session.turn(asking("i", **change), THOUGHT, text("j")))["messages"]
    assert [block["type"] for block in later[6]["content"]] == ["thinking", "text"]
    latest = session.turn(asking("k", **change), text("l"))
    assert messages_bytes(latest).startswith(messages_bytes(changed) + b",")
    assert session.begun.epoch_start == 6
    assert len(session.history.elements) == 12


def test_another_system_prompt_begins_an_epoch() -> None:
    epochs({"system": "T"})


def test_another_model_begins_an_epoch() -> None:
    epochs({"model": "m-2"})


def test_other_tools_begin_an_epoch() -> None:
    epochs({"tools": [ADD]})


def test_going_back_begins_another_epoch() -> None:
    session = Session()
    session.turn(asking("a", model="m-1"), THOUGHT, text("b"))
    session.turn(asking("c", model="m-2"), THOUGHT, text("d"))
    body = session.turn(asking("e", model="m-1"), THOUGHT, text("f"))
    assert session.begun.epoch_start == 4
    assert b"thinking" not in messages_bytes(body)


def test_other_parameters_do_not_begin_an_epoch() -> None:
    session = Session()
    session.turn(asking("a"), THOUGHT, text("b"))
    body = session.turn(asking("c", stop_sequences=["x"], max_tokens=5), text("d"))
    assert session.begun.epoch_start == 0
    assert b"thinking" in messages_bytes(body)


def test_absent_tools_mean_the_stored_ones() -> None:
    session = Session()
    first = orjson.loads(session.turn(asking("a", tools=[ADD, LOOK]), THOUGHT, text("b")))
    assert first["tools"] == [ADD, LOOK]
    later = orjson.loads(session.turn(asking("c"), text("d")))
    assert later["tools"] == [ADD, LOOK]
    assert "tool_choice" not in later
    assert session.begun.epoch_start == 0
    assert "thinking" in str(later["messages"])


def test_the_preamble_is_written_only_when_it_changes() -> None:
    session = Session()
    assert unpacked(session.prepare(asking("a", tools=[ADD])).preamble).tools == orjson.dumps([ADD])
    session.turn(asking("a", tools=[ADD]), text("b"))
    assert session.prepare(asking("c", tools=[ADD])).preamble == b""
    assert session.prepare(asking("c")).preamble == b""
    assert unpacked(session.prepare(asking("c", tools=[LOOK])).preamble).tools == orjson.dumps([LOOK])


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "none"},
        {"type": "any"},
        {"type": "tool", "name": "add"},
        {"type": "auto", "disable_parallel_tool_use": True},
    ],
)
def test_a_choice_goes_with_one_request_and_begins_no_epoch(choice: dict[str, Any]) -> None:
    session = Session()
    session.turn(asking("a", tools=[ADD]), THOUGHT, text("b"))
    chosen = orjson.loads(session.turn(asking("c", choice=choice), text("d")))
    assert (chosen["tool_choice"], chosen["tools"]) == (choice, [ADD])
    assert "tool_choice" not in orjson.loads(session.turn(asking("e"), text("f")))
    assert session.begun.epoch_start == 0
    assert orjson.loads(stateless(asking("a", tools=[ADD], choice=choice), NEWEST))["tool_choice"] == choice


@pytest.mark.parametrize("choice", [{"type": "none"}, {"type": "auto", "disable_parallel_tool_use": True}])
def test_without_tools_a_choice_that_needs_none_is_left_out(choice: dict[str, Any]) -> None:
    for body in (Session().turn(asking("a", choice=choice)), stateless(asking("a", choice=choice), NEWEST)):
        assert orjson.loads(body).keys() & {"tools", "tool_choice"} == set()


def test_a_choice_of_what_there_is_not_is_refused() -> None:
    without, within = Session(), Session()
    within.turn(asking("a", tools=[ADD, {"type": "web_search_20260101"}]), text("b"))
    named = {"type": "tool", "name": "look"}
    for session, choice in ((without, {"type": "any"}), (without, named), (within, named)):
        with pytest.raises(BatonError) as caught:
            session.prepare(asking("c", choice=choice))
        assert (caught.value.code, caught.value.param) == ("invalid_value", "tool_choice")
    with pytest.raises(BatonError):
        stateless(asking("a", choice={"type": "any"}), NEWEST)


def test_a_stateless_conversation_must_answer_its_calls() -> None:
    called = assistant({"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}})
    ask = replace(asking("a", tools=[ADD]), messages=[user("a"), called, user("b")])
    with pytest.raises(BatonError) as caught:
        stateless(ask, NEWEST)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")


def test_a_session_whose_first_turns_stored_nothing_has_no_older_epoch() -> None:
    session = Session()
    session.begun = replace(EMPTY, turns=1, epoch_hash="a.b.c.d")
    epoch = session.prepare(asking("a")).epoch
    assert (epoch.start, epoch.reasons) == (0, ())


def test_the_last_digest() -> None:
    assert last_digest(History([], b"", b"")) == elements.FIRST_DIGEST
    packed = pack([user("a"), assistant(text("b"))], elements.FIRST_DIGEST)
    assert last_digest(History(packed, b"", b"")) == elements.unpack(packed[-1]).digest
