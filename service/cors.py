"""What pages of other origins may do with Baton: nothing, unless BATON_CORS_ORIGINS lists them (WHATWG Fetch, "CORS").

A page that may, may read every header of ours and send every one that Baton understands. Cookies mean nothing here, so
credentials in the browser's sense are never allowed.
"""

from typing import Final

from starlette.types import Scope

from service import headers

Pairs = list[tuple[bytes, bytes]]

_PLAIN: Final = ("Authorization", "Content-Type", "x-api-key")
# The star stands for what SDKs add of their own (x-stainless-os, …); not for Authorization, which must be named.
_ASKED: Final = ", ".join([*_PLAIN, *headers.at("request"), "*"]).encode()
_TOLD: Final = ", ".join(headers.at("answer", "error")).encode()
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_FOR_S: Final = b"600"


class Cors:
    """The rule.

    Args:
        origins: as browsers write them; ``*`` for all.
    """

    def __init__(self, origins: frozenset[str]) -> None:
        self._origins = {origin.encode() for origin in origins}

    def told(self, scope: Scope) -> Pairs:
        """The headers that let a page read this response; none for others."""
        if not self._origins:
            return []
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        allowed = b"*" if b"*" in self._origins else origin if origin in self._origins else None
        vary = [] if b"*" in self._origins else [(b"vary", b"origin")]
        if allowed is None or origin is None:
            return vary
        return [*vary, (b"access-control-allow-origin", allowed), (b"access-control-expose-headers", _TOLD)]

    def preflight(self, scope: Scope) -> Pairs | None:
        """What a browser is told besides that asks before it sends a page's request; None if it does not ask that."""
        if not self._origins or scope["method"] != "OPTIONS":
            return None
        if not any(name == b"access-control-request-method" for name, _ in scope["headers"]):
            return None
        if not any(name == b"access-control-allow-origin" for name, _ in self.told(scope)):
            return []
        return [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _ASKED),
            (b"access-control-max-age", _FOR_S),
        ]
