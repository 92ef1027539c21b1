/** A box to try any model in. A conversation is kept in this page only, and is gone with it. */

import { byId, copy, el, icon, note, say, setText } from "./dom.js";
import { answerTo, curlOf, kindOf, requestOf } from "./conversation.js";
import { duration, number, plural, rate } from "./format.js";
import { address, key } from "./gateway.js";
import { modelOf, namesOf, now, tell, whenever } from "./live.js";
import { showMarkdown } from "./markdown.js";
import { progressOf, wordOf } from "./models.js";
import { choosePictures } from "./pictures.js";
import { showSettings } from "./settings.js";

const CHOSEN = "vllm-local model";
const ENDS_WITHIN_PX = 60;
const PLACEHOLDERS = {
  chat: "Message",
  completion: "The beginning of a text",
  embedding: "A text for its vector; or a question, and texts to rank by it, one a line",
  ranking: "A question, and texts to rank by it, one a line",
};

/** @returns what the rest of the page can have done: `choose(model)`, `stop()`, `clear()`, `toggleSettings()`. */
export function showChat() {
  const talk = byId("messages");
  const field = byId("message");
  const select = byId("chat-model");
  const pictures = choosePictures();
  const settings = showSettings();
  let messages = [];
  const kind = () => kindOf(modelOf(select.value));
  let stopping = null; // ends the answer that comes

  // ---- the model

  const pick = (name) => {
    select.value = name;
    setText(byId("chat-hint"), name || now.status === null ? "" : "There is no model to talk to");
    byId("send").disabled = !name;
    field.placeholder = PLACEHOLDERS[kind()];
    byId("picture-files").parentNode.hidden = kind() !== "chat";
    if (now.chosen !== name) tell({ chosen: name });
  };
  const choose = (name) => {
    localStorage.setItem(CHOSEN, name);
    pick(name);
  };
  whenever(() => {
    const names = (now.status?.models ?? []).flatMap((model) => namesOf(model).map((name) => [name, model]));
    const told = JSON.stringify(names.map(([name, model]) => [name, wordOf(model), kindOf(model)]));
    if (select.dataset.told === told) return;
    select.dataset.told = told;
    const chosen = select.value || localStorage.getItem(CHOSEN);
    select.replaceChildren(...names.map(([name, model]) => el("option", { value: name }, `${name} · ${wordOf(model)}`)));
    pick(names.some(([name]) => name === chosen) ? chosen : names[0]?.[0] ?? "");
  });
  select.addEventListener("change", () => choose(select.value));

  // ---- the conversation

  const isAtEnd = () => talk.scrollHeight - talk.scrollTop - talk.clientHeight < ENDS_WITHIN_PX;
  const toEnd = () => {
    talk.scrollTop = talk.scrollHeight;
  };

  const show = () => {
    talk.replaceChildren(...messages.map((message) => message.node));
    talk.classList.toggle("empty", messages.length === 0);
    if (messages.length === 0) talk.append(el("div", { class: "welcome" }, el("h2", {}, "Try a model"), el("p", {}, "It loads with the first message, if it isn't loaded yet. Nothing is kept when you leave this page.")));
  };

  const request = (more = []) => requestOf(kind(), select.value, [...messages.filter((each) => !each.isBroken), ...more], settings.values);

  /** The same, or null where the settings do not allow for one, which is told. */
  const requested = (more) => {
    try {
      return request(more);
    } catch (error) {
      note(`More fields: ${error.message}`, "error");
      return null;
    }
  };

  async function send(text, images) {
    const question = { role: "user", text, pictures: images };
    question.node = questionOf(question, () => edit(question));
    messages.push(question);
    await answer();
  }

  async function answer() {
    const asked = requested();
    if (!asked) return;
    const reply = { role: "assistant", text: "", model: select.value };
    const view = answerView(reply, () => again(reply));
    reply.node = view.node;
    messages.push(reply);
    show();
    toEnd();
    const own = new AbortController();
    stopping = own;
    showBusy();
    try {
      await view.follow(asked, own.signal, () => isAtEnd() && requestAnimationFrame(toEnd));
    } finally {
      if (stopping === own) stopping = null; // else another answer comes already
      showBusy();
    }
  }

  /** Another answer in the place of this one, and of what came after it. */
  function again(reply) {
    if (!requested()) return settings.toggle(true);
    stop();
    messages = messages.slice(0, messages.indexOf(reply));
    return answer();
  }

  /** Take a question back into the field, with all that came after it. */
  function edit(question) {
    stop();
    messages = messages.slice(0, messages.indexOf(question));
    show();
    field.value = question.text;
    pictures.put(question.pictures);
    grow();
    field.focus();
  }

  const stop = () => stopping?.abort();
  const clear = () => {
    stop();
    messages = [];
    show();
    field.focus();
  };
  const showBusy = () => {
    byId("send").hidden = stopping !== null;
    byId("stop").hidden = stopping === null;
  };

  // ---- the field

  const grow = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
  };
  const submit = () => {
    const text = field.value.trim();
    if (stopping !== null || !select.value || (text === "" && pictures.count === 0)) return;
    if (!requested()) return settings.toggle(true);
    field.value = "";
    grow();
    send(text, pictures.take());
  };
  field.addEventListener("input", grow);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("stop").addEventListener("click", () => {
    stop();
    field.focus();
  });
  byId("chat-new").addEventListener("click", clear);
  byId("copy-curl").addEventListener("click", () => {
    const asked = field.value.trim() || pictures.count ? [{ role: "user", text: field.value.trim() }] : [];
    const found = requested(asked);
    if (found) copy(curlOf(address(found.path), found.body, key() !== null));
  });
  show();
  showBusy();

  return {
    choose(model) {
      choose(model);
      field.focus();
    },
    focus: () => field.focus(),
    stop,
    clear,
    isAnswering: () => stopping !== null,
    toggleSettings: () => settings.toggle(),
  };
}

