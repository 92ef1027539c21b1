/**
 * Markdown as models write it, as elements. No HTML is read, and nothing is fetched: an image is shown as a link, as a
 * model that was misled could tell secrets in its address.
 */

import { copy, el, icon } from "./dom.js";

/**
 * Show a text that grows. Blocks that stayed as they were are left alone, so that what is selected stays selected.
 * @param {HTMLElement} parent holds nothing else.
 */
export function showMarkdown(parent, text, depth = 0) {
  const blocks = depth > DEEPEST ? [{ kind: "paragraph", source: text, text }] : blocksOf(text);
  blocks.forEach((block, index) => {
    const shown = parent.children[index];
    if (shown?.source === block.source) return;
    const node = elementOf(block, depth);
    node.source = block.source;
    if (shown) shown.replaceWith(node);
    else parent.append(node);
  });
  while (parent.children.length > blocks.length) parent.lastElementChild.remove();
}

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/;
const DEEPEST = 16;

/** The blocks of a text: `{kind, source, ...}`, `source` being the lines that made it. */
export function blocksOf(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  const take = (kind, end, more) => {
    blocks.push({ kind, source: `${kind}\n${lines.slice(at, end).join("\n")}`, ...more });
    at = end;
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (line.trim() === "") {
      at += 1;
    } else if (fence) {
      let end = at + 1;
      while (end < lines.length && !closes(lines[end], fence[1])) end += 1;
      take("code", Math.min(end + 1, lines.length), { language: fence[2], text: lines.slice(at + 1, end).join("\n") });
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(line);
      take("heading", at + 1, { level: marks.length, text: title.trim().replace(/[ \t]#+$/, "") });
    } else if (RULE.test(line)) {
      take("rule", at + 1);
    } else if (QUOTE.test(line)) {
      const end = endOf(lines, at, (each) => QUOTE.test(each));
      take("quote", end, { text: lines.slice(at, end).map((each) => QUOTE.exec(each)[1]).join("\n") });
    } else if (ITEM.test(line)) {
      const end = endOf(lines, at, (each, index) => isOfList(lines, at, index));
      take("list", end, { lines: lines.slice(at, end) });
    } else if (line.includes("|") && isTableRule(lines[at + 1] ?? "")) {
      const end = endOf(lines, at, (each) => each.includes("|"));
      take("table", end, { lines: lines.slice(at, end) });
    } else {
      const end = endOf(lines, at, (each, index) => index === at || isOfParagraph(each));
      take("paragraph", end, { text: lines.slice(at, end).join("\n") });
    }
  }
  return blocks;
}

const isTableRule = (line) => line.includes("|") && TABLE_RULE.test(line.trim());
const closes = (line, mark) => line.trim().startsWith(mark) && line.trim().replaceAll(mark[0], "") === "";

function endOf(lines, at, belongs) {
  let end = at + 1;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return end;
}

const isOfParagraph = (line) =>
  line.trim() !== "" && !FENCE.test(line) && !HEADING.test(line) && !RULE.test(line) && !QUOTE.test(line) && !ITEM.test(line);

/** What follows an item: another, what is indented below it, and an empty line before one of these. */
function isOfList(lines, start, index) {
  const line = lines[index];
  const isOrdered = /\d/.test(ITEM.exec(lines[start])[2]);
  const base = ITEM.exec(lines[start])[1].length;
  const continues = (each) => {
    const item = ITEM.exec(each);
    if (/^ */.exec(each)[0].length > base) return true;
    return item !== null && !RULE.test(each) && /\d/.test(item[2]) === isOrdered;
  };
  if (line.trim() !== "") return continues(line) || (lines[index - 1].trim() !== "" && isOfParagraph(line));
  return index + 1 < lines.length && lines[index + 1].trim() !== "" && continues(lines[index + 1]);
}

function elementOf(block, depth) {
  switch (block.kind) {
    case "code":
      return codeOf(block);
    case "heading":
      return el(`h${Math.min(6, block.level + 2)}`, {}, inline(block.text));
    case "rule":
      return el("hr");
    case "quote":
      return withBlocks(el("blockquote"), block.text, depth);
    case "list":
      return listOf(block.lines, depth);
    case "table":
      return tableOf(block.lines);
    default:
      return el("p", {}, inline(block.text));
  }
}

function withBlocks(node, text, depth) {
  showMarkdown(node, text, depth + 1);
  return node;
}

function codeOf({ language, text }) {
  const button = el("button", { class: "quiet", type: "button", onclick: () => copy(text) }, icon("copy"), "Copy");
  const head = el("figcaption", {}, el("span", {}, language || "text"), button);
  return el("figure", { class: "code" }, head, el("pre", { tabindex: "0" }, el("code", {}, text)));
}

function listOf(lines, depth) {
  const [, lead, mark] = ITEM.exec(lines[0]);
  const isOrdered = /\d/.test(mark);
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= lead.length) items.push({ indent: line.length - (item[3] ?? "").length, lines: [item[3] ?? ""] });
    else items.at(-1).lines.push(line.slice(Math.min(items.at(-1).indent, /^ */.exec(line)[0].length)));
  }
  const list = el(isOrdered ? "ol" : "ul", isOrdered ? { start: Number.parseInt(mark, 10) } : {});
  for (const item of items) list.append(itemOf(item.lines.join("\n").trimEnd(), depth));
  return list;
}

function itemOf(text, depth) {
  const task = /^\[([ xX])\] /.exec(text);
  const node = withBlocks(el("li"), task ? text.slice(4) : text, depth);
  if (task) node.prepend(task[1] === " " ? "☐ " : "☑ ");
  const [first] = node.children;
  if (first?.tagName === "P") first.replaceWith(...first.childNodes); // a line, not a paragraph
  return node;
}

function tableOf(lines) {
  const [head, rule, ...rows] = lines.map(cellsOf);
  const alignments = rule.map((cell) => {
    if (/^:-+:$/.test(cell)) return "center";
    return /-:$/.test(cell) ? "end" : "start";
  });
  const row = (cells, tag) =>
    el("tr", {}, head.map((_, index) => el(tag, { class: `to-${alignments[index] ?? "start"}` }, inline(cells[index] ?? ""))));
  const table = el("table", {}, el("thead", {}, row(head, "th")), el("tbody", {}, rows.map((cells) => row(cells, "td"))));
  return el("div", { class: "table", tabindex: "0" }, table);
}

function cellsOf(line) {
  const cells = [];
  let cell = "";
  let isCode = false;
  const text = line.trim().replace(/^\|/, "").replace(/([^\\])\|$/, "$1");
  for (let index = 0; index < text.length; index += 1) {
    if (text[index] === "\\" && text[index + 1] === "|") {
      cell += "|";
      index += 1;
    } else if (text[index] === "|" && !isCode) {
      cells.push(cell.trim());
      cell = "";
    } else {
      if (text[index] === "`") isCode = !isCode;
      cell += text[index];
    }
  }
  return [...cells, cell.trim()];
}

// Each repetition is bounded and none stands within another, so that a search is fast whatever a model writes.
const MARK = new RegExp(
  [
    /\\(?<escaped>[!-/:-@[-`{-~])/,
    /(?<!`)(?<ticks>`+)(?!`)(?<code>[^]{1,5000}?)(?<!`)\k<ticks>(?!`)/,
    /!?\[(?<label>[^\][\n]{0,1000})\]\((?<target>[^()\s]{0,2000}(?:\([^()\s]{0,500}\)[^()\s]{0,500})?)(?:\s+"[^"\n]{0,300}")?\)/,
    /(?<bare>https?:\/\/[^\s<>"'`\])]{1,2000})/,
    /(?<strong>\*\*|__)(?=\S)(?<strongly>[^\n]{0,5000}?\S)\k<strong>(?![\p{L}\p{N}_])/,
    /(?<!\w)(?<slanted>[*_])(?=[^\s*_])(?<slantedly>[^\n*]{0,5000}?[^\s*])\k<slanted>(?![\p{L}\p{N}_*])/,
    /~~(?=\S)(?<struck>[^\n~]{1,5000})~~/,
    /(?<breaks> {2,9}\n|\n)/,
  ]
    .map((each) => each.source)
    .join("|"),
  "gu",
);

/** The parts of a line: texts and elements. */
export function inline(text, depth = 0) {
  if (depth > DEEPEST) return [text];
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(MARK)) {
    if (found.index > at) parts.push(text.slice(at, found.index));
    parts.push(partOf(found.groups, found[0], depth + 1));
    at = found.index + found[0].length;
  }
  if (at < text.length) parts.push(text.slice(at));
  return parts;
}

function partOf(groups, whole, depth) {
  if (groups.escaped) return groups.escaped;
  if (groups.code !== undefined) return el("code", {}, groups.code.replace(/^ (.*\S.*) $/, "$1"));
  if (groups.target !== undefined) return linkOf(groups.target, groups.label, whole);
  if (groups.bare) return bareLink(groups.bare);
  if (groups.strongly) return el("strong", {}, inline(groups.strongly, depth));
  if (groups.slantedly) return el("em", {}, inline(groups.slantedly, depth));
  if (groups.struck) return el("s", {}, inline(groups.struck, depth));
  return el("br");
}

function bareLink(found) {
  const end = /[.,;:!?]+$/.exec(found)?.[0].length ?? 0;
  const address = end ? found.slice(0, -end) : found;
  const link = linkOf(address, address, address);
  return end ? el("span", {}, link, found.slice(-end)) : link;
}

/** Opened by a click only, in another tab, which is not told from where. */
function linkOf(target, label, whole) {
  let address = null;
  try {
    address = new URL(target);
  } catch {
    // not an address: shown as it was written
  }
  if (!["http:", "https:", "mailto:"].includes(address?.protocol)) return whole;
  const isImage = whole.startsWith("!");
  const attributes = { href: address.href, target: "_blank", rel: "noopener noreferrer", title: address.href };
  return el("a", attributes, isImage ? `image: ${label || target}` : label || target);
}
