/** Small helpers over the DOM. What is shown goes in as text: nothing here reads HTML. */

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {Object} attributes names as in HTML; `onclick` and its like are functions; null and false are left out.
 * @param children nodes and texts; null and false are left out.
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** One of the symbols at the end of index.html. */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** Change a text only where it differs: a selection in it, and a screen reader, are left alone. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Make the children of a parent those of the items, in their order. A child stays as long as its item does, and with it
 * focus, selection and what was opened.
 * @param make (item) => an object with `node` and `update(item)`.
 */
export function keyedList(parent, keyOf, make) {
  const shown = new Map();
  return (items) => {
    const keys = new Set(items.map(keyOf));
    for (const [key, child] of shown) {
      if (!keys.has(key)) {
        child.node.remove();
        shown.delete(key);
      }
    }
    items.forEach((item, index) => {
      const key = keyOf(item);
      if (!shown.has(key)) shown.set(key, make(item));
      const child = shown.get(key);
      child.update(item);
      if (parent.children[index] !== child.node) parent.insertBefore(child.node, parent.children[index] ?? null);
    });
  };
}

/** Tell something for a moment. Errors stay until they are closed. */
export function note(text, kind = "info") {
  const close = el("button", { class: "quiet icon-only", type: "button", title: "Close", onclick: () => box.remove() }, icon("close"));
  const box = el("div", { class: `note ${kind}` }, el("p", {}, text), close);
  byId("notes").append(box);
  while (byId("notes").children.length > 4) byId("notes").firstChild.remove();
  if (kind !== "error") setTimeout(() => box.remove(), 4000);
}

/** For screen readers. */
export function say(text) {
  setText(byId("spoken"), text);
}

/** Ask before something is done that can't be undone. Resolves to whether it may be. */
export function confirmed(title, text, yes) {
  const dialog = byId("ask-dialog");
  setText(byId("ask-title"), title);
  setText(byId("ask-text"), text);
  setText(byId("ask-yes"), yes);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over http from another machine there is no clipboard to write to; this way there still is.
    const field = el("textarea", { class: "hidden" });
    field.value = text;
    document.body.append(field);
    field.select();
    const isDone = document.execCommand("copy");
    field.remove();
    if (!isDone) return note("The browser does not let this page copy", "error");
  }
  note("Copied");
}
