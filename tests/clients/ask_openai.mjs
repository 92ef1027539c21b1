// Asks with openai's client what stdin says, {url, key, calls: {name: {method, body}}}, and prints the answers by name.
import OpenAI from "openai";
import { readFileSync } from "node:fs";

const { url, key, calls } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0, timeout: 600_000 });

async function answer({ method, body, leaves }) {
  const resource = method.split(".").reduce((found, name) => found[name], client);
  try {
    const found = await resource.create(body);
    if (!body.stream) return found;
    const events = [];
    for await (const event of found) {
      if (leaves) {
        found.controller.abort();
        return "left";
      }
      events.push(event);
    }
    return events;
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    return { raised: error.constructor.name, status: error.status, body: error.error };
  }
}

const answers = {};
for (const [name, call] of Object.entries(calls)) answers[name] = await answer(call);
console.log(JSON.stringify(answers));
