/** What the gateway is doing now: one stream of it for the whole page, only while somebody looks. */

import { ask, events, keys, nextKey } from "./gateway.js";

const AGAIN_MS = [500, 1000, 2000, 5000];
const told = new EventTarget();

/**
 * `status`, `requests`: as the gateway last told them, null before; `at` of the latter is when, by performance.now().
 * `problem`: why nothing is told any more; null while it is. `chosen`: the name that the chat asks.
 */
export const now = { status: null, requests: null, problem: null, chosen: null };

/** Call `shown` with each change, and once at once. */
export function whenever(shown) {
  told.addEventListener("change", shown);
  shown();
}

/** All names that requests may use for a model. */
export const namesOf = (model) => [model.id, ...(model.adapters ?? []), ...(model.aliases ?? [])];

/** The model that has this name, or null. */
export const modelOf = (name) => now.status?.models.find((model) => namesOf(model).includes(name)) ?? null;

export function tell(changes) {
  Object.assign(now, changes);
  told.dispatchEvent(new Event("change"));
}

/** Go on for ever. */
export async function follow() {
  let failures = 0;
  // What another key was told is not for this one.
  keys.addEventListener("key", () => tell({ status: null, requests: null, problem: null }));
  for (;;) {
    await visible();
    const ended = new AbortController();
    const end = () => ended.abort();
    const hide = () => document.hidden && end();
    document.addEventListener("visibilitychange", hide);
    keys.addEventListener("key", end);
    try {
      const response = await ask("events", { signal: ended.signal });
      for await (const { event, data } of events(response.body)) {
        if (ended.signal.aborted) break;
        failures = 0;
        if (event === "status") tell({ status: JSON.parse(data), problem: null });
        else if (event === "requests") tell({ requests: { ...JSON.parse(data), at: performance.now() } });
      }
    } catch (error) {
      if (error.name !== "AbortError") tell({ problem: error.message });
      if (error.status === 401 && !ended.signal.aborted) await nextKey();
    } finally {
      document.removeEventListener("visibilitychange", hide);
      keys.removeEventListener("key", end);
    }
    if (!ended.signal.aborted) {
      const pause = AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)];
      const waited = new AbortController();
      await Promise.race([new Promise((resolve) => setTimeout(resolve, pause)), nextKey(waited.signal)]);
      waited.abort();
      failures += 1;
    }
  }
}

function visible() {
  if (!document.hidden) return undefined;
  return new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}
