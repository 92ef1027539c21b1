/** The page of requests: what /openapi.json tells, to be read and to be tried. */

import { address, ask, asJson, key, nextKey, useKey } from "./gateway.js";
import { byId, copy, el } from "./dom.js";

const JSON_TYPE = "application/json";
let described;

// ---- schemas, for people

const named = (schema) => schema.$ref?.split("/").pop();
const meant = (schema) => (schema.$ref ? described.components.schemas[named(schema)] : schema);

function typeOf(schema) {
  if (schema.$ref) return named(schema);
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (schema.anyOf) return [...new Set(schema.anyOf.map(typeOf))].join(" | ");
  if (schema.type === "array") return `${typeOf(schema.items ?? {})}[]`;
  return schema.format === "binary" ? "file" : (schema.type ?? "any");
}

function fieldsOf(schema) {
  const { properties = {}, required = [] } = meant(schema);
  return Object.entries(properties).map(([name, each]) => ({ name, schema: each, isNeeded: required.includes(name) }));
}

function table(rows) {
  return el("table", {}, rows.map(({ name, schema, isNeeded }) =>
    el("tr", {},
      el("th", { scope: "row" }, name, isNeeded ? el("span", { class: "needed" }, "needed") : null),
      el("td", {}, typeOf(schema)),
      el("td", {}, schema.description ?? (schema.default === undefined ? "" : `Default ${JSON.stringify(schema.default)}.`)))));
}

const part = (title, rows) => (rows.length ? [el("h4", {}, title), table(rows)] : []);

// ---- one request

/** @param {string} path @param {string} method @param what is told of it */
function operation(path, method, told, models) {
  const id = told.operationId;
  const [bodyType, { schema: body } = {}] = Object.entries(told.requestBody?.content ?? {})[0] ?? [];
  const answers = Object.entries(told.responses).find(([status]) => status.startsWith("2"))?.[1].content ?? {};
  const answer = answers[JSON_TYPE]?.schema;
  const parameters = (told.parameters ?? []).map((each) => ({ ...each, isNeeded: each.required }));
  const isOpen = described.components.securitySchemes && told.security?.length === 0;
  return el("section", { class: "operation", id, "aria-labelledby": `${id}-title` },
    el("h3", { id: `${id}-title` }, el("span", { class: `method ${method}` }, method.toUpperCase()), path),
    el("p", {}, told.summary, isOpen ? " · needs no key" : ""),
    part("In the address", parameters),
    body ? part(bodyType === JSON_TYPE ? "Body, in JSON" : `Body, ${bodyType}`, fieldsOf(body)) : [],
    answer ? part(`Answer, ${Object.keys(answers).join(" or ")}`, fieldsOf(answer)) : [],
    method === "delete" || (body && bodyType !== JSON_TYPE) ? null : trial(path, method, parameters, body, models));
}

function exampleOf(body, models) {
  const [example = {}] = meant(body).examples ?? [];
  return JSON.stringify(example.model && models.length ? { ...example, model: models[0] } : example, null, 2);
}

function trial(path, method, parameters, body, models) {
  const text = body ? el("textarea", { rows: 10, spellcheck: "false", "aria-label": "Body" }) : null;
  if (text) text.value = exampleOf(body, models);
  const inputs = parameters.map((each) => [each, el("input", { name: each.name, autocomplete: "off", required: Boolean(each.required) })]);
  const send = el("button", { class: "primary", type: "submit" }, "Send");
  const stop = el("button", { class: "quiet", type: "button", hidden: true }, "Stop");
  const output = el("output", { "aria-live": "polite" });

  const target = () => {
    const query = new URLSearchParams();
    let filled = path;
    for (const [{ name, in: place }, input] of inputs) {
      if (place === "path") filled = filled.replace(`{${name}}`, input.value.split("/").map(encodeURIComponent).join("/"));
      else if (input.value) query.set(name, input.value);
    }
    return query.size ? `${filled}?${query}` : filled;
  };

  async function sent(event) {
    event.preventDefault();
    const controller = new AbortController();
    const status = el("p", { class: "status" }, "…");
    const shown = el("pre", { tabindex: "0", "aria-label": "Answer" });
    output.replaceChildren(status, shown);
    send.disabled = true;
    stop.hidden = false;
    stop.onclick = () => controller.abort();
    try {
      const response = await ask(target(), { body: text ? JSON.parse(text.value || "{}") : undefined, signal: controller.signal });
      status.textContent = `${response.status} · ${response.headers.get("content-type") ?? ""}`;
      await pouredInto(shown, response);
    } catch (error) {
      status.className = "status bad";
      status.textContent = error.status ? `${error.status} · ${error.code ?? ""}` : error.name === "AbortError" ? "Stopped" : "Not sent";
      if (error.name !== "AbortError") shown.append(error.message);
    } finally {
      send.disabled = false;
      stop.hidden = true;
    }
  }

  return el("form", { onsubmit: sent },
    inputs.map(([{ name }, input]) => el("label", { class: "parameter" }, name, input)),
    text,
    el("div", { class: "row" }, send, stop, el("span", { class: "space" }),
      el("button", { class: "quiet", type: "button", onclick: () => copy(curl(method, target(), text?.value)) }, "Copy as curl")),
    output);
}

