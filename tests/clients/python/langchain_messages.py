"""LangChain with its Anthropic package: two turns of a session, and a tool whose result alone is sent back."""

import json
import os

from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from pydantic import BaseModel

BATON, SESSION = os.environ["BATON"], os.environ["SESSION"]

model = ChatAnthropic(
    model="claude-sonnet-5-5",
    base_url=BATON,
    api_key="none",
    default_headers={"X-Session-Id": SESSION},
)


class City(BaseModel):
    """A city."""

    name: str


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees in {city}"


first = model.invoke("My name is Ada.")
second = "".join(chunk.text for chunk in model.stream("What is my name?"))
typed = model.with_structured_output(City, method="json_schema").invoke("repeat after me: Paris")

with_tools = model.bind_tools([weather])
called = with_tools.invoke('call weather with {"city": "Paris"}')
results = [weather.invoke(call) for call in called.tool_calls]
tools = with_tools.invoke(results)

asked = [call["args"]["city"] for call in called.tool_calls]
seen = {"first": first.text, "second": second, "typed": typed.model_dump(), "asked": asked, "tools": tools.text}
print(json.dumps(seen))
