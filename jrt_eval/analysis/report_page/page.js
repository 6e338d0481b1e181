"use strict";
// Everything that documents and models say goes into the page as text nodes, never as HTML.
const ROW = 52;
const $ = (id) => document.getElementById(id);
const OUTCOMES = { fixed: "better", broken: "worse", wrong: "both wrong", right: "both right", same: "same", single: "" };

async function unpack(element) {
  const packed = atob(element.textContent);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const state = { data: null, items: [], shown: [], chosen: null, at: -1, chunks: new Map(), asked: 0 };
window.jrtReport = { ready: false, shown: () => state.shown.length };

function add(parent, tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Shares are right above one half; other metrics are better or worse by their direction.
function outcome(data, once, twice) {
  if (!once || !twice) return "single";
  if (data.share === false) {
    const gain = (twice.score - once.score) * (data.higher === false ? -1 : 1);
    return gain > 0 ? "fixed" : gain < 0 ? "broken" : "same";
  }
  const [a, b] = [once.score > 0.5, twice.score > 0.5];
  return a ? (b ? "right" : "broken") : b ? "fixed" : "wrong";
}

// An item is a document as one model read it: its answers by variant.
function makeItems(data) {
  const items = new Map();
  data.answers.forEach(([documentAt, model, variant, score, generation, prompt]) => {
    const key = documentAt * data.models.length + model;
    let item = items.get(key);
    if (!item) items.set(key, (item = { document: documentAt, model, answers: [] }));
    item.answers.push({ variant, score, generation, prompt });
  });
  for (const item of items.values()) {
    const once = item.answers.find((a) => a.variant === 0), twice = item.answers.find((a) => a.variant === 1);
    item.outcome = outcome(data, once, twice);
    const [, , key, question, gold] = data.documents[item.document];
    item.text = [key, question, ...gold, ...item.answers.map((x) => x.generation)].join("\n").toLowerCase();
  }
  return [...items.values()];
}

function chunkOf(documentAt) {
  const at = Math.floor(documentAt / state.data.chunk);
  if (!state.chunks.has(at)) state.chunks.set(at, unpack(document.querySelectorAll("script.chunk")[at]));
  return state.chunks.get(at);
}

const promptsOf = async (documentAt) => (await chunkOf(documentAt))[documentAt % state.data.chunk];

async function filter() {
  const ask = ++state.asked;
  const task = $("task").value, model = $("model").value, outcome = $("outcome").value;
  const words = $("search").value.toLowerCase().split(/\s+/).filter((word) => word);
  const has = (text) => words.every((word) => text.includes(word));
  let kept = state.items.filter((item) =>
    (task === "" || state.data.documents[item.document][0] === +task) &&
    (model === "" || item.model === +model) && (outcome === "" || item.outcome === outcome));
  if (words.length && $("deep").checked) {
    const found = new Map();
    for (const item of kept) {
      if (found.has(item.document)) continue;
      const prompts = await promptsOf(item.document);
      if (ask !== state.asked) return;
      found.set(item.document, prompts.map((prompt) => prompt.toLowerCase()));
    }
    kept = kept.filter((item) => found.get(item.document).concat("").some((prompt) => has(prompt + "\n" + item.text)));
  } else if (words.length) kept = kept.filter((item) => has(item.text));
  state.shown = kept;
  state.at = kept.indexOf(state.chosen);
  $("rows").style.height = kept.length * ROW + "px";
  $("count").textContent = `${kept.length.toLocaleString("en")} of ${state.items.length.toLocaleString("en")}`;
  $("nothing").hidden = kept.length > 0;
  $("list").scrollTop = 0;
  draw();
  if (!kept.length) {
    state.chosen = null;
    $("detail").replaceChildren();
  } else if (state.at < 0) choose(0, false);
}

function draw() {
  const list = $("list"), rows = $("rows");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 5);
  const fresh = document.createDocumentFragment();
  for (let at = first; at < last; at++) {
    const item = state.shown[at];
    const [dataset, row, , question, gold] = state.data.documents[item.document];
    const element = add(fresh, "div", "row" + (item === state.chosen ? " chosen" : ""));
    element.style.top = at * ROW + "px";
    element.dataset.at = at;
    element.id = "row-" + at;
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", item === state.chosen);
    add(element, "div", "asked", question || gold[0] || "document " + row);
    const where = add(element, "div", "where");
    if (OUTCOMES[item.outcome]) add(where, "span", "tag " + item.outcome, OUTCOMES[item.outcome] + " ");
    where.append(`${state.data.tasks[dataset]} ${row} · ${state.data.models[item.model]}`);
  }
  rows.replaceChildren(fresh);
}

// Text with every gold answer marked, ignoring case.
function marked(parent, text, gold) {
  const lower = text.toLowerCase(), exact = lower.length === text.length;
  const needles = exact ? gold.map((g) => g.toLowerCase()).filter((g) => g) : [];
  const nexts = needles.map((needle) => lower.indexOf(needle));
  for (let at = 0; ; ) {
    let best = -1;
    needles.forEach((needle, i) => {
      while (nexts[i] >= 0 && nexts[i] < at) nexts[i] = lower.indexOf(needle, at);
      if (nexts[i] >= 0 && (best < 0 || nexts[i] < nexts[best])) best = i;
    });
    if (best < 0) return void parent.append(text.slice(at));
    parent.append(text.slice(at, nexts[best]));
    add(parent, "mark", "", text.slice(nexts[best], nexts[best] + needles[best].length));
    at = nexts[best] + needles[best].length;
  }
}

const reading = (answer) => (answer.variant < 0 ? "" : "read " + state.data.variants[answer.variant].replace("_", " "));
const link = (item) => `#d${item.document}-${item.model}`;

// linked: whether the address of the page becomes that of the document.
async function choose(at, linked = true) {
  if (at < 0 || at >= state.shown.length) return;
  const item = state.shown[at];
  state.chosen = item;
  state.at = at;
  draw();
  $("list").setAttribute("aria-activedescendant", "row-" + at);
  if (linked) history.replaceState(null, "", link(item));
  const data = state.data, [dataset, row, key, question, gold] = data.documents[item.document];
  const prompts = await promptsOf(item.document);
  if (state.chosen !== item) return;
  const detail = $("detail");
  detail.replaceChildren();
  add(detail, "h3", "", question || "document " + row);
  const where = add(detail, "p", "note", `${data.tasks[dataset]}, document ${row}` + (key ? `, ${key} ` : " "));
  const anchor = add(where, "a", "", "link to this document");
  anchor.href = link(item);
  add(detail, "h4", "", gold.length > 1 ? "gold answers" : "gold answer");
  gold.forEach((answer) => add(detail, "span", "gold", answer));
  const others = state.items.filter((other) => other.document === item.document && other !== item);
  for (const shown of [item, ...others]) {
    add(detail, "h4", "", data.models[shown.model]);
    const sides = add(detail, "div", "sides generations");
    for (const answer of shown.answers) {
      const side = add(sides, "div", "side"), who = add(side, "div", "who");
      add(who, "b", "", reading(answer));
      const right = answer.score > 0.5;
      if (data.share === false) add(who, "span", "", String(answer.score));
      else add(who, "span", right ? "right" : "wrong", (right ? "✓ " : "✗ ") + answer.score);
      if (answer.generation.trim()) marked(add(side, "p", "generation"), answer.generation, gold);
      else add(side, "p", "empty", "(empty)");
    }
  }
  add(detail, "h4", "", "prompt");
  const sides = add(detail, "div", "sides");
  for (const answer of item.answers) {
    const side = add(sides, "div", "side");
    add(add(side, "div", "who"), "b", "", reading(answer));
    const prompt = add(side, "div", "prompt");
    marked(prompt, prompts[answer.prompt], gold);
    const mark = prompt.querySelector("mark");
    if (mark) prompt.scrollTop = mark.offsetTop - prompt.offsetTop - prompt.clientHeight / 3;
  }
  detail.scrollTop = 0;
}

function move(by) {
  const at = Math.min(Math.max(state.at + by, 0), state.shown.length - 1), list = $("list");
  if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
  if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
  choose(at);
}

async function open() {
  if (!("DecompressionStream" in window)) {
    $("count").textContent = "this browser is too old to read the documents";
    return;
  }
  state.data = await unpack($("index"));
  state.items = makeItems(state.data);
  for (const [id, names, all] of [["task", state.data.tasks, "all tasks"], ["model", state.data.models, "all models"]]) {
    add($(id), "option", "", all).value = "";
    names.forEach((name, i) => (add($(id), "option", "", name).value = i));
  }
  let waiting = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  for (const id of ["task", "model", "outcome", "deep"]) $(id).addEventListener("change", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("list").addEventListener("scroll", () => requestAnimationFrame(draw));
  window.addEventListener("resize", () => requestAnimationFrame(draw));
  $("list").addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) choose(+row.dataset.at);
  });
  $("list").addEventListener("keydown", (event) => {
    const end = state.shown.length;
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -end, End: end }[event.key];
    if (by) {
      event.preventDefault();
      move(by);
    }
  });
  window.addEventListener("hashchange", followLink);
  await filter();
  followLink();
  window.jrtReport.ready = true;
}