async function pouredInto(node, response) {
  if (response.headers.get("content-type")?.startsWith(JSON_TYPE)) {
    node.textContent = JSON.stringify(await response.json(), null, 2);
    return;
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    node.append(value);
    node.scrollTop = node.scrollHeight;
  }
}

function curl(method, path, body) {
  const quoted = (value) => `'${value.replaceAll("'", "'\\''")}'`;
  const words = ["curl", quoted(address(path).href)];
  if (key()) words.push("-H", '"Authorization: Bearer $API_KEY"'); // the key itself stays here
  if (body !== undefined) words.push("-H", quoted(`Content-Type: ${JSON_TYPE}`), "-d", quoted(body));
  else if (method === "post") words.push("-X", "POST");
  return words.join(" ");
}

// ---- all of them

function show(models) {
  const groups = new Map(described.tags.map(({ name }) => [name, []]));
  for (const [path, methods] of Object.entries(described.paths)) {
    for (const [method, told] of Object.entries(methods)) groups.get(told.tags[0]).push({ path, method, told });
  }
  const links = [];
  const sections = [];
  byId("key-button").hidden = !described.components.securitySchemes;
  byId("groups").replaceChildren(...[...groups].map(([name, found]) => el("div", { class: "group" }, el("h2", {}, name),
    found.map(({ path, method, told }) => {
      const link = el("a", { href: `#${told.operationId}` }, el("span", { class: `method ${method}` }, method.toUpperCase()), path);
      links.push({ link, text: `${method} ${path} ${told.summary} ${name}`.toLowerCase() });
      sections.push(operation(path, method, told, models));
      return link;
    }))));
  byId("operations").replaceChildren(...sections);
  const find = () => {
    const words = byId("find").value.toLowerCase().split(/\s+/);
    links.forEach(({ link, text }, index) => {
      link.hidden = sections[index].hidden = !words.every((word) => text.includes(word));
    });
    for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector("a:not([hidden])");
  };
  byId("find").oninput = find;
  find();
  const mark = () => links.forEach(({ link }) => link.setAttribute("aria-current", String(link.hash === location.hash)));
  window.onhashchange = mark;
  mark();
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

/** Ask for a key until one is right. */
async function theDescription() {
  for (;;) {
    try {
      return await asJson("openapi.json");
    } catch (error) {
      if (error.status !== 401) throw error;
      byId("key-dialog").showModal();
      await nextKey();
    }
  }
}

byId("key-button").onclick = () => byId("key-dialog").showModal();
byId("key-dialog").addEventListener("close", () => useKey(byId("key").value.trim()));
byId("document").addEventListener("click", (event) => {
  event.preventDefault(); // a link sends no key
  const file = URL.createObjectURL(new Blob([JSON.stringify(described, null, 1)], { type: JSON_TYPE }));
  el("a", { href: file, download: "openapi.json" }).click();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, textarea")) {
    event.preventDefault();
    byId("find").focus();
  }
});

try {
  described = await theDescription();
  const listed = await asJson("v1/models").catch(() => ({ data: [] }));
  show(listed.data.map(({ id }) => id));
} catch (error) {
  byId("empty").textContent = error.message;
}
