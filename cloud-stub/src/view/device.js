// Draws the page of one device: what it is like now, its settings, commands and history.
import { age, at, bytes, deviceLine, drawNotice, faultList, figure, kindOf, listen, make, number, percent, setClock, span } from "/parts.js";
import { compared, drawBundles } from "/bundles.js";
import { makeCommands } from "/commands.js";
import { makeEditor, show } from "/editor.js";
import { drawLatest, makeTrend } from "/trend.js";

const NAME = decodeURIComponent(location.pathname.split("/").pop());
const HERE = `/api/devices/${encodeURIComponent(NAME)}`;
const OUTCOMES = { applied: "good", done: "good", on_trial: "warn", refused: "bad", failed: "bad", interrupted: "bad" };

const pill = (outcome) => make("span", `pill ${OUTCOMES[outcome] || "quiet"}`, String(outcome).replaceAll("_", " "));

// Asks for something to be done; what comes back is a report, or `error` says why there is none.
async function post(what, request) {
  try {
    const response = await fetch(`${HERE}/${what}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Hedge-Operate": "yes" },
      body: JSON.stringify({ ...request, by: who() }),
    });
    const text = await response.text();
    try { return JSON.parse(text); } catch { return { error: text || `the server answered ${response.status}` }; }
  } catch {
    return { error: "the server cannot be reached" };
  }
}

function who() {
  return localStorage.getItem("who") || undefined;
}

let latest = null;
let seen = "";
let editor = null;
let commands = null;
let trend = null;

function drawNow(d) {
  const t = d.telemetry;
  const s = t ? t.samples : null;
  at("name").replaceChildren(d.device, " ", make("span", `pill ${kindOf(d.state)}`, d.state));
  const queue = t ? t.queue : null;
  const models = d.models.map((m) => `${m.name} ${m.version}`);
  const link = figure(t && !["offline", "resting", "unknown"].includes(d.state) ? t.link.replaceAll("_", " ") : d.state, "link", "");
  link.querySelector("small").replaceChildren(...deviceLine(d).childNodes);
  const faults = faultList(d, Infinity);
  at("faults").hidden = !faults;
  at("fault-list").replaceChildren(...(faults ? [faults] : []));
  drawBundles(at("bundles"), at("bundle-list"), d, latest && latest.desired ? latest.desired.settings : null);
  const spent = t && t.budget ? Object.entries(t.budget).filter(([, b]) => b.max && b.spent >= 0.8 * b.max) : [];
  at("now-age").replaceChildren(...(t ? [age(d.telemetry_ms, "The device's own figures are of ", " ago.")] : []));
  at("now").replaceChildren(
    link,
    figure(queue ? number(queue.waiting) : "–", "cases queued",
      queue ? [queue.oldest_s ? `oldest ${span(queue.oldest_s)}` : "none waits", queue.dead ? `${number(queue.dead)} dead letters` : ""].filter(Boolean).join(", ") : "no figures yet"),
    figure(s ? percent(s.kept, s.kept + s.deferred) : "–", "kept on the device", s ? `${number(s.answered)} answered, ${number(s.corrected)} corrected` : ""),
    figure(models.length ? models[0] : "–", models.length > 1 ? "models" : "model", models.slice(1).join(", ")),
    figure(d.version || "–", "version", t ? `up for ${span(t.uptime_s)}${t.board && t.board.rss_bytes ? `, ${bytes(t.board.rss_bytes)} of memory` : ""}` : ""),
    ...sourceFigures(t),
    figure(t ? bytes(t.link_bytes) : "–", "over the link", spent.length ? `${spent[0][0].replaceAll("_", " ")} ${percent(spent[0][1].spent, spent[0][1].max)} spent` : ""),
  );
}

// How long ago, when it said so, each source brought something new; the age of what it said stands beside the link.
function sourceFigures(t) {
  return Object.entries((t && t.source_figures) || {}).map(([name, s]) => {
    const quiet = s.quiet_after_s !== undefined && (s.new_s ?? t.uptime_s) > s.quiet_after_s;
    const note = s.sample_s === undefined ? "" : quiet ? "before the last figures: too long ago" : "before the last figures";
    return figure(s.sample_s === undefined ? "nothing yet" : span(s.new_s ?? s.sample_s), `last of ${name}`, note);
  });
}

function drawStanding(page) {
  const { reported, desired, differences } = page;
  const last = reported ? reported.last : null;
  const inForce = !reported ? "The device has not reported its settings." : reported.version
    ? `Version ${reported.version} is in force` : "Its own file alone is in force";
  const wanted = desired && (!reported || desired.version !== reported.version) ? `, version ${desired.version} is wanted` : "";
  const line = make("p", "standing", inForce + wanted, " ");
  if (last) line.append(pill(last.outcome));
  if (desired && desired.by) line.append(make("span", "soft", ` by ${desired.by}`));
  if (page.desired_ms && desired) line.append(" ", age(page.desired_ms, "", " ago"));
  const parts = [line];
  if (last && last.reason) parts.push(make("p", "wrong", last.reason));
  if (last && last.errors && last.errors.length) {
    parts.push(make("ul", "wrong", ...last.errors.map((e) => make("li", "", make("code", "", e.field), `: ${e.reason}`))));
  }
  if (last && last.outcome === "on_trial") parts.push(trial(last.version, desired));
  if (reported && reported.paused && reported.paused.length) parts.push(make("p", "soft", `Paused: ${reported.paused.join(", ")}`));
  if (differences.length) parts.push(differenceTable(differences));
  at("standing").replaceChildren(...parts);
}

function trial(version, desired) {
  const waits = desired && desired.confirm === "operator" ? "It is kept if you say so." : "It is kept once a cloud has answered the device over it.";
  const box = make("div", "trial", make("p", "", `Version ${version} is on trial. ${waits} After 180 s the settings before it are back.`));
  for (const [command, label] of [["confirm", "Keep it"], ["revert", "Give it back"]]) {
    const button = make("button", command === "confirm" ? "main operators" : "operators", label);
    button.type = "button";
    button.disabled = Boolean(latest.look_only);
    button.addEventListener("click", () => commands.run(command, { version }, button));
    box.append(button);
  }
  return box;
}

function differenceTable(differences) {
  const head = make("tr", "", ...["setting", "wanted", "in force"].map((text) => { const th = make("th", "", text); th.scope = "col"; return th; }));
  const rows = differences.map((d) => make("tr", "", make("td", "", make("code", "", d.field)),
    make("td", "", d.wanted === null ? make("i", "", "as in its file") : show(d.wanted)),
    make("td", "", d.in_force === null ? make("i", "", "nothing") : show(d.in_force))));
  const table = make("table", "", make("caption", "", "Not as wanted"), make("thead", "", head), make("tbody", "", ...rows));
  return make("div", "scroll", table);
}

function eventLine(event) {
  const { kind, document: said, changes } = event;
  const who = said.by ? make("b", "", said.by) : null;
  if (said.emptied) return [`${kind === "desired" ? "the wanted settings were" : "its report was"} taken away`];
  if (kind === "desired") {
    const list = changes && changes.length ? make("ul", "changes", ...changes.map((c) => make("li", "", make("code", "", c.field), " ",
      make("del", "", c.before === null ? "own file" : show(c.before)), " → ", make("ins", "", c.after === null ? "own file" : show(c.after))))) : null;
    return [who || "somebody", ` wants version ${said.version}`, said.confirm === "operator" ? ", to be confirmed by an operator" : "",
      changes && !changes.length ? ", with nothing changed" : "", changes ? "" : " (too long to be kept here)", list];
  }
  if (kind === "reported") {
    const last = said.last;
    const about = last && last.version && last.version !== said.version ? `version ${last.version} ` : "";
    const errors = last && last.errors && last.errors.length ? make("ul", "changes", ...last.errors.map((e) => make("li", "wrong", make("code", "", e.field), `: ${e.reason}`))) : null;
    return [`${said.version ? `version ${said.version}` : "its own file"} in force${about ? `; ${about}` : " "}`, last ? pill(last.outcome) : null,
      last && last.reason ? ` ${last.reason}` : "", said.paused && said.paused.length ? ` paused: ${said.paused.join(", ")}` : "", errors];
  }
  if (kind === "bundle") return [make("b", "", said.bundle), ` answers with ${said.to} instead of ${said.from}`, said.rival ? compared(said.rival, said.from) : ""];
  return [make("code", "", said.command || "a command"), " ", pill(said.outcome), said.reason ? ` ${said.reason}` : ""];
}

function drawHistory(history) {
  const kinds = { desired: "wanted", reported: "reported", reply: "command", bundle: "bundle" };
  at("history").replaceChildren(...history.map((event) => make("li", "",
    age(event.at_ms, "", " ago"), make("span", "kind", kinds[event.kind] || event.kind), make("div", "", ...eventLine(event)))));
  if (!history.length) at("history").append(make("li", "empty", "Nothing was wanted of this device yet."));
}

async function load() {
  let page;
  try {
    const response = await fetch(HERE);
    page = await response.json();
    if (!response.ok) { at("notice").textContent = page.error; at("notice").hidden = false; return; }
  } catch {
    seen = ""; // The live mark shows that the server is gone; the next word of it loads anew.
    return;
  }
  latest = page;
  at("look-only").hidden = !page.look_only;
  at("look-only").textContent = page.look_only ? `Only for looking: ${page.look_only}.` : "";
  drawNow(page.device);
  drawStanding(page);
  drawHistory(page.history);
  editor.take(page);
  commands.take(page);
  trend.take(page);
}

// Its cases are asked for when one of the latest of all is one of its, or a new page of it is drawn.
function heardCases(changed) {
  if (changed.some((one) => one.device === NAME)) drawLatest(at("cases"), NAME);
}

// The server tells pages of so many devices by itself; about others they ask.
const DEVICES_TOLD = 60;

function heardFigures(f) {
  setClock(f.now_ms);
  at("instance").textContent = `${f.instance} on ${f.broker}`;
  drawNotice(f);
  const { with_faults, ...states } = f.fleet;
  if (Object.values(states).reduce((sum, n) => sum + n, 0) > DEVICES_TOLD) load();
}

function heard(devices) {
  const mine = devices.find((d) => d.device === NAME);
  if (!mine) { if (!latest) load(); return; }
  if (latest) {
    latest.device = mine;
    drawNow(mine);
    trend.take(latest);
  }
  const now = JSON.stringify([mine.events, mine.in_force, mine.wanted, mine.outcome, mine.connection, mine.state]);
  if (now === seen) return;
  seen = now;
  load();
}

async function start() {
  document.title = `${NAME} · Hedge`;
  at("name").textContent = NAME;
  const schema = await (await fetch("/api/settings-schema")).json();
  editor = makeEditor(at("editor"), schema, (request) => post("settings", request), (request) => post("commands", request));
  commands = makeCommands(at("commands"), (request) => post("commands", request));
  at("its-cases").href = `/cases?device=${encodeURIComponent(NAME)}`;
  trend = makeTrend(at("trend"), HERE);
  drawLatest(at("cases"), NAME);
  listen({
    figures: heardFigures,
    devices: heard,
    changed_devices: heard,
    changed_cases: heardCases,
  });
}

start();
