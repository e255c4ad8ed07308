"""What administrators may say about a key: from JSON to what the store takes, and back to what they are shown; pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service.access import PRINCIPAL, SCOPES
from service.errors import BatonError, invalid_value
from storage.api_keys import ApiKey

SCOPES_DEFAULT: Final = ("chat", "sessions:read", "sessions:write")
LABELS_MAX: Final = 16
LABEL_KEY_CHARS_MAX: Final = 64
LABEL_VALUE_CHARS_MAX: Final = 256
OVERLAP_S_DEFAULT: Final = 86_400
OVERLAP_S_MAX: Final = 2_592_000

_CREATABLE: Final = ("principal", "scopes", "expires_at", "labels")
_PATCHABLE: Final = ("scopes", "expires_at", "disabled", "labels")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as asked for; ``expires_ms`` 0 is never."""

    principal: str
    scopes: tuple[str, ...]
    expires_ms: int
    labels_json: bytes


def creation(body: Any, *, now_ms: int) -> NewKey:
    """The body of a creation; ``null`` is absent.

    Raises:
        BatonError: 400 naming the field.
    """
    fields = {name: value for name, value in _object(body, _CREATABLE).items() if value is not None}
    if "principal" not in fields:
        raise BatonError("missing_value", "`principal` is required: whom the key names.", param="principal")
    return NewKey(
        principal=principal(fields["principal"]),
        scopes=scopes(fields.get("scopes", list(SCOPES_DEFAULT))),
        expires_ms=_expiry(fields["expires_at"], now_ms) if "expires_at" in fields else 0,
        labels_json=labels(fields.get("labels", {})),
    )


def changes(body: Any, *, now_ms: int) -> dict[str, Any]:
    """The body of a PATCH as arguments of `ApiKeys.patch`; what is not named stays, ``expires_at: null`` is never.

    Raises:
        BatonError: 400 naming the field.
    """
    changed: dict[str, Any] = {}
    for name, value in _object(body, _PATCHABLE).items():
        match name:
            case "scopes":
                changed["scopes"] = scopes(value)
            case "expires_at":
                changed["expires_ms"] = 0 if value is None else _expiry(value, now_ms)
            case "disabled":
                if not isinstance(value, bool):
                    raise invalid_value(name, "must be true or false")
                changed["disabled"] = value
            case "labels":
                changed["labels_json"] = labels(value)
    return changed


def overlap_ms(body: Any) -> int:
    """How long the secret before a rotation stays good.

    Raises:
        BatonError: 400 naming the field.
    """
    value = _object(body, ("overlap_seconds",)).get("overlap_seconds", OVERLAP_S_DEFAULT)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= OVERLAP_S_MAX:
        raise invalid_value("overlap_seconds", f"must be a whole number from 0 to {OVERLAP_S_MAX}")
    return value * 1000


def principal(value: Any) -> str:
    """Whom a key names.

    Raises:
        BatonError: invalid_value.
    """
    if not isinstance(value, str) or PRINCIPAL.fullmatch(value) is None:
        problem = "must have 1 to 100 letters, digits and . _ : @ + -, and begin with a letter or digit"
        raise invalid_value("principal", problem)
    return value


def scopes(value: Any) -> tuple[str, ...]:
    """What a key may do, in the order of the table.

    Raises:
        BatonError: invalid_value.
    """
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise invalid_value("scopes", f"must be a list of some of: {', '.join(SCOPES)}")
    if unknown := [one for one in value if one not in SCOPES]:
        raise invalid_value("scopes", f"may hold {', '.join(SCOPES)}, and no {unknown[0][:64]!r}")
    return tuple(one for one in SCOPES if one in value)


def labels(value: Any) -> bytes:
    """The administrator's own words about a key, as JSON.

    Raises:
        BatonError: invalid_value.
    """
    if not isinstance(value, dict) or len(value) > LABELS_MAX:
        raise invalid_value("labels", f"must be an object of at most {LABELS_MAX} strings")
    for key, text in value.items():
        if not 1 <= len(key) <= LABEL_KEY_CHARS_MAX:
            raise invalid_value("labels", f"must have keys of 1 to {LABEL_KEY_CHARS_MAX} characters")
        if not isinstance(text, str) or len(text) > LABEL_VALUE_CHARS_MAX:
            raise invalid_value("labels", f"must have strings of at most {LABEL_VALUE_CHARS_MAX} characters")
    return orjson.dumps(value)


def key_object(key: ApiKey, *, text: str = "") -> dict[str, Any]:
    """A key as administrators are shown it; ``text`` is the key itself, which is shown only when it is made."""
    shown = {
        "id": key.id,
        "object": "api_key",
        "principal": key.principal,
        "scopes": [one for one in SCOPES if one in key.scopes],
        "disabled": key.disabled,
        "expires_at": _instant(key.expires_ms),
        "labels": orjson.loads(key.labels_json),
        "created_at": _instant(key.created_ms),
        "rotated_at": _instant(key.rotated_ms),
        "overlap_ends_at": _instant(key.previous_until_ms),
    }
    return {**shown, "key": text} if text else shown


def _object(body: Any, known: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise BatonError("invalid_value", "The body must be a JSON object.")
    for name in body:
        if name not in known:
            raise BatonError("unknown_field", f"There is no field `{name[:64]}`.", param=name[:64])
    return body


def _expiry(value: Any, now_ms: int) -> int:
    try:
        instant = datetime.fromisoformat(value)
        at_ms = int(instant.astimezone(UTC).timestamp() * 1000)
    except (TypeError, ValueError, OverflowError):
        instant, at_ms = None, 0
    if instant is None or instant.tzinfo is None:
        raise invalid_value("expires_at", "must be an ISO 8601 instant with its zone, like 2030-01-31T12:00:00Z")
    if at_ms <= now_ms:
        raise invalid_value("expires_at", "must be in the future")
    return at_ms


def _instant(at_ms: int) -> str | None:
    if at_ms <= 0:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
