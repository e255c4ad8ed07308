"""Texts of callers: JSON or a precise error, and never more values than are bounded."""

import re
import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BatonError
from service.parsing import _TOO_MANY, VALUES_MAX, parse_json

FEW = {
    "a text of commas": b'{"text":"' + b"a," * VALUES_MAX + b'"}',
    "quotes inside of it": b'["' + rb"\"," * VALUES_MAX + b'"]',
    "backslashes at its end": b'["' + rb"\\," * VALUES_MAX + rb'\\"]',
    "as many values as may be": b"[" + b"1," * (VALUES_MAX - 2) + b"1]",
}
MANY = {
    "empty lists": b"[" + b"[]," * VALUES_MAX + b"1]",
    "numbers": b"[" + b"1," * VALUES_MAX + b"1]",
    "members": b"{" + b'"a":1,' * VALUES_MAX + b'"a":1}',
    "between texts": b"[" + rb'"\",",' * VALUES_MAX + b'""]',
    "and it is none": b"[1," * VALUES_MAX,
}


@pytest.mark.parametrize("text", FEW.values(), ids=FEW)
def test_what_stands_in_a_text_is_no_value(text: bytes) -> None:
    assert parse_json(text)


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_too_many_values_are_refused_before_any_is_made(text: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BatonError) as refused:
            parse_json(text)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.code == "request_too_large"
    assert refused.value.message == "The body may hold at most 1,000,000 JSON values."
    assert most < 100_000


def test_what_is_no_json_is_told_by_its_place() -> None:
    with pytest.raises(BatonError) as refused:
        parse_json(b'{"a"', "Line 7")
    assert refused.value.code == "invalid_json"
    assert refused.value.message == "Line 7 is not JSON: unexpected end of data (at 4)."


@given(st.text(alphabet='a,[{"\\'), st.integers(0, 4))
def test_texts_are_left_out_of_the_count_whole_and_alone(text: str, more: int) -> None:
    written = orjson.dumps([text, *[{text: text}] * more, text])
    openers = 2 + 2 * more
    for least in (openers, openers + 1):
        many = re.compile(_TOO_MANY.pattern.replace(b"%d" % VALUES_MAX, b"%d" % least), re.DOTALL)
        assert bool(many.match(written)) == (least == openers)
