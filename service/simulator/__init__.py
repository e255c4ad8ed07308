"""A local stand-in for Claude: a separate process that speaks the Messages API over a socket.

It exists so that Baton can be developed, demonstrated and tested where no key and no network are at hand.
It is strict rather than kind: a request the real API refuses is refused here with the same status and error
type, so that a mistake is found on the first machine it runs on. It makes nothing up either: every answer is
computed from the messages of the request alone, which turns each answer into evidence of what was sent.

What it imitates: API versions 2026-10-21 and 2023-06-01, JSON and server-sent events, the rules on fields, roles and
content blocks, tools of the caller's and calls of them, thinking and the binding of its blocks to what was before them,
prompt caching, JSON by a schema, `count_tokens`, the Models API, error bodies, a token estimate.
What it does not: beta features (their fields are refused, or with a beta header ignored), calls of Anthropic's own
tools, text between calls as thinking blocks, rate limits (ask for a fault instead).

    errors.py         the error types and their one shape
    models.py         the models on offer and what each refuses
    headers.py        a request's headers → which rules hold, or the error Claude would answer
    rules.py          a request's body → accepted, or the error
    fields.py         the same for the fields that are not listed below
    thinking.py       the same for `thinking`, and how a request is thought about
    tools.py          the same for `tools` and `tool_choice`
    conversation.py   the same for `messages`: roles, blocks, the pairing of tool calls and results
    attachments.py    the same for what images and documents are made from, and a word on them
    schema.py         the same for a JSON schema, and a value that satisfies it
    prompt.py         pure: a request → what the model reads, its digests and its size
    seals.py          pure: the seals on thinking blocks, made and verified
    cache.py          the rules on `cache_control`, and the prompt cache
    diagnosis.py      why the cache had not what an earlier request left
    answers.py        pure: the messages → what to say
    calls.py          pure: the messages and the tools → which tools to call
    events.py         pure: what to say → a message object or the frames of a stream
    faults.py         faults on demand and pacing
    journal.py        what was asked and answered, for tests to look at
    exchange.py       one request to `/v1/messages` from its body to its last byte
    app.py            routes, the control surface, the process

Nothing here may import Baton's own code, and only the command line imports this package.
"""
