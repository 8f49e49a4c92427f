"use strict";
// Draws one trace. Every text of a trace goes in through textContent, so that none of it can become markup.

function element(tag, name, ...inside) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...inside.filter((one) => one !== null && one !== undefined));
  return made;
}

function drawn(tag, attributes, ...inside) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

// What can't be seen, or turns the writing around, is spelled out. Undecodable bytes came as lone surrogates.
function visible(text) {
  return String(text)
    .replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, (c) => `⟨${c.charCodeAt(0).toString(16).padStart(2, "0")}⟩`)
    .replace(/[\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (c) => `⟨${c.charCodeAt(0).toString(16)}⟩`)
    .replace(/[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]/g, (c) =>
      c.length === 2 ? c : `⟨\\x${(c.charCodeAt(0) & 0xff).toString(16).padStart(2, "0")}⟩`);
}

const number = (value) => (value === null || value === undefined ? "–" : typeof value !== "number" ? visible(value)
  : Number.isInteger(value) ? value.toLocaleString("en").replaceAll(",", "\u202f") : value.toFixed(3).replace("-", "−"));
const lineColour = (index) => `var(--c${index % 8})`;
const LONG = 3000; // characters of a text that are shown before it is unfolded

function textOf(text, name = "text") {
  const shown = visible(text);
  const box = element("div", name);
  if (shown.length <= LONG) {
    box.textContent = shown;
    return box;
  }
  const part = element("span", "", shown.slice(0, LONG));
  const more = element("button", "more", `… show all ${number(shown.length)} characters`);
  more.type = "button";
  more.addEventListener("click", () => { part.textContent = shown; more.remove(); });
  box.append(part, more);
  return box;
}

function chip(text, kind) {
  return element("span", `chip ${kind ?? ""}`, visible(text));
}

function outcomeChip(outcome) {
  return chip(outcome, outcome === "finished" ? "good" : /error|aborted/.test(outcome) ? "bad" : "warn");
}

function scoreChip(row) {
  if (row.status === "failed") return chip("grading failed", "bad");
  if (row.score === null || row.score === undefined) return chip("no score", "");
  return chip(number(row.score), row.score >= 1 ? "good" : row.score > 0 ? "warn" : "bad");
}

function facts(pairs) {
  const list = element("dl", "facts");
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(element("div", "", element("dt", "", name), element("dd", "", value instanceof Node ? value : number(value))));
  }
  return list;
}

// -- head: outcome, score with its components, what was used --

function head(trace) {
  const { score, task, facts: counts } = trace;
  const row = score ? { status: score.status, score: score.value } : { status: "none" };
  const top = element("section", "head",
    element("h1", "", "Trace ", element("code", "", visible(trace.id.slice(0, 16)))),
    element("p", "chips", outcomeChip(trace.outcome), scoreChip(row),
      task && chip(`${task.family}`), trace.sandbox && chip(trace.sandbox),
      ...Object.entries(trace.labels).map(([name, value]) => chip(`${name} ${typeof value === "object" ? JSON.stringify(value) : value}`))));
  const sum = (name) => trace.agents.reduce((total, agent) => total + agent[name], 0);
  top.append(facts([
    ["model calls", trace.nodes.filter((node) => node.call).length],
    ["tokens sampled", sum("sampled")],
    ["tokens read", sum("read")],
    ["tool calls", counts.tool_calls],
    ["invalid calls", counts.invalid_calls],
    ["failed calls", counts.failed_calls],
    ["agents", trace.agents.length > 1 ? trace.agents.length : null],
    ["answer wanted", task && task.answer ? element("code", "", visible(task.answer.slice(0, 200))) : null],
    ["harness", element("code", "", visible(trace.harness))],
    ["seed", element("code", "", trace.seed)],
  ]));
  top.append(element("div", "measures", score ? scoreBox(score) : null, budget(trace)));
  const rest = Object.entries(counts).filter(([name]) => !["tool_calls", "invalid_calls", "failed_calls", "turns", "sampled_tokens"].includes(name));
  if (rest.length) top.append(element("p", "note", rest.map(([name, value]) => `${visible(name)} ${number(value)}`).join(" · ")));
  if (task && Object.keys(task.files).length) top.append(files("Workspace at the start", task.files));
  return top;
}

function scoreBox(score) {
  const box = element("div", "score");
  const most = Math.max(1e-9, ...Object.values(score.components).map((value) => Math.abs(value)));
  for (const [name, value] of Object.entries(score.components)) {
    const bar = element("i", value < 0 ? "minus" : "");
    bar.style.width = `${(Math.abs(value) / most) * 100}%`;
    box.append(element("span", "", visible(name)), element("span", "meter", bar), element("b", "", number(value)));
  }
  const said = score.status === "failed" ? `grading failed: ${score.reason}` : score.evidence;
  return element("div", "", box, said ? textOf(said, "note text") : null, element("p", "note", `graded by ${visible(score.grader)}`));
}

