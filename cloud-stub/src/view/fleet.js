// The fleet as a whole: who runs what, what hybrid saved, and changes of many devices in stages. Everything from devices is
// written as text, never as markup.
import { age, at, bytes, drawNotice, listen, make, number, serverNow, setClock } from "/parts.js";
import { makeSaved } from "/saved.js";

const LOOK_AGAIN_MS = 1500;
const STATES = { running: ["warn", "under way"], done: ["good", "done"], stopped: ["bad", "stopped"] };
const form = at("wanted");
let looked = null; // What was asked for when it was told how many devices that are.

async function ask(path, body) {
  const post = body && { method: "POST", headers: { "Content-Type": "application/json", "Hedge-Operate": "yes" }, body: JSON.stringify(body) };
  try {
    const response = await fetch(path, post);
    const text = await response.text();
    try {
      const said = JSON.parse(text);
      return response.ok ? said : { error: said.error, errors: said.errors || [] };
    } catch {
      return { error: text || `the server answered ${response.status}`, errors: [] };
    }
  } catch {
    return { error: "the server cannot be reached", errors: [] };
  }
}

// A value is JSON where it reads as JSON, and text otherwise: as on the command line.
function edit(line) {
  let quoted = false;
  const end = [...line].findIndex((c) => { if (c === '"') quoted = !quoted; return c === "=" && !quoted; });
  if (end < 0) throw new Error(`\`${line}\` sets nothing; write KEY=VALUE`);
  const [key, value] = [line.slice(0, end).trim(), line.slice(end + 1).trim()];
  if (!value) return [key, null];
  try { return [key, JSON.parse(value)]; } catch { return [key, value]; }
}

const part = (name) => (/^[A-Za-z0-9_-]+$/.test(name) ? name : JSON.stringify(name));

function wanted() {
  const field = (name) => form.elements[name].value.trim();
  const both = { where: field("where"), stages: field("stages"), settle_s: Number(field("settle_s")) };
  if (field("kind") === "settings") {
    const lines = field("edits").split("\n").map((line) => line.trim()).filter(Boolean);
    return { ...both, edits: Object.fromEntries(lines.map(edit)) };
  }
  for (const name of ["model", "bundle", "version"]) if (!field(name)) throw new Error(`Say which ${name}.`);
  const bundle = { name: field("bundle"), version: field("version") };
  if (form.elements.shadow.checked) bundle.shadow = true;
  return { ...both, within_s: Number(field("within_s")), edits: { [`model.${part(field("model"))}.wanted`]: bundle } };
}

function say(kind, ...words) {
  at("said").className = kind;
  at("said").replaceChildren(...words);
}

function complain({ error, errors }) {
  say("wrong", make("p", "", error), errors && errors.length ? make("ul", "", ...errors.map((one) => make("li", "", make("code", "", one.field), `: ${one.reason}`))) : "");
}

function forget() {
  looked = null;
  at("begin").hidden = true;
  say("");
}

async function look(event) {
  event.preventDefault();
  forget();
  let meant;
  try { meant = wanted(); } catch (error) { say("wrong", error.message); return; }
  say("soft", "Asking the broker…");
  const answer = await ask("/api/rollouts", { wanted: meant });
  if (answer.error) { complain(answer); return; }
  looked = { wanted: meant, devices: answer.devices };
  const away = answer.away ? `; ${number(answer.away)} of them away` : "";
  say("", `${number(answer.devices)} ${answer.devices === 1 ? "device" : "devices"}, in stages of ${answer.stages.map(number).join(", then ")}${away}.`);
  at("begin").textContent = `Change ${answer.devices === 1 ? "it" : `these ${number(answer.devices)}`} in stages`;
  at("begin").hidden = false;
}

async function begin() {
  if (!looked) return;
  at("begin").disabled = true;
  const answer = await ask("/api/rollouts", { ...looked, by: localStorage.getItem("who") || undefined });
  at("begin").disabled = false;
  if (answer.error) { complain(answer); return; }
  forget();
  say("soft", "It is under way, also when this page is closed.");
  load();
}

function button(label, path) {
  const element = make("button", "operators", label);
  element.type = "button";
  element.addEventListener("click", async () => {
    element.disabled = true;
    const answer = await ask(path, {});
    if (answer.error) complain(answer);
    load();
  });
  return element;
}

function stageOf(rollout, count, index) {
  const { state, stage } = rollout;
  const kind = index + 1 < stage || (state === "done") ? "over" : index + 1 === stage ? { running: "now", stopped: "broken" }[state] : "";
  const words = { over: "changed", now: "now", broken: "stopped here" }[kind] || "left alone";
  const item = make("li", kind, number(count));
  item.title = `stage ${index + 1}: ${words}`;
  return item;
}

function drawOne(rollout) {
  const [kind, words] = STATES[rollout.state];
  const edits = Object.entries(rollout.edits).map(([key, value]) => `${key}=${value === null ? "" : typeof value === "string" ? value : JSON.stringify(value)}`).join("  ");
  const path = `/api/rollouts/${encodeURIComponent(rollout.id)}`;
  const act = { running: ["Stop", "stop"], stopped: ["Go on", "resume"] }[rollout.state];
  const ends = Object.entries(rollout.outcomes).map(([outcome, count]) => `${number(count)} ${outcome}`);
  if (rollout.had_it) ends.push(`${number(rollout.had_it)} had it already`);
  const now = rollout.state !== "running" ? null : rollout.awaits ? `waits: ${rollout.awaits}` : rollout.watching ? "watching whether they stay well" : "asking devices";
  return make("li", "",
    make("div", "top", make("code", "", edits), make("span", `pill ${kind}`, words), act ? button(act[0], `${path}/${act[1]}`) : null),
    make("p", "soft", `${rollout.where || "all devices"} · by ${rollout.by} · `, age(rollout.ended_ms || rollout.begun_ms, rollout.ended_ms ? "ended " : "begun ", " ago")),
    rollout.devices.length ? make("ol", "stages", ...rollout.devices.map((count, index) => stageOf(rollout, count, index))) : null,
    ends.length ? make("p", "", ends.join(", ")) : null,
    now ? make("p", "soft", now) : null,
    rollout.why ? make("p", "wrong", `Stopped: ${rollout.why}.`) : null,
    rollout.troubles.length ? make("ul", "wrong", ...rollout.troubles.map((one) => {
      const device = make("a", "link", one.device);
      device.href = `/devices/${encodeURIComponent(one.device)}`;
      return make("li", "", device, `: ${one.outcome}${one.why ? `, ${one.why}` : ""}`);
    })) : null);
}

