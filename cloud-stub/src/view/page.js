// Draws the first page from the events of /events. Everything from devices is written as text, never as markup.
import { age, at, bytes, deviceLine, drawNotice, faultList, figure, kindOf, listen, make, number, percent, setClock, span } from "/parts.js";
import { caseCard, drawList } from "/case-parts.js";

let onlyDevice = null;
let latest = { figures: null, devices: [], cases: [] };

function drawFigures(f) {
  latest.figures = f;
  setClock(f.now_ms);
  at("instance").textContent = `${f.instance} on ${f.broker}` + (f.tasks.length ? ` · answers ${f.tasks.join(", ")}` : " · no model");
  const compared = f.agreed + f.disagreed;
  const aside = f.dead + f.failed + f.refused;
  const why = [[f.dead, "dead"], [f.failed, "failed"], [f.refused, "refused"]]
    .filter(([n]) => n).map(([n, what]) => `${number(n)} ${what}`).join(", ");
  at("figures").replaceChildren(
    figure(number(f.cases), "cases taken", f.cases ? `${bytes(f.received_bytes)} of samples` : "no data yet"),
    figure(number(f.answered), "answered", f.repeated ? `${number(f.repeated)} asked again` : ""),
    figure(number(f.waiting), "waiting for an answer", f.tasks.length ? "" : "no model here: they are held"),
    figure(percent(f.agreed, compared), "agreement", compared ? `${number(f.disagreed)} corrected` : "no data yet"),
    figure(bytes(f.payload_bytes), "samples kept", ""),
    figure(number(aside), "set aside", why || "nothing"),
    ...(f.malformed ? [figure(number(f.malformed), f.malformed === 1 ? "unreadable message" : "unreadable messages", "of devices; no cases")] : []),
  );
  if (!at("fleet").classList.contains("wrong")) drawFleet(f);
  // Those that are shown may stay the same while more come.
  if (latest.devices.length && !asked.text && !asked.offset) drawPages(sizeOf(f));
  // Those that were looked for need not be among those that pages are told of.
  if (asked.text || asked.offset) findLater();
  drawNotice(f);
}

function deviceCard(d) {
  const t = d.telemetry;
  const s = t ? t.samples : null;
  const cell = (label, value) => make("div", "", make("dt", "", label), make("dd", "", value));
  const shown = (value) => (s ? number(value(s)) : "–");
  const queued = t ? t.queue.waiting : 0;
  let queue = "no figures yet";
  if (t) queue = queued ? `${number(queued)} queued` + (t.queue.oldest_s ? `, oldest ${span(t.queue.oldest_s)}` : "") : "queue empty";
  const stamp = d.last_seen_ms ? age(d.last_seen_ms, "heard ", " ago") : "never heard";
  const name = make("a", "name", d.device);
  name.href = `/devices/${encodeURIComponent(d.device)}`;
  name.title = "settings, commands and history of this device";
  const settings = make("a", "link", "settings");
  settings.href = name.href;
  const cases = make("button", "link", onlyDevice === d.device ? "all cases" : "its cases");
  cases.type = "button";
  cases.setAttribute("aria-pressed", String(onlyDevice === d.device));
  cases.addEventListener("click", () => show(onlyDevice === d.device ? null : d.device));
  const trouble = { on_trial: ["warn", "settings on trial"], refused: ["bad", "settings refused"], failed: ["bad", "settings failed"] }[d.outcome];
  const faults = Object.keys(d.faults).length;
  const card = make("article", `device ${d.state}`,
    make("div", "top", name, faults ? make("span", "pill warn", faults === 1 ? "1 fault" : `${faults} faults`) : null, trouble ? make("span", `pill ${trouble[0]}`, trouble[1]) : null, make("span", `pill ${kindOf(d.state)}`, d.state)),
    deviceLine(d, true),
    faultList(d, 2),
    make("dl", "",
      cell("answered", shown((x) => x.answered)),
      cell("kept", s ? percent(s.kept, s.kept + s.deferred) : "–"),
      cell("deferred", shown((x) => x.deferred)),
      cell("corrected", shown((x) => x.corrected))),
    make("div", "foot", make("span", queued ? "queue some" : "queue", queue), stamp, cases, settings));
  card.title = d.models.map((m) => `${m.name} ${m.version}`).join(", ");
  card.classList.toggle("chosen", onlyDevice === d.device);
  return card;
}

const DEVICES_SHOWN = 60;