// One bar a model call: tokens read, and on top of them tokens sampled.
function budget(trace) {
  const calls = trace.nodes.map((node, place) => ({ node, place })).filter(({ node }) => node.call);
  if (!calls.length) return element("p", "note", "No model call was made.");
  const most = calls.reduce((all, { node }) => Math.max(all, node.call.read + node.call.sampled), 1);
  const names = trace.agents.map((agent) => agent.name);
  const wide = Math.max(4, Math.min(28, 900 / calls.length)), high = 70;
  const picture = drawn("svg", { viewBox: `0 0 ${wide * calls.length} ${high}`, class: "budget", role: "img",
    "aria-label": "tokens read and sampled by each model call", preserveAspectRatio: "none" });
  picture.style.maxWidth = `${wide * calls.length}px`;
  calls.forEach(({ node, place }, index) => {
    const read = (node.call.read / most) * high, sampled = (node.call.sampled / most) * high;
    const x = index * wide + 1, colour = lineColour(names.indexOf(node.agent));
    const bars = drawn("g", { class: "call" },
      drawn("title", {}, `call ${index + 1}${node.agent ? " of " + visible(node.agent) : ""}: ${node.call.read} tokens read, ${node.call.sampled} sampled`),
      drawn("rect", { x, y: high - read, width: wide - 2, height: read, fill: colour, opacity: 0.3 }),
      drawn("rect", { x, y: Math.max(0, high - read - sampled), width: wide - 2, height: Math.max(1, sampled), fill: colour }));
    bars.addEventListener("click", () => jump(place));
    picture.append(bars);
  });
  const note = `Tokens read (pale) and sampled of each call; the highest bar is ${number(most)} tokens.`;
  return element("figure", "", picture, element("figcaption", "note", note));
}

// -- the graph: a lane for each agent, a dot for each message, lines to what it was made of --

const STEP = 22, LANE = 18;

function graph(trace) {
  const lanes = trace.agents.map((agent) => agent.name), count = trace.nodes.length;
  const x = (place) => 14 + LANE * Math.max(0, lanes.indexOf(trace.nodes[place].agent));
  const y = (place) => 12 + STEP * place;
  const width = 14 + LANE * lanes.length;
  const picture = drawn("svg", { width, height: STEP * count + 4, class: "graph", "aria-hidden": "true" });
  trace.nodes.forEach((node, place) => {
    for (const parent of node.parents) {
      if (!(parent in trace.nodes)) continue;
      const bend = x(parent) === x(place) && place - parent > 1 ? 9 : 0; // past the dots that lie between
      const middle = (y(parent) + y(place)) / 2;
      const path = x(parent) === x(place) && !bend ? `M${x(parent)} ${y(parent)}V${y(place)}`
        : `M${x(parent)} ${y(parent)}C${x(parent) + bend} ${middle} ${x(place) + bend} ${middle} ${x(place)} ${y(place)}`;
      picture.append(drawn("path", { d: path, stroke: lineColour(lanes.indexOf(node.agent)), class: node.parents.length > 1 ? "merge" : "" }));
    }
  });
  trace.nodes.forEach((node, place) => {
    const colour = lineColour(lanes.indexOf(node.agent));
    const shape = node.call ? drawn("circle", { cx: x(place), cy: y(place), r: 5.5, fill: colour })
      : node.use ? drawn("rect", { x: x(place) - 4.5, y: y(place) - 4.5, width: 9, height: 9, fill: "var(--card)", stroke: node.use.state === "ok" ? colour : "var(--bad)" })
      : drawn("circle", { cx: x(place), cy: y(place), r: 4, fill: "var(--card)", stroke: colour });
    picture.append(shape);
  });
  const list = element("ol", "outline");
  trace.nodes.forEach((node, place) => {
    const label = node.use ? `${node.use.tool || "?"} →` : node.call ? "reply" : node.role;
    const link = element("a", node.use && node.use.state !== "ok" ? "bad" : "", element("b", "", visible(label)),
      ` ${visible(node.text.replace(/\s+/g, " ").slice(0, 60))}`);
    link.href = `#node${place}`;
    list.append(element("li", "", link));
  });
  return element("nav", "map", picture, list);
}

function jump(place) {
  document.getElementById(`node${place}`)?.scrollIntoView({ block: "center" });
  location.hash = `node${place}`;
}

// -- messages --

function files(title, changed) {
  const fold = element("details", "files", element("summary", "", `${title}: ${visible(Object.keys(changed).join(", ")).slice(0, 120)}`));
  for (const [name, text] of Object.entries(changed)) {
    fold.append(element("h4", "", visible(name)), text === null ? element("p", "note", "deleted") : textOf(text, "text mono"));
  }
  return fold;
}

