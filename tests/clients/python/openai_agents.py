"""OpenAI's agents, with their chat-completions model."""

import asyncio
import json
import os

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from pydantic import BaseModel

BATON, SESSION = os.environ["BATON"], os.environ["SESSION"]

set_tracing_disabled(True)  # traces go to OpenAI
client = AsyncOpenAI(base_url=f"{BATON}/v1", api_key="none", default_headers={"X-Session-Id": SESSION})
model = OpenAIChatCompletionsModel(model="claude-sonnet-5-5", openai_client=client)

asked: list[str] = []


class City(BaseModel):
    """A city."""

    name: str


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    asked.append(city)
    return f"18 degrees in {city}"


async def main() -> None:
    """Two turns, and a run with a tool that goes on from the history that the agents keep."""
    agent = Agent(name="Assistant", model=model)
    first = await Runner.run(agent, "My name is Ada.")
    second = Runner.run_streamed(agent, "What is my name?")
    pieces = [
        event.data.delta
        async for event in second.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    typing = Agent(name="Assistant", model=model, output_type=City)
    typed = await Runner.run(typing, "repeat after me: Paris")

    own = AsyncOpenAI(base_url=f"{BATON}/v1", api_key="none", default_headers={"X-Session-Id": f"{SESSION}-tools"})
    agent = Agent(
        name="Assistant",
        tools=[weather],
        model=OpenAIChatCompletionsModel(model="claude-sonnet-5-5", openai_client=own),
    )
    tools = await Runner.run(agent, 'call weather with {"city": "Paris"}')
    again = [*tools.to_input_list(), {"role": "user", "content": 'call weather with {"city": "Oslo"}'}]
    last = Runner.run_streamed(agent, again)
    async for _ in last.stream_events():
        pass
    print(
        json.dumps(
            {
                "first": first.final_output,
                "second": "".join(pieces),
                "typed": typed.final_output.model_dump(),
                "asked": asked,
                "tools": tools.final_output,
                "again": last.final_output,
            }
        )
    )


asyncio.run(main())
