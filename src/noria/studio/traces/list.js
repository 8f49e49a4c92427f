"use strict";
// The list with its filters, and which of list and trace is shown. The address holds the whole question.

const main = document.getElementById("main");
const FILTERS = [["source", "set"], ["family", "family"], ["outcome", "outcome"], ["harness", "harness"], ["tool", "tool"], ["status", "grading"]];
const ORDERS = [["number", "order made"], ["score", "score"], ["step", "step"], ["turns", "model calls"], ["tokens", "tokens sampled"], ["tool_calls", "tool calls"]];

function problem(text) {
  const box = document.getElementById("problem");
  box.textContent = text ? visible(text) : "";
  box.hidden = !text;
}

async function ask(path) {
  let reply;
  try {
    reply = await fetch(path);
  } catch {
    problem("The server can't be reached.");
    return null;
  }
  const value = await reply.json().catch(() => null);
  if (!reply.ok || value === null) {
    problem(value?.error ?? value?.error?.message ?? `The server answered ${reply.status}.`);
    return null;
  }
  problem("");
  return value;
}

const asked = () => new URLSearchParams(location.search);

function go(changes) {
  const now = asked();
  if (!("page" in changes)) now.delete("page");
  for (const [name, value] of Object.entries(changes)) value === "" ? now.delete(name) : now.set(name, value);
  history.pushState(null, "", `/?${now}`);
  list();
}

// -- filters --

function choice(name, label, values, chosen, all) {
  const box = element("select", "");
  box.name = name;
  if (all) box.append(new Option(all, ""));
  for (const [value, text] of values) box.append(new Option(visible(text), value, false, value === chosen));
  box.addEventListener("change", () => go({ [name]: box.value }));
  return element("label", "", label, box);
}

function field(name, label, type, chosen) {
  const box = element("input", "");
  box.type = type;
  box.name = name;
  box.value = chosen ?? "";
  if (type === "number") box.step = "any";
  box.addEventListener("change", () => go({ [name]: box.value }));
  return element("label", name === "text" ? "wide" : "", label, box);
}

function form(about) {
  const now = asked(), made = element("form", "filters");
  made.addEventListener("submit", (event) => event.preventDefault());
  made.append(field("text", "words in any message", "search", now.get("text")));
  for (const [name, label] of FILTERS) {
    const values = Object.entries(about.facets[name]).filter(([value]) => value !== "").map(([value, count]) => [value, `${value} (${number(count)})`]);
    if (values.length > 1 || now.get(name)) made.append(choice(name, label, values, now.get(name), "all"));
  }
  for (const [name, label] of [["score_min", "score from"], ["score_max", "score to"], ["step_min", "step from"], ["step_max", "step to"]]) {
    made.append(field(name, label, "number", now.get(name)));
  }
  made.append(choice("order", "sorted by", ORDERS, now.get("order") ?? "number"));
  made.append(choice("descending", "", [["", "rising"], ["true", "falling"]], now.get("descending") ?? ""));
  const clear = element("button", "", "Clear");
  clear.type = "button";
  clear.addEventListener("click", () => { history.pushState(null, "", "/"); list(); });
  made.append(clear);
  return made;
}

// -- rows --

const COLUMNS = ["", "task and answer", "score", "outcome", "step", "calls", "tokens", "tools", "family"];

function rowOf(row) {
  const link = element("a", "", `#${row.number}`);
  link.href = `/trace/${row.number}?${asked()}`;
  const question = element("a", "question", visible(row.question || row.task || row.id));
  question.href = link.href;
  const told = element("td", "told", question, row.answer ? element("span", "answer", visible(row.answer)) : null);
  const parts = Object.entries(row.components).map(([name, value]) => `${name} ${number(value)}`).join("\n");
  const score = element("td", "", scoreChip(row));
  score.title = visible(parts);
  const invalid = row.invalid_calls ? element("span", "bad", ` ${number(row.invalid_calls)} invalid`) : null;
  return element("tr", "", element("td", "n", link), told, score, element("td", "", outcomeChip(row.outcome)),
    element("td", "n", number(row.step)), element("td", "n", number(row.turns)), element("td", "n", number(row.tokens)),
    element("td", "n", number(row.tool_calls), invalid), element("td", "", `${visible(row.family)} `, row.agents ? chip(`+${row.agents} agents`) : null));
}

function pager(found) {
  const last = Math.max(0, Math.ceil(found.total / found.size) - 1);
  const step = (label, page, off) => {
    const made = element("button", "", label);
    made.type = "button";
    made.disabled = off;
    made.addEventListener("click", () => { go({ page: String(page) }); scrollTo(0, 0); });
    return made;
  };
  const first = found.page * found.size + 1, end = Math.min(found.total, first + found.rows.length - 1);
  return element("p", "pager", step("« first", 0, found.page === 0), step("‹ back", found.page - 1, found.page === 0),
    element("span", "", found.rows.length ? `${number(first)} to ${number(end)} of ${number(found.total)}` : `none of ${number(found.total)}`),
    step("next ›", found.page + 1, found.page >= last), step("last »", last, found.page >= last));
}

function damages(about) {
  if (!about.damaged) return null;
  const fold = element("details", "damages", element("summary", "", `${number(about.damaged)} damaged ${about.damaged === 1 ? "part" : "parts"} could not be read`));
  for (const text of about.damages) fold.append(element("p", "note", visible(text)));
  return fold;
}

let newest = 0; // a slow answer must not replace a later one

async function list() {
  const mine = (newest += 1);
  const about = await ask("/api/about"), found = about && (await ask(`/api/traces?${asked()}`));
  if (mine !== newest || !about) return;
  document.title = "noria traces";
  document.getElementById("title").textContent = visible(about.title);
  const shown = [form(about), damages(about)];
  if (found && !found.total) {
    const some = Object.values(about.facets.outcome).some((count) => count > 0);
    shown.push(element("p", "empty", some ? "No trace is like that. Clear a filter." : "There are no traces yet. They appear here as rollouts finish."));
  } else if (found) {
    const table = element("table", "rows", element("thead", "", element("tr", "", ...COLUMNS.map((name) => element("th", "", name)))),
      element("tbody", "", ...found.rows.map(rowOf)));
    shown.push(element("div", "scroll", table), pager(found));
  }
  main.replaceChildren(...shown.filter(Boolean));
}

async function one(at) {
  const mine = (newest += 1);
  const trace = await ask(`/api/trace/${at}`);
  if (mine !== newest) return;
  document.getElementById("home").href = `/?${asked()}`;
  if (!trace) return main.replaceChildren(element("p", "empty", "This trace can't be shown."));
  document.title = `Trace ${trace.id.slice(0, 12)}`;
  document.getElementById("title").textContent = `#${at}`;
  showTrace(trace, main, (place) => ask(`/api/trace/${at}/prompt/${place}`));
}

function route() {
  const at = /^\/trace\/(\d+)$/.exec(location.pathname);
  return at ? one(at[1]) : list();
}

addEventListener("popstate", () => { if (!location.hash.startsWith("#node")) route(); });
route();
