"""Clients of the storm that are the stock SDKs, with little patience and their own retries.

Each waits half a second and sends its request again by itself, twice at the most, without a word but a raised
``x-stainless-retry-count``. What it sees at the end is what its user sees; only that counts. An error at the end says
nothing of the attempts before it: then it is not known what is stored. A client that cancels by leaving may have left
an incomplete answer behind.
"""

import time
from typing import Any

import anthropic
import httpx2
import openai

from tests.instruments.history import ClientTurn, Outcome

PATIENCE_S = 0.5
UNKNOWN_CODES = frozenset({"session_save_unknown", "internal_error"})
MAX_TOKENS = 1000


class SdkClient:
    """One user with one SDK client.

    Args:
        name: of the client.
        url: of the balancer.
        on_disconnect: what its hanging up means.
    """

    def __init__(self, name: str, url: str, on_disconnect: str) -> None:
        self.name = name
        self._headers = {"X-Session-On-Disconnect": on_disconnect}
        self._cancels = on_disconnect == "cancel"
        self._url = url

    async def aclose(self) -> None:
        raise NotImplementedError

    async def say(self, turn: "_Turn", session: str, text: str, *, model: str, stream: bool) -> None:
        """Asks, and notes what is seen."""
        raise NotImplementedError

    async def ask(self, session: str, mark: str, text: str, *, model: str, stream: bool) -> ClientTurn:
        """One turn, as its user sees it."""
        turn = _Turn(self._cancels)
        sent_at = time.monotonic()
        try:
            await self.say(turn, session, text, model=model, stream=stream)
        except (openai.APIConnectionError, anthropic.APIConnectionError):
            turn.lost()
        except (openai.APIError, anthropic.APIError) as error:
            turn.status = getattr(error, "status_code", None)  # what was told in the stream has none, or 200
            code = error.code if isinstance(error, openai.APIError) else getattr(error, "error_code", None)
            turn.failed(code, attempts=1 + int(error.request.headers["x-stainless-retry-count"]))
        except httpx2.HTTPError:  # the stream broke
            turn.lost()
        return ClientTurn(
            client=self.name,
            session=session,
            mark=mark,
            sent_at=sent_at,
            finished_at=time.monotonic(),
            outcome=turn.outcome,
            answer_text=turn.shown,
            http_status=turn.status,
        )


class OpenAiClient(SdkClient):
    """Its SDK is openai's."""

    def __init__(self, name: str, url: str, on_disconnect: str) -> None:
        super().__init__(name, url, on_disconnect)
        self._sdk = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", timeout=PATIENCE_S, default_headers=self._headers
        )

    async def aclose(self) -> None:
        await self._sdk.close()

    async def say(self, turn: "_Turn", session: str, text: str, *, model: str, stream: bool) -> None:
        said: Any = [{"role": "user", "content": text}]
        options: Any = {"extra_headers": {"X-Session-Id": session}}
        if not stream:
            whole = await self._sdk.chat.completions.create(model=model, messages=said, **options)
            turn.shown = whole.choices[0].message.content or ""
            turn.outcome = "complete"
            return
        async for chunk in await self._sdk.chat.completions.create(model=model, messages=said, stream=True, **options):
            if chunk.choices:
                turn.shown += chunk.choices[0].delta.content or ""
                if chunk.choices[0].finish_reason is not None:
                    turn.outcome = "complete"
        turn.ended()


class AnthropicClient(SdkClient):
    """Its SDK is anthropic's."""

    def __init__(self, name: str, url: str, on_disconnect: str) -> None:
        super().__init__(name, url, on_disconnect)
        self._sdk = anthropic.AsyncAnthropic(
            base_url=url, api_key="none", timeout=PATIENCE_S, default_headers=self._headers
        )

    async def aclose(self) -> None:
        await self._sdk.close()

    async def say(self, turn: "_Turn", session: str, text: str, *, model: str, stream: bool) -> None:
        asked: Any = {
            "model": model,
            "max_tokens": MAX_TOKENS,
            "messages": [{"role": "user", "content": text}],
            "extra_headers": {"X-Session-Id": session},
        }
        if not stream:
            whole = await self._sdk.messages.create(**asked)
            turn.shown = "".join(block.text for block in whole.content if block.type == "text")
            turn.outcome = "complete"
            return
        async for event in await self._sdk.messages.create(**asked, stream=True):
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                turn.shown += event.delta.text
            elif event.type == "message_stop":
                turn.outcome = "complete"
        turn.ended()


class _Turn:
    def __init__(self, cancels: bool) -> None:
        self._cancels = cancels
        self.outcome: Outcome = "unknown"
        self.shown = ""
        self.status: int | None = None

    def ended(self) -> None:
        """Its stream has ended."""
        if self.outcome != "complete":
            self.lost()

    def lost(self) -> None:
        """Nobody said what became of it."""
        self.outcome = "incomplete" if self.shown or self._cancels else "unknown"

    def failed(self, code: str | None, *, attempts: int) -> None:
        if attempts > 1 or code in UNKNOWN_CODES:
            self.lost()
        else:
            self.outcome = "error"
