"""What the store answers, or why it does not, as a caller is told it."""

from collections.abc import Awaitable
from typing import TypeVar

from service.errors import conversation_too_large, session_corrupt, store_unavailable
from storage.results import HistoryTooLarge, SessionTorn, StoreUnavailable

T = TypeVar("T")


async def stored(asking: Awaitable[T]) -> T:
    """What the store answers.

    Raises:
        BatonError: store_unavailable; session_corrupt, if a part of a history is missing; request_too_large, if it is
            larger than Claude takes.
    """
    try:
        return await asking
    except StoreUnavailable as error:
        raise store_unavailable(error) from error
    except SessionTorn as error:
        raise session_corrupt() from error
    except HistoryTooLarge as error:
        raise conversation_too_large(error.size_bytes) from error
