"""What both providers of LiteLLM have in common: the conversation itself."""

import json
from typing import Any

import litellm


def talk(baton: dict[str, Any]) -> None:
    """Two turns that send only what is new, one of them streamed, and a tool whose result alone is sent back.

    Args:
        baton: the arguments of `litellm.completion` that lead to Baton.
    """
    first = litellm.completion(**baton, messages=[{"role": "user", "content": "My name is Ada."}])
    stream = litellm.completion(**baton, messages=[{"role": "user", "content": "What is my name?"}], stream=True)
    second = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    weather = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    question = {"role": "user", "content": 'call weather with {"city": "Paris"}'}
    called = litellm.completion(**baton, messages=[question], tools=[weather]).choices[0].message
    asked = [json.loads(call.function.arguments)["city"] for call in called.tool_calls]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"18 degrees in {city}"}
        for call, city in zip(called.tool_calls, asked, strict=True)
    ]
    tools = litellm.completion(**baton, messages=results, tools=[weather])
    print(
        json.dumps(
            {
                "first": first.choices[0].message.content,
                "second": second,
                "asked": asked,
                "tools": tools.choices[0].message.content,
            }
        )
    )
