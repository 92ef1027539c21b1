/** The requests in flight, each with a way to end it. */

import { byId, el, icon, keyedList, note, setAttribute, setText } from "./dom.js";
import { duration, number } from "./format.js";
import { asJson } from "./gateway.js";
import { now, whenever } from "./live.js";

export function showRequests() {
  const rows = keyedList(byId("requests-rows"), (request) => request.id, rowOf);
  const show = () => {
    const { requests = [], total = 0, at = 0 } = now.requests ?? {};
    const passed = (performance.now() - at) / 1000; // since it was told
    rows(requests.map((request) => ({ ...request, age_s: request.age_s + passed })));
    byId("requests-empty").hidden = requests.length > 0;
    byId("requests-rows").parentNode.hidden = requests.length === 0;
    byId("requests-count").hidden = total === 0;
    setText(byId("requests-count"), total > 99 ? "99+" : String(total));
    setAttribute(byId("requests-count"), "aria-label", `${total} in flight`);
  };
  whenever(show);
  setInterval(show, 500);
}

function rowOf(request) {
  const cell = (label, attributes = {}) => el("td", { "data-label": label, ...attributes });
  const model = cell("Model", { class: "strong" });
  const route = cell("Asks for", { class: "mono" });
  const key = cell("Key");
  const state = el("span", { class: "state" });
  const age = cell("Age", { class: "number" });
  const tokens = cell("Tokens", { class: "number" });
  const button = el("button", { class: "quiet", type: "button", onclick: () => cancel(request.id, button) }, icon("stop"), "Cancel");
  setAttribute(button, "aria-label", `Cancel the request to ${request.model}`);
  return {
    node: el("tr", {}, model, route, key, el("td", { "data-label": "State" }, state), age, tokens, el("td", { class: "action" }, button)),
    update(told) {
      setText(model, told.model);
      setText(route, told.route);
      setText(key, told.key ?? "-");
      setText(state, told.state);
      setAttribute(state, "class", `state ${told.state === "running" ? "good" : "busy"}`);
      setText(age, duration(told.age_s));
      setText(tokens, told.is_stream && told.events ? number(told.events) : "-");
    },
  };
}

async function cancel(id, button) {
  button.disabled = true;
  try {
    await asJson(`api/v1/inference/requests/${encodeURIComponent(id)}/cancel`, { body: {} });
  } catch (error) {
    button.disabled = false;
    if (error.code !== "request_not_found") note(error.message, "error"); // else it has ended by itself
  }
}
