"""pydantic-ai with OpenAI's chat completions."""

import os

from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai_agent import talk

BATON, SESSION = os.environ["BATON"], os.environ["SESSION"]

model = OpenAIChatModel(
    "claude-sonnet-5-5",
    provider=OpenAIProvider(base_url=f"{BATON}/v1", api_key="none"),
    settings={"extra_headers": {"X-Session-Id": SESSION}},
)

talk(model)
