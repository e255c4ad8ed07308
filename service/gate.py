"""The gate: from a request's credential to what it may do. Every operation that is not open to everybody passes it.

Three modes, which may change while a replica runs:

    keys     BATON_AUTH=keys, or a BATON_ADMIN_KEY, or there was ever a key. A credential is needed.
    open     BATON_AUTH=open, or none of these, on loopback only. Credentials are ignored; nobody has `admin`.
    unknown  it depends on whether there is a key, and the store has not told yet. Everything is 503 until it has.

With the first key all replicas change from open to keys within a second or two. There is no way back but
BATON_AUTH=open: a service must not fall open because its last key was deleted. What was admitted before goes on.

A credential comes as ``Authorization: Bearer`` or ``x-api-key``; both, and different, are 400. Told apart, all of them
401: missing, malformed, unknown (also: a known id with another secret), expired, disabled. Of a key only a keyed digest
is compared, in constant time; BATON_ADMIN_KEY in the same way.

A request is judged before its body is read, and once more when it is there, for a body may take its time. What
runs when its key is disabled, deleted, expired or loses the scope that it needs ends within seconds with
`revoked_api_key` in its dialect; a streamed turn is then stored as if its caller had hung up (`cancel`).

**Browsers.** A page of any site can send requests to loopback and to private networks. In open mode a request that
says where it comes from (``Origin``) is refused unless that is Baton's own address or one of BATON_CORS_ORIGINS; on
loopback, unless BATON_AUTH=open says that whoever reaches it may use it, it must also be addressed to loopback
(``Host``), or a name that was bound to 127.0.0.1 afterwards would make a foreign page one of the same origin.
"""

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import urlsplit

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import access, api_key, logs, telemetry
from service.access import ADMIN_PRINCIPAL, ALL_SCOPES, OPEN_PRINCIPAL, OPEN_SCOPES, USER, Grant, Held
from service.errors import BatonError
from service.headers import header
from service.interrupt import Interrupt
from service.known_keys import KnownKeys
from service.stored import stored
from storage.api_keys import ApiKey

Mode = Literal["keys", "open", "unknown"]
_CREDENTIAL_CHARS_MAX: Final = 1024
_REALM: Final = 'Bearer realm="baton"'
_INVALID: Final = {"www-authenticate": f'{_REALM}, error="invalid_token"'}
OPEN_WARNING: Final = "Callers are not authenticated: everybody who can reach this address may use it."


