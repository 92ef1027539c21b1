// Asks with Ollama's client what stdin says, {url, key, calls: {name: chat}}, and prints the lines of each answer by name.
import { Ollama } from "ollama";
import { readFileSync } from "node:fs";

const { url, key, calls } = JSON.parse(readFileSync(0, "utf8"));
const client = new Ollama({ host: url, headers: { Authorization: `Bearer ${key}` } });

const answers = {
  models: (await client.list()).models.map((each) => each.model),
  version: (await client.version()).version,
};
for (const [name, call] of Object.entries(calls)) {
  const found = await client.chat(call);
  answers[name] = [];
  for await (const line of call.stream ? found : [found]) answers[name].push(line);
}
console.log(JSON.stringify(answers));
