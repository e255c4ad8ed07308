"""Cursors: read back as issued, and useless to anybody else, for another list, changed, or a day later."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cursor import CURSOR_LIFE_S, Cursors
from service.errors import BatonError
from storage.index import Listed

NOW = 1_800_000_000
CURSORS = Cursors(b"0123456789abcdef")
PLACE = Listed(1_800_000_000_123, "sess_00" + "a" * 26)
FILTERS = {"title_prefix": "A", "metadata[k]": "v"}


def issued(filters: dict[str, str] = FILTERS) -> str:
    return CURSORS.issue(PLACE, "alice", filters, now_s=NOW)


def refused(
    cursor: str, owner: str = "alice", filters: dict[str, str] = FILTERS, now_s: int = NOW, cursors: Cursors = CURSORS
) -> bool:
    try:
        cursors.read(cursor, owner, filters, now_s=now_s)
    except BatonError as error:
        assert (error.code, error.param, error.status) == ("invalid_value", "cursor", 400)
        return True
    return False


def test_a_cursor_is_read_back_as_issued_whatever_the_order_of_filters() -> None:
    assert CURSORS.read(issued(), "alice", dict(reversed(FILTERS.items())), now_s=NOW) == PLACE
    assert CURSORS.read(issued({}), "alice", {}, now_s=NOW + CURSOR_LIFE_S) == PLACE
    long = Cursors(b"x" * 100)
    assert long.read(long.issue(PLACE, "alice", {}, now_s=NOW), "alice", {}, now_s=NOW) == PLACE


def test_a_cursor_needs_no_escaping_in_a_url() -> None:
    assert issued().replace("-", "").replace("_", "").isalnum()


def test_a_cursor_is_bound_to_owner_filters_and_secret() -> None:
    assert refused(issued(), owner="bob")
    for filters in (
        {},
        {"title_prefix": "A"},
        {"title_prefix": "A", "metadata[k]": "w"},
        {**FILTERS, "metadata[l]": ""},
    ):
        assert refused(issued(), filters=filters), filters
    assert refused(issued(), cursors=Cursors(b"another secret 16"))


def test_a_cursor_lives_a_day() -> None:
    assert not refused(issued(), now_s=NOW + CURSOR_LIFE_S)
    assert refused(issued(), now_s=NOW + CURSOR_LIFE_S + 1)
    assert not refused(issued(), now_s=NOW - 60), "another replica's clock may be a little behind"


def test_any_changed_byte_is_found() -> None:
    raw = base64.urlsafe_b64decode(issued() + "==")
    for at in range(len(raw)):
        forged = raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :]
        assert refused(base64.urlsafe_b64encode(forged).decode().rstrip("="))


@pytest.mark.parametrize(
    "cursor", ["", "a", "%%%", "=", "é", "A" * 10_000, issued()[:-1], issued() + "A", issued()[4:]]
)
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    assert refused(cursor)


@given(st.text(max_size=80))
def test_no_text_breaks_the_reader(text: str) -> None:
    assert refused(text)
