"""A session's lines as they leave the store: all but the messages at one instant, then these, a page at a time.

Turns go on meanwhile. The messages that there were at that instant stay as they are unless somebody rewinds or deletes,
and that is found before the next page: there is no end line then. Held at any time: the turns and one page.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import Final

from service import archive
from service.errors import BatonError, session_corrupt
from service.interrupt import Interrupt
from service.stored import stored
from storage.keys import SessionRef
from storage.sessions import Sessions
from storage.transfer import Transfer, Whole

_PAGE_MESSAGES: Final = 100
_PAGE_BYTES_MAX: Final = 8 * 1_048_576
_LINES_AT_ONCE: Final = 200
Hold = Callable[[Callable[[], None]], Callable[[], None]]


def for_ever(end: Callable[[], None]) -> Callable[[], None]:
    """For a reader whose right to read does not end."""
    return lambda: None


async def lines(
    sessions: Sessions, transfer: Transfer, ref: SessionRef, whole: Whole, hold: Hold = for_ever
) -> AsyncIterator[bytes]:
    """The lines of a session that was read, some at a time, as long as they may be; the last piece is the end line.

    Args:
        sessions: the store.
        transfer: the store.
        ref: the session.
        whole: the same, as it was read.
        hold: notes what is to be called once the reader's key may not read any more.

    Raises:
        BatonError: history_moved, if it was rewound or deleted meanwhile, or is not shared any more; revoked_api_key;
            session_corrupt, if a part of it is missing; store_unavailable.
    """
    lost = asyncio.Event()
    release = hold(lost.set)
    try:
        first = iter(archive.first_lines(ref.id, whole))
        while some := b"".join(islice(first, _LINES_AT_ONCE)):
            yield some
        read = 0
        while read < whole.snapshot.messages:
            wanted = min(_PAGE_MESSAGES, whole.snapshot.messages - read)
            try:
                page = await stored(sessions.messages(ref, read, wanted, bytes_max=_PAGE_BYTES_MAX))
            except BatonError as error:
                if error.code != "session_corrupt":
                    raise
                page = []  # as where it is deleted between its messages and their attachments
            # Asked behind the page, so that none is told that was read after the change.
            await _still(transfer, ref, whole, lost)
            if not page:
                raise session_corrupt()
            yield b"".join(map(archive.message_line, page))
            read += len(page)
        if not read:
            await _still(transfer, ref, whole, lost)
        yield archive.END_LINE
    finally:
        release()


async def _still(transfer: Transfer, ref: SessionRef, whole: Whole, lost: asyncio.Event) -> None:
    if lost.is_set():
        raise Interrupt.REVOKED.told()
    if not await stored(transfer.unchanged(ref, whole)):
        raise BatonError(
            "history_moved",
            "While it was exported the session was rewound or deleted, or shared no more; export it again.",
        )
