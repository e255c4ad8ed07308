"""Server-sent events cut from bytes, whatever the chunks."""

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BatonError
from service.events import Event, EventReader

ONE = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "é 🙂\n\n\r\ndata: x"}}
TWO = {"type": "message_stop"}
STREAM = (
    b": a comment\n\n"
    + b"event: content_block_delta\ndata: %b\n\n" % orjson.dumps(ONE)
    + b": another\nid: 7\nretry: 5\nevent: message_stop\ndata:%b\n\n" % orjson.dumps(TWO)
    + b"\n\n"
    + b'data: {"type":\ndata: "ping",\ndata: "n": 1}\n\n'
)
EXPECTED = [ONE, TWO, {"type": "ping", "n": 1}]


def read(chunks: list[bytes]) -> list[Event]:
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("stream", [STREAM, STREAM.replace(b"\n", b"\r\n")], ids=["lf", "crlf"])
def test_events_are_parsed_once_and_kept_as_they_came(stream: bytes) -> None:
    events = read([stream])
    assert [event.data for event in events] == EXPECTED
    assert [event.type for event in events] == ["content_block_delta", "message_stop", "ping"]
    assert all(orjson.loads(event.raw) == event.data for event in events)
    assert events[0].raw == orjson.dumps(ONE)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_every_single_cut_and_every_byte_alone(line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    for place in range(len(stream) + 1):
        assert [event.data for event in read([stream[:place], stream[place:]])] == EXPECTED, place
    assert [event.data for event in read([stream[i : i + 1] for i in range(len(stream))])] == EXPECTED


@given(st.lists(st.integers(0, 10_000), max_size=30), st.sampled_from([b"\n", b"\r\n"]))
def test_any_cuts(places: list[int], line_end: bytes) -> None:
    assert [event.data for event in read(cut(STREAM.replace(b"\n", line_end), places))] == EXPECTED


def test_an_event_is_told_by_the_chunk_that_completes_it() -> None:
    reader = EventReader()
    assert reader.feed(b'data: {"type": "a"}\n') == []
    assert [event.type for event in reader.feed(b'\ndata: {"type": "b"}')] == ["a"]
    assert [event.type for event in reader.feed(b"\n\n")] == ["b"]
    assert reader.feed(b"") == []


def test_an_event_without_its_end_is_none() -> None:
    assert read([b'data: {"type": "a"}\n']) == []


@pytest.mark.parametrize(
    "payload",
    [b"nonsense", b"{", b"[DONE]", b"[]", b"5", b"null", b'"type"', b"{}", b'{"kind": "x"}', b'{"type": "\xff"}'],
)
def test_what_is_not_an_object_with_a_type_is_nonsense(payload: bytes) -> None:
    with pytest.raises(BatonError) as caught:
        read([b"data: " + payload + b"\n\n"])
    assert caught.value.code == "upstream_nonsense"


def test_an_endless_event_is_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.events._EVENT_BYTES_MAX", 100)
    reader = EventReader()
    reader.feed(b"data: " + b"x" * 90)
    with pytest.raises(BatonError) as caught:
        reader.feed(b"x" * 10)
    assert caught.value.code == "upstream_nonsense"


def test_the_json_of_an_event_is_one_line_however_it_came() -> None:
    (*_, last) = read([STREAM])
    assert last.raw == b'{"type":"ping","n":1}'


def test_a_type_that_would_break_a_frame_is_nonsense() -> None:
    for kind in ("a\n\ndata: b", "a b", "", 7):
        with pytest.raises(BatonError):
            read([b"data: %b\n\n" % orjson.dumps({"type": kind})])
