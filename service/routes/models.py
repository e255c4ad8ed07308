"""The models, for both dialects: ``/v1/models`` and ``/v1/models/{id}``.

OpenAI and Anthropic have these paths in common. Who sends ``anthropic-version``, as Anthropic's SDKs always do, is
answered as by Anthropic, with each model as Claude's API tells it; anybody else as by OpenAI, with all of them at once.
"""

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.asgi import json_response, query_number
from service.dialects.errors import is_anthropic
from service.errors import BatonError, invalid_value
from service.models import Models


class ModelRoutes:
    """The endpoints."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def listed(self, request: Request) -> Response:
        """``GET /v1/models``."""
        if is_anthropic(request.scope):
            return json_response(_page(request, await self._models.list()))
        return json_response({"object": "list", "data": [_openai(model) for model in await self._models.list()]})

    async def get(self, request: Request) -> Response:
        """``GET /v1/models/{id}``."""
        wanted = request.path_params["model"]
        for model in await self._models.list():
            if model["id"] == wanted:
                return json_response(model if is_anthropic(request.scope) else _openai(model))
        raise BatonError("model_not_found", "Claude knows no such model, and there is no such alias.", param="model")


def _openai(model: dict[str, Any]) -> dict[str, Any]:
    try:
        created = int(datetime.fromisoformat(model["created_at"]).timestamp())
    except (LookupError, TypeError, ValueError):
        created = 0
    return {"id": model["id"], "object": "model", "created": created, "owned_by": "anthropic"}


def _page(request: Request, models: list[dict[str, Any]]) -> dict[str, Any]:
    """The ``limit`` models next to a cursor, or the first ones (Anthropic API reference, "List Models")."""
    limit = query_number(request, "limit", default=20, low=1, high=1000)
    query = request.query_params
    if query.keys() & {"lifecycle", "lifecycle[]"}:
        said = "`lifecycle` is not supported: active and deprecated models are listed, and each says which it is."
        raise BatonError("unsupported", said, param="lifecycle")
    if "after_id" in query and "before_id" in query:
        raise invalid_value("before_id", "cannot go with after_id")
    cut = next((name for name in ("after_id", "before_id") if name in query), None)
    ids = [model["id"] for model in models]
    if cut is not None and query[cut] not in ids:
        raise invalid_value(cut, "must be the id of a model that is listed")
    if cut == "before_id":
        candidates = models[: ids.index(query[cut])]
        page = candidates[-limit:]
    else:
        candidates = models if cut is None else models[ids.index(query[cut]) + 1 :]
        page = candidates[:limit]
    return {
        "data": page,
        "has_more": len(candidates) > len(page),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }
