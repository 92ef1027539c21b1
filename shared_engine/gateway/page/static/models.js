/** The models and the devices that they are on: state, use, and what can be done with them. */

import { byId, confirmed, copy, el, icon, keyedList, note, say, setAttribute, setText, svg } from "./dom.js";
import { bytes, context, plural, rate, until } from "./format.js";
import { asJson } from "./gateway.js";
import { modelOf, namesOf, now, whenever } from "./live.js";

/** What each state is for people, and which colour it has. */
const STATES = {
  ready: ["ready", "good"],
  starting: ["loading", "busy"],
  stopping: ["unloading", "busy"],
  asleep: ["asleep", "rest"],
  standby: ["standby", "rest"],
  stopped: ["not loaded", "off"],
  failed: ["failed", "bad"],
};
const UNKNOWN = ["no answer", "bad"];
const UP = ["ready", "starting", "asleep"];
const SAMPLES = 60;
const SEARCH_FROM = 7;
// Said where a model does more than talk.
const SHOWN = ["tools", "reasoning", "image", "audio", "video", "embeddings", "rerank", "score", "classify"];

export const wordOf = (model) => (STATES[model.state] ?? UNKNOWN)[0];

/** What a start is doing, or null. */
export const progressOf = (model) => (model?.state === "starting" ? model.progress?.text ?? "starting" : null);

export const isUp = (model) => UP.includes(model.state);

/**
 * @param {Object} on `chosen(id)`: to chat with it; `logs(id)`: to read its log.
 */
export function showModels(on) {
  const search = byId("models-search").querySelector("input");
  const cards = keyedList(byId("cards"), (model) => model.id, (model) => cardOf(model.id, on));
  const devices = keyedList(byId("devices"), (device) => device.id, deviceOf);
  const show = () => {
    const all = now.status?.models ?? [];
    byId("models-search").hidden = all.length < SEARCH_FROM;
    const wanted = search.value.trim().toLowerCase();
    const found = all.filter((model) => [model.id, model.model, ...(model.aliases ?? [])].join("\n").toLowerCase().includes(wanted));
    cards(found);
    devices(now.status?.devices ?? []);
    byId("models-empty").hidden = found.length > 0;
    setText(byId("models-empty"), all.length ? "No model has this in its name." : now.problem ?? (now.status ? "No models." : "Asking the gateway …"));
  };
  search.addEventListener("input", show);
  whenever(show);
  setInterval(show, 1000); // what counts down
}

function deviceOf() {
  const name = el("span", { class: "name" });
  const numbers = el("span", { class: "numbers" });
  const bar = el("progress", { max: "1" });
  return {
    node: el("div", { class: "device" }, el("div", { class: "row" }, name, numbers), bar),
    update({ id, name: whole, memory_used_bytes: used, memory_total_bytes: total, utilization_percent: busy }) {
      setText(name, whole && whole !== id ? `${id} · ${whole}` : id);
      const memory = total ? `${bytes(used)} of ${bytes(total)}` : "";
      setText(numbers, [memory, busy === null || busy === undefined ? "" : `${Math.round(busy)} %`].filter(Boolean).join(" · "));
      bar.hidden = !total;
      bar.value = total ? used / total : 0;
      setAttribute(bar, "aria-label", `Memory of ${id}`);
      bar.classList.toggle("full", total > 0 && used / total > 0.92);
    },
  };
}

function cardOf(id, on) {
  const choose = el("button", { class: "title", type: "button", title: "Chat with it (Enter)", onclick: () => on.chosen(id) }, id);
  const state = el("span", { class: "state" });
  const about = el("p", { class: "about" });
  const abilities = el("ul", { class: "abilities", "aria-label": "What it does" });
  const bar = el("progress", { "aria-label": "Loading" });
  const phase = el("p", { class: "phase" });
  const failure = el("p", { class: "failure" });
  const use = el("p", { class: "use" });
  const line = sparkline();
  const where = el("p", { class: "where" });
  const load = el("button", { class: "quiet", type: "button", onclick: () => loadOrUnload(id) });
  const pin = el("button", { class: "quiet", type: "button", onclick: () => pinOrUnpin(id) }, icon("pin"), el("span"));
  const logs = el("button", { class: "quiet", type: "button", onclick: () => on.logs(id) }, icon("logs"), "Log");
  const name = el("button", { class: "quiet icon-only", type: "button", title: `Copy the name ${id}`, onclick: () => copy(id) }, icon("copy"));
  const speeds = [];
  let last = null;
  let seen = null;
  const node = el(
    "li",
    { class: "card" },
    el("div", { class: "row" }, choose, state),
    about,
    abilities,
    el("div", { class: "loading" }, bar, phase),
    failure,
    el("div", { class: "row activity" }, use, line.node),
    where,
    el("div", { class: "actions" }, load, pin, logs, el("span", { class: "space" }), name),
  );
  return {
    node,
    update(model) {
      node.classList.toggle("chosen", namesOf(model).includes(now.chosen));
      const [word, kind] = STATES[model.state] ?? UNKNOWN;
      setText(state, word);
      setAttribute(state, "class", `state ${kind}`);
      if (last !== null && last !== model.state) say(`${id}: ${word}`);
      last = model.state;
      if (seen !== now.status && seen !== null) {
        speeds.push(model.tokens_per_s?.completion ?? 0);
        if (speeds.length > SAMPLES) speeds.shift();
      }
      seen = now.status;
      setText(about, aboutOf(model));
      showAbilities(abilities, model);
      showProgress(bar, phase, model);
      failure.hidden = !model.failure || isUp(model);
      setText(failure, model.failure?.message ?? "");
      const isLive = model.state === "ready" || model.requests.running + model.requests.waiting > 0;
      use.parentNode.hidden = !isLive;
      setText(use, useOf(model));
      line.draw(speeds);
      setText(where, whereOf(model));
      where.hidden = where.textContent === "";
      showActions(model, load, pin, logs);
    },
  };
}

