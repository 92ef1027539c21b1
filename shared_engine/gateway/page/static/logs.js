/** What a model's engine writes, or the gateway itself, as it comes. */

import { byId, copy, el } from "./dom.js";
import { ask, events, keys } from "./gateway.js";
import { now, whenever } from "./live.js";

const GATEWAY = "";
const FIRST = 500;
const MOST = 3000;
const AGAIN_MS = 2000;
const ENDS_WITHIN_PX = 40;

/** Follow a log while it is looked at. `open(model)` shows one's, `close()` ends it. */
export function showLogs() {
  const select = byId("logs-model");
  const lines = byId("lines");
  const filter = byId("logs-filter");
  let following = null;

  whenever(() => {
    const ids = (now.status?.models ?? []).filter((model) => !model.is_remote).map((model) => model.id);
    const wanted = [[GATEWAY, "The gateway"], ...ids.map((id) => [id, id])];
    if (select.dataset.ids === JSON.stringify(ids)) return;
    select.dataset.ids = JSON.stringify(ids);
    const chosen = select.value;
    select.replaceChildren(...wanted.map(([value, text]) => el("option", { value }, text)));
    select.value = wanted.some(([value]) => value === chosen) ? chosen : GATEWAY;
  });

  const isAtEnd = () => lines.scrollHeight - lines.scrollTop - lines.clientHeight < ENDS_WITHIN_PX;
  const isWanted = (node) => node.textContent.toLowerCase().includes(filter.value.trim().toLowerCase());
  // Many lines come at once at first: they are drawn together.
  let coming = [];
  const add = (told) => {
    if (coming.push(told) > 1) return;
    requestAnimationFrame(() => {
      const stays = isAtEnd();
      const nodes = coming.slice(-MOST).map(lineOf);
      coming = [];
      for (const node of nodes) node.hidden = !isWanted(node);
      lines.append(...nodes);
      while (lines.children.length > MOST) lines.firstChild.remove();
      if (stays) lines.scrollTop = lines.scrollHeight;
    });
  };
  const showText = (text) => {
    coming = [];
    lines.replaceChildren(el("p", { class: "empty" }, text));
  };

  async function run(model, signal) {
    const query = new URLSearchParams({ lines: FIRST, follow: true, ...(model === GATEWAY ? {} : { model }) });
    while (!signal.aborted) {
      try {
        const response = await ask(`api/v1/inference/logs?${query}`, { signal });
        showText("Nothing yet.");
        for await (const { data } of events(response.body)) {
          if (data === undefined) continue;
          lines.querySelector(":scope > .empty")?.remove();
          add(JSON.parse(data));
        }
      } catch (error) {
        if (error.name === "AbortError") return;
        showText(error.message);
        if (error.status >= 400 && error.status < 500) return;
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  const open = (model) => {
    if (model !== undefined) select.value = model;
    following?.abort();
    following = new AbortController();
    showText("…");
    run(select.value, following.signal);
  };
  select.addEventListener("change", () => open());
  keys.addEventListener("key", () => following && open());
  filter.addEventListener("input", () => {
    for (const node of lines.children) node.hidden = !isWanted(node);
  });
  byId("logs-wrap").addEventListener("change", (event) => lines.classList.toggle("wraps", event.target.checked));
  byId("logs-copy").addEventListener("click", () => copy([...lines.children].filter((node) => !node.hidden).map((node) => node.textContent).join("\n")));
  return {
    open,
    close() {
      following?.abort();
      following = null;
    },
  };
}

const LEVELS = { WARNING: "warning", ERROR: "error", CRITICAL: "error" };

function lineOf({ time, level, source, process, message }) {
  const at = typeof time === "number" ? new Date(time * 1000).toTimeString().slice(0, 8) : time ?? "";
  return el(
    "p",
    { class: LEVELS[level] ?? null },
    el("span", { class: "at" }, at, " "),
    el("span", { class: "from" }, [process, source].find(Boolean) ?? "", " "),
    el("span", { class: "said" }, message),
  );
}
