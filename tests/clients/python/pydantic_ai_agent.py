"""What both models of pydantic-ai have in common: the conversation itself."""

import asyncio
import json
import os

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, RunContext
from pydantic_ai.models import Model

SESSION = os.environ["SESSION"]


class City(BaseModel):
    """A city."""

    name: str


def talk(model: Model) -> None:
    """Two turns that send only what is new, one of them streamed; an answer of a type; two runs with a tool."""
    agent = Agent(model)
    first = agent.run_sync("My name is Ada.").output
    second = asyncio.run(streamed(agent, "What is my name?"))
    typed = Agent(model, output_type=NativeOutput(City)).run_sync("repeat after me: Paris")

    # A run with tools sends all of its own messages each time, so it begins a session, or is given the history.
    asked: list[str] = []
    with_tools = Agent(model, model_settings={"extra_headers": {"X-Session-Id": f"{SESSION}-tools"}})

    @with_tools.tool
    def weather(context: RunContext[None], city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return f"18 degrees in {city}"

    tools = with_tools.run_sync('call weather with {"city": "Paris"}')
    again = with_tools.run_sync('call weather with {"city": "Oslo"}', message_history=tools.all_messages())
    print(
        json.dumps(
            {
                "first": first,
                "second": second,
                "asked": asked,
                "tools": tools.output,
                "again": again.output,
                "typed": typed.output.model_dump(),
            }
        )
    )


async def streamed(agent: Agent, text: str) -> str:
    """The answer, from its pieces."""
    async with agent.run_stream(text) as result:
        return "".join([piece async for piece in result.stream_text(delta=True)])