class Gate:
    """The gate of one replica.

    Args:
        auth: BATON_AUTH; None if it is not set.
        admin_key: BATON_ADMIN_KEY, if there is one.
        known: the keys.
        digest: of the text of a key.
        loopback: whether only this machine reaches the replica.
        origins: BATON_CORS_ORIGINS.
    """

    def __init__(
        self,
        auth: Literal["keys", "open"] | None,
        admin_key: str | None,
        known: KnownKeys,
        digest: Callable[[str], bytes],
        *,
        loopback: bool,
        origins: frozenset[str] = frozenset(),
    ) -> None:
        self._auth: Literal["keys", "open"] | None = "keys" if auth is None and admin_key else auth
        self._admin = digest(admin_key) if admin_key else None
        self._known = known
        self._digest = digest
        self._loopback_only = loopback and auth is None
        self._origins = origins
        self._held: Held = {}
        self._told_mode: Mode = "unknown"
        known.on_look = self.looked
        known.in_use = self._in_use

    @property
    def mode(self) -> Mode:
        """See the module's docstring."""
        if self._auth is not None:
            return self._auth
        return "unknown" if self._known.any is None else "keys" if self._known.any else "open"

    def guard(self, route: Route) -> Route:
        """Puts the gate before a route, unless it is open to everybody.

        Raises:
            KeyError: nobody has said which scope it needs.
        """
        scopes = {method: access.needed(method, route.path_format) for method in route.methods or ()}
        if any(scopes.values()):
            route.app = _Guarded(self, scopes, route.path_format, route.app)
        return route

    async def admit(self, scope: Scope, needed: str) -> None:
        """Leaves what a request may do in its scope.

        Raises:
            BatonError: 400, 401 or 403; store_unavailable, if that cannot be told.
        """
        mode = self.mode
        if mode == "unknown":
            away = "Whether callers need a key is not known: the store was not reached yet."
            raise BatonError("store_unavailable", away, retry_after_s=1)
        if mode == "open":
            self._check_origin(scope)
            granted = Grant(OPEN_PRINCIPAL, OPEN_SCOPES, held=self._held)
        else:
            granted = await self._of_credential(_credential(scope))
        scope["grant"] = granted  # for the audit of what is refused below
        user = _user(scope)
        used = (needed, "act-for") if user else (needed,)
        for one in used:
            if one not in granted.scopes:
                raise _lacks(one, mode)
        if user:
            granted = replace(granted, principal=f"{granted.principal}/{user}")
        scope["grant"] = replace(granted, used=frozenset(used))

    async def _of_credential(self, text: str | None) -> Grant:
        if text is None:
            missing = "A key is needed: Authorization: Bearer <key>, or x-api-key: <key>."
            raise BatonError("missing_api_key", missing, headers={"www-authenticate": _REALM})
        digest = self._digest(text)
        if self._admin is not None and hmac.compare_digest(self._admin, digest):
            return Grant(ADMIN_PRINCIPAL, ALL_SCOPES, held=self._held)
        key_id = api_key.key_id_of(text)
        if key_id is None:
            malformed = "This is no key of Baton's: they begin with baton_ and have 73 characters."
            raise BatonError("malformed_api_key", malformed, headers=_INVALID)
        key = await stored(self._known.find(key_id))
        if key is not None and not _fits(key, digest, _now_ms()):
            key = await stored(self._known.again(key_id))  # it may just have been rotated
        if key is None or not _fits(key, digest, _now_ms()):
            raise BatonError("invalid_api_key", "This key is not known.", headers=_INVALID)
        if key.disabled:
            raise BatonError("disabled_api_key", "This key is disabled.", headers=_INVALID)
        if _expired(key, _now_ms()):
            raise BatonError("expired_api_key", "This key has expired.", headers=_INVALID)
        return Grant(key.principal, key.scopes, key.id, digest, held=self._held)

    # What runs already.

    def looked(self) -> None:
        """Ends what runs by right of a key that would not be admitted any more, and tells a change of mode."""
        self.tell_mode()
        now_ms = _now_ms()
        for granted, end in list(self._held.values()):
            if granted.key_id and not self._still(granted, now_ms):
                telemetry.REVOKED.inc()
                end()

    def check(self, scope: Scope) -> None:
        """Asked once a body is there, which may take its time: nothing is begun by a key that was lost meanwhile.

        Raises:
            BatonError: revoked_api_key.
        """
        granted = access.grant(scope)
        if granted.key_id and not self._still(granted, _now_ms()):
            raise Interrupt.REVOKED.told()

    def _in_use(self) -> set[str]:
        return {granted.key_id for granted, _ in self._held.values() if granted.key_id}

    def _still(self, granted: Grant, now_ms: int) -> bool:
        known = self._known.as_last_seen(granted.key_id)
        if not known:
            return True  # it went for others that came since; what runs is read again soon (known_keys.py)
        (key,) = known
        if key is None or key.disabled or _expired(key, now_ms):
            return False
        return granted.used <= key.scopes and _fits(key, granted.digest, now_ms)

    def tell_mode(self) -> None:
        """Logs the mode if it has changed."""
        mode = self.mode
        if mode == self._told_mode:
            return
        self._told_mode = mode
        if mode == "open":
            telemetry.log.warning("open_mode", warning=OPEN_WARNING)
        else:
            telemetry.log.info("auth_mode", mode=mode)

    # Browsers.

    def _check_origin(self, scope: Scope) -> None:
        host = header(scope, b"host") or ""
        if self._loopback_only and host and not _is_loopback(host):
            raise BatonError(
                "origin_refused",
                "Without keys this address serves what is addressed to loopback only. Make a key, or set "
                "BATON_AUTH=open if everybody who can reach it may use it.",
                param="Host",
            )
        origin = header(scope, b"origin")
        if origin is None or origin in self._origins or "*" in self._origins:
            return
        if not host or origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise BatonError(
                "origin_refused",
                "Without keys pages of other sites are not served; BATON_CORS_ORIGINS says whose are.",
                param="Origin",
            )


