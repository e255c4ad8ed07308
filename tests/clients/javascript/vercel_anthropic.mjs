// Vercel's AI SDK with its Anthropic provider.

import { createAnthropic } from "@ai-sdk/anthropic";

import { talk } from "./vercel.mjs";

const { BATON, SESSION } = process.env;

const baton = createAnthropic({
  baseURL: `${BATON}/v1`,
  apiKey: "none",
  headers: { "X-Session-Id": SESSION },
});
const model = baton("claude-sonnet-5-5");

await talk(model);
