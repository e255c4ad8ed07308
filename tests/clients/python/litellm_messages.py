"""LiteLLM as a client of Anthropic's messages."""

import os

from litellm_talk import talk

BATON, SESSION = os.environ["BATON"], os.environ["SESSION"]

baton = {
    "model": "anthropic/claude-sonnet-5-5",
    "api_base": BATON,
    "api_key": "none",
    "extra_headers": {"X-Session-Id": SESSION},
}

talk(baton)
