"use strict";
// The chat page. All text of users and models goes in through textContent, so none of it can become markup.

const $ = (id) => document.getElementById(id);
const log = $("log"), input = $("input"), start = $("start");
const messages = []; // what the model sees
let model = "", running = null;

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(label, title, action) {
  const made = element("button", "", label);
  made.type = "button";
  made.title = title;
  made.setAttribute("aria-label", title);
  made.addEventListener("click", action);
  return made;
}

// Drawn here and no emoji: a machine without an emoji font would show empty boxes.
const ICONS = {
  up: "M7 10v11H3V10zm2 0 4-8c1.7 0 2.6 1.2 2.3 2.8L14.6 8H20a2 2 0 0 1 2 2.4l-1.6 9A2 2 0 0 1 18.4 21H9z",
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 4v7h-7",
};

function icon(name) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  drawn.setAttribute("viewBox", "0 0 24 24");
  drawn.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  drawn.append(path);
  return drawn;
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// A server with API keys answers 401 until it is given one; the key stays in this tab.
async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const reply = await fetch(path, { ...options, headers });
    if (reply.status !== 401) return reply;
    const given = window.prompt(key ? "That API key is not known. Your API key:" : "This server asks for an API key:");
    if (!given) return reply;
    sessionStorage.setItem("key", given.replace(/[^\x21-\x7e]/g, ""));
  }
}

async function post(path, body, signal) {
  const reply = await call(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!reply.ok) {
    const told = await reply.json().catch(() => null);
    throw new Error(told?.error?.message ?? `The server answered ${reply.status}.`);
  }
  return reply;
}

// -- showing a reply: thinking folded, ``` fences as code --

function show(place, reply, done) {
  const open = place.querySelector("details")?.open ?? false;
  place.replaceChildren();
  let answer = reply;
  if (reply.startsWith("<think>")) {
    const end = reply.indexOf("</think>");
    const thinking = reply.slice(7, end < 0 ? undefined : end);
    answer = end < 0 ? "" : reply.slice(end + 8);
    const fold = element("details");
    fold.open = open;
    fold.append(element("summary", "", end < 0 && !done ? "Thinking…" : "Thinking"), element("div", "text", thinking.trim()));
    place.append(fold);
  }
  // A small model may close its thinking again and again; only the first marker means something.
  answer = answer.replace(/\s*<\/?think>\s*/g, "\n");
  if (done && !answer.trim()) place.append(element("div", "text none", "(no answer)"));
  answer.split("```").forEach((part, index) => {
    if (index % 2) {
      const code = element("pre");
      code.append(element("code", "", part.replace(/^[\w+-]*\n/, "")));
      place.append(code);
    } else if (part.trim() || index === 0) {
      place.append(element("div", "text", index === 0 ? part.trimStart() : part));
    }
  });
}

async function* chunks(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

// -- a turn --

async function answer() {
  const turn = element("article", "turn assistant"), body = element("div", "body"), tools = element("div", "tools");
  turn.append(body, tools);
  log.append(turn);
  const sent = messages.length;
  const state = { id: "", text: "" };
  let failed = false;
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  problem("");
  try {
    const reply = await post("/v1/chat/completions", {
      model, messages, stream: true, user: visitor(), metadata: { consent: $("consent").value },
    }, running.signal);
    for await (const chunk of chunks(reply)) {
      state.id = chunk.id;
      state.text += chunk.choices[0]?.delta?.content ?? "";
      show(body, state.text, false);
      log.scrollTop = log.scrollHeight;
    }
  } catch (error) {
    failed = error.name !== "AbortError";
    if (failed) problem(error.message);
  } finally {
    running = null;
    $("send").hidden = false;
    $("stop").hidden = true;
  }
  if (messages.length !== sent) return; // a new chat was begun meanwhile
  if (failed && !state.text) {
    // Refused (too long, server full): the message goes back into the box, to be shortened or sent again.
    turn.remove();
    input.value = messages.pop().content;
    [...log.querySelectorAll(".user")].at(-1).remove();
    start.hidden = messages.length > 0;
    return;
  }
  show(body, state.text, true);
  messages.push({ role: "assistant", content: state.text });
  addTools(turn, tools, state.id);
  log.scrollTop = log.scrollHeight;
}

function addTools(turn, tools, id) {
  document.querySelectorAll(".regenerate").forEach((old) => old.remove()); // only the last reply can be made again
  const thumbs = [["Good reply", "thumbs_up"], ["Bad reply", "thumbs_down"]].map(([title, signal]) => {
    const made = button("", title, async () => {
      const pressed = made.getAttribute("aria-pressed") === "true";
      if (!(await feedback(id, pressed ? "thumbs_cleared" : signal))) return;
      thumbs.forEach((other) => other.setAttribute("aria-pressed", String(other === made && !pressed)));
    });
    made.setAttribute("aria-pressed", "false");
    made.classList.add(signal);
    made.append(icon("up"));
    return made;
  });
  const again = button("", "Make this reply again", () => {
    if (running) return;
    if (id) feedback(id, "regenerated");
    messages.pop();
    turn.remove();
    answer();
  });
  again.classList.add("regenerate");
  again.append(icon("again"));
  tools.append(...(id ? thumbs : []), again);
}

async function feedback(id, signal) {
  try {
    await post("/v1/feedback", { id, signal });
    return true;
  } catch (error) {
    problem(error.message);
    return false;
  }
}

// A random name kept in this browser: enough to find and delete one visitor's conversations.
function visitor() {
  let name = localStorage.getItem("noria-visitor");
  if (!name) {
    name = "visitor-" + Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem("noria-visitor", name);
  }
  return name;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  if (!text || running || !model) return;
  input.value = "";
  start.hidden = true;
  messages.push({ role: "user", content: text });
  log.append(element("article", "turn user", text));
  answer();
});

input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});

$("examples").addEventListener("click", (event) => {
  const example = event.target.closest("button");
  if (!example || running) return;
  input.value = example.textContent;
  $("form").requestSubmit();
});

$("stop").addEventListener("click", () => running?.abort());

$("new").addEventListener("click", () => {
  running?.abort();
  messages.length = 0;
  log.replaceChildren(start);
  start.hidden = false;
  problem("");
  input.focus();
});

call("/v1/models").then(async (reply) => {
  const list = await reply.json();
  if (!reply.ok) throw new Error(list.error.message);
  model = list.data[0].id;
  $("model").textContent = model;
}).catch((error) => problem(error instanceof TypeError ? "The server can't be reached." : error.message));
