// Anthropic's SDK: two turns of a session, each of which sends only what is new, and the SDK's own tool loop.

import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

const { BATON, SESSION } = process.env;
const MODEL = "claude-sonnet-5-5";

const client = new Anthropic({
  baseURL: BATON,
  apiKey: "none",
  defaultHeaders: { "X-Session-Id": SESSION },
});

const first = await client.messages.create({
  model: MODEL,
  max_tokens: 1000,
  messages: [{ role: "user", content: "My name is Ada." }],
});

const second = await client.messages
  .stream({ model: MODEL, max_tokens: 1000, messages: [{ role: "user", content: "What is my name?" }] })
  .finalText();

const City = z.object({ name: z.string() });
const typed = await client.messages.parse({
  model: MODEL,
  max_tokens: 1000,
  messages: [{ role: "user", content: "repeat after me: Paris" }],
  output_config: { format: zodOutputFormat(City) },
});

const asked = [];
const weather = {
  name: "weather",
  description: "The weather in a city.",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  parse: (input) => input,
  run: ({ city }) => {
    asked.push(city);
    return `18 degrees in ${city}`;
  },
};
// The loop sends all of its own messages each time, so it begins a session: the first of them must be the session's.
const loop = { model: MODEL, max_tokens: 1000, tools: [weather] };
const inSession = { headers: { "X-Session-Id": `${SESSION}-tools` } };
const question = { role: "user", content: 'call weather with {"city": "Paris"}' };
const runner = client.beta.messages.toolRunner({ ...loop, messages: [question] }, inSession);
const tools = await runner.runUntilDone();

const next = { role: "user", content: 'call weather with {"city": "Oslo"}' };
const streamed = client.beta.messages.toolRunner(
  { ...loop, messages: [...runner.params.messages, next], stream: true },
  inSession,
);
const again = await streamed.runUntilDone();

const said = (message) => message.content.map((block) => block.text ?? "").join("");
const seen = { first: said(first), second, typed: typed.parsed_output, asked, tools: said(tools), again: said(again) };
console.log(JSON.stringify(seen));