class _Guarded:
    """A route behind the gate."""

    def __init__(self, gate: Gate, scopes: Mapping[str, str], path: str, app: ASGIApp) -> None:
        self._gate = gate
        self._scopes = scopes
        self._path = path
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        needed = self._scopes[scope["method"]]
        try:
            await self._gate.admit(scope, needed)
        except BatonError as error:
            if needed == "admin":
                who = scope.get("grant")
                by = {} if who is None else {"by": who.principal, "by_key": who.by}
                logs.audit(f"{scope['method']} {self._path}", outcome=error.code, **by)
            raise

        async def received() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                self._gate.check(scope)
            return message

        await self._app(scope, received, send)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _expired(key: ApiKey, now_ms: int) -> bool:
    return 0 < key.expires_ms <= now_ms


def _fits(key: ApiKey, digest: bytes, now_ms: int) -> bool:
    if hmac.compare_digest(key.digest, digest):
        return True
    return now_ms < key.previous_until_ms and hmac.compare_digest(key.previous, digest)


def _credential(scope: Scope) -> str | None:
    """What a request shows, in whichever of the two headers; None without any.

    Raises:
        BatonError: 400 for two different ones, 401 for what cannot be a key.
    """
    authorization, plain = header(scope, b"authorization"), header(scope, b"x-api-key")
    shown = []
    if authorization is not None and authorization.strip():
        scheme, _, rest = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not rest.strip():
            raise BatonError("malformed_api_key", "Authorization must be: Bearer <key>.", headers=_INVALID)
        shown.append(rest.strip())
    if plain is not None and plain.strip():
        shown.append(plain.strip())
    if len(shown) == 2 and not hmac.compare_digest(_short(shown[0]), _short(shown[1])):
        raise BatonError("invalid_value", "Authorization and x-api-key hold different keys.", param="x-api-key")
    if not shown:
        return None
    if len(shown[0]) > _CREDENTIAL_CHARS_MAX or not shown[0].isascii():
        raise BatonError("malformed_api_key", "This is no key of Baton's.", headers=_INVALID)
    return shown[0]


def _short(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _user(scope: Scope) -> str:
    """For whom the request is; "" for the key's own principal.

    Raises:
        BatonError: invalid_value.
    """
    user = header(scope, b"x-baton-user")
    if user is None:
        return ""
    if USER.fullmatch(user) is None:
        raise BatonError(
            "invalid_value",
            "X-Baton-User has 1 to 128 letters, digits and . _ : @ + | = -, and begins with a letter or digit.",
            param="X-Baton-User",
        )
    return user


def _lacks(needed: str, mode: Mode) -> BatonError:
    if mode == "open":
        nobody = "Nobody is authenticated here, so nobody has the scope `admin`: use `baton keys`, or BATON_ADMIN_KEY."
        return BatonError("insufficient_scope", nobody)
    challenge = f'{_REALM}, error="insufficient_scope", scope="{needed}"'
    told = f"This key has not the scope `{needed}`."
    return BatonError("insufficient_scope", told, headers={"www-authenticate": challenge})


def _is_loopback(host: str) -> bool:
    """Whether a Host names this machine: localhost or one under it, or an address of loopback."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
