"""An export that is under way: it goes on only as long as its reader may read the session."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from service import archive
from service.errors import BatonError
from service.routes import transfer
from storage.elements import FIRST_DIGEST, pack
from storage.keys import Keyspace

pytestmark = pytest.mark.anyio

KEYSPACE = Keyspace("baton", 1, b"0123456789abcdef")
REF = KEYSPACE.session(KEYSPACE.issue(), "bob")
ELEMENT = pack(b'{"role":"user","content":"a"}', FIRST_DIGEST)


class Read:
    """A session of 250 messages that is read in pages; something may happen before one of them is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, messages: int = 250) -> None:
        monkeypatch.setattr(archive, "first_lines", lambda *_: [b"first\n"])
        self.whole: Any = SimpleNamespace(snapshot=SimpleNamespace(messages=messages))
        self.there, self.pages, self.held = True, 0, 0
        self.before: Callable[[int], None] = lambda page: None
        self.lost: Callable[[], None] = lambda: None

    async def messages(self, _: Any, start: int, count: int, *, bytes_max: int) -> list[bytes]:
        self.pages += 1
        self.before(self.pages)
        return [ELEMENT] * count

    async def unchanged(self, *_: Any) -> bool:
        return self.there

    def hold(self, end: Callable[[], None]) -> Callable[[], None]:
        self.held += 1
        self.lost = end

        def release() -> None:
            self.held -= 1

        return release

    async def told(self) -> tuple[list[bytes], str]:
        """The lines, and the code of what ended them."""
        store: Any = self
        lines: list[bytes] = []
        try:
            async for some in transfer.exported(store, store, REF, self.whole, self.hold):
                assert self.held == 1
                lines += some.splitlines()
        except BatonError as error:
            return lines, error.code
        finally:
            assert self.held == 0
        return lines, ""


@pytest.mark.parametrize("messages", [0, 250])
async def test_an_export_ends_with_its_end_line(monkeypatch: pytest.MonkeyPatch, messages: int) -> None:
    lines, code = await Read(monkeypatch, messages).told()
    assert (len(lines), lines[-1], code) == (messages + 2, archive.END_LINE.rstrip(), "")


async def test_a_key_that_is_lost_ends_it_before_the_next_page(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Read(monkeypatch)
    read.before = lambda page: read.lost() if page == 2 else None
    lines, code = await read.told()
    assert (len(lines), code, read.pages) == (101, "revoked_api_key", 2)


@pytest.mark.parametrize("messages", [0, 250])
async def test_a_share_that_is_lost_ends_it_before_the_next_page(
    monkeypatch: pytest.MonkeyPatch, messages: int
) -> None:
    read = Read(monkeypatch, messages)

    def taken(page: int) -> None:
        read.there = page < 2

    read.before = taken
    read.there = bool(messages)
    lines, code = await read.told()
    assert (len(lines), code) == (101 if messages else 1, "history_moved")
