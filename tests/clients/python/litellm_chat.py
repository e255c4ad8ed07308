"""LiteLLM as a client of chat completions."""

import os

from litellm_talk import talk

BATON, SESSION = os.environ["BATON"], os.environ["SESSION"]

baton = {
    "model": "openai/claude-sonnet-5-5",
    "api_base": f"{BATON}/v1",
    "api_key": "none",
    "extra_headers": {"X-Session-Id": SESSION},
}

talk(baton)