function questionOf({ text, pictures }, edit) {
  const images = pictures.map(({ name, url }) => el("img", { src: url, alt: name }));
  return el(
    "article",
    { class: "question", "aria-label": "You" },
    images.length > 0 && el("div", { class: "shown" }, images),
    text && el("p", {}, text),
    el("button", { class: "quiet icon-only", type: "button", title: "Edit, and ask again", onclick: edit }, icon("edit")),
  );
}

// ---- an answer as it comes

function answerView(reply, again) {
  const began = performance.now();
  const waiting = el("p", { class: "waiting" }, el("span", { class: "dots", "aria-hidden": "true" }), el("span", { class: "said" }));
  const bar = el("progress", { "aria-label": "Loading", hidden: true });
  const summary = el("summary", {}, "Thinking …");
  const thought = el("div", { class: "thought" });
  const reasoning = el("details", { class: "reasoning", open: true, hidden: true }, summary, thought);
  const text = el("div", { class: "text" });
  const calls = el("div", { class: "calls" });
  const problem = el("p", { class: "problem", hidden: true, role: "alert" });
  const numbers = el("span", { class: "numbers" });
  const copies = el("button", { class: "quiet icon-only", type: "button", title: "Copy the answer", onclick: () => copy(reply.text) }, icon("copy"));
  const retry = el("button", { class: "quiet icon-only", type: "button", title: "Another answer", onclick: again }, icon("again"));
  const foot = el("footer", { hidden: true }, copies, retry, numbers);
  const node = el("article", { class: "answer", "aria-label": `Answer of ${reply.model}`, "aria-busy": "true" }, el("h3", {}, reply.model), reasoning, waiting, bar, text, calls, problem, foot);

  const showWait = () => {
    const model = modelOf(reply.model);
    const passed = (performance.now() - began) / 1000;
    const what = progressOf(model) ?? (model && model.state !== "ready" ? wordOf(model) : "waiting");
    setText(waiting.lastChild, passed < 1 ? "" : `${what} · ${duration(passed)}`);
    bar.hidden = !model?.progress?.total || model.state !== "starting";
    if (!bar.hidden) {
      bar.max = model.progress.total;
      bar.value = model.progress.done;
    }
  };
  const showAnswer = (answer) => {
    reply.text = answer.text;
    const hasBegun = answer.firstAt !== null;
    waiting.hidden = hasBegun;
    bar.hidden = bar.hidden || hasBegun;
    reasoning.hidden = answer.reasoning === "";
    setText(thought, answer.reasoning);
    if (answer.thoughtAt !== null && reasoning.dataset.is !== "over") {
      reasoning.dataset.is = "over";
      reasoning.open = false;
      setText(summary, `Thought for ${duration((answer.thoughtAt - answer.firstAt) / 1000)}`);
    }
    showMarkdown(text, answer.text);
    if (answer.tools.length) calls.replaceChildren(...answer.tools.map(callOf));
  };

  return {
    node,
    /** Resolves when the answer is whole, or has failed. */
    async follow(asked, signal, moved) {
      const timer = setInterval(showWait, 250);
      let last = null;
      let frame = null;
      const draw = () => {
        frame = null;
        moved();
        showAnswer(last);
        moved();
      };
      try {
        showWait();
        last = await answerTo(asked, signal, (answer) => {
          last = answer;
          frame ??= requestAnimationFrame(draw);
        });
        say(`${reply.model} has answered`);
      } catch (error) {
        const isStopped = error.name === "AbortError";
        reply.isBroken = !last?.text;
        problem.hidden = false;
        problem.classList.toggle("stopped", isStopped);
        setText(problem, isStopped ? "Stopped" : error.message);
      } finally {
        clearInterval(timer);
        if (frame !== null) cancelAnimationFrame(frame);
        waiting.hidden = bar.hidden = true;
        if (last !== null) {
          showAnswer(last);
          setText(numbers, numbersOf(last, began));
        }
        node.setAttribute("aria-busy", "false");
        foot.hidden = false;
        copies.hidden = !last?.text;
        moved();
      }
    },
  };
}

function callOf({ name, arguments: given }) {
  let shown = given;
  try {
    shown = JSON.stringify(JSON.parse(given), null, 2);
  } catch {
    // not whole yet, or not JSON: as it is
  }
  return el("figure", { class: "code" }, el("figcaption", {}, el("span", {}, `calls ${name}`)), el("pre", { tabindex: "0" }, el("code", {}, shown)));
}

/** Where an answer's time went. */
function numbersOf({ usage, firstAt, finish }, began) {
  const ended = performance.now();
  const parts = [];
  const { prompt_tokens: given, completion_tokens: made, total_tokens: all } = usage ?? {};
  if (given ?? all) parts.push(`${plural(given ?? all, "token")} in${made ? `, ${number(made)} out` : ""}`);
  if (firstAt === null) parts.push(`after ${duration((ended - began) / 1000)}`);
  else parts.push(`first after ${duration((firstAt - began) / 1000)}`);
  if (made > 1 && firstAt !== null) parts.push(`${rate((made - 1) / ((ended - firstAt) / 1000))} tok/s`);
  if (finish === "length") parts.push("cut off: longest answer");
  return parts.join(" · ");
}
