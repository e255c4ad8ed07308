"""What can be the name of a model, wherever one is given: in a request, a session, a setting; pure.

A name is kept in the record of every turn, before Claude is asked whether it knows the model. So it is bounded.
"""

import re
from typing import Final, TypeGuard

CHARS_MAX: Final = 200

PROBLEM: Final = f"must be 1 to {CHARS_MAX} printable ASCII characters without spaces"
"""What is wrong with a name that `sound` does not accept; a sentence goes on with it."""

_SOUND: Final = re.compile(rf"[\x21-\x7e]{{1,{CHARS_MAX}}}")


def sound(name: object) -> TypeGuard[str]:
    """Whether it can be a model's name, or an alias of one."""
    return isinstance(name, str) and _SOUND.fullmatch(name) is not None
