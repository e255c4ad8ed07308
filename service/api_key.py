"""The text of a key: ``baton_`` + 26 characters of its id + ``_`` + 32 random ones (160 bits) + 8 of a checksum; pure.

All but the first six are base32 in lower case. The id, which is no secret, tells where the key is stored. The checksum,
which anybody can compute, tells a key that was cut or mistyped from one that is not known, without asking the store,
and a scanner for leaked secrets from chance.
"""

import base64
import re
import secrets
from hashlib import blake2b
from typing import Final

TEXT: Final = re.compile(r"baton_([a-z2-7]{26})_([a-z2-7]{32})([a-z2-7]{8})")
CHARS: Final = 73


def issue(key_id: str) -> str:
    """A new text for a key. It is shown to whoever asked for it, once, and not kept."""
    secret = base64.b32encode(secrets.token_bytes(20)).decode("ascii").lower()
    head = f"baton_{key_id.removeprefix('key_')}_{secret}"
    return head + _checksum(head)


def key_id_of(text: str) -> str | None:
    """The id of the key whose text this is; None if it is none's. Constant work, whatever the text."""
    if len(text) != CHARS:
        return None
    found = TEXT.fullmatch(text)
    if found is None or _checksum(text[:-8]) != found[3]:
        return None
    return f"key_{found[1]}"


def _checksum(head: str) -> str:
    digest = blake2b(head.encode("ascii"), digest_size=5, person=b"baton-checksum")
    return base64.b32encode(digest.digest()).decode("ascii").lower()
