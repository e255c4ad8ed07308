"""One message of a session as one list element: 1 format byte, 8 bytes of rolling digest, then the JSON as it was.

The JSON is Anthropic's wire form, byte for byte what was or will be sent, so a replica slices the header off and
splices the rest into the next request without parsing it. The digest covers what a caller can see of the transcript
up to and including this message, so that a resent history is recognised by comparing one digest.

Format byte: the low four bits are the version (1); 0x10 the message holds thinking blocks; 0x20 it was made by
Baton itself and no caller has seen it: its digest is that of the message before; 0x80 its role is ``system``. They must
be known without parsing; none can be added later. 0x40 stands in the store only: big parts are kept elsewhere
(attachments.py).
"""

from hashlib import blake2b
from typing import NamedTuple

HEADER_BYTES = 9
DIGEST_BYTES = 8
FIRST_DIGEST = bytes(DIGEST_BYTES)
"""The digest before the first message."""

_VERSION = 0x01
_HOLDS_THINKING = 0x10
_SYNTHETIC = 0x20
SYSTEM = 0x80
LOOKED_AT = _HOLDS_THINKING | SYSTEM
"""Bits of messages that may be sent otherwise than they are stored."""
HAS_GAPS = 0x40
_VIEWED_BYTES_MIN = 65_536


class Element(NamedTuple):
    """A stored message, unpacked. ``json`` is Anthropic's ``{"role": …, "content": …}``."""

    json: bytes
    digest: bytes
    holds_thinking: bool
    synthetic: bool
    system: bool


def roll(digest: bytes, visible: bytes) -> bytes:
    """The digest after one more message whose caller-visible form is ``visible``."""
    return blake2b(visible, digest_size=DIGEST_BYTES, key=digest, person=b"baton-transcript"[:16]).digest()


def pack(
    json: bytes, digest: bytes, *, holds_thinking: bool = False, synthetic: bool = False, system: bool = False
) -> bytes:
    """One list element."""
    flags = _VERSION | (_HOLDS_THINKING * holds_thinking) | (_SYNTHETIC * synthetic) | (SYSTEM * system)
    return bytes((flags,)) + digest + json


def tells_system(element: bytes) -> bool:
    """Whether it is a message of Baton's own that tells another system prompt."""
    return element[0] & (SYSTEM | _SYNTHETIC) == SYSTEM | _SYNTHETIC


def unpack(element: bytes) -> Element:
    """The parts of a list element.

    Raises:
        ValueError: it was written by a version of Baton that this one does not know.
    """
    flags = element[0]
    if flags & 0x0F != _VERSION:
        raise ValueError(f"unknown element version {flags & 0x0F}")
    return Element(
        element[HEADER_BYTES:],
        element[1:HEADER_BYTES],
        bool(flags & _HOLDS_THINKING),
        bool(flags & _SYNTHETIC),
        bool(flags & SYSTEM),
    )


def json_of(element: bytes) -> bytes | memoryview:
    """The JSON of a list element; of a large one it is not copied."""
    return element[HEADER_BYTES:] if len(element) < _VIEWED_BYTES_MIN else memoryview(element)[HEADER_BYTES:]
