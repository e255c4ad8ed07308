"""The place where a list of sessions goes on: a position in the index, signed; pure.

A cursor is bound to whose list it was and to its filters, so it can be neither forged nor carried to another list. It
holds no secret: the position is the last session that its holder was shown. It lives a day; a list is not a bookmark.
"""

import base64
import binascii
import hmac
import struct
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

import orjson

from service.errors import BatonError
from storage.index import Listed

CURSOR_LIFE_S: Final = 86_400
_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BQQ")  # version, score of the position (ms), issued at (s)
_MAC_BYTES: Final = 16


class Cursors:
    """Issues and reads cursors.

    Args:
        secret: of the namespace; all replicas have the same.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = secret if len(secret) <= 64 else blake2b(secret).digest()

    def issue(self, position: Listed, owner: str, filters: Mapping[str, str], *, now_s: int) -> str:
        """The cursor of everything after ``position`` in the owner's list with these filters."""
        payload = _HEAD.pack(_VERSION, position.score, now_s) + position.session_id.encode()
        raw = payload + self._mac(payload, owner, filters)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def read(self, cursor: str, owner: str, filters: Mapping[str, str], *, now_s: int) -> Listed:
        """The position of a cursor.

        Raises:
            BatonError: invalid_value if it was not issued for this list, or more than a day ago.
        """
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _refused() from None
        payload, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if len(payload) <= _HEAD.size or not hmac.compare_digest(mac, self._mac(payload, owner, filters)):
            raise _refused()
        version, score, issued_s = _HEAD.unpack_from(payload)
        if version != _VERSION or not now_s - CURSOR_LIFE_S <= issued_s <= now_s + CURSOR_LIFE_S:
            raise _refused()
        return Listed(score, payload[_HEAD.size :].decode())

    def _mac(self, payload: bytes, owner: str, filters: Mapping[str, str]) -> bytes:
        bound = orjson.dumps([owner, sorted(filters.items())])
        digest = blake2b(key=self._key, person=b"baton-cursor", digest_size=_MAC_BYTES)
        digest.update(len(bound).to_bytes(4, "big") + bound + payload)
        return digest.digest()


def _refused() -> BatonError:
    return BatonError(
        "invalid_value",
        "The cursor is not one of this list: take it as `next_cursor` from a page with the same filters, within a day.",
        param="cursor",
    )
