// OpenAI's SDK: two turns of a session, each of which sends only what is new, and the SDK's own tool loop.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const { BATON, SESSION } = process.env;
const MODEL = "claude-sonnet-5-5";

const client = new OpenAI({
  baseURL: `${BATON}/v1`,
  apiKey: "none",
  defaultHeaders: { "X-Session-Id": SESSION },
});

const first = await client.chat.completions.create({
  model: MODEL,
  messages: [{ role: "user", content: "My name is Ada." }],
});

const stream = await client.chat.completions.create({
  model: MODEL,
  messages: [{ role: "user", content: "What is my name?" }],
  stream: true,
});
let second = "";
for await (const chunk of stream) second += chunk.choices[0]?.delta?.content ?? "";

const City = z.object({ name: z.string() });
const typed = await client.chat.completions.parse({
  model: MODEL,
  messages: [{ role: "user", content: "repeat after me: Paris" }],
  response_format: zodResponseFormat(City, "city"),
});

// The loop sends all of its own messages each time, so it begins a session: the first of them must be the session's.
const asked = [];
const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    parse: JSON.parse,
    function: ({ city }) => {
      asked.push(city);
      return `18 degrees in ${city}`;
    },
  },
};
const runner = client.chat.completions.runTools(
  { model: MODEL, messages: [{ role: "user", content: 'call weather with {"city": "Paris"}' }], tools: [weather] },
  { headers: { "X-Session-Id": `${SESSION}-tools` } },
);
const tools = await runner.finalContent();

const streamed = client.chat.completions.runTools(
  {
    model: MODEL,
    messages: [...runner.messages, { role: "user", content: 'call weather with {"city": "Oslo"}' }],
    tools: [weather],
    stream: true,
  },
  { headers: { "X-Session-Id": `${SESSION}-tools` } },
);
const again = await streamed.finalContent();

const [one, three] = [first, typed].map((answer) => answer.choices[0].message);
console.log(JSON.stringify({ first: one.content, second, typed: three.parsed, asked, tools, again }));
