// Asks with Anthropic's client what stdin says, {url, key, calls: {name: body}}, and prints the answers by name.
import Anthropic from "@anthropic-ai/sdk";
import { readFileSync } from "node:fs";

const { url, key, calls } = JSON.parse(readFileSync(0, "utf8"));
const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0, timeout: 600_000 });

async function answer(body) {
  try {
    const found = await client.messages.create(body);
    if (!body.stream) return found;
    const events = [];
    for await (const event of found) events.push(event);
    return events;
  } catch (error) {
    if (!(error instanceof Anthropic.APIError)) throw error;
    return { raised: error.constructor.name, status: error.status, body: error.error };
  }
}

const answers = {};
for (const [name, body] of Object.entries(calls)) answers[name] = await answer(body);
console.log(JSON.stringify(answers));
