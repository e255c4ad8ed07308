"""A session's lines as they leave the store: all but the messages at one instant, then these, a page at a time.

Turns go on meanwhile. The messages that there were at that instant stay as they are unless somebody rewinds or deletes,
and that is found at the end: there is no end line then. Held at any time: the turns, and one page of messages.
"""

from collections.abc import AsyncIterator
from itertools import islice
from typing import Final

from service import archive
from service.errors import BatonError, session_corrupt
from service.stored import stored
from storage.keys import SessionRef
from storage.sessions import Sessions
from storage.transfer import Transfer, Whole

_PAGE_MESSAGES: Final = 100
_PAGE_BYTES_MAX: Final = 8 * 1_048_576
_LINES_AT_ONCE: Final = 200


async def lines(sessions: Sessions, transfer: Transfer, ref: SessionRef, whole: Whole) -> AsyncIterator[bytes]:
    """The lines of a session that was read, some at a time; the last piece is the end line.

    Raises:
        BatonError: history_moved, if it was rewound or deleted meanwhile, or may not be read any more; session_corrupt,
            if a part of it is missing; store_unavailable.
    """
    first = archive.first_lines(ref.id, whole)
    while some := b"".join(islice(first, _LINES_AT_ONCE)):
        yield some
    read = 0
    while read < whole.snapshot.messages:
        wanted = min(_PAGE_MESSAGES, whole.snapshot.messages - read)
        page = await stored(sessions.messages(ref, read, wanted, bytes_max=_PAGE_BYTES_MAX))
        if not page:
            break
        yield b"".join(map(archive.message_line, page))
        read += len(page)
    if not await stored(transfer.unchanged(ref, whole)):
        raise BatonError("history_moved", "The session was rewound or deleted while it was exported; export it again.")
    if read < whole.snapshot.messages:
        raise session_corrupt()
    yield archive.END_LINE
