"""What is big in a message is taken out and put back: byte for byte, whatever the message holds."""

import tracemalloc
from hashlib import sha256
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.model_table import NEWEST
from service.prefix import Ask, continued
from service.transcript import pack, visible
from storage import elements
from storage.attachments import INLINE_BYTES_MAX, fill, filled_bytes, fitting, gaps, outline, take_out, take_out_all
from storage.elements import FIRST_DIGEST, HEADER_BYTES
from storage.results import Begun
from storage.turns import History

MIB = 1_048_576
BIG = "x" * (INLINE_BYTES_MAX + 1)


def image(data: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def document(data: str) -> dict[str, Any]:
    return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": data}}


def result(*content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "call_1", "content": list(content)}


def said(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def element_of(*content: dict[str, Any]) -> bytes:
    return pack([said(*content)], FIRST_DIGEST)[0]


def back(element: bytes) -> bytes:
    """The element taken apart and put together."""
    stored, taken = take_out(element)
    return fill(stored, {name: bytes(part) for name, part in taken.items()})


# Texts of any size about the bound, with what could be mistaken for the end of a string, or for a mark.
tricky = st.lists(st.sampled_from(['"', "\\", '\\"', '"data":"', "é", "\n", "\0", "}", "ab"]), max_size=6).map("".join)
texts = st.builds(lambda part, times: (part or "x") * times, tricky, st.sampled_from([0, 1, 20_000, 65_536, 65_537]))
blocks = st.recursive(
    texts.map(image) | texts.map(document) | texts.map(lambda text: {"type": "text", "text": text, "data": text}),
    lambda inner: st.lists(inner, max_size=2).map(lambda content: result(*content)),
    max_leaves=3,
)
quick = settings(deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(content=st.lists(blocks, max_size=4), thinking=st.booleans(), synthetic=st.booleans())
def test_any_message_is_filled_as_it_was(content: list[dict[str, Any]], thinking: bool, synthetic: bool) -> None:
    json = orjson.dumps(said(*content))
    element = elements.pack(json, b"12345678", holds_thinking=thinking, synthetic=synthetic)
    stored, taken = take_out(element)
    assert back(element) == element
    assert filled_bytes(stored) - len(element) in (0, 2 + 40 * len(gaps(stored)))
    assert all(len(part) > INLINE_BYTES_MAX and sha256(part).hexdigest() == name for name, part in taken.items())
    assert orjson.loads(outline(stored)[HEADER_BYTES:])["role"] == "user", "what is left is JSON, too"


@quick
@given(
    parts=st.lists(st.sampled_from([b'"data":"', b"\\", b'"', b"\0", b"x" * 70_000, b'\\"' * 40_000, b"\xff"])),
    tail=st.binary(max_size=9),
)
def test_any_bytes_are_filled_as_they_were(parts: list[bytes], tail: bytes) -> None:
    """Nothing depends on its being JSON."""
    element = elements.pack(b"".join(parts) + tail, FIRST_DIGEST)
    assert back(element) == element


@pytest.mark.parametrize("content", [image(BIG), document(BIG), result(image(BIG)), result(document(BIG))])
def test_images_and_documents_are_taken_out_wherever_they_are(content: dict[str, Any]) -> None:
    stored, taken = take_out(element_of(content))
    assert list(taken) == [sha256(BIG.encode()).hexdigest()]
    assert bytes(*taken.values()) == BIG.encode()
    assert len(stored) < 300


def test_what_is_as_large_as_the_bound_stays() -> None:
    element = element_of(image(BIG[1:]), document("small"), {"type": "text", "text": BIG})
    assert take_out(element) == (element, {})


def test_a_text_is_kept_as_it_stands_in_the_json() -> None:
    text = 'He said "no" \\ and\nleft. ' * 5_000
    _, taken = take_out(element_of(document(text), document(BIG), document(text)))
    assert [bytes(part) for part in taken.values()] == [orjson.dumps(text)[1:-1], BIG.encode()]


def test_the_form_of_an_element_with_gaps_never_changes() -> None:
    """Literal on purpose: stored sessions hold it."""
    stored, _ = take_out(elements.pack(b'{"data":"%s","b":1}' % BIG.encode(), b"12345678", holds_thinking=True))
    table = b"\0\x01" + b"\0\0\0\x09" + b"\0\x01\0\x01" + sha256(BIG.encode()).digest()
    assert stored == b"\x5112345678" + table + b'{"data":"","b":1}'


def test_what_the_session_has_is_not_taken_along() -> None:
    element = element_of(image(BIG), image(BIG + "y"))
    (stored, again), taken = take_out_all([element, element], [sha256(BIG.encode()).hexdigest()])
    assert [bytes(part) for part in taken.values()] == [(BIG + "y").encode()]
    assert stored == again
    assert len(gaps(stored)) == 2


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [([1] * 100, 100), ([MIB] * 8, 8), ([MIB] * 9, 8), ([4 * MIB, 4 * MIB + 1], 1), ([9 * MIB, 1], 1)],
)
def test_a_page_is_bounded_in_bytes_and_never_empty(sizes: list[int], kept: int) -> None:
    assert fitting([bytes(size) for size in sizes], 8 * MIB) == kept


def test_a_page_is_bounded_by_what_its_messages_are_with_attachments() -> None:
    stored, _ = take_out(element_of(document("x" * 3 * MIB)))
    assert fitting([stored] * 5, 8 * MIB) == 2


def test_what_callers_see_counts_whole() -> None:
    """A history that is sent again is recognised though its attachments lie elsewhere."""
    (stored, other), _ = take_out_all([element_of(image(BIG)), element_of(image(BIG + "y"))], [])
    assert elements.unpack(outline(stored)).digest == elements.roll(FIRST_DIGEST, visible(said(image(BIG))))
    assert outline(stored)[HEADER_BYTES:] == outline(other)[HEADER_BYTES:]
    assert elements.unpack(outline(stored)).digest != elements.unpack(outline(other)).digest


# Memory: a big string is copied into its message, and with that into the request; nowhere else.

BEGUN = Begun(1, "head_x", 1, 0, 0, "", "", 0, 1, "")
ASK = Ask(model="m-1", messages=[], system=None, params={})


def copies(size_bytes: int, doing: Any) -> float:
    """How many times the size of a big string is held at the worst moment, beyond what was there before."""
    tracemalloc.start()
    doing()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / size_bytes


def test_a_big_string_is_copied_once_to_fill_its_message_and_once_into_the_request() -> None:
    size_bytes = 8 * MIB
    stored, taken = take_out(element_of(image("x" * size_bytes)))
    read = {name: bytes(part) for name, part in taken.items()}
    new = pack([said({"type": "text", "text": "and?"})], stored[1:HEADER_BYTES])
    history = History([fill(stored, read)], b"", b"")
    assert 1.0 <= copies(size_bytes, lambda: fill(stored, read)) < 1.1
    assert 1.0 <= copies(size_bytes, lambda: continued(ASK, BEGUN, history, new, NEWEST)) < 1.1


def test_a_big_string_is_not_copied_to_be_taken_out() -> None:
    element = element_of(image("x" * 8 * MIB))
    assert copies(8 * MIB, lambda: take_out(element)) < 0.1
