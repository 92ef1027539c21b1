/** The page: its views, and the keys for them. */

import { showChat } from "./chat.js";
import { byId, el, setAttribute, setText } from "./dom.js";
import { rate } from "./format.js";
import { key, keys, useKey } from "./gateway.js";
import { follow, now, whenever } from "./live.js";
import { showLogs } from "./logs.js";
import { showModels } from "./models.js";
import { showRequests } from "./requests.js";

const VIEWS = ["models", "chat", "requests", "logs"];
const THEMES = ["auto", "light", "dark"];
const THEME = "vllm-local theme";
const SINGLE = "vllm-local single keys";

const chat = showChat();
const logs = showLogs();
showModels({
  chosen(model) {
    go("chat");
    chat.choose(model);
  },
  logs(model) {
    go("logs");
    logs.open(model);
  },
});
showRequests();

// ---- views

let view = null;

function show() {
  const wanted = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "chat";
  if (wanted === view) return;
  view = wanted;
  document.body.dataset.view = view;
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "logs") logs.open();
  else logs.close();
}

function go(name) {
  if (location.hash !== `#${name}`) location.hash = name;
  show();
}

window.addEventListener("hashchange", show);
show();

// ---- the line at the top

whenever(() => {
  const { status, problem } = now;
  const line = byId("live");
  line.classList.toggle("problem", problem !== null);
  if (problem !== null) return setText(line, problem);
  if (status === null) return setText(line, "…");
  const sum = (of) => status.models.reduce((total, model) => total + (of(model) ?? 0), 0);
  const loaded = status.models.filter((model) => model.state === "ready").length;
  const speed = sum((model) => model.tokens_per_s?.completion);
  return setText(line, [`${loaded} of ${status.models.length} ready`, speed ? `${rate(speed)} tok/s` : null].filter(Boolean).join(" · "));
});

// ---- light and dark

function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  setAttribute(byId("theme-button"), "title", `Colours: ${theme} (t)`);
  setAttribute(byId("theme-button"), "aria-label", `Colours: ${theme}`);
}

function nextTheme() {
  const root = document.documentElement;
  const theme = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
  if (theme === "auto") {
    delete root.dataset.theme;
    localStorage.removeItem(THEME);
  } else {
    root.dataset.theme = theme;
    localStorage.setItem(THEME, theme);
  }
  showTheme();
}

byId("theme-button").addEventListener("click", nextTheme);
showTheme();

// ---- the API key

function askForKey(problem = "") {
  byId("key").value = "";
  setText(byId("key-error"), problem);
  byId("key-forget").hidden = key() === null;
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

keys.addEventListener("refused", () => {
  byId("key-button").hidden = false;
  askForKey(key() === null ? "" : "The gateway does not know this key.");
});
byId("key-button").hidden = key() === null;
byId("key-button").addEventListener("click", () => askForKey());
byId("key-forget").addEventListener("click", () => {
  useKey(null);
  location.reload(); // what was shown with it goes too
});
byId("key-dialog").addEventListener("close", () => {
  const given = byId("key").value.trim();
  byId("key").value = "";
  if (given) useKey(given);
});

// ---- keys

const KEYS = {
  m: ["Models", () => go("models")],
  c: ["Chat", () => go("chat")],
  r: ["Requests", () => go("requests")],
  l: ["Logs", () => go("logs")],
  "/": ["Write a message", () => write()],
  n: ["New chat", () => startAgain()],
  s: ["Settings of the chat", () => settle()],
  t: ["Colours: auto, light, dark", nextTheme],
  "?": ["These keys", () => byId("help-dialog").showModal()],
};
const OTHERS = [["Enter", "Send"], ["Shift Enter", "A new line"], ["Esc", "Stop the answer"]];
const isSingle = () => localStorage.getItem(SINGLE) !== "off";

function write() {
  go("chat");
  chat.focus();
}

function startAgain() {
  go("chat");
  chat.clear();
}

function settle() {
  go("chat");
  chat.toggleSettings();
}

byId("help-button").addEventListener("click", KEYS["?"][1]);
byId("help-keys").append(
  ...[...Object.entries(KEYS).map(([name, [what]]) => [name, what]), ...OTHERS].flatMap(([name, what]) => [
    el("dt", {}, name.split(" ").map((each) => el("kbd", {}, each))),
    el("dd", {}, what),
  ]),
);
byId("help-single").checked = isSingle();
byId("help-single").addEventListener("change", ({ target }) => localStorage.setItem(SINGLE, target.checked ? "on" : "off"));

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") return chat.stop();
  const isTyping = event.target.closest("input, textarea, select, [contenteditable]") !== null;
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !isSingle()) return;
  const found = KEYS[event.key];
  if (!found) return;
  event.preventDefault();
  found[1]();
});

follow();