function tokens(call) {
  const strip = element("div", "tokens");
  for (const [id, logprob, text] of call.tokens) {
    const one = element("span", "", text === null ? String(id) : visible(text).replaceAll("\n", "⏎\n"));
    const certain = typeof logprob === "number" ? Math.exp(logprob) : 1;
    one.style.setProperty("--doubt", `${Math.round((1 - certain) * 75)}%`);
    one.title = `token ${id}${logprob === null ? "" : `, log-probability ${number(logprob)}, probability ${(certain * 100).toFixed(1)}%`}`;
    strip.append(one);
  }
  return strip;
}

function sampled(node, place, prompt) {
  const call = node.call;
  const about = `${number(call.sampled)} tokens sampled · ended by ${visible(call.finish)} · policy version ${number(call.policy_version)}`;
  const fold = element("details", "sampled", element("summary", "", about));
  fold.append(call.tokens.length ? tokens(call) : element("p", "note", "No token ids are known."));
  const view = element("p", "note", `saw ${number(call.read)} tokens, the messages `);
  for (const seen of call.view) {
    const link = element("a", "", `#${seen}`);
    link.href = `#node${seen}`;
    view.append(link, " ");
  }
  if (call.view_hash) view.append(element("code", "", ` view ${visible(call.view_hash.slice(0, 12))}`));
  fold.append(view);
  if (prompt && call.tokens.length) {
    const ask = element("button", "more", `show the exact prompt, ${number(call.read)} tokens`);
    ask.type = "button";
    ask.addEventListener("click", async () => {
      const found = await prompt(place);
      if (found) ask.replaceWith(tokens({ tokens: found.map(([id, text]) => [id, null, text]) }));
    });
    fold.append(ask);
  }
  return fold;
}

function card(trace, node, place, prompt) {
  const lane = trace.agents.findIndex((agent) => agent.name === node.agent);
  const role = node.use ? "tool result" : node.call ? "reply" : node.role;
  const top = element("p", "who", element("a", "place", `#${place}`), element("b", "", role), node.agent ? chip(node.agent) : null);
  top.querySelector("a").href = `#node${place}`;
  const box = element("article", `node ${node.use ? "use" : node.call ? "call" : node.role} ${node.agent ? "sub" : ""}`, top);
  box.id = `node${place}`;
  box.style.setProperty("--lane", lineColour(lane));
  if (node.use) {
    const given = Object.entries(node.use.arguments);
    top.append(element("code", "tool", visible(node.use.tool || "(no tool)")));
    if (node.use.state !== "ok") top.append(chip(node.use.state, "bad"));
    if (!node.use.deterministic) top.append(chip("not deterministic", "warn"));
    if (given.length) {
      const list = element("dl", "arguments");
      for (const [name, value] of given) list.append(element("dt", "", visible(name)), element("dd", "", textOf(typeof value === "string" ? value : JSON.stringify(value), "text mono")));
      box.append(list);
    }
  }
  if (node.parents.length > 1) top.append(element("span", "note", `made of ${node.parents.map((parent) => `#${parent}`).join(", ")}`));
  const thought = /^<think>([^]*?)(<\/think>|$)/.exec(node.text);
  if (node.role === "assistant" && thought) {
    box.append(element("details", "thinking", element("summary", "", "thinking"), textOf(thought[1])));
    box.querySelector("details").open = true;
    box.append(textOf(node.text.slice(thought[0].length)));
  } else box.append(node.text ? textOf(node.text, node.use ? "text mono" : "text") : element("p", "note", "(empty)"));
  if (node.use && Object.keys(node.use.files).length) box.append(files("Changed files", node.use.files));
  if (node.use && Object.keys(node.use.notes).length) {
    box.append(element("details", "files", element("summary", "", `Notes: ${visible(Object.keys(node.use.notes).join(", "))}`), textOf(JSON.stringify(node.use.notes, null, 1), "text mono")));
  }
  if (node.call) box.append(sampled(node, place, prompt));
  return box;
}

// `prompt(place)` gives the tokens of a prompt, where somebody can be asked.
function showTrace(trace, place, prompt) {
  const list = element("section", "nodes", ...trace.nodes.map((node, index) => card(trace, node, index, prompt)));
  if (!trace.nodes.length) list.append(element("p", "note", "This trace holds no message."));
  place.replaceChildren(head(trace), element("div", "trace", graph(trace), list));
  if (location.hash.startsWith("#node")) document.getElementById(location.hash.slice(1))?.scrollIntoView({ block: "center" });
}

const embedded = document.getElementById("data");
if (embedded) showTrace(JSON.parse(embedded.textContent), document.getElementById("main"), null);
