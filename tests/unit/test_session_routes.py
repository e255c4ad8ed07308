"""The pages of a session's messages."""

import pytest

from service.routes.sessions import _bounded

MIB = 1_048_576


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [([], 0), ([1] * 100, 100), ([MIB] * 8, 8), ([MIB] * 9, 8), ([4 * MIB, 4 * MIB + 1], 1), ([9 * MIB, 1], 1)],
)
def test_a_page_is_bounded_in_bytes_and_never_empty(sizes: list[int], kept: int) -> None:
    found = [bytes(size) for size in sizes]
    assert _bounded(found) == found[:kept]
