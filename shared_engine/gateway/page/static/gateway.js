/** How the page asks the gateway: with the key, if one was given, and with errors as the gateway tells them. */

const KEY = "vllm-local key";
// Where the page is: a proxy may serve it below a path of its own.
const HOME = new URL(".", document.baseURI);

/** Told "key" with each change of the key, and "refused" when a key is missing or wrong. */
export const keys = new EventTarget();

export const key = () => sessionStorage.getItem(KEY);

export function useKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  keys.dispatchEvent(new Event("key"));
}

/** Resolves with the next change of the key; `signal` ends the listening. */
export const nextKey = (signal) =>
  new Promise((resolve) => keys.addEventListener("key", resolve, { once: true, signal }));

export const address = (path) => new URL(path.replace(/^\//, ""), HOME);

export class GatewayError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * The answer to a request.
 * @param {Object} options `body`: sent as JSON, by POST; `signal`: ends it.
 * @throws {GatewayError} it was refused, or nothing answers (status 0).
 */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path), {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers,
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new GatewayError("The gateway does not answer", 0, "unreachable");
  }
  if (response.ok) return response;
  if (response.status === 401) keys.dispatchEvent(new Event("refused"));
  throw await refusalOf(response);
}

export const asJson = async (path, options) => (await ask(path, options)).json();

async function refusalOf(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return new GatewayError(error.message, response.status, error.code);
  } catch {
    return new GatewayError(text.slice(0, 500) || `HTTP ${response.status}`, response.status, null);
  }
}

/**
 * The events of a stream, one after the other: `{event, data}`; a comment is `{comment}`.
 * @param {ReadableStream} body of a response.
 */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  let event = "message";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const each of lines) {
        const line = each.endsWith("\r") ? each.slice(0, -1) : each;
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          data = [];
          event = "message";
        } else if (line.startsWith(":")) {
          yield { comment: line.slice(1).trim() };
        } else {
          const colon = line.indexOf(":");
          const name = colon < 0 ? line : line.slice(0, colon);
          const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
          if (name === "data") data.push(value);
          else if (name === "event") event = value;
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined); // the server is told that nobody listens
  }
}
