/** How an answer is asked for. Kept in this browser; messages are not. */

import { byId, el, icon, setAttribute } from "./dom.js";
import { extraOf } from "./conversation.js";

const KEPT = "vllm-local settings";

const FIELDS = [
  { name: "system", label: "System prompt", kind: "text", rows: 4, hint: "none" },
  { name: "temperature", label: "Temperature", kind: "number", min: 0, max: 2, step: 0.1 },
  { name: "top_p", label: "Top p", kind: "number", min: 0, max: 1, step: 0.05 },
  { name: "top_k", label: "Top k", kind: "number", min: -1, step: 1 },
  { name: "min_p", label: "Min p", kind: "number", min: 0, max: 1, step: 0.05 },
  { name: "max_tokens", label: "Longest answer", kind: "number", min: 1, step: 1, hint: "tokens" },
  { name: "seed", label: "Seed", kind: "number", step: 1 },
  { name: "presence_penalty", label: "Presence penalty", kind: "number", min: -2, max: 2, step: 0.1 },
  { name: "repetition_penalty", label: "Repetition penalty", kind: "number", min: 0.1, step: 0.05 },
  { name: "thinking", label: "Thinking", kind: "choice", choices: [["", "as the model has it"], ["on", "on"], ["off", "off"]] },
  {
    name: "keep_alive", label: "Keep loaded afterwards", kind: "choice",
    choices: [["", "as configured"], ["0", "leave at once"], ["5m", "5 minutes"], ["1h", "1 hour"], ["-1", "for ever"]],
  },
  { name: "extra", label: "More fields, as JSON", kind: "text", rows: 4, hint: '{"stop": ["\\n\\n"]}', isCode: true },
];

/** Builds the panel. Returns what gives the settings as they are: `{temperature: "0.2", ...}`. */
export function showSettings() {
  const panel = byId("chat-settings");
  const button = byId("chat-settings-button");
  const values = { ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") };
  const inputs = FIELDS.map((field) => inputOf(field, values));
  const keep = () => {
    localStorage.setItem(KEPT, JSON.stringify(values));
    button.classList.toggle("changed", Object.values(values).some((value) => value !== ""));
  };

  inputs.forEach(({ input, check }, index) => {
    input.addEventListener("input", () => {
      values[FIELDS[index].name] = input.value;
      check();
      keep();
    });
    check();
  });
  const reset = () => {
    inputs.forEach(({ input, check }, index) => {
      input.value = values[FIELDS[index].name] = "";
      check();
    });
    keep();
  };
  const toggle = (isOpen = panel.hidden) => {
    panel.hidden = !isOpen;
    setAttribute(button, "aria-expanded", isOpen);
    if (isOpen) inputs[0].input.focus();
  };
  panel.append(
    el(
      "header",
      { class: "bar" },
      el("h2", {}, "Settings"),
      el("span", { class: "space" }),
      el("button", { class: "quiet", type: "button", onclick: reset }, "Reset"),
      el("button", { class: "quiet icon-only", type: "button", title: "Close", onclick: () => close() }, icon("close")),
    ),
    el("p", { class: "about" }, "What is left empty is the model's own."),
    el("div", { class: "fields" }, inputs.map(({ node }) => node)),
  );
  const close = () => {
    toggle(false);
    button.focus();
  };
  button.addEventListener("click", () => toggle());
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  keep();
  return { values, toggle };
}

function inputOf(field, values) {
  const value = values[field.name] ?? "";
  const error = el("span", { class: "error", role: "alert" });
  let input;
  if (field.kind === "choice") {
    input = el("select", {}, field.choices.map(([each, text]) => el("option", { value: each }, text)));
  } else if (field.kind === "text") {
    input = el("textarea", { rows: field.rows, placeholder: field.hint, class: field.isCode ? "mono" : null, spellcheck: !field.isCode });
  } else {
    const { min, max, step, hint } = field;
    input = el("input", { type: "number", min, max, step, placeholder: hint ?? "default", inputmode: "decimal" });
  }
  input.value = value;
  const check = () => {
    error.textContent = field.name === "extra" ? complaintOf(input.value) : input.validationMessage ?? "";
  };
  const isWide = field.kind !== "number";
  return { input, check, node: el("label", { class: isWide ? "field wide" : "field" }, el("span", {}, field.label), input, error) };
}

function complaintOf(text) {
  try {
    extraOf(text);
    return "";
  } catch (error) {
    return error.message;
  }
}
