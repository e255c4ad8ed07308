"""A local stand-in for Claude: a separate process that speaks the Messages API over a socket.

It exists so that Baton can be developed, demonstrated and tested where no key and no network are at hand.
It is strict rather than kind: a request the real API refuses is refused here with the same status and error
type, so that a mistake is found on the first machine it runs on. It makes nothing up either: every answer is
computed from the messages of the request alone, which turns each answer into evidence of what was sent.

What it imitates: API version 2026-10-21, JSON and server-sent events, the rules on fields, roles and content
blocks, tools of the caller's and calls of them, `count_tokens`, the Models API, error bodies, a token estimate.
What it does not: beta features (their fields are refused), calls of Anthropic's own tools, prompt caching (the usage
fields are there and 0), rate limits (ask for a fault instead).

    errors.py         the error types and their one shape
    models.py         the models on offer and what each refuses
    rules.py          a request's headers and fields → accepted, or the error Claude would answer
    tools.py          the same for `tools` and `tool_choice`
    conversation.py   the same for `messages`: roles, blocks, the pairing of tool calls and results
    answers.py        pure: the messages → what to say
    calls.py          pure: the messages and the tools → which tools to call
    events.py         pure: what to say → a message object or the frames of a stream
    faults.py         faults on demand and pacing
    journal.py        what was asked and answered, for tests to look at
    exchange.py       one request to `/v1/messages` from its body to its last byte
    app.py            routes, the control surface, the process

Nothing here may import Baton's own code, and only the command line imports this package.
"""
