// What all providers of Vercel's AI SDK have in common: the conversation itself.

import { generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

const { SESSION } = process.env;

export async function talk(model) {
  const first = await generateText({ model, prompt: "My name is Ada." });

  let second = "";
  for await (const piece of streamText({ model, prompt: "What is my name?" }).textStream) second += piece;

  const typed = await generateText({
    model,
    prompt: "repeat after me: Paris",
    output: Output.object({ schema: z.object({ name: z.string() }) }),
  });

  // The loop sends all of its own messages each time, so it begins a session: the first of them must be the session's.
  const asked = [];
  const loop = {
    model,
    headers: { "X-Session-Id": `${SESSION}-tools` },
    tools: {
      weather: tool({
        description: "The weather in a city.",
        inputSchema: z.object({ city: z.string() }),
        execute: async ({ city }) => {
          asked.push(city);
          return `18 degrees in ${city}`;
        },
      }),
    },
    stopWhen: isStepCount(3),
  };
  const question = { role: "user", content: 'call weather with {"city": "Paris"}' };
  const tools = await generateText({ ...loop, messages: [question] });

  const next = { role: "user", content: 'call weather with {"city": "Oslo"}' };
  const streamed = streamText({ ...loop, messages: [question, ...tools.responseMessages, next] });
  const again = await streamed.text;

  console.log(JSON.stringify({ first: first.text, second, typed: typed.output, asked, tools: tools.text, again }));
}
