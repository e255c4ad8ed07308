"""pydantic-ai with Anthropic's messages."""

import os

from anthropic import AsyncAnthropic
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai_agent import talk

BATON, SESSION = os.environ["BATON"], os.environ["SESSION"]

model = AnthropicModel(
    "claude-sonnet-5-5",
    provider=AnthropicProvider(anthropic_client=AsyncAnthropic(base_url=BATON, api_key="none")),
    settings={"extra_headers": {"X-Session-Id": SESSION}},
)

talk(model)
