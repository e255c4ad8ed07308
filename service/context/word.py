"""What a turn leaves about the session's context for the next one: one word in the session's hash; pure.

Opaque to the store. Commit writes it, begin answers it. A word that is not understood, of an older or a newer version,
is as none: everything in it is a help, and nothing depends on it.
"""

import re
from typing import Final, NamedTuple

_SOUND_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Context(NamedTuple):
    """The context after a turn.

    Attributes:
        asked: so many messages of the history were in the turn's request.
        message_id: of Claude's answer; "" if it named none.
    """

    asked: int = 0
    message_id: str = ""

    def packed(self) -> str:
        """As it is stored."""
        return f"1 {self.asked} {self.message_id}"


UNKNOWN: Final = Context()
"""Before the first turn."""


def unpacked(word: str) -> Context:
    """A stored word; `UNKNOWN` if it is none."""
    match word.split(" "):
        case ["1", asked, message_id] if asked.isdecimal():
            return Context(int(asked), message_id)
    return UNKNOWN


def sound_id(message_id: str | None) -> str:
    """The id of an answer, if it can be kept; Claude's can."""
    return message_id if message_id and _SOUND_ID.fullmatch(message_id) else ""
