"""The models that callers may name: what Claude's Models API lists, and the operator's aliases.

Asked of Claude at most every five minutes a replica; while Claude does not answer, the last list stands.
"""

import time
from datetime import datetime
from typing import Any, Final

from service.claude import Claude
from service.errors import BatonError

_FRESH_S: Final = 300.0


class Models:
    """The list of models, in OpenAI's shape.

    Args:
        claude: who is asked.
        aliases: name → model, listed beside the models.
    """

    def __init__(self, claude: Claude, aliases: dict[str, str]) -> None:
        self._claude = claude
        self._aliases = aliases
        self._listed: list[dict[str, Any]] = []
        self._asked_at = float("-inf")

    async def list(self) -> list[dict[str, Any]]:
        """``{id, object, created, owned_by}`` a model, newest first, aliases last.

        Raises:
            BatonError: upstream_*, if Claude never answered yet.
        """
        if time.monotonic() - self._asked_at > _FRESH_S:
            try:
                self._listed = [_openai(model) for model in await self._claude.models()]
                self._asked_at = time.monotonic()
            except BatonError:
                if not self._listed:
                    raise
        aliased = [{**self._named(model), "id": alias} for alias, model in self._aliases.items()]
        return [*self._listed, *aliased]

    def _named(self, model: str) -> dict[str, Any]:
        unlisted = {"id": model, "object": "model", "created": 0, "owned_by": "anthropic"}
        return next((listed for listed in self._listed if listed["id"] == model), unlisted)


def _openai(model: dict[str, Any]) -> dict[str, Any]:
    created = model.get("created_at")
    seconds = int(created.timestamp()) if isinstance(created, datetime) else 0
    return {"id": model["id"], "object": "model", "created": seconds, "owned_by": "anthropic"}
