"""``/v1/admin/keys``: the keys of everybody, for whoever has the scope ``admin``.

The text of a key is in the answer that makes it, and nowhere else. Every change leaves a line in the log (`audit`):
who, what, which key, what came of it.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from service import access, api_key, key_fields, logs
from service.asgi import json_response, query_number
from service.bodies import read_json
from service.errors import BatonError, invalid_value
from service.known_keys import KnownKeys
from service.settings import Settings
from service.stored import stored
from storage.api_keys import ApiKey, ApiKeys
from storage.keys import KEY_ID
from storage.results import StoreUnavailable

_PAGE_KEYS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class AdminRoutes:
    """The endpoints.

    Attributes:
        settings: of this replica.
        keys: the store.
        known: what this replica knows of them, so that it learns of its own changes at once.
    """

    settings: Settings
    keys: ApiKeys
    known: KnownKeys

    async def listed(self, request: Request) -> Response:
        """``GET /v1/admin/keys?limit&cursor&principal``: by id, those of one principal together."""
        limit = query_number(request, "limit", default=20, low=1, high=_PAGE_KEYS_MAX)
        cursor = request.query_params.get("cursor", "")
        if cursor and KEY_ID.fullmatch(cursor) is None:
            raise invalid_value("cursor", "must be the `next_cursor` of a page")
        given = request.query_params.get("principal")
        principal = "" if given is None else key_fields.principal(given)
        ids = await stored(self.keys.page(after=cursor, limit=limit + 1, principal=principal))
        found = await stored(self.keys.read(ids[:limit]))
        body = {
            "object": "list",
            "keys": [key_fields.key_object(key) for key in found if key is not None],
            "has_more": len(ids) > limit,
            "next_cursor": ids[limit - 1] if len(ids) > limit else None,
        }
        return json_response(body)

    async def create(self, request: Request) -> Response:
        """``POST /v1/admin/keys``: 201 and the key with its text, which is shown this once."""

        async def do() -> Response:
            asked = key_fields.creation(await read_json(request, self.settings), now_ms=int(time.time() * 1000))
            key_id = self.keys.keyspace.issue_key_id(asked.principal)
            text = api_key.issue(key_id)
            created = await stored(
                self.keys.create(
                    key_id,
                    self.keys.keyspace.key_digest(text),
                    principal=asked.principal,
                    scopes=asked.scopes,
                    expires_ms=asked.expires_ms,
                    labels_json=asked.labels_json,
                )
            )
            if not created:  # of 2^50 ids this one was taken
                raise BatonError("internal_error", "The id that was made is taken; send the request again.")
            told.update(key=key_id, principal=asked.principal)
            return json_response(key_fields.key_object(await self._key(key_id), text=text), status=201)

        told: dict[str, str] = {}
        return await self._audited(request, "create_key", told, do)

    async def get(self, request: Request) -> Response:
        """``GET /v1/admin/keys/{key}``."""
        return json_response(key_fields.key_object(await self._key(_key_id(request))))

    async def patch(self, request: Request) -> Response:
        """``PATCH /v1/admin/keys/{key}``: scopes, expiry, disabled, labels; holds everywhere within seconds."""

        async def do() -> Response:
            body = await read_json(request, self.settings)
            changes = key_fields.changes(body, now_ms=int(time.time() * 1000))
            told["changed"] = " ".join(sorted(body))
            _there(await stored(self.keys.patch(_key_id(request), **changes)))
            return json_response(key_fields.key_object(await self._key(_key_id(request))))

        told = _about(request)
        return await self._audited(request, "patch_key", told, do)

    async def rotate(self, request: Request) -> Response:
        """``POST /v1/admin/keys/{key}/rotate``: another text, shown this once; the present one stays a while."""

        async def do() -> Response:
            overlap_ms = key_fields.overlap_ms(await read_json(request, self.settings, if_empty=b"{}"))
            key_id = _key_id(request)
            text = api_key.issue(key_id)
            _there(await stored(self.keys.rotate(key_id, self.keys.keyspace.key_digest(text), overlap_ms=overlap_ms)))
            return json_response(key_fields.key_object(await self._key(key_id), text=text))

        return await self._audited(request, "rotate_key", _about(request), do)

    async def delete(self, request: Request) -> Response:
        """``DELETE /v1/admin/keys/{key}``: gone; the sessions of its principal stay."""

        async def do() -> Response:
            key_id = _key_id(request)
            _there(await stored(self.keys.delete(key_id)))
            return json_response({"id": key_id, "object": "api_key.deleted", "deleted": True})

        return await self._audited(request, "delete_key", _about(request), do)

    async def _audited(
        self, request: Request, action: str, told: dict[str, str], do: Callable[[], Awaitable[Response]]
    ) -> Response:
        """Does it, and leaves a line about it."""
        granted, outcome = access.grant(request.scope), "internal_error"
        try:
            response = await do()
            outcome = "done"
        except BatonError as error:
            outcome = error.code
            raise
        finally:
            logs.audit(action, outcome=outcome, by=granted.principal, by_key=granted.by, **told)
        with contextlib.suppress(StoreUnavailable):
            await self.known.look()
        return response

    async def _key(self, key_id: str) -> ApiKey:
        (key,) = await stored(self.keys.read([key_id]))
        if key is None:
            raise _not_found()
        return key


def _about(request: Request) -> dict[str, str]:
    """The key of the path for an audit; nothing that only looks like one."""
    given = request.path_params["key"]
    return {"key": given} if KEY_ID.fullmatch(given) else {}


def _key_id(request: Request) -> str:
    given: str = request.path_params["key"]
    if KEY_ID.fullmatch(given) is None:
        raise _not_found()
    return given


def _there(found: bool) -> None:
    if not found:
        raise _not_found()


def _not_found() -> BatonError:
    return BatonError("key_not_found", "There is no such key.", param="key")
