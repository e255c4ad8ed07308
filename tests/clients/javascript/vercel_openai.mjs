// Vercel's AI SDK with its OpenAI provider; `chat` chooses chat completions.

import { createOpenAI } from "@ai-sdk/openai";

import { talk } from "./vercel.mjs";

const { BATON, SESSION } = process.env;

const baton = createOpenAI({
  baseURL: `${BATON}/v1`,
  apiKey: "none",
  headers: { "X-Session-Id": SESSION },
});
const model = baton.chat("claude-sonnet-5-5");

await talk(model);
