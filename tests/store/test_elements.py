"""One message as one list element: nothing is lost, and the digest tells transcripts apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.elements import DIGEST_BYTES, FIRST_DIGEST, HEADER_BYTES, Element, pack, roll, tells_system, unpack

digests = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)


@given(json=st.binary(), digest=digests, thinking=st.booleans(), synthetic=st.booleans(), system=st.booleans())
def test_an_element_is_read_as_it_was_packed(
    json: bytes, digest: bytes, thinking: bool, synthetic: bool, system: bool
) -> None:
    packed = pack(json, digest, holds_thinking=thinking, synthetic=synthetic, system=system)
    assert unpack(packed) == Element(json, digest, thinking, synthetic, system)
    assert tells_system(packed) == (synthetic and system)
    assert packed[HEADER_BYTES:] == json


def test_the_form_of_an_element_never_changes() -> None:
    """Literal on purpose: stored sessions hold it."""
    assert pack(b"{}", b"12345678") == b"\x0112345678{}"
    assert pack(b"{}", b"12345678", holds_thinking=True) == b"\x1112345678{}"
    assert pack(b"{}", b"12345678", synthetic=True) == b"\x2112345678{}"
    assert pack(b"{}", b"12345678", system=True) == b"\x8112345678{}"
    assert roll(FIRST_DIGEST, b"hello").hex() == "21bfa7567e4f9f0d"


@given(digest=digests, version=st.integers(0, 15).filter(lambda version: version != 1))
def test_an_unknown_version_is_refused(digest: bytes, version: int) -> None:
    with pytest.raises(ValueError, match=f"unknown element version {version}"):
        unpack(bytes((version,)) + digest + b"{}")


@given(before=st.lists(st.binary(), max_size=5), after=st.lists(st.binary(), max_size=5))
def test_two_transcripts_have_one_digest_only_if_they_are_the_same(before: list[bytes], after: list[bytes]) -> None:
    rolled = []
    for transcript in (before, after):
        digest = FIRST_DIGEST
        for visible in transcript:
            digest = roll(digest, visible)
        rolled.append(digest)
    assert (rolled[0] == rolled[1]) == (before == after)
