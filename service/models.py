"""The models that callers may name: what Claude's Models API lists, and the operator's aliases.

Asked of Claude at most every five minutes a replica, by one caller for all who wait, and not for longer than a caller
would. While Claude does not answer, the last list stands; who asks right after a failure is told the same, and Claude
is left alone.

Whoever must know a model on the way of a request asks `Models.of`, which never waits: it answers from the last list,
and has Claude asked in the background if that is old.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from service import telemetry
from service.claude import Claude
from service.errors import BatonError
from service.model_table import Model, ModelTable

_FRESH_S: Final = 300.0
_DEADLINE_S: Final = 10.0
_FAILED_S: Final = 5.0  # a failure is told again for this long


class Models:
    """The list of models, each as Claude's Models API tells it.

    Args:
        claude: who is asked.
        aliases: name → model, listed beside the models.
        table: of what the API does not tell.
    """

    def __init__(self, claude: Claude, aliases: Mapping[str, str], table: ModelTable) -> None:
        self._claude = claude
        self._aliases = aliases
        self._table = table
        self._listed: dict[str, dict[str, Any]] = {}
        self._known: dict[str, Model] = {}
        self._ask_at = float("-inf")
        self._failure: BatonError | None = None
        self._asking = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    async def list(self) -> list[dict[str, Any]]:
        """The models, newest first, aliases last. No id is there twice: an alias hides a model of its name.

        Raises:
            BatonError: upstream_*, if Claude never answered yet.
        """
        await self._fresh()
        if self._failure is not None and not self._listed:
            raise self._failure.with_traceback(None)  # raised again and again, it must not grow
        models = [model for name, model in self._listed.items() if name not in self._aliases]
        return models + [{**self._info(model), "id": alias} for alias, model in self._aliases.items()]

    def of(self, model: str) -> Model:
        """What is known of a model by now, by its id after aliases."""
        self.refresh()
        return self._known.get(model) or self._table.model(model)

    def refresh(self) -> None:
        """Has Claude asked in the background, if it is time and nobody is asking."""
        if time.monotonic() >= self._ask_at and not self._asking.locked() and self._refreshing is None:
            self._refreshing = asyncio.create_task(self._fresh())
            self._refreshing.add_done_callback(self._refreshed)

    async def aclose(self) -> None:
        """Ends what runs in the background."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])

    async def _fresh(self) -> None:
        async with self._asking:
            if time.monotonic() >= self._ask_at:
                await self._ask()

    async def _ask(self) -> None:
        """Asks Claude, and decides when it is asked next. If the caller goes away meanwhile, nothing was decided."""
        try:
            async with asyncio.timeout(_DEADLINE_S):
                listed = await self._claude.models()
        except TimeoutError:
            self._failure = BatonError("upstream_timeout", "Claude did not answer in time.")
        except BatonError as error:
            self._failure = error
        else:
            self._failure = None
            self._listed = {info["id"]: info for info in listed}
            self._known = {name: _model(info, self._table.model(name)) for name, info in self._listed.items()}
        if self._failure is not None:
            telemetry.log.warning("models_not_listed", code=self._failure.code)
        self._ask_at = time.monotonic() + (_FRESH_S if self._failure is None else _FAILED_S)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled() and (error := task.exception()):
            telemetry.log.error("models_refresh_failed", exc_info=error)
            self._ask_at = time.monotonic() + _FAILED_S

    def _info(self, model: str) -> dict[str, Any]:
        """As listed; of one that is not, what the API's own shape demands."""
        unlisted = {
            "type": "model",
            "id": model,
            "display_name": model,
            "created_at": "1970-01-01T00:00:00Z",  # which stands for a date that is not known
            "lifecycle": "active",
        }
        return self._listed.get(model, unlisted)


def _model(info: dict[str, Any], known: Model) -> Model:
    window = _count(info.get("max_input_tokens")) or known.input_tokens_max
    return Model(known.traits, _count(info.get("max_tokens")), window, _thinking_types(info))


def _count(told: object) -> int | None:
    return told if type(told) is int and told > 0 else None


def _thinking_types(info: dict[str, Any]) -> frozenset[str] | None:
    types: Any = info
    for name in ("capabilities", "thinking", "types"):
        types = types.get(name) if isinstance(types, dict) else None
    if not isinstance(types, dict):
        return None
    return frozenset(name for name, told in types.items() if isinstance(told, dict) and told.get("supported") is True)