let drawn = "";
let again = null;

async function load() {
  clearTimeout(again);
  const rollouts = await ask("/api/rollouts");
  if (Array.isArray(rollouts)) {
    if (drawn !== JSON.stringify(rollouts)) {
      drawn = JSON.stringify(rollouts);
      at("list").replaceChildren(...rollouts.map(drawOne));
      if (!rollouts.length) at("list").append(make("li", "empty", "Nothing was changed in stages from this page."));
      loadRuns();
    }
    if (rollouts.some((one) => one.state === "running")) again = setTimeout(load, LOOK_AGAIN_MS);
  }
}

function panel(name, runs) {
  const most = runs.reduce((sum, one) => sum + one.devices, 0);
  const rows = runs.sort((a, b) => b.devices - a.devices).map(({ version, devices }) => {
    const link = make("a", "", version);
    const condition = name === "hedge-agent" ? `version=${version}` : `model=${name}/${version}`;
    link.href = `/?where=${encodeURIComponent(condition)}`;
    link.title = "these devices";
    const bar = make("span", "part");
    bar.style.width = `${(100 * devices) / most}%`;
    return make("div", "run", link, make("div", "track", bar), make("b", "", `${number(devices)} (${Math.round((100 * devices) / most)} %)`));
  });
  return make("div", "panel", make("h3", "", name), ...rows);
}

async function loadRuns() {
  const runs = await ask("/api/runs");
  if (runs.error) return;
  const names = new Map();
  for (const run of [...runs.models, ...runs.agents]) names.set(run.name, [...(names.get(run.name) || []), run]);
  if (!names.size) { at("runs").firstElementChild.hidden = false; return; }
  at("runs").replaceChildren(...[...names].map(([name, list]) => panel(name, list)));
  at("bundles").replaceChildren(...new Set(runs.models.map((run) => run.name)).values().map((name) => { const one = make("option"); one.value = name; return one; }));
}

const days = (ms) => Math.round(ms / 86400000);

// What devices can fetch from here. A cloud that serves no folder of bundles has no shelf.
async function loadShelf() {
  const shelf = await ask("/api/bundles");
  at("shelf").hidden = !shelf.bundles && !shelf.error;
  if (shelf.error) {
    at("shelf-list").replaceChildren(make("p", "wrong", `Devices can fetch nothing from here: ${shelf.error}`));
    return;
  }
  if (!shelf.bundles) return;
  const link = (words, condition) => { const one = make("a", "", words); one.href = `/?where=${encodeURIComponent(condition)}`; return one; };
  const names = ["bundle", "size", "signed by", "for", "run it", "want it"];
  const cell = (index, ...content) => { const one = make("td", "", ...content); one.dataset.name = names[index]; return one; };
  const rows = shelf.bundles.map((one, index) => {
    const { run, want, failed } = shelf.devices[index];
    const signers = one.wrong ? [make("span", "wrong", `no device takes it: ${one.wrong}`)] : [make("code", "", one.signed_by.join(", "))];
    return make("tr", "", cell(0, make("b", "", one.name), ` ${one.version}`), cell(1, bytes(one.bytes)), cell(2, ...signers),
      cell(3, one.devices === undefined ? "all devices" : one.devices === 1 ? "1 device" : `${number(one.devices)} devices`),
      cell(4, run ? link(number(run), `model=${one.name}/${one.version}`) : "0"),
      cell(5, number(want), failed ? make("span", "wrong", `, ${number(failed)} failed`) : ""));
  });
  const head = make("tr", "", ...names.map((name) => { const one = make("th", "", name); one.scope = "col"; return one; }));
  const table = make("table", "shelf", make("thead", "", head), make("tbody", "", ...rows));
  at("shelf-list").replaceChildren(rows.length ? table : make("p", "empty", "Nothing is published yet."));
  const left = days(shelf.expires_ms - serverNow());
  at("shelf-said").replaceChildren(`List ${shelf.version} `, left >= 0 ? `holds for ${left} more days` : make("b", "wrong", "has run out: devices take nothing from it until it is published again"),
    ". A key is told by the beginning of the SHA-256 of its .pub file.");
}

function drawKind() {
  const isBundle = form.elements.kind.value === "bundle";
  at("of-settings").hidden = isBundle;
  at("of-bundle").hidden = !isBundle;
}

form.addEventListener("submit", look);
form.addEventListener("input", () => { drawKind(); forget(); });
at("begin").addEventListener("click", begin);
const saved = makeSaved(at("saved"), "/api", "", "All devices together have");
const spans = [...at("spans").children];
spans.forEach((button) => button.addEventListener("click", () => {
  spans.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
  saved.take(button.dataset.span);
}));
saved.take("day");
loadShelf();
drawKind();
load();
loadRuns();
listen({
  figures(f) {
    setClock(f.now_ms);
    at("instance").textContent = `${f.instance} on ${f.broker}`;
    drawNotice(f);
  },
});