function drawDevices(devices) {
  latest.devices = devices;
  if (asked.text || asked.offset) { findLater(); return; }
  const inOrder = (a, b) => a.trouble - b.trouble || (a.device < b.device ? -1 : 1);
  const sorted = [...devices].sort(inOrder).slice(0, DEVICES_SHOWN);
  drawList(at("devices"), sorted, "device", deviceCard, isChosen);
  drawPages(latest.figures ? sizeOf(latest.figures) : sorted.length);
}

const inFleet = ({ fleet: { with_faults, ...states } }) => states;
const sizeOf = (f) => Object.values(inFleet(f)).reduce((sum, n) => sum + n, 0);

function drawFleet(f) {
  const parts = Object.entries(inFleet(f)).filter(([, n]) => n).map(([state, n]) => `${number(n)} ${state}`);
  if (f.fleet.with_faults) parts.push(`${number(f.fleet.with_faults)} with faults`);
  at("fleet").textContent = parts.join(" · ");
}

// What is asked for beside the first page of all.
const asked = { text: "", offset: 0 };
const FIND_PAUSE_MS = 2000;
let finding = null;

function findLater() {
  if (!finding) finding = setTimeout(find, FIND_PAUSE_MS);
}

async function find() {
  clearTimeout(finding);
  finding = null;
  if (!asked.text && !asked.offset) { at("fleet").classList.remove("wrong"); if (latest.figures) drawFleet(latest.figures); drawDevices(latest.devices); return; }
  const { text, offset } = asked;
  const query = new URLSearchParams({ order: "trouble", offset, limit: DEVICES_SHOWN });
  if (text) query.set("where", text.includes("=") ? text : `name=*${text}*`);
  try {
    const response = await fetch(`/api/devices?${query}`);
    const found = await response.json();
    if (text !== asked.text || offset !== asked.offset) return;
    at("fleet").classList.toggle("wrong", !response.ok);
    if (!response.ok) { at("fleet").textContent = found.error; return; }
    if (latest.figures) drawFleet(latest.figures);
    drawList(at("devices"), found, "device", deviceCard, isChosen);
    drawPages(Number(response.headers.get("Hedge-Count")));
  } catch { /* The live mark shows that the server is gone. */ }
}

function drawPages(count) {
  const { offset, text } = asked;
  const last = Math.min(offset + DEVICES_SHOWN, count);
  at("pages").hidden = count <= DEVICES_SHOWN && !offset && !text;
  at("where").textContent = count ? `${number(offset + 1)} to ${number(last)} of ${number(count)}` : "none is so";
  at("before").disabled = offset === 0;
  at("after").disabled = last >= count;
}

function turn(by) {
  asked.offset = Math.max(0, asked.offset + by * DEVICES_SHOWN);
  find();
}

at("before").addEventListener("click", () => turn(-1));
at("after").addEventListener("click", () => turn(1));
// The address may name them: other pages lead here.
const named = new URLSearchParams(location.search).get("where");
if (named) { at("find").value = named; asked.text = named; }
at("find").addEventListener("input", () => { asked.text = at("find").value.trim(); asked.offset = 0; find(); });

const isChosen = (d) => String(d.device === onlyDevice);
const drawCases = (cases) => drawList(at("cases"), cases, "id", (c) => caseCard(c, latest.figures ? latest.figures.tasks : null));

async function show(device) {
  onlyDevice = device;
  at("filter").hidden = !device;
  at("filter").textContent = device ? `only ${device} ✕` : "";
  drawDevices(latest.devices);
  await casesChanged(latest.cases);
}

async function casesChanged(cases) {
  latest.cases = cases;
  if (!onlyDevice) { drawCases(cases); return; }
  const wanted = onlyDevice;
  try {
    const response = await fetch(`/api/cases?device=${encodeURIComponent(wanted)}`);
    const theirs = await response.json();
    if (response.ok && wanted === onlyDevice) drawCases(theirs);
  } catch { /* The live mark shows that the server is gone. */ }
}

at("filter").addEventListener("click", () => show(null));
const CASES_SHOWN = 24;

// What is new or has changed takes its place in the list.
function merged(list, changed, key) {
  const fresh = new Map(changed.map((item) => [item[key], item]));
  return [...changed.filter((item) => !list.some((old) => old[key] === item[key])), ...list.map((old) => fresh.get(old[key]) || old)];
}

listen({
  figures: drawFigures,
  devices: drawDevices,
  cases: casesChanged,
  changed_devices: (changed) => drawDevices(merged(latest.devices, changed, "device")),
  changed_cases: (changed) => casesChanged(merged(latest.cases, changed, "id").sort((a, b) => b.received_ms - a.received_ms).slice(0, CASES_SHOWN)),
});
