/** A conversation with a model: what is sent, and what comes back. Knows nothing of the page. */

import { ask, events } from "./gateway.js";

/** Fields of a request by the setting's name; an empty one is left to the model. */
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "presence_penalty", "repetition_penalty"];

/** What can be tried with a model, by what it can do; `chat` where nobody knows yet. */
export function kindOf(model) {
  const can = (what) => model?.capabilities?.includes(what);
  if (can("chat") || !model?.capabilities) return "chat";
  if (can("completions")) return "completion";
  return can("embeddings") ? "embedding" : "ranking";
}

/**
 * Where a request goes, and its body.
 * @param messages `{role, text, pictures}`; of an answer its reasoning is not sent back. Only a chat has more than the last.
 * @throws {SyntaxError} `extra` is not a JSON object.
 */
export function requestOf(kind, model, messages, settings) {
  const extra = extraOf(settings.extra);
  const text = messages.at(-1)?.text ?? "";
  const [first, ...others] = text.split("\n").map((line) => line.trim()).filter(Boolean);
  if (kind === "chat") return { path: "v1/chat/completions", body: { ...chatOf(model, messages, settings), ...extra } };
  if (kind === "completion") {
    return { path: "v1/completions", body: { model, prompt: text, ...STREAMED, ...numbersOf(settings), ...extra } };
  }
  if (others.length) return { path: "v1/rerank", body: { model, query: first, documents: others, ...extra } };
  return { path: kind === "embedding" ? "v1/embeddings" : "classify", body: { model, input: text, ...extra } };
}

const STREAMED = { stream: true, stream_options: { include_usage: true } };

function chatOf(model, messages, settings) {
  const sent = messages.map(({ role, text, pictures = [] }) => {
    const images = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
    return { role, content: images.length ? [...images, { type: "text", text }] : text };
  });
  if (settings.system?.trim()) sent.unshift({ role: "system", content: settings.system });
  const thinking = settings.thinking ? { chat_template_kwargs: { enable_thinking: settings.thinking === "on" } } : {};
  return { model, messages: sent, ...STREAMED, ...numbersOf(settings), ...thinking };
}

function numbersOf(settings) {
  const given = NUMBERS.filter((name) => settings[name] !== undefined && settings[name] !== "");
  const numbers = Object.fromEntries(given.map((name) => [name, Number(settings[name])]));
  return settings.keep_alive ? { ...numbers, keep_alive: settings.keep_alive } : numbers;
}

/** @throws {SyntaxError} it is not a JSON object. */
export function extraOf(text) {
  if (!text?.trim()) return {};
  const extra = JSON.parse(text);
  if (extra === null || typeof extra !== "object" || Array.isArray(extra)) throw new SyntaxError("not a JSON object");
  return extra;
}

/**
 * Ask, and tell each piece of the answer as it comes.
 * @param told called with the answer so far: `{text, reasoning, tools, finish, usage, firstAt, thoughtAt}`, times as of
 *   performance.now().
 * @returns {Promise<Object>} the same when it is whole.
 * @throws {GatewayError} as `ask`; {Error} the stream ended with an error, or without its end.
 */
export async function answerTo({ path, body }, signal, told) {
  const answer = { text: "", reasoning: "", tools: [], finish: null, usage: null, firstAt: null, thoughtAt: null };
  const response = await ask(path, { body, signal });
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    const whole = await response.json();
    return { ...answer, text: inWords(whole, body), usage: whole.usage ?? null };
  }
  let isWhole = false;
  for await (const { data, comment } of events(response.body)) {
    if (comment !== undefined) continue;
    if (data === "[DONE]") {
      isWhole = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    take(answer, chunk);
    told(answer);
  }
  if (!isWhole) throw new Error("The answer broke off");
  return answer;
}

function take(answer, { choices = [], usage }) {
  if (usage) answer.usage = usage;
  const [choice] = choices;
  if (!choice) return;
  const { reasoning, reasoning_content: older, tool_calls: calls = [] } = choice.delta ?? {};
  const content = choice.delta?.content ?? choice.text;
  const thought = reasoning ?? older;
  if (thought || content || calls?.length) answer.firstAt ??= performance.now();
  if (thought) answer.reasoning += thought;
  if (content) {
    if (answer.reasoning && answer.thoughtAt === null) answer.thoughtAt = performance.now();
    answer.text += content;
  }
  for (const call of calls ?? []) {
    answer.tools[call.index] ??= { name: "", arguments: "" };
    answer.tools[call.index].name += call.function?.name ?? "";
    answer.tools[call.index].arguments += call.function?.arguments ?? "";
  }
  answer.finish = choice.finish_reason ?? answer.finish;
}

const SHOWN_NUMBERS = 16;
const escaped = (text) => String(text).replace(/[!-/:-@[-`{-~]/g, "\\$&");

/** What came in one piece, as Markdown. */
function inWords(whole, body) {
  const [first] = whole.data ?? [];
  if (whole.results) {
    const rows = whole.results.map(({ index, relevance_score: score }) => `| ${score.toFixed(4)} | ${escaped(body.documents[index])} |`);
    return ["| score | |", "|--:|---|", ...rows].join("\n");
  }
  if (first?.embedding) {
    const vector = first.embedding;
    const length = Math.hypot(...vector).toFixed(3);
    const shown = vector.slice(0, SHOWN_NUMBERS).map((each) => each.toFixed(4)).join(", ");
    return `A vector of **${vector.length}** numbers and length ${length}\n\n\`\`\`\n[${shown}, ...]\n\`\`\``;
  }
  if (first?.probs) return `**${escaped(first.label ?? "score")}**: ${first.probs.map((each) => each.toFixed(4)).join(", ")}`;
  return (whole.choices?.[0]?.message?.content ?? whole.choices?.[0]?.text) || `\`\`\`json\n${JSON.stringify(whole, null, 2)}\n\`\`\``;
}

/** The same request for a terminal. The key is not in it. */
export function curlOf(address, body, hasKey) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $VLLM_LOCAL_KEY"` : "";
  return `curl -N ${quoted(String(address))}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(body, null, 2))}`;
}
