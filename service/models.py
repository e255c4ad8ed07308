"""The models that callers may name: what Claude's Models API lists, and the operator's aliases.

Asked of Claude at most every five minutes a replica, by one caller for all who wait, and not for longer than a caller
would. While Claude does not answer, the last list stands; who asks right after a failure is told the same, and Claude
is left alone.
"""

import asyncio
import time
from datetime import datetime
from typing import Any, Final

from service.claude import Claude
from service.errors import BatonError

_FRESH_S: Final = 300.0
_DEADLINE_S: Final = 10.0
_FAILED_S: Final = 5.0  # a failure is told again for this long


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
        self._ask_at = float("-inf")
        self._failure: BatonError | None = None
        self._asking = asyncio.Lock()

    async def list(self) -> list[dict[str, Any]]:
        """``{id, object, created, owned_by}`` a model, newest first, aliases last.

        Raises:
            BatonError: upstream_*, if Claude never answered yet.
        """
        async with self._asking:
            if time.monotonic() >= self._ask_at:
                await self._ask()
            if self._failure is not None and not self._listed:
                raise self._failure.with_traceback(None)  # raised again and again, it must not grow
        aliased = [{**self._named(model), "id": alias} for alias, model in self._aliases.items()]
        return [*self._listed, *aliased]

    async def _ask(self) -> None:
        """Asks Claude, and decides when it is asked next. If the caller goes away meanwhile, nothing was decided."""
        try:
            async with asyncio.timeout(_DEADLINE_S):
                self._listed = [_openai(model) for model in await self._claude.models()]
            self._failure = None
        except TimeoutError:
            self._failure = BatonError("upstream_timeout", "Claude did not answer in time.")
        except BatonError as error:
            self._failure = error
        self._ask_at = time.monotonic() + (_FRESH_S if self._failure is None else _FAILED_S)

    def _named(self, model: str) -> dict[str, Any]:
        unlisted = {"id": model, "object": "model", "created": 0, "owned_by": "anthropic"}
        return next((listed for listed in self._listed if listed["id"] == model), unlisted)


def _openai(model: dict[str, Any]) -> dict[str, Any]:
    created = model.get("created_at")
    seconds = int(created.timestamp()) if isinstance(created, datetime) else 0
    return {"id": model["id"], "object": "model", "created": seconds, "owned_by": "anthropic"}