function aboutOf(model) {
  const what = model.description ?? (model.model === model.id ? null : shortened(model.model));
  const length = model.max_model_len ? `${context(model.max_model_len)} context` : null;
  return [model.name === model.id ? null : model.name, what, length, model.is_remote ? "remote" : null].filter(Boolean).join(" · ");
}

/** Of a path its last two parts. */
const shortened = (name) => (name?.startsWith("/") ? `…/${name.split("/").slice(-2).join("/")}` : name);

function showAbilities(list, model) {
  const words = SHOWN.filter((each) => model.capabilities?.includes(each));
  if (model.adapters?.length) words.push(plural(model.adapters.length, "adapter"));
  if (list.dataset.words === words.join()) return;
  list.dataset.words = words.join();
  list.replaceChildren(...words.map((word) => el("li", {}, word)));
  list.hidden = words.length === 0;
}

function showProgress(bar, phase, model) {
  const isLoading = model.state === "starting";
  bar.parentNode.hidden = !isLoading;
  if (!isLoading) return;
  const { done, total } = model.progress ?? {};
  if (total) {
    bar.max = total;
    bar.value = done;
  } else {
    bar.removeAttribute("value");
  }
  setText(phase, progressOf(model));
}

function useOf({ requests, tokens_per_s: speed }) {
  const parts = [requests.running ? `${requests.running} running` : null, requests.waiting ? `${requests.waiting} waiting` : null];
  if (speed?.completion) parts.push(`${rate(speed.completion)} tok/s`);
  return parts.filter(Boolean).join(" · ") || "idle";
}

function whereOf(model) {
  const memory = bytes(model.memory_bytes);
  const devices = model.devices?.join(", ");
  const parts = [[memory, devices].filter(Boolean).join(" on ")];
  if (model.leaves_at && isUp(model) && !model.pinned) parts.push(`leaves in ${until(model.leaves_at - Date.now() / 1000)}`);
  if (model.members?.length) parts.push(plural(model.members.length, "engine"));
  return parts.filter(Boolean).join(" · ");
}

function showActions(model, load, pin, logs) {
  const isAdmin = now.status.is_admin !== false;
  const unloads = isUp(model);
  setText(load, unloads ? "Unload" : "Load");
  load.classList.toggle("inviting", !unloads);
  load.disabled = model.state === "stopping" || asked.has(model.id) || (unloads && !isAdmin);
  load.hidden = Boolean(model.is_remote);
  pin.hidden = Boolean(model.is_remote) || !isAdmin;
  logs.hidden = Boolean(model.is_remote) || !isAdmin;
  setAttribute(pin, "aria-pressed", Boolean(model.pinned));
  setAttribute(pin, "title", model.pinned ? "Let it leave when it is idle, or another needs its room" : "Keep it loaded");
  setText(pin.lastChild, model.pinned ? "Pinned" : "Pin");
}

// ---- what is done

/** Models whose loading or unloading has been asked for, and not been answered. */
const asked = new Set();

async function loadOrUnload(id) {
  const model = modelOf(id);
  if (!isUp(model)) return actOnce("load", id, { wait: false });
  const { running, waiting } = model.requests;
  const count = running + waiting;
  const isSure = count === 0 || (await confirmed(`Unload ${id}?`, `${plural(count, "request")} in flight. It waits half a minute for them to end.`, "Unload"));
  return isSure && actOnce("unload", id);
}

const pinOrUnpin = (id) => act(modelOf(id).pinned ? "unpin" : "pin", id);

async function actOnce(what, id, more) {
  asked.add(id);
  await act(what, id, more);
  asked.delete(id);
}

async function act(what, id, more = {}) {
  try {
    await asJson(`api/v1/inference/${what}`, { body: { model: id, ...more } });
  } catch (error) {
    note(error.message, "error");
  }
}

// ---- the last minute

function sparkline() {
  const path = svg("polyline", { points: "" });
  const node = svg("svg", { class: "spark", viewBox: `0 0 ${SAMPLES - 1} 20`, preserveAspectRatio: "none", "aria-hidden": "true" }, path);
  return {
    node,
    draw(values) {
      const top = Math.max(...values);
      node.classList.toggle("flat", !(top > 0));
      if (!(top > 0)) return;
      const from = SAMPLES - values.length;
      path.setAttribute("points", values.map((value, index) => `${from + index},${(19 - (value / top) * 18).toFixed(1)}`).join(" "));
    },
  };
}
