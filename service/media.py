"""What images and documents may be, wherever they come in: the media types that Claude takes, and sound base64; pure.

Source: Anthropic API reference, "Vision" and "PDF support". What is stored is sent again with every later turn, so what
Claude would refuse must not get that far.
"""

import re
from typing import Final

IMAGES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")
PDF: Final = "application/pdf"
TEXT: Final = "text/plain"
URL_CHARS_MAX: Final = 8192
TITLE_CHARS_MAX: Final = 500

_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_WEB: Final = re.compile(r"https?://[!-~]+", re.IGNORECASE)


def is_base64(data: object) -> bool:
    """Whether it is base64 with its padding and without line breaks, and not empty."""
    return isinstance(data, str) and len(data) % 4 == 0 and _BASE64.fullmatch(data) is not None


def is_web_address(url: object) -> bool:
    """Whether it is an http(s) URL of a length that is taken."""
    return isinstance(url, str) and len(url) <= URL_CHARS_MAX and _WEB.fullmatch(url) is not None
