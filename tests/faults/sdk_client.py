"""A client of the storm that is the stock openai SDK, with little patience and its own retries.

It waits half a second and sends its request again by itself, twice at the most, without a word but a raised
``x-stainless-retry-count``. What it sees at the end is what its user sees; only that counts. An error at the end says
nothing of the attempts before it: then it is not known what is stored. A client that cancels by leaving may have left
an incomplete answer behind.
"""

import time
from typing import Any

import httpx2
import openai

from tests.instruments.history import ClientTurn, Outcome

PATIENCE_S = 0.5
UNKNOWN_CODES = frozenset({"session_save_unknown", "internal_error"})


class SdkClient:
    """One user with one SDK client.

    Args:
        name: of the client.
        url: of the balancer.
        on_disconnect: what its hanging up means.
    """

    def __init__(self, name: str, url: str, on_disconnect: str) -> None:
        self.name = name
        headers = {"X-Session-On-Disconnect": on_disconnect}
        self._cancels = on_disconnect == "cancel"
        self._sdk = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", timeout=PATIENCE_S, default_headers=headers
        )

    async def aclose(self) -> None:
        await self._sdk.close()

    async def ask(self, session: str, mark: str, text: str, *, model: str, stream: bool) -> ClientTurn:
        """One turn, as its user sees it."""
        turn = _Turn(self._cancels)
        sent_at = time.monotonic()
        said: Any = [{"role": "user", "content": text}]
        options: Any = {"extra_headers": {"X-Session-Id": session}}
        try:
            if stream:
                answer = await self._sdk.chat.completions.create(model=model, messages=said, stream=True, **options)
                await turn.read(answer)
            else:
                whole = await self._sdk.chat.completions.create(model=model, messages=said, **options)
                turn.shown = whole.choices[0].message.content or ""
                turn.outcome = "complete"
        except openai.APIConnectionError:
            turn.lost()
        except openai.APIError as error:
            turn.status = getattr(error, "status_code", None)  # without one it was told in the stream
            turn.failed(error.code, attempts=1 + int(error.request.headers["x-stainless-retry-count"]))
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


class _Turn:
    def __init__(self, cancels: bool) -> None:
        self._cancels = cancels
        self.outcome: Outcome = "unknown"
        self.shown = ""
        self.status: int | None = None

    async def read(self, answer: Any) -> None:
        async for chunk in answer:
            if chunk.choices:
                self.shown += chunk.choices[0].delta.content or ""
                if chunk.choices[0].finish_reason is not None:
                    self.outcome = "complete"
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
