// Vercel's AI SDK with its provider for whatever is compatible with OpenAI.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

import { talk } from "./vercel.mjs";

const { BATON, SESSION } = process.env;

const baton = createOpenAICompatible({
  name: "baton",
  baseURL: `${BATON}/v1`,
  headers: { "X-Session-Id": SESSION },
  supportsStructuredOutputs: true,
});
const model = baton("claude-sonnet-5-5");

await talk(model);
