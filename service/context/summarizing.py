"""A summary as Claude makes it: asked for, read to its end, and none if it is not whole."""

from contextlib import aclosing

from service import telemetry
from service.claude import Claude
from service.context import summary
from service.errors import BatonError
from service.transcript import Answer
from storage.checkpoints import Cost


async def summarized(claude: Claude, body: bytes) -> tuple[bytes, Cost]:
    """A summary, and what it has cost.

    Args:
        claude: who is asked.
        body: see `summary.request`.

    Raises:
        BatonError: upstream_nonsense, if it does not come to its end, or is empty or too large; as `Claude.stream`.
    """
    answer = await _asked(claude, body)
    used = answer.tokens()
    text = summary.text_of(answer.content()).encode()
    if answer.stop_reason != "end_turn" or not 0 < len(text) <= summary.BYTES_MAX:
        raise BatonError("upstream_nonsense", f"The summary ended with {answer.stop_reason}.")
    return text, Cost(used.output, used.input + used.cache_read + used.cache_written, used.output)


async def _asked(claude: Claude, body: bytes) -> Answer:
    answer = Answer()
    try:
        async with aclosing(claude.stream(body)) as batches:
            async for batch in batches:
                answer.feed(batch)
    finally:
        telemetry.count_tokens(answer.tokens())
    return answer
