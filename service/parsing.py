"""JSON from callers: that it makes too many values is known before one is made.

A parsed value takes 50 to 100 bytes, however few of the text stand for it: a body full of `[],` would take thirty times
its own size. Every value but the first stands behind a comma or a bracket that opens, outside of strings. These are
counted, in one pass that keeps nothing.
"""

import re
from typing import Any, Final

import orjson

from service.errors import BatonError

VALUES_MAX: Final = 1_000_000
"""Of one text. A conversation has some for each block; a window of a million tokens has no room for so many."""

# Possessive throughout, and a string may lack its closing quote: each byte is looked at once, whatever the text is.
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_TOO_MANY: Final = re.compile(rb'(?:(?:[^",\[{]++|%b)*+[,\[{]){%d}+' % (_STRING, VALUES_MAX), re.DOTALL)


def parse_json(text: bytes, what: str = "The body") -> Any:
    """The value that a text of a caller's is.

    Args:
        text: JSON, in UTF-8.
        what: is told to be wrong, at the beginning of a sentence.

    Raises:
        BatonError: invalid_json; request_too_large, if it holds more than `VALUES_MAX` values.

    Cost: 4 ms for each MiB of a text that could hold so many, beside the parsing.
    """
    if len(text) > VALUES_MAX and _TOO_MANY.match(text):
        raise BatonError("request_too_large", f"{what} may hold at most {VALUES_MAX:,} JSON values.")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BatonError("invalid_json", f"{what} is not JSON: {error.msg} (at {error.pos}).") from None
