"""instructor: answers of a type, by a forced call of a tool."""

import json
import os

import instructor
from openai import OpenAI
from pydantic import BaseModel

BATON, SESSION = os.environ["BATON"], os.environ["SESSION"]

client = instructor.from_openai(
    OpenAI(base_url=f"{BATON}/v1", api_key="none", default_headers={"X-Session-Id": SESSION}),
    mode=instructor.Mode.TOOLS,
)


class City(BaseModel):
    """A city."""

    name: str
    country: str


def ask(text: str) -> City:
    """One turn."""
    return client.chat.completions.create(
        model="claude-sonnet-5",  # the newer models refuse to be told which tool to call
        messages=[{"role": "user", "content": text}],
        response_model=City,
    )


first = ask('call City with {"name": "Paris", "country": "France"}')
second = ask('call City with {"name": "Oslo", "country": "Norway"}')
*_, last = client.chat.completions.create_partial(
    model="claude-sonnet-5",
    messages=[{"role": "user", "content": 'call PartialCity with {"name": "Rome", "country": "Italy"}'}],
    response_model=City,
)
print(json.dumps({"cities": [city.model_dump() for city in (first, second, last)]}))
