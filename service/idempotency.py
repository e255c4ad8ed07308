"""Whether two requests are one and the same: the request as the store knows it again.

A caller who may send a request twice says so with ``Idempotency-Key``. Client libraries that send a request again by
themselves do not: the openai and anthropic SDKs send the same body and only raise the header
``x-stainless-retry-count``. So every request has a *fingerprint*: of who asks, in which dialect, of which session, and
of the body with its keys sorted and without ``stream`` and ``stream_options``, which do not change what is asked.
Headers do not count. What the store makes of it is in storage/scripts/shared/ring.lua.
"""

import base64
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import orjson
from starlette.types import Scope

from service.errors import BatonError
from service.headers import header
from storage.turns import Request

_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")
_NOT_ASKED: Final = ("stream", "stream_options")


def key_of(scope: Scope) -> str | None:
    """The idempotency key of a request; None without one.

    Raises:
        BatonError: invalid_value.
    """
    key = header(scope, b"idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise BatonError(
            "invalid_value", "Idempotency-Key has 1 to 255 printable ASCII characters.", param="Idempotency-Key"
        )
    return key


def request_of(
    scope: Scope, key: str | None, *, principal: str, dialect: str, session_id: str, body: Mapping[str, Any]
) -> Request:
    """The request as the store knows it again.

    Args:
        scope: for its headers.
        key: as `key_of` told.
        principal: who asks.
        dialect: in which form, or which native verb.
        session_id: the issued id.
        body: as it came, parsed.

    Raises:
        BatonError: invalid_value, for a body that cannot be written again.
    """
    return Request(
        fingerprint=_digest(principal.encode(), dialect.encode(), session_id.encode(), canonical(body)),
        key=_digest(principal.encode(), key.encode()) if key is not None else "",
        retried=key is None and _was_sent_before(scope),
    )


def nonce_of(owner: str, key: str, body: Mapping[str, Any]) -> str:
    """The nonce of a session's creation under a key: the same for the same request, so that it creates once."""
    return "head_" + _digest(owner.encode(), key.encode(), canonical(body))


def canonical(body: Mapping[str, Any]) -> bytes:
    """What a body asks for, in one form.

    Raises:
        BatonError: invalid_value, for a body nested deeper than JSON can be written.
    """
    asked = {name: value for name, value in body.items() if name not in _NOT_ASKED}
    try:
        return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        raise BatonError("invalid_value", "The body is nested too deeply.") from None


def comes_again(scope: Scope, key: str | None) -> bool:
    """Whether the request is of a client that sends it again by itself, and cannot be known by a key when it does."""
    return key is None and header(scope, b"x-stainless-retry-count") is not None


def _was_sent_before(scope: Scope) -> bool:
    """Whether an SDK says that it has sent this before; a count that is none counts as zero."""
    count = header(scope, b"x-stainless-retry-count") or ""
    return len(count) < 5 and count.isascii() and count.isdecimal() and int(count) > 0


def _digest(*parts: bytes) -> str:
    digest = blake2b(digest_size=10, person=b"baton-request")
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return base64.b32encode(digest.digest()).decode("ascii").lower()