function followLink() {
  const match = /^#d(\d+)-(\d+)$/.exec(location.hash);
  if (!match) return;
  const at = state.shown.findIndex((item) => item.document === +match[1] && item.model === +match[2]);
  if (at < 0) return;
  $("list").scrollTop = Math.max(0, at * ROW - $("list").clientHeight / 3);
  choose(at);
  $("documents").scrollIntoView();
}

// A click on a column's name sorts by it: numbers as numbers, missing values last.
function sortable(table) {
  const body = table.tBodies[0], heads = [...table.querySelectorAll(".names th")];
  const number = (text) => parseFloat(text.replace(/^[<[]/, "").replace("−", "-"));
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "descending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const key = (row) => row.cells[column].textContent;
    const numeric = head.classList.contains("number");
    const rows = [...body.rows].sort((a, b) => {
      if (!numeric) return (down ? 1 : -1) * key(a).localeCompare(key(b), "en", { numeric: true });
      const [x, y] = [number(key(a)), number(key(b))];
      return isNaN(x) ? (isNaN(y) ? 0 : 1) : isNaN(y) ? -1 : down ? x - y : y - x;
    });
    body.append(...rows);
    rows.forEach((row, at) => row.classList.toggle("again", at > 0 && rows[at - 1].cells[0].textContent === row.cells[0].textContent));
  }));
}

document.querySelectorAll("figure.table table").forEach(sortable);

// After the first paint, so that tables and plots do not wait for the documents.
if ($("index")) requestAnimationFrame(() => setTimeout(open));
else window.jrtReport.ready = true;
