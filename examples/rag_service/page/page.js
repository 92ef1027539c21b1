/** The page: asks, shows what comes, keeps the documents. What is shown goes in as text: nothing here reads HTML. */

const LOOK_MS = 1000;
const SAMPLES = ["museum.txt", "archive.txt", "station.txt"];
const byId = (id) => document.getElementById(id);
const several = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

let asking = null; // what ends the question that is under way

/** What a request that failed has to say. */
async function wordsOf(response) {
  const text = await response.text();
  try {
    const { detail } = JSON.parse(text);
    return typeof detail === "string" ? detail : detail.map((each) => each.msg).join("; ");
  } catch {
    return text || `the server answered ${response.status}`;
  }
}

async function called(path, options) {
  const response = await fetch(path, options);
  if (!response.ok) throw new Error(await wordsOf(response));
  return response;
}

function tellProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

function item(...children) {
  const node = document.createElement("li");
  node.append(...children);
  return node;
}

function element(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

// ---- answers

/** The events of a response, as {name, data}. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const [, name, data] = event.match(/^event: (\w+)\ndata: (.*)$/);
      yield { name, data: JSON.parse(data) };
    }
  }
}

const SHOW = {
  sources: (sources) =>
    byId("sources").replaceChildren(
      ...sources.map((each) => item(element("small", `${each.document} · ${each.score.toFixed(2)}`), each.text)),
    ),
  text: ({ text }) => byId("answer").append(text),
  usage: (used) => {
    byId("usage").textContent = `${several(used.prompt_tokens, "token")} in, ${used.completion_tokens} out`;
  },
  error: ({ detail }) => tellProblem(`The answer broke off: ${detail}`),
};

async function ask(question) {
  asking = new AbortController();
  tellProblem("");
  for (const id of ["answer", "usage", "sources"]) byId(id).textContent = "";
  showAsking();
  try {
    const response = await called("/api/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ question }),
      signal: asking.signal,
    });
    byId("result").hidden = false;
    let last = "";
    for await (const { name, data } of eventsOf(response)) SHOW[(last = name)](data);
    if (last !== "usage" && last !== "error") tellProblem("The answer broke off");
  } catch (error) {
    tellProblem(asking.signal.aborted ? "Stopped" : error.message);
  }
  asking = null;
  showAsking();
  look();
}

function showAsking() {
  byId("send").hidden = asking !== null;
  byId("stop").hidden = asking === null;
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!asking) ask(byId("question").value);
});
byId("stop").addEventListener("click", () => asking?.abort());

// ---- documents

/** One after the other; says which could not be added. */
async function add(files) {
  tellProblem("");
  byId("samples").disabled = true;
  for (const { name, body } of files) {
    try {
      await called(`/api/documents/${encodeURIComponent(name)}`, { method: "PUT", body: await body() });
    } catch (error) {
      tellProblem(`${name}: ${error.message}`);
    }
    await showDocuments();
  }
  byId("samples").disabled = false;
}

async function remove(name) {
  tellProblem("");
  try {
    await called(`/api/documents/${encodeURIComponent(name)}`, { method: "DELETE" });
  } catch (error) {
    tellProblem(error.message);
  }
  await showDocuments();
}

async function showDocuments() {
  const documents = await (await called("/api/documents")).json();
  byId("documents").replaceChildren(
    ...documents.map(({ name, chunks }) => {
      const button = element("button", "Remove");
      button.title = `Remove ${name}`;
      button.addEventListener("click", () => remove(name));
      return item(`${name} (${several(chunks, "chunk")})`, button);
    }),
  );
}

byId("files").addEventListener("change", async () => {
  await add([...byId("files").files].map((file) => ({ name: file.name, body: () => file })));
  byId("files").value = "";
});
byId("samples").addEventListener("click", () =>
  add(SAMPLES.map((name) => ({ name, body: async () => (await called(`/samples/${name}`)).text() }))),
);

// ---- engines

async function look() {
  try {
    const health = await (await called("/health")).json();
    byId("engines").replaceChildren(
      ...Object.entries(health.engines).map(([name, engine]) =>
        item(element("b", name), ` ${engine.model}: ${engine.progress ?? engine.state}`),
      ),
    );
    byId("totals").textContent =
      `${several(health.answers, "answer")}; ${several(health.prompt_tokens, "token")} in, ${health.completion_tokens.toLocaleString("en")} out`;
  } catch (error) {
    byId("engines").replaceChildren(item(`The service does not answer: ${error.message}`));
  }
}

setInterval(() => document.hidden || look(), LOOK_MS);
look();
showDocuments().catch((error) => tellProblem(error.message));
